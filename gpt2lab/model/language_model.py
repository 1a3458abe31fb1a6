"""What training, evaluation and generation need of a model, whatever its architecture: `gpt2.py` or `modern.py`."""

from collections.abc import Callable, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2lab.config import GPT2Config
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation import engine, inference, text
from gpt2lab.generation.cache import KVCache
from gpt2lab.generation.engine import TokenIds
from gpt2lab.generation.sampling import Sampling
from gpt2lab.model import huggingface, ops, resolve
from gpt2lab.model.ops import Linear

CachedAttention = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys and values of new tokens to (B, H, T, D)

Model = TypeVar("Model", bound="LanguageModel")


class Trunk(nn.Module):
    """From tokens to hidden states: what lies below the output head."""

    activation_checkpointing = False  # in training, recompute each block's activations in the backward pass

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, in order."""
        raise NotImplementedError

    def run_blocks(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, *context: Tensor) -> Tensor:
        """Apply the blocks in order.

        Args:
            x: (B, T, C).
            mask: see `forward`.
            cache: see `forward`.
            context: further inputs, the same for each block.

        Returns:
            (B, T, C).
        """
        for layer, block in enumerate(self.blocks):
            if self.activation_checkpointing and self.training and cache is None:
                x = checkpoint(block, x, mask, None, *context, use_reentrant=False)
            else:
                x = block(x, mask, None if cache is None else partial(cache.attention, layer), *context)
        return x

    def forward(
        self, idx: Tensor, positions: Tensor | None = None, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Compute hidden states.

        Args:
            idx: int64 (B, T).
            positions: int64 (B, T), each below block_size. None: 0, ..., T - 1.
            mask: bool (B, 1, T, T), true where a position (row) attends to another (column). None: causal.
            cache: keys and values of the tokens before `idx`, to which those of `idx` are added. Not with a mask.

        Returns:
            (B, T, C).

        Raises:
            GPT2LabError: T is above block_size and `positions` is None.
        """
        raise NotImplementedError


def check_length(length: int, block_size: int) -> None:
    """Check that a sequence fits into the context window.

    Args:
        length: in tokens.
        block_size: of the model.

    Raises:
        GPT2LabError: it does not.
    """
    if length > block_size:
        raise GPT2LabError(f"{length} tokens do not fit into block_size {block_size}; shorten the sequence")


class LanguageModel(nn.Module):
    """A trunk and an output head, with the loss, generation and files that all architectures share.

    Weights are drawn once, on the CPU, so they do not depend on the device that the model is moved to. Under
    `with torch.device("meta")` the model has shapes but no memory.

    Args:
        config: the architecture.
        generator: source of the initial weights; None: torch's global one (`torch.manual_seed`).
    """

    architecture: str  # the value of `model.architecture` that the class implements
    compile_options: Mapping[str, bool] = {}  # of torch.compile, for the training step
    softcap: float | None = None  # logits are softcap * tanh(logits / softcap)
    lm_head: Linear

    def __init__(self, config: GPT2Config, *, generator: torch.Generator | None = None):
        super().__init__()
        if not isinstance(config, GPT2Config):
            raise GPT2LabError(f"the config is {type(config).__name__} {config!r:.60}; it must be a GPT2Config")
        self.config = config
        self._build(config)
        self.tie_weights()
        with torch.no_grad():
            self._initialize(generator)

    def _build(self, config: GPT2Config) -> None:
        """Create the modules, without values."""
        raise NotImplementedError

    def _initialize(self, generator: torch.Generator | None) -> None:
        """Draw the initial weights."""
        raise NotImplementedError

    @property
    def trunk(self) -> Trunk:
        """The part below the output head."""
        raise NotImplementedError

    def tie_weights(self) -> None:
        """Use the token embedding as the output head as well, where the configuration says so."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Compute logits or the loss.

        Args:
            idx: int64 (B, T), T <= block_size.
            targets: int64 (B, T), the token that follows each of `idx`; -100 where there is nothing to predict.

        Returns:
            Without targets `(logits (B, T, V), None)`. With targets `(None, loss)`: the mean cross-entropy in nats
            over the targets that count (nan if none does), a float32 scalar. The logits are not returned in that
            case, so that they need not be kept.

        Raises:
            GPT2LabError: T is above block_size.
        """
        raise NotImplementedError

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., C) to logits (..., V)."""
        logits: Tensor = self.lm_head(hidden)
        return logits if self.softcap is None else ops.softcap(logits, self.softcap)

    def num_parameters(self) -> int:
        """Return the number of parameters, a tied matrix counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def from_pretrained(cls: type[Model], name: str | Path | resolve.ResolvedCheckpoint) -> Model:
        """Load a model, float32 on the CPU.

        Args:
            name: a Hugging Face folder of this architecture, a run directory (its newest intact checkpoint), a Hub id
                such as `gpt2`, a file of another project (see `foreign.py`), or the result of
                `resolve.find_checkpoint`.

        Raises:
            GPT2LabError: see `resolve.find_checkpoint` and `resolve.read`; or the folder holds a model of another
                architecture, which `gpt2lab.from_pretrained` reads.
        """
        checkpoint = name if isinstance(name, resolve.ResolvedCheckpoint) else resolve.find_checkpoint(name)
        config, weights = resolve.read(checkpoint)
        if config.architecture != cls.architecture:
            raise GPT2LabError(
                f"{checkpoint.folder} holds a model of the architecture {config.architecture}; "
                "use gpt2lab.from_pretrained"
            )
        with torch.device("meta"):  # no memory yet: all weights come from the file
            model = cls(config)
        model.load_state_dict(weights, assign=True)
        model.tie_weights()
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which `transformers` opens; see `huggingface.write`."""
        huggingface.write(folder, self.config, self.state_dict())

    def generate(
        self, idx: TokenIds, max_new_tokens: int = 64, *, seed: int | None = None, **sampling: Any
    ) -> TokenIds:
        """Continue token ids; see `generation.engine.generate`.

        Args:
            idx: int64 (B, T), or lists of any lengths.
            max_new_tokens: per row. Beyond block_size the window moves on.
            seed: row i uses seed + i, so its tokens are the same alone and in a batch; None: a random seed.
            sampling: temperature, top_k, top_p, min_p, repetition_penalty: see `generation.options.Sampling`.

        Returns:
            Prompts and new tokens: int64 (B, T + max_new_tokens) on the device of `idx`, or lists for lists.
        """
        model = inference.optimize_for_inference(self)
        rows = len(idx) if isinstance(idx, Sized) else 0  # if it is not, `engine.generate` says what it must be
        seeds = None if seed is None else [seed + row if isinstance(seed, int) else seed for row in range(rows)]
        return engine.generate(model, idx, max_new_tokens, Sampling(**sampling), seeds=seeds)

    def complete(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        *,
        stop: Sequence[str] = (),
        seed: int | None = None,
        tokenizer: Tokenizer | None = None,
        **sampling: Any,
    ) -> str:
        """Return a text and its continuation, which ends at `<|endoftext|>`, a stop string or `max_new_tokens`.

        Args:
            prompt: the text, not empty; the model reads its last block_size tokens.
            max_new_tokens: at most.
            stop: strings that end the text and are not part of it.
            seed: as in `generate`.
            tokenizer: GPT-2's if None (loading it takes 0.1 s).
            sampling: as in `generate`.
        """
        model, tokenizer = inference.optimize_for_inference(self), tokenizer or Tokenizer()
        seeds, options = None if seed is None else [seed], Sampling(**sampling)
        return prompt + text.complete(model, tokenizer, [prompt], max_new_tokens, options, stop=stop, seeds=seeds)[0]

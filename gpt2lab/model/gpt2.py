"""GPT-2: a decoder-only transformer, layer norm first, learned positions, tied embeddings.

    idx (B, T) ─▶ wte + wpe ─▶ n_layer x [ln_1 ─▶ attn ─▶ + ─▶ ln_2 ─▶ mlp ─▶ +] ─▶ ln_f ─▶ lm_head ─▶ logits (B, T, V)

The architecture is OpenAI's ("Language Models are Unsupervised Multitask Learners", 2019) down to the names of its
parameters, so published weights fit. There is no dropout: one pass over a corpus much larger than the model does
not overfit, and reproductions of GPT-2 small train without it.

Shapes: B batch, T time, C channels (n_embd), V vocabulary, H heads, D head size (C / H).
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2lab.config import GPT2Config
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation import engine, inference, text
from gpt2lab.generation.cache import Attend, KVCache
from gpt2lab.generation.sampling import Sampling
from gpt2lab.model import cpu_attention, head, huggingface, resolve
from gpt2lab.model.linear import linear

Ids = TypeVar("Ids", Tensor, list[list[int]])

INIT_STD = 0.02
LAYER_NORM_EPS = 1e-5


class Linear(nn.Linear):
    """A linear layer left uninitialised: torch's own first values would be drawn only to be overwritten by GPT2's."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A table left uninitialised, for the same reason."""

    def reset_parameters(self) -> None:
        pass


class Attention(nn.Module):
    """Causal self-attention: every position looks at itself and at what came before."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)  # query, key and value in one product
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, mask: Tensor | None = None, attend: Attend | None = None) -> Tensor:
        """(B, T, C) to (B, T, C).

        Args:
            mask: bool (B, 1, T, T), which position may look at which; causal unless given.
            attend: looks at what a cache holds as well (model/cache.py).
        """
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        y = _attend(q, k, v, mask) if attend is None else attend(q, k, v)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # type: ignore[no-any-return]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, each (B, H, T, D)."""
    if cpu_attention.pays(q):
        return cpu_attention.attention(q, k, v) if mask is None else cpu_attention.masked(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


class MLP(nn.Module):
    """Two linear layers around GELU, in the tanh approximation that GPT-2 was trained with."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C), by way of (B, T, 4C)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention, then MLP, each reading a normalised copy of the residual stream and adding to it."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None = None, attend: Attend | None = None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x), mask, attend)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Everything below the output head: from tokens to normalised hidden states."""

    activation_checkpointing = False  # in training: compute a block again for its gradient instead of keeping it all

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)

    def forward(
        self,
        idx: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """int64 (B, T) to (B, T, C).

        Args:
            positions: int64 (B, T), each below block_size; 0 … T - 1 unless given.
            mask: bool (B, 1, T, T), true where a position (row) may look at another; what came before unless given.
                Both together let one row hold several texts that begin alike (evaluation/scoring.py).
            cache: holds what came before these tokens, and takes their keys and values; without a mask
                (model/engine.py).

        Raises:
            GPT2LabError: T is above block_size, and no positions are given.
        """
        length, limit = idx.shape[1], self.wpe.num_embeddings
        if positions is not None:
            x = self.wte(idx) + self.wpe(positions)
        elif length > limit:
            raise GPT2LabError(f"{length} tokens do not fit into block_size {limit}; shorten the sequence")
        else:
            x = self.wte(idx) + self.wpe.weight[:length]  # (B, T, C) + (T, C)
        for n, block in enumerate(self.h):
            if self.activation_checkpointing and self.training and cache is None:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask, None if cache is None else cache.layer(n))
        return self.ln_f(x)  # type: ignore[no-any-return]


class GPT2(nn.Module):
    """The language model: transformer, output head and loss.

    Weights are drawn once, on the CPU, so that they are the same whatever device the model moves to afterwards.

    Args:
        config: the architecture.
        generator: source of the initial weights; None: torch's global one, governed by `torch.manual_seed`.

    Under `with torch.device("meta")` the model has shapes but no memory.
    """

    def __init__(self, config: GPT2Config, *, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        self._tie()
        self._initialise(generator)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Logits, or the loss.

        Args:
            idx: int64 (B, T), T <= block_size.
            targets: int64 (B, T), the token that follows each of `idx`; -100 where there is nothing to predict.

        Returns:
            Without targets `(logits (B, T, V), None)`. With targets `(None, loss)`: the mean cross-entropy in nats
            over the targets that count (nan if none does), a float32 scalar. The logits are not returned then, so
            that the loss need not keep them.

        Raises:
            GPT2LabError: T is above block_size.
        """
        hidden = self.transformer(idx)  # (B, T, C)
        if targets is None:
            return self.lm_head(hidden), None
        return None, self._loss(hidden, targets)

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of (B, T, C) against (B, T)."""
        flat, targets = hidden.view(-1, self.config.n_embd), targets.reshape(-1)  # (B*T, C), (B*T,)
        if torch.compiler.is_compiling():  # the compiler fuses the conversion to float32 into softmax and loss
            return F.cross_entropy(self.lm_head(flat).float(), targets, ignore_index=head.IGNORED)
        return head.mean_cross_entropy(flat, self.lm_head.weight, targets)

    def num_parameters(self) -> int:
        """Parameters, the tied matrix counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def from_pretrained(cls, name: str | Path | resolve.ResolvedCheckpoint) -> "GPT2":
        """The model in a Hugging Face GPT-2 folder, a run's newest good checkpoint, or of the Hub; fp32, on the CPU.

        A warning says which damaged checkpoints were passed over.

        Raises:
            GPT2LabError: see `resolve.find` and `huggingface.read`.
        """
        if not isinstance(name, resolve.ResolvedCheckpoint):  # one that was found has been verified
            name = resolve.find_checkpoint(name, warn=lambda words: warnings.warn(words, stacklevel=6))
        config, weights = huggingface.read(name.folder)
        with torch.device("meta"):  # no memory yet: every weight comes from the file
            model = cls(config)
        model.load_state_dict(weights, assign=True)
        model._tie()
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which `transformers` opens as they are.

        Raises:
            GPT2LabError: see `huggingface.write`.
        """
        huggingface.write(folder, self.config, self.state_dict())

    def generate(
        self,
        idx: Ids,
        max_new_tokens: int = 64,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> Ids:
        """Continue token ids; what the sampling settings mean: `gpt2lab.generation.sampling.Sampling`.

        Args:
            idx: int64 (B, T), or lists of any lengths. Beyond block_size the window moves on: see model/engine.py.
            temperature: 0 takes the likeliest token.
            seed: row i draws with seed + i, so it gets the same tokens alone or in a batch; None: a fresh one.

        Returns:
            Prompts and new tokens: int64 (B, T + max_new_tokens) on the device of `idx`, or lists where lists came in.

        Raises:
            GPT2LabError: an argument is out of range.
        """
        if isinstance(idx, Tensor) and (idx.dim() != 2 or idx.numel() == 0 or idx.is_floating_point()):
            raise GPT2LabError(
                f"idx is {idx.dtype} {tuple(idx.shape)}; it must be int64 (B, T) with at least one token to continue"
            )
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        seeds = None if seed is None else range(seed, seed + len(idx))
        if isinstance(idx, Tensor):
            rows = engine.generate(
                inference.optimize_for_inference(self), idx.tolist(), max_new_tokens, sampling, seeds=seeds
            )
            return torch.tensor(rows, device=idx.device)
        return engine.generate(inference.optimize_for_inference(self), idx, max_new_tokens, sampling, seeds=seeds)

    def complete(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> str:
        """Continue a text, until `<|endoftext|>` at the latest: the prompt and what follows it.

        Args:
            temperature … repetition_penalty: see `generate`.
            stop: strings that end the text; it ends before the first of them.
            seed: the same prompt and seed give the same text; None: another text with each call.
            tokenizer: GPT-2's unless given (loading that takes a tenth of a second).

        Raises:
            GPT2LabError: an argument is out of range; the prompt is empty or longer than block_size tokens.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        seeds = None if seed is None else [seed]
        (more,) = text.complete(
            inference.optimize_for_inference(self),
            [prompt],
            max_new_tokens,
            sampling,
            stop=stop,
            seeds=seeds,
            tokenizer=tokenizer,
        )
        return prompt + more

    def _tie(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        """GPT-2's first weights: normal with std 0.02, biases 0, layer norms 1 and 0 (torch's own).

        The two projections of a block that write into the residual stream get 0.02 / sqrt(2 n_layer), so that the
        stream's variance does not grow with depth (the paper's section 2.3). Positions get 0.02 like the rest, as in
        the reproductions; OpenAI's released TensorFlow code drew them with 0.01.
        """
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():  # a tied matrix comes up once
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif ".ln_" not in name:
                std = residual_std if name.endswith("c_proj.weight") else INIT_STD
                nn.init.normal_(parameter, std=std, generator=generator)

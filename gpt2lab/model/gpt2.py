"""GPT-2: a decoder-only transformer with pre-layer-norm blocks, learned positions and tied embeddings.

    idx (B, T) ─▶ wte + wpe ─▶ n_layer x [ln_1 ─▶ attn ─▶ + ─▶ ln_2 ─▶ mlp ─▶ +] ─▶ ln_f ─▶ lm_head ─▶ logits (B, T, V)

The architecture is OpenAI's ("Language Models are Unsupervised Multitask Learners", Radford et al. 2019), and so are
the names of its parameters, so published weights can be loaded. There is no dropout: training for one epoch on a large
corpus does not overfit, and reproductions of GPT-2 small train without it.

Shapes: B batch, T sequence length, C channels (n_embd), V vocabulary, H heads, D head size (C / H).
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2lab.config import GPT2Config
from gpt2lab.generation.cache import KVCache
from gpt2lab.model import ops
from gpt2lab.model.language_model import CachedAttention, LanguageModel, Trunk, check_length
from gpt2lab.model.ops import Embedding, Linear

INIT_STD = 0.02
LAYER_NORM_EPS = 1e-5


class Attention(nn.Module):
    """Causal multi-head self-attention: each position attends to itself and to the positions before it."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)  # query, key and value in one product
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, mask: Tensor | None = None, cached_attention: CachedAttention | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C); for the mask and the cache see `Trunk.forward`."""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        y = ops.attention(q, k, v, mask) if cached_attention is None else cached_attention(q, k, v)  # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two linear layers with GELU in between, by default in the tanh approximation that GPT-2 was trained with."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = F.gelu(self.c_fc(x), approximate=self.approximate)  # (B, T, 4C)
        return self.c_proj(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention, then MLP; each reads a normalized copy of the residual stream and adds to it."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None = None, cached_attention: CachedAttention | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C); for the mask and the cache see `Trunk.forward`."""
        x = x + self.attn(self.ln_1(x), mask, cached_attention)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class Transformer(Trunk):
    """Embeddings, blocks and the final layer norm: from tokens to hidden states."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.n_embd)  # tokens
        self.wpe = Embedding(config.block_size, config.n_embd)  # positions
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, in order."""
        return self.h

    def forward(
        self, idx: Tensor, positions: Tensor | None = None, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Map tokens (B, T) to hidden states (B, T, C); see `Trunk.forward`."""
        if positions is None:
            check_length(idx.shape[1], self.wpe.num_embeddings)
        x = self.wte(idx) + (self.wpe.weight[: idx.shape[1]] if positions is None else self.wpe(positions))  # (B, T, C)
        return self.ln_f(self.run_blocks(x, mask, cache))  # type: ignore[no-any-return]


class GPT2(LanguageModel):
    """The language model: transformer, output head and loss."""

    architecture = "gpt2"
    # Merge loops before kernels are fused, not after: then the gradient of the residual stream is converted to 16 bits
    # where it is computed (docs/results/simulated_gpu.md). The modern architecture's rotation would be slower.
    compile_options: Mapping[str, bool] = {"loop_ordering_after_fusion": False}

    def _build(self, config: GPT2Config) -> None:
        self.transformer = Transformer(config)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)

    @property
    def trunk(self) -> Transformer:
        """The part below the output head."""
        return self.transformer

    def tie_weights(self) -> None:
        """Use the token embedding as the output head as well, unless the configuration says otherwise."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def _initialize(self, generator: torch.Generator | None) -> None:
        """Draw GPT-2's initial weights: normal with std 0.02; biases 0; layer norms 1 and 0 (torch's default).

        The two projections of a block that write into the residual stream have std 0.02 / sqrt(2 n_layer), so that
        the variance of the stream does not grow with depth (section 2.3 of the paper). Positions have std 0.02 like
        the rest, as in the reproductions; OpenAI's released TensorFlow code uses 0.01.
        """
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():  # a tied matrix appears once
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif ".ln_" not in name:
                std = residual_std if name.endswith("c_proj.weight") else INIT_STD
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Compute logits (B, T, V), or with targets the mean loss in nats; see `LanguageModel.forward`."""
        hidden = self.transformer(idx)  # (B, T, C)
        if targets is None:
            return self.lm_head(hidden), None
        return None, ops.cross_entropy(hidden, self.lm_head.weight, targets)

"""The optimizations by which reproductions of GPT-2 become fast, each stage on top of the previous one.

fp32, attention written out ─▶ TF32 ─▶ bf16 ─▶ compiled ─▶ flash attention ─▶ vocabulary 50304 ─▶ fused AdamW ─▶ gpt2lab
"""

import contextlib
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2lab.bench.rivals import OnStep, Shape, train_loop
from gpt2lab.model.gpt2 import GPT2, Attention


class Stage(NamedTuple):
    """Which optimizations are on: those of the previous stage, and one more."""

    name: str
    tf32: bool = False
    bf16: bool = False
    compiled: bool = False
    flash: bool = False
    padded: bool = False
    fused: bool = False


def build_stages(device: str) -> tuple[list[Stage], dict[str, str]]:
    """The stages that apply to a device, and by name the reason why the others do not."""
    skipped = {}
    if device != "cuda":
        skipped["tf32"] = "TF32 products exist on CUDA devices only"
    if device == "mps":
        skipped["compiled"] = "torch.compile does not support this device yet"
    enabled: dict[str, Any] = {}
    stages = [Stage("fp32")]
    for name in Stage._fields[1:]:
        if name not in skipped:
            enabled[name] = True
            stages.append(Stage(name, **enabled))
    return stages, skipped


class _PlainAttention(nn.Module):
    """Attention written out (T x T scores, mask, softmax, product), or torch's fused kernel."""

    def __init__(self, attention: Attention, flash: bool):
        super().__init__()
        self.n_head, self.c_attn, self.c_proj = attention.n_head, attention.c_attn, attention.c_proj
        self.flash = flash

    def forward(self, x: Tensor, *_: object) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        if self.flash:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
            future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
            y = scores.masked_fill(future, float("-inf")).softmax(dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # type: ignore[no-any-return]


def run_stage(on_step: OnStep, shape: Shape, stage: Stage) -> None:
    """Train our model with plain torch layers and the optimizations of a stage.

    Args:
        on_step: called before each step.
        shape: of a step.
        stage: what is on.
    """
    torch.set_float32_matmul_precision("high" if stage.tf32 else "highest")
    vocab_size = 50304 if stage.padded else 50257
    model = GPT2(shape.model.model_copy(update={"vocab_size": vocab_size})).to(shape.device)
    for block in model.transformer.h:
        attention: Any = block.attn
        block.attn = _PlainAttention(attention, stage.flash)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = nn.Linear  # our subclass may choose a faster product
    transformer: Any = torch.compile(model.transformer) if stage.compiled else model.transformer
    head = model.lm_head.weight

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        logits = F.linear(transformer(x), head)
        return F.cross_entropy(logits.float().view(-1, vocab_size), y.view(-1))

    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, fused=stage.fused, foreach=False)
    autocast = torch.autocast(shape.device, torch.bfloat16) if stage.bf16 else contextlib.nullcontext()
    train_loop(model, optimizer, loss_of, shape, on_step, lambda: autocast)

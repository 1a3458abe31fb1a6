"""The steps by which reproductions of GPT-2 become fast, each on top of the ones before, measured one beside another.

fp32, attention written out ─▶ TF32 ─▶ bf16 ─▶ compiled ─▶ flash attention ─▶ vocabulary 50304 ─▶ fused AdamW ─▶ ours
"""

import contextlib
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2lab.bench.contenders import Between, Shape, loop
from gpt2lab.model.gpt2 import GPT2, Attention


class Rung(NamedTuple):
    """What is switched on; each rung has what the one before has, and one thing more."""

    name: str
    tf32: bool = False
    bf16: bool = False
    compiled: bool = False
    flash: bool = False
    padded: bool = False
    fused: bool = False


def rungs(device: str) -> tuple[list[Rung], dict[str, str]]:
    """The rungs that mean something on a device, and why the others are left out, by name."""
    names = ["fp32", "tf32", "bf16", "compiled", "flash", "padded", "fused"]
    left_out = {}
    if device != "cuda":
        left_out["tf32"] = "tf32 is a way in which CUDA devices multiply"
    if device == "mps":
        left_out["compiled"] = "torch.compile is not for this device yet"
    have: dict[str, Any] = {}
    found = []
    for name in names:
        if name in left_out:
            continue
        if name != "fp32":
            have[name] = True
        found.append(Rung(name, **have))
    return found, left_out


class _Lesson(nn.Module):
    """Attention as the lessons write it: all T x T scores, a mask, a softmax, a product; or torch's fused kernel."""

    def __init__(self, attention: Attention, flash: bool):
        super().__init__()
        self.n_head, self.c_attn, self.c_proj = attention.n_head, attention.c_attn, attention.c_proj
        self.flash = flash

    def forward(self, x: Tensor, mask: Tensor | None = None, *_: object) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        if self.flash:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
            hidden = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
            y = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # type: ignore[no-any-return]


def climb(between: Between, shape: Shape, rung: Rung) -> None:
    """Train on one rung: our model with torch's plain layers, in the usual loop."""
    torch.set_float32_matmul_precision("high" if rung.tf32 else "highest")
    vocabulary = 50304 if rung.padded else 50257
    config = shape.model.model_copy(update={"vocab_size": vocabulary})
    model = GPT2(config).to(shape.device)
    for block in model.transformer.h:
        attention: Any = block.attn
        block.attn = _Lesson(attention, rung.flash)
    _make_linear_plain(model)
    trained: Any = torch.compile(model.transformer) if rung.compiled else model.transformer
    head = model.lm_head.weight

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        logits = F.linear(trained(x), head)
        return F.cross_entropy(logits.float().view(-1, vocabulary), y.view(-1))

    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, fused=rung.fused, foreach=False)
    kind = torch.autocast(shape.device, torch.bfloat16) if rung.bf16 else contextlib.nullcontext()
    loop(between, shape, model, optimizer, loss_of, lambda: kind)


def _make_linear_plain(model: nn.Module) -> None:
    """torch's own linear layers in place of ours, with the same weights."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and type(child) is not nn.Linear:
                plain = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None, device="meta")
                plain.weight, plain.bias = child.weight, child.bias
                setattr(module, name, plain)

"""The loss behind the output head, where a step's largest tensor lives: the logits, V = 50,257 numbers a token.

    hidden (N, C) ─▶ logits (N, V) ─▶ some rows at a time: softmax in float32, loss, gradient in place ─▶ loss

Composed of torch's own functions, the logits exist four times: as the product gives them, in float32, as
log-probabilities, and as gradient. Here they exist once, in the type of the product; a row's gradient takes its place
as soon as its loss is known, and float32 are no more rows than the processor's cache holds.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2lab.model.linear import linear

IGNORED = -100  # a target that does not count, as in torch


def mean_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(hidden weight^T)[target] over the targets that count, a float32 scalar; nan if none does.

    The products run in autocast's type where autocast is on, else in that of `hidden`. Softmax and loss are float32.

    Args:
        hidden: (N, C).
        weight: (V, C).
        targets: int64 (N,), below V, or IGNORED.
    """
    device = hidden.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return _MeanCrossEntropy.apply(hidden, weight, targets, kind)  # type: ignore[no-any-return, no-untyped-call]


class _MeanCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, kind: torch.dtype) -> Tensor:
        x, w = hidden.to(kind), weight.to(kind)
        counted = (targets != IGNORED)[:, None]
        target = targets.clamp(min=0)[:, None]
        logits = _logits(x, w)
        losses = []
        rows = max(1, _block(logits.device) // logits.shape[1])
        for z, right in zip(torch.split(logits, rows), torch.split(target, rows), strict=True):
            p = torch.softmax(z, dim=-1, dtype=torch.float32)
            # log of the sum of exponentials, by way of the likeliest token: its probability cannot underflow
            normaliser = z.amax(dim=-1, keepdim=True) - p.amax(dim=-1, keepdim=True).log()
            losses.append(normaliser - z.gather(1, right))
            if any(ctx.needs_input_grad):
                z.copy_(p.scatter_add_(1, right, p.new_full((1, 1), -1.0).expand_as(right)))
        total = counted.sum()
        ctx.save_for_backward(x, w, logits, counted / total)
        ctx.kinds = hidden.dtype, weight.dtype
        return torch.where(counted, torch.cat(losses), 0.0).sum() / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, w, gradient, share = ctx.saved_tensors
        share = share * grad  # (N, 1): what a row counts for, 0 where the target is ignored
        x = (x * share).to(x.dtype)
        of_weight = torch.empty_like(w, dtype=ctx.kinds[1])
        columns = _columns(w)
        for rows, piece in zip(torch.split(of_weight, columns), torch.split(gradient, columns, dim=1), strict=True):
            rows.copy_(linear(piece.t(), x.t()))
        return (linear(gradient, w.t()) * share).to(ctx.kinds[0]), of_weight, None, None


def _logits(x: Tensor, w: Tensor) -> Tensor:
    """x w^T, (N, V). On a card each row begins at a multiple of 64 numbers: 50,257 is odd, and tensor cores are not."""
    if x.device.type == "cpu":
        return linear(x, w)
    width = -(-len(w) // 64) * 64
    return torch.mm(x, w.t(), out=x.new_empty(len(x), width)[:, : len(w)])


def _block(device: torch.device) -> int:
    """Logits that are float32 at a time: what stays in the second-level cache, or as much as a card does not mind."""
    return 2**20 if device.type == "cpu" else 2**28


def _columns(weight: Tensor) -> int:
    """Columns of the logits' gradient that are multiplied at a time: a CPU reads the whole matrix badly transposed."""
    return 8192 if weight.device.type == "cpu" else len(weight)

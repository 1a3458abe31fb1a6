"""Causal attention in 16 bits on a CPU, out of plain matrix products.

torch's fused kernel for CPUs takes three times as long, forward and backward (docs/performance.md): it multiplies small
tiles, and those it converts itself. Here a block of queries meets all keys up to its last position in one batched
product; keys beyond are left out, and inside the block a bias of -inf hides the later ones.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 256  # queries that are looked at together
_LONGEST = 2048


def pays(q: Tensor) -> bool:
    """Whether `attention` is the better way for queries (B, H, T, D): in 16 bits on a CPU, and T not too long.

    Beyond, the probabilities that are kept take more memory than they save time.
    """
    return q.device.type == "cpu" and q.dtype.itemsize == 2 and q.shape[2] <= _LONGEST


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v where each position sees itself and those before it; all tensors (B, H, T, D).

    Probabilities, (T + 256) / 2T of (B, H, T, T), are kept in the tensors' type for the backward pass.
    """
    B, H, T, D = q.shape
    flat = (x.reshape(B * H, T, D) for x in (q, k, v))
    return _CausalAttention.apply(*flat).view(B, H, T, D)  # type: ignore[no-any-return, no-untyped-call]


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The same where `mask`, bool (B, 1, T, T) with no row all false, says who sees whom; made for evaluation.

    It leaves the backward pass to autograd, which keeps more than `attention` does.
    """
    B, H, T, D = q.shape
    bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, float("-inf")).expand(B, H, T, T)
    q, k, v = (x.reshape(B * H, T, D) for x in (q, k, v))
    scores = torch.baddbmm(bias.reshape(B * H, T, T), q, k.mT, alpha=D**-0.5)
    return (torch.softmax(scores, dim=-1) @ v).view(B, H, T, D)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length, scale = q.shape[1], q.shape[2] ** -0.5
        bias = (_bias if torch.compiler.is_compiling() else _kept_bias)(length, q.dtype)  # a compiler keeps nothing
        y, kept = torch.empty_like(q), []
        for first, last in _blocks(length):
            scores = torch.baddbmm(bias[first:last, :last], q[:, first:last], k[:, :last].mT, alpha=scale)
            p = torch.softmax(scores, dim=-1)
            y[:, first:last] = p @ v[:, :last]
            kept.append(p)
        ctx.save_for_backward(q, k, v, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *kept = ctx.saved_tensors
        scale = q.shape[2] ** -0.5
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (first, last), p in zip(_blocks(q.shape[1]), kept, strict=True):
            dv[:, :last] += p.mT @ dy[:, first:last]
            dp = dy[:, first:last] @ v[:, :last].mT
            dscores = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq[:, first:last] = dscores @ k[:, :last]
            dk[:, :last] += dscores.mT @ q[:, first:last]
        return dq.mul_(scale), dk.mul_(scale), dv


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for first in range(0, length, _BLOCK):
        yield first, min(first + _BLOCK, length)


def _bias(length: int, kind: torch.dtype) -> Tensor:
    """(T, T): 0 where a position (row) may look, -inf at what comes later."""
    return torch.full((length, length), float("-inf"), dtype=kind).triu(1)


_kept_bias = lru_cache(maxsize=4)(_bias)

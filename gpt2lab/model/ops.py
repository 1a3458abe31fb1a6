"""Attention, linear layer and cross-entropy, each by the fastest implementation for its inputs.

    attention      softmax(q k^T / sqrt(D)) v       torch's fused kernel; in 16 bits on a CPU, blocks of matrix products
    linear         x W^T + b                        torch; in float32 on AMD CPUs, oneDNN's convolution
    cross_entropy  -log softmax(hidden W^T)[target]  logits stored once, gradient in place; compiled, torch's functions

All choices depend on device, dtype and shape only, so a resumed run computes the same numbers. Measurements:
docs/performance.md.
"""

import contextlib
import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2lab.model.nanochat_layout import RMS_NORM_EPS

IGNORE_INDEX = -100  # a target that does not count, as in torch

_KERNELS_WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_QUERY_BLOCK = 256  # queries per block of attention
_MAX_BLOCKWISE_LENGTH = 2048
_MIN_CONVOLUTION_ROWS = 16  # with fewer, as in decoding, the product is limited by reading the weights
# Logits converted to float32 at a time, by device: what the second-level cache of a CPU holds, on a GPU 256 MiB.
_FLOAT32_CHUNKS = {"cpu": 2**19, "cuda": 2**26, "mps": 2**26}
_WEIGHT_GRADIENT_COLUMNS = 8192  # of the logits' gradient at a time: a CPU is slow to read all of it transposed
_CONVOLUTION_IMAGES = 16  # with one thread, torch uses oneDNN only for a batch of images


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) v.

    Args:
        q: queries (B, H, T, D).
        k: keys (B, H, T, D).
        v: values (B, H, T, D).
        mask: bool (B, 1, T, T), true where a query (row) attends to a key (column), no row all false. None: causal,
            every position attends to itself and to those before it.

    Returns:
        (B, H, T, D).
    """
    if not is_blockwise_faster_for(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return _masked_attention(q, k, v, mask) if mask is not None else blockwise_attention(q, k, v)


def without_attention_plans(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Context for attention whose shapes change from call to call, as in scoring and decoding.

    On CUDA it leaves out cuDNN's kernel, which makes a plan for every new shape, tenths of a second each; the others
    need none. Empty on other devices.

    Args:
        device: where attention is computed.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel(_KERNELS_WITHOUT_PLANS, set_priority=True)


def is_blockwise_faster_for(q: Tensor) -> bool:
    """Whether `blockwise_attention` is faster than torch's kernel: in 16 bits on a CPU, up to 2048 positions.

    For longer sequences the probabilities that are kept for the backward pass take too much memory.

    Args:
        q: queries (B, H, T, D).

    Returns:
        True where it is faster.
    """
    return q.device.type == "cpu" and q.dtype.itemsize == 2 and q.shape[2] <= _MAX_BLOCKWISE_LENGTH


def blockwise_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, a block of queries at a time, by batched matrix products.

    torch's fused kernel for CPUs takes three times as long in 16 bits, forward and backward: it multiplies small
    tiles and converts them itself. The backward pass keeps the probabilities, (T + 256) / 2T of (B, H, T, T).

    Args:
        q: queries (B, H, T, D).
        k: keys (B, H, T, D).
        v: values (B, H, T, D).

    Returns:
        (B, H, T, D).
    """
    B, H, T, D = q.shape
    flat = (x.reshape(B * H, T, D) for x in (q, k, v))
    return _BlockwiseAttention.apply(*flat).view(B, H, T, D)  # type: ignore[no-any-return, no-untyped-call]


class _BlockwiseAttention(torch.autograd.Function):
    """Each block of queries is multiplied by all keys up to its last position; a bias hides later keys inside it."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All tensors (B * H, T, D)."""
        length, scale = q.shape[1], q.shape[2] ** -0.5
        compiling = torch.compiler.is_compiling()  # a compiled graph cannot use the cache
        bias = (_causal_bias if compiling else _cached_causal_bias)(length, q.dtype)
        y, probabilities = torch.empty_like(q), []
        for start in range(0, length, _QUERY_BLOCK):
            end = start + _QUERY_BLOCK  # slices end at `length` at the latest
            scores = torch.baddbmm(bias[start:end, :end], q[:, start:end], k[:, :end].mT, alpha=scale)
            p = torch.softmax(scores, dim=-1)
            y[:, start:end] = p @ v[:, :end]
            probabilities.append(p)
        ctx.save_for_backward(q, k, v, *probabilities)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v."""
        q, k, v, *probabilities = ctx.saved_tensors
        scale = q.shape[2] ** -0.5
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for start, p in zip(range(0, q.shape[1], _QUERY_BLOCK), probabilities, strict=True):
            end = start + _QUERY_BLOCK
            dv[:, :end] += p.mT @ dy[:, start:end]
            dp = dy[:, start:end] @ v[:, :end].mT
            dscores = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq[:, start:end] = dscores @ k[:, :end]
            dk[:, :end] += dscores.mT @ q[:, start:end]
        return dq.mul_(scale), dk.mul_(scale), dv


def _causal_bias(length: int, dtype: torch.dtype) -> Tensor:
    """(T, T): 0 for keys up to the query's position, -inf for later ones."""
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)


_cached_causal_bias = functools.lru_cache(maxsize=4)(_causal_bias)


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention with a mask, all queries at once; autograd keeps more for its backward pass than the blocks do."""
    B, H, T, D = q.shape
    bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, float("-inf")).expand(B, H, T, T)
    q, k, v = (x.reshape(B * H, T, D) for x in (q, k, v))
    scores = torch.baddbmm(bias.reshape(B * H, T, T), q, k.mT, alpha=D**-0.5)
    return (torch.softmax(scores, dim=-1) @ v).view(B, H, T, D)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x W^T + b; equal to `F.linear` up to rounding.

    On a CPU torch passes float32 products to Intel's MKL, which reaches half the speed of oneDNN on AMD processors
    with AVX-512. oneDNN is available in float32 only as a convolution, and a linear layer is a convolution with one
    pixel. Only strides change; nothing is copied.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,).

    Returns:
        (..., out_features).
    """
    rows = x.numel() // x.shape[-1]
    if not (x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and rows >= _MIN_CONVOLUTION_ROWS):
        return F.linear(x, weight, bias)
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not _is_mkl_slow():
        return F.linear(x, weight, bias)
    n = _CONVOLUTION_IMAGES if rows % _CONVOLUTION_IMAGES == 0 else 1
    pixels = x.reshape(n, rows // n, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (n, in, rows/n, 1), channels last
    y = F.conv2d(pixels, weight[:, :, None, None], bias)  # (n, out, rows/n, 1), channels last
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """A linear layer computed by `linear`, with uninitialized parameters: `GPT2` draws the weights of all layers."""

    def reset_parameters(self) -> None:
        """Leave the parameters uninitialized."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A table of vectors with uninitialized parameters, for the same reason."""

    def reset_parameters(self) -> None:
        """Leave the parameters uninitialized."""


@functools.cache
def _is_mkl_slow() -> bool:
    """Whether this is an AMD processor with AVX-512, and torch has both libraries."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    try:
        is_amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None = None) -> Tensor:
    """Mean of -log softmax(hidden W^T)[target] over the targets that are not IGNORE_INDEX.

    The product uses autocast's dtype where autocast is enabled, else that of `hidden`; softmax and loss are float32.
    The logits, V = 50,257 numbers per token, are the largest tensor of a training step. Composed of torch's functions
    they are stored four times: as the product, in float32, as log-probabilities and as gradient. Here they are stored
    once, in the product's dtype: some rows at a time are converted to float32, and their gradient replaces them.

    Args:
        hidden: (..., C).
        weight: the output head (V, C).
        targets: int64 (...), below V, or IGNORE_INDEX.
        cap: apply `softcap` to the logits; None: not.

    Returns:
        The loss in nats, a float32 scalar; nan if no target counts.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()  # (N, C), (N,)
    if torch.compiler.is_compiling():  # the compiler fuses the conversion to float32, softmax and loss
        logits = _compute_compiled_logits(hidden, weight).float()
        logits = logits if cap is None else softcap(logits, cap)
        return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX)
    if not torch.is_grad_enabled():  # an autograd.Function would still be told that gradients are needed
        hidden, weight = hidden.detach(), weight.detach()
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return _CrossEntropy.apply(hidden, weight, targets, dtype, cap)  # type: ignore[no-any-return, no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, cap: float | None
    ) -> Tensor:
        """Loss of (N, C), (V, C) and (N,); the gradient of the logits is computed here and scaled in `backward`."""
        scale, gradient_scale = (1.0, 1.0) if cap is None else (2 / cap, 2 * cap)  # see `_capped_losses`
        x, w = (hidden if cap is None else hidden * scale).to(dtype), weight.to(dtype)
        counts = (targets != IGNORE_INDEX)[:, None]
        targets = targets.clamp(min=0)[:, None]
        logits = _compute_logits(x, w)
        rows = max(1, _FLOAT32_CHUNKS[logits.device.type] // logits.shape[1])
        parts = zip(torch.split(logits, rows), torch.split(targets, rows), strict=True)
        compute = _losses if cap is None else functools.partial(_capped_losses, cap)
        losses = [compute(part, target, any(ctx.needs_input_grad)) for part, target in parts]
        total = counts.sum()
        ctx.save_for_backward(x, w, logits, counts * (gradient_scale / total))
        ctx.scale, ctx.dtypes = scale, (hidden.dtype, weight.dtype)
        return torch.where(counts, torch.cat(losses), 0.0).sum() / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Gradients of hidden and weight."""
        x, w, dlogits, row_weight = ctx.saved_tensors
        row_weight = row_weight * grad  # (N, 1), 0 where the target is ignored
        x = (x * row_weight).to(x.dtype)
        dweight = torch.empty_like(w, dtype=ctx.dtypes[1])
        columns = _WEIGHT_GRADIENT_COLUMNS if w.device.type == "cpu" else len(w)
        for chunk, dz in zip(torch.split(dweight, columns), torch.split(dlogits, columns, dim=1), strict=True):
            chunk.copy_(linear(dz.t(), x.t()))
        dhidden = linear(dlogits, w.t()) * (row_weight * ctx.scale)
        return dhidden.to(ctx.dtypes[0]), dweight, None, None, None


def _losses(logits: Tensor, targets: Tensor, needs_gradient: bool) -> Tensor:
    """-log softmax(logits)[target] of each row, (N, 1); the gradient replaces the logits if it is needed."""
    p = torch.softmax(logits, dim=-1, dtype=torch.float32)
    # log-sum-exp by way of the most likely token, whose probability cannot underflow
    log_sum_exp = logits.amax(dim=-1, keepdim=True) - p.amax(dim=-1, keepdim=True).log()
    losses = log_sum_exp - logits.gather(1, targets)
    if needs_gradient:
        logits.copy_(_subtract_one_hot_(p, targets))
    return losses


def _capped_losses(cap: float, u: Tensor, targets: Tensor, needs_gradient: bool) -> Tensor:
    """`_losses` of softcap(logits), from u = 2 logits / cap; the gradient is that of u, divided by 2 cap.

    softcap(logits) = 2 cap sigmoid(u) - cap, of which softmax needs the first term only. On a CPU, torch's tanh takes
    several times as long as its sigmoid.
    """
    z = u.float().sigmoid_().mul_(2 * cap)
    p = torch.softmax(z, dim=-1)
    losses = -p.gather(1, targets).log()  # bounded logits: no probability is below exp(-2 cap) / V
    if needs_gradient:
        dz, sigmoid = _subtract_one_hot_(p, targets), z.div_(2 * cap)
        u.copy_(torch.ops.aten.sigmoid_backward.grad_input(dz, sigmoid, grad_input=dz))
    return losses


def _subtract_one_hot_(p: Tensor, targets: Tensor) -> Tensor:
    """Subtract one_hot(target) from the probabilities, in place: the gradient of the loss by the logits."""
    return p.scatter_add_(1, targets, p.new_full((1, 1), -1.0).expand_as(targets))


def _compute_logits(x: Tensor, w: Tensor) -> Tensor:
    """Compute x w^T, (N, V); on a GPU with rows aligned to 64 numbers, as tensor cores need (50,257 is odd)."""
    if x.device.type == "cpu":
        return linear(x, w)
    return torch.mm(x, w.t(), out=x.new_empty(len(x), len(w) + _padding(w))[:, : len(w)])


def _compute_compiled_logits(x: Tensor, w: Tensor) -> Tensor:
    """Compute x W^T, (N, V), while compiling. The compiler would align the product by a copy of all logits."""
    if x.device.type == "cpu" or not _padding(w):
        return linear(x, w)
    return linear(x, F.pad(w, (0, 0, 0, _padding(w))))[:, : len(w)]  # 50 KB more weights


def _padding(w: Tensor) -> int:
    """Rows by which a matrix falls short of a multiple of 64."""
    return -len(w) % 64


def softcap(logits: Tensor, cap: float) -> Tensor:
    """Compute cap * tanh(logits / cap): logits between -cap and cap (Gemma 2, section 2).

    Args:
        logits: any shape.
        cap: the bound.
    """
    return torch.tanh(logits / cap).mul_(cap) if not logits.requires_grad else cap * torch.tanh(logits / cap)


def rms_norm(x: Tensor) -> Tensor:
    """Divide each vector by its root mean square; computed in float32, returned in the dtype of `x`.

    Args:
        x: (..., C).
    """
    return F.rms_norm(x, x.shape[-1:], eps=RMS_NORM_EPS)

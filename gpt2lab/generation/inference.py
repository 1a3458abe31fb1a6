"""A model made ready to write: the same weights, read as fast as the memory gives them.

To write a token, every weight is read once and takes part in one product a row, so the bytes a second decide. Two
things on a CPU stand in the way of them (figures: docs/results/generate.md):

- fp32: MKL multiplies a matrix by a few columns on a single thread. As a batch of as many parts as there are threads,
  the same matrix keeps all of them at work. The parts are views; nothing is copied.
- bf16: half the bytes, but autocast would cast all weights for each token anew, and torch's product for rows few in
  number reaches a third of the memory's rate. Here they are cast once, and laid out by oneDNN the way it reads them.

Elsewhere bf16 weights are cast once, and fp32 ones are taken as they are. The residual stream, layer norms and
embeddings stay in fp32.
"""

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2lab.model.linear import linear

Model = TypeVar("Model", bound=nn.Module)

_FEW = 8  # rows up to which a product waits for the memory more than for the arithmetic


def optimize_for_inference(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    """A model that gives the same logits, faster for a few tokens at a time; only for inference.

    Takes milliseconds in fp32, where it shares all weights with `model`; later changes to them are seen in either. In
    bf16 the matrices are copied, 2 bytes a weight, and the rest is shared. The model itself is left as it is.

    Args:
        dtype: of the matrix products, float32, bfloat16 or float16; the weights' own if that is one of 16 bits.
    """
    shared = {id(parameter): parameter for parameter in model.parameters()}
    twin = copy.deepcopy(model, shared)  # modules of its own around the same parameters
    for parent in list(twin.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(parent, name, _ready(layer, dtype, name == "lm_head"))
    return twin


def _ready(layer: nn.Linear, dtype: torch.dtype, is_head: bool) -> nn.Module:
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    dtype = weight.dtype if weight.dtype.itemsize == 2 else dtype
    if dtype != torch.float32:
        return _CentredHead(weight, dtype) if is_head else _cast(weight, bias, dtype)
    on_cpu = weight.device.type == "cpu" and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return _Parts(weight, bias) if on_cpu and torch.get_num_threads() > 1 else layer


class _Parts(nn.Module):
    """A linear layer whose outputs are dealt out to the threads, for few rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias = weight, bias
        count = min(torch.get_num_threads(), weight.shape[0])
        size = weight.shape[0] // count
        self.parts = weight[: count * size].view(count, size, weight.shape[1])
        self.rest = weight[count * size :]  # 50257 is odd

    def forward(self, x: Tensor) -> Tensor:
        columns = x.flatten(0, -2).t()  # (in, rows)
        if columns.shape[1] > _FEW:
            return linear(x, self.weight, self.bias)
        y = torch.bmm(self.parts, columns.expand(len(self.parts), -1, -1)).flatten(0, 1)  # (out, rows)
        if len(self.rest):
            y = torch.cat([y, self.rest @ columns])
        y = y.t() if self.bias is None else y.t() + self.bias
        return y.view(*x.shape[:-1], -1)


class _Cast(nn.Module):
    """A linear layer in 16 bits, its weights cast once."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class _Packed(_Cast):
    """The same in bf16, with the weights in oneDNN's own layout.

    The two operations are not public, though the same since torch 2.0, because torch.compile lives on them; where they
    are missing or refuse, `_cast` does without.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__(weight, bias, torch.bfloat16)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.bfloat16)
        if x.numel() == x.shape[-1]:  # a single row is summed in another order than one of many: make it two
            return self._product(x.expand(2, *x.shape[1:]))[:1]
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


def _cast(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Module:
    if weight.device.type == "cpu" and dtype == torch.bfloat16:
        try:
            layer = _Packed(weight, bias)
            layer(torch.zeros(1, weight.shape[1]))
            return layer
        except (AttributeError, RuntimeError):  # another build of torch, or a processor that oneDNN has no bf16 for
            pass
    return _Cast(weight, bias, dtype)


class _CentredHead(nn.Module):
    """The output head in 16 bits, exact to what matters: GPT-2's logits lie around -50, where bf16 goes in quarters.

    Less the mean row of the matrix they lie around 0, where the steps are small; what that takes from all logits of a
    position alike is added again in fp32.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype):
        super().__init__()
        self.mean = weight.float().mean(dim=0)
        self.centred = _cast(weight.float() - self.mean, None, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) to float32 (B, V)."""
        logits: Tensor = self.centred(x)
        return logits.float() + (x.float() * self.mean).sum(dim=-1, keepdim=True)

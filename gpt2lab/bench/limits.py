"""The limit of the hardware: the matrix products of a GPT-2 forward pass without anything around them."""

from typing import NamedTuple, NoReturn

import torch

from gpt2lab.bench.rivals import OnStep
from gpt2lab.model.ops import linear
from gpt2lab.system import device as devices


class MatmulSizes(NamedTuple):
    """Sizes of the products: tokens B * T, channels C and vocabulary V."""

    tokens: int
    channels: int
    vocabulary: int

    @property
    def flops(self) -> int:
        """Floating-point operations of one step of `run_matmuls`."""
        return 2 * self.tokens * self.channels * (3 * 12 * self.channels + self.vocabulary)


def run_matmuls(on_step: OnStep, sizes: MatmulSizes, dtype_name: str, device: str) -> NoReturn:
    """Multiply matrices of the shapes of a GPT-2 forward pass, again and again: three blocks and the head.

    Args:
        on_step: called before each step.
        sizes: of the products.
        dtype_name: of the operands, a name in torch such as `bfloat16`.
        device: a name such as `cpu`.
    """
    if device == "cpu":
        devices.keep_freed_memory()
    dtype: torch.dtype = getattr(torch, dtype_name)
    C = sizes.channels
    block = [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)]
    operands = [
        (
            torch.randn(sizes.tokens, n_in, device=device).to(dtype),
            torch.randn(n_out, n_in, device=device).to(dtype),
        )
        for n_in, n_out in [*block * 3, (C, sizes.vocabulary)]
    ]
    while True:
        on_step()
        for x, weight in operands:
            linear(x, weight)

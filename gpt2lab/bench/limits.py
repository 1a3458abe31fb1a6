"""The limit of the hardware: the matrix products of a GPT-2 forward pass without anything around them."""

from typing import NoReturn

import torch

from gpt2lab.bench.rivals import OnStep, Shape
from gpt2lab.model.ops import linear
from gpt2lab.system import device as devices


def matmul_flops(shape: Shape) -> int:
    """Floating-point operations of one step of `run_matmuls`."""
    C = shape.model.n_embd
    return 2 * shape.B * shape.model.block_size * C * (3 * 12 * C + shape.model.vocab_size)


def run_matmuls(on_step: OnStep, shape: Shape, dtype: torch.dtype) -> NoReturn:
    """Multiply matrices of the shapes of a GPT-2 forward pass, again and again: three blocks and the head.

    Args:
        on_step: called before each step.
        shape: of a micro-step.
        dtype: of the operands.
    """
    if shape.device == "cpu":
        devices.keep_freed_memory()
    C, rows = shape.model.n_embd, shape.B * shape.model.block_size
    block = [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)]
    operands = [
        tuple(torch.randn(*size, device=shape.device).to(dtype) for size in ((rows, n_in), (n_out, n_in)))
        for n_in, n_out in [*block * 3, (C, shape.model.vocab_size)]
    ]
    while True:
        on_step()
        for x, weight in operands:
            linear(x, weight)

"""How the tokens of a step are divided into sequences, processes and micro batches."""

from typing import Literal, NamedTuple

from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import plural

_DOUBTFUL = 16  # a sequence of so many times the tokens of a step is rather a mistake than the step is


class BatchPlan(NamedTuple):
    """How a step's tokens are divided: sequences = world_size x grad_accum_steps x micro_batch_size."""

    sequences: int
    micro_batch_size: int
    grad_accum_steps: int


def plan_batches(
    total_batch_size: int,
    block_size: int,
    micro_batch_size: int | Literal["auto"],
    world_size: int,
    max_micro_tokens: int,
) -> BatchPlan:
    """Divide the tokens of a step.

    Args:
        total_batch_size: tokens of a step.
        block_size: tokens of a sequence.
        micro_batch_size: upper limit of the sequences of a process in a forward pass, or auto.
        world_size: number of processes.
        max_micro_tokens: limit of an `auto` micro batch in tokens; one sequence is always allowed.

    Returns:
        The sequences of a step, and per process those of a micro-step and the number of micro-steps.

    Raises:
        GPT2LabError: the processes cannot share the tokens equally. The message names the nearest numbers of processes
            and of tokens that would work, or doubts a block size far beyond the tokens.
    """
    if block_size >= _DOUBTFUL * total_batch_size:
        raise GPT2LabError(
            f"model.block_size {block_size} is far more than the tokens of a step (train.total_batch_size "
            f"{total_batch_size}), which must hold whole sequences; lower model.block_size (GPT-2's is 1024)"
        )
    sequences, rest = divmod(total_batch_size, block_size)
    unit = block_size * world_size
    if rest or sequences % world_size:
        below, above = total_batch_size // unit * unit, (total_batch_size // unit + 1) * unit
        tokens = f"train.total_batch_size {f'{below} or ' if below else ''}{above}"
        if rest:
            raise GPT2LabError(
                f"train.total_batch_size {total_batch_size} tokens is not a multiple of model.block_size {block_size}; "
                f"the nearest that {_processes(world_size)} can share equally: {tokens}"
            )
        raise GPT2LabError(
            f"{_processes(world_size)} cannot share train.total_batch_size {total_batch_size} equally: it has "
            f"{plural(sequences, 'sequence')} of model.block_size {block_size}; start "
            f"{_nearest_divisors(sequences, world_size)}, or set {tokens}"
        )
    share = sequences // world_size
    limit = max_micro_tokens // block_size if micro_batch_size == "auto" else micro_batch_size
    size = largest_divisor(share, limit)
    return BatchPlan(sequences=sequences, micro_batch_size=size, grad_accum_steps=share // size)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`; 1 if the limit is below 1."""
    return next((n for n in range(min(number, limit), 0, -1) if number % n == 0), 1)


def _nearest_divisors(number: int, missed: int) -> str:
    """The divisors of `number` below and above one that is none, as numbers of processes."""
    above = next((n for n in range(missed + 1, min(number, 100 * missed) + 1) if number % n == 0), None)
    below = largest_divisor(number, missed)
    return f"{below} or {plural(above, 'process')}" if above else plural(below, "process")


def _processes(count: int) -> str:
    return f"{count} processes" if count > 1 else "one process"

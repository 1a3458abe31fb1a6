"""Hours and money of a run: training, evaluations, checkpoints and the start; and what a budget buys."""

import math
from dataclasses import dataclass

from gpt2lab.config import Config
from gpt2lab.model import flops
from gpt2lab.planning.speed import Range
from gpt2lab.system.gpus import GPU

_START_SECONDS = {"gpu": 15.0, "cpu": 4.0}  # docs/performance.md, "Time to the first step", rounded up; GPU: assumed
_COMPILE_SECONDS = 60.0
_HELLASWAG_ITEMS, _HELLASWAG_TOKENS = 10_042, 340  # tokens of an item, both conventions, padding included
_SHORT_SEQUENCES = 0.5  # of the speed of long ones
_HOST_COPY, _DISK = 20e9, 0.35e9  # bytes/s: GPU to host; a checkpoint with its checksums (docs/results/checkpoint.md)
_DECODE_SECONDS = 0.3e-3  # of a layer for one token: an assumption, the time to queue its kernels
_NOTABLE_SHARE = 0.05  # of the run: below it, nothing is held up


@dataclass(frozen=True)
class Duration:
    """Hours of a run, by part, at the estimated speed, and their sum as a range."""

    training: float
    evaluation: float  # validation loss, HellaSwag and samples
    checkpoints: float  # pauses of the training loop
    start: float  # until the first step
    total: Range


def estimate_duration(config: Config, gpu: GPU, tokens_per_second: Range, compiled: bool) -> Duration:
    """Estimate the hours of a run.

    Args:
        config: steps, evaluations, checkpoints.
        gpu: of all ranks.
        tokens_per_second: of training, all GPUs.
        compiled: whether the step is compiled first.
    """
    train, model = config.train, config.model
    tokens = train.max_steps * train.total_batch_size
    forward = 3 * tokens_per_second.estimate  # a third of the FLOPs
    samples = train.sample_tokens * _seconds_per_new_token(config, gpu)
    items = train.hellaswag_limit or _HELLASWAG_ITEMS
    evaluation = (
        _times(train.eval_every, train.max_steps) * train.eval_tokens / forward
        + _times(train.hellaswag_every, train.max_steps) * items * _HELLASWAG_TOKENS / (forward * _SHORT_SEQUENCES)
        + _times(train.sample_every, train.max_steps) * samples
    )
    saved = math.ceil(train.max_steps / (config.checkpoint.every or train.max_steps))
    checkpoints = saved * 12 * flops.parameters(model) / _HOST_COPY + 12 * flops.parameters(model) / _DISK  # the last
    start = _START_SECONDS["cpu" if gpu.is_cpu else "gpu"] + _COMPILE_SECONDS * compiled
    device = tokens / tokens_per_second.estimate + evaluation
    ends = (device * tokens_per_second.estimate / end for end in (tokens_per_second.high, tokens_per_second.low))
    low, high = (seconds + checkpoints + start for seconds in ends)
    return Duration(
        training=tokens / tokens_per_second.estimate / 3600,
        evaluation=evaluation / 3600,
        checkpoints=checkpoints / 3600,
        start=start / 3600,
        total=Range((device + checkpoints + start) / 3600, low / 3600, high / 3600),
    )


def _times(every: int, max_steps: int) -> int:
    """How often something happens before the first step, at each multiple of `every`, and after the last step."""
    return 1 + math.ceil(max_steps / every) if every else 0


def _seconds_per_new_token(config: Config, gpu: GPU) -> float:
    """Of a batch of samples: the time to queue the kernels on a GPU, or to read the weights."""
    queue = 0.0 if gpu.is_cpu else _DECODE_SECONDS * config.model.n_layer
    return max(queue, 2 * flops.parameters(config.model) / (gpu.bandwidth * 1e9))


@dataclass(frozen=True)
class Limits:
    """What could hold the GPUs up besides the step itself."""

    read_mb_per_second: float  # of token shards, all machines together
    evaluation_share: float  # of the run
    checkpoint_seconds: float  # of a write in the background
    checkpoint_interval_seconds: float  # between two writes
    holds_up: tuple[str, ...]  # which of data, evaluation and checkpoints


def find_limits(config: Config, tokens_per_second: Range, duration: Duration, disk_mb_per_second: float) -> Limits:
    """Compare reading, evaluation and checkpoints with the speed of training.

    Args:
        config: intervals and sizes.
        tokens_per_second: of training, all GPUs.
        duration: of the run.
        disk_mb_per_second: what reads of token shards reach.
    """
    read = 2 * tokens_per_second.high / 1e6  # uint16
    share = duration.evaluation / duration.total.estimate
    write = 12 * flops.parameters(config.model) / _DISK
    steps = config.checkpoint.every or config.train.max_steps
    interval = steps * config.train.total_batch_size / tokens_per_second.high
    waits = (write - interval) * config.train.max_steps / steps  # of a save for the write before it
    run = 3600 * duration.total.estimate
    found = {
        "data": read > disk_mb_per_second,
        "evaluation": share > _NOTABLE_SHARE,
        "checkpoints": max(waits, 3600 * duration.checkpoints) > _NOTABLE_SHARE * run,
    }
    return Limits(read, share, write, interval, tuple(name for name, holds in found.items() if holds))


def cost(duration: Duration, price_per_hour: float) -> Range:
    """Money for the run.

    Args:
        duration: hours.
        price_per_hour: of all machines.
    """
    return Range(*(hours * price_per_hour for hours in duration.total))

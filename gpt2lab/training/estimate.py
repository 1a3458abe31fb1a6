"""What a run on this machine will take, estimated before its first step."""

from typing import Any

import torch

from gpt2lab.config import Config
from gpt2lab.formatting import format_count, format_time_left
from gpt2lab.planning import local, plan
from gpt2lab.planning.memory import GIB
from gpt2lab.planning.plan import Plan
from gpt2lab.planning.speed import Range
from gpt2lab.training.memory import TrainingModel


def make(
    config: Config,
    device: torch.device,
    precision: str,
    compiled: bool,
    world_size: int,
    micro_batch_size: int | None = None,
    val_tokens: int | None = None,
) -> Plan | None:
    """Plan the run on the device of this process.

    Args:
        config: all settings.
        device: of each rank.
        precision: of matrix products.
        compiled: whether the step is compiled.
        world_size: number of ranks.
        micro_batch_size: sequences; None: as the settings say.
        val_tokens: of the validation split; None: as many as the settings want to measure.

    Returns:
        The plan; None if the device is not in the table of GPUs.

    Raises:
        GPT2LabError: the tokens of a step do not divide among the ranks.
    """
    known = local.describe(device).resolve(precision, compiled, world_size)
    if known is None:
        return None
    gpu, stack = known
    train: dict[str, Any] = {"micro_batch_size": micro_batch_size} if micro_batch_size else {}
    if val_tokens:
        train["eval_tokens"] = min(config.train.eval_tokens, val_tokens)
    system = {"precision": precision, "compile": "on" if compiled else "off"}
    sections = {
        "train": config.train.model_copy(update=train),
        "system": config.system.model_copy(update=system),
    }
    price = config.tracking.price_per_hour or None
    return plan.make(config.model_copy(update=sections), gpu, world_size, price, stack)


def remaining_hours(expected: Plan, config: Config, step: int) -> Range:
    """Hours of the steps after `step`, with their evaluations and checkpoints.

    Args:
        expected: of the whole run; it fits.
        config: all settings.
        step: already taken.
    """
    assert expected.outlook is not None
    duration = expected.outlook.duration
    share = 1 - step / config.train.max_steps
    return Range(*(duration.start + (hours - duration.start) * share for hours in duration.total))


def describe_run(
    config: Config, model: TrainingModel, val_tokens: int, step: int
) -> tuple[Range | None, str, dict[str, Any]]:
    """Estimate a run that is about to start.

    Args:
        config: all settings.
        model: as it trains.
        val_tokens: of the validation split.
        step: already taken.

    Returns:
        Tokens per second; a line for the terminal; and the key `estimate` of environment.json. They are empty if the
        table of GPUs does not have the device, or the plan says that the run does not fit.
    """
    device, size = model.dist.device, model.micro_batch_size
    expected = make(
        config, device, model.precision.name, model.compiled, model.dist.world_size, size, val_tokens=val_tokens
    )
    if expected is None or expected.outlook is None:
        return None, "", {}
    rate, total = expected.outlook.tokens_per_second, expected.outlook.duration.total
    speed, low, high = map(format_count, rate)
    time, shortest, longest = (format_time_left(3600 * hours) for hours in remaining_hours(expected, config, step))
    line = f"estimate: {speed} tok/s ({low} to {high}), {time} ({shortest} to {longest})"
    facts = {"tokens_per_second": rate._asdict(), "hours": total._asdict(), "as_fast_as": expected.stack.source}
    return rate, line, {"estimate": facts | {"memory_gib": expected.memory.total / GIB}}

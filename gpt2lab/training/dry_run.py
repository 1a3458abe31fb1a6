"""What training would need on this machine: `gpt2lab train --dry-run`. Writes nothing and starts nothing."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from gpt2lab import logs
from gpt2lab.config import Config
from gpt2lab.data import catalogue, run_data, shards
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import format_count, format_time_left, plural
from gpt2lab.model import init_from
from gpt2lab.planning import local, text
from gpt2lab.system import device as devices
from gpt2lab.system import distributed
from gpt2lab.system import precision as precisions
from gpt2lab.system.distributed import DistContext
from gpt2lab.training import build, estimate, evaluators, initial_weights, memory, messages, optimizer
from gpt2lab.training.batches import TrainingData
from gpt2lab.training.checkpoint import Checkpoint
from gpt2lab.training.disk_space import require_space
from gpt2lab.training.resume import changed_settings
from gpt2lab.training.run_directory import ORPHANED, RunDirectory

logger = logging.getLogger(__name__)


def run(config: Config, overrides: Mapping[str, str] | None = None) -> None:
    """Print what training with these settings would need: memory, time, cost and disk.

    Args:
        config: all settings.
        overrides: those of the command line, by dotted name.

    Raises:
        GPT2LabError: an error of the settings, the device, the data or the run directory that training would have.
    """
    overrides = overrides or {}
    rank, world_size, local_rank = distributed.read_ranks()
    device = devices.choose(config.system.device, local_rank)
    precision = precisions.choose(config.system.precision, device).name
    alone = DistContext(0, 1, device)  # the other ranks need not be there
    directory = RunDirectory(config.run, alone)
    build.check_trackers(config.tracking, directory)
    start = directory.find_checkpoint()
    if start or Path(config.train.init_from or "").exists():
        config, _ = initial_weights.find(config, overrides, start, alone)
    else:  # a model of the Hub would be downloaded
        config = init_from.apply(config, overrides)
    optimizer.check(config.optimizer, config.system.shard and world_size > 1)
    batches = memory.plan_batches(config, world_size, device)
    if device.type == "cpu":  # on a GPU, training tries what fits
        train = config.train.model_copy(update={"micro_batch_size": batches.micro_batch_size})
        config = config.model_copy(update={"train": train})
    folder = catalogue.data_folder(config.data)
    ready = shards.is_ready(folder)
    data = build.build_data(config.data, config.model, config.run, batches, alone) if ready else None
    if data is None and config.data.input is not None:
        run_data.open_source(config.data)
    evaluators.check(config.train, config.model, config.data.mirror, data.val if data else None)
    if start:
        changed_settings(start, config, data.digest if data else None, directory.holds(start))
        if directory.is_finished(start, config.train.max_steps):
            messages.log_finished(directory, config.train, start)
            return
    space = require_space(config, directory, remove_unfinished=False)
    if start is None and directory.has_records():
        logger.warning(f"{directory.path} has {ORPHANED}, and these records would be set aside")
    messages.warn(config, start.step if start else 0)
    lines = [
        *text.headline(config, overrides, len(data.train) if data else None),
        "",
        *_describe_plan(config, device, precision, world_size, data, start),
        f"  data          {_describe_data(config, folder, data)}",
        f"  disk          {space.line()}",
        "nothing was started (--dry-run)",
    ]
    if rank == 0:
        logs.print_result("\n".join(lines))


def _describe_plan(
    config: Config,
    device: torch.device,
    precision: str,
    world_size: int,
    data: TrainingData | None,
    start: Checkpoint | None,
) -> Iterator[str]:
    here, compiled = local.describe(device), build.is_compiled(config.system, device)
    val_tokens = len(data.val) if data else None
    threads = f", {plural(here.threads, 'thread')}" if here.threads else ""
    title = f"this machine: {world_size} x {here.name}{threads}, {precision}"
    expected = estimate.make(config, device, precision, compiled, world_size, val_tokens=val_tokens)
    if expected is None:
        yield title
        yield "  no estimate: the table of GPUs does not have this device"
        return
    yield from text.describe(config, expected, title)
    if not here.find_calibration(precision, compiled):
        yield "  calibrate     gpt2lab plan --calibrate measures this machine, which narrows the ranges"
    if start and expected.outlook:
        hours = estimate.remaining_hours(expected, config, start.step).estimate
        yield f"  resumes       after step {start.step:,}: {format_time_left(3600 * hours)} left"
    if device.type == "cuda" and world_size == 1 and (count := torch.cuda.device_count()) > 1:
        yield _describe_all_gpus(config, device, precision, compiled, count)


def _describe_all_gpus(config: Config, device: torch.device, precision: str, compiled: bool, count: int) -> str:
    """A line about the same run on all GPUs of the machine."""
    label = f"  all {count} GPUs".ljust(16)
    try:
        expected = estimate.make(config, device, precision, compiled, count)
    except GPT2LabError as error:
        return f"{label}not with these settings: {error}"
    if expected is None or expected.outlook is None:
        return f"{label}does not fit"
    time = format_time_left(3600 * expected.outlook.duration.total.estimate)
    return f"{label}{time}, with torchrun --nproc_per_node {count} -m gpt2lab train"


def _describe_data(config: Config, folder: Path, data: TrainingData | None) -> str:
    if data is not None:
        epochs = config.train.max_steps * config.train.total_batch_size / len(data.train)
        messages.warn_of_epochs(epochs)
        return f"{folder}: {format_count(len(data.train))} tokens, {epochs:,.2f} epochs"
    if config.data.source in catalogue.LARGE:
        return f"{folder} is not prepared: gpt2lab prepare {config.data.source}"
    return f"{folder} is not prepared; training prepares it first"

"""Builds the parts of a training run. Each builder takes its own sections of the settings.

data ─▶ TrainingData      model, optimizer, guard ─▶ TrainState      train, system ─▶ TrainingModel
tracking ─▶ sinks         all of these ─▶ Trainer (run.py)
"""

import contextlib
import logging
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from gpt2lab import packages, progress
from gpt2lab.config import (
    BatchPlan,
    Config,
    DataConfig,
    GPT2Config,
    RunConfig,
    SystemConfig,
    TrackingConfig,
    TrainConfig,
)
from gpt2lab.data import catalogue, run_data
from gpt2lab.data.loader import Loader
from gpt2lab.data.shards import open_split
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import plural
from gpt2lab.model import flops, pretrained
from gpt2lab.system import attention, distributed
from gpt2lab.system import device as devices
from gpt2lab.system import precision as precisions
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision
from gpt2lab.tracking import trackers
from gpt2lab.tracking.console import Console
from gpt2lab.tracking.metrics import JsonLines, Sink
from gpt2lab.tracking.trackers import Trackers
from gpt2lab.training import memory, optimizer, profiling
from gpt2lab.training.batches import TrainingData
from gpt2lab.training.checkpoint import Checkpoint
from gpt2lab.training.guard import Guard
from gpt2lab.training.initial_weights import InitialWeights
from gpt2lab.training.memory import TrainingModel
from gpt2lab.training.run_directory import RunDirectory
from gpt2lab.training.state import TrainState

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def start_ranks(system: SystemConfig) -> Iterator[DistContext]:
    """Initialize the process group and the device with its attention kernels; see `distributed.start`.

    Args:
        system: device and timeouts.

    Yields:
        This rank.
    """
    with (
        distributed.start(system.device, start_timeout=system.start_timeout, timeout=system.timeout) as dist,
        attention.prefer_fastest(dist.device),
    ):
        yield dist


def plan_steps(config: Config, dist: DistContext) -> tuple[Precision, BatchPlan]:
    """Choose the precision of matrix products, and divide the tokens of a step among ranks and micro batches.

    Args:
        config: its sections system, train and model are used.
        dist: device and ranks.

    Returns:
        Both.

    Raises:
        GPT2LabError: the device does not have the precision, the tokens do not divide among the ranks, or the optimizer
            cannot be sharded.
    """
    optimizer.check(config.optimizer, config.system.shard and dist.world_size > 1)
    precision = precisions.choose(config.system.precision, dist.device)
    return precision, memory.plan_batches(config, dist.world_size, dist.device)


def check_trackers(tracking: TrackingConfig, directory: RunDirectory) -> None:
    """Check that the packages of the trackers are installed. If one is missing, a resumed run continues without it.

    Args:
        tracking: which trackers are used.
        directory: of the run.

    Raises:
        GPT2LabError: the run is new and a package is missing.
    """
    if not directory.dist.on_main(directory.metrics.exists):
        directory.dist.on_main(lambda: trackers.check_installed(tracking))


def build_data(data: DataConfig, model: GPT2Config, run: RunConfig, plan: BatchPlan, dist: DistContext) -> TrainingData:
    """Open both splits, and prepare them first if there are no shards.

    Args:
        data: where the shards are.
        model: block size and vocabulary.
        run: the seed of the order of the sequences.
        plan: batch sizes.
        dist: the ranks; each reads a part of every step.

    Returns:
        The splits and the loader of this rank's batches.

    Raises:
        GPT2LabError: the data is missing or damaged, or does not fit the model.
    """
    folder = catalogue.data_folder(data)
    dist.on_main(lambda: run_data.prepare(data))
    with progress.Phase("opening the data", announce=True):
        train, val = open_split(folder, "train"), open_split(folder, "val")
    loader = Loader(
        train,
        block_size=model.block_size,
        sequences_per_step=plan.sequences,
        vocab_size=model.vocab_size,
        seed=run.seed,
        rank=dist.rank,
        world_size=dist.world_size,
    )
    opened = TrainingData(train, val, loader, data.mirror)
    if opened.source is None:
        advice = (
            f"; if it is {data.source}, say so: gpt2lab prepare pretokenized --input {folder} --source {data.source}"
        )
        advice = advice if data.source in catalogue.LARGE else ""
        if "fineweb" not in val.files[0].name:  # as in the names of other projects
            logger.info(f"Training on {folder} (its shards do not say what text they hold{advice})")
    elif opened.source != data.source:
        source = {"files": "your own files"}.get(opened.source, opened.source)
        logger.info(f"Training on {folder} ({source})")
    return opened


@progress.show_as("building the model", announce=True)
def build_state(
    config: Config,
    start: Checkpoint | None,
    initial: InitialWeights | None,
    dist: DistContext,
    precision: Precision,
) -> TrainState:
    """Build model, optimizer, guard and loss scale, and restore them from a checkpoint.

    All global random number generators are seeded; the initial weights are drawn from torch's.

    Args:
        config: its sections model, optimizer, guard, system and run are used.
        start: the checkpoint to restore; None: a new run.
        initial: the weights that a new run starts from; None: random ones.
        dist: device and ranks.
        precision: whether the loss is scaled.

    Returns:
        The state before the first step.

    Raises:
        GPT2LabError: the model does not fit into memory, or the checkpoint is damaged or of another architecture.
    """
    import rich.style  # noqa: F401  (its import draws from Python's random numbers, so it comes before they are seeded)

    seed = config.run.seed
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    sharded = config.system.shard and dist.world_size > 1
    try:
        language_model = pretrained.build(config.model)
        language_model.trunk.activation_checkpointing = config.system.activation_checkpointing
        if start is not None:
            start.restore_weights(language_model)
        elif initial is not None:
            initial.load_into(language_model)
        if sharded:
            dist.shard(language_model, language_model.trunk.blocks)  # moves one block at a time to the device
        language_model.to(dist.device)
    except RuntimeError as error:  # includes torch.OutOfMemoryError; on a CPU torch has no type of its own for it
        gib = 4 * flops.parameters(config.model) / 2**30
        raise GPT2LabError(
            f"cannot make the model: its weights alone take {gib:,.1f} GiB ({error}); lower model.size or model.n_embd"
        ) from error
    optimizers = optimizer.build(language_model, config.optimizer, dist, precision.dtype)
    state = TrainState(language_model, optimizers, Guard(config.guard), precision.scaler(), sharded)
    if start is not None:
        start.restore_optimizer(language_model, optimizers)
        state.load_state_dict(start.state)
    return state


def is_compiled(system: SystemConfig, device: torch.device) -> bool:
    """Whether the training step is compiled, if the compiler does not fail.

    Args:
        system: the setting.
        device: of the step.
    """
    can_compile = device.type == "cuda" and packages.is_installed("triton")
    return system.compile == "on" or (system.compile == "auto" and can_compile)


def wrap_for_training(
    state: TrainState,
    train: TrainConfig,
    system: SystemConfig,
    plan: BatchPlan,
    dist: DistContext,
    precision: Precision,
) -> TrainingModel:
    """Wrap the model with DDP, compile it, and find the largest micro batch that fits in memory.

    Args:
        state: holds the model.
        train: whether the micro batch size is chosen automatically.
        system: whether to compile.
        plan: the micro batch size to begin with.
        dist: device and ranks.
        precision: of the trial micro-steps.

    Returns:
        The model as it trains.

    Raises:
        GPT2LabError: not even one sequence fits into memory.
    """
    plain, cuda, sequences = state.model, dist.device.type == "cuda", plan.sequences // dist.world_size
    # What a step needs besides a micro-step: AdamW's two moments, and DistributedDataParallel's gradient buckets. A
    # rank of a sharded model has the moments of its part of the parameters, and no buckets.
    size_of_model = flops.parameters(plain.config) if cuda else 0
    reserve = (8 + 4 * (dist.world_size > 1)) * size_of_model
    if state.sharded:
        reserve = 8 * math.ceil(size_of_model / dist.world_size)

    def wrap() -> nn.Module:
        return plain if state.sharded else dist.wrap(plain)

    size, block_size = plan.micro_batch_size, plain.config.block_size
    if train.micro_batch_size not in ("auto", size):
        logger.info(
            f"train.micro_batch_size is {size}, not {train.micro_batch_size}: the largest up to it that divides the "
            f"{plural(sequences, 'sequence')} of a process"
        )
    model = TrainingModel(plain, wrap, size, block_size, state.sharded, dist, precision)
    if cuda and not state.sharded:  # no rank can run a sharded model alone
        with progress.Phase("trying the micro batch size"):
            if train.micro_batch_size == "auto":
                size = memory.estimate_micro_batch_size(model, sequences, reserve)
            model.micro_batch_size = memory.find_micro_batch_size(model, size, sequences, reserve)
    model.module = wrapped = wrap()
    if is_compiled(system, dist.device):
        options = plain.compile_options
        model.module, model.wrap = compile_step(wrapped, options), lambda: compile_step(wrap(), options)
        try:
            with progress.Phase("compiling the model"):
                model.micro_batch_size = memory.find_micro_batch_size(model, model.micro_batch_size, sequences, reserve)
        except memory.MicroStepError as error:
            logger.info("torch.compile does not work here, so the model is not compiled (%s)", error)
            model.module, model.wrap = wrapped, wrap
    devices.reset_peak_memory(dist.device)  # the trials above are no part of the run
    return model


def compile_step(module: nn.Module, options: Mapping[str, bool]) -> nn.Module:
    """Compile a module for the shape of its inputs. All micro batches of a run have one shape.

    Without `dynamic=False` the first smaller micro batch, after memory ran out, would make the compiler generate slower
    code for any shape.

    Args:
        module: the model, perhaps wrapped.
        options: of the compiler (`LanguageModel.compile_options`).

    Returns:
        The module that is compiled when it is first called.
    """
    from torch import _inductor

    known = _inductor.list_options()  # another version of torch may lack an option
    used: dict[str, Any] = {name: value for name, value in options.items() if name in known}
    return torch.compile(module, dynamic=False, options=used or None)  # type: ignore[return-value]


@contextlib.contextmanager
def open_sinks(
    config: Config, directory: RunDirectory, start: Checkpoint | None, extra_sinks: Sequence[Sink]
) -> Iterator[list[Sink]]:
    """Open the sinks that receive the values of each step, and close them at the end of the `with` block.

    Args:
        config: its sections tracking, train (the number of steps) and system (the steps of a trace) are used.
        directory: holds metrics.jsonl.
        start: the checkpoint that the run resumes from.
        extra_sinks: more sinks, which come last.

    Yields:
        The sinks; none on other ranks than rank 0.
    """
    if not directory.dist.is_main:
        yield []
        return
    first_step, recorded = (start.step, start.recorded) if start else (0, None)
    tracking, terminal = config.tracking, sys.stdout.isatty()
    with contextlib.ExitStack() as stack:
        for sink in extra_sinks:
            stack.callback(sink.close)
        # Each is closed also if a later one cannot be opened.
        metrics = stack.enter_context(contextlib.closing(JsonLines(directory.metrics)))
        others = stack.enter_context(contextlib.closing(Trackers(tracking, directory.path, recorded)))
        every, log_format = tracking.log_every, tracking.log_format
        console = Console(config.train.max_steps, first_step, every, terminal=terminal, log_format=log_format)
        stack.callback(console.close)
        traces = profiling.trace_sinks(config.system, directory.path, first_step, directory.dist.device)
        for trace in traces:
            stack.callback(trace.close)
        yield [metrics, console, others, *traces, *extra_sinks]

"""A training run, from the settings to the report. `build.py` builds the parts, `trainer.py` has the loop.

    Config ─▶ ranks ─▶ data ─▶ run directory ─▶ state, restored ─▶ compiled model ─▶ Trainer ─▶ checkpoints, report

Everything that can be refused is refused before the first step.
"""

import contextlib
import logging
import signal
import time
from collections.abc import Generator, Sequence

import torch

from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError, RunStoppedError
from gpt2lab.model import flops
from gpt2lab.system import device as devices
from gpt2lab.system import distributed
from gpt2lab.system import precision as precisions
from gpt2lab.system.signals import StopSignals
from gpt2lab.tracking import trackers
from gpt2lab.tracking.metrics import Sink
from gpt2lab.training import build
from gpt2lab.training.async_checkpointer import AsyncCheckpointer
from gpt2lab.training.batches import TrainingData
from gpt2lab.training.evaluators import build_evaluators
from gpt2lab.training.guard import GuardError
from gpt2lab.training.memory import TrainingModel
from gpt2lab.training.run_directory import RunDirectory, changed_settings
from gpt2lab.training.state import TrainState
from gpt2lab.training.trainer import Trainer

logger = logging.getLogger(__name__)


def run(config: Config, extra_sinks: Sequence[Sink] = ()) -> None:
    """Train as the settings say, from the beginning or from the checkpoint where the run stopped.

    Args:
        config: all settings.
        extra_sinks: also receive the values of each step, on rank 0.

    Raises:
        GPT2LabError: an error that the user can correct.
        RunStoppedError: a signal stopped the run after it was saved.
    """
    began, system = time.perf_counter(), config.system
    with contextlib.ExitStack() as stack:
        timeouts = {"start_timeout": system.start_timeout, "timeout": system.timeout}
        dist = stack.enter_context(distributed.start(system.device, **timeouts))
        precision = precisions.choose(system.precision, dist.device)
        plan = config.batch_plan(dist.world_size, devices.micro_batch_tokens(dist.device))
        data = build.build_data(config.data, config.model, config.run, plan, dist)
        directory = RunDirectory(config.run, dist)
        if not dist.on_main(directory.metrics.exists):  # a resumed run does without packages that are missing
            dist.on_main(lambda: trackers.check_installed(config.tracking))
        evaluators = build_evaluators(config.train, config.model, config.run, data, directory, plan, dist, precision)

        # Lock the run directory, and find the checkpoint to resume from.
        stack.enter_context(directory.locked())
        start = dist.on_main(directory.find_checkpoint)
        changed = changed_settings(start, config, data.digest) if start else {}
        if start and start.step >= config.train.max_steps:
            advice = "To train longer, raise --train.max_steps; to start again, give another --run.name."
            logger.info(f"{directory.path} is finished: step {start.step} of {config.train.max_steps}. {advice}")
            return

        # Build the model and its optimizer, or restore them, and find the micro batch that fits into memory.
        build.seed_generators(config.run)
        state = build.build_state(config.model, config.optimizer, config.guard, system, start, dist, precision)
        attention = stack.enter_context(build.fastest_attention(config.model, plan, dist, precision))
        model = build.wrap_for_training(state, config.train, system, plan, dist, precision)
        log_summary(config, state, data, model)
        facts = {"parameters": flops.parameters(config.model), "data": data.describe(), **attention}
        directory.prepare(config, start, changed, facts)

        # Train, save checkpoints and draw the report.
        sinks = build.open_sinks(config.tracking, config.train, directory, start, extra_sinks)
        for sink in sinks:
            stack.callback(sink.close)
        fingerprint = {"data": data.digest, "settings": config.flat()}
        checkpointer = stack.enter_context(AsyncCheckpointer(config.checkpoint, directory, state, fingerprint))
        signals = stack.enter_context(StopSignals())
        trainer = Trainer(
            config.train, config.optimizer, state, model, data, evaluators, checkpointer, signals, directory, sinks
        )
        with translate_errors(trainer):
            stop = trainer.run(start.step if start else 0)
            checkpointer.wait()
        checkpointer.report.finish()
        if stop:
            raise RunStoppedError(stop, f"stopped by {signal.Signals(stop).name}: {directory.resume_hint()}")
        hint = f"gpt2lab sample --model-checkpoint {directory.path} continues a prompt"
        seconds = time.perf_counter() - began
        logger.info(f"done in {seconds:.0f} s. Open {directory.path}/report.html in a browser; {hint}.")


@contextlib.contextmanager
def translate_errors(trainer: Trainer) -> Generator[None, None, None]:
    """Raise what ends a run early as an error that says what to do and which checkpoint is kept.

    Args:
        trainer: what runs inside the context.

    Raises:
        GPT2LabError: in place of a GuardError, torch.OutOfMemoryError, or RuntimeError due to a lost rank.
    """
    dist = trainer.dist
    try:
        yield
    except GuardError as error:
        trainer.checkpointer.wait()
        raise GPT2LabError(f"{error}; {trainer.directory.resume_hint()}") from error
    except torch.OutOfMemoryError as error:
        size = trainer.model.micro_batch_size
        raise GPT2LabError(f"out of memory on {dist.device}: lower train.micro_batch_size (now {size})") from error
    except RuntimeError as error:
        if dist.heartbeat is not None:
            dist.heartbeat.explain(error)  # here, while torchrun's SIGTERM does not end this process
        raise


def log_summary(config: Config, state: TrainState, data: TrainingData, model: TrainingModel) -> None:
    """Log what is about to run, with all derived numbers.

    Args:
        config: all settings.
        state: holds the plain model.
        data: both splits.
        model: as it trains.
    """
    train, shape, warmup_steps = config.train, config.model, config.optimizer.warmup_steps
    if warmup_steps > train.max_steps:
        logger.warning(
            f"optimizer.warmup_steps {warmup_steps} is beyond train.max_steps {train.max_steps}: "
            "the learning rate never reaches optimizer.max_lr"
        )
    logger.info(
        f"model: {state.model.num_parameters():,} parameters (n_layer {shape.n_layer}, n_head {shape.n_head}, "
        f"n_embd {shape.n_embd}, block_size {shape.block_size}, vocab_size {shape.vocab_size})"
    )
    ranks, sequences = model.dist.world_size, data.loader.sequences_per_step
    micro_steps = sequences // ranks // model.micro_batch_size
    logger.info(
        f"step: {train.total_batch_size:,} tokens = {sequences} sequences of {shape.block_size} = {ranks} "
        f"rank{'s' * (ranks > 1)} x {micro_steps} micro-steps x {model.micro_batch_size}; "
        f"{model.dist.device.type}, {model.precision.name}"
    )
    tokens = train.max_steps * train.total_batch_size
    epochs = tokens / len(data.train)
    logger.info(f"run: {train.max_steps:,} steps, {tokens:,} tokens, {epochs:.2f} epochs of {len(data.train):,} tokens")

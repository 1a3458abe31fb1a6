"""A training run, from the settings to the report. `build.py` builds the parts, `trainer.py` has the loop.

    Config ─▶ ranks ─▶ data ─▶ run directory ─▶ state, restored ─▶ compiled model ─▶ Trainer ─▶ checkpoints, report

Everything that can be refused is refused before the first step.
"""

import contextlib
import signal
import time
from collections.abc import Generator, Sequence

import torch

from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError, RunStoppedError
from gpt2lab.model import flops
from gpt2lab.system import device as devices
from gpt2lab.system import precision as precisions
from gpt2lab.system.signals import StopSignals
from gpt2lab.tracking.metrics import Sink
from gpt2lab.training import build, summary
from gpt2lab.training.async_checkpointer import AsyncCheckpointer
from gpt2lab.training.evaluators import build_evaluators
from gpt2lab.training.guard import GuardError
from gpt2lab.training.live_report import LiveReport
from gpt2lab.training.run_directory import RunDirectory, changed_settings, fingerprint
from gpt2lab.training.trainer import Trainer


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
        dist = stack.enter_context(build.start_ranks(system))
        precision = precisions.choose(system.precision, dist.device)
        plan = config.batch_plan(dist.world_size, devices.micro_batch_tokens(dist.device))
        data = build.build_data(config.data, config.model, config.run, plan, dist)
        directory = RunDirectory(config.run, dist)
        build.check_trackers(config.tracking, directory)
        evaluators = build_evaluators(config.train, config.model, config.run, data, directory, plan, dist, precision)

        stack.enter_context(directory.locked())
        start = directory.find_checkpoint()
        changed = changed_settings(start, config, data.digest) if start else {}
        if start and start.step >= config.train.max_steps:
            summary.log_finished(directory, start, config.train)
            return

        build.seed_generators(config.run)
        state = build.build_state(config.model, config.optimizer, config.guard, system, start, dist, precision)
        attention = stack.enter_context(build.fastest_attention(config.model, plan, dist, precision))
        model = build.wrap_for_training(state, config.train, system, plan, dist, precision)
        summary.log_run_summary(config.train, config.optimizer, state, data, model)
        facts = {"parameters": flops.parameters(config.model), "data": data.describe(), **attention}
        directory.prepare(config, start, changed, facts)

        report, identity = LiveReport(directory), fingerprint(config, data.digest)
        sinks = stack.enter_context(build.open_sinks(config.tracking, config.train, directory, start, extra_sinks))
        checkpointer = stack.enter_context(AsyncCheckpointer(config.checkpoint, directory, state, identity, report))
        signals = stack.enter_context(StopSignals())
        trainer = Trainer(
            config.train, config.optimizer, state, model, data, evaluators, checkpointer, signals, directory, sinks
        )
        with translate_errors(trainer):
            stop = trainer.run(start.step if start else 0)
            checkpointer.wait()
        report.finish()
        if stop:
            raise RunStoppedError(stop, f"stopped by {signal.Signals(stop).name}: {directory.resume_hint()}")
        summary.log_done(directory, time.perf_counter() - began)


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

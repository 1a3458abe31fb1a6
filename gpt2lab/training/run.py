"""A training run, from the settings to the report. `build.py` builds the parts, `trainer.py` has the loop.

    Config ─▶ ranks ─▶ run directory ─▶ data ─▶ state, restored ─▶ compiled model ─▶ Trainer ─▶ checkpoints, report

User errors that can be detected in advance are raised before the first step.
"""

import contextlib
import signal
import time
from collections.abc import Collection, Generator, Sequence

import torch

from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError, RunStoppedError
from gpt2lab.system.signals import StopSignals
from gpt2lab.tracking.metrics import Sink
from gpt2lab.training import build, estimate, initial_weights, messages
from gpt2lab.training.async_checkpointer import AsyncCheckpointer
from gpt2lab.training.disk_space import require_space
from gpt2lab.training.evaluators import build_evaluators
from gpt2lab.training.guard import GuardError
from gpt2lab.training.resume import changed_settings
from gpt2lab.training.run_directory import RunDirectory
from gpt2lab.training.trainer import Trainer


def run(config: Config, extra_sinks: Sequence[Sink] = (), given: Collection[str] = ()) -> None:
    """Train as the settings say, from the beginning or from the checkpoint where the run stopped.

    Args:
        config: all settings.
        extra_sinks: also receive the values of each step, on rank 0.
        given: dotted names of the settings on the command line, for `initial_weights.find`.

    Raises:
        GPT2LabError: an error that the user can correct.
        RunStoppedError: a signal stopped the run after it was saved.
    """
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        dist = stack.enter_context(build.start_ranks(config.system))
        directory = RunDirectory(config.run, dist)
        build.check_trackers(config.tracking, directory)

        # Lock the run directory, and find the checkpoint to resume from, or the weights to start from.
        stack.enter_context(directory.locked())
        start = dist.on_main(directory.find_checkpoint)
        config, initial = initial_weights.find(config, given, start, dist)

        # Open the data, and what measures the model on it.
        precision, plan = build.plan_steps(config, dist)
        data = build.build_data(config.data, config.model, config.run, plan, dist)
        evaluators = build_evaluators(config.train, config.model, config.run, data, directory, plan, dist, precision)
        changed = changed_settings(start, config, data.digest, directory.holds(start)) if start else {}
        if start and directory.is_finished(start, config.train.max_steps):
            directory.restore_config(config)
            messages.log_finished(directory, config.train, start)
            return
        space = require_space(config, directory)

        # Build the model and its optimizer, or restore them, and find the micro batch that fits into memory.
        state = build.build_state(config, start, initial, dist, precision)
        model = build.wrap_for_training(state, config.train, config.system, plan, dist, precision)
        tps, line, facts = estimate.describe_run(config, model, len(data.val), start.step if start else 0)
        messages.warn(config, start.step if start else 0)
        messages.log_summary(config.train, state, data, model, space, line)
        origin = initial.describe() if initial else None
        directory.prepare(config, start, changed, {"data": data.describe(), **facts}, origin)
        sinks = stack.enter_context(build.open_sinks(config, directory, start, extra_sinks))
        fingerprint = {"data": data.digest, "settings": config.flat()}
        checkpointer = stack.enter_context(AsyncCheckpointer(config.checkpoint, directory, state, fingerprint, start))
        signals = stack.enter_context(StopSignals())
        trainer = Trainer(
            config.train, config.optimizer, state, model, data, evaluators, checkpointer, signals, directory, sinks, tps
        )
        with translate_errors(trainer):
            stop = trainer.run(start.step if start else 0)
        checkpointer.report.finish()
        if stop:
            raise RunStoppedError(stop, f"stopped by {signal.Signals(stop).name}: {directory.resume_hint()}")
        messages.log_done(directory, began)


@contextlib.contextmanager
def translate_errors(trainer: Trainer) -> Generator[None, None, None]:
    """Convert exceptions that end a run into a GPT2LabError with the action to take and the checkpoint that is kept.

    Args:
        trainer: what runs inside the context.

    Raises:
        GPT2LabError: in place of a GuardError, torch.OutOfMemoryError, or RuntimeError due to a lost rank; or as
            raised inside, and after a failed write with the steps that are repeated.
    """
    dist = trainer.dist
    try:
        yield
    except GuardError as error:
        trainer.checkpointer.wait()
        raise GPT2LabError(f"{error}; {trainer.directory.resume_hint()}") from error
    except GPT2LabError as error:
        if isinstance(error.__cause__, OSError):  # such as a full disk
            error.args = (f"{error}; {trainer.describe_loss('repeated')}",)
        raise
    except torch.OutOfMemoryError as error:
        size = trainer.model.micro_batch_size
        raise GPT2LabError(f"out of memory on {dist.device}: lower train.micro_batch_size (now {size})") from error
    except RuntimeError as error:
        if dist.heartbeat is not None:
            dist.heartbeat.explain(error)  # here, while torchrun's SIGTERM does not end this process
        raise

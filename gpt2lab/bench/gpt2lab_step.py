"""The training step of gpt2lab as a contender, and its profile."""

import logging
import tempfile
from pathlib import Path

import numpy as np
import torch

from gpt2lab import files, logs, progress
from gpt2lab.bench.rivals import OnStep
from gpt2lab.config import Config
from gpt2lab.errors import RunStoppedError
from gpt2lab.training import run as training_run

logger = logging.getLogger(__name__)


class _StepSink:
    """A sink of metrics that calls a function for each record; there is one record a step."""

    def __init__(self, on_step: OnStep):
        self._on_step = on_step

    def log(self, *_: object, **__: object) -> None:
        self._on_step()

    def close(self) -> None:
        pass


def gpt2lab_step(on_step: OnStep, config: Config) -> None:
    """Train as `gpt2lab train` does, on random tokens, without evaluations and checkpoints.

    Args:
        on_step: called after each step.
        config: settings of the run; data, run directory and everything between steps are replaced.
    """
    with tempfile.TemporaryDirectory(prefix="gpt2lab-bench-") as folder:
        rng = np.random.default_rng(0)
        for split, size in (("train_000", 40 * config.train.total_batch_size + 10_000), ("val_000", 5000)):
            np.save(Path(folder) / f"{split}.npy", rng.integers(0, 50257, size, dtype=np.uint16))
        settings = config.model_dump() | {
            "run": {"name": "bench", "out_dir": folder},
            "data": {"dir": folder},
            "checkpoint": {"every": 0},
            "guard": {"stop_after": 10**9},
        }
        settings["train"] |= {"max_steps": 10**6, "eval_every": 0, "sample_every": 0, "hellaswag_every": 0}
        training_run.run(Config.model_validate(settings), [_StepSink(on_step)])


class _ProfileCompleteError(Exception):
    """Ends the training that is profiled."""


def profile_step(config: Config, device: torch.device, path: Path, *, warm_up: int) -> None:
    """Write a Chrome trace of two steps, and print the operations that take longest.

    Args:
        config: settings of the run.
        device: where the steps run.
        path: of the trace.
        warm_up: steps before it.

    Raises:
        KeyboardInterrupt: a signal stopped the run.
    """
    from torch.profiler import ProfilerActivity, profile, schedule

    on_cuda = device.type == "cuda"

    def write(profiler: profile) -> None:
        with progress.Phase("writing the profile"):
            with files.atomic_write(path) as temporary:
                profiler.export_chrome_trace(str(temporary))
            sort_by = "self_cuda_time_total" if on_cuda else "self_cpu_time_total"
            table = profiler.key_averages().table(sort_by=sort_by, row_limit=20, max_name_column_width=60)
        logs.print_result(table)
        logger.info("wrote %s; open it in chrome://tracing or ui.perfetto.dev", path)
        raise _ProfileCompleteError

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    steps = schedule(wait=warm_up - 1, warmup=1, active=2)
    try:
        with profile(activities=activities, schedule=steps, on_trace_ready=write) as profiler:
            gpt2lab_step(profiler.step, config)
    except _ProfileCompleteError:
        pass
    except RunStoppedError:  # the run that was saved is deleted with its temporary folder
        raise KeyboardInterrupt from None

"""How long a run will take: the progress of each step, and once, after the first ones, the time of the others."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Hashable, Iterator

from gpt2lab import progress
from gpt2lab.config import TrainConfig
from gpt2lab.formatting import format_count, format_time_left

logger = logging.getLogger(__name__)

_STEPS = 3  # that are timed, after the first one, which is slower
_CPU_SECONDS = 20.0  # enough on a CPU, where a step may take minutes
_SHORT_RUN = 30.0  # seconds; a shorter time is not worth a line
_LONG_ON_CPU = 2 * 3600.0  # seconds; a longer time on a CPU is probably not what the user wants


class Outlook:
    """Shows the micro-steps of long steps, and logs the time that remains as soon as it can be estimated.

    Args:
        train: the number of steps and the tokens of each.
        device: its type. Micro-steps are timed on a CPU only; elsewhere they are queued.
    """

    def __init__(self, train: TrainConfig, device: str):
        self._train, self._on_cpu = train, device == "cpu"
        self._start: tuple[float, float] | None = None  # steps taken and time, after the first step or micro-step
        self._evaluations: dict[Hashable, tuple[int, float]] = {}  # by kind: steps between two, seconds of the first
        self._told = False

    @contextlib.contextmanager
    def step(self, step: int, micro_steps: int) -> Iterator[Callable[[], None]]:
        """Show the progress of a step inside the context.

        Args:
            step: its number, from 1.
            micro_steps: the number of its micro-steps.

        Yields:
            A function to call after each micro-step.
        """
        with progress.Phase(f"step {step:,}", micro_steps) as phase:

            def show() -> None:
                phase.update(phase.completed, f"micro-step {min(phase.completed + 1, micro_steps)} of {micro_steps:,}")

            def advance() -> None:
                phase.completed += 1
                show()
                if self._on_cpu or phase.completed == micro_steps:
                    self._update(step - 1 + phase.completed / micro_steps)

            show()
            yield advance

    def add_evaluation(self, kind: Hashable, every: int, seconds: float) -> None:
        """Note how long an evaluation took. The first one of each kind in this process counts.

        Args:
            kind: what is evaluated.
            every: steps between two of them.
            seconds: duration of one.
        """
        self._evaluations.setdefault(kind, (every, seconds))

    def _update(self, steps_taken: float) -> None:
        now = time.monotonic()
        if self._start is None:
            self._start = steps_taken, now
        before, since = self._start
        if self._told or not (
            steps_taken - before >= _STEPS or (self._on_cpu and steps_taken > before and now - since >= _CPU_SECONDS)
        ):
            return
        self._told = True
        last_step, seconds_per_step = self._train.max_steps, (now - since) / (steps_taken - before)
        evaluated = math.ceil(steps_taken) - 1  # that of the step under way, if one is due, is still to come
        evaluations = sum(
            seconds * (math.ceil(last_step / every) - evaluated // every)
            for every, seconds in self._evaluations.values()
        )
        seconds = seconds_per_step * (last_step - steps_taken) + evaluations
        if seconds < _SHORT_RUN:
            return
        speed = format_count(self._train.total_batch_size / seconds_per_step)
        steps = f"{math.ceil(last_step - steps_taken):,}"
        logger.info(f"the remaining {steps} steps will take about {format_time_left(seconds)} ({speed} tok/s)")
        if evaluations:
            logger.info(f"  {format_time_left(evaluations)} of it for evaluations")
        elif self._train.eval_every or self._train.hellaswag_every or self._train.sample_every:
            logger.info("  and longer with evaluations, none of which was timed yet")
        if self._on_cpu and seconds > _LONG_ON_CPU:
            logger.warning(
                "this takes long on a CPU. Ctrl-C stops and saves. To see results in minutes: the quickstart recipe "
                "(gpt2lab train without --config), a smaller model (--model.n_layer 4 --model.n_head 4 "
                "--model.n_embd 256), or fewer tokens (--train.max_steps, --train.total_batch_size)"
            )

"""How long a run will take: the progress of each step, and from measured steps the time of the others.

before the first step     the estimate (estimate.py, logged by messages.py)
after the first steps     the time of the others, if the estimate was wrong or missing, and steps are slow
after 50 steps            the measured speed and time
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Hashable, Iterator

from gpt2lab import progress
from gpt2lab.config import TrainConfig
from gpt2lab.formatting import format_count, format_time_left, plural
from gpt2lab.planning.speed import Range

logger = logging.getLogger(__name__)

_STEPS = 3  # that are timed, after the first one, which is slower
_CPU_SECONDS = 20.0  # enough on a CPU, where a step may take minutes
_SHORT_RUN = 30.0  # seconds; a shorter time is not worth a line
_MEASURED_STEPS = 50  # after which the speed is known
_SOON = 60.0  # seconds; if these steps take no longer, nothing is told before
_LONG_ON_CPU = 2 * 3600.0  # seconds; a longer time on a CPU is probably not what the user wants


class Outlook:
    """Shows the micro-steps of long steps, and logs the time that remains as soon as it can be measured.

    Args:
        train: the number of steps and the tokens of each.
        device: its type. Micro-steps are timed on a CPU only; elsewhere they are queued.
        estimate: tokens per second that were logged before the first step; None: there was no estimate.
    """

    def __init__(self, train: TrainConfig, device: str, estimate: Range | None = None):
        self._train, self._on_cpu, self._estimate = train, device == "cpu", estimate
        self._start: tuple[float, float] | None = None  # steps taken and time, after the first step or micro-step
        self._first_step: int | None = None  # of this process
        self._evaluations: dict[Hashable, tuple[int, float]] = {}  # by kind: steps between two, seconds of the first
        self._told = self._measured = False

    @contextlib.contextmanager
    def step(self, step: int, micro_steps: int) -> Iterator[Callable[[], None]]:
        """Show the progress of a step inside the context.

        Args:
            step: its number, from 1.
            micro_steps: the number of its micro-steps.

        Yields:
            A function to call after each micro-step.
        """
        if self._first_step is None:
            self._first_step = step
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

    @contextlib.contextmanager
    def between_steps(self) -> Iterator[None]:
        """Do not count the time inside, such as that of evaluations and checkpoints, as time of steps."""
        began = time.monotonic()
        try:
            yield
        finally:
            if self._start is not None:
                self._start = self._start[0], self._start[1] + time.monotonic() - began

    def _update(self, steps_taken: float) -> None:
        now = time.monotonic()
        if self._start is None:
            self._start = steps_taken, now
        before, since = self._start
        if steps_taken == before:
            return
        seconds_per_step = (now - since) / (steps_taken - before)
        if not self._told and (steps_taken - before >= _STEPS or (self._on_cpu and now - since >= _CPU_SECONDS)):
            self._told = True
            self._tell_time_left(steps_taken, seconds_per_step)
        assert self._first_step is not None
        if not self._measured and steps_taken - self._first_step + 1 >= _MEASURED_STEPS:
            self._measured = True
            self._tell_measured(steps_taken, seconds_per_step)

    def _tell_time_left(self, steps_taken: float, seconds_per_step: float) -> None:
        """Log the time that remains, unless the estimate was right or the measured speed is told soon."""
        seconds, evaluations = self._time_left(steps_taken, seconds_per_step)
        rate = self._train.total_batch_size / seconds_per_step
        expected = self._estimate is not None and self._estimate.low <= rate <= self._estimate.high
        last = self._train.max_steps - steps_taken < _MEASURED_STEPS  # there is no later line
        soon = _MEASURED_STEPS * seconds_per_step < _SOON and not last
        if seconds >= _SHORT_RUN and not expected and not soon:
            steps = plural(math.ceil(self._train.max_steps - steps_taken), "step")
            speed = format_count(rate)
            logger.info(f"the remaining {steps} will take about {format_time_left(seconds)} ({speed} tok/s)")
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

    def _tell_measured(self, steps_taken: float, seconds_per_step: float) -> None:
        """Log the measured speed, and with it the time of the whole run and of the rest."""
        rate = format_count(self._train.total_batch_size / seconds_per_step)
        estimate = f" (estimate {format_count(self._estimate.estimate)})" if self._estimate else ""
        whole, left = (format_time_left(self._time_left(step, seconds_per_step)[0]) for step in (0, steps_taken))
        logger.info(f"after {_MEASURED_STEPS} steps: {rate} tok/s{estimate}, {whole} in all, {left} left")

    def _time_left(self, steps_taken: float, seconds_per_step: float) -> tuple[float, float]:
        """Seconds from here to the end of the run, and of these the seconds of evaluations."""
        last_step = self._train.max_steps
        evaluated = math.ceil(steps_taken) - 1  # that of the step under way, if one is due, is still to come
        evaluations = sum(
            seconds * (math.ceil(last_step / every) - evaluated // every)
            for every, seconds in self._evaluations.values()
        )
        return seconds_per_step * (last_step - steps_taken) + evaluations, evaluations

"""Steps that must not be taken: a loss or gradient that is not finite, or far above what it has been of late.

    loss, gradient norm ─▶ finite? ─▶ within `spike_sigma` of the last `window` steps? ─▶ take the step, or skip it

One bad batch, or one card that miscalculates, can throw a run back by days; left out, it costs a step. The idea is that
of OLMo's SkipStepOptimizer. The judgement depends only on numbers that all ranks share, so all skip alike.
"""

import math
import statistics
from collections import deque
from typing import Any

from gpt2lab.config import GuardConfig
from gpt2lab.errors import GPT2LabError

_LEAST = 1e-3  # of the mean: what counts as a deviation on a plateau, where there may be next to none


class GuardError(GPT2LabError):
    """Too many steps in a row were skipped."""


class Guard:
    """Remembers the losses and gradient norms of late, and judges each step by them."""

    def __init__(self, config: GuardConfig):
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)
        self._in_a_row = 0
        self.skipped = 0  # in the whole run

    @property
    def exhausted(self) -> bool:
        """Whether so many steps in a row were skipped that the run should stop."""
        return self._in_a_row >= self._config.stop_after

    def judge(self, loss: float, norm: float) -> str | None:
        """None if the step may be taken, else why it must be skipped.

        Values that are not finite stay out of the window. A spike enters it: if that is how high the loss is from now
        on, the window learns it, and the run goes on.

        Args:
            loss: mean over the whole step, in nats a token.
            norm: of the whole gradient, before clipping.
        """
        why = None
        if not (math.isfinite(loss) and math.isfinite(norm)):
            why = f"loss {loss}, gradient norm {norm}: not finite"
        else:
            for name, value, window in (("loss", loss, self._losses), ("gradient norm", norm, self._norms)):
                why = why or self._spike(name, value, window)
                window.append(value)
        self._in_a_row = self._in_a_row + 1 if why else 0
        self.skipped += why is not None
        return why

    def _spike(self, name: str, value: float, window: deque[float]) -> str | None:
        """Beyond the mean by more than `spike_sigma` standard deviations, of a window that is at least half full."""
        if not self._config.spike_sigma or len(window) < max(2, self._config.window // 2):
            return None
        mean = statistics.fmean(window)
        deviation = max(statistics.pstdev(window), _LEAST * abs(mean))
        if value <= mean + self._config.spike_sigma * deviation:
            return None
        return f"{name} {value:.4g} is a spike: {mean:.4g} +- {deviation:.2g} over the last {len(window)} steps"

    def state(self) -> dict[str, Any]:
        """As JSON, for a checkpoint."""
        return {
            "losses": list(self._losses),
            "norms": list(self._norms),
            "in_a_row": self._in_a_row,
            "skipped": self.skipped,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self._losses.extend(state["losses"])
        self._norms.extend(state["norms"])
        self._in_a_row, self.skipped = int(state["in_a_row"]), int(state["skipped"])

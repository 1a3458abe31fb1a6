"""Skips optimizer steps that would damage the weights.

    loss, gradient norm (on the device) ─▶ skip_flag ─▶ optimizer
                └── read for the log ────▶ record    ─▶ history, counts, the reason for the log

By default a step is skipped if its loss or gradient norm is not finite. With `guard.spike_sigma` it is also skipped if
one of them is far above its recent mean, as in OLMo's SkipStepOptimizer. The decision depends only on numbers that are
equal on all ranks, so all ranks skip the same steps.
"""

import math
import statistics
from collections import deque
from typing import Any

import torch
from torch import Tensor

from gpt2lab.config import GuardConfig
from gpt2lab.errors import GPT2LabError

_MIN_RELATIVE_DEVIATION = 1e-3  # of the mean: on a plateau the measured deviation may be close to zero


class GuardError(GPT2LabError):
    """Too many steps in a row were skipped."""


class Guard:
    """Decides which optimizer steps are skipped, and counts them.

    Args:
        config: the `guard` section of the settings.
    """

    def __init__(self, config: GuardConfig):
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)
        self._skipped_in_a_row = 0
        self.skipped = 0  # in the whole run

    @property
    def too_many_skipped(self) -> bool:
        """Whether `guard.stop_after` steps in a row were skipped, so that the run should stop."""
        return self._skipped_in_a_row >= self._config.stop_after

    def skip_flag(self, loss_and_norm: Tensor) -> Tensor:
        """Decide whether the optimizer skips this step. Does not synchronize with the device if `spike_sigma` is 0.

        Args:
            loss_and_norm: loss and gradient norm of the step, `(2,)` floats, equal on all ranks.

        Returns:
            1.0 to skip the step, else 0.0: a float32 scalar on the same device.
        """
        if self._config.spike_sigma > 0:  # the recent values are on the host
            skip = self.check(*loss_and_norm.tolist()) is not None
            return torch.tensor(float(skip), dtype=torch.float32, device=loss_and_norm.device)
        return torch.isfinite(loss_and_norm).all().logical_not().float()

    def check(self, loss: float, norm: float) -> str | None:
        """Decide whether a step must be skipped; changes nothing.

        Args:
            loss: mean over the whole step, in nats per token.
            norm: norm of the whole gradient before clipping.

        Returns:
            The reason to skip the step, or None.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"loss {loss}, gradient norm {norm}: not finite"
        return self._spike("loss", loss, self._losses) or self._spike("gradient norm", norm, self._norms)

    def record(self, loss: float, norm: float) -> str | None:
        """Record the loss and gradient norm of a step that was taken or skipped.

        Values that are not finite are not remembered. Spikes are, so steps are no longer skipped if the loss stays at
        the new level.

        Args:
            loss: mean over the whole step, in nats per token.
            norm: norm of the whole gradient before clipping.

        Returns:
            The reason why the step was skipped, or None.
        """
        reason = self.check(loss, norm)
        if math.isfinite(loss) and math.isfinite(norm):
            self._losses.append(loss)
            self._norms.append(norm)
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if reason else 0
        self.skipped += reason is not None
        return reason

    def _spike(self, name: str, value: float, recent: deque[float]) -> str | None:
        """The reason why `value` counts as a spike, or None; None also before half a window was recorded."""
        if self._config.spike_sigma == 0 or len(recent) < max(2, self._config.window // 2):
            return None
        mean = statistics.fmean(recent)
        sigma = max(statistics.pstdev(recent), _MIN_RELATIVE_DEVIATION * abs(mean))
        if value <= mean + self._config.spike_sigma * sigma:
            return None
        return f"{name} {value:.4g} is a spike: {mean:.4g} +- {sigma:.2g} over the last {len(recent)} steps"

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON."""
        return {
            "losses": list(self._losses),
            "norms": list(self._norms),
            "in_a_row": self._skipped_in_a_row,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: the JSON of a checkpoint.
        """
        self._losses.extend(state["losses"])
        self._norms.extend(state["norms"])
        self._skipped_in_a_row, self.skipped = int(state["in_a_row"]), int(state["skipped"])

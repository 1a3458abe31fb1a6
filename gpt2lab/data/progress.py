"""Progress of a long preparation: a log message every ten seconds."""

import logging
import time

from gpt2lab.formatting import format_duration

logger = logging.getLogger(__name__)

_LOG_SECONDS = 10.0


class Progress:
    """Logs the share that is done, the rate and the remaining time.

    Args:
        total_bytes: estimated bytes of text.
    """

    def __init__(self, total_bytes: int):
        self.total_bytes = max(1, total_bytes)
        self._start: tuple[float, float, int] | None = None  # time, share and tokens at the first update
        self._last_log = 0.0

    def update(self, description: str, text_bytes: int, tokens: int, share: float = 0.0) -> None:
        """Report progress.

        Args:
            description: what is being done.
            text_bytes: bytes of text done, including those of an earlier, interrupted run.
            tokens: tokens done, likewise.
            share: share that is done, where it is larger than the share of `text_bytes`.
        """
        now, share = time.monotonic(), min(1.0, max(share, text_bytes / self.total_bytes))
        if self._start is None:
            self._start, self._last_log = (now, share, tokens), now
        if now - self._last_log < _LOG_SECONDS:
            return
        self._last_log = now
        start, start_share, start_tokens = self._start
        seconds = max(now - start, 1e-9)
        remaining = seconds * (1 - share) / (share - start_share) if share > start_share else float("inf")
        rate = f"{(tokens - start_tokens) / seconds / 1e6:.1f}M tokens/s, {format_duration(remaining)} left"
        logger.info("%s: %.0f%%, %s tokens, %s", description, 100 * share, f"{tokens:,}", rate)

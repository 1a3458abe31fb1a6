"""How far a long job is: one line that is rewritten on a terminal, and one now and then in a log."""

import sys
import time
from typing import TextIO

_EVERY = {True: 0.2, False: 30.0}  # seconds, on a terminal and elsewhere


from gpt2lab.formatting import format_duration


class Progress:
    """Says share, rate and time to go.

    Args:
        total_bytes: of text, about.
        stream: where to; standard error unless given.
    """

    def __init__(self, total_bytes: int, stream: TextIO | None = None):
        self.total = max(1, total_bytes)
        self.stream = stream or sys.stderr
        self._terminal = self.stream.isatty()
        self._began = self._last = time.perf_counter()
        self._first: int | None = None
        self._shown = False

    def update(self, text_bytes: int, tokens: int, what: str, share: float | None = None) -> None:
        """Say it, if it is time.

        Args:
            text_bytes: done so far, including what an earlier run has done.
            tokens: likewise.
            what: is being done.
            share: of the whole, where it is known better than from the bytes.
        """
        now = time.perf_counter()
        if self._first is None:
            self._first, self._first_tokens = text_bytes, tokens
        if now - self._last < _EVERY[self._terminal]:
            return
        self._last = now
        seconds = now - self._began
        share = min(1.0, text_bytes / self.total) if share is None else share
        rate = (text_bytes - self._first) / seconds
        first_share = self._first / self.total
        to_go = seconds * (1 - share) / (share - first_share) if share > first_share else float("inf")
        line = (
            f"{what} {share:4.0%}, {tokens:,} tokens, {(tokens - self._first_tokens) / seconds / 1e6:.1f}M tokens/s, "
            f"{rate / 1e6:.0f} MB/s, {format_duration(to_go)} to go"
        )
        print(
            f"\r{line}\x1b[K" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=self.stream,
            flush=True,
        )
        self._shown = True

    def close(self) -> None:
        """Wipe the line off a terminal."""
        if self._shown and self._terminal:
            print("\r\x1b[K", end="", file=self.stream, flush=True)

"""Formatting of durations, sizes and colors, and reading of numbers, the same everywhere."""

import math
import os
import re
from decimal import Decimal
from typing import Any, Literal, TextIO


def format_duration(seconds: float) -> str:
    """A duration in its two largest units: `3 d 4 h`, `1 h 12 min`, `12 min 5 s`, `40 s`; `?` if not finite."""
    if not math.isfinite(seconds):
        return "?"
    total = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if total >= size:
            return f"{total // size} {unit} {total % size // smaller_size} {smaller}"
    return f"{total} s"


def format_time_left(seconds: float) -> str:
    """An estimated duration, without more digits than the estimate has: as `format_duration`, but `9 min`.

    Args:
        seconds: the duration.
    """
    return (
        format_duration(60 * round(seconds / 60)).removesuffix(" 0 s") if seconds >= 59.5 else format_duration(seconds)
    )


def format_count(number: float) -> str:
    """A number with two or three digits: `850`, `1.2k`, `944k`, `1.1M`, `10B`; `?` if not finite.

    Args:
        number: at least 0.
    """
    if not math.isfinite(number):
        return "?"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:  # the smallest number that rounds to it
            return f"{number / size:.1f}{unit}" if number < 9.95 * size else f"{number / size:.0f}{unit}"
    return f"{number:.0f}"


def plural(number: int, word: str) -> str:
    """A number of things: `1 step`, `2,000 steps`, `2 processes`.

    Args:
        number: how many.
        word: for one of them; its plural has `s` or `es` at the end.
    """
    return f"{number:,} {word}{'' if number == 1 else 'es' if word.endswith('s') else 's'}"


_COLORS = {"green": 32, "yellow": 33}


def paint(text: str, color: Literal["green", "yellow"], stream: TextIO) -> str:
    """Color text on a terminal, unless NO_COLOR (no-color.org) is set.

    Args:
        text: one line.
        color: of the text.
        stream: where it will be written.

    Returns:
        The text, with escape sequences if the stream is a terminal.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{_COLORS[color]}m{text}\x1b[0m"


def format_bytes(size: float) -> str:
    """Bytes in decimal units, as disks are sold: `1.5 GB`, `12.30 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


# Control characters except tab and newline.
_CONTROL_CHARACTERS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def replace_control_characters(text: str) -> str:
    """Replace control characters, which terminals and browsers interpret, by U+FFFD. Untrained models generate them."""
    return text.translate(_CONTROL_CHARACTERS)


def parse_whole_number(text: str, default: Any) -> Any:
    """Read a whole number that is written like `1e9`, `0.5M` or `100K`.

    Args:
        text: the number.
        default: returned if the text is not a whole number.

    Returns:
        The number as an int.
    """
    if not (match := re.fullmatch(r"(\d{1,20}(?:\.\d{1,20})?(?:e\+?\d{1,2})?)([kmb]?)", text.strip().lower())):
        return default
    number = Decimal(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[match[2]]
    return int(number) if number == int(number) else default

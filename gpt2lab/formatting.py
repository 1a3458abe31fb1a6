"""Formatting of durations and sizes, the same in all messages."""

import math


def format_duration(seconds: float) -> str:
    """A duration in its two largest units: `3 d 4 h`, `1 h 12 min`, `12 min 5 s`, `40 s`; `?` if not finite."""
    if not math.isfinite(seconds):
        return "?"
    total = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if total >= size:
            return f"{total // size} {unit} {total % size // smaller_size} {smaller}"
    return f"{total} s"


def format_bytes(size: float) -> str:
    """Bytes in decimal units, as disks are sold: `1.5 GB`, `12.30 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


# Control characters except tab and newline.
_CONTROL_CHARACTERS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def replace_control_characters(text: str) -> str:
    """Replace control characters, which terminals and browsers interpret, by U+FFFD. Untrained models generate them."""
    return text.translate(_CONTROL_CHARACTERS)

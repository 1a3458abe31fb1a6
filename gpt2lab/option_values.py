"""Converts the text of option values that are more than a number or a word (see `options`)."""

import argparse

from gpt2lab.formatting import parse_whole_number


def names(text: str) -> tuple[str, ...]:
    """Names from text such as `a,b`, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def quantities(text: str) -> tuple[float, ...]:
    """Positive numbers from text such as `1e13:1e15`."""
    try:
        values = tuple(float(part) for part in text.split(":"))
    except ValueError:
        values = ()
    if not values or not all(0 < value < float("inf") for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 1e15, or a range such as 1e13:1e15")
    return values


def whole_numbers(text: str) -> tuple[int, ...]:
    """Positive whole numbers from text such as `524288,0.5M`."""
    values = tuple(parse_whole_number(part, 0) for part in text.split(","))
    if not all(values):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number such as 524288, or several with commas")
    return values


def port(text: str) -> int:
    """A TCP port that needs no privileges."""
    if not text.isdecimal() or not 1024 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1024 to 65535")
    return int(text)

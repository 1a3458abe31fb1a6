"""Declares command-line options, and converts those of their values that are more than a number or a word."""

import argparse
from dataclasses import MISSING, field
from typing import Any

from gpt2lab.formatting import parse_whole_number


def option(help: str, default: Any = MISSING, **metadata: Any) -> Any:
    """A dataclass field that is also a command-line option.

    Args:
        help: text in `--help`. The default is appended to it.
        default: value without the option; MISSING: the option is required.
        metadata: any of

            - flag: name of the option, or the bare name of a positional argument; default: `--` and the field's name.
            - parse: converts the text of the value; default: by the type of the field. For a tuple, the whole text.
            - nargs: as in argparse, for a tuple; default: the option may be repeated.
            - at_least: smallest number that is accepted.
            - for_path: for one of several words, the command that a path in its place belongs to.
            - for_words: an argument without the name of an option is meant for this one; the text between the words of
              its value, empty for only one word.
            - zero_is_none: True: 0 on the command line means None.
            - may_be_empty: True: empty text is accepted here.

    Returns:
        The field.
    """
    return field(default=default, metadata={"help": help, **metadata})


def names(text: str) -> tuple[str, ...]:
    """Names from text such as `a,b`, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1, such as 0.4")
    return value


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

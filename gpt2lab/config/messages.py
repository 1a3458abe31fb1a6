"""Error messages about settings: one line that names the setting, its value and what is allowed."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from gpt2lab.config import foreign_names
from gpt2lab.errors import UTF8_ADVICE, GPT2LabError, find_similar

_WHOLE, _NUMBER, _BOOLEAN = "a whole number such as 100000 or 100M", "a number such as 2.50", "true or false"
# What a value should be, by pydantic's type of problem; the fields are those of its context.
_EXPECTED = {
    "bool_parsing": _BOOLEAN,
    "bool_type": _BOOLEAN,
    "finite_number": "a finite number",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": "a smaller number",
    "int_type": _WHOLE,
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "a name of letters, digits, '.', '_' and '-' that begins with a letter or a digit",
    "string_too_long": "text of at most {max_length} characters",
    "string_too_short": "text that is not empty",
    "string_type": "text",
}


_OUT_OF_RANGE = ("finite_number", "greater_than", "greater_than_equal", "less_than", "less_than_equal")


def describe_unknown_setting(name: str, known: Sequence[str]) -> str:
    """The error message about a name that is not a setting.

    Args:
        name: dotted name, or the name of a section.
        known: dotted names of all settings.

    Returns:
        The message, with the setting that was probably meant.
    """
    section, _, key = name.lower().replace("-", "_").rpartition(".")
    if key in foreign_names.NO_COUNTERPART:
        return f"unknown setting {name}: {foreign_names.NO_COUNTERPART[key]}"
    if key in foreign_names.NAMES:
        return f"unknown setting {name}; did you mean {foreign_names.NAMES[key]}?"
    settings = {setting.rpartition(".")[2]: setting for setting in reversed(known)}
    sections = {setting.partition(".")[0] for setting in known}
    here = {setting.rpartition(".")[2]: setting for setting in known if setting.startswith(f"{section}.")}
    guess = find_similar(key, here)
    if guess is None:  # keys before sections: train.warmup_stps is in no section of a similar name
        here, guess = settings, find_similar(key, settings if section else [*settings, *sorted(sections)])
    return f"unknown setting {name}{f'; did you mean {here.get(guess, guess)}?' if guess else ''}"


def translate(
    error: ValidationError, origins: Mapping[str, str], known: Sequence[str], setting: str | None = None
) -> GPT2LabError:
    """Turn the first problem that pydantic reports into an error for the user.

    Args:
        error: what validating the settings raised.
        origins: by dotted name, what precedes the name in the message: `FILE: ` or `--`.
        known: dotted names of all settings.
        setting: take the first problem of this setting; None: of all.

    Returns:
        The error to raise.
    """
    first = next(problem for problem in error.errors() if setting in (None, name_of(problem)))
    name = name_of(first)
    origin = origins.get(name, "")
    if first["type"] == "extra_forbidden":
        return GPT2LabError(f"{'' if origin == '--' else origin}{describe_unknown_setting(name, known)}")
    prefix = f"{origin}{name}: " if name else ""
    if first["type"] == "value_error":
        return GPT2LabError(prefix + first["msg"].removeprefix("Value error, "))
    if first["type"] == "string_unicode":
        return GPT2LabError(f"{prefix}the text is not valid UTF-8{UTF8_ADVICE if origin == '--' else ''}")
    problems = [problem for problem in error.errors() if problem["loc"][:2] == first["loc"][:2]]
    expected = [
        _EXPECTED[problem["type"]].format_map({key: _plain(value) for key, value in problem.get("ctx", {}).items()})
        if problem["type"] in _EXPECTED
        else problem["msg"].removeprefix("Input should be ")
        for problem in problems
    ]
    # A number on the command line is text, which is shown as in a file: without quotes.
    is_number = isinstance(first["input"], str) and any(problem["type"] in _OUT_OF_RANGE for problem in problems)
    found = first["input"] if is_number else shorten(first["input"])
    return GPT2LabError(f"{prefix}should be {', or '.join(dict.fromkeys(expected))}, not {found}")


def _plain(value: Any) -> Any:
    """A whole number without the `.0` of a float, which limits of fractions have."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def name_of(problem: Mapping[str, Any]) -> str:
    """The dotted name of a setting in a problem that pydantic reports; empty or a section where several clash."""
    return ".".join(str(part) for part in problem["loc"][:2])  # deeper parts name members of a union, not settings


def shorten(value: Any) -> str:
    """A value as it is written in YAML, shortened: aliases can make a short recipe's value huge.

    Args:
        value: any value.

    Returns:
        Text for a message.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxlong, brief.maxother = 1, 60, 60, 60
    return brief.repr(value)

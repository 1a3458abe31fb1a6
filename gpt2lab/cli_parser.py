"""Builds argparse parsers from the classes in `options`, and instances of these classes from the command line."""

import argparse
import inspect
import itertools
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from gpt2lab import logs
from gpt2lab.errors import GPT2LabError, did_you_mean, find_similar
from gpt2lab.formatting import parse_whole_number
from gpt2lab.options import SettingsOptions

Options = TypeVar("Options")

_MODEL_OPTIONS = ("--model-checkpoint", "--trained")  # of `sample` and others, and of `app`
_NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)  # argparse knows no exponents


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations whose errors are GPT2LabErrors.

    Attributes:
        flags: names of the options of the verb, without settings and positional arguments.
        required: the first option that must be given, for an argument that lacks the name of its option.
        for_words: the option that such an argument belongs to if `required` is given already, and what is between the
            words of its value.
        positionals: arguments of the verb without a name.
    """

    def __init__(self, **keywords: Any):
        self.flags, self.required, self.for_words = ["--help"], "", ("", "")
        self.positionals: list[str] = []
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **keywords)
        self._negative_number_matcher = _NEGATIVE_NUMBER

    def error(self, message: str) -> NoReturn:
        """Raise what argparse complains about.

        Args:
            message: the complaint.

        Raises:
            GPT2LabError: always.
        """
        flag, found, value = message.removeprefix("argument ").partition(": ignored explicit argument ")
        if found:
            message = f"{flag} takes no value; leave out {value}"
        raise GPT2LabError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:  # noqa: ARG002  # standard output
        """Print help or a version. argparse ignores errors of the stream."""
        logs.print_result(message, end="")


def parse(options: type[Options], arguments: Sequence[str], prog: str) -> Options:
    """Parse the arguments of a verb.

    Args:
        options: a class with fields made by `option_values.option`; nested dataclasses add their own fields.
        arguments: what follows the verb on the command line.
        prog: the command, such as `gpt2lab train`, for help and errors.

    Returns:
        An instance of `options`.

    Raises:
        GPT2LabError: an argument is unknown, missing or not valid.
    """
    parser = Parser(prog=prog, description=inspect.getdoc(options), epilog=getattr(options, "EXAMPLES", None))
    _add_fields(parser, options)
    settings: Sequence[str] = ()
    if issubclass(options, SettingsOptions):
        words = " ".join([prog, *(name.upper() for name in parser.positionals)])
        parser.usage = f"{words} [OPTION ...] [--config FILE] [--section.key VALUE ...]"
        parser.required = "--config"
        settings = _add_settings(parser)
    for name in (argument.partition("=")[0] for argument in arguments if argument[2:]):
        # Before anything else is checked: an option that seems to be missing may be the one that is misspelled.
        if name.startswith("--") and " " not in name and name not in parser.flags and name[2:] not in settings:
            raise GPT2LabError(_unknown_option(name, arguments, parser, settings))
        if name[1] != "-" and (f"-{name}" in parser.flags or name[1:] in settings):
            raise GPT2LabError(f"unknown option {name}; did you mean -{name}?")
    if arguments and not arguments[0].startswith("-") and not parser.positionals:
        raise GPT2LabError(_unknown_argument(arguments[0], arguments, parser))
    namespace, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise GPT2LabError(_unknown_argument(unknown[0], arguments, parser))
    return _instance(options, namespace)


def _add_fields(parser: Parser, options: type, defaults: object = None) -> None:
    hints = get_type_hints(options)
    for field in fields(options):
        default = field.default if defaults is None else getattr(defaults, field.name)
        if is_dataclass(hints[field.name]):
            _add_fields(parser, hints[field.name], default)
        elif "help" in field.metadata:
            flag = field.metadata.get("flag") or f"--{field.name.replace('_', '-')}"
            keywords = _keywords(field, hints[field.name], default)
            if flag.startswith("-"):
                keywords |= {"dest": field.name, "required": default is MISSING}
                parser.flags.append(flag)
                parser.required = parser.required or flag * (default is MISSING)
                if "for_words" in field.metadata:
                    parser.for_words = flag, field.metadata["for_words"]
            else:
                parser.positionals.append(flag)
            parser.add_argument(flag, **keywords)


def _keywords(field: Field[Any], annotation: Any, default: Any) -> dict[str, Any]:
    """The arguments of `add_argument` for a field, by its type and metadata."""
    metadata, help_text = field.metadata, field.metadata["help"]
    members = [member for member in get_args(annotation) if member is not NoneType]
    value_type = members[0] if NoneType in get_args(annotation) else annotation
    keywords: dict[str, Any] = {}
    if value_type is bool:
        return {"action": "store_false" if default else "store_true", "help": help_text}
    if metadata.get("parse"):
        keywords["type"] = metadata["parse"]
    elif get_origin(value_type) is Literal:
        keywords |= {"choices": get_args(value_type), "type": _choice(get_args(value_type), metadata.get("for_path"))}
    elif get_origin(value_type) is tuple:
        nargs = metadata.get("nargs")
        keywords |= {"nargs": nargs, "action": "extend"} if nargs else {"action": "append"}
        keywords["type"] = _text
    elif value_type is str:
        keywords["type"] = str if metadata.get("may_be_empty") else _text
    else:
        keywords["type"] = _number(value_type, metadata.get("at_least"))
    if default is not MISSING:
        shown = ",".join(default) if isinstance(default, tuple) else default
        keywords["default"] = None if default == () else default
        help_text += f" (default: {shown})" if shown not in (None, "") else ""
    return keywords | {"help": help_text.replace("%", "%%")}


def _text(text: str) -> str:
    """A parser of text that is not empty, as the value of a variable that is not set is."""
    if not text:
        raise argparse.ArgumentTypeError("the value is empty")
    return text


def _choice(choices: Sequence[str], for_path: str | None) -> Callable[[str], str]:
    """A parser of one of several words. `for_path` is the command that takes a path given in their place."""

    def choice(text: str) -> str:
        if text in choices:
            return text
        if for_path and (os.path.exists(text) or os.sep in text):
            raise argparse.ArgumentTypeError(f"{text!r} is a path; did you mean: {for_path} {shlex.quote(text)}?")
        hint = did_you_mean(text, choices)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(choices)}{hint}")

    return choice


def _number(number_type: type[float], minimum: float | None) -> Callable[[str], float]:
    """A parser of finite numbers, also such as 100M."""

    def number(text: str) -> float:
        factor = {"K": 10**3, "M": 10**6, "B": 10**9}.get(text[-1:].upper(), 1)
        try:
            plain = parse_whole_number(text, text) if number_type is int else text  # of text such as 1e9
            value = float(text[:-1]) * factor if factor > 1 else number_type(plain)
            whole = not math.isfinite(value) or value == number_type(value)
        except (ValueError, OverflowError):
            whole = False
        if not whole:
            description = "a whole number such as 100000 or 100M" if number_type is int else "a number such as 2.50"
            raise argparse.ArgumentTypeError(f"{text!r} is not {description}")
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"must be a finite number, not {text}")
        if minimum is not None and value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, not {text}")
        return number_type(value)

    return number


def _add_settings(parser: Parser) -> list[str]:
    """Add every setting under its dotted name, and those that were renamed without help; returns their names."""
    from gpt2lab import config

    groups = {section: parser.add_argument_group(section) for section in config.Config.model_fields}
    for name, setting in config.leaves():
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if setting.annotation is bool else {}
        description = f"{setting.description} (default: {setting.default})".replace("%", "%%")
        group = groups[name.partition(".")[0]]
        group.add_argument(f"--{name}", metavar="VALUE", default=argparse.SUPPRESS, help=description, **switch)
    for name in config.RENAMED_SETTINGS:
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return [*(name for name, _ in config.leaves()), *config.RENAMED_SETTINGS]


def _instance(options: type[Options], namespace: argparse.Namespace) -> Options:
    """An instance with the parsed values; dotted names are settings and go to `overrides`."""
    hints = get_type_hints(options)
    values: dict[str, Any] = {}
    for field in fields(options):  # type: ignore[arg-type]
        if is_dataclass(hints[field.name]):
            values[field.name] = _instance(hints[field.name], namespace)
        elif field.name == "overrides":
            values["overrides"] = {name: value for name, value in vars(namespace).items() if "." in name}
        elif "help" in field.metadata:
            value = getattr(namespace, field.name)
            if get_origin(hints[field.name]) is tuple:
                value = tuple(value or ())
            values[field.name] = None if field.metadata.get("zero_is_none") and value == 0 else value
    return options(**values)


def _unknown_option(name: str, arguments: Sequence[str], parser: Parser, settings: Sequence[str]) -> str:
    """The error message about an option that does not exist, and all others if they are settings elsewhere."""
    from gpt2lab.config import conversions, messages, translation

    guess = find_similar(name, parser.flags)
    if name in _MODEL_OPTIONS:
        guess = next((flag for flag in parser.flags if flag in _MODEL_OPTIONS), guess)
    if settings and (guess is None or "." in name):
        unknown = {}
        for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
            option, equals, value = argument.partition("=")
            if option.startswith("--") and option not in parser.flags and option[2:] not in settings:
                unknown[option[2:]] = value if equals else "true" if following[:2] in ("", "--") else following
        return (
            translation.explain_options(unknown)
            if len(unknown) > 1 or name[2:].replace("-", "_") in conversions.CONVERSIONS
            else messages.describe_unknown_setting(name[2:], settings)
        )
    return f"unknown option {name}{f'; did you mean {guess}?' if guess else ''} (see {parser.prog} --help)"


def _unknown_argument(name: str, arguments: Sequence[str], parser: Parser) -> str:
    """The error message about an argument that needs the name of an option before it."""
    from gpt2lab import config

    words = [word for argument in arguments for word in argument.split("=", 1 if argument[:2] == "--" else 0)]
    option, joined_by = parser.for_words
    if option in words:  # as in --prompt Once upon a time
        value = list(itertools.takewhile(lambda word: not word.startswith("-"), words[words.index(option) + 1 :]))
        if joined_by and name in value:
            meant = joined_by.join(value)
            if option == "--over" and "=" not in value[0]:  # the name of a setting, then its values
                meant = meant.replace(",", "=", 1)
            return f"unexpected argument {name}; did you mean {option} {shlex.quote(meant)}?"
    if parser.required == "--config" and not (name in config.recipes() or name.endswith((".yaml", ".yml"))):
        if name.endswith(".py") and os.path.isfile(name):
            return f"unexpected argument {name}; did you mean --config {name}?"
        guess = config.suggest_recipe(name)
        advice = f"did you mean --config {guess}?" if guess else "settings are given as --train.max_steps 50"
        return f"unexpected argument {name}; {advice}"
    for wanted in (parser.required, option):
        if wanted and wanted not in words:
            return f"unexpected argument {name}; did you mean {wanted} {shlex.quote(name)}?"
    if "--input" in parser.flags and os.path.exists(name):
        return f"unexpected argument {name}; did you mean --input {shlex.quote(name)}?"
    return f"unexpected argument {name} (see {parser.prog} --help)"

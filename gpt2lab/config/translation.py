"""Translates the settings of other projects to ours.

foreign_files.read ──▶ names and values ──▶ translate ──▶ Translation ──▶ YAML for --config │ one message
"""

import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from gpt2lab.config import foreign_files, messages, yaml_format
from gpt2lab.config.conversions import BY_LEAF, CONVERSIONS, Source, convert_word
from gpt2lab.config.foreign_names import NAMES, NANOGPT_DEFAULTS, NANOGPT_ONLY, NO_COUNTERPART
from gpt2lab.config.settings import Config, leaves
from gpt2lab.errors import GPT2LabError

_KNOWN = [name for name, _ in leaves()]


class Item(NamedTuple):
    """One setting elsewhere: name, value, the settings that stand for it here, what is to be said, and whose it is."""

    name: str
    value: Any
    settings: Mapping[str, Any]
    note: str = ""
    is_default: bool = False  # of nanoGPT, and not in the file

    def describe(self, option: str = "") -> str:
        """The translation, such as `max_iters: train.max_steps 5000`.

        Args:
            option: precedes names, `--` for the command line.
        """
        if self.note == _UNKNOWN:
            return messages.describe_unknown_setting(self.name, _KNOWN)
        as_text = _as_word if option else messages.shorten
        shown = [f"{option}{name} {as_text(value)}" for name, value in self.settings.items()]
        return f"{option}{self.name}: {', '.join([*shown, *([self.note] if self.note else [])]) or 'leave it out'}"


class Translation(NamedTuple):
    """The settings of another project.

    Attributes:
        items: what became of each.
        settings: ours by dotted name; `Config` accepts each of them.
        notes: what else the user should know.
    """

    items: Sequence[Item]
    settings: Mapping[str, Any]
    notes: Sequence[str]

    @property
    def is_of_another_project(self) -> bool:
        """Whether a name that is not ours is known from another project."""
        return any(item.name not in _KNOWN and item.note != _UNKNOWN for item in self.items)

    def to_yaml(self, title: str) -> str:
        """The settings as a file for --config, with the names that they had.

        Args:
            title: the first comment.
        """
        origins = {
            name: "nanoGPT's default" if item.is_default else item.name for item in self.items for name in item.settings
        }
        lines = [f"# {' '.join(title.split())}"]
        for section in Config.model_fields:
            names = [name for name in _KNOWN if name in self.settings and name.startswith(f"{section}.")]
            lines += [f"{section}:"] * bool(names)
            for name in names:
                text = yaml_format.dump({name.partition(".")[2]: self.settings[name]}).strip().replace("\n", "\n  ")
                origin = origins.get(name, name)
                is_shown = origin.rpartition(".")[2] != name.partition(".")[2] and origin.isprintable()
                lines.append(f"  {text}" + f"  # {origin}" * is_shown)
        return "\n".join(lines) + "\n"


_UNKNOWN = "unknown"
# Sections whose batch_size or max_steps is not that of training. Known names of both are kept: eval.interval.
_MEASUREMENTS = {"eval", "evaluate", "evaluation", "val", "valid", "validation", "test", "sample", "inference"}


def translate(values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Translation:
    """Translate settings.

    Args:
        values: by name, nested names with dots.
        defaults: values of the other project for settings that are not given.

    Returns:
        The translation. Settings that ours do not accept are notes.
    """
    everything = {name: value for name, value in (defaults or {}).items() if name not in values} | dict(values)
    source = _build_source(everything)
    items = [
        _translate_one(name, value, source)._replace(is_default=name not in values)
        for name, value in everything.items()
    ]
    settings: dict[str, Any] = {}
    origins: dict[str, Item] = {}
    twice: list[str] = []
    for item in sorted(items, key=lambda item: item.name == "decay_lr"):  # which overrides min_lr
        for setting, value in item.settings.items():
            first = origins.setdefault(setting, item)
            if settings.get(setting, value) != value and not first.is_default and item.name != "decay_lr":
                twice.append(f"{first.name} and {item.name} are both {setting}; that of {item.name} is taken")
        settings |= item.settings
    accepted, notes = _keep_valid(settings)
    return Translation(items, accepted, [*twice, *notes])


def _build_source(values: Mapping[str, Any]) -> Source:
    return Source(
        {name.rpartition(".")[2].lower(): value for name, value in values.items() if not _is_of_measurement(name)}
    )


def _is_of_measurement(name: str) -> bool:
    return not _MEASUREMENTS.isdisjoint(name.lower().split(".")[:-1])


def _translate_one(name: str, value: Any, source: Source) -> Item:
    if name in _KNOWN:
        return Item(name, value, {name: value})
    parent, _, leaf = name.lower().replace("-", "_").rpartition(".")
    for key in (f"{parent.rpartition('.')[2]}_{leaf}", leaf):  # eval.interval is eval_interval, not interval
        if key in CONVERSIONS:
            return Item(name, value, *CONVERSIONS[key](value, source))
        if key in NO_COUNTERPART:
            is_same = value in (None, True) if "bias" in key else not value
            return Item(name, value, {}, "" if is_same else NO_COUNTERPART[key])
        if setting := _find_setting(key):
            return Item(name, value, *convert_word(setting, value))
        if _is_of_measurement(name):
            return Item(name, value, {}, "of evaluation or sampling, not of training; leave it out")
    return Item(name, value, {}, _UNKNOWN)


def _find_setting(name: str) -> str | None:
    return NAMES.get(name) or BY_LEAF.get(name)


def _keep_valid(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings that Config accepts, and what is wrong with the others."""
    accepted, notes = {name: value for name, value in settings.items() if value is not None}, []
    while True:
        nested: dict[str, dict[str, Any]] = {}
        for name, value in accepted.items():
            section, _, key = name.partition(".")
            nested.setdefault(section, {})[key] = value
        try:
            Config.model_validate(nested)
        except ValidationError as error:
            wrong = next((messages.name_of(one) for one in error.errors() if messages.name_of(one) in accepted), None)
            notes.append(str(messages.translate(error, {}, _KNOWN, wrong)))
            if wrong is not None:
                del accepted[wrong]
                continue
        return accepted, notes


def translate_file(file: Path) -> Translation:
    """Translate a settings file of another project.

    Args:
        file: YAML, or Python assignments such as nanoGPT's config/train_gpt2.py; no code in it is run.

    Returns:
        The translation.

    Raises:
        GPT2LabError: the file cannot be read, or has no settings.
    """
    content = foreign_files.read(file)
    is_nanogpt = file.suffix == ".py" and not content.has_code and bool(content.values.keys() & NANOGPT_ONLY)
    # Of a value that is not a literal nothing is known, so nanoGPT's default does not stand for it.
    defaults = {name: value for name, value in NANOGPT_DEFAULTS.items() if name not in content.left_out}
    translation = translate(content.values, defaults if is_nanogpt else None)
    settings, notes = dict(translation.settings), list(translation.notes)
    source = _build_source(content.values)
    if "train.total_batch_size" not in settings and source.micro_tokens:
        settings["train.total_batch_size"] = source.micro_tokens
        notes.append(
            f"train.total_batch_size {source.micro_tokens} is a micro batch; multiply it by the number of GPUs"
        )
    if typos := [item.describe() for item in translation.items if item.note == _UNKNOWN and _is_typo(item.name)]:
        raise GPT2LabError(f"{file}: {'; '.join(typos)}")
    if not settings:
        raise GPT2LabError(f"{file}: no settings that could be translated")
    if not settings.keys() & {"data.dir", "data.source"}:
        notes.append("no data that gpt2lab knows: add data.dir, the folder of the token shards")
    left_out = dict.fromkeys(
        name
        for name in content.left_out
        if name not in content.values and (name in CONVERSIONS or _find_setting(name) not in (None, *settings))
    )
    if left_out and not content.has_code:
        notes.append(f"not a literal, so left out: {', '.join(left_out)}")
    return Translation(translation.items, settings, notes)


def _is_typo(name: str) -> bool:
    """Whether a name is almost that of a setting of gpt2lab."""
    return "." in name and bool(difflib.get_close_matches(name, _KNOWN, 1, 0.85))


def explain_file(file: Path) -> GPT2LabError:
    """The error about a settings file of another project: what each setting is here, and the YAML that would do.

    Args:
        file: the file.

    Returns:
        The error to raise.
    """
    translation = translate_file(file)
    shown = [item.describe() for item in translation.items if item.name not in _KNOWN and not item.is_default]
    if not translation.is_of_another_project:
        unknown = [item.name for item in translation.items if item.name not in _KNOWN]
        return GPT2LabError(f"{file}: {'; '.join(messages.describe_unknown_setting(name, _KNOWN) for name in unknown)}")
    command = f"gpt2lab settings translate {shlex.quote(str(file))}"
    return GPT2LabError(
        f"{file} has settings of another project: {'; '.join([*shown, *translation.notes])}. The file for gpt2lab is "
        f"below; write it with: {command} > my.yaml",
        details=translation.to_yaml(f"{file} in gpt2lab's settings"),
    )


def explain_options(values: Mapping[str, str]) -> str:
    """The error message about options that are settings of another project.

    Args:
        values: text of the values by name, without the dashes.
    """
    parsed = {name: yaml_format.parse_scalar(text) for name, text in values.items()}
    items = translate(parsed).items
    plain = [item for item in items if item.settings and not item.note]
    parts = [item.describe("--") for item in items if item not in plain]
    if plain:  # all of them in one piece, to be copied
        names = ", ".join(f"--{item.name}" for item in plain)
        words = " ".join(f"--{name} {_as_word(value)}" for item in plain for name, value in item.settings.items())
        parts.append(f"{names}: did you mean {words}?")
    return f"unknown settings: {'; '.join(parts)}" if len(items) > 1 else f"unknown setting {parts[0]}"


def _as_word(value: Any) -> str:
    """A value as on the command line."""
    return "null" if value is None else shlex.quote(str(value).lower() if isinstance(value, bool) else str(value))

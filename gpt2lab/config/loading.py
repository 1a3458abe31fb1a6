"""From recipes and the command line to settings.

defaults ─▶ YAML files ─▶ command line ─▶ Config (validated by pydantic) ─▶ runs/NAME/config.yaml
"""

import logging
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpt2lab.config import foreign_files, messages, translation, yaml_format
from gpt2lab.config.architecture import SHAPE
from gpt2lab.config.settings import Config, leaves
from gpt2lab.errors import GPT2LabError, find_similar

logger = logging.getLogger(__name__)

# Current names by old name. Recipes and options may use an old name for one release.
RENAMED_SETTINGS = {"guard.deviations": "guard.spike_sigma"}


def recipes() -> dict[str, Path]:
    """The shipped recipes: files by name, from `config/` of the checkout or its copy in an installed wheel."""
    package = Path(__file__).parent.parent
    checkout = package.parent / "config"
    folder = checkout if (checkout / "quickstart.yaml").exists() else package / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """Find the file of a recipe.

    Args:
        name: a path, or the name of a shipped recipe.

    Returns:
        The path of the file.

    Raises:
        GPT2LabError: neither exists.
    """
    if Path(name).is_file():
        return Path(name)
    known = recipes()
    if str(name) in known:
        return known[str(name)]
    if Path(name).is_dir():
        inside = Path(name) / "config.yaml"
        advice = f"; did you mean --config {inside}?" if inside.is_file() else f" (recipes: {', '.join(known)})"
        raise GPT2LabError(f"--config {name} is a folder, not a recipe{advice}")
    if "," in str(name):
        repeated = " ".join(f"--config {shlex.quote(part.strip())}" for part in str(name).split(",") if part.strip())
        raise GPT2LabError(f"--config {name}: no such file or recipe; for several files, repeat --config: {repeated}")
    guess = suggest_recipe(name)
    hint = f"; did you mean {guess}?" if guess else ""
    raise GPT2LabError(f"--config {name}: no such file or recipe{hint} (recipes: {', '.join(known)})")


def suggest_recipe(name: str | Path) -> str | None:
    """Find the recipe that was probably meant: a YAML file in the same folder, or a shipped recipe.

    Args:
        name: that no recipe has.

    Returns:
        Its path or name; None if none is similar.
    """
    files = {file.stem: shlex.quote(str(file)) for file in sorted(Path(name).parent.glob("*.y*ml")) if file.is_file()}
    shipped = {stem: stem for stem in recipes()}
    guess = find_similar(Path(name).stem, candidates := shipped | files)
    return candidates[guess] if guess else None


def _read_settings(file: Path, known: Sequence[str]) -> dict[str, Any]:
    """Read the settings of a recipe.

    Args:
        file: path of the file, in YAML.
        known: dotted names of all settings.

    Returns:
        The values in the file by dotted name. Their types are not checked.

    Raises:
        GPT2LabError: the file is unreadable, not YAML, or has something else than sections of settings. The message
            names the file and the line or key.
    """
    sections = {name.partition(".")[0] for name in known}
    values: dict[str, Any] = {}
    content = {} if file.suffix == ".py" else yaml_format.read(file)
    if file.suffix == ".py" or _count_unknown(content, {*sections, *known, *RENAMED_SETTINGS}) > 1:
        raise translation.explain_file(file)
    if not content:
        raise GPT2LabError(f"{file} has no settings")
    for section, settings in content.items():
        if section in known or section in RENAMED_SETTINGS:
            outer, _, key = section.partition(".")
            raise GPT2LabError(
                f"{file}: {section} is not written with a point in a recipe; write {outer}: and, indented below it, "
                f"{key}: {messages.shorten(settings)}"
            )
        if section not in sections:
            raise GPT2LabError(f"{file}: {messages.describe_unknown_setting(str(section), known)}")
        if settings is not None and not isinstance(settings, Mapping):
            raise GPT2LabError(f"{file}: {section} must hold settings, not {messages.shorten(settings)}")
        values |= {f"{section}.{key}": value for key, value in (settings or {}).items()}
    return values


def _count_unknown(content: Mapping[Any, Any], known: set[str]) -> int:
    """The number of names in a recipe that are neither settings nor sections."""
    names = (".".join(name.split(".")[:2]) for name, _ in foreign_files.flatten(content))
    return len({name for name in names if name not in known})


def _rename(values: Mapping[str, Any], origin: str, notes: list[str]) -> dict[str, Any]:
    """Replace old names of settings by the current ones.

    Args:
        values: settings by dotted name.
        origin: precedes the names in messages: `FILE: ` or `--`.
        notes: receives a line for each old name.

    Returns:
        The settings by current name.

    Raises:
        GPT2LabError: a setting is given under both names.
    """
    values = dict(values)
    for old in RENAMED_SETTINGS.keys() & values.keys():
        new = RENAMED_SETTINGS[old]
        if new in values:
            raise GPT2LabError(f"{origin}{old} is the old name of {new}; give only {new}")
        notes.append(f"{origin}{old} is now called {new}; the old name will be removed in the next release")
        values[new] = values.pop(old)
    return values


def load(files: Iterable[str | Path] = (), overrides: Mapping[str, Any] | None = None) -> Config:
    """Merge the defaults, YAML files and overrides, and validate the result. Old names of settings are logged.

    Args:
        files: see `load_with_notes`.
        overrides: see `load_with_notes`.

    Returns:
        The settings.

    Raises:
        GPT2LabError: see `load_with_notes`.
    """
    config, notes = load_with_notes(files, overrides)
    for note in notes:
        logger.info(note)
    return config


def load_with_notes(
    files: Iterable[str | Path] = (), overrides: Mapping[str, Any] | None = None
) -> tuple[Config, list[str]]:
    """Merge the defaults, YAML files and overrides, and validate the result; log nothing.

    Args:
        files: paths of YAML files, or names of shipped recipes. A file overrides the files before it. The run is named
            after the last file, unless `run.name` is set.
        overrides: values by dotted name, which override the files; text is converted as on the command line.

    Returns:
        The settings, and a line for each old name of a setting.

    Raises:
        GPT2LabError: a file does not exist, is unreadable or not YAML, a key is unknown or repeated, a value is of the
            wrong type or out of range. The message names the file or the key.
    """
    known = [name for name, _ in leaves()]
    paths = [find_recipe(file) for file in files]
    layers = [(_read_settings(path, known), f"{path}: ") for path in paths]
    layers.append((dict(overrides or {}), "--"))
    merged: dict[str, Any] = {}
    notes: list[str] = []
    origins: dict[str, str] = {}  # precedes the name of a setting in messages
    for layer, origin in layers:
        values = _rename(layer, origin, notes)
        if values.get("model.size") is not None:  # replaces the shape of the layers before
            merged = {name: value for name, value in merged.items() if name.removeprefix("model.") not in SHAPE}
        merged |= values
        origins |= dict.fromkeys(values, origin)
    nested: dict[str, dict[str, Any]] = {"run": {}}
    for name, value in merged.items():
        section, _, key = name.partition(".")
        nested.setdefault(section, {})[key] = None if value == "null" and origins[name] == "--" else value
    if paths and nested["run"].get("name") is None:
        nested["run"]["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", paths[-1].stem).lstrip("._-") or None
    try:
        return Config.model_validate(nested), notes
    except ValidationError as error:
        raise messages.translate(error, origins, known) from None


def load_run(folder: Path) -> Config:
    """Read the config.yaml of a run directory. Old names are not logged: no user wrote the file.

    Args:
        folder: the run directory.

    Returns:
        All settings.

    Raises:
        GPT2LabError: as for `load`.
    """
    try:
        return load_with_notes([folder / "config.yaml"])[0]
    except GPT2LabError as error:
        raise GPT2LabError(f"{error}; the gpt2lab train command of this run writes the file again") from None


def find_run_settings(folder: Path, effect: str) -> Config | None:
    """Read the config.yaml of a run directory for a command that works without it.

    Args:
        folder: the run directory.
        effect: what is different without the settings, for the warning about a damaged file.

    Returns:
        All settings; None if the file is missing or damaged.
    """
    if not (folder / "config.yaml").is_file():
        return None
    try:
        return load_run(folder)
    except GPT2LabError as error:
        logger.warning(f"{error}; until then {effect}")
        return None

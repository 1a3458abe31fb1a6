"""From `--over` options to the runs of a sweep.

optimizer.max_lr=1e-3,2e-3  run.seed=1,2 ──▶ every combination ──▶ SweepRun: name, settings, validated Config
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2lab import config as settings
from gpt2lab.config import Config
from gpt2lab.config.messages import describe_unknown_setting
from gpt2lab.errors import GPT2LabError

_FIXED = ("run.name", "run.out_dir", "run.resume")  # of a run in a sweep: the sweep sets them
_LONGEST_NAME = 120  # file names have at most 255 bytes


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep.

    Attributes:
        name: of its run directory, in the folder of the sweep.
        settings: in which the runs differ, as text by dotted name.
        config: all its settings.
    """

    name: str
    settings: Mapping[str, str]
    config: Config


@dataclass(frozen=True)
class Sweep:
    """A sweep.

    Attributes:
        folder: holds the run directories, sweep.json and report.html.
        recipes: of all runs.
        overrides: settings of all runs, as text by dotted name.
        runs: in the order in which they are trained.
        plan: the file of `gpt2lab scaling plan` that the runs come from; None: a grid.
    """

    folder: Path
    recipes: tuple[str, ...]
    overrides: Mapping[str, str]
    runs: tuple[SweepRun, ...]
    plan: str | None = None

    def arguments(self, run: SweepRun) -> list[str]:
        """The arguments of `gpt2lab` that train a run.

        Args:
            run: one of the sweep.
        """
        words = ["train"]
        for recipe in self.recipes:
            words += ["--config", recipe]
        fixed = {"run.name": run.name, "run.out_dir": str(self.folder)}
        for name, value in (dict(self.overrides) | dict(run.settings) | fixed).items():
            words += [f"--{name}={value}"] if value.startswith("-") or not value else [f"--{name}", value]
        return words


def parse_axes(over: Sequence[str], overrides: Mapping[str, str]) -> dict[str, list[str]]:
    """Read the `--over` options.

    Args:
        over: such as `optimizer.max_lr=1e-3,2e-3`.
        overrides: settings of all runs.

    Returns:
        The values by setting, in the order given.

    Raises:
        GPT2LabError: an option is not of this form, names no setting or one that the sweep sets itself, or a setting
            occurs twice or has a value twice.
    """
    known = [name for name, _ in settings.leaves()]
    axes: dict[str, list[str]] = {}
    for text in over:
        name, equals, values = text.partition("=")
        name, listed = name.strip().removeprefix("--"), [value.strip() for value in values.split(",")]
        if not equals or not all(listed):
            raise GPT2LabError(f"--over {text}: write a setting and its values, as optimizer.max_lr=1e-3,2e-3")
        name = settings.RENAMED_SETTINGS.get(name, name)
        if name not in known:
            raise GPT2LabError(f"--over: {describe_unknown_setting(name, known)}")
        if name in _FIXED:
            raise GPT2LabError(f"--over {name}: the sweep sets it for each run")
        if name in axes:
            raise GPT2LabError(f"--over {name} is given twice; give all its values in one list")
        if name in overrides:
            raise GPT2LabError(f"--{name} and --over {name} are both given; give one of them")
        if repeated := [value for value, count in Counter(listed).items() if count > 1]:
            raise GPT2LabError(f"--over {name} has the value {repeated[0]} twice")
        axes[name] = listed
    return axes


def build(
    recipes: Sequence[str],
    overrides: Mapping[str, str],
    runs: Mapping[str, Mapping[str, str]],
    default_name: str,
    plan: str | None = None,
) -> Sweep:
    """Build a sweep, and validate the settings of all its runs.

    Args:
        recipes: names or paths.
        overrides: settings of all runs; `run.name` is the name of the sweep.
        runs: settings of each run, by its name.
        default_name: of the sweep, without `run.name`.
        plan: the file that the runs come from.

    Returns:
        The sweep.

    Raises:
        GPT2LabError: a setting is not valid, two runs have the same settings, or the folder is a run directory.
    """
    common = settings.load(recipes, {"run.name": default_name} | dict(overrides))
    if common.run.resume != "auto":
        raise GPT2LabError("run.resume must be auto in a sweep: the same command resumes where it stopped")
    folder = Path(common.run.out_dir) / str(common.run.name)
    if (folder / "config.yaml").exists():
        raise GPT2LabError(f"{folder} is a run, not a sweep; give the sweep another --run.name")
    others = {name: value for name, value in overrides.items() if name not in _FIXED}
    found: dict[str, str] = {}
    built = []
    for name, own in runs.items():
        values = others | dict(own) | {"run.name": name, "run.out_dir": str(folder)}
        config = settings.load(recipes, values)
        content = str({key: value for key, value in config.flat().items() if key != "run.name"})
        if content in found:
            raise GPT2LabError(f"the runs {found[content]} and {name} have the same settings")
        found[content] = name
        built.append(SweepRun(name, own, config))
    return Sweep(folder, tuple(recipes), others, tuple(built), plan)


def list_combinations(axes: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Every combination of the values, by the name of its run.

    Args:
        axes: values by setting.

    Returns:
        The settings of each run, by a name such as `max_lr-1e-3_seed-1`. The last setting changes fastest.
    """
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    last = Counter(name.rpartition(".")[2] for name in axes)
    labels = {name: key if last[key := name.rpartition(".")[2]] == 1 else name for name in axes}
    names = ["_".join(f"{labels[name]}-{_as_file_name(value)}" for name, value in run.items()) for run in combinations]
    count = Counter(names)
    return {
        name if count[name] == 1 and len(name) <= _LONGEST_NAME else _shorten(name, run): run
        for name, run in zip(names, combinations, strict=True)
    }


def _as_file_name(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", value)


def _shorten(name: str, run: Mapping[str, str]) -> str:
    """A name that is unique by a digest of the settings."""
    digest = hashlib.blake2b(repr(sorted(run.items())).encode(), digest_size=4).hexdigest()
    return f"{name[: _LONGEST_NAME - 9]}_{digest}"

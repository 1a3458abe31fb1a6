"""Trackers: TensorBoard, Weights & Biases and trackio, each a view of the record that the run directory keeps.

    metrics.jsonl, samples.jsonl ──what it lacks──▶ tracker ◀──every step from then on── Trainer

A tracker is brought up to date from the record when a run starts, then follows it. So it ends with every step once,
also where the run was killed and went on, branched off another one, or asked for the tracker only half-way. One that
fails is left out with a warning; the run does not depend on it.
"""

import contextlib
import importlib.util
import json
import math
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from gpt2lab import files
from gpt2lab.config import TrackingConfig, load
from gpt2lab.errors import GPT2LabError

Samples = Sequence[Mapping[str, Any]]  # lines of samples.jsonl: step, prompt, seed, text

_FINISH_SECONDS = 60  # the longest that an upload may hold up the end of a run


class _Run(NamedTuple):
    """What a tracker is told of the run that it shows."""

    folder: Path
    recorded: int | None  # the last step of its record, which it goes on from; None: from the beginning
    identity: str  # at services that keep the runs of many folders
    project: str


class Tracker(Protocol):
    """One place where a run's numbers are shown."""

    begin: int  # the first step that it lacks

    def log(self, step: int, values: Mapping[str, float], samples: Samples) -> None:
        """Take one step, whole. Steps come in order."""

    def close(self) -> None:
        """Hand over what is left, and let go."""


def check_installed(settings: TrackingConfig) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        GPT2LabError: it names the setting and what to install.
    """
    for name in _wanted(settings):
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder such as W&B leaves, `wandb/`, is no package
            raise GPT2LabError(f"tracking.{name} needs the package {name}: pip install -e '.[track]'")


def _wanted(settings: TrackingConfig) -> list[str]:
    asked = {"tensorboard": settings.tensorboard, "wandb": settings.wandb != "off", "trackio": settings.trackio}
    return [name for name, wanted in asked.items() if wanted]


class Trackers:
    """All trackers that the settings ask for, as one sink.

    Args:
        folder: the run directory, its records cut back to `recorded`.
        recorded: the last step of the record. None is a run from the beginning, and a new one to every tracker.
        say: hears once of each tracker that fails.
    """

    def __init__(self, settings: TrackingConfig, folder: Path, recorded: int | None, say: Callable[[str], None]):
        self._say, self._trackers = say, dict[str, Tracker]()
        self._samples = folder / "samples.jsonl"
        self._samples_read = _size(self._samples)
        if not (wanted := _wanted(settings)):
            return
        run = _Run(folder, recorded, _identity(folder, recorded), settings.project)
        kinds: dict[str, Callable[[], Tracker]] = {
            "tensorboard": lambda: _TensorBoard(run),
            "wandb": lambda: _WeightsAndBiases(run, settings.wandb),
            "trackio": lambda: _Trackio(run),
        }
        for name in wanted:
            with self._left_out_if_it_fails(name):
                tracker = self._trackers[name] = kinds[name]()
                for step, values, samples in _record(folder):
                    if step >= tracker.begin:
                        tracker.log(step, values, samples)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand on the values of a step, and the samples that were drawn after it."""
        samples = self._new_samples() if self._trackers else []
        for name, tracker in list(self._trackers.items()):
            if step >= tracker.begin:
                with self._left_out_if_it_fails(name):
                    tracker.log(step, values, samples)

    def close(self) -> None:
        """Close each."""
        for name, tracker in list(self._trackers.items()):
            with self._left_out_if_it_fails(name):
                tracker.close()

    def _new_samples(self) -> Samples:
        if _size(self._samples) == self._samples_read:
            return []
        with open(self._samples, encoding="utf-8") as file:
            file.seek(self._samples_read)
            lines = file.readlines()
            self._samples_read = file.tell()
        return [json.loads(line) for line in lines]

    @contextlib.contextmanager
    def _left_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it stumbles over: network, login, disk, a change of its own
            self._trackers.pop(name, None)
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            self._say(f"warning: tracking.{name} is left out from here on: {reason[0]} (metrics.jsonl has every step)")


def _record(folder: Path) -> Iterator[tuple[int, Mapping[str, float], Samples]]:
    """(step, values, samples) of every step that the run directory has."""
    drawn: dict[int, list[Mapping[str, Any]]] = {}
    for sample in _lines(folder / "samples.jsonl"):
        drawn.setdefault(sample["step"], []).append(sample)
    for line in _lines(folder / "metrics.jsonl"):
        step = line.pop("step")
        yield step, {key: math.nan if value is None else value for key, value in line.items()}, drawn.get(step, [])


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _settings_and_environment(folder: Path) -> dict[str, Any]:
    """What a tracker shows beside the curves: the settings by section, versions, hardware and commit."""
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return load([folder / "config.yaml"]).model_dump() | {"environment": environment}


def _identity(folder: Path, recorded: int | None) -> str:
    """Kept beside the record as `tracker_id`; new for a run from the beginning."""
    path = folder / "tracker_id"
    if recorded is not None and path.exists():
        return path.read_text(encoding="utf-8").strip()
    with files.atomic_write(path) as temporary:
        temporary.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _as_markdown(samples: Samples) -> str:
    return "\n\n".join(f"seed {one['seed']}\n\n{_verbatim(one['text'])}" for one in samples)


def _verbatim(text: str) -> str:
    """Text as a Markdown block that keeps its line breaks, whatever is in it."""
    return "    " + text.replace("\n", "\n    ")


class _TensorBoard:
    """Event files in `tensorboard/`. Those of steps that will come again are purged by their reader."""

    def __init__(self, run: _Run):
        from torch.utils.tensorboard import SummaryWriter

        events = run.folder / "tensorboard"
        self.begin = 0 if run.recorded is None or not any(events.glob("events.*")) else run.recorded + 1
        self._writer = SummaryWriter(str(events), purge_step=self.begin)
        for name in ("config.yaml", "environment.json"):
            text = _verbatim((run.folder / name).read_text(encoding="utf-8"))
            self._writer.add_text(name, text, run.recorded or 0)

    def log(self, step: int, values: Mapping[str, float], samples: Samples) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if samples:
            self._writer.add_text("samples", _as_markdown(samples), step)
        self._writer.flush()  # a kill may come at any time

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run at Weights & Biases. Online it knows how far it came; offline each start writes all of it anew."""

    def __init__(self, run: _Run, mode: Literal["off", "online", "offline"]):
        import wandb

        assert mode != "off"
        for superseded in run.folder.glob(f"wandb/offline-run-*-{run.identity}"):
            shutil.rmtree(superseded)
        self._table = wandb.Table
        self._run = wandb.init(
            project=run.project,
            name=run.folder.name,
            id=run.identity,
            dir=str(run.folder),
            mode=mode,
            resume="allow" if mode == "online" else None,
            config=_settings_and_environment(run.folder),
            allow_val_change=True,
            settings=wandb.Settings(finish_timeout=_FINISH_SECONDS),
        )
        self.begin = self._run.step

    def log(self, step: int, values: Mapping[str, float], samples: Samples) -> None:
        columns = ["prompt", "seed", "text"]
        texts = {"samples": self._table(columns, [[one[c] for c in columns] for one in samples])} if samples else {}
        self._run.log({**values, **texts}, step=step, commit=True)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run in trackio's own database, which knows how far it came."""

    def __init__(self, run: _Run):
        import trackio

        self._markdown = trackio.Markdown
        self._run = trackio.init(
            project=run.project,
            name=f"{run.folder.name}-{run.identity}",
            config=_settings_and_environment(run.folder),
            resume="allow",
            embed=False,
        )
        self.begin = self._run._next_step  # the last one it has, plus 1; trackio offers it under no other name

    def log(self, step: int, values: Mapping[str, float], samples: Samples) -> None:
        texts = {"samples": self._markdown(_as_markdown(samples))} if samples else {}
        self._run.log({**values, **texts}, step=step)

    def close(self) -> None:
        self._run.finish()

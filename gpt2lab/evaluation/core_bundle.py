"""The files of CORE: which tasks, their items, and the accuracy of random answers.

    eval_bundle.zip or a folder ──▶ core.yaml ────────────▶ labels, types, examples, delimiters ─┐
                                ├─▶ eval_data/*/*.jsonl ──▶ items ───────────────────────────────┼─▶ Bundle
                                └─▶ eval_meta_data.csv ───▶ random baselines ────────────────────┘

The archive is read where it is: nothing is unpacked, only the files that core.yaml names are read, and what is too
large or points outside is refused.
"""

import csv
import hashlib
import io
import math
import random
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from gpt2lab import resources
from gpt2lab.config import yaml_format
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation import few_shot, jsonl
from gpt2lab.evaluation.few_shot import Item

NAME = "core/eval_bundle.zip"
URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
# Its publisher gives no digest. This one is that of several projects that downloaded it (docs/evaluation.md).
SHA256 = "90a7c19e28ee7a52b4f6e1f87658deb9fde7f63deba2379045bdb1fe9ea5d200"
TASKS = 22

_CONFIG, _BASELINES, _ITEMS = "core.yaml", "eval_meta_data.csv", "eval_data"
_FOLDER = "eval_bundle"  # of the archive
_SHUFFLE_SEED = 1337
# Bytes. The archive has 26 million, its largest file of CORE about 15 million.
_MAX_ARCHIVE = 128 << 20
_MAX_SIZE = {".yaml": 64 << 10, ".csv": 8 << 20, ".jsonl": 128 << 20}
_MAX_SHOTS = 100


class _Settings(BaseModel):
    """A task in core.yaml. Fields that are not declared are ignored."""

    label: jsonl.Text
    dataset_uri: jsonl.Text
    icl_task_type: Literal["multiple_choice", "schema", "language_modeling"]
    num_fewshot: Annotated[list[Annotated[int, Field(ge=0, le=_MAX_SHOTS)]], Field(min_length=1)]
    continuation_delimiter: str = " "


class _Config(BaseModel):
    """The file core.yaml."""

    icl_tasks: Annotated[list[_Settings], Field(min_length=1)]


@dataclass(frozen=True)
class Task:
    """One task: how to ask, and what."""

    label: str
    type: str  # multiple_choice, schema or language_modeling
    shots: int
    delimiter: str
    baseline: float  # accuracy of random answers, or of always the most frequent one; 0 to 1
    items: list[Item]
    sha256: str  # of the file of the items


@dataclass(frozen=True)
class Bundle:
    """What was read, in the order of core.yaml."""

    path: Path
    tasks: list[Task]
    sha256: dict[str, str]  # of core.yaml and eval_meta_data.csv

    def describe(self) -> str:
        """One line: what was read, and whether it has the number of tasks of CORE."""
        items = sum(len(task.items) for task in self.tasks)
        number = f"{len(self.tasks)} tasks" + ("" if len(self.tasks) == TASKS else f" (not the {TASKS} of CORE)")
        return f"CORE: {number}, {items:,} items, {self.path}"


def find(mirror: str | Path | None = None, folder: str | Path | None = None) -> Path:
    """Find the bundle: in `folder`, cached, in the mirror, or by download.

    Args:
        mirror: folder that may have `core/eval_bundle.zip`, used after the cache and before the download.
        folder: searched first, for the files of the bundle, `eval_bundle/` or `eval_bundle.zip`, of any content;
            elsewhere the sha256 is checked.

    Returns:
        The folder or the archive.

    Raises:
        GPT2LabError: it is not available.
    """
    if folder is not None and (place := find_in(Path(folder))):
        return place
    return resources.find(NAME, SHA256, mirror=mirror, url=URL)


def find_in(folder: Path) -> Path | None:
    """Find the bundle in a folder that the user names.

    Args:
        folder: the folder.

    Returns:
        The folder of its files, or the archive; None if there is neither.
    """
    for place in (folder, folder / _FOLDER):
        if (place / _CONFIG).is_file():
            return place
    archive = folder / f"{_FOLDER}.zip"
    return archive if archive.is_file() else None


def load(path: Path, *, limit: int | None = None) -> Bundle:
    """Read and check all tasks.

    Args:
        path: as `find` returns it.
        limit: keep this many items of each task, the first ones after the shuffle; None or 0 means all.

    Returns:
        The tasks. Their items are shuffled with a fixed seed, as nanochat does.

    Raises:
        GPT2LabError: a file is missing, damaged, too large or not of its format, or a task has too few items for its
            examples.
    """
    if path.is_dir():
        return _load(path, lambda name: _read_from_folder(path, name), limit)
    try:
        if path.stat().st_size > _MAX_ARCHIVE:
            raise GPT2LabError(f"{path} has more than {_MAX_ARCHIVE >> 20} MiB, so it is not CORE's bundle")
        with zipfile.ZipFile(path) as archive:
            folder = f"{_FOLDER}/" if f"{_FOLDER}/{_CONFIG}" in archive.namelist() else ""
            return _load(path, lambda name: _read_from_archive(archive, path, folder + name), limit)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        if isinstance(error, GPT2LabError):
            raise
        # Encrypted members are RuntimeErrors, as are unknown compressions (NotImplementedError).
        raise GPT2LabError(f"{path} cannot be read as a zip archive ({error}); download it again") from None


def _load(path: Path, read: Callable[[str], bytes], limit: int | None) -> Bundle:
    config, table = read(_CONFIG), read(_BASELINES)
    baselines = _parse_baselines(table, f"{path}: {_BASELINES}")
    tasks = []
    for settings in _parse_config(config, f"{path}: {_CONFIG}").icl_tasks:
        if settings.label not in baselines:
            raise GPT2LabError(f"{path}: {_BASELINES} has no line for the task {settings.label} of {_CONFIG}")
        name = f"{_ITEMS}/{settings.dataset_uri}"
        content = read(name)
        items = jsonl.parse(content, few_shot.ITEM_TYPES[settings.icl_task_type], f"{path}: {name}")
        random.Random(_SHUFFLE_SEED).shuffle(items)
        items, shots = items[: limit or None], settings.num_fewshot[0]
        if len(items) <= shots:
            remedy = f"raise --limit to {shots + 1} or more" if limit else "use the complete file"
            raise GPT2LabError(f"{settings.label} has {shots} examples in each prompt, of {len(items)} items; {remedy}")
        tasks.append(
            Task(
                label=settings.label,
                type=settings.icl_task_type,
                shots=shots,
                delimiter=settings.continuation_delimiter,
                baseline=baselines[settings.label],
                items=items,
                sha256=_sha256(content),
            )
        )
    return Bundle(path, tasks, {_CONFIG: _sha256(config), _BASELINES: _sha256(table)})


def _parse_config(content: bytes, file: str) -> _Config:
    """The tasks of core.yaml, with different labels."""
    text = _decode(content, file)
    mapping = yaml_format.parse(text, file, simple=True)
    try:
        config = _Config.model_validate(mapping)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise GPT2LabError(f"{file}: {place}: {first['msg']}; correct it or use the published bundle") from None
    labels = [task.label for task in config.icl_tasks]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise GPT2LabError(f"{file}: the label {twice} occurs more than once")
    return config


def _parse_baselines(content: bytes, file: str) -> dict[str, float]:
    """Label -> accuracy of random answers, 0 to 1."""
    baselines = {}
    try:
        for row in csv.DictReader(io.StringIO(_decode(content, file), newline="")):
            baseline = float(row["Random baseline"]) * 0.01
            if not (math.isfinite(baseline) and 0 <= baseline < 1):
                raise ValueError(f"{row['Random baseline']} is not a percentage below 100")
            baselines[row["Eval Task"]] = baseline
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        if isinstance(error, GPT2LabError):
            raise
        problem = f"it has no column {error}" if isinstance(error, KeyError) else error
        raise GPT2LabError(f"{file}: not a table of baselines: {problem}; use the published bundle") from None
    return baselines


def _read_from_folder(folder: Path, name: str) -> bytes:
    limit = _check_name(name, folder)
    try:
        with open(folder / name, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise GPT2LabError(
            f"{folder / name}: cannot read it ({error.strerror}); --data-dir must name the complete, unpacked bundle"
        ) from None
    if len(content) > limit:
        raise _too_large(folder, name, limit)
    return content


def _read_from_archive(archive: zipfile.ZipFile, path: Path, name: str) -> bytes:
    limit = _check_name(name, path)
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise GPT2LabError(f"{path} has no {name}; use the published bundle, {URL}") from None
    if member.file_size > limit:  # zipfile reads no more than this, whatever the compressed data hold
        raise _too_large(path, name, limit)
    return archive.read(member)


def _check_name(name: str, path: Path) -> int:
    """The largest size that the file may have, in bytes; its name must be that of a data file inside the bundle."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or pure.suffix not in _MAX_SIZE:
        raise GPT2LabError(f"{path}: {_CONFIG} names {name!r}, which is not a .jsonl file inside the bundle")
    return _MAX_SIZE[pure.suffix]


def _too_large(path: Path, name: str, limit: int) -> GPT2LabError:
    return GPT2LabError(f"{path}: {name} has more than {limit:,} bytes, so it is not of CORE's bundle")


def _decode(content: bytes, file: Any) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GPT2LabError(f"{file}: not UTF-8 (byte {error.start}); use the published bundle") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""Files that would act if they were trusted: they are refused, and the action does not happen."""

import contextlib
import json
import pickle
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt2lab import files
from tests.faults import runs
from tests.faults.bad_input import run_in_process
from tests.faults.bad_input_cases import write_manifest
from tests.faults.kills import train_uninterrupted
from tests.faults.outcome import Outcome
from tests.faults.runs import EVERY

EXTRA_MEMORY = 200 * 2**20  # bytes


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@contextlib.contextmanager
def limit_memory() -> Iterator[None]:
    """Allow little more memory than is in use: allocating a gigabyte raises MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + EXTRA_MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Checker:
    """Runs commands on files that must be refused.

    Args:
        folder: where the experiment works; a command may change files only in the folder that it runs in.
        created: the file that a canary creates.
    """

    def __init__(self, folder: Path, created: Path):
        self.outcome = Outcome()
        self._folder, self._created = folder, created

    def check(self, name: str, expected: str, arguments: tuple[str, ...], folder: Path) -> None:
        """Run a command in `folder`: it must end in one line that contains `expected`."""
        before = self._modification_times(folder)
        with limit_memory():
            status, error = run_in_process(arguments, folder)
        problems = []
        if status != 2 or error.count("\n") != 1 or expected not in error:
            problems.append(f"{status}: {error[:500]!r}")
        if self._created.exists():
            problems.append("the file was trusted")
            self._created.unlink()
        if self._modification_times(folder) != before:
            problems.append("files elsewhere were changed")
        self.outcome.add(name, problems)

    def _modification_times(self, left_out: Path) -> dict[Path, int]:
        """Those of files: the lock of a run, which is deleted at the end, changes that of its folder."""
        paths = (path for path in self._folder.rglob("*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in paths if left_out not in path.parents}


def refuse_untrusted_files(folder: Path, data: Path) -> Outcome:
    """Try pickles, Python in YAML, paths to other folders, and headers that announce more than fits in memory."""
    good = train_uninterrupted(folder / "good", data, train__max_steps=2 * EVERY)
    created = folder / "created"
    pickled = pickle.dumps(Canary(created))
    pickle.loads(pickled)
    assert created.exists(), "the canary does not work"
    created.unlink()
    checker = Checker(folder, created)

    for file in ("model.safetensors", "optimizer.safetensors", "state.json", "config.json"):
        case = folder / f"pickle in {file}"
        run = runs.make(case, data)
        shutil.copytree(good.path, run.path)
        for checkpoint in run.checkpoints.iterdir():
            (checkpoint / file).write_bytes(pickled)
            files.write_digests(checkpoint)
        expected = "checkpoints" if file == "state.json" else file
        checker.check(f"a pickle as {file}", expected, ("train", "--config", str(run.recipe)), case)

    model = folder / "a model"
    model.mkdir()
    shutil.copy(good.checkpoint(EVERY) / "config.json", model)
    (model / "pytorch_model.bin").write_bytes(pickled)
    sample = ("sample", "--model-checkpoint", str(model))
    checker.check("a model that is a pickle", "pytorch_model.bin", sample, model)

    for name, length in (("more than there is", 1 << 62), ("a gigabyte of header", 1 << 30)):
        (model / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(1000))
        checker.check(f"safetensors: {name}", "model.safetensors", sample, model)
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(1000))
    checker.check("safetensors: a tensor of terabytes", "model.safetensors", sample, model)

    train = ("train", "--config", str(good.recipe), "--data.dir", "data")
    case = folder / "pickle in a shard"
    shutil.copytree(data, case / "data")
    np.save(case / "data" / "train_002.npy", np.array([Canary(created)], dtype=object), allow_pickle=True)
    checker.check("a pickle in a shard", "train_002.npy", train, case)

    other_folders = (
        "../train_000.npy",
        str(data / "train_000.npy"),
        "..",
        "a/../../data/train_000.npy",
        "..\\train_000.npy",
    )
    for number, name in enumerate(other_folders):
        case = folder / f"manifest {number}"
        shutil.copytree(data, case / "data")
        shards = [{"file": name, "split": "train", "tokens": 12_000, "sha256": "0"}]
        write_manifest(shards=shards)(case / "data")
        checker.check(f"manifest.json lists {name}", "manifest.json", train, case)

    for number, tag in enumerate(
        (
            f"!!python/object/apply:os.system ['touch {created}']",
            f"!!python/object/new:pathlib.Path ['{created}']",
            f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{created}']]",
            "!!python/name:os.system",
        )
    ):
        case = folder / f"yaml {number}"
        case.mkdir()
        (case / "more.yaml").write_text(f"run: {{name: {tag}}}\n")
        arguments = ("train", "--config", str(good.recipe), "--config", "more.yaml")
        checker.check(f"YAML: {tag.split()[0]}", "more.yaml", arguments, case)
    return checker.outcome

"""Files that would do something if they were trusted: refused, and what they would have done is not done."""

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
from tests.faults.bad_input import Case, in_process, manifest
from tests.faults.kills import straight
from tests.faults.outcome import Outcome
from tests.faults.runs import EVERY


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """200 MiB more than this process has: whoever believes a header that promises a gigabyte gets a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    present = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (present + 200 * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def canaries(folder: Path, data: Path) -> Outcome:
    """Pickles, Python in YAML, names that lead elsewhere, and a header that promises more than there is memory."""
    good = straight(folder / "good", data, train__max_steps=2 * EVERY)
    outcome = Outcome()
    sung = folder / "sung"

    def ask(name: str, expected: str, *arguments: str, place: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if place not in path.parents}
        with _little_memory():
            status, error = in_process(Case(arguments, {}, place, expected, place))
        wrong = [] if status == 2 and error.count("\n") == 1 and expected in error else [f"{status}: {error[:500]!r}"]
        if sung.exists():
            wrong.append("the canary sang")
            sung.unlink()
        if {path: path.stat().st_mtime_ns for path in folder.rglob("*") if place not in path.parents} != before:
            wrong.append("files elsewhere were touched")
        outcome.trial(name, wrong)

    pickled = pickle.dumps(Canary(sung))
    pickle.loads(pickled)
    assert sung.exists(), "this canary cannot sing"
    sung.unlink()

    for file, expected in (
        ("model.safetensors", "model.safetensors: cannot read it"),
        ("optimizer.safetensors", "optimizer.safetensors: cannot be read"),
        ("state.json", "no checkpoint is intact"),
        ("config.json", "config.json: not valid JSON"),
    ):
        place = folder / f"pickle in {file}"
        run = runs.make(place, data)
        shutil.copytree(good.path, run.path)
        for checkpoint in run.checkpoints.iterdir():
            (checkpoint / file).write_bytes(pickled)
            files.write_digests(checkpoint)
        ask(f"a pickle as {file}", expected, "train", "--config", str(run.recipe), place=place)

    model = folder / "a model"
    model.mkdir()
    shutil.copy(good.checkpoints / f"step_{EVERY:08d}" / "config.json", model)
    (model / "pytorch_model.bin").write_bytes(pickled)
    sample = ("sample", "--model-checkpoint", str(model))
    ask("a model that is a pickle", "pytorch_model.bin: a pickle", *sample, place=model)

    for name, length in (("more than there is", 1 << 62), ("a gigabyte of header", 1 << 30)):
        (model / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(1000))
        ask(f"safetensors: {name}", "model.safetensors", *sample, place=model)
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(1000))
    ask("safetensors: a tensor of terabytes", "model.safetensors", *sample, place=model)

    train = ("train", "--config", str(good.recipe), "--data.dir", "data")
    place = folder / "pickle in a shard"
    shutil.copytree(data, place / "data")
    np.save(place / "data" / "train_002.npy", np.array([Canary(sung)], dtype=object), allow_pickle=True)
    ask("a pickle in a shard", "train_002.npy holds object", *train, place=place)

    elsewhere = (
        "../train_000.npy",
        str(data / "train_000.npy"),
        "..",
        "a/../../data/train_000.npy",
        "..\\train_000.npy",
    )
    for number, name in enumerate(elsewhere):
        place = folder / f"manifest {number}"
        shutil.copytree(data, place / "data")
        manifest(shards=[{"file": name, "split": "train", "tokens": 12_000, "sha256": "0"}])(place / "data")
        ask(f"manifest.json lists {name}", "is not the name of a shard in this folder", *train, place=place)

    for tag in (
        f"!!python/object/apply:os.system ['touch {sung}']",
        f"!!python/object/new:pathlib.Path ['{sung}']",
        f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{sung}']]",
        "!!python/name:os.system",
    ):
        place = folder / f"yaml {tag.split()[0].rpartition('/')[2].replace(':', ' ')}"
        place.mkdir()
        (place / "more.yaml").write_text(f"run: {{name: {tag}}}\n")
        more = ("train", "--config", str(good.recipe), "--config", "more.yaml")
        ask(f"YAML: {tag.split()[0]}", "more.yaml: line 1: not valid YAML", *more, place=place)
    return outcome

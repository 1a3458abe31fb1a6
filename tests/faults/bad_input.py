"""Bad input of every kind, as tables: the answer is one line that names the file or the key, and nothing is lost.

A case changes a copy of something good (a recipe, shards, a run with checkpoints), or gives bad arguments or variables,
and says what the line must contain. All are run in this process, through the command line's `main`; those in REAL are
run as real commands too.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

from gpt2lab import cli, files
from tests.faults import runs
from tests.faults.kills import straight
from tests.faults.outcome import Outcome
from tests.faults.processes import REPOSITORY, free_port
from tests.faults.runs import EVERY

# -- recipes

# Ten lists of ten of the list before: ten billion words, if anybody spelt them out.
LAUGHS = "[&x0 [ha], " + ", ".join(f"&x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 11)) + "]"

RECIPES = {
    "unknown section": ("trian: {max_steps: 3}", "trian"),
    "unknown key": ("train: {max_stps: 3}", "train.max_stps; did you mean train.max_steps?"),
    "text for a number": ("train: {max_steps: many}", "train.max_steps"),
    "fraction of a step": ("train: {max_steps: 1.5}", "train.max_steps"),
    "no steps": ("train: {max_steps: 0}", "train.max_steps"),
    "nothing for a number": ("train: {max_steps: null}", "train.max_steps"),
    "list for a number": ("model: {n_layer: [2]}", "model.n_layer"),
    "mapping for a number": ("model: {n_layer: {a: 2}}", "model.n_layer"),
    "true for a number": ("model: {n_layer: true}", "model.n_layer: takes a number"),
    "number for text": ("run: {out_dir: 3}", "run.out_dir"),
    "date for a number": ("train: {max_steps: 2024-01-01}", "train.max_steps"),
    "impossible date": ("train: {max_steps: 2024-99-99}", "recipe-more.yaml"),
    "five thousand digits": ("train: {max_steps: " + "9" * 5000 + "}", "recipe-more.yaml"),
    "infinity": ("optimizer: {max_lr: .inf}", "optimizer.max_lr"),
    "not a number": ("optimizer: {weight_decay: .nan}", "optimizer.weight_decay"),
    "section is a list": ("train: [1, 2]", "train must hold settings"),
    "file is a list": ("- train", "expected sections"),
    "file is text": ("hello", "expected sections"),
    "list for a key": ("? [a, b]\n: 3", "recipe-more.yaml"),
    "number for a key": ("train: {3: 4}", "train.3"),
    "tab for a space": ("train:\n\tmax_steps: 3", "line 2"),
    "bracket left open": ("train: {max_steps: 3", "not valid YAML"),
    "two documents": ("train: {}\n---\ntrain: {}", "recipe-more.yaml"),
    "key twice": ("train: {max_steps: 3, max_steps: 4}", "duplicate key"),
    "not text at all": (b"\xff\xfe\x00train", "not valid YAML"),
    "NUL": (b"train: {max_steps: 3\0}", "recipe-more.yaml"),
    "unknown anchor": ("train: *nothing", "recipe-more.yaml"),
    "alias of itself": ("train: &a {max_steps: *a}", "train.max_steps"),
    "billion laughs for a section": (f"train: {LAUGHS}", "train must hold settings"),
    "billion laughs for a number": (f"train: {{max_steps: {LAUGHS}}}", "train.max_steps"),
    "unknown tag": ("train: {max_steps: !steps 3}", "recipe-more.yaml"),
    "bad base64": ("train: {max_steps: !!binary '*'}", "recipe-more.yaml"),
    "YAML of the future": ("%YAML 9.0\n---\ntrain: {}", "recipe-more.yaml"),
    "merging a number": ("train: {<<: 3}", "recipe-more.yaml"),
    "heads do not divide": ("model: {n_head: 3}", "n_embd 16 is not divisible by n_head 3"),
    "rates in disorder": ("optimizer: {min_lr: 1}", "optimizer.min_lr 1 is above optimizer.max_lr 0.01"),
    "a step does not divide": ("train: {total_batch_size: 1000}", "train.total_batch_size 1000"),
    "name leads elsewhere": ("run: {name: ../elsewhere}", "run.name"),
    "vocabulary too large": ("model: {vocab_size: 100000}", "model.vocab_size"),
    "evaluation of nothing": ("train: {eval_every: 1, eval_tokens: 3}", "train.eval_tokens 3"),
    "prompt beyond the vocabulary": ("train: {sample_every: 1, sample_prompt: Hello}", "train.sample_prompt"),
    "window beyond the data": ("model: {block_size: 30000}\ntrain: {total_batch_size: 90000}", "too short"),
}

# -- command lines

LINES = {
    "unknown verb": (("trian",), "invalid choice: 'trian'"),
    "no verb": ((), "VERB"),
    "unknown option": (("train", "--train.max_stps", "3"), "train.max_stps"),
    "abbreviation": (("train", "--train.max_s", "3"), "train.max_s"),
    "value missing": (("train", "--train.max_steps"), "--train.max_steps"),
    "value empty": (("train", "--train.max_steps="), "--train.max_steps"),
    "stray word": (("train", "quickstart"), "quickstart"),
    "no such recipe": (("train", "--config", "nowhere.yaml"), "nowhere.yaml"),
    "recipe is a folder": (("train", "--config", "."), "--config ."),
    "unknown precision": (("train", "--system.precision", "fp7"), "--system.precision"),
    "resume from nowhere": (
        ("train", "--config", "RECIPE", "--run.resume", "nowhere"),
        "nowhere: there is no such checkpoint",
    ),
    "seed without end": (("train", "--run.seed", "9" * 30), "--run.seed"),
    "no such device": (("train", "--system.device", "cuda"), "system.device cuda"),
    "sample of nothing": (("sample", "--model-checkpoint", "nowhere/at/all"), "nowhere/at/all"),
    "sample none": (("sample", "--model-checkpoint", "x", "--num-samples", "0"), "--num-samples"),
    "evaluate nothing": (("evaluate",), "--model-checkpoint"),
    "unknown task": (("evaluate", "--model-checkpoint", "x", "--tasks", "chess"), "chess"),
    "report of nothing": (("report", "nowhere"), "nowhere"),
    "verify nothing": (("data", "verify", "nowhere"), "nowhere"),
    "prepare nothing": (("prepare", "files", "--input", "*.nothing"), "*.nothing"),
}

# -- shards

Damage = Callable[[Path], object]


def resaved(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """Save the tokens of a shard again, changed."""
    return lambda folder: np.save(folder / name, change(np.load(folder / name)))


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Change the bytes of a file."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def manifest(**changes: object) -> Damage:
    """Write a manifest that fits the shards, but for the changes."""

    def write(folder: Path) -> None:
        shards = [
            {"file": file.name, "split": file.name.split("_")[0], "tokens": len(np.load(file)), "sha256": "0" * 64}
            for file in sorted(folder.glob("*.npy"))
        ]
        sums = {split: sum(s["tokens"] for s in shards if s["split"] == split) for split in ("train", "val")}
        splits = {split: {"tokens": tokens, "documents": 1} for split, tokens in sums.items()}
        content = {"version": 1, "tokenizer": "gpt2", "source": "here", "splits": splits, "shards": shards} | changes
        (folder / "manifest.json").write_text(json.dumps(content))

    return write


def header(text: str) -> Damage:
    """A .npy file with this header and no data."""
    magic = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1")
    return rewritten("train_001.npy", lambda content: magic)


LISTED = [{"file": "train_000.npy", "split": "train", "tokens": 12_000, "sha256": "0"}]

SHARDS: dict[str, tuple[Damage, str]] = {
    "cut short": (rewritten("train_001.npy", lambda content: content[:-101]), "train_001.npy is truncated"),
    "too long": (rewritten("train_001.npy", lambda content: content + b"ab"), "train_001.npy is too long"),
    "empty file": (rewritten("train_001.npy", lambda content: b""), "train_001.npy is empty"),
    "no tokens": (resaved("train_001.npy", lambda tokens: tokens[:0]), "train_001.npy holds no tokens"),
    "not a shard": (rewritten("train_001.npy", lambda content: b"PK" + content), "train_001.npy"),
    "int32": (resaved("train_001.npy", lambda tokens: tokens.astype(np.int32)), "train_001.npy holds int32"),
    "other byte order": (resaved("train_001.npy", lambda tokens: tokens.astype(">u2")), "train_001.npy holds >u2"),
    "two dimensions": (resaved("train_001.npy", lambda tokens: tokens.reshape(2, -1)), "train_001.npy"),
    "header promises too much": (
        header("{'descr': '<u2', 'fortran_order': False, 'shape': (10**30,), }"),
        "train_001.npy",
    ),
    "header is negative": (header("{'descr': '<u2', 'fortran_order': False, 'shape': (-5,), }"), "train_001.npy"),
    "header is not Python": (header("{'descr': "), "train_001.npy"),
    "ids beyond the vocabulary": (resaved("train_001.npy", lambda tokens: tokens + 300), "train_001.npy: token"),
    "validation too short": (resaved("val_000.npy", lambda tokens: tokens[:10]), "val split too short"),
    "no validation": (lambda folder: (folder / "val_000.npy").unlink(), "no shard of the split 'val'"),
    "no shards": (lambda folder: [file.unlink() for file in folder.iterdir()], "gpt2lab prepare fineweb-edu"),
    "no folder": (shutil.rmtree, "gpt2lab prepare fineweb-edu"),
    "half prepared": (lambda folder: (folder / ".preparing").touch(), "half prepared"),
    "shard is a folder": (lambda folder: (folder / "train_002.npy").mkdir(), "train_002.npy"),
    "shard is a dangling link": (lambda folder: (folder / "train_002.npy").symlink_to("gone"), "train_002.npy"),
    "llm.c, wrong magic": (lambda folder: (folder / "train_002.bin").write_bytes(bytes(2048)), "train_002.bin"),
    "manifest is no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
    "manifest is a list": (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json"),
    "manifest of the future": (manifest(version=2), "manifest.json: version 2"),
    "manifest of another tokenizer": (manifest(tokenizer="llama"), "manifest.json"),
    "manifest does not add up": (
        manifest(splits={s: {"tokens": 1, "documents": 1} for s in ("train", "val")}),
        "manifest.json",
    ),
    "manifest lists text": (manifest(shards=["train_000.npy"]), "manifest.json"),
    "manifest lists too little": (
        manifest(
            shards=LISTED, splits={"train": {"tokens": 12_000, "documents": 1}, "val": {"tokens": 0, "documents": 0}}
        ),
        "is not listed in manifest.json",
    ),
    "manifest lists what is gone": (
        lambda folder: [manifest()(folder), (folder / "train_001.npy").unlink()],
        "train_001.npy is missing",
    ),
}

# -- checkpoints: all of a run's are damaged alike, so that there is none to go back to


def signed(change: Callable[[Path], object]) -> Damage:
    """A change by hand, with digests that match it."""
    return lambda folder: [change(folder), files.write_digests(folder)]


def state(**changes: object) -> Damage:
    """Change entries of state.json by hand."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "state.json").read_text()) | changes
        (folder / "state.json").write_text(json.dumps(content))

    return signed(change)


def tensors(name: str, change: Callable[[dict], object]) -> Damage:
    """Change the tensors of a safetensors file by hand."""
    from safetensors.torch import load_file, save_file

    def rewrite(folder: Path) -> None:
        content = load_file(folder / name)
        change(content)
        save_file(content, folder / name, metadata={"format": "pt"})

    return signed(rewrite)


def model_config(**changes: object) -> Damage:
    """Change entries of config.json by hand."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(content))

    return signed(change)


WEIGHT = "transformer.h.0.attn.c_attn.weight"

CHECKPOINTS: dict[str, tuple[Damage, str]] = {
    "no digests": (lambda folder: (folder / "SHA256SUMS").unlink(), "no checkpoint is intact"),
    "empty digests": (lambda folder: (folder / "SHA256SUMS").write_text(""), "no checkpoint is intact"),
    "digests of something else": (
        lambda folder: (folder / "SHA256SUMS").write_text("hello\n"),
        "no checkpoint is intact",
    ),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "no checkpoint is intact"),
    "no state": (lambda folder: (folder / "state.json").unlink(), "no checkpoint is intact"),
    "empty folder": (lambda folder: [file.unlink() for file in folder.iterdir()], "no checkpoint is intact"),
    "state is no JSON": (signed(lambda folder: (folder / "state.json").write_text("{")), "no checkpoint is intact"),
    "state is a list": (signed(lambda folder: (folder / "state.json").write_text("[]")), "no checkpoint is intact"),
    "state of the future": (state(format=99), "no checkpoint is intact"),
    "step is text": (state(step="six"), "no checkpoint is intact"),
    "step is negative": (state(step=-6), "no checkpoint is intact"),
    "no settings": (state(fingerprint={}), "no checkpoint is intact"),
    "random state cut short": (state(rng={"cpu": "AAAA"}), "state.json"),
    "random state is no text": (state(rng={"cpu": 3}), "state.json"),
    "guard is a list": (state(guard=[]), "state.json"),
    "guard of text": (state(guard={"losses": ["a"], "norms": [], "in_a_row": "x", "skipped": 0}), "state.json"),
    "settings of another model": (
        state(fingerprint={"data": "d", "settings": {"model.n_layer": 3}}),
        "was trained with model.n_layer 3",
    ),
    "weights are no safetensors": (
        signed(lambda folder: (folder / "model.safetensors").write_bytes(b"hello world")),
        "model.safetensors",
    ),
    "a weight is missing": (tensors("model.safetensors", lambda t: t.pop(WEIGHT)), WEIGHT),
    "a weight has another shape": (
        tensors("model.safetensors", lambda t: t.update({WEIGHT: t[WEIGHT][:3].clone()})),
        WEIGHT,
    ),
    "a weight too many": (tensors("model.safetensors", lambda t: t.update({"more": t[WEIGHT].clone()})), "more"),
    "a moment is missing": (
        tensors("optimizer.safetensors", lambda t: t.pop(f"{WEIGHT}.exp_avg")),
        f"{WEIGHT}.exp_avg",
    ),
    "a moment has another shape": (
        tensors("optimizer.safetensors", lambda t: t.update({f"{WEIGHT}.exp_avg": t[f"{WEIGHT}.exp_avg"][:3].clone()})),
        f"{WEIGHT}.exp_avg",
    ),
    "a count is missing": (tensors("optimizer.safetensors", lambda t: t.pop(f"{WEIGHT}.step")), f"{WEIGHT}.step"),
    "a count is a list": (
        tensors("optimizer.safetensors", lambda t: t.update({f"{WEIGHT}.step": t[f"{WEIGHT}.exp_avg"].clone()})),
        f"{WEIGHT}.step",
    ),
    "moments are no safetensors": (
        signed(lambda folder: (folder / "optimizer.safetensors").write_bytes(b"hello world")),
        "optimizer.safetensors",
    ),
    "a model of no layers": (model_config(n_layer=0), "n_layer"),
    "a model of text": (model_config(n_embd="wide"), "config.json"),
    "another kind of model": (model_config(model_type="llama"), "model_type is 'llama'"),
    "another activation": (model_config(activation_function="relu"), "activation_function"),
}

# -- environment variables

ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

VARIABLES: dict[str, tuple[dict[str, str], str]] = {
    "WORLD_SIZE is text": ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
    "WORLD_SIZE is negative": ({"WORLD_SIZE": "-1"}, "WORLD_SIZE"),
    "WORLD_SIZE is 0": ({"WORLD_SIZE": "0", **ADDRESS}, "WORLD_SIZE"),
    "WORLD_SIZE is a fraction": ({"WORLD_SIZE": "1.5"}, "WORLD_SIZE"),
    "RANK is text": ({"RANK": "first"}, "RANK"),
    "RANK is too high": ({"WORLD_SIZE": "2", "RANK": "2", **ADDRESS}, "RANK"),
    "LOCAL_RANK is text": ({"LOCAL_RANK": "x"}, "LOCAL_RANK"),
    "no address": ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR"),
    "an address that cannot be": (
        {"WORLD_SIZE": "2", "RANK": "1", **ADDRESS, "MASTER_ADDR": "10.0.0..1"},
        "10.0.0..1",
    ),
    "MASTER_PORT is text": ({"WORLD_SIZE": "2", "RANK": "0", **ADDRESS, "MASTER_PORT": "http"}, "MASTER_PORT"),
    "MASTER_PORT is too high": ({"WORLD_SIZE": "2", "RANK": "0", **ADDRESS, "MASTER_PORT": "99999"}, "MASTER_PORT"),
    "nobody answers": ({"WORLD_SIZE": "2", "RANK": "1", **ADDRESS, "MASTER_PORT": "1"}, "127.0.0.1:1"),
    "alone": ({"WORLD_SIZE": "2", "RANK": "0", **ADDRESS}, "rank 1 of 2 did not start within"),
}

# -- asking them


class Case(NamedTuple):
    """A command line and the variables it runs under, in a folder; what its line must say; what it must not change."""

    arguments: tuple[str, ...]
    variables: Mapping[str, str]
    folder: Path
    expected: str
    kept: Path


REAL = (
    "recipe: unknown key",
    "recipe: impossible date",
    "recipe: billion laughs for a number",
    "line: no such recipe",
    "line: resume from nowhere",
    "shards: cut short",
    "shards: manifest lists what is gone",
    "checkpoint: empty weights",
    "checkpoint: a moment is missing",
    "variable: nobody answers",
)


def bad_inputs(folder: Path, data: Path, real: tuple[str, ...] = REAL) -> Outcome:
    """Every case in this process, those of `real` as real commands as well, two at a time."""
    cases = dict(_cases(folder, data))
    before = {name: _digest(case.kept) for name, case in cases.items()}
    outcome = Outcome()
    with ThreadPoolExecutor(2) as pool:
        commands = {name: pool.submit(_as_command, cases[name]) for name in real}
        answers = {f"{name}, as a command": future.result() for name, future in commands.items()}
    answers |= {name: in_process(case) for name, case in cases.items()}
    for name, (status, error) in answers.items():
        case = cases[name.removesuffix(", as a command")]
        wrong = [] if status == 2 else [f"exit status {status}"]
        if (
            not error.startswith("gpt2lab: ")
            or error.count("\n") != 1
            or len(error) > 1000
            or case.expected not in error
        ):
            wrong.append(f"it says {error[:500]!r}")
        if _digest(case.kept) != before[name.removesuffix(", as a command")]:
            wrong.append("something was lost")
        outcome.trial(name, wrong)
    kinds = Counter(name.partition(":")[0] for name in cases)
    outcome.figures = (
        ", ".join(f"{count} of {kind}" for kind, count in kinds.items()) + f"; {len(real)} as real commands"
    )
    return outcome


def _cases(folder: Path, data: Path) -> Iterator[tuple[str, Case]]:
    """Every case under its name, with what it damages made and damaged."""
    good = straight(folder / "good", data, train__max_steps=2 * EVERY)
    runs.make(folder / "good", data)  # the recipe wants more steps: there is something left to do
    train = ("train", "--config", str(good.recipe), "--system.start_timeout", "1")
    for name, (text, expected) in RECIPES.items():
        place = folder / "recipes" / name
        place.mkdir(parents=True)
        (place / "recipe-more.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        yield f"recipe: {name}", Case((*train, "--config", "recipe-more.yaml"), {}, place, expected, good.path)
    for name, (arguments, expected) in LINES.items():
        arguments = tuple(str(good.recipe) if word == "RECIPE" else word for word in arguments)
        yield f"line: {name}", Case(arguments, {}, folder, expected, good.path)
    for name, (damage, expected) in SHARDS.items():
        place = folder / "shards" / name
        shutil.copytree(data, place / "data")
        damage(place / "data")
        arguments = (*train, "--data.dir", "data", "--data.source", "fineweb-edu", "--train.eval_every", "1")
        yield f"shards: {name}", Case(arguments, {}, place, expected, good.path)
    for name, (damage, expected) in CHECKPOINTS.items():
        place = folder / "checkpoints" / name
        run = runs.make(place, data)
        shutil.copytree(good.path, run.path)
        for one in run.checkpoints.iterdir():
            damage(one)
        arguments = ("train", "--config", str(run.recipe))
        yield f"checkpoint: {name}", Case(arguments, {}, place, expected, run.path)
    for name, (variables, expected) in VARIABLES.items():
        yield f"variable: {name}", Case(train, variables, folder, expected, good.path)


def in_process(case: Case) -> tuple[int | str, str]:
    """Exit status and standard error of the command line's `main`; a traceback is what would be printed of it."""
    error = io.StringIO()
    streams = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error)
    with streams[0], streams[1], contextlib.chdir(case.folder), mock.patch.dict(os.environ, case.variables):
        try:
            return cli.main(case.arguments), error.getvalue()
        except BaseException as bug:
            return f"{type(bug).__name__}: {bug}", error.getvalue()


def _as_command(case: Case) -> tuple[int, str]:
    """Exit status and standard error of the real command."""
    done = subprocess.run(
        [sys.executable, "-m", "gpt2lab", *case.arguments],
        cwd=case.folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | dict(case.variables),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def _digest(folder: Path) -> str:
    """Of a run's records and checkpoints."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        if file.name not in (".lock", "environment.json", "config.yaml", "events.jsonl"):
            digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()

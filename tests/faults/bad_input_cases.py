"""The table of bad input: what is wrong, the command that meets it, and the key or file that the message must name.

Every case starts from a folder of its own that holds a good state: `data/` (shards), `recipe.yaml`, `runs/tiny` (a run
with two checkpoints that `recipe.yaml` continues) and `runs/empty` (a run without checkpoints). A case may change that
folder, the command line or the environment. `tests/faults/bad_input.py` runs the cases.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt2lab import files

Change = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Args:
        name: `SECTION: what is wrong`.
        arguments: the command line without `gpt2lab`. A `PORT` in it or in `variables` becomes a free port.
        expected: text that the message must contain, in any case: a key, an option, a variable or a file name.
        change: applied to the folder of the case before the command runs.
        variables: environment variables to set.
    """

    name: str
    arguments: tuple[str, ...]
    expected: str
    change: Change = lambda folder: None
    variables: Mapping[str, str] = field(default_factory=dict)


TRAIN = ("train", "--config", "recipe.yaml", "--system.start_timeout", "1")

# -- recipes: a second recipe file is bad

# Each list holds the one before ten times: ten billion words if all aliases were expanded.
BILLION_LAUGHS = "[&x0 [ha], " + ", ".join(f"&x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 11)) + "]"

RECIPES: dict[str, tuple[str | bytes, str]] = {
    "unknown section": ("trian: {max_steps: 3}", "did you mean train"),
    "unknown key": ("train: {max_stps: 3}", "did you mean train.max_steps"),
    "old and new name of a key": ("guard: {deviations: 3, spike_sigma: 3}", "guard.spike_sigma"),
    "key of another section": ("train: {max_lr: 1}", "did you mean optimizer.max_lr"),
    "text for a number": ("train: {max_steps: many}", "train.max_steps"),
    "fraction of a step": ("train: {max_steps: 1.5}", "train.max_steps"),
    "no steps": ("train: {max_steps: 0}", "train.max_steps"),
    "negative steps": ("train: {max_steps: -3}", "train.max_steps"),
    "nothing for a number": ("train: {max_steps: null}", "train.max_steps"),
    "list for a number": ("model: {n_layer: [2]}", "model.n_layer"),
    "mapping for a number": ("model: {n_layer: {a: 2}}", "model.n_layer"),
    "true for a number": ("model: {n_layer: true}", "model.n_layer"),
    "number for text": ("run: {out_dir: 3}", "run.out_dir"),
    "date for a number": ("train: {max_steps: 2024-01-01}", "train.max_steps"),
    "impossible date": ("train: {max_steps: 2024-99-99}", "more.yaml"),
    "five thousand digits": ("train: {max_steps: " + "9" * 5000 + "}", "more.yaml"),
    "infinity": ("optimizer: {max_lr: .inf}", "optimizer.max_lr"),
    "not a number": ("optimizer: {weight_decay: .nan}", "optimizer.weight_decay"),
    "beta of one": ("optimizer: {beta2: 1.0}", "optimizer.beta2"),
    "unknown size": ("model: {size: huge}", "model.size"),
    "list for a size": ("model: {size: [1]}", "model.size"),
    "unknown precision": ("system: {precision: int4}", "system.precision"),
    "seed beyond 64 bits": ("run: {seed: 99999999999999999999}", "run.seed"),
    "NUL in a path": ('run: {out_dir: "a\\0b"}', "run.out_dir"),
    "empty prompt": ("train: {sample_prompt: ''}", "train.sample_prompt"),
    "section is a list": ("train: [1, 2]", "train"),
    "section is a number": ("train: 3", "train"),
    "file is a list": ("- train", "more.yaml"),
    "file is text": ("hello", "more.yaml"),
    "list for a key": ("? [a, b]\n: 3", "more.yaml"),
    "number for a key": ("train: {3: 4}", "train.3"),
    "tab for a space": ("train:\n\tmax_steps: 3", "more.yaml: line 2"),
    "bracket left open": ("train: {max_steps: 3", "more.yaml"),
    "nested too deep": ("train: " + "[" * 800 + "]" * 800, "more.yaml"),
    "two documents": ("train: {}\n---\ntrain: {}", "more.yaml"),
    "key twice": ("train:\n  max_steps: 3\n  max_steps: 4", "more.yaml: line 3"),
    "section twice": ("train: {max_steps: 3}\ntrain: {max_steps: 3}", "more.yaml: line 2"),
    "not text at all": (b"\xff\xfe\x00train", "more.yaml"),
    "NUL": (b"train: {max_steps: 3\0}", "more.yaml"),
    "unknown anchor": ("train: *nothing", "more.yaml"),
    "alias of itself": ("train: &a {max_steps: *a}", "train.max_steps"),
    "billion laughs for a section": (f"train: {BILLION_LAUGHS}", "train"),
    "billion laughs for a number": (f"train: {{max_steps: {BILLION_LAUGHS}}}", "train.max_steps"),
    "unknown tag": ("train: {max_steps: !steps 3}", "more.yaml"),
    "bad base64": ("train: {max_steps: !!binary '*'}", "more.yaml"),
    "later version of YAML": ("%YAML 9.0\n---\ntrain: {}", "more.yaml"),
    "merging a number": ("train: {<<: 3}", "more.yaml"),
    "heads do not divide": ("model: {n_head: 3}", "n_head 3"),
    "rates in the wrong order": ("optimizer: {min_lr: 1}", "optimizer.min_lr"),
    "a step does not divide": ("train: {total_batch_size: 1000}", "train.total_batch_size"),
    "name is a path": ("run: {name: ../elsewhere}", "run.name"),
    "vocabulary too large": ("model: {vocab_size: 100000}", "model.vocab_size"),
    "evaluation without tokens": ("train: {eval_every: 1, eval_tokens: 3}", "train.eval_tokens"),
    "prompt beyond the vocabulary": ("train: {sample_every: 1, sample_prompt: Hello}", "train.sample_prompt"),
    "context longer than the data": ("model: {block_size: 30000}\ntrain: {total_batch_size: 90000}", "block_size"),
}

# -- command lines

ARGUMENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown verb": (("trian",), "trian"),
    "no verb": ((), "VERB"),
    "unknown option": (("train", "--train.max_stps", "3"), "did you mean train.max_steps"),
    "unknown option, equals sign": (("train", "--optimiser.max_lr=3"), "did you mean optimizer.max_lr"),
    "abbreviation": (("train", "--train.max_s", "3"), "did you mean train.max_steps"),
    "value missing": (("train", "--train.max_steps"), "--train.max_steps"),
    "value empty": (("train", "--train.max_steps="), "--train.max_steps"),
    "text for a number": (("train", "--train.max_steps", "many"), "--train.max_steps"),
    "out of range": (("train", "--train.max_steps", "-1"), "--train.max_steps"),
    "does not divide": (("train", "--train.total_batch_size", "3000"), "train.total_batch_size"),
    "stray word": (("train", "quickstart"), "quickstart"),
    "no such recipe": (("train", "--config", "nowhere.yaml"), "nowhere.yaml"),
    "recipe is a folder": (("train", "--config", "."), "--config ."),
    "unknown precision": (("train", "--system.precision", "fp7"), "--system.precision"),
    "resume from nowhere": ((*TRAIN, "--run.resume", "nowhere"), "nowhere"),
    "seed too large": (("train", "--run.seed", "9" * 30), "--run.seed"),
    "unknown device": (("train", "--system.device", "tpu"), "--system.device"),
    "no such device here": (("train", "--system.device", "mps"), "system.device mps"),
    "no data of this source": (("train", "--data.source", "fineweb-edu", "--data.dir", "none here"), "'none here'"),
    "sample: no such model": (("sample", "--model-checkpoint", "nowhere/at/all"), "nowhere/at/all"),
    "sample: no samples": (("sample", "--model-checkpoint", "x", "--num-samples", "0"), "--num-samples"),
    "sample: no new tokens": (("sample", "--model-checkpoint", "x", "--max-new-tokens", "0"), "--max-new-tokens"),
    "sample: negative top-k": (("sample", "--model-checkpoint", "x", "--top-k", "-3"), "--top-k"),
    "evaluate: no model": (("evaluate",), "--model-checkpoint"),
    "evaluate: unknown task": (("evaluate", "--model-checkpoint", "x", "--tasks", "chess"), "chess"),
    "evaluate: task with a typing error": (("evaluate", "--model-checkpoint", "x", "--tasks", "piqua"), "piqa"),
    "evaluate: no such model": (("evaluate", "--model-checkpoint", "nowhere/at/all"), "nowhere/at/all"),
    "evaluate: negative limit": (("evaluate", "--model-checkpoint", "x", "--limit", "-3"), "--limit"),
    "bench: unknown rival": (("bench", "--rivals", "megatron"), "megatron"),
    "bench: no rounds": (("bench", "--rounds", "0"), "--rounds"),
    "app: no model": (("app",), "--trained"),
    "app: no such model": (("app", "--trained", "nowhere/at/all"), "nowhere/at/all"),
    "app: no checkpoint yet": (("app", "--trained", "runs/empty"), "runs/empty"),
    "app: not a port": (("app", "--trained", "x", "--port", "70000"), "70000"),
    "export: unknown precision": (
        ("export", "--model-checkpoint", "x", "--out", "out", "--dtype", "int8"),
        "--dtype",
    ),
    "export: no model": (
        ("export", "--model-checkpoint", "data", "--out", "out"),
        "data is a data folder, not a model",
    ),
    "report: no run": (("report",), "RUN"),
    "report: no such run": (("report", "nowhere"), "nowhere"),
    "report: price is not a number": (("report", "runs/tiny", "--price-per-hour", "nan"), "nan"),
    "report: negative price": (("report", "runs/tiny", "--price-per-hour", "-1"), "-1"),
    "report: out is below a file": (
        ("report", "runs/tiny", "--out", "runs/tiny/config.yaml/page.html"),
        "runs/tiny/config.yaml/",
    ),
    "report: out is a folder": (("report", "runs/tiny", "--out", "data"), "--out data"),
    "verify: no such folder": (("data", "verify", "nowhere"), "nowhere"),
    "data: unknown action": (("data", "look", "nowhere"), "look"),
    "prepare: no source": (("prepare",), "SOURCE"),
    "prepare: unknown source": (("prepare", "novels"), "novels"),
    "prepare: no input": (("prepare", "files"), "--input"),
    "prepare: no match": (("prepare", "files", "--input", "*.nothing"), "*.nothing"),
    "prepare: size is not a number": (("prepare", "stdlib", "--shard-size", "lots"), "lots"),
    "prepare: no workers": (("prepare", "stdlib", "--workers", "0"), "--workers"),
    "prepare: no such mirror": (("prepare", "fineweb-edu", "--mirror", "nowhere"), "--mirror nowhere"),
    "prepare: two inputs": (("prepare", "pretokenized", "--input", "a", "b"), "--input"),
    "prepare: abbreviation": (("prepare", "stdlib", "--work", "2"), "--work"),
}

# -- shards


def save_again(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change the tokens of a shard."""
    return lambda folder: np.save(folder / name, change(np.load(folder / name)))


def change_bytes(name: str, change: Callable[[bytes], bytes]) -> Change:
    """Change the bytes of a file."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def write_manifest(**changes: object) -> Change:
    """Write a manifest that fits the shards, except for the changes."""

    def write(folder: Path) -> None:
        lengths = {file.name: len(np.load(file)) for file in sorted(folder.glob("*.npy"))}
        shards = [
            {"file": name, "split": name.split("_")[0], "tokens": tokens, "sha256": "0" * 64}
            for name, tokens in lengths.items()
        ]
        sums = {
            split: sum(tokens for name, tokens in lengths.items() if name.startswith(split))
            for split in ("train", "val")
        }
        splits = {split: {"tokens": tokens, "documents": 1} for split, tokens in sums.items()}
        content = {"version": 1, "tokenizer": "gpt2", "source": "here", "splits": splits, "shards": shards} | changes
        (folder / "manifest.json").write_text(json.dumps(content))

    return write


def write_header(text: str) -> Change:
    """Write a .npy file that has this header and no data."""
    magic = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1")
    return change_bytes("train_001.npy", lambda content: magic)


def remove_files(folder: Path) -> None:
    """Remove the files of a folder."""
    for file in folder.iterdir():
        file.unlink()


def list_removed_shard(folder: Path) -> None:
    """Write a manifest, then remove a shard that it lists."""
    write_manifest()(folder)
    (folder / "train_001.npy").unlink()


TOO_FEW = {
    "shards": [{"file": "train_000.npy", "split": "train", "tokens": 12_000, "sha256": "0"}],
    "splits": {"train": {"tokens": 12_000, "documents": 1}, "val": {"tokens": 0, "documents": 0}},
}
WRONG_SUMS = {split: {"tokens": 1, "documents": 1} for split in ("train", "val")}

SHARDS: dict[str, tuple[Change, str]] = {
    "truncated": (change_bytes("train_001.npy", lambda content: content[:-101]), "train_001.npy"),
    "too long": (change_bytes("train_001.npy", lambda content: content + b"ab"), "train_001.npy"),
    "empty file": (change_bytes("train_001.npy", lambda content: b""), "train_001.npy"),
    "no tokens": (save_again("train_001.npy", lambda tokens: tokens[:0]), "train_001.npy"),
    "not a shard": (change_bytes("train_001.npy", lambda content: b"PK" + content), "train_001.npy"),
    "int32": (save_again("train_001.npy", lambda tokens: tokens.astype(np.int32)), "train_001.npy"),
    "other byte order": (save_again("train_001.npy", lambda tokens: tokens.astype(">u2")), "train_001.npy"),
    "two dimensions": (save_again("train_001.npy", lambda tokens: tokens.reshape(2, -1)), "train_001.npy"),
    "header with a huge shape": (
        write_header("{'descr': '<u2', 'fortran_order': False, 'shape': (10**30,), }"),
        "train_001.npy",
    ),
    "header with a negative shape": (
        write_header("{'descr': '<u2', 'fortran_order': False, 'shape': (-5,), }"),
        "train_001.npy",
    ),
    "header is not Python": (write_header("{'descr': "), "train_001.npy"),
    "ids beyond the vocabulary": (save_again("train_001.npy", lambda tokens: tokens + 300), "train_001.npy"),
    "validation too short": (save_again("val_000.npy", lambda tokens: tokens[:10]), "val"),
    "no validation": (lambda data: (data / "val_000.npy").unlink(), "other data"),  # the end of train is held out
    "no shards": (remove_files, "--out data"),
    "no folder": (shutil.rmtree, "--out data"),
    "preparation not finished": (lambda data: (data / ".preparing").touch(), "data"),
    "shard is a folder": (lambda data: (data / "train_002.npy").mkdir(), "train_002.npy"),
    "shard is a dangling link": (lambda data: (data / "train_002.npy").symlink_to("gone"), "train_002.npy"),
    "llm.c, wrong magic": (lambda data: (data / "train_002.bin").write_bytes(bytes(2048)), "train_002.bin"),
    "manifest is not JSON": (lambda data: (data / "manifest.json").write_text("{"), "manifest.json"),
    "manifest is a list": (lambda data: (data / "manifest.json").write_text("[]"), "manifest.json"),
    "manifest of a later version": (write_manifest(version=2), "manifest.json"),
    "manifest of another tokenizer": (write_manifest(tokenizer="llama"), "manifest.json"),
    "manifest with wrong sums": (write_manifest(splits=WRONG_SUMS), "manifest.json"),
    "manifest lists text": (write_manifest(shards=["train_000.npy"]), "manifest.json"),
    "manifest lists too little": (write_manifest(**TOO_FEW), "train_001.npy"),
    "manifest lists a missing file": (list_removed_shard, "train_001.npy"),
}

# -- checkpoints: both of a run are changed alike, so that there is no intact one to fall back to


def with_digests(change: Change) -> Change:
    """Change a checkpoint and make its digests match."""

    def write(checkpoint: Path) -> None:
        change(checkpoint)
        files.write_digests(checkpoint)

    return write


def change_json(name: str, **changes: object) -> Change:
    """Change entries of a JSON file of a checkpoint; its digests match."""

    def write(checkpoint: Path) -> None:
        content = json.loads((checkpoint / name).read_text()) | changes
        (checkpoint / name).write_text(json.dumps(content))

    return with_digests(write)


def change_tensors(name: str, change: Callable[[dict], object]) -> Change:
    """Change the tensors of a safetensors file of a checkpoint; its digests match."""
    from safetensors.torch import load_file, save_file

    def write(checkpoint: Path) -> None:
        content = load_file(checkpoint / name)
        change(content)
        save_file(content, checkpoint / name, metadata={"format": "pt"})

    return with_digests(write)


def write_bytes(name: str, content: bytes) -> Change:
    """Replace a file of a checkpoint; its digests match."""
    return with_digests(lambda checkpoint: (checkpoint / name).write_bytes(content))


WEIGHT = "transformer.h.0.attn.c_attn.weight"
MOMENT = f"{WEIGHT}.exp_avg"
COUNT = f"{WEIGHT}.step"
OPTIMIZER = "optimizer.safetensors"
OTHER_MODEL = {"data": "d", "settings": {"model.n_layer": 3}}
GUARD_OF_TEXT = {"losses": ["a"], "norms": [], "in_a_row": "x", "skipped": 0}

CHECKPOINTS: dict[str, tuple[Change, str]] = {
    "no digests": (lambda checkpoint: (checkpoint / "SHA256SUMS").unlink(), "runs/tiny/checkpoints"),
    "empty digests": (lambda checkpoint: (checkpoint / "SHA256SUMS").write_text(""), "runs/tiny/checkpoints"),
    "digests of other files": (
        lambda checkpoint: (checkpoint / "SHA256SUMS").write_text("hello\n"),
        "runs/tiny/checkpoints",
    ),
    "empty weights": (
        lambda checkpoint: (checkpoint / "model.safetensors").write_bytes(b""),
        "runs/tiny/checkpoints",
    ),
    "no state": (lambda checkpoint: (checkpoint / "state.json").unlink(), "runs/tiny/checkpoints"),
    "empty folder": (remove_files, "runs/tiny/checkpoints"),
    "state is not JSON": (write_bytes("state.json", b"{"), "runs/tiny/checkpoints"),
    "state is a list": (write_bytes("state.json", b"[]"), "runs/tiny/checkpoints"),
    "state of a later version": (change_json("state.json", format=99), "runs/tiny/checkpoints"),
    "step is text": (change_json("state.json", step="six"), "runs/tiny/checkpoints"),
    "step is negative": (change_json("state.json", step=-6), "runs/tiny/checkpoints"),
    "no settings": (change_json("state.json", fingerprint={}), "runs/tiny/checkpoints"),
    "random state too short": (change_json("state.json", rng={"cpu": "AAAA"}), "state.json"),
    "random state is not text": (change_json("state.json", rng={"cpu": 3}), "state.json"),
    "guard is a list": (change_json("state.json", guard=[]), "state.json"),
    "guard of text": (change_json("state.json", guard=GUARD_OF_TEXT), "state.json"),
    "settings of another model": (change_json("state.json", fingerprint=OTHER_MODEL), "model.n_layer"),
    "weights are not safetensors": (write_bytes("model.safetensors", b"hello world"), "model.safetensors"),
    "a weight is missing": (change_tensors("model.safetensors", lambda t: t.pop(WEIGHT)), WEIGHT),
    "a weight has another shape": (
        change_tensors("model.safetensors", lambda t: t.update({WEIGHT: t[WEIGHT][:3].clone()})),
        WEIGHT,
    ),
    "a weight too many": (change_tensors("model.safetensors", lambda t: t.update(extra=t[WEIGHT].clone())), "extra"),
    "a moment is missing": (change_tensors(OPTIMIZER, lambda t: t.pop(MOMENT)), MOMENT),
    "a moment has another shape": (
        change_tensors(OPTIMIZER, lambda t: t.update({MOMENT: t[MOMENT][:3].clone()})),
        MOMENT,
    ),
    "a count is missing": (change_tensors(OPTIMIZER, lambda t: t.pop(COUNT)), COUNT),
    "a count is a matrix": (change_tensors(OPTIMIZER, lambda t: t.update({COUNT: t[MOMENT].clone()})), COUNT),
    "moments are not safetensors": (write_bytes(OPTIMIZER, b"hello world"), OPTIMIZER),
    "a model without layers": (change_json("config.json", n_layer=0), "n_layer"),
    "text for the width": (change_json("config.json", n_embd="wide"), "config.json"),
    "another model type": (change_json("config.json", model_type="llama"), "model_type"),
    "another activation": (change_json("config.json", activation_function="relu"), "activation_function"),
}

# -- environment variables

ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "PORT"}
FIRST = {"WORLD_SIZE": "2", "RANK": "0", **ADDRESS}
SECOND = {"WORLD_SIZE": "2", "RANK": "1", **ADDRESS}

VARIABLES: dict[str, tuple[dict[str, str], str]] = {
    "WORLD_SIZE is text": ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
    "WORLD_SIZE is negative": ({"WORLD_SIZE": "-1"}, "WORLD_SIZE"),
    "WORLD_SIZE is 0": ({"WORLD_SIZE": "0", **ADDRESS}, "WORLD_SIZE"),
    "WORLD_SIZE is a fraction": ({"WORLD_SIZE": "1.5"}, "WORLD_SIZE"),
    "RANK is text": ({"RANK": "first"}, "RANK"),
    "RANK is too high": ({"WORLD_SIZE": "2", "RANK": "2", **ADDRESS}, "RANK"),
    "LOCAL_RANK is text": ({"LOCAL_RANK": "x"}, "LOCAL_RANK"),
    "no address": ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR"),
    "impossible address": (SECOND | {"MASTER_ADDR": "10.0.0..1"}, "10.0.0..1"),
    "MASTER_PORT is text": (FIRST | {"MASTER_PORT": "http"}, "MASTER_PORT"),
    "MASTER_PORT is too high": (FIRST | {"MASTER_PORT": "99999"}, "MASTER_PORT"),
    "no answer": (SECOND | {"MASTER_PORT": "1"}, "127.0.0.1:1"),
    "the other rank is missing": (FIRST, "rank 1"),
}


def _list_cases() -> list[Case]:
    cases = []
    for name, (text, expected) in RECIPES.items():
        content = text if isinstance(text, bytes) else text.encode()
        with_recipe = (*TRAIN, "--config", "more.yaml")
        cases.append(Case(f"recipe: {name}", with_recipe, expected, _write_recipe(content)))
    cases += [Case(f"arguments: {name}", *entry) for name, entry in ARGUMENTS.items()]
    for name, (change, expected) in SHARDS.items():
        with_source = (*TRAIN, "--data.source", "fineweb-edu", "--train.eval_every", "1")
        cases.append(Case(f"shards: {name}", with_source, expected, _change_data(change)))
    for name, (change, expected) in CHECKPOINTS.items():
        cases.append(Case(f"checkpoint: {name}", TRAIN, expected, _change_checkpoints(change)))
    for name, (variables, expected) in VARIABLES.items():
        cases.append(Case(f"variable: {name}", TRAIN, expected, variables=variables))
    return cases


def _write_recipe(content: bytes) -> Change:
    return lambda folder: (folder / "more.yaml").write_bytes(content)


def _change_data(change: Change) -> Change:
    return lambda folder: change(folder / "data")


def _change_checkpoints(change: Change) -> Change:
    return lambda folder: [change(path) for path in (folder / "runs" / "tiny" / "checkpoints").iterdir()]


CASES = {case.name: case for case in _list_cases()}

# Run as real commands too.
REAL_COMMANDS = (
    "recipe: unknown key",
    "arguments: no such recipe",
    "shards: truncated",
    "recipe: impossible date",
    "recipe: billion laughs for a number",
    "arguments: resume from nowhere",
    "shards: manifest lists a missing file",
    "checkpoint: empty weights",
    "checkpoint: a moment is missing",
    "variable: no answer",
)

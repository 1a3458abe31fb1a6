"""Every verb with the base requirements alone: it works, or it is one line with the command that installs the rest."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2lab import GPT2, GPT2Config, cli
from gpt2lab.errors import GPT2LabError
from gpt2lab.packages import require
from tests.data import corpora
from tests.test_cli import corpus
from tests.test_readme import SHRUNK_TRAINING

pytestmark = pytest.mark.slow  # a new process imports torch, trains and evaluates

REPOSITORY = Path(__file__).parent.parent
TRAIN = ["train", *SHRUNK_TRAINING, "--data.dir", "data/txt"]

# Each command, and the extra that it needs, or the package if it is in no extra; None: it works.
CASES: list[tuple[str, str | None]] = [
    ("prepare files --input txt --out data/txt", None),
    ("prepare files --input a.jsonl --out data/jsonl", None),
    ("prepare files --input a.jsonl.gz --out data/gz", None),
    ("prepare files --input a.jsonl.zst --out data/zst", "data"),
    ("prepare files --input a.parquet --out data/parquet", "data"),
    ("prepare fineweb-edu --mirror mirror --out data/fineweb", "data"),
    ("prepare files --input txt --out data/ray --executor ray", "ray"),
    ("prepare files --input txt --out data/slurm --executor slurm --slurm partition=cpu", "slurm"),
    ("prepare files --input txt --out data/gigatoken --tokenizer gigatoken", "data"),
    ("prepare pretokenized --input data/txt --out data/again", None),
    ("data inspect data/txt", None),
    ("data verify data/txt", None),
    (shlex.join([*TRAIN, "--run.name", "tiny"]), None),
    (shlex.join([*TRAIN, "--run.name", "board", "--tracking.tensorboard"]), "track"),
    (shlex.join([*TRAIN, "--run.name", "wandb", "--tracking.wandb", "offline"]), "track"),
    (shlex.join([*TRAIN, "--run.name", "trackio", "--tracking.trackio"]), "track"),
    ("evaluate --model-checkpoint runs/tiny --tasks everyday --limit 2", None),
    ("evaluate --model-checkpoint runs/tiny --tasks lm_eval:piqa", "eval"),
    ("sample --model-checkpoint runs/tiny --prompt a --max-new-tokens 2", None),
    ("app --trained runs/tiny", "app"),
    ("report runs/tiny", None),
    ("sweep --over run.seed=1,2 --print", None),
    ("export --model-checkpoint runs/tiny --out out/tiny", None),
    ("import a.pt --out out/imported", None),
    ("plan --config minigpt --gpu a100-40gb --gpus 6", None),
    ("scaling fit points.csv --bootstraps 40", None),
    ("settings", None),
    ("settings --schema", None),
]
LEFT_BEHIND = ("data/zst", "data/parquet", "data/fineweb", "data/ray", "data/slurm", "data/gigatoken")


def run(commands: list[list[str]], folder: Path) -> list[dict]:
    """Run commands in the base environment, in one process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.base_environment"],
        cwd=folder,
        env={"PATH": "", "HOME": str(folder), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    (folder / "txt").mkdir()
    corpus(folder / "txt")
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        corpora.jsonl(folder / name, corpora.texts(50))
    corpora.parquet(folder / "a.parquet", corpora.texts(50))
    corpora.mirror(folder / "mirror", files=1)
    model = GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=8))
    torch.save({"model": model.state_dict(), "config": {"n_head": 2}}, folder / "a.pt")
    points = [(n, d, 1.5 + 400 / n**0.35 + 1500 / d**0.36) for n in (1e6, 4e6, 16e6) for d in (1e8, 4e8, 16e8)]
    lines = ["parameters,tokens,loss", *(",".join(map(str, point)) for point in points)]
    (folder / "points.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def results(folder) -> dict[str, dict]:
    commands = [command for command, _ in CASES]
    return dict(zip(commands, run([shlex.split(command) for command in commands], folder), strict=True))


@pytest.mark.parametrize(("command", "extra"), CASES)
def test_it_works_or_names_the_command_that_installs_the_rest(command, extra, results):
    result = results[command]
    if extra is None:
        assert result["status"] == 0, result["err"]
        return
    assert result["status"] == 2, result["err"]
    *_, line = result["err"].splitlines()
    assert line.startswith("gpt2lab: ")
    assert f"pip install -c constraints.txt -e '.[{extra}]'" in line
    assert "Traceback" not in result["err"]


def test_a_missing_package_leaves_nothing_behind(results, folder):
    assert not [name for name in LEFT_BEHIND if (folder / name).exists()]
    assert {path.name for path in (folder / "runs").iterdir()} == {"tiny"}


def test_json_lines_give_the_same_shards_without_pyarrow(results, folder, tmp_path):
    from gpt2lab.data.prepare import make
    from gpt2lab.data.sources import local_files
    from gpt2lab.options import PrepareOptions

    make(local_files.source([str(folder / "a.jsonl")]), tmp_path, PrepareOptions("files"))
    for name in ("jsonl", "gz"):
        for shard in tmp_path.glob("*.npy"):
            assert (folder / "data" / name / shard.name).read_bytes() == shard.read_bytes()


def test_every_verb_is_tried():
    assert {verb.name for verb in cli.VERBS} == {command.split()[0] for command, _ in CASES} | {"bench"}


def test_bench_leaves_out_what_is_missing(folder):
    shape = "--model.n_layer 1 --model.n_head 2 --model.n_embd 8 --model.block_size 8 --train.micro_batch_size 2"
    steps = "--train.total_batch_size 16 --rounds 1 --steps 1 --system.device cpu"
    (result,) = run([["bench", *shlex.split(f"{shape} {steps}")]], folder)
    assert result["status"] == 0, result["err"]
    left_out = [line for line in result["err"].splitlines() if "transformers" in line]
    assert len(left_out) == 2
    assert all("pip install -c constraints.txt transformers" in line for line in left_out)


def test_a_missing_package_of_no_extra():
    with pytest.raises(GPT2LabError, match=r"pip install .*surely_missing$"):
        require("surely_missing", "this", None)

"""Every row of the table in docs/migrating.md, run on a tiny model."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

import gpt2lab.app
from gpt2lab import cli
from gpt2lab.config import Config, GPT2Config, load
from gpt2lab.data import shards
from gpt2lab.errors import GPT2LabError
from gpt2lab.training import run as training_run
from tests.data import corpora
from tests.model import foreign_files
from tests.runs import REPOSITORY, STEPS, command, settings

TRAIN = training_run.run  # which the fixture replaces
TEXT = (REPOSITORY / "docs" / "migrating.md").read_text()


class Place(NamedTuple):
    """Where a row runs: a finished run, its shards, an empty folder, and the settings that training was called with."""

    run: Path
    tokens: Path
    mirror: Path
    folder: Path
    trained: list[Config]
    capsys: pytest.CaptureFixture[str]

    def gpt2lab(self, *arguments: object, status: int = 0) -> str:
        """Run a command; returns both outputs."""
        self.capsys.readouterr()
        assert cli.main(list(map(str, arguments))) == status
        return "".join(self.capsys.readouterr())


@pytest.fixture(scope="module")
def run(token_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    training_run.run(settings(token_folder, folder, run__name="NAME", model__vocab_size=50257))
    return folder / "NAME"


@pytest.fixture
def place(run, token_folder, hellaswag_mirror, tmp_path, monkeypatch, capsys):
    trained: list[Config] = []
    monkeypatch.setattr(training_run, "run", lambda config, **_: trained.append(config))
    monkeypatch.chdir(REPOSITORY)
    return Place(run, token_folder, hellaswag_mirror, tmp_path, trained, capsys)


def run_script(words: list[str]) -> None:
    """Run a script of the repository as `python SCRIPT …` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(REPOSITORY / words[0]), run_name="__main__")
    assert end.value.code == 0


def train_script(place: Place) -> None:
    run_script(["train.py", "--config", "config/gpt2_124m.yaml"])
    place.gpt2lab("train", "--config", "gpt2_124m")
    assert place.trained[0] == place.trained[1] == load(["gpt2_124m"])


def torchrun(place: Place) -> None:
    """The script in a process of torchrun is that of the row above; here, that the recipe divides among 8 ranks."""
    assert load(["config/gpt2_124m.yaml"]).batch_plan(8, max_micro_tokens=16384).grad_accum_steps > 0


def nanogpt_recipes(place: Place) -> None:
    names = ["gpt2_124m", "shakespeare_cpu", "finetune_shakespeare"]
    for name in names:
        place.gpt2lab("train", "--config", f"config/{name}.yaml")
    assert [config.run.name for config in place.trained] == names


def translate(place: Place) -> None:
    file, ours = place.folder / "train_mine.py", place.folder / "my.yaml"
    file.write_text(
        "batch_size = 2\ngradient_accumulation_steps = 2 * 2\nblock_size = 32\nmax_iters = 50\nn_embd = 96\n"
    )
    place.capsys.readouterr()
    assert cli.main(["settings", "translate", str(file)]) == 0
    ours.write_text(place.capsys.readouterr().out)
    place.gpt2lab("train", "--config", ours)
    assert place.trained[0].train.total_batch_size == 2 * 4 * 32
    assert place.trained[0].model.n_embd == 96


def option(foreign: str, ours: str, value: str) -> Callable[[Place], None]:
    def check(place: Place) -> None:
        assert ours in place.gpt2lab("train", f"--{foreign}={value}", status=2)
        place.gpt2lab("train", f"--{ours}", value)
        assert place.trained[0].flat()[ours] == pytest.approx(float(value))

    return check


def accumulation(place: Place) -> None:
    assert "train.total_batch_size" in place.gpt2lab("train", "--gradient_accumulation_steps", "5", status=2)
    place.gpt2lab(
        "train", "--train.total_batch_size", 64 * 4 * 5, "--train.micro_batch_size", 4, "--model.block_size", 64
    )
    assert place.trained[0].batch_plan(1, 10**6).grad_accum_steps == 5


def init_from(place: Place) -> None:
    assert "train.init_from" in place.gpt2lab("train", "--init_from=gpt2-xl", status=2)
    new = {"run__name": "new", "train__init_from": str(place.run), "train__max_steps": 1}
    TRAIN(settings(place.tokens, place.folder, model__vocab_size=50257, **new))
    assert (place.folder / "new" / "checkpoints" / "step_00000001").is_dir()


def resume(place: Place) -> None:
    with pytest.raises(GPT2LabError, match="beyond"):  # it was resumed, at the checkpoint of the last step
        TRAIN(settings(place.tokens, place.run.parent, run__name="NAME", model__vocab_size=50257, train__max_steps=2))


def dropout(place: Place) -> None:
    assert "no dropout" in place.gpt2lab("train", "--dropout", "0.1", status=2)


def prepare(place: Place) -> None:
    mirror, out = corpora.mirror(place.folder / "mirror", files=1, count=40), place.folder / "shards"
    arguments = ["--mirror", mirror, "--out", out, "--shard-size", "200", "--no-check"]
    place.gpt2lab("prepare", "fineweb-edu", *arguments)
    assert len(shards.open_split(out, "train"))


def one_file(place: Place) -> None:
    text = place.folder / "input.txt"
    text.write_text("A line of text.\n" * 2000)
    place.gpt2lab("train", "--data.source", "files", "--data.input", text, "--data.dir", place.folder / "shards")
    assert place.trained[0].data.input == str(text)


def evaluate(place: Place) -> None:
    arguments = [
        "--model-checkpoint",
        str(place.run),
        "--mirror",
        str(place.mirror),
        "--limit",
        "2",
        "--val-tokens",
        "0",
    ]
    run_script(["evaluate.py", *arguments])
    assert "HellaSwag" in place.gpt2lab("evaluate", *arguments) or "hellaswag" in place.capsys.readouterr().out


def app(place: Place) -> None:
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:  # in place of the server, whose imports take seconds
        server = SimpleNamespace(run=seen.append)
        patch.setitem(sys.modules, "gpt2lab.app.run", server)
        patch.setattr(gpt2lab.app, "run", server, raising=False)  # where another test has imported it
        run_script(["app.py", "--trained", str(place.run)])
        place.gpt2lab("app", "--trained", place.run)
    assert [options.trained for options in seen] == [str(place.run)] * 2


def sample(place: Place) -> None:
    assert "Once" in place.gpt2lab("sample", "--model-checkpoint", place.run, "--prompt", "Once", "--max-new-tokens", 2)


def imports(place: Place) -> None:
    from gpt2lab import GPT2, GPT2Config

    assert GPT2(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=50)).num_parameters()


def from_pretrained(place: Place) -> None:
    from gpt2lab import GPT2

    model = GPT2.from_pretrained(str(place.run))
    foreign_files.save_nanogpt(place.folder / "ckpt.pt", model)
    model.save_pretrained(place.folder / "hf")
    for name in ("ckpt.pt", "hf"):
        assert GPT2.from_pretrained(str(place.folder / name)).num_parameters() == model.num_parameters()


def log_format(place: Place) -> None:
    TRAIN(settings(place.tokens, place.folder, tracking__log_format="build-nanogpt", train__max_steps=1))
    assert re.search(r"step +1 \| loss: \d+\.\d+ .* tok/sec: ", place.capsys.readouterr().out)


def records(place: Place) -> None:
    assert (place.run / "metrics.jsonl").stat().st_size
    assert (place.run / "report.html").stat().st_size


def logs(place: Place) -> None:
    (place.folder / "log").mkdir()
    log = place.folder / "log" / "log.txt"
    log.write_text("0 val 10.95\n0 train 10.955\n1 train 10.9\n6 val 9.5\n")
    page = place.folder / "page.html"
    place.gpt2lab("report", place.run, log, "--tokens-per-step", 524288, "--out", page)
    assert "log.txt (build-nanogpt): validation loss 9.500 at step 6" in page.read_text()


def checkpoints(place: Place) -> None:
    folder = place.run / "checkpoints" / f"step_{STEPS:08d}"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ""}


def own_checkpoints(place: Place) -> None:
    from gpt2lab import GPT2

    model = GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=64, vocab_size=50257))
    foreign_files.save_build_nanogpt(place.folder / "model_19072.pt", model)
    foreign_files.save_nanogpt(place.folder / "ckpt.pt", model)
    foreign_files.save_llmc(place.folder / "model_1.bin", model)
    for number, name in enumerate(("model_19072.pt", "ckpt.pt", "model_1.bin")):
        place.gpt2lab("import", place.folder / name, "--out", place.folder / f"out{number}")
    arguments = ["--mirror", place.mirror, "--limit", 1]
    assert place.gpt2lab("evaluate", "--model-checkpoint", place.folder / "model_19072.pt", *arguments)


def foreign_shards(place: Place) -> None:
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, 3000
    folder = place.folder / "bin"
    folder.mkdir()
    for split in ("train", "val"):
        tokens = np.random.default_rng(0).integers(0, 300, 3000).astype(np.uint16)
        (folder / f"fineweb_{split}_000000.bin").write_bytes(header.tobytes() + tokens.tobytes())
    for data in (place.tokens, folder):
        assert len(shards.open_split(data, "train")) >= 3000
        place.gpt2lab("train", "--data.dir", data)
    assert len(place.trained) == 2


def wide_shards(place: Place) -> None:
    folder, out = place.folder / "wide", place.folder / "out"
    folder.mkdir()
    for split in ("train", "val"):
        np.save(folder / f"x_{split}_000000.npy", np.random.default_rng(0).integers(0, 300, 3000).astype(np.int32))
    assert "pretokenized" in place.gpt2lab("data", "verify", folder, status=2)
    place.gpt2lab("prepare", "pretokenized", "--input", folder, "--out", out)
    assert len(shards.open_split(out, "train")) == 3000


# By the first words of a row.
ROWS: dict[str, Callable[[Place], None]] = {
    "`python train.py`": train_script,
    "`torchrun": torchrun,
    "nanoGPT's `config": nanogpt_recipes,
    "your own `config": translate,
    "`--init_from=gpt2-xl`": init_from,
    "`--init_from=resume`": resume,
    "`--batch_size`": option("batch_size", "train.micro_batch_size", "12"),
    "`--gradient_accumulation_steps`": accumulation,
    "`--learning_rate`": option("learning_rate", "optimizer.max_lr", "1e-3"),
    "`--dropout`": dropout,
    "`data/fineweb.py`": prepare,
    "`input.txt`": one_file,
    "`python evaluate.py`": evaluate,
    "`app.py`": app,
    "`sample.py`": sample,
    "`from model import": imports,
    "`GPT.from_pretrained": from_pretrained,
    "`step …": log_format,
    "`log/log.txt`": records,
    "your own `log/": logs,
    "`log/model_19072.pt`": checkpoints,
    "your own `model_19072.pt`": own_checkpoints,
    "an existing folder": foreign_shards,
    "shards of int32": wide_shards,
}


def test_the_table_has_these_rows():
    cells = [line.removeprefix("| ") for line in TEXT.splitlines() if line.startswith("| ")][1:]
    assert len(cells) == len(ROWS)
    assert all(cell.startswith(start) for cell, start in zip(cells, ROWS, strict=True))


@pytest.mark.parametrize("start", ROWS)
def test_row(start, place):
    ROWS[start](place)


@pytest.mark.slow  # two processes
def test_torchrun(place, tmp_path):
    import subprocess

    words = command(settings(place.tokens, tmp_path), tmp_path / "recipe.yaml")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "train.py",
        *words[4:],
    ]
    done = subprocess.run(launch, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""docs/tutorial.md: its commands run in order, in small; its published losses are those of the reference curves."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2lab import GPT2, GPT2Config, cli
from gpt2lab.config import yaml_format
from gpt2lab.tracking import reference
from tests.launch.test_reproduce import machine
from tests.test_readme import MODULES, SHRUNK_TRAINING, find_blocks, shrink

__all__ = ["machine"]

REPOSITORY = Path(__file__).parent.parent
PAGE = (REPOSITORY / "docs" / "tutorial.md").read_text()
SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8}  # that of SHRUNK_TRAINING
CURVES = yaml_format.read(Path(reference.__file__).with_name("reference_curves.yaml"))


def find_commands() -> list[str]:
    return "".join(find_blocks("bash", PAGE)).replace("\\\n", " ").splitlines()


def shrink_further(command: str) -> str:
    """The command for a tiny model, one step, and a sweep of two runs."""
    if "launch/" in command and "PLAN=only" not in command:  # tests/launch/test_reproduce.py runs all of the script
        command = "gpt2lab train --config minillm"
    if "launch/" in command:
        return f"{command} {shlex.join(SHRUNK_TRAINING)}"
    if "gpt2lab sweep" in command:
        command = re.sub(r"(--over optimizer.max_lr=[^,]+),\S+", r"\1", command)
        return f"{command} {shlex.join(SHRUNK_TRAINING)}"
    return shlex.join(shrink(command, "runs")) + (" --limit 2" if "gpt2lab evaluate" in command else "")


@pytest.fixture
def folder(machine, token_folder, monkeypatch) -> Path:
    """A copy of a checkout without network: small shards, a text, and a tiny model in place of OpenAI's GPT-2."""
    (machine / "train.py").symlink_to(REPOSITORY / "train.py")
    (machine / "text.txt").rename(machine / "input.txt")
    (machine / "data").mkdir()
    for name in ("stdlib", "edu_fineweb10B"):
        (machine / "data" / name).symlink_to(token_folder)
    mirror = machine / "mirror"
    GPT2(GPT2Config(**SHAPE)).save_pretrained(mirror / "gpt2")
    (mirror / "hellaswag").symlink_to(Path(os.environ["GPT2LAB_MIRROR"]) / "hellaswag")
    monkeypatch.setenv("GPT2LAB_MIRROR", str(mirror))
    return machine


@pytest.mark.slow
def test_the_commands_in_order(folder, capsys):
    for command in map(shrink_further, find_commands()):
        first, *arguments = shlex.split(command)
        with contextlib.chdir(folder):
            if first == "gpt2lab":
                assert cli.main(arguments) == 0, f"{command}: {capsys.readouterr().err}"
                continue
            if first in MODULES:
                command = shlex.join([sys.executable, *MODULES[first], *arguments])
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}: {done.stderr}"
    for name in ("quickstart", "rates", "mine", "tuned", "tuned_gpt2", "machine", "minillm"):
        assert (folder / "runs" / name).is_dir()
    assert (folder / "out" / "minillm-bf16" / "model.safetensors").exists()


def test_the_published_losses_are_those_of_the_reference_curves():
    logs = [log for log in CURVES.values() if log["data"] == "fineweb-edu"]
    rows = re.findall(
        r"^\| ([\d,]+) \| [\d.]+B \| ([\d.]+) to ([\d.]+) \| ([\d.]+)% to ([\d.]+)% \|$", PAGE, re.MULTILINE
    )
    assert len(rows) == 5
    for step, *cells in rows:
        at = int(step.replace(",", ""))
        losses = [log["validation_loss"][at] for log in logs]
        accuracies = [100 * log["hellaswag"][at] for log in logs if "hellaswag" in log]
        expected = [min(losses), max(losses), min(accuracies), max(accuracies)]
        assert [float(cell) for cell in cells] == pytest.approx(expected, abs=0.0501), step
        assert [float(cell) for cell in cells[:2]] == pytest.approx(expected[:2], abs=0.00501), step


def test_the_table_of_gpus_is_what_plan_prints(capsys):
    (command,) = (line for line in find_commands() if line.startswith("gpt2lab plan"))
    assert cli.main(shlex.split(command)[1:]) == 0
    table = capsys.readouterr().out.partition("GPUs  ")[2]
    assert f"GPUs  {table}".strip() in PAGE

"""README's "Reproduce GPT-2 on 8 GPUs", from data to report, on two processes and with a tiny model."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
MODULES = {"gpt2lab": ["-m", "gpt2lab"], "torchrun": ["-m", "torch.distributed.run"]}
SHRUNK_TRAINING = (
    "--model.n_layer 1 --model.n_head 2 --model.n_embd 8 --model.block_size 8 --train.max_steps 1 "
    "--train.total_batch_size 64 --train.micro_batch_size 4 --train.eval_tokens 64 --train.sample_count 1 "
    "--train.hellaswag_limit 2 --system.device cpu --system.compile off"
)


def find_commands() -> list[str]:
    """The commands of the section's indented block, without comments and installation."""
    readme = (REPOSITORY / "README.md").read_text()
    section = readme[readme.index("\n## Reproduce") :]
    section = section[: section.index("\n## ", 4)]
    lines = [line.split("#")[0].strip() for line in re.findall(r"^    (.*)$", section, re.MULTILINE)]
    return [line for line in lines if line.split()[0] in MODULES]


def shrink(command: str) -> str:
    """The same command for two processes and a tiny model. Data is not downloaded: that command line is only parsed."""
    command = command.replace("--nproc_per_node=8", "--nproc_per_node=2")
    if "prepare" in command:
        return f"{command} --help"
    if "train.py" in command:
        return f"{command} {SHRUNK_TRAINING}"
    return f"{command} --limit 2" if "evaluate.py" in command else command


@pytest.mark.slow
def test_the_commands_in_order(tmp_path, token_folder, hellaswag_mirror, monkeypatch):
    for name in ("config", "train.py", "evaluate.py"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "edu_fineweb10B").symlink_to(token_folder)
    monkeypatch.setenv("GPT2LAB_MIRROR", str(hellaswag_mirror))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    *commands, app = find_commands()
    assert app == "gpt2lab app --trained runs/minillm"  # the other commands of README start it
    for command in commands:
        first, *arguments = shlex.split(shrink(command))
        process = subprocess.run(
            [sys.executable, *MODULES[first], *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, f"{command}: {process.stderr}"
    run = tmp_path / "runs" / "minillm"
    assert list((run / "evaluations").iterdir())
    assert (run / "report.html").exists()

"""Every command and every line of Python in the README is run, shrunken where it would take long."""

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.test_recipes import ARITHMETIC

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
SHRUNKEN = (
    "--model.n_layer 1 --model.n_head 2 --model.n_embd 8 --model.block_size 8 --train.max_steps 1 "
    "--train.total_batch_size 64 --train.micro_batch_size 4 --train.eval_tokens 64 --train.sample_count 1 "
    "--train.hellaswag_limit 2 --system.device cpu --system.compile off"
)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory, token_folder, hellaswag_mirror):
    """A folder that looks like the checkout, with small shards where FineWeb-Edu's would be and a finished run."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("config", "train.py", "app.py"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "data").mkdir()
    (folder / "data" / "edu_fineweb10B").symlink_to(token_folder)
    (folder / "data" / "stdlib").symlink_to(token_folder)
    (folder / "my" / "texts").mkdir(parents=True)
    for name in ("one", "two", "three"):
        (folder / "my" / "texts" / f"{name}.txt").write_text(f"A text of my own, number {name}.\n" * 20)
    os.environ["GPT2LAB_MIRROR"] = str(hellaswag_mirror)
    run("gpt2lab train", folder, "runs")
    yield folder
    del os.environ["GPT2LAB_MIRROR"]


def run(command: str, folder: Path, out_dir: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    python = {"gpt2lab": ["-m", "gpt2lab"], "python": [], "torchrun": ["-m", "torch.distributed.run"]}[words[0]]
    trains = "--help" not in words and ("train" in words or "train.py" in words)
    if "fineweb-edu" in words:  # not from the Hub here: that it would be asked for is what can be seen
        words.append("--help")
    extra = [*shlex.split(SHRUNKEN), "--run.out_dir", out_dir] if trains else []
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *python, *words[1:], *extra],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done


def serves(command: str) -> bool:
    return "--help" not in command and ("gpt2lab app" in command or "app.py" in command)


@pytest.mark.parametrize("command", [c for c in commands() if serves(c)])
def test_page(command, somewhere):
    """It answers, and ends at Ctrl-C."""
    words = shlex.split(command)
    python = ["-m", "gpt2lab"] if words[0] == "gpt2lab" else []
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *python, *words[1:]], cwd=somewhere, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            address = next((line.split()[0] for line in process.stdout if line.startswith("http")), None)
            assert address is not None, "the command ended without an address"
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            assert opener.open(address, timeout=10).status == 200
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)
    assert process.returncode == 0


@pytest.mark.parametrize(
    "command", [c for c in commands() if c.split()[0] not in ("make", "pip", ".", "python3") and not serves(c)]
)
def test_command(command, somewhere, tmp_path):
    assert run(command, somewhere, str(tmp_path)).stdout


def test_make_and_pip_commands_are_what_the_files_offer():
    named = [command for command in commands() if command.split()[0] in ("make", "pip")]
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert {command.split()[1] for command in named if command.startswith("make")} <= targets
    assert "pip install -r requirements.txt" in named
    assert (REPOSITORY / "requirements.txt").read_text() == "-c constraints.txt\n-e .\n"


@pytest.mark.parametrize("page", ["README.md", "docs/generation.md"])
def test_python(page, somewhere, tmp_path):
    code = "\n".join(blocks("python", (REPOSITORY / page).read_text()))
    (tmp_path / "runs").symlink_to(somewhere / "runs")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists() == ("save_pretrained" in code)


def test_files_the_readme_links_to_exist():
    for target in re.findall(r"\]\(((?!http|#)[^)]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_recipes_are_all_in_the_table():
    table = README[README.index("## Recipes") :]
    missing = [name for name in ARITHMETIC if f"`{name}`" not in table]
    assert not missing


def test_result_pages_hold_figures_with_their_command_hardware_and_commit():
    for target in re.findall(r"\]\((docs/results/[^)]+\.md)\)", README):
        text = (REPOSITORY / target).read_text()
        assert re.search(r"commit `?[0-9a-f]{7,40}", text), target
        assert "gpt2lab" in text
        assert "cores" in text or "GPU" in text

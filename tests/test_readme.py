"""Every command and every line of Python in the README runs. Training and evaluation are shrunk to seconds."""

import contextlib
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2lab import cli, config
from tests.test_recipes import ARITHMETIC

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
SHRUNK_TRAINING = shlex.split(
    "--model.n_layer 1 --model.n_head 2 --model.n_embd 8 --model.block_size 8 --train.max_steps 1 "
    "--train.total_batch_size 64 --train.micro_batch_size 4 --train.eval_tokens 64 --train.sample_count 1 "
    "--train.hellaswag_limit 2 --system.device cpu --system.compile off"
)
# First words of commands that are not run here.
INSTALLATION = ("make", "pip", "launch/install_torch.sh", ".", "python3", "git", "cd")
MODULES = {"gpt2lab": ["-m", "gpt2lab"], "python": [], "torchrun": ["-m", "torch.distributed.run"]}


def find_blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def find_commands() -> list[str]:
    text = "".join(block for language in ("", "bash", "sh") for block in find_blocks(language))
    lines = [line.split("#")[0].strip() for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


def serves(command: str) -> bool:
    """Whether the command starts the app."""
    return "--help" not in command and ("gpt2lab app" in command or "app.py" in command)


PAGES = [command for command in find_commands() if serves(command)]
COMMANDS = [command for command in find_commands() if command.split()[0] not in INSTALLATION and command not in PAGES]


def shrink(command: str, out_dir: Path | str) -> list[str]:
    """The words of a command, with a tiny model for training, and at most two ranks."""
    words = [re.sub(r"^--nproc_per_node=\d+$", "--nproc_per_node=2", word) for word in shlex.split(command)]
    if "fineweb-edu" in words:  # it would be downloaded: only the command line is checked
        words.append("--help")
    if "--help" not in words and ("train" in words or "train.py" in words):
        words += [*SHRUNK_TRAINING, "--run.out_dir", str(out_dir)]
    return words


# --help ends the process that it runs in.
IN_PROCESS = [command for command in COMMANDS if command.startswith("gpt2lab ") and "--help" not in shrink(command, "")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, token_folder, hellaswag_mirror) -> Iterator[Path]:
    """A folder like the checkout, with small shards in place of FineWeb-Edu and a finished run."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("config", "train.py", "app.py", "evaluate.py"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "data").mkdir()
    (folder / "data" / "edu_fineweb10B").symlink_to(token_folder)
    (folder / "data" / "stdlib").symlink_to(token_folder)
    (folder / "my" / "texts").mkdir(parents=True)
    for name in ("one", "two", "three"):
        (folder / "my" / "texts" / f"{name}.txt").write_text(f"A text of my own, number {name}.\n" * 20)
    (folder / "input.txt").write_text("A text of my own, in one file.\n" * 500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2LAB_MIRROR", str(hellaswag_mirror))
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        with contextlib.chdir(folder):
            assert cli.main(shrink("gpt2lab train", "runs")[1:]) == 0
            (folder / "runs" / "mine").symlink_to("quickstart")
        yield folder


@pytest.mark.parametrize("command", PAGES)
def test_app_answers_and_ends_at_ctrl_c(command, checkout):
    first, *arguments = shlex.split(command)
    with subprocess.Popen(
        [sys.executable, *MODULES[first], *arguments], cwd=checkout, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            address = next((line.split()[0] for line in process.stdout if line.startswith("http")), None)
            assert address is not None, "the command ended without an address"
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            assert opener.open(address, timeout=60).status == 200
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    assert process.returncode == 0


@pytest.mark.parametrize("command", IN_PROCESS)
def test_gpt2lab_command(command, checkout, tmp_path, capsys):
    with contextlib.chdir(checkout):
        assert cli.main(shrink(command, tmp_path)[1:]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=pytest.mark.slow if command.startswith(("torchrun", "python train.py")) else ())
        for command in COMMANDS
        if command not in IN_PROCESS
    ],
)
def test_command_in_a_process(command, checkout, tmp_path):
    first, *arguments = shrink(command, tmp_path)
    assert first in MODULES, f"this test cannot run {command!r}"
    done = subprocess.run(
        [sys.executable, *MODULES[first], *arguments], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_commands_that_train_for_a_few_steps_reach_the_learning_rate():
    """Otherwise training warns about the documents' own examples."""
    for page in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")):
        for text in re.findall(r"[^`\n]*--train\.max_steps \d+[^`]*", page.read_text()):
            steps = int(text.partition("--train.max_steps ")[2].split()[0])
            names = ("optimizer.warmup_steps", "config")
            warmup, recipe = (re.search(rf"--(?:over )?{name}[ =]([^\s,]+)", text) for name in names)
            assert warmup or recipe, f"{page.name}: {text}"
            assert (int(warmup[1]) if warmup else config.load([recipe[1]]).optimizer.warmup_steps) <= steps


def test_make_and_pip_commands_are_what_the_files_offer():
    commands = find_commands()
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert {command.split()[1] for command in commands if command.startswith("make")} <= targets
    assert "pip install -r requirements.txt" in commands
    assert (REPOSITORY / "requirements.txt").read_text() == "-c constraints.txt\n-e .\n"


@pytest.mark.parametrize("page", ["README.md", "docs/generation.md"])
def test_python(page, checkout, tmp_path):
    code = "\n".join(find_blocks("python", (REPOSITORY / page).read_text()))
    (tmp_path / "runs").symlink_to(checkout / "runs")
    with contextlib.chdir(tmp_path):
        exec(compile(code, page, "exec"), {})
    assert (tmp_path / "saved" / "model.safetensors").exists() == ("save_pretrained" in code)


def test_files_that_the_readme_links_to_exist():
    for target in re.findall(r"\]\(((?!http|#)[^)#]+)[^)]*\)", README):
        assert (REPOSITORY / target).exists(), target


def test_all_recipes_are_in_the_table():
    table = README[README.index("## Recipes") :]
    missing = [name for name in ARITHMETIC if f"`{name}`" not in table]
    assert not missing


def test_result_pages_name_their_command_hardware_and_commit():
    for target in re.findall(r"\]\((docs/results/[^)]+\.md)\)", README):
        text = (REPOSITORY / target).read_text()
        assert re.search(r"commit `?[0-9a-f]{7,40}", text), target
        assert "gpt2lab" in text
        assert "cores" in text or "GPU" in text

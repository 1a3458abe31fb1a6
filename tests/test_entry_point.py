"""The entry point: Ctrl-C at any moment of the start is one line, and slow imports of every verb are shown."""

import os
import signal
import subprocess
import sys
import tomllib

import pytest

from gpt2lab import cli, commands, slow_imports
from tests.runs import REPOSITORY

# Sends SIGINT as soon as a module is imported, and starts as the console script does.
INTERRUPTED = """
import importlib, os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {moment!r}:
            os.kill(os.getpid(), 2)
sys.meta_path.insert(0, Finder())
sys.argv = ["gpt2lab", "settings"]
sys.exit(getattr(importlib.import_module({module!r}), {function!r})())
"""


def entry_point() -> tuple[str, str]:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["gpt2lab"].partition(":")
    return module, function


@pytest.mark.parametrize("moment", ["gpt2lab.cli", "argparse", "gpt2lab.options", "gpt2lab.commands"])
def test_ctrl_c_during_the_imports_is_one_line(moment):
    module, function = entry_point()
    code = INTERRUPTED.format(moment=moment, module=module, function=function)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stderr == "gpt2lab: interrupted\n"
    assert done.returncode == 130


@pytest.mark.parametrize("script", ["train", "app"])
def test_the_entry_point_imports_nothing_else_before_ctrl_c_is_caught(script):
    code = "import sys; before = {*sys.modules}; import {}; print(*{*sys.modules} - before)"
    for module in (entry_point()[0], script):
        command = [sys.executable, "-c", code.replace("{}", module, 1)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) <= {"gpt2lab", "gpt2lab.__main__", script}


def test_a_run_of_a_sweep_receives_ctrl_c_when_it_is_ready():
    """A signal that is held back since before the process began."""
    code = "import os, signal; os.kill(os.getpid(), 2); from gpt2lab.__main__ import main; raise SystemExit(main())"
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        command, environment = [sys.executable, "-c", code], os.environ | {"GPT2LAB_SWEEP": str(os.getpid())}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert (done.returncode, done.stderr) == (130, "gpt2lab: interrupted\n")


@pytest.fixture
def slow_package(tmp_path, monkeypatch):
    """A package that counts as slow, and imports a module of its own."""
    monkeypatch.setattr(slow_imports, "_PACKAGES", ("slow_one",))
    (tmp_path / "slow_one").mkdir()
    (tmp_path / "slow_one" / "__init__.py").write_text("from slow_one import part\n")
    (tmp_path / "slow_one" / "part.py").write_text("")
    (tmp_path / "slow_one" / "later.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield "slow_one"
    for name in ("slow_one", "slow_one.part", "slow_one.later"):
        sys.modules.pop(name, None)


def test_every_verb_shows_slow_imports(slow_package, monkeypatch, phases):
    def verb(_):
        __import__(slow_package)
        __import__(f"{slow_package}.later")

    monkeypatch.setattr(commands, "settings", verb)
    finders = [*sys.meta_path]
    assert cli.main(["settings"]) == 0
    assert [(phase.description, phase.announce) for phase in phases.begun] == [
        ("loading slow_one", True),
        ("loading slow_one", False),  # of a module that is imported later
    ]
    assert not phases.open
    assert sys.meta_path == finders


def test_a_verb_inside_another_imports_slow_packages_too(slow_package, phases):
    with slow_imports.shown(), slow_imports.shown():
        __import__(slow_package)
    assert [phase.description for phase in phases.begun] == ["loading slow_one"]


def test_a_slow_import_says_so_in_a_pipe(tmp_path):
    (tmp_path / "slow.py").write_text("import time; time.sleep(1.5)")
    code = """
import sys
from gpt2lab import logs, progress, slow_imports
progress.ANNOUNCE_AFTER = 0.2
logs.configure(to_stderr=True)
slow_imports._PACKAGES = ("slow",)
sys.path.insert(0, sys.argv[1])
with slow_imports.shown():
    import slow
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stderr == "loading slow\n"


MISTAKES = [
    (["sample", "--model-checkpoint", "runs/quickstrat"], "no such folder; did you mean runs/quickstart?\n"),
    (["sample", "--model-checkpoint", "runs/x"], "no such folder; give a run directory"),
    (["sample", "--model-checkpoint", "data/mine"], "data/mine is a data folder, not a model; give a run directory"),
    (["evaluate", "--model-checkpoint", "a.yaml"], "a.yaml is a recipe, not a model; give a run directory"),
    (["evaluate", "--model-checkpoint", "x.pt", "--tasks", "everyday"], "x.pt: no such file; give"),
    (["evaluate", "--model-checkpoint", "gpt2", "--tasks", "everyda"], "did you mean everyday?"),
    (["export", "--model-checkpoint", "runs/quickstrat", "--out", "out"], "did you mean runs/quickstart?\n"),
    (["app", "--trained", "runs/quickstrat"], "did you mean runs/quickstart?\n"),
    (["app", "--trained", "gpt2", "--untrained", "runs/quickstrat"], "did you mean runs/quickstart?\n"),
]


@pytest.mark.parametrize(("arguments", "part"), MISTAKES)
def test_a_mistyped_name_is_an_error_before_torch_is_imported(arguments, part, tmp_path):
    (tmp_path / "runs" / "quickstart" / "checkpoints" / "step_00000001").mkdir(parents=True)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "mine" / "manifest.json").touch()
    (tmp_path / "a.yaml").touch()
    code = "import sys; from gpt2lab import packages; from gpt2lab.cli import main; "
    code += "packages.is_installed = lambda name: True; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    command, environment = [sys.executable, "-c", code, *arguments], os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert part in done.stderr

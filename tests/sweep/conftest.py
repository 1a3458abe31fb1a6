"""A recipe of tiny runs, and runs of a sweep in this process instead of processes of their own."""

import contextlib
import os

import pytest

from gpt2lab import cli
from gpt2lab.sweep import processes
from gpt2lab.tracking import report
from tests.runs import settings


class Child:
    """In place of `Popen`: trains in this process when it is polled first."""

    def __init__(self, command, stdout, env, **_):
        self.arguments, self.stdout, self.env, self.returncode = command[3:], os.dup(stdout.fileno()), env, None

    def poll(self):
        if self.returncode is None:
            with open(self.stdout, "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                self.returncode = cli.main(self.arguments)
        return self.returncode

    def send_signal(self, number):
        pass


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(processes, "Popen", Child)
    monkeypatch.setattr(processes, "_POLL", 0)
    monkeypatch.setattr(report, "write", lambda *_, **__: [])  # of each run


@pytest.fixture
def recipe(token_folder, tmp_path):
    """The file of a recipe whose runs take a moment; the runs are in `tmp_path/runs`."""
    changes = {"train__sample_every": 0, "train__eval_every": 6, "checkpoint__keep_last": 1}
    path = tmp_path / "tiny.yaml"
    path.write_text(settings(token_folder, tmp_path / "runs", run__name=None, **changes).to_yaml())
    return path

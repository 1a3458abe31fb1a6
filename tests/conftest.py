"""Fixtures of all tests: the folder of real data, small generated data; and the check of skipped tests."""

import os

# The models are tiny: more threads would only wait for each other. It must be set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import json
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2lab import progress

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup, and then in all processes of the tests

if sys.platform == "darwin":  # the tests are about the CPU, and the GPU of a hosted machine may have no memory
    import torch

    torch.backends.mps.is_available = lambda: False

# With GPT2LAB_STRICT_SKIPS=1 (CI) a test may be skipped for these reasons only.
ALLOWED_SKIPS = ("no GPU", "no browser", "no shared data", "no compiler", "no Linux")
SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"
_refused_skips: list[str] = []


@pytest.fixture(autouse=True)
def _reset_logging() -> Iterator[None]:
    """Undo `logs.configure`, which the command line calls."""
    yield
    logger = logging.getLogger("gpt2lab")
    logger.handlers = []
    logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _shorten_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in this process draws no report and collects no garbage, which takes longer than six tiny steps.

    A test that uses `complete_runs`, or a fixture of the session such as `finished_run`, gets all of training.
    """
    if "complete_runs" not in request.fixturenames and "gpt2lab.training.run" in sys.modules:
        from gpt2lab.training import live_report, trainer

        monkeypatch.setattr(live_report.LiveReport, "finish", lambda _: None)
        monkeypatch.setattr(trainer, "gc", SimpleNamespace(**dict.fromkeys(("collect", "freeze", "unfreeze"), int)))


@pytest.fixture
def complete_runs() -> None:
    """A test that uses this checks what `_shorten_runs` leaves out."""


class Phases:
    """The phases of `progress` that began, and of these the ones that are under way."""

    def __init__(self) -> None:
        self.begun: list[progress.Phase] = []
        self.open: list[progress.Phase] = []

    def add(self, phase: progress.Phase) -> None:
        self.begun.append(phase)
        self.open.append(phase)

    def remove(self, phase: progress.Phase) -> None:
        self.open.remove(phase)


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> Phases:
    """What would be shown as progress."""
    phases = Phases()
    monkeypatch.setattr(progress._display, "add", phases.add)
    monkeypatch.setattr(progress._display, "remove", phases.remove)
    return phases


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout. A test that uses it is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no shared data beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def token_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Third-party shards with text-like tokens below 300: 24,000 train, 3,000 val. Do not write to it."""
    folder = tmp_path_factory.mktemp("tokens")
    rng = np.random.default_rng(0)
    words = [rng.integers(0, 300, size=rng.integers(2, 6)) for _ in range(60)]  # repeated words: something to learn
    for name, length in (("train_000", 14_000), ("train_001", 10_000), ("val_000", 3_000)):
        text = np.concatenate([words[i] for i in rng.zipf(1.5, size=length) % 60])[:length]
        np.save(folder / f"{name}.npy", text.astype(np.uint16))
    return folder


@pytest.fixture(scope="session")
def hellaswag_mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror whose HellaSwag has as many items as the real one, all equal."""
    folder = tmp_path_factory.mktemp("mirror")
    item = {"activity_label": "a", "ctx": "a b", "endings": ["c", "d e", "f", "g"], "label": 1, "split": "val"}
    (folder / "hellaswag").mkdir()
    lines = (json.dumps({"ind": index, **item}) for index in range(10_042))
    (folder / "hellaswag" / "hellaswag_val.jsonl").write_text("\n".join(lines) + "\n")
    return folder


# These hooks run in the process that collects the reports: with pytest-xdist, the one that starts the workers.


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not hasattr(report, "wasxfail"):
        pytest_collectreport(report)


def pytest_collectreport(report: pytest.CollectReport | pytest.TestReport) -> None:
    if report.skipped and os.environ.get("GPT2LAB_STRICT_SKIPS"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            _refused_skips.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _refused_skips:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _refused_skips:
        terminalreporter.write_line(f"SKIP NOT ALLOWED: {line}", red=True)

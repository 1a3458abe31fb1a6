"""Shared by all tests: where the optional real data is, small data made on the spot, and which skips are allowed."""

import os

# Tiny models: more threads only wait for each other, and on a busy machine for long. Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import json
from pathlib import Path

import numpy as np
import pytest

# With GPT2LAB_STRICT_SKIPS=1 (CI) a test may be skipped for these reasons alone.
ALLOWED_SKIPS = ("no GPU", "no browser", "no shared data")
SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"
_refused: list[str] = []


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that want it are skipped without it."""
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
    """A mirror whose HellaSwag has as many items as the real one, all alike."""
    folder = tmp_path_factory.mktemp("mirror")
    item = {"activity_label": "a", "ctx": "a b", "endings": ["c", "d e", "f", "g"], "label": 1, "split": "val"}
    (folder / "hellaswag").mkdir()
    lines = (json.dumps({"ind": index, **item}) for index in range(10_042))
    (folder / "hellaswag" / "hellaswag_val.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    outcome = yield
    report = outcome.get_result()
    if not hasattr(report, "wasxfail"):
        pytest_collectreport(report)


def pytest_collectreport(report: pytest.CollectReport | pytest.TestReport) -> None:
    if report.skipped and os.environ.get("GPT2LAB_STRICT_SKIPS"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            _refused.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _refused:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _refused:
        terminalreporter.write_line(f"SKIP NOT ALLOWED: {line}", red=True)

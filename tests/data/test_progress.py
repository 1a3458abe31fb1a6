"""Progress is logged where there is no terminal."""

import logging

from gpt2lab.data import progress


def test_progress_is_logged_without_a_terminal(monkeypatch, caplog):
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO), progress.Progress(1000) as shown:
        shown.update("writing", 0, 0)
        shown.update("writing", 250, 77)
    assert "25%" in caplog.text
    assert "77 tokens" in caplog.text


def test_progress_on_a_terminal_leaves_no_log(monkeypatch, caplog):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with caplog.at_level(logging.INFO), progress.Progress(1000) as shown:
        shown.update("writing", 250, 77)
    assert not caplog.text

"""Progress is logged."""

import logging

from gpt2lab.data import progress


def test_progress_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    shown = progress.Progress(1000)
    with caplog.at_level(logging.INFO):
        shown.update("writing", 0, 0)
        shown.update("writing", 250, 77)
    assert "25%" in caplog.text
    assert "77 tokens" in caplog.text

"""Messages at the start of a run."""

from gpt2lab import cli
from gpt2lab.training import messages
from tests.runs import settings


def test_many_epochs_are_warned_of(caplog, token_folder, tmp_path, capsys):
    messages.warn_of_epochs(12)
    assert not caplog.records
    messages.warn_of_epochs(16419.1)
    assert "16,419 epochs: the model will memorize the text" in caplog.text
    path = tmp_path / "config.yaml"
    path.write_text(settings(token_folder, tmp_path, train__max_steps=1000000).to_yaml())
    assert cli.main(["train", "--dry-run", "--config", str(path)]) == 0
    assert "epochs: the model will memorize the text" in capsys.readouterr().out

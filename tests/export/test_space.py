"""`gpt2lab export --space`: a folder that runs as a Hugging Face Space."""

import os
import socket
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from gpt2lab import GPT2Config, cli
from gpt2lab.export import space_app
from tests.app.conftest import read, wait_until
from tests.model.test_huggingface import random_model


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    random_model(GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=32)).save_pretrained(folder / "mine")
    assert cli.main(["export", "--model-checkpoint", str(folder / "mine"), "--space", str(folder / "out")]) == 0
    return folder / "out"


def test_the_settings_of_the_space_name_its_app(space):
    _, front, body = (space / "README.md").read_text().split("---\n", 2)
    settings = YAML(typ="safe").load(front)
    assert (settings["title"], settings["sdk"]) == ("mine", "gradio")
    assert (space / settings["app_file"]).is_file()
    assert f"gradio=={settings['sdk_version']}\n" in (space / "requirements.txt").read_text()
    assert "# mine" in body
    assert "gpt2lab" not in (space / "requirements.txt").read_text()


def test_an_earlier_space_is_replaced_and_a_changed_one_is_not(space, tmp_path, capsys):
    source = str(space)  # a Space is a model directory as well
    arguments = ["export", "--model-checkpoint", source, "--space", str(tmp_path / "again")]
    assert cli.main(arguments) == 0
    assert cli.main(arguments) == 0
    (tmp_path / "again" / "app.py").write_text("mine")
    assert cli.main(arguments) == 2
    assert "app.py" in capsys.readouterr().err
    assert (tmp_path / "again" / "app.py").read_text() == "mine"


def test_the_app_continues_with_its_seed_in_the_window(space, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(space_app, "FOLDER", space)
    tokenizer, models = space_app.load()

    def texts(prompt, seed, model=models[0], temperature=0.8):
        return space_app.complete(tokenizer, model, prompt, 3, 8, temperature, 50, seed).split("\n\n---\n\n")

    assert len(texts("Once upon", 1)) == 3
    assert texts("Once upon", 1) == texts("Once upon", 1) != texts("Once upon", 2)
    assert texts("Once upon", 1) != texts("Once upon", 1, models[1])
    assert len(set(texts("Once upon", 1, temperature=0.0))) == 1
    assert all(text.startswith("word " * 100) for text in texts("word " * 100, 1))  # longer than the window


@pytest.mark.slow  # starts a process with torch, transformers and gradio
def test_the_folder_runs_as_it_is(space):
    gradio_client = pytest.importorskip("gradio_client")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1,localhost"}
    with subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment) as process:
        try:
            address = f"http://127.0.0.1:{port}/"

            def answers():
                assert process.poll() is None, "the app ended"
                try:
                    return bool(read(address))
                except OSError:
                    return False

            assert wait_until(answers, timeout=120)
            client = gradio_client.Client(address, verbose=False)
            trained, untrained = client.predict("Once upon", 2, 5, 0.8, 50, 1, api_name="/write")
            assert trained.count("Once upon") == untrained.count("Once upon") == 2
            assert trained != untrained
            with pytest.raises(Exception, match="1 to 8,000 characters"):
                client.predict("a" * 10_000, 2, 5, 0.8, 50, 1, api_name="/write")
        finally:
            process.terminate()
            process.wait(60)

"""The page without a browser: what it answers, what it refuses, and what the server lets out."""

import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from html import unescape
from itertools import pairwise

import pytest
import torch

from gpt2lab import GPT2, Tokenizer, cli
from gpt2lab.app import markup, page, record
from gpt2lab.app import run as app_run
from gpt2lab.app.compare import LONGEST_PROMPT, MOST_TOKENS, Request, Writer, compare
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation.engine import Token
from gpt2lab.generation.sampling import Sampling
from gpt2lab.generation.text import TextDelta
from tests.app.conftest import SEED

SETTINGS = {"temperature": 0.8, "top_k": 50, "top_p": 1, "min_p": 0, "penalty": 1, "max_new_tokens": 6, "seed": 3}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="module")
def writers(run):
    trained = GPT2.from_pretrained(run)
    other = GPT2(trained.config, generator=torch.Generator().manual_seed(SEED))
    return [Writer("Trained", "", trained), Writer("Untrained", "", other)]


def answers(writers, tokenizer, prompt, **settings):
    return list(page.respond(writers, tokenizer, prompt, *(SETTINGS | settings).values()))


def shown(html):
    """The text of an answer, as a reader sees it."""
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_each_model_writes_what_it_would_alone(writers, tokenizer):
    *_, (message, first, _, second, _) = answers(writers, tokenizer, "Once upon")
    assert message == ""
    for html, writer in ((first, writers[0]), (second, writers[1])):
        text = writer.model.complete("Once upon", 6, temperature=0.8, top_k=50, seed=3)
        assert shown(html) == text.translate(markup._UNPRINTABLE)
        assert html.count('class="token') == 6
    assert first != second


def test_text_only_grows(writers, tokenizer, monkeypatch):
    monkeypatch.setattr(page, "REFRESH", 0)
    states = answers(writers, tokenizer, "Once upon")
    assert len(states) >= 12
    for before, after in pairwise(states):
        assert after[1].startswith(before[1])
        assert after[3].startswith(before[3])


def test_models_take_turns_and_nothing_is_computed_ahead(writers, tokenizer):
    steps = []
    hooks = [
        writer.model.transformer.register_forward_pre_hook(lambda *_, n=n: steps.append(n))
        for n, writer in enumerate(writers)
    ]
    stream = compare(writers, tokenizer, Request("Once", 50, Sampling(), 0))
    for _ in range(6):
        next(stream)
    stream.close()
    assert steps == [0, 1, 0, 1, 0, 1]
    for hook in hooks:
        hook.remove()


def test_probabilities_are_the_models_own(writers, tokenizer):
    *_, writings = compare(writers, tokenizer, Request("Once upon", 1, Sampling(temperature=0), 0))
    with torch.no_grad():
        logits, _ = writers[0].model(torch.tensor([tokenizer.encode("Once upon")]))
    probabilities = logits[0, -1, :50257].softmax(-1)
    token = writings[0].pieces[0].token
    assert token.probability == pytest.approx(float(probabilities.max()), rel=1e-4)
    assert [one for one, _ in token.top] == probabilities.topk(8).indices.tolist()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": None}, "the prompt is empty"),
        ({"prompt": "a\0b"}, "the prompt has a NUL (character 2)"),
        ({"prompt": "a\ud800"}, "not valid UTF-8"),
        ({"prompt": "word " * 40}, "the model's window (block_size) is 32"),
        ({"prompt": "a" * (LONGEST_PROMPT + 1)}, "8,000 are the most here"),
        ({"max_new_tokens": MOST_TOKENS + 1}, "it must be 1 to 512"),
        ({"max_new_tokens": -1}, "it must be 1 to 512"),
        ({"seed": None}, "seed is empty; give a number"),
        ({"seed": 2**70}, "it must fit into 64 bits"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is empty"),
        ({"top_k": -3}, "top_k is -3"),
    ],
)
def test_bad_input_is_one_line_on_the_page(writers, tokenizer, changed, says):
    settings = dict(changed)
    message, first, *_ = answers(writers, tokenizer, settings.pop("prompt", "Once"), **settings)[-1]
    assert says in shown(message)
    assert "Traceback" not in message
    assert first == ""


def test_what_a_model_writes_is_escaped(tokenizer):
    ids = [tokenizer.encode(text)[0] for text in ("<", '"', "&")]
    for one in ids:
        text = tokenizer.decode([one])
        html = markup.token(TextDelta(0, text, Token(0, one, 0.5, ((one, 0.5),))), 1, tokenizer)
        assert shown(html) == text
        assert re.fullmatch(r'<span [^<>]*"[^<>]*>[^<>"]*</span>', html)
    assert "<script" not in markup.prompt("<script>") + markup.message("<script>")


def test_levels_cover_all_probabilities():
    assert [markup.level(p) for p in (0.0, 0.009, 0.01, 0.05, 0.2, 0.5, 1.0)] == [0, 0, 1, 2, 3, 4, 4]
    assert [markup.percent(p) for p in (1, 0.042, 0.00013, 0)] == ["100%", "4.2%", "0.013%", "under 0.001%"]


def test_the_untrained_model_is_the_one_the_run_began_with(run, monkeypatch):
    seen = []
    monkeypatch.setattr(app_run.pages, "build", lambda writers, *_: seen.extend(writers))
    app_run.prepare(app_run.Options(str(run), device="cpu", precision="fp32"))
    torch.manual_seed(SEED)  # as training does
    began = GPT2(seen[1].model.config)
    assert torch.equal(seen[1].model.transformer.wpe.weight, began.transformer.wpe.weight)
    assert torch.equal(seen[0].model.transformer.wpe.weight, GPT2.from_pretrained(run).transformer.wpe.weight)
    assert "step 10" in seen[0].note


def test_two_models_are_called_by_their_names(run, tmp_path, monkeypatch):
    GPT2.from_pretrained(run).save_pretrained(tmp_path / "other")
    seen = []
    monkeypatch.setattr(app_run.pages, "build", lambda writers, *_: seen.extend(writers))
    app_run.prepare(app_run.Options(str(run), str(tmp_path / "other"), device="cpu"))
    assert [writer.name for writer in seen] == ["tiny", str(tmp_path / "other")]


def test_record_of_a_run(run, tmp_path):
    found = record.read(run)
    assert ("HellaSwag acc_norm", "0.2612") in found.figures
    assert ("validation loss", "9.250") in found.figures
    assert set(found.loss["what"]) == {"training", "validation"}
    assert found.loss["loss"].iloc[0] == pytest.approx(9.9)
    assert "GPT-2 124M: 0.2955" in set(found.hellaswag["what"])
    assert "has no config.yaml" in record.read(tmp_path).note
    (tmp_path / "config.yaml").write_text("")
    assert "no metrics.jsonl" in record.read(tmp_path).note
    assert "not from a run" in record.read(None).note
    (tmp_path / "metrics.jsonl").write_text(
        "".join(f'{{"step": {step}, "train/loss": {step}}}\n' for step in range(1, 5001))
    )
    long = record.read(tmp_path)
    assert len(long.loss) <= record.POINTS + 1
    assert long.loss["step"].iloc[-1] == 5000
    assert long.hellaswag is None
    assert "HellaSwag was not measured" in long.note


def test_mistakes_end_in_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    cases = {
        "has no checkpoint yet": ["--trained", str(tmp_path / "new")],
        "no such folder": ["--trained", str(tmp_path / "none")],
        "is not a port": ["--trained", "x", "--port", "70000"],
        "required: --trained": [],
    }
    for says, arguments in cases.items():
        assert cli.main(["app", *arguments]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    monkeypatch.setattr(app_run.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["app", "--trained", "x"]) == 2
    assert "pip install -e '.[app]'" in capsys.readouterr().err


def test_a_taken_port_is_named_and_the_next_tried(monkeypatch, capsys):
    tried = []

    def serve(page, port):
        tried.append(port)
        if port < 9003:
            raise OSError("taken")
        return f"http://127.0.0.1:{port}/"

    monkeypatch.setattr(app_run.pages, "serve", serve)
    assert app_run.serve(None, 9001) == "http://127.0.0.1:9003/"
    assert capsys.readouterr().out == "port 9001 is taken\nport 9002 is taken\n"
    tried.clear()
    with pytest.raises(GPT2LabError, match="no port from 8000 to 8099 is free"):
        app_run.serve(None, 8000)
    with pytest.raises(GPT2LabError, match="no port from 8500"):
        app_run.serve(None, 8500)


def get(address):
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(address, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_keeps_to_itself(served, tmp_path):
    address, _ = served
    assert address.startswith("http://127.0.0.1:")
    assert get(address) == 200
    (tmp_path / "secret.txt").write_text("secret")
    for path in (f"gradio_api/file={tmp_path}/secret.txt", "gradio_api/file=pyproject.toml"):
        assert get(address + path) in (403, 404), path
    for path in ("docs", "redoc", "openapi.json", "monitoring"):
        assert get(address + path) in (403, 404), path
    port = int(address.rstrip("/").rpartition(":")[2])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for other in others:
        if other.startswith("127."):
            continue
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((other, port)) != 0, other


def test_a_port_that_is_really_taken(served, run):
    """The whole verb, in a process of its own, beside the page that is served already."""
    address, _ = served
    port = int(address.rstrip("/").rpartition(":")[2])
    command = [sys.executable, "-m", "gpt2lab", "app", "--trained", str(run), "--device", "cpu", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = []
            while not lines or "http" not in lines[-1]:
                lines.append(process.stdout.readline())
                assert lines[-1], "the verb ended"
            assert lines[0] == f"port {port} is taken\n"
            assert get(lines[-1].split()[0]) == 200
        finally:
            process.send_signal(2)
            process.wait(20)
    assert process.returncode == 0

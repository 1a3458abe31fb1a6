"""The page without a browser: its responses, its errors, and what the server gives access to."""

import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from html import unescape
from itertools import pairwise
from typing import Any

import pytest
import torch

from gpt2lab import GPT2, cli, packages
from gpt2lab.app import markup, page, record
from gpt2lab.app import run as app_run
from gpt2lab.app.compare import MAX_NEW_TOKENS, MAX_PROMPT_CHARACTERS, compare
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import replace_control_characters
from gpt2lab.generation.engine import Token
from gpt2lab.generation.options import GenerationOptions, Sampling
from gpt2lab.generation.text import TextDelta
from gpt2lab.options import AppOptions
from tests.app.conftest import SEED, read

# In the order of the inputs on the page.
VALUES = {
    "continuations": 1,
    "max_new_tokens": 6,
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 1,
    "min_p": 0,
    "penalty": 1,
    "seed": 3,
}
COLUMN = page.MAX_CONTINUATIONS + 1  # outputs of a model: its texts, and the rate


def responses(models, tokenizer, prompt, **values):
    return list(page.respond(models, tokenizer, prompt, *(VALUES | values).values()))


def text_of(response, side, row=0):
    return response[1 + side * COLUMN + row]


def rate_of(response, side):
    return response[side * COLUMN + COLUMN]


def visible_text(html):
    """The text of a response, as a reader sees it."""
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_each_model_generates_the_text_that_it_generates_alone(models, tokenizer):
    *_, last = responses(models, tokenizer, "Once upon")
    first, second = text_of(last, 0), text_of(last, 1)
    assert last[0] == ""
    for html, compared in ((first, models[0]), (second, models[1])):
        text = compared.model.complete("Once upon", 6, temperature=0.8, top_k=50, seed=3)
        assert visible_text(html) == replace_control_characters(text)
        assert html.count('class="token') == 6
    assert first != second


def test_text_only_grows(models, tokenizer, monkeypatch):
    monkeypatch.setattr(page, "UPDATE_SECONDS", 0)
    states = responses(models, tokenizer, "Once upon")
    assert len(states) >= 12
    for before, after in pairwise(states):
        assert all(text_of(after, side).startswith(text_of(before, side)) for side in (0, 1))


@pytest.mark.parametrize("count", [2, 10])
def test_each_continuation_is_the_text_of_its_own_seed(models, tokenizer, count):
    last = responses(models, tokenizer, "Once upon", continuations=count)[-1]
    for side in (0, 1):
        for row in range(page.MAX_CONTINUATIONS):
            alone = responses(models, tokenizer, "Once upon", seed=3 + row)[-1]
            expected = visible_text(text_of(alone, side)) if row < count else ""
            assert visible_text(text_of(last, side, row)) == expected
        assert f"{6 * count} tokens" in rate_of(last, side)
    assert 'data-n="1"' in text_of(last, 1, count - 1)


def test_a_request_ends_after_its_seconds_with_what_it_has(models, tokenizer):
    first = responses(models, tokenizer, "Once upon", max_new_tokens=100)
    assert len(re.findall('class="token', text_of(first[-1], 0))) == 100
    stream = page.respond(models, tokenizer, "Once upon", *(VALUES | {"max_new_tokens": 100}).values(), max_seconds=0)
    *_, last = stream
    assert "may compute for 0 s" in visible_text(last[0])
    assert len(re.findall('class="token', text_of(last, 0))) == 1


def test_models_take_turns_and_nothing_is_computed_ahead(models, tokenizer):
    steps = []
    hooks = [
        compared.model.transformer.register_forward_pre_hook(lambda *_, side=side: steps.append(side))
        for side, compared in enumerate(models)
    ]
    stream = compare(models, tokenizer, "Once", GenerationOptions(50))
    for _ in range(6):
        next(stream)
    stream.close()
    assert steps == [0, 1, 0, 1, 0, 1]
    for hook in hooks:
        hook.remove()


def test_probabilities_are_the_models_own(models, tokenizer):
    (_, continuation), _ = compare(models, tokenizer, "Once upon", GenerationOptions(1, Sampling(temperature=0)))
    with torch.no_grad():
        logits, _ = models[0].model(torch.tensor([tokenizer.encode("Once upon")]))
    probabilities = logits[0, -1, :50257].softmax(-1)
    token = continuation.deltas[0].token
    assert token.probability == pytest.approx(float(probabilities.max()), rel=1e-4)
    assert [id_ for id_, _ in token.top] == probabilities.topk(8).indices.tolist()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a\0b"}, "NUL"),
        ({"prompt": "a\ud800"}, "UTF-8"),
        ({"prompt": "a" * (MAX_PROMPT_CHARACTERS + 1)}, f"{MAX_PROMPT_CHARACTERS:,}"),
        ({"max_new_tokens": MAX_NEW_TOKENS + 1}, "max_new_tokens"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"seed": None}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -3}, "top_k"),
        ({"continuations": 0}, "continuations"),
        ({"continuations": 11}, "continuations"),
        ({"continuations": None}, "continuations"),
        ({"prompt": "a" * 10_000_000}, "10,000,000"),
    ],
)
def test_bad_input_is_one_line_on_the_page(models, tokenizer, values, key):
    values = {"prompt": "Once"} | values
    last = responses(models, tokenizer, values.pop("prompt"), **values)[-1]
    message, first = last[0], text_of(last, 0)
    assert key in visible_text(message)
    assert "Traceback" not in message
    assert first == ""


def test_generated_text_is_escaped(tokenizer):
    ids = [tokenizer.encode(text)[0] for text in ("<", '"', "&")]
    for id_ in ids:
        text = tokenizer.decode([id_])
        html = markup.token(TextDelta(0, text, Token(0, id_, 0.5, ((id_, 0.5),))), 1, tokenizer)
        assert visible_text(html) == text
        assert re.fullmatch(r'<span [^<>]*"[^<>]*>[^<>"]*</span>', html)
    assert "<script" not in markup.macros.prompt("<script>") + markup.macros.message("<script>")


def test_levels_cover_all_probabilities():
    assert [markup.level(p) for p in (0.0, 0.009, 0.01, 0.05, 0.2, 0.5, 1.0)] == [0, 0, 1, 2, 3, 4, 4]
    assert [markup.format_probability(p) for p in (1, 0.042, 0.00013, 0)] == ["100%", "4.2%", "0.013%", "under 0.001%"]


def test_the_untrained_model_has_the_initial_weights_of_the_run(run, monkeypatch):
    built = []
    monkeypatch.setattr(app_run.pages, "build", lambda models, *_: built.extend(models))
    app_run.prepare(AppOptions(str(run), device="cpu", precision="fp32"))
    torch.manual_seed(SEED)  # as training does
    initial = GPT2(built[1].model.config)
    assert torch.equal(built[1].model.transformer.wpe.weight, initial.transformer.wpe.weight)
    assert torch.equal(built[0].model.transformer.wpe.weight, GPT2.from_pretrained(run).transformer.wpe.weight)
    assert "step 10" in built[0].note


def test_loading_the_models_shows_progress(run, monkeypatch, phases):
    shown = []
    monkeypatch.setattr(app_run, "_load_models", lambda *_: shown.extend(phases.open) or [])
    monkeypatch.setattr(app_run.pages, "build", lambda *_: None)
    app_run.prepare(AppOptions(str(run), device="cpu", precision="fp32"))
    assert shown


def test_two_trained_models_have_their_own_names(run, tmp_path, monkeypatch):
    GPT2.from_pretrained(run).save_pretrained(tmp_path / "other")
    built = []
    monkeypatch.setattr(app_run.pages, "build", lambda models, *_: built.extend(models))
    app_run.prepare(AppOptions(str(run), str(tmp_path / "other"), device="cpu"))
    assert [compared.name for compared in built] == ["tiny", "other"]  # not the path, which others may see


def test_the_page_says_which_part_of_a_long_prompt_is_read(models, tokenizer):
    final = responses(models, tokenizer, "word " * 40)[-1]
    assert final[0] == ""
    assert "40 tokens" in rate_of(final, 0).replace("41", "40")
    assert "block_size" in rate_of(final, 0)
    assert "block_size" not in rate_of(responses(models, tokenizer, "word")[-1], 0)


def test_a_run_that_has_gone_on_is_not_shown_as_the_weights_of_the_page(run, tmp_path):
    last = record.read(run).figures[0][1]
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    assert "weights of step" not in record.read(folder, int(last)).note
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 2000, "train/loss": 1.0}\n')
    note = record.read(folder, int(last)).note
    assert f"end at step 2,000; the text is that of the weights of step {last}, the newest checkpoint" in note
    (folder / "checkpoints" / "step_00001900").mkdir()
    assert "checkpoint of step 1,900: start the app again" in record.read(folder, int(last)).note


def test_record_of_a_run(run, tmp_path):
    current = record.read(run)
    assert ("HellaSwag acc_norm", "0.2612") in current.figures
    assert ("validation loss", "9.250") in current.figures
    assert set(current.loss["curve"]) == {"training", "validation"}
    assert current.loss["loss"].iloc[0] == pytest.approx(9.9)
    assert "GPT-2 124M: 0.2955" in set(current.hellaswag["curve"])
    assert "config.yaml" in record.read(tmp_path).note
    assert str(tmp_path) not in record.read(tmp_path).note
    (tmp_path / "config.yaml").write_text("run:\n")
    assert "metrics.jsonl" in record.read(tmp_path).note
    assert record.read(None).loss is None
    (tmp_path / "metrics.jsonl").write_text(
        "".join(f'{{"step": {step}, "train/loss": {step}}}\n' for step in range(1, 5001))
    )
    long = record.read(tmp_path)
    assert len(long.loss) <= record.MAX_POINTS + 1
    assert 4980 < long.loss["step"].iloc[-1] <= 5000  # the mean of the last steps
    assert long.hellaswag is None
    assert "HellaSwag" in long.note


def test_bad_options_are_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    cases = [
        (["--trained", str(tmp_path / "new")], "new"),
        (["--trained", str(tmp_path / "none")], "none"),
        (["--trained", "x", "--port", "70000"], "--port"),
        ([], "--trained"),
    ]
    for arguments, key in cases:
        assert cli.main(["app", *arguments]) == 2
        error = capsys.readouterr().err
        assert key in error
        assert error.count("\n") == 1
    monkeypatch.setattr(packages, "is_installed", lambda name: False)
    assert cli.main(["app", "--trained", "x"]) == 2
    assert "-e '.[app]'" in capsys.readouterr().err


def test_taken_ports_are_logged_and_the_next_one_is_tried(caplog):
    caplog.set_level("INFO")

    class Page:
        def launch(self, server_port, **_):
            if server_port < 9003:
                raise OSError("taken")
            return None, f"http://127.0.0.1:{server_port}/", None

        def close(self, verbose):
            pass

    blocks: Any = Page()
    assert page.serve(blocks, 9001) == ["http://127.0.0.1:9003/"]
    assert caplog.messages == [f"port {port} is taken; trying the next" for port in (9001, 9002)]
    with pytest.raises(GPT2LabError, match="8000 to 8099"):
        page.serve(blocks, 8000)
    assert caplog.messages[-1] == "port 8099 is taken"
    with pytest.raises(GPT2LabError, match="8500"):
        page.serve(blocks, 8500)


def test_starting_the_page_shows_progress(monkeypatch, phases):
    class Page:
        def block_thread(self):
            assert not phases.open

    def serve(*_):
        assert [phase.description for phase in phases.open] == ["starting the page"]
        return ["http://127.0.0.1:9003/"]

    monkeypatch.setattr(app_run, "prepare", lambda _: Page())
    monkeypatch.setattr(page, "serve", serve)
    assert cli.main(["app", "--trained", "x"]) == 0
    assert [phase.description for phase in phases.begun] == ["starting the page"]


def get(address):
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(address, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_gives_no_access_to_files_or_other_machines(served, tmp_path):
    address, _ = served
    assert address.startswith("http://127.0.0.1:")
    assert get(address) == 200
    (tmp_path / "secret.txt").write_text("secret")
    for path in (f"gradio_api/file={tmp_path}/secret.txt", "gradio_api/file=pyproject.toml"):
        assert get(address + path) in (403, 404), path
    for path in ("docs", "redoc", "openapi.json", "monitoring"):
        assert get(address + path) in (403, 404), path
    assert str(tmp_path.parent.parent) not in read(address + "config")
    port = int(address.rstrip("/").rpartition(":")[2])
    others = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {
        "127.0.0.1"
    }
    for other in others:
        if other.startswith("127."):
            continue
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((other, port)) != 0, other


@pytest.mark.slow  # what the two tests above and tests/test_readme.py check, in one process
def test_the_verb_uses_the_next_port_while_another_page_is_served(served, run):
    """The verb in its own process, while this process serves a page."""
    address, _ = served
    port = int(address.rstrip("/").rpartition(":")[2])
    command = [sys.executable, "-m", "gpt2lab", "app", "--trained", str(run), "--device", "cpu", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = []
            while not lines or "http" not in lines[-1]:
                lines.append(process.stdout.readline())
                assert lines[-1], "the process ended"
            assert str(port) in "".join(lines[:-1])
            assert get(lines[-1].split()[0]) == 200
        finally:
            process.send_signal(2)
            process.wait(60)
    assert process.returncode == 0


def test_a_damaged_config_yaml_is_a_warning(run, tmp_path, monkeypatch, caplog):
    shutil.copytree(run, tmp_path / "x")
    (tmp_path / "x" / "config.yaml").write_text("garbage")
    built = []
    monkeypatch.setattr(app_run.pages, "build", lambda models, *_: built.extend(models))
    app_run.prepare(AppOptions(str(tmp_path / "x"), device="cpu", precision="fp32"))
    assert len(built) == 2
    assert "until then the untrained model may have another seed" in caplog.text

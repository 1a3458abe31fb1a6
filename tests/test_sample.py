"""The `sample` verb: sources of the prompt, output, and errors in one line."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpt2lab import GPT2, GPT2Config, cli, files, sample
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation import prompts
from gpt2lab.generation.engine import Token
from gpt2lab.generation.text import TextDelta

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tiny model with GPT-2's vocabulary, on disk."""
    folder = tmp_path_factory.mktemp("model")
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, block_size=32)
    GPT2(config, generator=torch.Generator().manual_seed(0)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def ask(folder, capsys, monkeypatch):
    """Run the verb in this process: (exit status, standard output, standard error)."""

    def ask(*options: str, stdin: bytes | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(prompts, "_is_piped", lambda: stdin is not None)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin or b"")))
        command = ["sample", "--model-checkpoint", folder, "--max-new-tokens", "6", "--device", "cpu"]
        status = cli.main([*command, *options])
        return status, *capsys.readouterr()

    return ask


def test_samples_start_with_the_prompt_and_seeds_decide_them(ask):
    status, first, _ = ask("--prompt", "Once upon", "--num-samples", "3", "--seed", "7")
    samples = first.removesuffix("\n").split(sample.SEPARATOR)
    assert status == 0
    assert len(set(samples)) == 3
    assert all(text.startswith("Once upon") for text in samples)
    for number, text in enumerate(samples):
        assert ask("--prompt", "Once upon", "--num-samples", "1", "--seed", str(7 + number))[1] == text + "\n"


def test_an_interruption_ends_the_line(ask, monkeypatch):
    def interrupted(prompt, *_):
        yield prompt
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "in_order", interrupted)
    status, out, error = ask("--prompt", "Once upon")
    assert (status, out) == (130, "Once upon\n")
    assert "interrupted" in error


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_output_that_cannot_be_written_is_named(ask, monkeypatch, options):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    status, _, error = ask("--prompt", "Once", *options)
    assert status == 2
    assert "standard output: No space left" in error


def test_json_is_one_object_with_the_same_texts(ask):
    options = ("--prompt", "Once upon", "--num-samples", "2", "--top-k", "0", "--top-p", "0.9")
    answer = json.loads(ask(*options, "--json")[1])
    assert answer["prompt"] == "Once upon"
    assert answer["settings"]["top_k"] is None
    assert answer["settings"]["top_p"] == 0.9
    assert [one["seed"] for one in answer["samples"]] == [42, 43]
    assert [(one["tokens"], one["end"]) for one in answer["samples"]] == [(6, "length")] * 2
    texts = ask(*options)[1].removesuffix("\n").split(sample.SEPARATOR)
    assert ["Once upon" + one["completion"] for one in answer["samples"]] == texts


def test_loading_the_model_shows_progress(ask, phases):
    assert ask("--prompt", "Once")[0] == 0
    assert "loading the model" in [phase.description for phase in phases.begun]


def test_a_damaged_checkpoint_is_skipped_with_a_warning(ask, folder, tmp_path):
    for step in (1, 2):
        checkpoint = tmp_path / "x" / "checkpoints" / f"step_{step:08d}"
        shutil.copytree(folder, checkpoint)
        files.write_digests(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"damaged")
    _, out, err = ask("--prompt", "Hello", "--json", "--model-checkpoint", str(tmp_path / "x"))
    assert json.loads(out)["checkpoint"].endswith("step_00000001")
    assert str(checkpoint) in err


def test_temperature_0_is_greedy(ask):
    texts = ask("--temperature", "0", "--num-samples", "2")[1].removesuffix("\n").split(sample.SEPARATOR)
    assert texts[0] == texts[1] == ask("--top-k", "1", "--num-samples", "1")[1].removesuffix("\n")
    assert texts[0].startswith(prompts.DEFAULT)


def test_a_stop_string_ends_a_sample(ask):
    (one,) = json.loads(ask("--json", "--num-samples", "1")[1])["samples"]
    stop = one["completion"][4:7]
    (cut,) = json.loads(ask("--json", "--num-samples", "1", "--stop", "never", "--stop", stop)[1])["samples"]
    assert cut["completion"] == one["completion"][: one["completion"].index(stop)]
    assert cut["end"] == "stop"


def test_more_samples_than_one_batch(ask, monkeypatch):
    together = ask("--num-samples", "5")[1]
    monkeypatch.setattr(sample, "BATCH_SIZE", 2)
    assert ask("--num-samples", "5")[1] == together


def test_the_prompt_comes_from_a_file_or_a_pipe(ask, tmp_path):
    (tmp_path / "prompt.txt").write_bytes("Zwölf Boxkämpfer\r\n".encode("utf-8-sig"))
    _, expected, _ = ask("--prompt", "Zwölf Boxkämpfer")
    assert ask("--prompt-file", str(tmp_path / "prompt.txt"))[1] == expected
    assert ask(stdin="Zwölf Boxkämpfer\n".encode())[1] == expected
    assert ask("--prompt", "-", stdin="Zwölf Boxkämpfer".encode())[1] == expected
    assert ask("--prompt-file", "-", stdin="Zwölf Boxkämpfer".encode())[1] == expected
    assert ask("--prompt", "Zwölf Boxkämpfer", stdin=b"not read")[1] == expected


@pytest.mark.slow
def test_a_real_pipe_and_no_pipe_at_all(folder):
    command = [sys.executable, "-m", "gpt2lab", "sample", "--model-checkpoint", folder, "--max-new-tokens", "3"]
    options: dict[str, Any] = {
        "capture_output": True,
        "check": False,
        "env": os.environ | {"PYTHONPATH": str(REPOSITORY)},
    }
    piped = subprocess.run(command, input="Zwölf".encode(), **options)
    assert (piped.returncode, piped.stdout.startswith("Zwölf".encode())) == (0, True)
    assert all(line.startswith(b"loading ") for line in piped.stderr.splitlines())  # on a slow machine
    nothing = subprocess.run(command, stdin=subprocess.DEVNULL, **options)
    assert nothing.stdout.startswith(prompts.DEFAULT.encode())


def test_an_argument_that_is_not_valid_utf_8_is_one_line(ask):
    status, out, error = ask("--prompt", os.fsdecode(b"a\xffb"))
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert "the prompt is not valid UTF-8 (character 2); type it in a UTF-8 locale (LC_ALL=C.UTF-8)" in error


def test_the_first_sample_is_printed_as_it_grows_and_the_others_follow_in_order():
    def delta(row, text, end=None):
        return TextDelta(row, text, Token(row, 0), end)

    deltas = [delta(0, "a"), delta(1, "b"), delta(2, "c"), delta(0, "d"), delta(1, "e"), delta(2, "f", "stop")]
    deltas += [delta(0, "", "stop"), delta(1, "g"), delta(1, "h", "length")]
    separator = sample.SEPARATOR
    parts = ["Pa", "d", "", f"{separator}Pbe", "g", "h", f"{separator}Pcf"]
    assert list(sample.in_order("P", 3, deltas)) == parts


def test_a_prompt_longer_than_the_window_is_continued_with_a_note_beside_the_text(ask):
    prompt = "word" + " word" * 40
    status, out, error = ask("--prompt", prompt, "--num-samples", "1")
    assert status == 0
    assert out.startswith(prompt)
    assert "41 tokens; the model reads the last 32" in error


# Options, piped input, and the key that the message names.
BAD_INPUT = [
    (["--prompt", ""], None, "the prompt is empty"),
    ([], b"\n", "the prompt is empty"),
    ([], b"a\0b", "NUL"),
    ([], b"ab\xff", "standard input"),
    ([], b"a" * (2**20 + 1), "standard input"),
    (["--prompt-file", "nowhere.txt"], None, "--prompt-file nowhere.txt"),
    (["--prompt", "a", "--prompt-file", "b"], None, "--prompt-file"),
    (["--num-samples", "-1"], None, "--num-samples"),
    (["--max-new-tokens", "0"], None, "--max-new-tokens"),
    (["--max-new-tokens", "many"], None, "--max-new-tokens"),
    (["--top-k", "-3"], None, "--top-k"),
    (["--temperature", "-1"], None, "temperature"),
    (["--top-p", "1.5"], None, "top_p"),
    (["--min-p", "nan"], None, "min-p"),
    (["--seed", str(2**64)], None, "seed"),
    (["--stop", ""], None, "stop"),
    (["--model-checkpoint", "runs/nowhere"], None, "runs/nowhere"),
]


@pytest.mark.parametrize(("options", "stdin", "key"), BAD_INPUT)
@pytest.mark.parametrize("format_options", [(), ("--json",)])
def test_bad_input_is_one_line_and_exit_status_2(options, stdin, key, format_options, ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, error = ask(*options, *format_options, stdin=stdin)
    assert (status, out) == (2, "")
    assert key in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt-file", "nowhere.txt"], "--prompt-file nowhere.txt: No such file"),
        (["--prompt", "a", "--prompt-file", "b"], "--prompt and --prompt-file"),
        (["--seed", str(2**64)], "seed is 18446744073709551616"),
    ],
)
def test_a_mistake_in_an_option_is_found_before_torch_is_loaded(options, key, folder):
    command = [sys.executable, "-m", "gpt2lab", "sample", "--model-checkpoint", folder, *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"gpt2lab: {key}")  # rather than `loading torch`


def test_a_long_file_that_is_no_text_is_not_called_long(tmp_path):
    (tmp_path / "weights").write_bytes(b"\x08\xff" * 2**20)
    with pytest.raises(GPT2LabError, match="not valid UTF-8 at byte 1"):
        prompts.read(None, str(tmp_path / "weights"))
    (tmp_path / "text").write_text("a" + "é" * 2**20)  # the part that is read ends inside a character
    with pytest.raises(GPT2LabError, match="longer than any context window"):
        prompts.read(None, str(tmp_path / "text"))

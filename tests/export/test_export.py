"""What `gpt2lab export` leaves: a folder that transformers opens as the same model, whole, in nobody's way."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from gpt2lab import GPT2, GPT2Config, Tokenizer, cli
from gpt2lab.errors import GPT2LabError
from gpt2lab.export import run as export_run
from gpt2lab.export.run import export
from tests.model.test_huggingface import random_model

PROMPTS = ("Hello this is AI model,", "  two spaces", "naïve 東京 🙂", "\n\ndef f(x):", "7")


def quiet(*arguments, **options):
    return export(*arguments, say=lambda text: None, **options)


def padded(tied: bool = True) -> GPT2:
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, block_size=96, vocab_size=50304, tie_word_embeddings=tied)
    return random_model(config)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tied model with a padded vocabulary. Do not write to it."""
    folder = tmp_path_factory.mktemp("source")
    padded().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_transformers_continues_a_text_as_we_do(tmp_path, dtype, tied):
    transformers = pytest.importorskip("transformers")
    ours = padded(tied)
    ours.save_pretrained(tmp_path / "source")
    out = quiet(tmp_path / "source", tmp_path / "deep" / "out", dtype)
    if dtype != "fp32":  # rounding may change what is said, but not from one reader to the other
        ours = GPT2.from_pretrained(out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs.config.vocab_size == len(tokenizer) == 50257
    for prompt in PROMPTS:
        ids = torch.tensor([Tokenizer().encode(prompt)])
        expected = Tokenizer().decode(ours.generate(ids, 64, temperature=0)[0].tolist())
        given = tokenizer(prompt, return_tensors="pt")
        made = theirs.generate(**given, max_new_tokens=64, do_sample=False, pad_token_id=50256)
        assert tokenizer.decode(made[0]) == expected


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_padding_is_gone_and_nothing_else(tmp_path, tied):
    model = padded(tied)
    model.save_pretrained(tmp_path / "source")
    out = quiet(tmp_path / "source", tmp_path / "out")
    assert {file.name for file in out.iterdir()} == export_run.NAMES
    state = model.state_dict()
    for name, tensor in GPT2.from_pretrained(out).state_dict().items():
        assert torch.equal(tensor, state[name][:50257] if len(state[name]) == 50304 else state[name])
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) != tied
    again = quiet(out, tmp_path / "again")  # there is nothing left to trim
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_what_other_tools_look_for_in_the_config(source, tmp_path):
    values = json.loads((quiet(source, tmp_path / "out", "bf16") / "config.json").read_text())
    assert values["architectures"] == ["GPT2LMHeadModel"]  # vLLM, llama.cpp's converter
    assert (values["model_type"], values["dtype"], values["vocab_size"]) == ("gpt2", "bfloat16", 50257)
    assert values["n_ctx"] == values["n_positions"] == 96  # llama.cpp's converter reads the former
    assert values["bos_token_id"] == values["eos_token_id"] == 50256


def test_weights_that_the_dtype_can_not_hold(tmp_path):
    model = padded()
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = 1e6
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(GPT2LabError, match=r"transformer.ln_f.bias has values that are no numbers in fp16; .* fp32"):
        quiet(tmp_path / "source", tmp_path / "out", "fp16")
    assert not (tmp_path / "out").exists()
    quiet(tmp_path / "source", tmp_path / "out", "bf16")


def test_another_vocabulary_has_no_tokenizer(tmp_path):
    random_model(GPT2Config(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=300)).save_pretrained(
        tmp_path / "m"
    )
    with pytest.raises(GPT2LabError, match="its vocabulary of 300 is not GPT-2's of 50257"):
        quiet(tmp_path / "m", tmp_path / "out")


# --- Where it may go.


def test_an_earlier_export_is_replaced(source, tmp_path):
    out = quiet(source, tmp_path / "out", "fp32")
    size = (out / "model.safetensors").stat().st_size
    quiet(source, tmp_path / "out", "bf16")
    assert (out / "model.safetensors").stat().st_size < 0.6 * size
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def occupied(tmp_path, source, what):
    out = tmp_path / "out"
    if what == "a file":
        out.write_text("mine")
    elif what == "a checkpoint":
        shutil.copytree(source, out)
        (out / "state.json").write_text("{}")
    elif what == "other things":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    else:
        quiet(source, out)
        changed = {"a card written on": "README.md", "a changed config": "config.json"}.get(what)
        if changed:
            (out / changed).write_text("mine")
        elif what == "an export without its digests":
            (out / "SHA256SUMS").unlink()
        else:
            (out / "notes").mkdir()
    return out


def contents(path):
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {file: file.read_bytes() if file.is_file() else None for file in files}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a file", "out is a file; give a new or empty folder with --out"),
        ("a checkpoint", "out is not empty, and state.json in it is not from an export"),
        ("other things", "out is not empty, and thesis.txt in it is not from an export"),
        ("a card written on", "no export as it was written .*README.md does not match"),
        ("a changed config", "no export as it was written .*config.json does not match"),
        ("an export without its digests", "no export as it was written .*no readable SHA256SUMS"),
        ("an export and a folder in it", "out is not empty, and notes in it is not from an export"),
    ],
)
def test_nothing_else_is_overwritten(source, tmp_path, what, message):
    out = occupied(tmp_path, source, what)
    before = contents(out)
    with pytest.raises(GPT2LabError, match=message):
        quiet(source, out)
    assert contents(out) == before


def test_an_empty_folder_and_the_current_one_will_do(source, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    quiet(source, ".")
    assert (tmp_path / "here" / "model.safetensors").exists()


def test_the_model_itself_as_out(source, tmp_path):
    out = quiet(source, tmp_path / "out", "fp32")
    quiet(out, out, "bf16")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("limit", [10_000, 600_000, 5_000_000])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(source, tmp_path, limit):
    """In a process of its own, because the limit on a file's size that stands in for a full disk can't be lifted."""
    out = quiet(source, tmp_path / "out")
    before = contents(tmp_path)
    code = (
        "import resource, signal, sys\n"
        "from gpt2lab import cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.exit(cli.main(['export', '--model-checkpoint', sys.argv[1], '--out', sys.argv[2]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, source, out], capture_output=True, text=True, check=False)
    if limit < 3_200_000:
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("gpt2lab: cannot write ")
        assert done.stderr.count("\n") == 1
    else:
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == before


# --- The verb.


def test_the_verb(source, tmp_path, capsys):
    arguments = ["export", "--model-checkpoint", str(source), "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, "--dtype", "fp16"]) == 0
    assert "vocabulary trimmed from 50304: written to" in capsys.readouterr().out
    assert cli.main([*arguments, "--dtype", "int8"]) == 2
    assert cli.main(["export", "--model-checkpoint", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "config.json: no such file" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_model_of_the_mirror(source, tmp_path):
    shutil.copytree(source, tmp_path / "mirror" / "gpt2-large")
    out = quiet("gpt2-large", tmp_path / "out", mirror=tmp_path / "mirror")
    assert "# gpt2-large\n" in (out / "README.md").read_text()

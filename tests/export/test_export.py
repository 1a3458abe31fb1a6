"""`gpt2lab export`: transformers opens the folder as the same model, and other files are not overwritten."""

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


def padded_model(tied: bool = True) -> GPT2:
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, block_size=96, vocab_size=50304, tie_word_embeddings=tied)
    return random_model(config)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tied model with a padded vocabulary. Do not write to it."""
    folder = tmp_path_factory.mktemp("source")
    padded_model().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_transformers_generates_the_same_text(tmp_path, dtype, tied):
    transformers = pytest.importorskip("transformers")
    model = padded_model(tied)
    model.save_pretrained(tmp_path / "source")
    out = export(tmp_path / "source", tmp_path / "deep" / "out", dtype)
    if dtype != "fp32":  # rounding may change the text, so compare with the rounded weights
        model = GPT2.from_pretrained(out)
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert hf_model.config.vocab_size == len(tokenizer) == 50257
    for prompt in PROMPTS:
        ids = torch.tensor([Tokenizer().encode(prompt)])
        expected = Tokenizer().decode(model.generate(ids, 64, temperature=0)[0].tolist())
        inputs = tokenizer(prompt, return_tensors="pt")
        generated = hf_model.generate(**inputs, max_new_tokens=64, do_sample=False, pad_token_id=50256)
        assert tokenizer.decode(generated[0]) == expected


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_only_the_padding_of_the_vocabulary_is_removed(tmp_path, tied):
    model = padded_model(tied)
    model.save_pretrained(tmp_path / "source")
    out = export(tmp_path / "source", tmp_path / "out")
    assert {file.name for file in out.iterdir()} == export_run.NAMES
    state = model.state_dict()
    for name, tensor in GPT2.from_pretrained(out).state_dict().items():
        assert torch.equal(tensor, state[name][:50257] if len(state[name]) == 50304 else state[name])
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) != tied
    again = export(out, tmp_path / "again")  # there is nothing left to trim
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_the_config_has_the_keys_that_other_tools_read(source, tmp_path):
    values = json.loads((export(source, tmp_path / "out", "bf16") / "config.json").read_text())
    assert values["architectures"] == ["GPT2LMHeadModel"]  # vLLM, llama.cpp's converter
    assert (values["model_type"], values["dtype"], values["vocab_size"]) == ("gpt2", "bfloat16", 50257)
    assert values["n_ctx"] == values["n_positions"] == 96  # llama.cpp's converter reads the former
    assert values["bos_token_id"] == values["eos_token_id"] == 50256


def test_weights_that_the_dtype_cannot_represent_are_an_error(tmp_path):
    model = padded_model()
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = 1e6
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(GPT2LabError, match=r"transformer\.ln_f\.bias.*fp16"):
        export(tmp_path / "source", tmp_path / "out", "fp16")
    assert not (tmp_path / "out").exists()
    export(tmp_path / "source", tmp_path / "out", "bf16")


def test_another_vocabulary_is_an_error(tmp_path):
    random_model(GPT2Config(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=300)).save_pretrained(
        tmp_path / "m"
    )
    with pytest.raises(GPT2LabError, match="vocabulary of 300"):
        export(tmp_path / "m", tmp_path / "out")


# --- The output folder.


def test_an_earlier_export_is_replaced(source, tmp_path):
    out = export(source, tmp_path / "out", "fp32")
    size = (out / "model.safetensors").stat().st_size
    export(source, tmp_path / "out", "bf16")
    assert (out / "model.safetensors").stat().st_size < 0.6 * size
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def make_occupied(tmp_path, source, content):
    out = tmp_path / "out"
    if content == "a file":
        out.write_text("mine")
    elif content == "a checkpoint":
        shutil.copytree(source, out)
        (out / "state.json").write_text("{}")
    elif content == "other files":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    else:
        export(source, out)
        changed = {"a changed card": "README.md", "a changed config": "config.json"}.get(content)
        if changed:
            (out / changed).write_text("mine")
        elif content == "an export without digests":
            (out / "SHA256SUMS").unlink()
        else:
            (out / "notes").mkdir()
    return out


def contents(path):
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {file: file.read_bytes() if file.is_file() else None for file in files}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("a file", "out"),
        ("a checkpoint", r"state\.json"),
        ("other files", r"holds .thesis\.txt., which is not from an export"),
        ("a changed card", r"README\.md"),
        ("a changed config", r"config\.json"),
        ("an export without digests", "SHA256SUMS"),
        ("an export with another folder", "notes"),
    ],
)
def test_other_content_is_not_overwritten(source, tmp_path, content, named):
    out = make_occupied(tmp_path, source, content)
    before = contents(out)
    with pytest.raises(GPT2LabError, match=named):
        export(source, out)
    assert contents(out) == before


def test_the_export_of_another_model_is_not_overwritten(source, tmp_path):
    out = export(source, tmp_path / "out")
    before = contents(out)
    other = shutil.copytree(source, tmp_path / "other")
    with pytest.raises(GPT2LabError, match=f"holds the export of {source.name}, not of other; give another folder"):
        export(other, out)
    assert contents(out) == before


def test_the_current_folder_can_be_the_output(source, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(source, ".")
    assert (tmp_path / "here" / "model.safetensors").exists()


def test_an_export_can_replace_itself(source, tmp_path):
    out = export(source, tmp_path / "out", "fp32")
    export(out, out, "bf16")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("limit", [pytest.param(10_000, marks=pytest.mark.slow), 600_000, 5_000_000])
def test_a_full_disk_is_a_one_line_error_and_changes_nothing(source, tmp_path, limit):
    """The limit on the size of a file stands in for a full disk. It cannot be lifted, hence the subprocess."""
    out = export(source, tmp_path / "out")
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


# --- The command.


def test_the_command(source, tmp_path, capsys):
    arguments = ["export", "--model-checkpoint", str(source), "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, "--dtype", "fp16"]) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    assert cli.main([*arguments, "--dtype", "int8"]) == 2
    assert cli.main(["export", "--model-checkpoint", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "config.json" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_model_from_the_mirror(source, tmp_path):
    shutil.copytree(source, tmp_path / "mirror" / "gpt2-large")
    out = export("gpt2-large", tmp_path / "out", mirror=tmp_path / "mirror")
    assert "# gpt2-large\n" in (out / "README.md").read_text()

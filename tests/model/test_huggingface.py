"""Reading and writing models: compatible with transformers in both directions; one-line errors for damaged folders."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2lab.config import GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import config_json, huggingface, weight_files
from gpt2lab.model.gpt2 import GPT2
from tests.model.helpers import TINY, assert_refused, random_model, random_tokens, same_weights, to_openai_layout


def assert_same_output(model: GPT2, reference, idx: torch.Tensor) -> None:
    """Logits and loss equal those of a transformers model, with and without ignored targets."""
    reference.eval()
    targets = idx.clone()
    targets[:, 3:6] = -100
    with torch.no_grad():
        expected = reference(idx).logits
        assert expected.std() > 0.1
        assert (model(idx)[0] - expected).abs().max() <= 1e-5
        for labels in (idx, targets):  # transformers shifts the labels itself
            loss = model(idx[:, :-1], labels[:, 1:])[1]
            assert loss.item() == pytest.approx(reference(idx, labels=labels).loss.item(), abs=1e-4)


# Layers and heads of the published models, but narrow; head tied or not, vocabulary padded or not.
architectures = pytest.mark.parametrize(
    ("n_layer", "n_head", "vocab_size", "tied"),
    [(depth, heads, 50257, True) for depth, heads in ((12, 12), (24, 16), (36, 20), (48, 25))]
    + [(depth, heads, 50304, False) for depth, heads in ((12, 12), (24, 16), (36, 20), (48, 25))]
    + [(12, 12, 50257, False), (12, 12, 50304, True)],
)


@architectures
def test_transformers_loads_saved_models(tmp_path, n_layer, n_head, vocab_size, tied):
    transformers = pytest.importorskip("transformers")
    config = GPT2Config(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=4 * n_head,
        block_size=16,
        vocab_size=vocab_size,
        tie_word_embeddings=tied,
    )
    model = random_model(config)
    model.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tied
    reference, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert type(reference).__name__ == "GPT2LMHeadModel"
    assert_same_output(model, reference, random_tokens(2, 16, vocab_size=vocab_size))


@architectures
def test_models_saved_by_transformers_are_loaded(tmp_path, n_layer, n_head, vocab_size, tied):
    transformers = pytest.importorskip("transformers")
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": 4 * n_head, "vocab_size": vocab_size}
    torch.manual_seed(0)
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, n_positions=16, tie_word_embeddings=tied))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    reference.save_pretrained(tmp_path / "one")
    reference.save_pretrained(tmp_path / "several", max_shard_size="200KB")
    assert len(list((tmp_path / "several").glob("model-*.safetensors"))) > 2
    model = GPT2.from_pretrained(tmp_path / "one")
    assert model.config == GPT2Config(**shape, block_size=16, tie_word_embeddings=tied)
    assert_same_output(model, reference, random_tokens(2, 16, vocab_size=vocab_size))
    assert same_weights(model, GPT2.from_pretrained(tmp_path / "several"))


@pytest.mark.slow
def test_logits_of_the_full_size(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = GPT2(GPT2Config(), generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_output(model, reference, random_tokens(1, 64, vocab_size=50257))


def test_the_config_has_the_end_of_text_token_if_the_vocabulary_does(tmp_path):
    for vocab_size, end in ((50304, 50256), (50257, 50256), (50256, None)):
        random_model(TINY.model_copy(update={"vocab_size": vocab_size})).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == end


@pytest.mark.parametrize("tied", [True, False])
def test_saving_and_loading_returns_the_same_model(tmp_path, tied):
    model = random_model(TINY.model_copy(update={"tie_word_embeddings": tied}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = GPT2.from_pretrained(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    assert same_weights(model, loaded)
    assert (loaded.lm_head.weight is loaded.transformer.wte.weight) == tied
    assert loaded.num_parameters() == model.num_parameters()
    assert all(p.is_contiguous() and p.requires_grad and p.is_leaf for p in loaded.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("size", ["124M", "medium", "large", "xl"])
def test_published_sizes_are_recognized(tmp_path, size):
    config = GPT2Config(size=size)
    huggingface.write_config(tmp_path, config, torch.float32)
    assert config_json.read_config(tmp_path) == config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_are_named_in_the_config_and_read_as_float32(tmp_path, dtype):
    model = random_model(TINY).to(dtype)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert load_file(tmp_path / "model.safetensors")["transformer.wte.weight"].dtype == dtype
    loaded = GPT2.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert same_weights(model.float(), loaded)
    _, weights = huggingface.read(tmp_path, dtype=dtype)
    assert {tensor.dtype for tensor in weights.values()} == {dtype}


def test_saved_tensors_are_read_by_safetensors(tmp_path):
    tensors = {
        "strided": torch.randn(3, 5).t(),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(2.5),
        "bf16": torch.randn(7).bfloat16(),
        "count": torch.tensor([2**40]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "with gradient": torch.ones(2, requires_grad=True),
    }
    weight_files.save_tensors(tmp_path / "x.safetensors", tensors)
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


# --- The layout of OpenAI's models on the Hub.


@pytest.fixture
def folder(tmp_path):
    """A saved tied model, which the tests below change."""
    random_model(TINY).save_pretrained(tmp_path)
    return tmp_path


def edit_weights(folder, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = edit(tensors) or tensors
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder, **changes) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    values = {key: value for key, value in values.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))


def test_openais_layout_is_read(folder):
    expected = GPT2.from_pretrained(folder)
    edit_weights(folder, to_openai_layout)
    edit_config(folder, n_inner=None, tie_word_embeddings=..., dtype=..., n_ctx=...)
    assert same_weights(expected, GPT2.from_pretrained(folder))


def test_causal_masks_with_full_names_are_ignored(folder):
    expected = GPT2.from_pretrained(folder)
    edit_weights(folder, lambda t: t.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 12, 12)}))
    assert same_weights(expected, GPT2.from_pretrained(folder))


def test_a_stored_tied_head_must_equal_the_embedding(folder):
    expected = GPT2.from_pretrained(folder)
    edit_weights(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].clone()}))
    loaded = GPT2.from_pretrained(folder)
    assert same_weights(expected, loaded)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    edit_weights(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1e-3}))
    with pytest.raises(GPT2LabError, match=r"lm_head.weight differs .*tie_word_embeddings"):
        GPT2.from_pretrained(folder)
    edit_config(folder, tie_word_embeddings=False)
    assert not torch.equal(GPT2.from_pretrained(folder).lm_head.weight, expected.lm_head.weight)


# --- Damaged folders and other models.


def test_missing_folder(tmp_path):
    assert_refused(tmp_path / "nowhere", "nowhere")


def test_missing_config(folder):
    (folder / "config.json").unlink()
    assert_refused(folder, "config.json")


@pytest.mark.parametrize("content", [b'{"model_type": "gpt2",', b"\xff\xfe\x00", b"", b"[1, 2]", b"[" * 100_000, b"{}"])
def test_damaged_config(folder, content):
    (folder / "config.json").write_bytes(content)
    assert_refused(folder, "config.json: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"model_type": ["gpt2"]}, r"model_type is \['gpt2'\]"),
        ({"n_embd": {}, "n_inner": 64}, "n_embd: should be a number, found {}"),
        ({"layer_norm_epsilon": [1] * 10_000}, r"layer_norm_epsilon is \[1.{,100}$"),
        ({"n_layer": 10**12}, "1,000,000,000,000 layers, but the weights are 28 tensors"),
        ({"n_head": ...}, "n_head missing"),
        ({"n_layer": None, "n_positions": ...}, "n_layer, n_positions missing"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"n_inner": 17}, "n_inner is 17"),
        ({"n_positions": -1}, "n_positions: .*-1"),
        ({"n_layer": "many"}, "n_layer: .*'many'"),
        ({"n_head": 3}, "n_head 3"),
        ({"vocab_size": 100_000}, "vocab_size: .*100000"),
        ({"vocab_size": 51}, r"wte.weight .*\(50, 16\).*\(51, 16\)"),
        ({"n_layer": 3}, "transformer.h.2.ln_1.weight and 11 more missing"),
        ({"n_layer": 1}, "transformer.h.1.attn.c_attn.bias and 11 more unexpected"),
        ({"tie_word_embeddings": False}, "tensor lm_head.weight missing"),
    ],
)
def test_unsupported_config(folder, changes, message):
    edit_config(folder, **changes)
    assert_refused(folder, message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: {"other": torch.ones(1), "more": torch.ones(1)},
            "tensor transformer.wte.weight and 27 more missing",
        ),
        (lambda t: t.update(score=torch.ones(1)), "tensor score unexpected"),
        (lambda t: t.update({"wte.weight": torch.ones(50, 16)}), "tensor wte.weight unexpected"),
        (
            lambda t: t.update({"transformer.h.1.mlp.c_fc.weight": t["transformer.h.1.mlp.c_fc.weight"].t()}),
            r"transformer.h.1.mlp.c_fc.weight .*\(64, 16\).*\(16, 64\)",
        ),
        (
            lambda t: t.update({"transformer.ln_f.bias": t["transformer.ln_f.bias"].double()}),
            "ln_f.bias is float64",
        ),
    ],
)
def test_wrong_tensors(folder, edit, message):
    edit_weights(folder, edit)
    assert_refused(folder, message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("consolidated.pth", "consolidated.pth"),
        ("weights.gguf", "config.json, weights.gguf"),
    ],
)
def test_unsupported_weight_files(folder, name, message):
    (folder / "model.safetensors").rename(folder / name)
    assert_refused(folder, message)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-100],
        lambda data: data[:50],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: (2**62).to_bytes(8, "little") + data[8:],
        lambda data: data + b"more",
        lambda data: data[:8] + b"\xff" + data[9:],
    ],
)
def test_damaged_weights(folder, damage):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert_refused(folder, "model.safetensors: ")


def test_an_impossible_shape(folder):
    """The library accepts it, since it has no bytes."""
    header = json.dumps({"transformer.wte.weight": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}})
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    assert_refused(folder, "model.safetensors: .* shape that is not possible")


def test_a_huge_header_is_not_read(folder, monkeypatch):
    """9 MB of valid header in an otherwise valid file: the first 8 bytes are enough to refuse it."""
    entries = {f"x{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(150_000)}
    text = json.dumps(entries).encode()
    assert len(text) > 2**23
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    monkeypatch.setattr(weight_files, "load_file", lambda *_, **__: pytest.fail("it was opened"))
    assert_refused(folder, r"model.safetensors: .* header of [\d,]+ bytes")


def test_saving_where_a_file_has_the_folders_name(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(GPT2LabError, match="file"):
        random_model(TINY).save_pretrained(tmp_path / "file")


def test_a_full_disk_gives_a_one_line_error_and_keeps_the_old_file(folder):
    """In a separate process: the limit on file sizes that simulates a full disk cannot be raised again."""
    before = (folder / "model.safetensors").read_bytes()
    code = (
        "import resource, sys\n"
        "from gpt2lab.errors import GPT2LabError\n"
        "from gpt2lab.model.gpt2 import GPT2\n"
        "model = GPT2.from_pretrained(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n"
        "    model.save_pretrained(sys.argv[1])\n"
        "except GPT2LabError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert "model.safetensors" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_weights_have_the_same_permissions_as_other_files(folder):
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode

"""Weights in several safetensors files with an index, and in pickles."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2lab.model.gpt2 import GPT2
from tests.model.helpers import TINY, assert_refused, random_model, same_weights, to_openai_layout

INDEX = "model.safetensors.index.json"


@pytest.fixture
def model() -> GPT2:
    return random_model(TINY)


@pytest.fixture
def tensors(model, tmp_path) -> dict[str, torch.Tensor]:
    """The saved tensors of the model; its folder keeps config.json only."""
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    return tensors


# --- Several files and an index.


def split(folder, tensors, parts: int = 3) -> dict[str, str]:
    """Write the tensors to several files and an index; returns its weight_map."""
    names = [f"model-{n:05d}-of-{parts:05d}.safetensors" for n in range(1, parts + 1)]
    weight_map = {name: names[n % parts] for n, name in enumerate(tensors)}
    for part in names:
        save_file({name: t.contiguous() for name, t in tensors.items() if weight_map[name] == part}, folder / part)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder, weight_map) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def test_shards_are_read_as_one_model(model, tensors, tmp_path):
    split(tmp_path, tensors)
    assert same_weights(model, GPT2.from_pretrained(tmp_path))


def test_shards_in_openais_layout(model, tensors, tmp_path):
    split(tmp_path, to_openai_layout(tensors), parts=2)
    assert same_weights(model, GPT2.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "../{}",
        "/{}",
        "sub/{}",
        "..",
        "",
        ".",
        "model.bin",
        ".hidden.safetensors",
        "..\\x.safetensors",
        "a\0.safetensors",
        "a\n.safetensors",
    ],
)
def test_an_index_cannot_name_files_outside_its_folder(tensors, tmp_path, name):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "config.json").rename(folder / "config.json")
    weight_map = split(folder, tensors)
    shard = weight_map["transformer.ln_f.bias"]
    for target in (tmp_path, folder / "sub"):
        (target / shard).write_bytes((folder / shard).read_bytes())
    name = f"{tmp_path}/{shard}" if name == "/{}" else name.format(shard)
    write_index(folder, weight_map | {"transformer.ln_f.bias": name})
    assert_refused(folder, "index.json: ")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}', b'{"weight_map": 3}']
)
def test_a_damaged_index(tensors, tmp_path, content):
    split(tmp_path, tensors)
    (tmp_path / INDEX).write_bytes(content)
    assert_refused(tmp_path, "model.safetensors.index.json: ")


def test_a_missing_shard_is_named(tensors, tmp_path):
    split(tmp_path, tensors)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert_refused(tmp_path, "model-00002-of-00003.safetensors: .*model.safetensors.index.json")


def test_a_damaged_shard_is_named(tensors, tmp_path):
    split(tmp_path, tensors)
    path = tmp_path / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert_refused(tmp_path, "model-00003-of-00003.safetensors: ")


def test_a_missing_tensor_is_named(tensors, tmp_path):
    del tensors["transformer.h.1.mlp.c_fc.bias"]
    split(tmp_path, tensors)
    assert_refused(tmp_path, "tensor transformer.h.1.mlp.c_fc.bias missing")


def test_a_tensor_of_wrong_shape_is_named_with_its_shard(tensors, tmp_path):
    tensors["transformer.wpe.weight"] = torch.zeros(13, 16)
    weight_map = split(tmp_path, tensors)
    assert_refused(tmp_path, weight_map["transformer.wpe.weight"] + r": transformer.wpe.weight has shape \(13, 16\)")


def test_a_tensor_in_two_shards_is_refused(tensors, tmp_path):
    split(tmp_path, tensors)
    more = load_file(tmp_path / "model-00001-of-00003.safetensors")
    save_file(more | {"transformer.ln_f.bias": torch.zeros(16)}, tmp_path / "model-00001-of-00003.safetensors")
    save_file(
        load_file(tmp_path / "model-00002-of-00003.safetensors") | {"transformer.ln_f.bias": torch.ones(16)},
        tmp_path / "model-00002-of-00003.safetensors",
    )
    assert_refused(tmp_path, "tensor transformer.ln_f.bias.* unexpected")


# --- Pickles.


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_pickle_of_tensors_is_read(model, tensors, tmp_path, zipped, dtype):
    stored = {name: tensor.to(dtype) for name, tensor in to_openai_layout(tensors).items()}
    torch.save(stored, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert same_weights(model.to(dtype).float(), GPT2.from_pretrained(tmp_path))


class Canary:
    """Makes a folder when it is unpickled without restrictions."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "before torch 1.6", "bare"])
@pytest.mark.parametrize("hidden", [True, False], ids=["among tensors", "alone"])
def test_a_pickle_with_code_is_refused_and_not_run(tensors, tmp_path, monkeypatch, form, hidden):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # must not weaken the check
    canary, path = tmp_path / "canary", tmp_path / "pytorch_model.bin"
    content = {**tensors, "x": Canary(canary)} if hidden else Canary(canary)
    if form == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert_refused(tmp_path, "pytorch_model.bin: ")
    assert not canary.exists()

    if form == "bare":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert canary.exists(), "the canary does not work"


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(1)],
        {"model": {"x": torch.ones(1)}},
        {"x": 3},
        {"transformer.ln_f.bias": torch.ones(16).to_sparse()},
        {"transformer.ln_f.bias": torch.ones(16, device="meta")},
    ],
)
def test_a_pickle_of_other_objects(tensors, tmp_path, content):
    torch.save(tensors | content if isinstance(content, dict) else content, tmp_path / "pytorch_model.bin")
    assert_refused(tmp_path, "pytorch_model.bin: ")


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04", b"not a pickle", b"\x80\x04N."])
def test_a_damaged_pickle(tensors, tmp_path, content):
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    assert_refused(tmp_path, "pytorch_model.bin: ")


def test_wrong_tensors_in_a_pickle_are_named(tensors, tmp_path):
    torch.save(tensors | {"transformer.ln_f.bias": torch.ones(16).double()}, tmp_path / "pytorch_model.bin")
    assert_refused(tmp_path, "transformer.ln_f.bias is float64")


def test_a_pickle_is_not_used_if_there_are_damaged_safetensors(model, tensors, tmp_path):
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert same_weights(model, GPT2.from_pretrained(tmp_path))
    split(tmp_path, tensors)
    (tmp_path / "model-00001-of-00003.safetensors").unlink()
    assert_refused(tmp_path, "model-00001-of-00003.safetensors: ")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert_refused(tmp_path, "model.safetensors: ")


def test_a_single_file_is_preferred_to_shards(model, tensors, tmp_path):
    split(tmp_path, {name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
    model.save_pretrained(tmp_path)
    assert same_weights(model, GPT2.from_pretrained(tmp_path))

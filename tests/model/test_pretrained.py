"""What a name means: folders, runs with damaged checkpoints, models of the Hub without a network."""

import pytest
import torch

from gpt2lab import GPT2, GPT2Config, files
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import pretrained


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("GPT2LAB_MIRROR", raising=False)


def save(folder, seed=0):
    model = GPT2(
        GPT2Config(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=30),
        generator=torch.Generator().manual_seed(seed),
    )
    model.save_pretrained(folder)
    return folder


def checkpoint(run, step):
    folder = save(run / "checkpoints" / f"step_{step:08d}", seed=step)
    (folder / "state.json").write_text(f'{{"step": {step}}}')
    files.write_digests(folder)
    return folder


def test_a_folder_of_a_model_is_itself(tmp_path):
    assert pretrained.find(save(tmp_path / "m")) == pretrained.Found(tmp_path / "m")


def test_a_run_is_its_newest_good_checkpoint(tmp_path):
    old, new = checkpoint(tmp_path / "x", 5), checkpoint(tmp_path / "x", 10)
    assert pretrained.find(tmp_path / "x") == pretrained.Found(new, tmp_path / "x", 10)
    assert pretrained.find(tmp_path / "x" / "checkpoints") == pretrained.Found(new, tmp_path / "x", 10)
    assert pretrained.find(old) == pretrained.Found(old, tmp_path / "x", 5)
    (new / "model.safetensors").write_bytes(b"damaged")
    heard = []
    assert pretrained.find(tmp_path / "x", warn=heard.append) == pretrained.Found(old, tmp_path / "x", 5)
    assert "trying the checkpoint before it" in heard[0]
    expected = GPT2.from_pretrained(old).state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in GPT2.from_pretrained(tmp_path / "x").state_dict().items())
    with pytest.raises(GPT2LabError, match="does not match its sha256"):
        pretrained.find(new)
    (old / "config.json").unlink()
    with pytest.raises(GPT2LabError, match="no checkpoint is intact"):
        pretrained.find(tmp_path / "x")


def test_names_that_mean_nothing(tmp_path):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(GPT2LabError, match="has no checkpoint yet"):
        pretrained.find(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(GPT2LabError, match="is a file"):
        pretrained.find(tmp_path / "file")
    for name in (tmp_path / "nowhere", "runs/x", "a/b/c", ""):
        with pytest.raises(GPT2LabError, match="no such folder"):
            pretrained.find(name)


def test_a_model_of_the_hub_without_a_network_names_the_mirror(tmp_path):
    with pytest.raises(
        GPT2LabError, match=r"gpt2 is no folder here, and cannot be fetched .*--mirror that holds gpt2/"
    ):
        pretrained.find("gpt2")
    assert pretrained.find("gpt2", mirror=tmp_path).folder == tmp_path / "gpt2" if save(tmp_path / "gpt2") else None
    save(tmp_path / "openai-community" / "gpt2-xl")
    assert pretrained.find("gpt2-xl", mirror=tmp_path).folder == tmp_path / "openai-community" / "gpt2-xl"

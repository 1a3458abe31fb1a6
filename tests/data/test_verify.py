"""Inspect and verify, and the index of shards of other projects."""

import json

import numpy as np
import pytest

from gpt2lab.data.index import index_shards
from gpt2lab.data.prepare import make
from gpt2lab.data.shards import MANIFEST, open_split
from gpt2lab.data.sources import fineweb
from gpt2lab.data.tokenizer import EOT
from gpt2lab.data.verify import inspect, verify
from gpt2lab.errors import GPT2LabError
from gpt2lab.options import PrepareOptions
from tests.data import corpora


@pytest.fixture
def folder(tmp_path):
    source = fineweb.source(mirror=corpora.mirror(tmp_path / "mirror", files=1))
    make(source, tmp_path / "out", PrepareOptions("files", shard_size=3000, val_tokens=2500))
    return tmp_path / "out"


def save(folder, **shards):
    folder.mkdir(exist_ok=True)
    for name, tokens in shards.items():
        np.save(folder / f"{name}.npy", np.array(tokens, dtype=np.uint16))


def test_inspect_shows_counts_and_first_lines(folder):
    text = "\n".join(inspect(folder))
    assert "source fineweb-edu" in text
    assert "train: 9,1" in text
    assert "edufineweb_val_000000.npy  2,4" in text
    assert f"| {corpora.texts(1)[0][:40]}" in text
    (folder / MANIFEST).unlink()
    assert inspect(folder)[0].endswith("no manifest")


def test_every_byte_that_is_read_is_shown_as_progress(folder, phases):
    verify(folder)
    for file in folder.glob("*.json"):
        file.unlink()
    inspect(folder)
    index_shards(folder)
    shown = [phase for phase in phases.begun if phase.total]
    size = sum(file.stat().st_size for file in folder.glob("*.npy"))
    assert [phase.total for phase in shown[:1] + shown[-1:]] == [2 * size, size]
    assert len(shown) == 4
    assert all(phase.completed == phase.total for phase in shown)


def test_verify_finds_every_kind_of_damage(folder):
    assert "is sound: 5 shards, 400 documents" in verify(folder)
    path = folder / "edufineweb_train_000001.npy"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\x00")
    with pytest.raises(GPT2LabError, match=r"train_000001\.npy"):
        verify(folder)
    path.write_bytes(good)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["splits"]["train"]["documents"] += 1
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(GPT2LabError, match=r"train .*manifest\.json"):
        verify(folder)
    manifest["shards"][1]["file"] = "../edufineweb_train_000001.npy"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    for look in (inspect, verify):
        with pytest.raises(GPT2LabError, match=r"\.\./edufineweb_train_000001\.npy"):
            look(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(GPT2LabError, match=rf"gpt2lab prepare pretokenized --input {folder}"):
        verify(folder)


def test_verify_finds_ids_and_missing_delimiters(tmp_path):
    save(tmp_path, x_val_000000=[EOT, 1], x_train_000001=[EOT, 50257])
    with pytest.raises(GPT2LabError, match=r"x_train_000001\.npy: token 1 is 50257"):
        index_shards(tmp_path)
    save(tmp_path, x_train_000001=[5, EOT])
    index_shards(tmp_path)
    assert "is sound: 2 shards, 2 documents, 4 tokens" in verify(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text()) | {"source": "files"}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(GPT2LabError, match=r"x_train_000001\.npy"):
        verify(tmp_path)


def test_indexing_in_place_and_in_another_folder(tmp_path):
    given = tmp_path / "given"
    save(given, train_000=[EOT, 1, 2], train_001=[EOT, 3], val_000=[EOT, 4])
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, 2
    (given / "train_002.bin").write_bytes(header.tobytes() + np.array([EOT, 9], dtype="<u2").tobytes())
    before = corpora.contents(given)
    for out in (tmp_path / "elsewhere", given):
        summary = index_shards(given, out)
        assert (summary.documents, summary.tokens, summary.shards, summary.made) == (4, 9, 4, True)
        train = open_split(out, "train")
        assert train.read(0, len(train)).tolist() == [EOT, 1, 2, EOT, 3, EOT, 9]
        assert "is sound: 4 shards, 4 documents" in verify(out)
        assert not index_shards(out).made  # the second time there is nothing to do
    assert {name: data for name, data in corpora.contents(given).items() if name != MANIFEST} == before


def test_shards_that_cannot_be_indexed(tmp_path):
    with pytest.raises(GPT2LabError, match="nowhere"):
        index_shards(tmp_path / "nowhere")
    save(tmp_path / "a", train_000=[EOT, 1])
    with pytest.raises(GPT2LabError, match="'val'"):
        index_shards(tmp_path / "a")
    save(tmp_path / "a", val_000=[EOT, 1], more=[1])
    with pytest.raises(GPT2LabError, match=r"more\.npy"):
        index_shards(tmp_path / "a")
    (tmp_path / "a" / "more.npy").unlink()
    save(tmp_path / "b", x_train_000001=[EOT, 1])
    with pytest.raises(GPT2LabError, match=r"b .*x_train_000001\.npy"):
        index_shards(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "val_000.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(GPT2LabError, match=r"val_000\.npy"):
        index_shards(tmp_path / "a")


def test_messages_name_no_option_that_data_does_not_have(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(GPT2LabError, match="another folder") as error:
            inspect(folder)
        assert "--data.dir" not in str(error.value)

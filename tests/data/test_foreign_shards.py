"""Shards as other projects leave them: without header, of wide integers, without val, without a name for their text."""

import json
import logging

import numpy as np
import pytest

from gpt2lab import cli
from gpt2lab.data import index
from gpt2lab.data.index import index_shards
from gpt2lab.data.loader import Loader
from gpt2lab.data.shards import MANIFEST, open_split
from gpt2lab.data.verify import inspect, verify
from gpt2lab.errors import GPT2LabError
from tests.data.corpora import contents

EOT = 50256


def text(length: int, seed: int = 0) -> np.ndarray:
    """Ids of GPT-2, with an end of text about every 50 tokens."""
    tokens = np.random.default_rng(seed).integers(0, 50256, length)
    tokens[:: 40 + seed] = EOT
    return tokens.astype(np.uint16)


def read(folder, split) -> list[int]:
    stream = open_split(folder, split)
    return stream.read(0, len(stream)).tolist()


def test_nanogpts_files_have_no_header(tmp_path):
    train, val = text(5000), text(600, 1)
    train.tofile(tmp_path / "train.bin")
    val.tofile(tmp_path / "val.bin")
    assert (read(tmp_path, "train"), read(tmp_path, "val")) == (train.tolist(), val.tolist())
    assert index_shards(tmp_path).tokens == 5600
    assert "is sound: 2 shards" in verify(tmp_path)


def test_nanogpts_characters_are_not_tokens(tmp_path):
    text(500).tofile(tmp_path / "train.bin")
    (tmp_path / "meta.pkl").write_bytes(b"never opened")
    with pytest.raises(GPT2LabError, match=r"meta\.pkl .* characters.*gpt2lab prepare files --input .*input\.txt"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize("dtype", ["<i4", "<i8", "<u4", ">u2", "<i8 raw", "<i4 raw"])
def test_wide_integers_are_converted_by_the_command_that_is_named(tmp_path, dtype, capsys):
    folder, train, val = tmp_path / "a b", text(5000), text(600, 1)
    folder.mkdir()
    for name, tokens in (("train_000000", train), ("val_000000", val)):
        if dtype.endswith("raw"):
            tokens.astype(dtype[:3]).tofile(folder / f"{name}.bin")
        else:
            np.save(folder / f"{name}.npy", tokens.astype(dtype))
    before = contents(folder)
    assert cli.main(["train", "--data.dir", str(folder), "--run.out_dir", str(tmp_path / "runs")]) == 2
    out = tmp_path / "a b_uint16"
    advice = f"gpt2lab prepare pretokenized --input '{folder}' --out '{out}'"
    assert advice in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    with pytest.raises(GPT2LabError, match="give another folder: --out"):
        index_shards(folder)
    for _ in range(2):  # the second time there is nothing to do
        index_shards(folder, out)
        assert (read(out, "train"), read(out, "val")) == (train.tolist(), val.tolist())
    assert "is sound: 2 shards" in verify(out)
    assert contents(folder) == before


@pytest.mark.parametrize("bad", [-1, 50257, 70000])
def test_ids_that_are_not_gpt2s_are_not_converted(tmp_path, bad):
    np.save(tmp_path / "train_0.npy", np.array([1, 2, bad], dtype=np.int32))
    np.save(tmp_path / "val_0.npy", np.array([1, 2], dtype=np.int32))
    with pytest.raises(GPT2LabError, match=rf"train_0\.npy: token 2 is {bad}, but GPT-2's ids are 0 to 50256"):
        index_shards(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "train_0.npy").exists()


def test_the_end_of_train_is_val_where_there_is_none(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tokens = np.roll(text(30_000), 10)  # the last tenth begins within a document
    for number, part in enumerate(np.split(tokens, [13_000, 28_000])):
        np.save(tmp_path / f"train_{number:06d}.npy", part)
    train, val = read(tmp_path, "train"), read(tmp_path, "val")
    assert train + val == tokens.tolist()
    assert 0.08 < len(val) / len(tokens) < 0.1
    assert val[0] == EOT
    assert f"no shard of val: the last {len(val):,} of its 30,000 tokens are val" in caplog.text
    stream = open_split(tmp_path, "val")
    assert [file.name for file in stream.files] == ["train_000001.npy", "train_000002.npy"]
    for position in (0, len(val) - 1):
        file, offset = stream.locate(position)
        assert np.load(file)[offset] == val[position]
    assert stream.fingerprint == open_split(tmp_path, "val").fingerprint
    before = open_split(tmp_path, "train").fingerprint
    Loader(open_split(tmp_path, "train"), block_size=64, sequences_per_step=4, vocab_size=50257, seed=1).batch(0)
    assert f"val: {len(val):,} tokens" in "\n".join(inspect(tmp_path))
    np.save(tmp_path / "train_000003.npy", text(500, 2))  # another shard moves the border: other data
    assert open_split(tmp_path, "train").fingerprint != before
    (tmp_path / "train_000003.npy").unlink()

    with pytest.raises(GPT2LabError, match=r"the end of train becomes val.* --out"):
        index_shards(tmp_path)
    index_shards(tmp_path, tmp_path / "out")
    assert (read(tmp_path / "out", "train"), read(tmp_path / "out", "val")) == (train, val)
    assert "is sound: 4 shards" in verify(tmp_path / "out")


def test_names_with_capitals_are_divided_in_their_order(tmp_path):
    tokens = text(30_000)
    tokens.astype("<i4").tofile(tmp_path / "zTrain.bin")
    index_shards(tmp_path, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.npy")) == ["zTrain.npy", "zval.npy"]
    assert read(tmp_path / "out", "train") + read(tmp_path / "out", "val") == tokens.tolist()


def test_a_conversion_that_was_interrupted_is_not_trained_on(tmp_path, monkeypatch):
    """The shards of train that are there must not be divided as if they were all."""
    for name in ("train_0", "train_1", "val_0"):
        np.save(tmp_path / f"{name}.npy", text(20_000).astype(np.int32))
    write = index._write_part
    with monkeypatch.context() as patch:
        patch.setattr(index, "_write_part", lambda part, out: write(part, out) if part.name != "val_0.npy" else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index_shards(tmp_path, tmp_path / "out")
    with pytest.raises(GPT2LabError, match="is incomplete; run the same prepare command again"):
        open_split(tmp_path / "out", "train")
    index_shards(tmp_path, tmp_path / "out")
    assert len(read(tmp_path / "out", "train")) == 40_000


def test_a_run_records_that_val_was_held_out(token_folder, tmp_path):
    from gpt2lab.training import run as training_run
    from tests.runs import learned, settings

    (tmp_path / "data").mkdir()
    for file in token_folder.glob("train*"):
        (tmp_path / "data" / file.name).write_bytes(file.read_bytes())
    changes = {"train__max_steps": 2, "train__sample_every": 0, "data__dir": str(tmp_path / "data")}
    training_run.run(settings(token_folder, tmp_path, **changes))
    data = json.loads((tmp_path / "tiny" / "environment.json").read_text())["data"]
    assert (data["held_out"], data["val_tokens"], data["train_tokens"]) == (True, 2400, 21_600)
    training_run.run(settings(token_folder, tmp_path, **(changes | {"train__max_steps": 3})))  # the same split
    assert sorted(learned(tmp_path / "tiny")) == [0, 1, 2, 3]


def test_the_corpus_of_shards_is_recorded(tmp_path, capsys):
    np.save(tmp_path / "train_0.npy", text(500))
    np.save(tmp_path / "val_0.npy", text(100))
    command = ["prepare", "pretokenized", "--input", str(tmp_path)]
    assert cli.main([*command]) == 0
    assert json.loads((tmp_path / MANIFEST).read_text())["text"] is None
    for _ in range(2):
        assert cli.main([*command, "--source", "fineweb-edu"]) == 0
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        assert (manifest["source"], manifest["text"]) == ("pretokenized", "fineweb-edu")
        assert "is sound" in verify(tmp_path)
    assert "corpus: fineweb-edu" in "\n".join(inspect(tmp_path))
    assert cli.main(["prepare", "stdlib", "--out", str(tmp_path / "x"), "--source", "fineweb-edu"]) == 2
    assert "--source is for prepare pretokenized" in capsys.readouterr().err

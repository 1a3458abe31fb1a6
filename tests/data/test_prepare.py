"""Preparing: once, always the same, and safe to kill anywhere."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from gpt2lab.data import prepare as preparing
from gpt2lab.data.prepare import DEFAULT_DIRS, prepare
from gpt2lab.data.shards import MANIFEST, PREPARING, open_split
from gpt2lab.data.sources import Document, stdlib
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import DirectoryLock

DOCUMENTS = [Document(f"d{number}", f"Document number {number}. " * (number % 5 + 1)) for number in range(40)]

# Runs `prepare` on small documents and kills itself just before (or after) the n-th file gets its name.
KILLED = """
import os, signal, sys
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import Document, stdlib
folder, n, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]
stdlib.documents = lambda: [Document(f"d{k}", f"Document number {k}. " * (k % 5 + 1)) for k in range(40)]
replace, count = os.replace, 0
def deadly(source, target):
    global count
    count += 1
    if count == n and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    if count == n:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = deadly
prepare("stdlib", folder, shard_tokens=100)
"""


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(stdlib, "documents", lambda: iter(DOCUMENTS))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


def test_the_whole_corpus(tmp_path):
    summary = prepare("stdlib", tmp_path / "deep" / "stdlib")
    train, val = (open_split(tmp_path / "deep" / "stdlib", split) for split in ("train", "val"))
    assert summary.tokens == len(train) + len(val)
    assert summary.documents == train.documents + val.documents > 100
    assert 300_000 < summary.tokens < 1_500_000
    assert 0.1 <= len(val) / summary.tokens < 0.15
    manifest = json.loads((tmp_path / "deep" / "stdlib" / MANIFEST).read_text())
    assert manifest["source"] == "stdlib"
    assert manifest["revision"] == stdlib.revision()
    assert sys.version.split()[0] in manifest["revision"]


def test_every_document_once_and_shuffled(small, tmp_path):
    prepare("stdlib", tmp_path, shard_tokens=100)
    texts = {}
    for split in ("val", "train"):
        stream = open_split(tmp_path, split)
        assert stream.read(0, 1).tolist() == [50256]
        pieces = Tokenizer().decode(stream.read(0, len(stream)).tolist()).split("<|endoftext|>")
        assert pieces[0] == ""
        texts[split] = pieces[1:]
    assert sorted(texts["val"] + texts["train"]) == sorted(document.text for document in DOCUMENTS)
    assert texts["val"] + texts["train"] != [document.text for document in DOCUMENTS]
    total, val = prepare("stdlib", tmp_path).tokens, len(open_split(tmp_path, "val"))
    last = 1 + len(Tokenizer().encode(texts["val"][-1]))
    assert val * 10 >= total > (val - last) * 10  # cut at the first border past a tenth


def test_twice_is_byte_for_byte_the_same(small, tmp_path):
    prepare("stdlib", tmp_path / "a", shard_tokens=100)
    prepare("stdlib", tmp_path / "b", shard_tokens=100)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) > 4


def test_a_complete_folder_is_left_alone(small, tmp_path, monkeypatch):
    first = prepare("stdlib", tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("[!.]*")}
    monkeypatch.setattr(preparing, "_write", lambda *_: pytest.fail("prepared again"))
    with DirectoryLock(tmp_path):  # nor does it need the lock
        again = prepare("stdlib", tmp_path)
    assert again[:2] == first[:2]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("[!.]*")} == before


@pytest.mark.parametrize(("n", "moment"), [(1, "before"), (1, "after"), (2, "after"), (4, "before"), (-1, "before")])
def test_killed_and_run_again(small, tmp_path, n, moment):
    prepare("stdlib", tmp_path / "whole", shard_tokens=100)
    whole = contents(tmp_path / "whole")
    n = n if n > 0 else len(whole) + 1  # one replace each, and one for the mark: the last is the manifest's
    killed = tmp_path / "killed"
    run = subprocess.run([sys.executable, "-c", KILLED, str(killed), str(n), moment], check=False)
    assert run.returncode == -signal.SIGKILL
    assert not (killed / MANIFEST).exists()
    with pytest.raises(GPT2LabError, match="half prepared" if (n, moment) != (1, "before") else "holds no shards"):
        open_split(killed, "train")
    prepare("stdlib", killed, shard_tokens=100)
    assert contents(killed) == whole


def test_killed_after_the_manifest(small, tmp_path):
    prepare("stdlib", tmp_path / "whole", shard_tokens=100)
    whole = contents(tmp_path / "whole")
    killed = tmp_path / "killed"
    run = subprocess.run([sys.executable, "-c", KILLED, str(killed), str(len(whole) + 1), "after"], check=False)
    assert run.returncode == -signal.SIGKILL
    prepare("stdlib", killed)
    assert {name: data for name, data in contents(killed).items() if name != PREPARING} == whole


def test_leftovers_of_another_size_do_not_survive(small, tmp_path):
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "7", "after"], check=False)
    assert run.returncode == -signal.SIGKILL
    prepare("stdlib", tmp_path)  # one shard a split now
    assert sorted(contents(tmp_path)) == [MANIFEST, "stdlib_train_000001.npy", "stdlib_val_000000.npy"]


def test_two_processes(small, tmp_path):
    with DirectoryLock(tmp_path), pytest.raises(GPT2LabError, match="in use by another process"):
        prepare("stdlib", tmp_path)


def test_other_shards_are_never_overwritten(small, tmp_path):
    np.save(tmp_path / "stdlib_train_000001.npy", np.arange(9, dtype=np.uint16))
    before = contents(tmp_path)
    with pytest.raises(GPT2LabError, match=r"not of data\.source stdlib"):
        prepare("stdlib", tmp_path)
    assert contents(tmp_path) == before


def test_a_damaged_folder_is_reported_not_believed(small, tmp_path):
    prepare("stdlib", tmp_path, shard_tokens=100)
    (tmp_path / "stdlib_val_000000.npy").unlink()
    with pytest.raises(GPT2LabError, match=r"stdlib_val_000000\.npy is missing"):
        prepare("stdlib", tmp_path)


def test_fineweb_must_be_there(tmp_path):
    assert set(DEFAULT_DIRS) == {"stdlib", "fineweb-edu"}
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(GPT2LabError, match=r"holds no shards of fineweb-edu; .*--data\.dir"):
            prepare("fineweb-edu", folder)
    np.save(tmp_path / "edufineweb_train_000001.npy", np.arange(9, dtype=np.uint16))
    np.save(tmp_path / "edufineweb_val_000000.npy", np.arange(5, dtype=np.uint16))
    assert prepare("fineweb-edu", tmp_path)[:2] == (None, 14)


def test_unknown_sources_and_files_for_folders(tmp_path):
    with pytest.raises(GPT2LabError, match="'novels' is not known"):
        prepare("novels", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(GPT2LabError, match=r"cannot write into .*file: .* use another folder"):
        prepare("stdlib", tmp_path / "file")
    assert (tmp_path / "file").is_file()

"""Preparing: the right tokens, the same bytes for every executor and after every interruption, and clear errors."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from gpt2lab.config import DataConfig
from gpt2lab.data import encoder, journal, run_data
from gpt2lab.data import prepare as preparing
from gpt2lab.data.catalogue import DEFAULT_DIRS
from gpt2lab.data.encoded_cache import FOLDER as CACHE
from gpt2lab.data.index import index_shards
from gpt2lab.data.loader import Loader
from gpt2lab.data.prepare import make
from gpt2lab.data.shards import MANIFEST, PREPARING, is_ready, open_split
from gpt2lab.data.sources import BadInputError, Source, SourceFile, fineweb, in_memory_file, local_files, stdlib
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.data.verify import verify
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import DirectoryLock
from gpt2lab.options import PrepareOptions
from tests.data import corpora
from tests.data.corpora import contents

DOCUMENTS = [stdlib.Document(f"d{number}", f"Document number {number}. " * (number % 5 + 1)) for number in range(40)]
DEFAULTS = PrepareOptions("files")
SMALL = PrepareOptions("files", shard_size=3000, val_tokens=2500, workers=2)

# Prepares a small mirror, and kills itself just before or after the n-th file is renamed.
KILLED = """
import os, signal, sys
from gpt2lab.data.prepare import make
from gpt2lab.data.sources import fineweb
from gpt2lab.options import PrepareOptions
mirror, folder, n, moment, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
replace, count = os.replace, 0
def replace_and_die(source, target):
    global count
    count += 1
    if count == n and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    if count == n:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace_and_die
seed = None if seed == "-" else int(seed)
options = PrepareOptions("files", shard_size=3000, val_tokens=2500, workers=2, shuffle_seed=seed)
make(fineweb.source(mirror=mirror), folder, options)
"""


def prepare(source, folder, mirror=None):
    """Prepare the data of a run."""
    run_data.prepare(DataConfig(source=source, dir=str(folder), mirror=mirror))


@pytest.fixture(scope="session")
def source(mirror):
    return fineweb.source(mirror=mirror)


@pytest.fixture(scope="session")
def expected_files(source, tmp_path_factory):
    """Files of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("expected_files")
    make(source, folder, SMALL)
    return contents(folder)


def of(*texts, name="made"):
    """A source of these texts."""
    return Source(name, name, "1", (in_memory_file("file", texts),))


def decoded(folder, split):
    stream = open_split(folder, split)
    pieces = Tokenizer().decode(stream.read(0, len(stream)).tolist()).split("<|endoftext|>")
    assert pieces[0] == ""
    return pieces[1:]


def test_every_document_in_order_val_first(source, tmp_path):
    summary = make(source, tmp_path, SMALL)
    val, train = decoded(tmp_path, "val"), decoded(tmp_path, "train")
    assert val + train == corpora.texts(1200)
    encode = Tokenizer().encode
    lengths = [1 + len(encode(text)) for text in val + train]
    val_tokens = len(open_split(tmp_path, "val"))
    assert val_tokens == sum(lengths[: len(val)]) <= 2500 < val_tokens + lengths[len(val)]
    assert summary.tokens == sum(lengths)
    assert (summary.documents, summary.made, summary.duplicates, summary.skipped) == (1200, True, 0, 0)
    assert summary.text_bytes == sum(map(len, corpora.texts(1200)))
    sizes = [shard["tokens"] for shard in json.loads((tmp_path / MANIFEST).read_text())["shards"]]
    assert sizes[0] == val_tokens
    assert set(sizes[1:-1]) == {3000}
    assert sum(sizes) == summary.tokens
    verify(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 1},
        {"workers": 5},
        {"tokenizer": "tiktoken"},
        {"check": False},
        {"executor": "slurm"},
    ],
)
def test_shards_do_not_depend_on_workers_or_tokenizer(source, expected_files, tmp_path, options):
    make(source, tmp_path, replace(SMALL, **options))
    assert contents(tmp_path) == expected_files
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_shards_do_not_depend_on_the_executor(source, expected_files, tmp_path, request):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=256 << 20)  # once for both calls
    request.addfinalizer(ray.shutdown)
    make(source, tmp_path / "a", replace(SMALL, executor="ray"))
    assert contents(tmp_path / "a") == expected_files
    bad = replace(source, files=(*source.files[:1], SourceFile("bad", 1, "", list_no_chunks)))
    with pytest.raises(GPT2LabError, match="bad is bad"):
        make(bad, tmp_path / "b", replace(SMALL, executor="ray"))


def list_no_chunks():
    """`SourceFile.list_chunks` of a file that cannot be read."""
    raise BadInputError("bad is bad")


@pytest.mark.parametrize(("seed", "times"), [(None, 10), (7, 4)])
@pytest.mark.slow
def test_killed_at_random(mirror, source, expected_files, tmp_path, seed, times):
    expected = expected_files
    if seed is not None:
        make(source, tmp_path / "undisturbed", replace(SMALL, shuffle_seed=seed))
        expected = contents(tmp_path / "undisturbed")
    folder, chance, kills, finished = tmp_path / "killed", random.Random(4), 0, 0
    while kills < times:
        n, moment = chance.randint(2, 4 if seed is None else 12), chance.choice(["before", "after"])
        arguments = [str(mirror), str(folder), str(n), moment, "-" if seed is None else str(seed)]
        run = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, capture_output=True)
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, run.stderr
        kills += 1
        done = len(list(folder.glob("*.npy"))) + len(list(folder.glob(f"{CACHE}/*.npz")))
        assert done >= finished or seed is not None  # what was finished is kept
        finished = done
        if not (folder / MANIFEST).exists():
            with pytest.raises(GPT2LabError, match=folder.name):
                open_split(folder, "train")
    assert kills >= min(times, 6)
    make(source, folder, replace(SMALL, shuffle_seed=seed))
    assert contents(folder) == expected
    assert not (folder / PREPARING).exists()
    assert not (folder / CACHE).exists()


@pytest.mark.parametrize("n", [1, 2, -1])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.slow
def test_killed_at_the_ends(mirror, source, expected_files, tmp_path, n, moment):
    """Around the first journal, the first shard, and the manifest."""
    # The first journal, each shard with a journal, the manifest.
    number = n if n > 0 else 2 * len(expected_files)
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(mirror), str(tmp_path), str(number), moment, "-"], check=False
    )
    assert run.returncode == -signal.SIGKILL
    assert (tmp_path / MANIFEST).exists() == ((n, moment) == (-1, "after"))
    make(source, tmp_path, SMALL)
    assert contents(tmp_path) == expected_files


def interrupted(source, folder, options, after):
    """Run until `after` units were cut, then raise."""
    add, calls = preparing.ShardBuilder.add, 0

    def failing(self, position, encoded):
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return add(self, position, encoded)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt) as interruption:
        patch.setattr(preparing.ShardBuilder, "add", failing)
        make(source, folder, options)
    return str(interruption.value)


def test_one_large_document_shows_progress_and_ends_soon_after_ctrl_c(tmp_path, monkeypatch, phases):
    monkeypatch.setattr(encoder, "_PIECE", 1000)
    pieces, may_end = [], threading.Event()
    encode = encoder.Tokenizer.encode

    def slowly(self, text):
        pieces.append(text)
        if len(pieces) == 3:  # the main thread receives Ctrl-C while it waits for the only chunk
            assert next(phase for phase in phases.begun if "encoding" in phase.description).completed > 1000
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            may_end.wait(60)
        return encode(self, text)

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *args, **options):
            may_end.set()
            super().shutdown(*args, **options)

    monkeypatch.setattr(preparing.executors, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(encoder.Tokenizer, "encode", slowly)
    (tmp_path / "large.txt").write_text("some words " * 20_000)
    source = local_files.source([str(tmp_path / "large.txt")])
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "out", PrepareOptions("files", tokenizer="tiktoken"))
    assert len(pieces) == 3  # of 220


def test_continuing_does_not_start_over(source, expected_files, tmp_path, monkeypatch):
    interrupted(source, tmp_path, SMALL, 15)
    finished = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npy")}
    assert len(finished) > 3
    read = []
    encode = preparing.executors.encode
    monkeypatch.setattr(
        preparing.executors,
        "encode",
        lambda options, chunk, *rest: (read.append(chunk.name), encode(options, chunk, *rest))[1],
    )
    make(source, tmp_path, SMALL)
    assert len(read) < 14  # of 24 units
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert contents(tmp_path) == expected_files


def test_a_damaged_shard_is_written_again_and_those_before_it_are_kept(source, expected_files, tmp_path):
    interrupted(source, tmp_path, SMALL, 20)
    names = sorted(expected_files, key=lambda name: name.split("_")[-1])
    (tmp_path / names[2]).write_bytes(b"rubbish")
    kept = (tmp_path / names[1]).stat().st_mtime_ns
    make(source, tmp_path, SMALL)
    assert contents(tmp_path) == expected_files
    assert (tmp_path / names[1]).stat().st_mtime_ns == kept


def test_a_damaged_cached_chunk_is_encoded_again(source, tmp_path):
    options = replace(SMALL, shuffle_seed=3)
    make(source, tmp_path / "a", options)
    interrupted(source, tmp_path / "b", options, 5)
    parts = sorted((tmp_path / "b" / CACHE).glob("*.npz"))
    assert len(parts) == 24
    parts[7].write_bytes(parts[7].read_bytes()[:-5])
    parts[8].unlink()
    make(source, tmp_path / "b", options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_seeded_shuffle_across_row_groups(source, expected_files, tmp_path):
    folders = []
    for number, (seed, workers) in enumerate([(1, 2), (1, 1), (2, 2)]):
        folders.append(tmp_path / str(number))
        make(source, folders[-1], replace(SMALL, shuffle_seed=seed, workers=workers))
    assert contents(folders[0]) == contents(folders[1])
    assert contents(folders[0]) != contents(folders[2])
    order = decoded(folders[0], "val") + decoded(folders[0], "train")
    assert sorted(order) == sorted(corpora.texts(1200))
    groups = [int(text.split()[-1].rstrip(".")) // 50 for text in order]
    assert groups != sorted(groups)
    assert order[:50] != sorted(order[:50], key=corpora.texts(1200).index)


def test_a_tenth_is_val_by_default(tmp_path):
    texts = corpora.texts(300)
    paths = [corpora.jsonl(tmp_path / "a.jsonl", texts[:100]), corpora.parquet(tmp_path / "b.parquet", texts[100:])]
    source = local_files.source([str(path) for path in paths])
    summary = make(source, tmp_path / "out", PrepareOptions("files", shard_size=1000))
    val = open_split(tmp_path / "out", "val")
    last = 1 + len(Tokenizer().encode(decoded(tmp_path / "out", "val")[-1]))
    assert len(val) * 10 >= summary.tokens > (len(val) - last) * 10  # the first border past a tenth
    assert decoded(tmp_path / "out", "val") + decoded(tmp_path / "out", "train") == texts
    make(source, tmp_path / "shuffled", PrepareOptions("files", shard_size=1000, shuffle_seed=5))
    val = open_split(tmp_path / "shuffled", "val")
    assert 0.1 <= len(val) / summary.tokens < 0.12


LINES = "A line of some words.\n"


@pytest.mark.parametrize("large", [0, 8, 12, 20, 39])  # where the large document is
@pytest.mark.parametrize("lines", [60, 4000])  # of it: so that whole documents do, or do not, give about a tenth
def test_val_is_about_a_tenth_where_one_document_is_large(tmp_path, large, lines):
    texts = [f"{LINES * (n % 7 + 20)}{n}." for n in range(40)]
    texts[large] = LINES * lines
    summary = make(of(*texts), tmp_path, DEFAULTS)
    assert 0.08 <= summary.val_tokens / summary.tokens <= 0.15
    assert f"{100 * summary.val_tokens / summary.tokens:.2g}% val" in summary.line(tmp_path)
    val, train = decoded(tmp_path, "val"), decoded(tmp_path, "train")
    assert "".join(val + train) == "".join(texts)
    if summary.divided:
        assert val[-1].endswith("\n")
        assert "continued in train" in summary.line(tmp_path)
        assert (summary.documents, val[-1] + train[0]) == (41, texts[len(val) - 1])
    else:
        assert val + train == texts
    verify(tmp_path)


def test_a_corpus_of_one_document_is_divided(tmp_path):
    summary = make(of(LINES * 300), tmp_path / "lines", DEFAULTS)
    assert (summary.documents, summary.divided) == (2, True)
    assert make(of("word " * 3000), tmp_path / "no_lines", DEFAULTS).val_tokens == 301
    for folder in ("lines", "no_lines"):
        verify(tmp_path / folder)


# The border of the earlier release, before or after that of this one; and how many shards are finished.
@pytest.mark.parametrize(("val_tokens", "closed"), [(400, 1), (400, 4), (2000, 3), (2000, 6)])
def test_an_unfinished_preparation_with_another_border_of_val_is_started_again(tmp_path, caplog, val_tokens, closed):
    options = PrepareOptions("files", shard_size=700)
    source = Source("made", "made", "1", (in_memory_file("file", corpora.texts(400)),))
    make(source, tmp_path / "whole", options)
    close_shard, calls = preparing.ShardBuilder.close_shard, 0

    def interrupted_close(self):
        nonlocal calls
        close_shard(self)
        calls += 1
        if calls == closed:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preparing.EncodedCache, "choose_val", lambda *_: (val_tokens, False))
        patch.setattr(preparing.ShardBuilder, "close_shard", interrupted_close)
        make(source, tmp_path / "out", options)
    make(source, tmp_path / "out", options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert "starting again" in caplog.text


def test_a_divided_document_is_written_alike_after_an_interruption(tmp_path):
    parts = (
        ["first"],
        corpora.texts(3),
        [*corpora.texts(3, 3), LINES * 2000, "after"],
        corpora.texts(300, 10),
        ["last"],
    )
    files = tuple(in_memory_file(str(number), texts) for number, texts in enumerate(parts))
    source = Source("made", "made", "1", files)
    options = PrepareOptions("files", shard_size=700)
    assert make(source, tmp_path / "whole", options).divided
    for chunks in (1, 2, 3, 4):
        interrupted(source, tmp_path / str(chunks), options, chunks)
        make(source, tmp_path / str(chunks), options)
        assert contents(tmp_path / str(chunks)) == contents(tmp_path / "whole")


def test_val_is_a_tenth_of_what_remains_without_duplicates(tmp_path):
    texts = [*(text for text in corpora.texts(100) for _ in range(5)), *corpora.texts(400, 100)]
    summary = make(of(*texts), tmp_path, PrepareOptions("files", drop_duplicates=True))
    assert 0.1 <= summary.val_tokens / summary.tokens < 0.11


def test_one_shard_of_fineweb_edu_is_val_if_there_are_ten(source, tmp_path):
    summary = make(source, tmp_path / "many", PrepareOptions("files", shard_size=2000))
    assert 1900 < len(open_split(tmp_path / "many", "val")) <= 2000
    make(source, tmp_path / "few", PrepareOptions("files", shard_size=20_000))
    assert 0.1 <= len(open_split(tmp_path / "few", "val")) / summary.tokens < 0.11


def test_only_as_many_shards_as_asked_for(source, expected_files, tmp_path):
    make(source, tmp_path, replace(SMALL, shards=4))
    assert len(contents(tmp_path)) == 5
    train = open_split(tmp_path, "train")
    assert 8900 < len(train) <= 9000
    texts = decoded(tmp_path, "val") + decoded(tmp_path, "train")
    assert texts == corpora.texts(1200)[: len(texts)]  # whole documents
    with pytest.raises(GPT2LabError, match="--shards"):
        make(source, tmp_path / "b", replace(SMALL, shards=1))


def test_exact_duplicates_are_counted_and_dropped_if_asked(tmp_path):
    texts = [*corpora.texts(50), *corpora.texts(20), "once"]
    kept = make(of(*texts), tmp_path / "kept", DEFAULTS)
    assert kept.duplicates == 20
    assert "; 20 exact duplicates are kept (gpt2lab prepare --drop-duplicates leaves them out)" in kept.line(tmp_path)
    again = make(of(*texts), tmp_path / "kept", DEFAULTS).line(tmp_path)
    assert "; 20 exact duplicates are kept (gpt2lab prepare --drop-duplicates --restart leaves them out)" in again
    assert decoded(tmp_path / "kept", "val") + decoded(tmp_path / "kept", "train") == texts
    dropped = make(of(*texts), tmp_path / "dropped", PrepareOptions("files", drop_duplicates=True))
    assert (dropped.duplicates, dropped.documents) == (20, 51)
    assert "; 20 exact duplicates were left out" in dropped.line(tmp_path)
    assert decoded(tmp_path / "dropped", "val") + decoded(tmp_path / "dropped", "train") == [*texts[:50], "once"]


def test_duplicates_are_remembered_across_an_interruption(tmp_path):
    root = tmp_path / "mirror"
    for number in range(3):  # every file holds the same documents
        corpora.parquet(root / "sample/10BT" / f"{number:03d}_00000.parquet", corpora.texts(300))
    source = fineweb.source(mirror=root)
    options = PrepareOptions("files", shard_size=1000, val_tokens=900, drop_duplicates=True)
    assert make(source, tmp_path / "a", options).duplicates == 600
    interrupted(source, tmp_path / "b", options, 4)
    assert make(source, tmp_path / "b", options).duplicates == 600
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert decoded(tmp_path / "a", "val") + decoded(tmp_path / "a", "train") == corpora.texts(300)


def test_unreadable_input_stops_or_is_left_out(tmp_path):
    root = corpora.mirror(tmp_path / "mirror", files=3, count=300, rows=100)
    path = root / "sample/10BT/001_00000.parquet"
    with open(path, "r+b") as file:
        file.seek(int(path.stat().st_size * 0.35))
        file.write(b"\x00\xff" * 20)
    (root / "sample/10BT/002_00000.parquet").write_bytes(b"PAR1 cut short")
    source = fineweb.source(mirror=root)
    for workers in (1, 2):
        out = tmp_path / f"stop{workers}"
        with pytest.raises(GPT2LabError, match=r"001_00000\.parquet: row group 1 "):
            make(source, out, PrepareOptions("files", shard_size=1000, val_tokens=900, workers=workers))
        assert len(list(out.glob("*.npy"))) >= 4  # what came before it is kept
    for workers in (1, 2):
        options = PrepareOptions("files", shard_size=1000, val_tokens=900, workers=workers, on_error="skip")
        summary = make(source, tmp_path / f"skip{workers}", options)
        assert (summary.skipped, summary.documents) == (2, 500)
        assert "; 2 unreadable lines or files were left out, see" in summary.line(tmp_path)
        assert "; 1 unreadable line or file was left out, see" in summary._replace(skipped=1).line(tmp_path)
    manifest = json.loads((tmp_path / "skip1" / MANIFEST).read_text())
    assert "001_00000.parquet: row group 1 " in manifest["problems"][0]
    assert "002_00000.parquet" in manifest["problems"][1]
    assert contents(tmp_path / "skip1") == contents(tmp_path / "skip2")
    texts = corpora.texts(300) + corpora.texts(100, 300) + corpora.texts(100, 500)
    assert decoded(tmp_path / "skip1", "val") + decoded(tmp_path / "skip1", "train") == texts


def test_a_complete_folder_is_left_alone(source, expected_files, tmp_path):
    first = make(source, tmp_path, SMALL)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("[!.]*")}
    with DirectoryLock(tmp_path):  # nor does it need the lock
        again = make(source, tmp_path, SMALL)
    assert again[:2] == first[:2]
    assert not again.made
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("[!.]*")} == before


def test_a_changed_source_or_other_settings_are_refused(tmp_path):
    root = corpora.mirror(tmp_path / "mirror")
    make(fineweb.source(mirror=root), tmp_path / "done", SMALL)
    interrupted(fineweb.source(mirror=root), tmp_path / "half", SMALL, 15)
    before = contents(tmp_path / "done"), contents(tmp_path / "half")
    for folder in ("done", "half"):
        with pytest.raises(GPT2LabError, match=rf"{folder}.*shard_tokens 3000.*--out.*--restart"):
            make(fineweb.source(mirror=root), tmp_path / folder, replace(SMALL, shard_size=4000))
        with pytest.raises(GPT2LabError, match=rf"{folder}.* made from fineweb-edu, not from .*--out.*--restart"):
            make(of("a", "b"), tmp_path / folder, SMALL)
    corpora.parquet(root / "sample/10BT/001_00000.parquet", corpora.texts(400, 5000))
    for folder in ("done", "half"):
        with pytest.raises(GPT2LabError, match=rf"{folder}.* made from another text"):
            make(fineweb.source(mirror=root), tmp_path / folder, SMALL)
    assert before == (contents(tmp_path / "done"), contents(tmp_path / "half"))
    for folder in ("done", "half"):
        make(fineweb.source(mirror=root), tmp_path / folder, replace(SMALL, restart=True))
        verify(tmp_path / folder)
    assert contents(tmp_path / "done") == contents(tmp_path / "half")


def test_restart_discards_only_shards_that_were_prepared_here(tmp_path):
    texts = [*corpora.texts(50), *corpora.texts(20)]
    make(of(*texts), tmp_path, DEFAULTS)
    again = replace(DEFAULTS, drop_duplicates=True, restart=True)
    np.save(tmp_path / "other_train_000001.npy", np.arange(9, dtype=np.uint16))
    with pytest.raises(GPT2LabError, match="other_train_000001"):
        make(of(*texts), tmp_path, again)
    (tmp_path / "other_train_000001.npy").unlink()
    assert make(of(*texts), tmp_path, again).documents == 50
    index_shards(tmp_path, tmp_path / "linked")
    with pytest.raises(GPT2LabError, match="linked"):
        make(of(*texts), tmp_path / "linked", again)


class KilledError(BaseException):
    """Ends a preparation as a kill does: nothing handles it."""


def make_and_die(source, folder, options, n, moment):
    """Prepare, and die just before or after the n-th file is renamed; returns whether there were so many."""
    rename, count = os.replace, 0

    def rename_and_die(old, new):
        nonlocal count
        count += 1
        if count == n and moment == "before":
            raise KilledError
        rename(old, new)
        if count == n:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", rename_and_die)
        try:
            make(source, folder, options)
        except KilledError:
            return True
    return False


@pytest.mark.parametrize("moment", ["before", "after"])
def test_finished_shards_are_replaced_only_by_complete_ones_whenever_it_is_killed(tmp_path, moment):
    options = PrepareOptions("files", shard_size=500, val_tokens=400, tokenizer="tiktoken")
    make(of(*corpora.texts(100)), tmp_path / "old", options)
    options, source = replace(options, shard_size=700, restart=True), of(*corpora.texts(90, 1000))
    make(source, tmp_path / "new", options)
    old, new = contents(tmp_path / "old"), contents(tmp_path / "new")
    for n in itertools.count(1):
        folder = tmp_path / f"at{n}"
        shutil.copytree(tmp_path / "old", folder)
        if not make_and_die(source, folder, options, n, moment):
            break
        if is_ready(folder):
            assert contents(folder) in (old, new)
            verify(folder)
        else:
            with pytest.raises(GPT2LabError, match="is incomplete; run the same prepare command again"):
                open_split(folder, "train")
            written = contents(folder) | contents(folder / ".replacement")  # the new shards are all there
            assert all(written[name] == new[name] for name in new.keys() - {MANIFEST})
        make_and_die(source, folder, options, 2, moment)  # the next one is killed as well
        make(source, folder, options)
        assert contents(folder) == new
        assert not list(folder.glob(".*"))
    assert n > 2 * len(new)


def test_an_unfinished_replacement_is_continued_and_the_old_shards_are_used_meanwhile(source, expected_files, tmp_path):
    make(of(*corpora.texts(200)), tmp_path, SMALL)
    old = contents(tmp_path)
    message = interrupted(source, tmp_path, replace(SMALL, restart=True), 15)
    assert ".replacement keeps what is finished: the same command continues there" in message
    assert contents(tmp_path) == old
    verify(tmp_path)
    finished = {path: path.stat().st_ino for path in (tmp_path / ".replacement").glob("*.npy")}
    assert len(finished) > 3
    make(source, tmp_path, replace(SMALL, restart=True))
    assert contents(tmp_path) == expected_files
    assert all((tmp_path / path.name).stat().st_ino == number for path, number in finished.items())


def test_a_restart_that_fails_loses_nothing(tmp_path):
    make(of(*corpora.texts(60)), tmp_path, DEFAULTS)
    old = contents(tmp_path)
    bad = Source("made", "made", "2", (SourceFile("bad", 1, "", list_no_chunks),))
    for source in (bad, of("only one")):
        with pytest.raises(GPT2LabError):
            make(source, tmp_path, replace(DEFAULTS, restart=True))
        assert contents(tmp_path) == old
        assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", ["cut", "bytes", "missing"])
def test_restart_repairs_damaged_shards_and_the_messages_advise_it(source, expected_files, tmp_path, capsys, damage):
    make(source, tmp_path, SMALL)
    path = tmp_path / "edufineweb_train_000002.npy"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-100] if damage == "cut" else content[:200] + b"\xff" * 100 + content[300:])
    if damage == "cut":
        with pytest.raises(GPT2LabError, match=r"train_000002\.npy is truncated.* repeat its preparation with --rest"):
            make(source, tmp_path, SMALL)
    with pytest.raises(GPT2LabError, match=r"remove .* and prepare it again|repeat its preparation with --restart$"):
        verify(tmp_path)
    if damage == "bytes":
        stream = open_split(tmp_path, "train")
        with pytest.raises(GPT2LabError, match=r"000002\.npy: token 36 is 65535, but .*damaged; .* with --restart$"):
            Loader(stream, block_size=64, sequences_per_step=8, seed=1, vocab_size=50304)
    make(source, tmp_path, replace(SMALL, restart=True))
    assert contents(tmp_path) == expected_files


def test_other_shards_are_never_overwritten(source, tmp_path):
    np.save(tmp_path / "edufineweb_train_000001.npy", np.arange(9, dtype=np.uint16))
    before = contents(tmp_path)
    with pytest.raises(GPT2LabError, match="edufineweb_train_000001"):
        make(source, tmp_path, SMALL)
    assert contents(tmp_path) == before


def test_a_folder_of_other_files_is_refused_and_not_written_to(source, tmp_path):
    (tmp_path / "thesis.md").write_text("a")
    with pytest.raises(GPT2LabError, match=r"thesis\.md.*--out"):
        make(source, tmp_path, SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.md"]


def test_two_processes(source, tmp_path):
    with DirectoryLock(tmp_path), pytest.raises(GPT2LabError, match=tmp_path.name):
        make(source, tmp_path, SMALL)


def test_missing_disk_space_is_reported_before_starting(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 20_000))
    with pytest.raises(GPT2LabError, match=r"0\.0\d MB .*0\.02 MB .*--shards"):
        make(source, tmp_path, SMALL)
    assert not list(tmp_path.glob("*.npy"))
    make(source, tmp_path, replace(SMALL, shards=3))


def test_a_disk_that_fills_up(source, mirror, tmp_path):
    """A file size limit stands in for a full disk: the open shard fails, those before it are kept."""
    program = (
        "import resource, signal, sys; from gpt2lab.data.prepare import *; from gpt2lab.options import PrepareOptions;"
        "from gpt2lab.data.sources import fineweb; small = dict(val_tokens=1900, tokenizer='tiktoken');"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000));"
        "make(fineweb.source(mirror=sys.argv[1]), sys.argv[2], PrepareOptions('files', shard_size=3000, **small))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(mirror), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "GPT2LabError" in run.stderr
    assert "edufineweb_train_000001.npy: File too large" in run.stderr
    assert [file.name for file in tmp_path.glob("*.npy")] == ["edufineweb_val_000000.npy"]
    make(source, tmp_path, replace(SMALL, val_tokens=1900))
    verify(tmp_path)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "text"),
        (["only one"], "too few to divide .* 1,280 tokens"),
    ],
)
def test_corpora_that_cannot_be_split(tmp_path, texts, message):
    with pytest.raises(GPT2LabError, match=message):
        make(of(*texts), tmp_path, DEFAULTS)
    make(of("one", "two"), tmp_path, DEFAULTS)  # nothing is left in the way


def test_val_tokens_larger_than_the_corpus(source, tmp_path):
    with pytest.raises(GPT2LabError, match=r"--val-tokens 1000000000 leaves nothing for train: .*, such as") as error:
        make(source, tmp_path, replace(SMALL, val_tokens=10**9))
    advised = int(str(error.value).rpartition("--val-tokens ")[2])
    assert make(source, tmp_path, replace(SMALL, val_tokens=advised)).val_tokens <= advised


@pytest.mark.parametrize("val_tokens", [100, 10**9])
def test_val_tokens_of_one_document(tmp_path, val_tokens):
    with pytest.raises(GPT2LabError, match=r"--val-tokens leaves nothing for train: .*; without it, a tenth is val"):
        make(of(LINES * 300), tmp_path, replace(DEFAULTS, val_tokens=val_tokens))
    make(of(LINES * 300), tmp_path, DEFAULTS)
    with pytest.raises(GPT2LabError, match="too few to divide"):
        make(of("only one"), tmp_path / "b", replace(DEFAULTS, val_tokens=val_tokens))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(stdlib, "documents", lambda: iter(DOCUMENTS))


def fail_in_the_second_file(folder, monkeypatch, min_kept_bytes):
    """The error of a preparation whose second file cannot be read."""
    monkeypatch.setattr(journal, "_MIN_KEPT_BYTES", min_kept_bytes)
    good = in_memory_file("good", corpora.texts(50))
    source = Source("files", "files", "1", (good, SourceFile("bad", 1, "", list_no_chunks)))
    with pytest.raises(GPT2LabError, match="bad is bad") as error:
        make(source, folder, DEFAULTS)
    return str(error.value)


def test_a_failure_leaves_nothing_that_is_made_again_in_seconds(tmp_path, monkeypatch):
    for folder in (tmp_path / "a" / "b", tmp_path):
        assert fail_in_the_second_file(folder, monkeypatch, journal._MIN_KEPT_BYTES) == "bad is bad"
        assert list(tmp_path.iterdir()) == []


def test_a_failure_that_leaves_something_says_so(tmp_path, monkeypatch):
    message = fail_in_the_second_file(tmp_path, monkeypatch, 1)
    assert message == f"bad is bad; {tmp_path} keeps what is finished: the same command continues there"
    assert (tmp_path / CACHE).is_dir()


def test_an_interruption_that_leaves_shards_says_so(source, tmp_path):
    assert "the same command continues" in interrupted(source, tmp_path, SMALL, 15)
    assert interrupted(source, tmp_path / "new", SMALL, 0) == ""
    assert not (tmp_path / "new").exists()


def test_training_makes_the_whole_standard_library(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(stdlib, "documents", lambda: iter(corpus))
    prepare("stdlib", tmp_path / "deep" / "stdlib")
    train, val = (open_split(tmp_path / "deep" / "stdlib", split) for split in ("train", "val"))
    assert train.documents + val.documents > 100
    assert 300_000 < (tokens := len(train) + len(val)) < 1_500_000
    assert 0.1 <= len(val) / tokens < 0.15
    manifest = json.loads((tmp_path / "deep" / "stdlib" / MANIFEST).read_text())
    assert (manifest["source"], manifest["shuffle_seed"]) == ("stdlib", stdlib.SHUFFLE_SEED)
    assert sys.version.split()[0] in manifest["revision"]


def test_training_keeps_complete_shards_and_restarts_an_unfinished_folder(small, tmp_path):
    make(stdlib.source(), tmp_path, PrepareOptions("stdlib", shard_size=100))
    prepare("stdlib", tmp_path)  # with another shard size
    assert len(contents(tmp_path)) > 4
    (tmp_path / MANIFEST).unlink()
    (tmp_path / PREPARING).write_text("from an older version")
    prepare("stdlib", tmp_path)
    assert sorted(contents(tmp_path)) == [MANIFEST, "stdlib_train_000001.npy", "stdlib_val_000000.npy"]
    texts = decoded(tmp_path, "val") + decoded(tmp_path, "train")
    assert sorted(texts) == sorted(document.text for document in DOCUMENTS)
    assert texts != [document.text for document in DOCUMENTS]  # shuffled


def test_training_makes_tinyshakespeare(shared_data, tmp_path):
    prepare("tinyshakespeare", tmp_path, mirror=str(shared_data))
    assert [open_split(tmp_path, split).documents for split in ("train", "val")] == [1, 1]
    assert len(open_split(tmp_path, "train")) == 301_966 + 1  # nanoGPT's counts, and <|endoftext|>
    assert len(open_split(tmp_path, "val")) == 36_059 + 1


def test_only_folders_with_token_shards_are_offered(tmp_path):
    for name in ("mine/train_0.npy", "weights/pytorch_model.bin", "made/a.npy"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "made" / MANIFEST).touch()
    with pytest.raises(GPT2LabError, match="does not exist") as error:
        run_data.require_shards(DataConfig(dir=str(tmp_path / "xyz")))
    assert [name in str(error.value) for name in ("mine", "made", "weights")] == [True, True, False]


def test_training_names_the_command_for_fineweb(tmp_path):
    assert set(DEFAULT_DIRS) == {"stdlib", "cpython", "tinyshakespeare", "fineweb-edu", "fineweb", "files"}
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(GPT2LabError, match=rf"gpt2lab prepare fineweb-edu --out {folder} .*--data\.dir"):
            prepare("fineweb-edu", folder)
    with pytest.raises(GPT2LabError, match=r"gpt2lab prepare fineweb-edu --mirror '/a b' "):
        prepare("fineweb-edu", DEFAULT_DIRS["fineweb-edu"], mirror="/a b")
    np.save(tmp_path / "edufineweb_train_000001.npy", np.arange(9, dtype=np.uint16))
    np.save(tmp_path / "edufineweb_val_000000.npy", np.arange(5, dtype=np.uint16))
    prepare("fineweb-edu", tmp_path)  # shards without a manifest are used as well


def test_training_does_not_replace_an_unfinished_preparation_of_other_text(small, tmp_path):
    files = tuple(in_memory_file(str(number), corpora.texts(50, 50 * number)) for number in range(3))
    interrupted(Source("files", "files", "1", files), tmp_path, PrepareOptions("files", shard_size=100), 2)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(GPT2LabError, match="unfinished preparation of files"):
        prepare("stdlib", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_in_place_of_the_folder(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GPT2LabError, match="file"):
        prepare("stdlib", tmp_path / "file")
    assert (tmp_path / "file").is_file()


def test_real_text(shared_data, tmp_path):
    """51 million tokens of real text, every one of them equal to what the manifest of the data promises."""
    source = fineweb.source(mirror=shared_data)
    summary = make(source, tmp_path, PrepareOptions("files", shard_size=10_000_000, val_tokens=5_000_000, workers=2))
    assert (summary.documents, summary.tokens, summary.duplicates) == (23_056, 51_366_280 + 23_056, 0)
    assert "is sound: 6 shards" in verify(tmp_path)

"""Shards: written and read back, formats of other projects, and damaged files and manifests."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.data.encoder import Encoded
from gpt2lab.data.journal import Journal, close_journal, open_journal
from gpt2lab.data.shard_builder import ShardBuilder
from gpt2lab.data.shards import MANIFEST, PREPARING, SPLITS, TokenStream, open_split, split_of, write_manifest
from gpt2lab.data.sources import Position
from gpt2lab.errors import GPT2LabError
from gpt2lab.options import PrepareOptions

EOT = 50256


def write(folder, val, train, shard_tokens=10):
    """Shards of documents given as lists of ids, the way `prepare` writes them."""
    options = PrepareOptions("files", shard_size=shard_tokens)
    builder = ShardBuilder(folder, "x", Journal({}), options, val_tokens=len(flat(val)))
    documents = [*val, *train]
    lengths = np.array([1 + len(document) for document in documents])
    hashes = np.arange(len(documents), dtype=np.uint64)
    builder.add(Position(0, 0), Encoded(np.array(flat(documents), dtype=np.uint16), lengths, hashes, 0, ()))
    builder.close_shard()
    info = {"source": "s", "revision": "r", "shuffle_seed": 1}
    write_manifest(folder, info, builder.counts.documents, builder.counts.tokens, builder.writer.shards)
    close_journal(folder)


def flat(documents):
    return [token for document in documents for token in (EOT, *document)]


def bin_shard(tokens, magic=20240520, version=1, count=None):
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    return header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes()


@pytest.fixture
def prepared(tmp_path):
    write(tmp_path, [[1, 2, 3]], [[*range(20)], [7, 8]])
    return tmp_path


def edit_manifest(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


documents = st.lists(st.lists(st.integers(0, EOT), max_size=25), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None)
@given(val=documents, train=documents, shard_tokens=st.integers(1, 40))
def test_round_trip(tmp_path_factory, val, train, shard_tokens):
    folder = tmp_path_factory.mktemp("shards")
    write(folder, val, train, shard_tokens)
    for split, expected in zip(SPLITS, (val, train), strict=True):
        stream = open_split(folder, split)
        assert len(stream) == len(flat(expected))
        assert stream.read(0, len(stream)).tolist() == flat(expected)
        assert stream.documents == len(expected)
    assert not (folder / PREPARING).exists()


def test_names_and_manifest(prepared):
    names = ["x_val_000000.npy", "x_train_000001.npy", "x_train_000002.npy", "x_train_000003.npy"]
    assert sorted(file.name for file in prepared.iterdir()) == sorted([*names, MANIFEST])
    manifest = json.loads((prepared / MANIFEST).read_text())
    assert [shard["file"] for shard in manifest["shards"]] == names
    assert [shard["tokens"] for shard in manifest["shards"]] == [4, 10, 10, 4]
    assert manifest["splits"] == {"val": {"tokens": 4, "documents": 1}, "train": {"tokens": 24, "documents": 2}}
    assert {key: manifest[key] for key in ("version", "tokenizer", "source", "revision", "shuffle_seed")} == {
        "version": 1,
        "tokenizer": "gpt2",
        "source": "s",
        "revision": "r",
        "shuffle_seed": 1,
    }
    for shard in manifest["shards"]:
        assert hashlib.sha256((prepared / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]


def test_an_unfinished_folder_is_not_read(tmp_path):
    journal = open_journal(tmp_path, {"source": "s"}, restart=False)
    builder = ShardBuilder(tmp_path, "x", journal, PrepareOptions("files", shard_size=4), val_tokens=9)
    builder.add(
        Position(0, 0), Encoded(np.zeros(9, dtype=np.uint16), np.array([9]), np.zeros(1, dtype=np.uint64), 0, ())
    )
    builder.writer.abandon()
    assert sorted(file.name for file in tmp_path.glob("*.npy")) == ["x_val_000000.npy", "x_val_000001.npy"]
    assert not list(tmp_path.glob(".tmp*"))
    with pytest.raises(GPT2LabError, match=tmp_path.name):
        open_split(tmp_path, "train")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_gather_equals_a_flat_array_across_borders(tmp_path_factory, data):
    tokens = np.arange(data.draw(st.integers(1, 60)), dtype=np.uint16)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(tokens) - 1), max_size=8))) if len(tokens) > 1 else []
    folder = tmp_path_factory.mktemp("cut")
    for number, piece in enumerate(np.split(tokens, cuts)):
        np.save(folder / f"train_{number}.npy", piece)
    stream = open_split(folder, "train")
    length = data.draw(st.integers(0, len(tokens)))
    starts = np.array(data.draw(st.lists(st.integers(0, len(tokens) - length), max_size=6)), dtype=np.int64)
    # The position just past the end is a legal start of nothing, and of nothing only.
    starts = starts[starts < len(tokens)]
    rows = stream.gather(starts, length)
    assert rows.shape == (len(starts), length)
    assert rows.dtype == np.uint16
    assert rows.tolist() == [tokens[start : start + length].tolist() for start in starts]
    for position in range(len(tokens)):
        file, offset = stream.locate(position)
        assert np.load(file)[offset] == position


def test_reading_outside_is_a_bug(make_stream):
    stream = make_stream(range(10), [4])
    for start, count in ((-1, 2), (8, 3), (11, 0)):
        with pytest.raises(AssertionError):
            stream.read(start, count)


def test_other_projects_shards(tmp_path):
    for name, value in (
        ("train_010.npy", 3),
        ("train_002.npy", 2),
        ("edufineweb_train_000001.npy", 1),
        ("edufineweb_val_000000.npy", 9),
    ):
        np.save(tmp_path / name, np.full(3, value, dtype=np.uint16))
    (tmp_path / "fineweb_train_000004.bin").write_bytes(bin_shard([4, 4]))
    (tmp_path / "._train_000.npy").write_bytes(b"not a shard: what another file system leaves behind")
    (tmp_path / "README.md").write_text("train")
    stream = open_split(tmp_path, "train")
    assert stream.read(0, len(stream)).tolist() == [1, 1, 1, 4, 4, 2, 2, 2, 3, 3, 3]
    assert stream.documents is None
    assert open_split(tmp_path, "val").read(0, 3).tolist() == [9, 9, 9]


def test_shards_are_in_numeric_order(tmp_path):
    for number in (10, 9, 100, 1):
        np.save(tmp_path / f"train_{number}.npy", np.array([number], dtype=np.uint16))
    assert open_split(tmp_path, "train").read(0, 4).tolist() == [1, 9, 10, 100]


def test_split_of_a_name():
    assert split_of("medieval_train_000001.npy") == "train"
    assert split_of("training_val_1.bin") == split_of("Validation.npy") == "val"
    assert split_of("tokens.npy") is None


def test_shards_are_plain_read_only_arrays(make_stream):
    (shard,) = make_stream(range(10))._shards
    assert type(shard) is np.ndarray
    assert not shard.flags.writeable
    assert isinstance(shard.base, np.memmap)  # not read into memory


def test_fingerprint_depends_on_names_counts_and_digests(prepared, tmp_path_factory):
    first = open_split(prepared, "train").fingerprint
    assert len(first) == 64
    assert first == open_split(prepared, "train").fingerprint != open_split(prepared, "val").fingerprint
    edit_manifest(prepared, lambda m: m["shards"][1].update(sha256="0" * 64))
    second = open_split(prepared, "train").fingerprint
    other = tmp_path_factory.mktemp("other")
    np.save(other / "train_0.npy", np.zeros(5, dtype=np.uint16))
    third = open_split(other, "train").fingerprint
    (other / "train_0.npy").rename(other / "train_1.npy")
    fourth = open_split(other, "train").fingerprint
    np.save(other / "train_1.npy", np.zeros(6, dtype=np.uint16))
    assert len({first, second, third, fourth, open_split(other, "train").fingerprint}) == 5


def npy(array, **options):
    import io

    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


GOOD = npy(np.arange(100, dtype=np.uint16))


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("something was unpickled",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train_0.npy", b""),
        ("train_0.bin", b""),
        ("train_0.npy", GOOD[:50]),
        ("train_0.npy", GOOD[:-2]),
        ("train_0.npy", GOOD[:-1]),
        ("train_0.npy", GOOD + b"xx"),
        ("train_0.npy", b"\x00" * 500),
        ("train_0.npy", npy(np.arange(9, dtype=np.uint32))),
        ("train_0.npy", npy(np.arange(9, dtype=np.int16))),
        ("train_0.npy", npy(np.arange(9, dtype=">u2"))),
        ("train_0.npy", npy(np.ones(9))),
        ("train_0.npy", npy(np.zeros((3, 3), dtype=np.uint16))),
        ("train_0.npy", npy(np.uint16(3))),
        ("train_0.npy", npy(np.zeros(0, dtype=np.uint16))),
        ("train_0.npy", npy(np.array([Bomb()], dtype=object), allow_pickle=True)),
        ("train_0.npy", pickle.dumps(Bomb())),
        ("train_0.bin", bin_shard([1, 2], magic=20240521)),
        ("train_0.bin", bin_shard([1, 2], version=2)),
        ("train_0.bin", bin_shard([1, 2], count=-1)),
        ("train_0.bin", bin_shard([1, 2], count=3)),
        ("train_0.bin", bin_shard([1, 2], count=1)),
        ("train_0.bin", bin_shard([])[:900]),
        ("train_0.bin", bin_shard([])),
        ("train_0.bin", np.arange(2000, dtype=np.uint16).tobytes() + b"x"),
        ("train_0.bin", np.arange(48_300, 50_300, dtype=np.uint16).tobytes()),  # ids beyond GPT-2's
        ("train_0.bin", bytes(2000)),
        ("train_0.bin", bin_shard([1, 2], magic=20240801)),
        ("train_0.bin", np.arange(2000, dtype="<i4").tobytes()),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content):
    np.save(tmp_path / "train_1.npy", np.arange(5, dtype=np.uint16))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GPT2LabError, match=str(tmp_path / name)):
        open_split(tmp_path, "train")


def test_a_huge_header_allocates_nothing(tmp_path):
    head = bytearray(GOOD)
    at = head.index(b"(100,)")
    head[at : at + 40] = b"(99999999999999,), }".ljust(40)
    (tmp_path / "train_0.npy").write_bytes(head)
    with pytest.raises(GPT2LabError, match=r"train_0\.npy"):
        open_split(tmp_path, "train")


def test_folders_without_shards(tmp_path):
    with pytest.raises(GPT2LabError, match=r"nowhere.*another folder"):
        open_split(tmp_path / "nowhere", "train")
    with pytest.raises(GPT2LabError, match=r"another folder"):
        open_split(tmp_path, "train")
    np.save(tmp_path / "train_0.npy", np.arange(5, dtype=np.uint16))
    with pytest.raises(GPT2LabError, match="'val'"):
        open_split(tmp_path, "val")
    with pytest.raises(GPT2LabError, match=r"train_0\.npy"):
        open_split(tmp_path / "train_0.npy", "val")


def first_shard(**changes):
    return lambda manifest: manifest["shards"][0].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        first_shard(tokens=5),
        lambda m: m["splits"]["train"].update(tokens=3),
        lambda m: m["shards"].pop(),
        lambda m: m["shards"].append(m["shards"][0]),
        first_shard(file="../x_val_000000.npy"),
        first_shard(file="/etc/x_val_000000.npy"),
        first_shard(file="sub/x_val_000000.npy"),
        first_shard(file="..\\x_val_000000.npy"),
        first_shard(file=".."),
        first_shard(file=""),
        first_shard(split="test"),
        first_shard(file="y_val_000000.npy"),
        first_shard(tokens="many"),
        lambda m: m.pop("splits"),
        lambda m: m.update(shards=3),
        lambda m: m.update(tokenizer="llama"),
        lambda m: m.update(version=2),
    ],
)
def test_a_bad_manifest_is_named(prepared, change):
    edit_manifest(prepared, change)
    with pytest.raises(GPT2LabError, match=MANIFEST) as caught:
        open_split(prepared, "val")
    assert str(prepared) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"version": 1}'])
def test_a_file_that_is_not_a_manifest(prepared, content):
    (prepared / MANIFEST).write_bytes(content)
    with pytest.raises(GPT2LabError, match=r"manifest\.json"):
        open_split(prepared, "train")


def test_manifest_and_files_must_agree(prepared):
    np.save(prepared / "x_train_000009.npy", np.arange(5, dtype=np.uint16))
    with pytest.raises(GPT2LabError, match=r"x_train_000009\.npy"):
        open_split(prepared, "train")
    (prepared / "x_train_000009.npy").unlink()
    np.save(prepared / "x_train_000002.npy", np.arange(9, dtype=np.uint16))
    with pytest.raises(GPT2LabError, match=r"x_train_000002\.npy"):
        open_split(prepared, "train")
    (prepared / "x_train_000002.npy").unlink()
    with pytest.raises(GPT2LabError, match=r"x_train_000002\.npy"):
        open_split(prepared, "train")


def test_a_manifest_without_one_split(tmp_path):
    write(tmp_path, [[3]], [[1, 2]])

    def forget_val(manifest):
        manifest["splits"]["val"] = {"tokens": 0, "documents": 0}
        del manifest["shards"][0]

    edit_manifest(tmp_path, forget_val)
    (tmp_path / "x_val_000000.npy").unlink()
    assert isinstance(open_split(tmp_path, "train"), TokenStream)
    with pytest.raises(GPT2LabError, match=r"manifest\.json.*'val'"):
        open_split(tmp_path, "val")

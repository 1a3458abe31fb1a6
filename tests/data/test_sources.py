"""Sources: the same documents from every format, and errors that name the file."""

import gzip
import json
import os
import re
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2lab import cli, packages
from gpt2lab.data.sources import Texts, fineweb, jsonl, local_files, parquet, raise_problem, tinyshakespeare
from gpt2lab.errors import GPT2LabError
from tests.data import corpora

TEXTS = [*corpora.texts(60), "", "naïve 東京 🙂", 'quotes " and \\ and \n newlines', "x" * 5000]


def read(source, report=raise_problem):
    """All documents of a source."""
    chunks = [chunk.read(report) for _, chunk in source.chunks()]
    return [texts[row] for texts in chunks for row in range(len(texts))]


def read_with_skip(source):
    """Documents and problems with `--on-error skip`."""
    problems = []
    return read(source, problems.append), problems


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("unit", [None, 100, 7000])
def test_every_format_gives_the_same_documents(tmp_path, monkeypatch, name, unit):
    if unit:  # however the file is cut, also in the middle of lines
        monkeypatch.setattr(jsonl, "CHUNK_BYTES", unit)
        monkeypatch.setattr(parquet, "MAX_CHUNK_BYTES", unit)
        monkeypatch.setattr(parquet, "_BATCH_BYTES", unit)
    write = corpora.parquet if name.endswith("parquet") else corpora.jsonl
    write(tmp_path / name, TEXTS)
    source = local_files.source([str(tmp_path / name)])
    assert read(source) == TEXTS
    assert len(list(source.chunks())) >= (2 if unit else 1)


def test_text_files_are_documents_and_small_ones_are_read_together(tmp_path):
    for n, text in enumerate(TEXTS):
        (tmp_path / f"{n:03d}.txt").write_bytes(text.encode())
    source = local_files.source([str(tmp_path / "*.txt")])
    assert read(source) == TEXTS
    assert len(source.files) == 1


@pytest.mark.parametrize("name", ["a.TXT", "a.JSONL", "a.jsonl.GZ", "a.Parquet"])
def test_suffixes_in_capitals(tmp_path, name):
    write = corpora.parquet if "Parquet" in name else corpora.jsonl
    write(tmp_path / name.lower(), ["one text"])
    if "TXT" in name:
        (tmp_path / "a.txt").write_text("one text")
    (tmp_path / name.lower()).rename(tmp_path / name)
    assert read(local_files.source([str(tmp_path)])) == ["one text"]


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone text")
    assert read(local_files.source([str(tmp_path / "a.txt")])) == ["one text"]


def test_a_text_in_utf_16_is_told_how_to_convert_it(tmp_path):
    (tmp_path / "a b.txt").write_bytes("one text".encode("utf-16"))
    with pytest.raises(GPT2LabError, match=r"not UTF-8 text \(byte 0\); convert it: iconv -f UTF-16") as error:
        read(local_files.source([str(tmp_path)]))
    subprocess.run(str(error.value).partition("convert it: ")[2], shell=True, check=True)
    assert (tmp_path / "a b_utf8.txt").read_text() == "one text"


def test_globs_match_folders_in_order_without_repetitions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("corpus/b.txt", "corpus/deep/er/a.txt", "more.jsonl", "web.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).write_text(name)
    corpora.jsonl(tmp_path / "more.jsonl", ["line"])
    corpora.parquet(tmp_path / "web.parquet", ["row"])
    source = local_files.source(["web.parquet", "corpus/**/*.txt", "*.jsonl", "corpus/b.txt"])
    assert read(source) == ["row", "corpus/b.txt", "corpus/deep/er/a.txt", "line"]


def test_a_folder_stands_for_the_files_in_it(tmp_path, caplog):
    caplog.set_level("INFO", "gpt2lab")
    for name in ("[my] texts/b.txt", "[my] texts/deep/a.txt", "[my] texts/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(local_files.source([str(tmp_path / "[my] texts")])) == ["[my] texts/b.txt", "[my] texts/deep/a.txt"]
    assert "notes.md" in caplog.text
    (tmp_path / "empty").mkdir()
    with pytest.raises(GPT2LabError, match=r"empty.*\.txt"):
        local_files.source([str(tmp_path / "empty")])
    with pytest.raises(GPT2LabError, match=r"did you mean .*\[my\] texts"):
        local_files.source([str(tmp_path / "my text")])


def test_links_never_multiply_a_text(tmp_path):
    for name in ("texts/z.txt", "texts/deep/a.txt", "elsewhere/m.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    folder = tmp_path / "texts"
    before = local_files.source([str(folder)]).identity()
    (folder / "again.txt").symlink_to("z.txt")
    for link in ("first", "second", "deep/third"):
        (folder / link).symlink_to(folder)
    assert local_files.require([f"{folder}/*.txt", str(folder)]) == [f"{folder}/{n}.txt" for n in ("again", "deep/a")]
    (folder / "again.txt").unlink()
    assert local_files.source([str(folder)]).identity() == before
    (folder / "second").unlink()
    (folder / "deep" / "third").unlink()
    assert local_files.source([f"{folder}/**/*.txt"]).identity() == before
    (folder / "other").symlink_to("../elsewhere")
    assert read(local_files.source([str(folder)])) == ["texts/deep/a.txt", "elsewhere/m.txt", "texts/z.txt"]


@pytest.mark.parametrize("name", ["dead.txt", "dead"])  # `dead` may have been a folder
def test_dead_links_and_unreadable_folders_are_errors(tmp_path, monkeypatch, name):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("a")
    link = tmp_path / "deep" / name
    link.symlink_to("nowhere")
    for pattern in (tmp_path, tmp_path / "**", link):
        with pytest.raises(GPT2LabError, match=rf"--input .*deep/{name} is a link to a file that does not exist"):
            local_files.source([str(pattern)])
    link.unlink()
    (tmp_path / "deep" / "dead.md").symlink_to("nowhere")  # its text would not be read
    assert read(local_files.source([str(tmp_path)])) == ["a"]
    scandir = os.scandir

    def refuse_deep(path):
        if path == str(tmp_path / "deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_deep)
    with pytest.raises(GPT2LabError, match=r"cannot read .*deep: Permission denied"):
        local_files.source([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "advice"), [("a.csv", "to .jsonl"), ("a.json", "to .jsonl"), ("a.txt.gz", "unpack"), ("a.zip", "unpack")]
)
def test_other_formats_are_refused_with_what_to_do(tmp_path, name, advice):
    (tmp_path / "x" / name).parent.mkdir()
    (tmp_path / "x" / name).write_text("a")
    for path in (tmp_path / "x", tmp_path / "x" / name):
        with pytest.raises(GPT2LabError, match=rf"--input .*\.parquet; .*{advice}"):
            local_files.source([str(path)])


def test_a_folder_without_texts_is_not_suggested(tmp_path):
    (tmp_path / "txt").mkdir()
    with pytest.raises(GPT2LabError, match="matches no file; give a text file"):
        local_files.source([str(tmp_path / "nope.txt")])
    (tmp_path / "txt" / "a.txt").touch()
    with pytest.raises(GPT2LabError, match=r"did you mean .*/txt\?"):
        local_files.source([str(tmp_path / "nope.txt")])


def test_another_field(tmp_path):
    corpora.jsonl(tmp_path / "a.jsonl", ["one"], field="body")
    corpora.parquet(tmp_path / "a.parquet", ["two"], column="body")
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "a.parquet")]
    assert read(local_files.source(paths, "body")) == ["one", "two"]
    with pytest.raises(GPT2LabError, match=r"a\.jsonl: line 1 .*body.*--text-field"):
        read(local_files.source(paths[:1]))
    with pytest.raises(GPT2LabError, match=r"a\.parquet .*body.*--text-field"):
        read(local_files.source(paths[1:]))
    with pytest.raises(GPT2LabError, match=r"a\.parquet.*score.*--text-field"):
        read(local_files.source(paths[1:], "score"))


def test_wrong_patterns(tmp_path):
    with pytest.raises(GPT2LabError, match=r"--input .*nothing"):
        local_files.source([str(tmp_path / "nothing*")])
    (tmp_path / "a.pdf").write_text("")
    with pytest.raises(GPT2LabError, match=r"--input .*a\.pdf"):
        local_files.source([str(tmp_path / "*")])


BAD_LINES = {
    "broken": b'{"text": "cut',
    "not UTF-8": b'{"text": "\xff\xfe"}',
    "no object": b'["text"]',
    "null": b'{"text": null}',
    "number": b'{"text": 5}',
    "two on a line": b'{"text": "a"}{"text": "b"}',
}


@pytest.mark.parametrize("case", BAD_LINES)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_bad_lines_are_named_and_the_others_kept(tmp_path, case, name, monkeypatch):
    monkeypatch.setattr(jsonl, "CHUNK_BYTES", 64)
    good = [json.dumps({"text": f"good {n}"}).encode() for n in range(6)]
    data = b"\n".join([*good[:4], BAD_LINES[case], b"", *good[4:]])
    (tmp_path / name).write_bytes(data if name == "a.jsonl" else gzip.compress(data))
    source = local_files.source([str(tmp_path / name)])
    texts, problems = read_with_skip(source)
    assert texts == [f"good {n}" for n in range(6)]
    assert len(problems) == 1
    with pytest.raises(GPT2LabError, match=f"{name}: line 5 "):
        read(source)


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\\ud800"}\n')
    assert read_with_skip(local_files.source([str(tmp_path / "a.jsonl")])) == (["a", "\ufffd"], [])


@pytest.mark.parametrize("with_arrow", [True, False])
def test_only_the_text_must_be_utf8_and_the_file_may_begin_with_a_bom(tmp_path, monkeypatch, with_arrow):
    if not with_arrow:
        monkeypatch.setattr(packages, "is_installed", lambda _: False)
    lines = [b'\xef\xbb\xbf{"text": "a"}', b'{"url": "\xff", "text": "b"}', b'{"text": "c"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert read(local_files.source([str(tmp_path / "a.jsonl")])) == ["a", "b", "c"]
    lines += [b'{"text": "\xff"}', b'{"text": "\\udcff"}']
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(lines))
    texts, problems = read_with_skip(local_files.source([str(tmp_path / "b.jsonl")]))
    assert texts == ["a", "b", "c", "\ufffd"]
    assert len(problems) == 1
    assert "line 4 is not UTF-8" in problems[0]


def test_a_truncated_gzip_file(tmp_path):
    corpora.jsonl(tmp_path / "a.jsonl.gz", corpora.texts(3000))
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(GPT2LabError, match=r"a\.jsonl\.gz"):
        read(local_files.source([str(tmp_path / "a.jsonl.gz")]))


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine")
    (tmp_path / "b.txt").write_bytes(b"latin \xe9t\xe9")
    source = local_files.source([str(tmp_path / "*.txt")])
    assert read_with_skip(source)[0] == ["fine"]
    with pytest.raises(GPT2LabError, match=r"b\.txt .*byte 6.*iconv -f WINDOWS-1252 .*> .*b_utf8\.txt$"):
        read(source)
    (tmp_path / "b.txt").write_bytes(b"\x89PNG\0\0")
    with pytest.raises(GPT2LabError, match=r"b\.txt .*it is not a text file$"):
        read(source)


def test_bad_rows_of_parquet_are_named(tmp_path):
    raw = pa.array([b"one", b"\xff", None, b"four"], type=pa.binary())
    column = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    source = local_files.source([str(tmp_path / "a.parquet")])
    texts, problems = read_with_skip(source)
    assert texts == ["one", "four"]
    assert [re.findall(r"row \d+", problem) for problem in problems] == [["row 1"], ["row 2"]]
    with pytest.raises(GPT2LabError, match=r"a\.parquet, row group 0: row 1 "):
        read(source)


@pytest.mark.parametrize("dtype", ["string", "large_string"])
def test_slices_and_string_types(tmp_path, dtype):
    table = pa.table({"text": pa.array(TEXTS, type=getattr(pa, dtype)())})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    assert read(local_files.source([str(tmp_path / "a.parquet")])) == TEXTS


def damage(path, share=0.5):
    """Overwrite some bytes in the middle."""
    with open(path, "r+b") as file:
        file.seek(int(os.path.getsize(path) * share))
        file.write(b"\x00\xff" * 30)


def test_damaged_parquet_is_named_with_its_row_group(tmp_path):
    path = corpora.parquet(tmp_path / "a.parquet", corpora.texts(3000), rows=1000)
    damage(path)
    with pytest.raises(GPT2LabError, match=r"a\.parquet: row group 1 "):
        read(local_files.source([str(path)]))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GPT2LabError, match=r"a\.parquet"):
        read(local_files.source([str(path)]))
    path.write_bytes(b"")
    with pytest.raises(GPT2LabError, match=r"a\.parquet"):
        read(local_files.source([str(path)]))


def test_a_changed_source_has_another_identity(tmp_path):
    path = corpora.jsonl(tmp_path / "a.jsonl", corpora.texts(2000))
    before = local_files.source([str(path)]).identity()
    assert local_files.source([str(path)]).identity() == before
    assert local_files.source([str(path)], "other").identity() != before
    damage(path)  # the same size
    assert local_files.source([str(path)]).identity() != before


def test_mirrors_of_fineweb_edu(tmp_path, monkeypatch):
    root = corpora.mirror(tmp_path / "data" / "fineweb_edu_small", files=2, count=10)
    for given in (root, tmp_path / "data"):
        source = fineweb.source(mirror=given)
        assert [file.name for file in source.files] == [
            "sample/10BT/000_00000.parquet",
            "sample/10BT/001_00000.parquet",
        ]
        assert read(source) == corpora.texts(20)
    monkeypatch.setenv("GPT2LAB_MIRROR", str(tmp_path / "data"))
    assert read(fineweb.source()) == corpora.texts(20)
    with pytest.raises(GPT2LabError, match=r"--mirror .*sample/100BT"):
        fineweb.source("sample-100BT", mirror=root)
    with pytest.raises(GPT2LabError, match="--subset"):
        fineweb.source("sample-1T")


def test_mirrors_of_fineweb_beside_fineweb_edu(tmp_path):
    """Both have the same layout, and must not be taken for each other."""
    edu = corpora.mirror(tmp_path / "fineweb_edu", files=1, count=10)
    with pytest.raises(GPT2LabError, match=r"no sample/10BT/\*\.parquet of fineweb, nor a folder fineweb\*"):
        fineweb.source(mirror=tmp_path, corpus=fineweb.FINEWEB)
    with pytest.raises(GPT2LabError, match="of fineweb,"):
        fineweb.source(mirror=edu, corpus=fineweb.FINEWEB)
    corpora.parquet(tmp_path / "fineweb" / "sample/10BT/000_00000.parquet", corpora.texts(5, 100))
    for given in (tmp_path, tmp_path / "fineweb"):
        source = fineweb.source(mirror=given, corpus=fineweb.FINEWEB)
        assert (source.name, source.shard_name, read(source)) == ("fineweb", "fineweb", corpora.texts(5, 100))
    assert read(fineweb.source(mirror=tmp_path)) == corpora.texts(10)
    with pytest.raises(GPT2LabError, match="of fineweb-edu,"):
        fineweb.source(mirror=tmp_path / "fineweb")


def test_fineweb_is_prepared_and_trained_on_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    corpora.parquet(tmp_path / "mirror/fineweb/sample/10BT/000_00000.parquet", corpora.texts(300))
    assert cli.main(["prepare", "fineweb", "--mirror", "mirror"]) == 0
    assert "gpt2lab train --config gpt2_124m --data.source fineweb\n" in capsys.readouterr().err
    assert (tmp_path / "data/fineweb10B/fineweb_val_000000.npy").exists()
    shape = ["--model.n_layer", "1", "--model.n_embd", "8", "--model.n_head", "1", "--train.max_steps", "1"]
    assert cli.main(["train", "--data.source", "fineweb", "--run.name", "x", "--train.sample_every", "0", *shape]) == 0
    assert json.loads((tmp_path / "runs/x/environment.json").read_text())["data"]["source"] == "fineweb"


def test_tinyshakespeare_split(shared_data):
    val, train = read(tinyshakespeare.source(shared_data))
    assert (len(train), len(val)) == (1_003_854, 111_540)
    assert train.startswith("First Citizen:\nBefore we proceed")
    assert train + val == (shared_data / "tinyshakespeare/input.txt").read_text()


def test_texts_round_trip():
    texts = Texts.join(TEXTS)
    assert [texts[row] for row in range(len(texts))] == TEXTS
    assert texts.offsets.dtype == np.int64


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_is_called_empty(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(GPT2LabError, match=f"{name} is empty$"):
        local_files.source([str(tmp_path / name)])
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(GPT2LabError, match="all 2 files"):
        local_files.source([str(tmp_path)])
    (tmp_path / "b.txt").write_text("text")
    local_files.source([str(tmp_path)])

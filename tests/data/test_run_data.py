"""The data of a run: one's own text, prepared and trained on in one command."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from gpt2lab import cli
from gpt2lab.config import DataConfig
from gpt2lab.data import journal, run_data
from gpt2lab.data.catalogue import data_folder
from gpt2lab.data.shards import open_split
from gpt2lab.errors import GPT2LabError
from tests.data import corpora
from tests.data.corpora import contents
from tests.runs import REPOSITORY, learned

BOOK = "".join(f"Chapter {n}. It was a dark night, and number {n * 7919 % 1000} was out.\n" for n in range(400))
SMALL = ["--model.n_layer", "1", "--model.n_embd", "8", "--model.n_head", "1", "--train.max_steps", "2"]
SMALL += ["--train.sample_every", "0", "--system.device", "cpu"]


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "book.txt").write_text(BOOK)
    return "my/book.txt"


def test_one_text_file_is_prepared_and_trained_on_in_one_command(book, tmp_path):
    command = ["train", "--data.source", "files", "--data.input", book, "--run.name", "book", *SMALL]
    assert cli.main(command) == 0
    assert sorted(learned(tmp_path / "runs" / "book")) == [0, 1, 2]
    prepared = contents(tmp_path / "data" / "files" / "book")
    val, train = (open_split(tmp_path / "data" / "files" / "book", split) for split in ("val", "train"))
    assert 0.05 < len(val) / (len(val) + len(train)) < 0.16
    assert cli.main([*command, "--train.eval_every", "1"]) == 0  # finished: nothing to do
    assert contents(tmp_path / "data" / "files" / "book") == prepared


def test_the_text_of_a_folder_and_names_of_folders(book, tmp_path):
    run_data.prepare(DataConfig(source="files", input="my"))
    assert (tmp_path / "data" / "files" / "my" / "manifest.json").exists()
    run_data.prepare(DataConfig(source="files", input=str(tmp_path / "my")))  # the same, by another path
    for given, folder in (("a b/War & Peace.txt", "War-Peace"), ("...", "text"), ("x.jsonl.gz", "x")):
        assert data_folder(DataConfig(source="files", input=given)).name in (folder, tmp_path.parent.parent.name)


def test_a_missing_text_is_named_as_it_was_typed_and_before_torch_is_imported(book, tmp_path, capsys):
    run_data.prepare(DataConfig(source="files", input=book))  # there are shards for a text of this name
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    missing = str(tmp_path / "nothing" / "book.txt")
    for given, part in (
        (missing, f"{missing!r} matches no file; give a text file"),
        ("empty.txt", "empty.txt is empty"),
    ):
        with pytest.raises(GPT2LabError, match=re.escape(f"--data.input {part}")):
            run_data.prepare(DataConfig(source="files", input=given))
    arguments = [["--data.source", "files", "--data.input", given] for given in (missing, "empty.txt", "folder")]
    for words in arguments:
        code = "import sys; from gpt2lab.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", code, "train", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "2 False", done


def test_prepared_texts_live_beside_those_of_training(book, tmp_path):
    run_data.prepare(DataConfig(source="files", input=book))
    own = contents(tmp_path / "data" / "files" / "book")
    assert cli.main(["prepare", "files", "--input", book]) == 0  # into data/files
    assert cli.main(["prepare", "files", "--input", book, "--restart", "--drop-duplicates"]) == 0
    assert (tmp_path / "data" / "files" / "manifest.json").exists()
    run_data.prepare(DataConfig(source="files", input=book))
    assert contents(tmp_path / "data" / "files" / "book") == own
    (tmp_path / "other" / "files").mkdir(parents=True)
    with pytest.raises(GPT2LabError, match="other holds 'files', which is not from a preparation"):
        run_data.prepare(DataConfig(source="files", input=book, dir="other"))


def test_shards_of_another_text_are_never_used(book, tmp_path):
    run_data.prepare(DataConfig(source="files", input=book))
    before = contents(tmp_path / "data" / "files" / "book")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "book.txt").write_text(BOOK * 2)
    with pytest.raises(GPT2LabError, match=r"data/files/book holds shards of another text.*--data\.dir.*--restart"):
        run_data.prepare(DataConfig(source="files", input="other/book.txt"))
    (tmp_path / "my" / "book.txt").write_text(BOOK + "The end.\n")
    with pytest.raises(GPT2LabError, match="another version of my/book.txt"):
        run_data.prepare(DataConfig(source="files", input=book))
    assert contents(tmp_path / "data" / "files" / "book") == before
    run_data.prepare(DataConfig(source="files", input="other/book.txt", dir="data/other"))
    with pytest.raises(
        GPT2LabError, match=r"replace them \(runs that were trained on them then cannot resume\): "
    ) as error:
        run_data.prepare(DataConfig(source="files", input=book))
    assert cli.main(str(error.value).rsplit(": gpt2lab ", 1)[1].split()) == 0
    run_data.prepare(DataConfig(source="files", input=book))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.input", "my/book.txt"], "data.input my/book.txt is for data.source files, not stdlib"),
        (["--data.source", "files"], "data.source files needs data.input"),
        (
            ["--data.source", "files", "--data.input", "my/bok.txt"],
            "--data.input 'my/bok.txt' matches no file; did you mean my/book.txt",
        ),
        (["--data.source", "files", "--data.input", "my/book.pdf"], "export its text to a .txt file"),
        (["--data.source", "files", "--data.input", "my/short.txt"], "3 tokens, too few"),
        (["--data.source", "files", "--data.input", "my/link.txt"], "my/link.txt is a link to a file that does not"),
        (["--data.dir", "my/short.txt"], "is a file; to train on its text: --data.source files --data.input my/short"),
        (["--data.source", "files", "--data.dir", "data/none"], "add --data.input"),
    ],
)
def test_mistakes(book, tmp_path, capsys, arguments, message):
    (tmp_path / "my" / "book.pdf").write_bytes(b"%PDF")
    (tmp_path / "my" / "short.txt").write_text("word\n")
    (tmp_path / "my" / "link.txt").symlink_to("nowhere.txt")
    assert cli.main(["train", *arguments]) == 2
    assert message in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_the_folder_above_some_shards_is_refused_with_their_names(book, tmp_path, capsys):
    run_data.prepare(DataConfig(source="files", input=book))
    below = "; there are some in data/files/book\n"
    for arguments in (
        ["train", "--data.dir", "data"],
        ["train", "--data.dir", "data/files"],
        ["train", "--data.source", "files", "--data.dir", "data/files"],
        ["data", "inspect", "data"],
        ["data", "verify", "data/files"],
    ):
        assert cli.main(arguments) == 2
        assert below in (error := capsys.readouterr().err), arguments
        assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_text_that_needs_an_option_of_prepare_is_refused_with_the_command_that_has_it(book, tmp_path, capsys):
    """`train` has neither --text-field nor --on-error."""
    lines = [{"id": str(number), "my text": line} for number, line in enumerate(BOOK.splitlines())]
    (tmp_path / "fields.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpora.jsonl(tmp_path / "broken.jsonl", BOOK.splitlines())
    (tmp_path / "broken.jsonl").write_text("{\n" + (tmp_path / "broken.jsonl").read_text())
    corpora.parquet(tmp_path / "body.parquet", BOOK.splitlines(), column="body")
    for name, option in (
        ("fields.jsonl", "--text-field 'my text'"),
        ("body.parquet", "--text-field body"),
        ("broken.jsonl", "--on-error skip"),
    ):
        path = str(tmp_path / name)
        train = ["train", "--data.source", "files", "--data.input", path, "--run.name", name, *SMALL]
        assert cli.main(train) == 2
        command = capsys.readouterr().err.strip().rpartition(" run first: gpt2lab ")[2]
        assert command == f"prepare files --input {name} --out data/files/{name.partition('.')[0]} {option}"
        assert not (tmp_path / "data").exists()
        assert cli.main(shlex.split(command)) == 0
        assert cli.main(train) == 0  # as the message says
        shutil.rmtree(tmp_path / "data")
    assert cli.main(["train", "--dry-run", "--data.source", "files", "--data.input", "body.parquet"]) == 2
    assert "run first: gpt2lab prepare files" in capsys.readouterr().err


def test_advice_to_replace_a_text_has_its_text_field(book, tmp_path):
    lines = [json.dumps({"body": line}) + "\n" for line in BOOK.splitlines()]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    assert cli.main(["prepare", "files", "--input", "a.jsonl", "--text-field", "body", "--out", "data/a"]) == 0
    data = DataConfig(source="files", input="a.jsonl", dir="data/a")
    run_data.prepare(data)
    (tmp_path / "a.jsonl").write_text("".join(lines[:300]))
    with pytest.raises(GPT2LabError, match="another version of a.jsonl") as error:
        run_data.prepare(data)
    assert cli.main(str(error.value).rsplit(": gpt2lab ", 1)[1].split()) == 0
    run_data.prepare(data)


def test_shards_without_a_manifest_are_neither_replaced_nor_taken_for_a_text(book, tmp_path, capsys):
    run_data.prepare(DataConfig(source="files", input=book))
    folder = tmp_path / "data" / "files" / "book"
    (folder / "manifest.json").unlink()
    before = contents(folder)
    with pytest.raises(GPT2LabError, match="book has shards but no manifest.json.* only --data.dir data/files/book, "):
        run_data.prepare(DataConfig(source="files", input=book))
    for restart in ([], ["--restart"]):
        assert cli.main(["prepare", "files", "--input", book, "--out", "data/files/book", *restart]) == 2
        message = capsys.readouterr().err
        assert "there is no manifest.json that says of which text" in message
        assert "remove data/files/book, or train on these shards: gpt2lab train --data.dir data/files/book" in message
    assert cli.main(["train", "--data.dir", "data/files/book", "--run.name", "x", *SMALL]) == 0
    assert contents(folder) == before


def test_training_never_discards_an_unfinished_preparation_of_another_text(book, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_MIN_KEPT_BYTES", 1)
    corpora.jsonl(tmp_path / "long.jsonl", BOOK.splitlines())
    with open(tmp_path / "long.jsonl", "a") as file:
        file.write("{\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt2lab.data.sources.jsonl.CHUNK_BYTES", 1000)
        assert cli.main(["prepare", "files", "--input", "long.jsonl", "--out", "data/x"]) == 2
    before = sorted((tmp_path / "data" / "x").rglob("*"))
    with pytest.raises(GPT2LabError, match=r"unfinished preparation .*; give another --data\.dir, or remove data/x$"):
        run_data.prepare(DataConfig(source="files", input=book, dir="data/x"))
    assert sorted((tmp_path / "data" / "x").rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stdlib", "--input", "a b.txt"], "--input is for prepare files, not stdlib; to prepare your text: gpt2lab "),
        (["stdlib", "--input", "a b.txt"], "gpt2lab prepare files --input 'a b.txt'\n"),
        (["fineweb-edu", "--input", "a"], "--input is for prepare files, not fineweb-edu"),
        (
            ["tinyshakespeare", "--text-field", "body"],
            "--text-field is for prepare files, fineweb-edu, fineweb, not ti",
        ),
        (["files", "--input", "my/book.txt", "--subset", "sample-100BT"], "--subset is for prepare fineweb-edu, fine"),
    ],
)
def test_options_that_a_source_ignores_are_refused(book, tmp_path, capsys, words, message):
    assert cli.main(["prepare", *words]) == 2
    assert message in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_training_names_the_setting_rather_than_the_option_of_prepare(book, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.md").touch()
    with pytest.raises(GPT2LabError, match=r"give a new or empty folder with --data\.dir$"):
        run_data.prepare(DataConfig(source="files", input=book, dir="other"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(GPT2LabError, match=r"free some space, or write elsewhere with --data\.dir$"):
        run_data.prepare(DataConfig(source="files", input=book))


def test_the_default_folder_of_a_source_is_not_used_with_the_shards_of_another(book, capsys):
    assert cli.main(["prepare", "files", "--input", book, "--out", "data/stdlib"]) == 0
    assert cli.main(["train", "--run.name", "x", *SMALL]) == 2
    message = "data/stdlib holds shards of files, not of stdlib; to train on them, add --data.dir data/stdlib"
    assert message in capsys.readouterr().err
    assert cli.main(["train", "--data.dir", "data/stdlib", "--run.name", "x", *SMALL]) == 0


def test_training_names_the_command_for_fineweb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GPT2LabError, match="data/fineweb10B holds no shards of fineweb; .* gpt2lab prepare fineweb "):
        run_data.prepare(DataConfig(source="fineweb"))

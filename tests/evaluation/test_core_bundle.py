"""CORE's bundle: where it is looked for, the archive and the folder, and files that are damaged or hostile."""

import hashlib
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import pytest

from gpt2lab import cli
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation import core_bundle
from tests.evaluation.core_items import write_bundle


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_bundle(tmp_path / "eval_bundle", tasks=3)


def pack(folder: Path, archive: Path, prefix: str = "eval_bundle/", more: Iterable[str] = ()) -> Path:
    """An archive of a folder, and of empty members with other names."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, prefix + path.relative_to(folder).as_posix())
        for name in more:
            file.writestr(name, b"")
    return archive


def test_an_archive_and_its_folder_are_the_same(folder, tmp_path):
    unpacked = core_bundle.load(folder)
    for prefix in ("eval_bundle/", ""):
        packed = core_bundle.load(pack(folder, tmp_path / "x.zip", prefix))
        assert (packed.tasks, packed.sha256) == (unpacked.tasks, unpacked.sha256)
    assert unpacked.tasks[1].delimiter == "\nAnswer: "
    content = (folder / "eval_data" / "kind" / "task_00.jsonl").read_bytes()
    assert unpacked.tasks[0].sha256 == hashlib.sha256(content).hexdigest()
    assert "3 tasks (not the 22 of CORE), 18 items" in unpacked.describe()


def test_places(folder, tmp_path, monkeypatch):
    archive = pack(folder, tmp_path / "mirror" / core_bundle.NAME)
    monkeypatch.setattr(core_bundle, "URL", "http://127.0.0.1:9/eval_bundle.zip")
    with pytest.raises(GPT2LabError, match="sha256 is not the expected one|cannot be downloaded"):
        core_bundle.find(tmp_path / "mirror")  # not the published archive
    monkeypatch.setattr(core_bundle, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    assert core_bundle.find(tmp_path / "mirror") == archive
    assert core_bundle.find(tmp_path / "mirror", tmp_path) == folder
    assert core_bundle.find(tmp_path / "mirror", folder) == folder
    other = pack(folder, tmp_path / "other" / "eval_bundle.zip", more=["note.txt"])  # any content
    assert core_bundle.find(None, tmp_path / "other") == other
    assert core_bundle.find(tmp_path / "mirror", tmp_path / "mirror") == archive  # has no bundle at its top


def change(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


FIRST = "eval_data/kind/task_00.jsonl"
BAD = {  # what is wrong -> how to get there, and what the message must contain
    "no file of a task": (lambda f: (f / FIRST).unlink(), "task_00.jsonl"),
    "no table": (lambda f: (f / "eval_meta_data.csv").unlink(), "eval_meta_data.csv"),
    "empty file of a task": (lambda f: (f / FIRST).write_text(""), "task_00.jsonl is empty"),
    "a line that is not JSON": (lambda f: change(f, FIRST, "{", "{{"), "task_00.jsonl: line 1"),
    "a gold that is no choice": (lambda f: change(f, FIRST, '"gold": ', '"gold": 9'), "gold"),
    "another type": (lambda f: change(f, "core.yaml", "multiple_choice", "schema"), "context_options"),
    "unknown type": (lambda f: change(f, "core.yaml", "multiple_choice", "essay"), "icl_task_type"),
    "a name outside": (lambda f: change(f, "core.yaml", "kind/", "../../kind/"), "inside the bundle"),
    "an absolute name": (lambda f: change(f, "core.yaml", "kind/", "/etc/"), "/etc/"),
    "another kind of file": (lambda f: change(f, "core.yaml", ".jsonl", ".pkl"), ".jsonl"),
    "no baseline": (lambda f: change(f, "eval_meta_data.csv", "task_00", "task"), "task_00"),
    "a baseline of 100": (lambda f: change(f, "eval_meta_data.csv", ",0,", ",100,"), "below 100"),
    "a baseline in words": (lambda f: change(f, "eval_meta_data.csv", ",0,", ",few,"), "few"),
    "another table": (lambda f: (f / "eval_meta_data.csv").write_text("a,b\n1,2\n"), "Random baseline"),
    "a table of bytes": (lambda f: (f / "eval_meta_data.csv").write_bytes(b"\xff\xfe"), "UTF-8"),
    "not YAML": (lambda f: (f / "core.yaml").write_text("a: [1"), "core.yaml"),
    "a Python tag": (lambda f: (f / "core.yaml").write_text("icl_tasks: !!python/object/apply:os.getcwd []"), "core"),
    "no tasks": (lambda f: (f / "core.yaml").write_text("icl_tasks: []"), "icl_tasks"),
    "a label twice": (lambda f: change(f, "core.yaml", "label: task_01", "label: task_00"), "more than once"),
    "a million examples": (lambda f: change(f, "core.yaml", "[0]", "[1000000]"), "num_fewshot"),
    "deep YAML": (lambda f: (f / "core.yaml").write_text("icl_tasks: " + "[" * 30_000), "core.yaml"),
    "large YAML": (lambda f: (f / "core.yaml").write_text("# " + "x" * 100_000), "core.yaml"),
    "aliases that multiply": (
        lambda f: (f / "core.yaml").write_text(
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
            + "icl_tasks: [*a11]\n"
        ),
        "alias",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_files_are_one_line(folder, tmp_path, name, packed):
    damage, expected = BAD[name]
    damage(folder)
    path = pack(folder, tmp_path / "x.zip") if packed else folder
    with pytest.raises(GPT2LabError) as error:
        core_bundle.load(path)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_zip_bomb_is_refused_before_it_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(core_bundle, "_MAX_SIZE", {".yaml": 64 << 10, ".csv": 1 << 20, ".jsonl": 1 << 20})
    (folder / FIRST).write_bytes(b" " * (2 << 20))
    archive = pack(folder, tmp_path / "x.zip")
    assert archive.stat().st_size < 20_000
    for path in (archive, folder):
        with pytest.raises(GPT2LabError, match="task_00.jsonl has more than 1,048,576 bytes"):
            core_bundle.load(path)
    declared = archive.read_bytes().replace((2 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    archive.write_bytes(declared)  # the archive states a smaller size than the data have
    with pytest.raises(GPT2LabError, match="cannot be read as a zip archive"):
        core_bundle.load(archive)
    monkeypatch.setattr(core_bundle, "_MAX_ARCHIVE", 1000)
    with pytest.raises(GPT2LabError, match="MiB"):
        core_bundle.load(archive)


def test_damaged_archives_are_one_line(folder, tmp_path):
    archive = pack(folder, tmp_path / "x.zip")
    content = archive.read_bytes()
    encrypted = bytearray(content)
    encrypted[content.index(b"PK\x03\x04") + 6] |= 1
    encrypted[content.index(b"PK\x01\x02") + 8] |= 1
    start = content.index(b"core.yaml") + 20
    for damaged in (
        content[:-200],
        b"",
        b"<html>",
        bytes(encrypted),
        content[:start] + b"\xff" * 40 + content[start + 40 :],
    ):
        archive.write_bytes(damaged)
        with pytest.raises(GPT2LabError) as error:
            core_bundle.load(archive)
        assert str(archive) in str(error.value)
        assert "\n" not in str(error.value)


def test_nothing_is_unpacked(folder, tmp_path, monkeypatch):
    archive = pack(folder, tmp_path / "a" / "eval_bundle.zip", more=["../../escaped.txt", "/tmp/escaped.txt"])
    before = sorted(tmp_path.rglob("*"))
    core_bundle.load(archive)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_the_bundle_the_command_says_what_to_do(tmp_path, capsys, monkeypatch):
    from tests.evaluation.conftest import make_model

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    make_model().save_pretrained(tmp_path / "m")
    command = ["evaluate", "--model-checkpoint", str(tmp_path / "m"), "--tasks", "core"]
    assert cli.main(command) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert all(part in err for part in ("core/eval_bundle.zip", "--mirror", "no network"))


def test_a_download_is_checked(folder, tmp_path, monkeypatch):
    archive = pack(folder, tmp_path / "x.zip")

    class Response(io.BytesIO):
        headers: ClassVar[dict[str, str]] = {}

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Response(archive.read_bytes()))
    with pytest.raises(GPT2LabError, match="sha256"):
        core_bundle.find()
    monkeypatch.setattr(core_bundle, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    assert len(core_bundle.load(core_bundle.find()).tasks) == 3

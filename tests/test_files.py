"""Writes are complete or absent, damage is detected, and a directory has one owner."""

import errno
import os
import subprocess
import sys

import pytest

from gpt2lab import files
from gpt2lab.errors import GPT2LabError


def test_atomic_write_replaces_the_file_or_leaves_it(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), files.atomic_write(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    with files.atomic_write(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_refused_write_is_one_line_and_leaves_nothing(tmp_path):
    """A limit on file size stands in for a full disk: the system call fails in the same place."""
    code = f"""
import resource, pathlib
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from gpt2lab import files
with files.atomic_write(pathlib.Path({str(tmp_path)!r}) / "big") as temporary:
    temporary.write_bytes(bytes(100_000))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "GPT2LabError: cannot write" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    with files.atomic_directory(path) as temporary:
        (temporary / "a").write_bytes(b"aaaa")
        (temporary / "b").write_bytes(b"bb")
    return path


def test_directory_has_digests_that_verify(folder):
    files.verify_digests(folder)
    check = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr


def test_failure_leaves_the_old_directory(folder):
    with pytest.raises(RuntimeError), files.atomic_directory(folder) as temporary:
        (temporary / "a").write_bytes(b"new")
        raise RuntimeError
    assert (folder / "a").read_bytes() == b"aaaa"
    assert sorted(os.listdir(folder.parent)) == ["folder"]


def damage_files(folder, damage):
    if damage == "bit flipped":
        (folder / "a").write_bytes(b"aaac")
    elif damage == "truncated":
        (folder / "a").write_bytes(b"aaa")
    elif damage == "file missing":
        (folder / "b").unlink()
    elif damage == "digests missing":
        (folder / "SHA256SUMS").unlink()
    elif damage == "digests cut short":
        text = (folder / "SHA256SUMS").read_text()
        (folder / "SHA256SUMS").write_text(text[: len(text) - 3])
    elif damage == "digests empty":
        (folder / "SHA256SUMS").write_text("")
    elif damage == "another line end":  # one bit from a newline; str.splitlines accepts it
        (folder / "SHA256SUMS").write_text((folder / "SHA256SUMS").read_text().replace("\n", "\v", 1))
    elif damage == "a file elsewhere":
        (folder / "SHA256SUMS").write_text((folder / "SHA256SUMS").read_text().replace("  a", "  /a"))
    elif damage == "digests not text":
        (folder / "SHA256SUMS").write_bytes(b"\xff" * 100)


@pytest.mark.parametrize(
    "damage",
    [
        "bit flipped",
        "truncated",
        "file missing",
        "digests missing",
        "digests cut short",
        "digests empty",
        "another line end",
        "a file elsewhere",
        "digests not text",
    ],
)
def test_damage_is_detected(folder, damage):
    damage_files(folder, damage)
    with pytest.raises(GPT2LabError, match=str(folder)):
        files.verify_digests(folder)


def test_digests_without_a_required_file_are_damaged(folder):
    files.verify_digests(folder, required=("a", "b"))
    with pytest.raises(GPT2LabError, match="SHA256SUMS"):
        files.verify_digests(folder, required=("a", "c"))


def test_a_directory_has_one_owner_until_it_dies(tmp_path):
    hold = (
        f"from gpt2lab.files import DirectoryLock as L\nwith L({str(tmp_path)!r}):\n print('held', flush=True); input()"
    )
    owner = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    try:
        with (
            pytest.raises(GPT2LabError, match=f"pid {owner.pid}"),
            files.DirectoryLock(tmp_path),
        ):
            pass
    finally:
        owner.kill()
        owner.wait()
    with files.DirectoryLock(tmp_path):
        pass


def test_an_added_file_is_ignored(folder):
    (folder / "tokenizer.json").write_text("{}")
    files.verify_digests(folder)


def test_replacing_a_directory_keeps_the_old_one_until_the_new_one_is_there(folder, monkeypatch):
    rename = os.replace

    def fails_for_the_new_one(source, target):
        if str(source).endswith(".tmp-folder"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails_for_the_new_one)
    with pytest.raises(GPT2LabError, match="No space left"), files.atomic_directory(folder) as temporary:
        (temporary / "a").write_bytes(b"new")
    monkeypatch.undo()
    files.verify_digests(folder)
    assert (folder / "a").read_bytes() == b"aaaa"
    assert os.listdir(folder.parent) == ["folder"]


def test_a_write_without_the_right_to_it_is_not_about_space(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))

    monkeypatch.setattr(os, "replace", refuse)
    message = (
        f"cannot write {tmp_path}/a: Permission denied; check the owner and mode of the folder, or write elsewhere"
    )
    with pytest.raises(GPT2LabError, match=f"^{message}$"), files.atomic_write(tmp_path / "a") as temporary:
        temporary.touch()


def test_a_lock_on_a_full_disk_names_its_path(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as of a file descriptor: without a path

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(GPT2LabError, match=rf"cannot write {tmp_path}/new/\.lock: No space left"):
        files.DirectoryLock(tmp_path / "new").__enter__()
    assert not (tmp_path / "new").exists()


def test_a_file_in_place_of_a_folder_is_called_one(tmp_path):
    (tmp_path / "notes.md").write_text("text")
    with pytest.raises(GPT2LabError, match=r"^--out .*/notes\.md is a file, not a folder$"):
        files.require_folder(tmp_path / "notes.md", "--out")
    with pytest.raises(GPT2LabError, match=r"/note\.md: no such folder; did you mean .*/notes\.md\?$"):
        files.require_folder(tmp_path / "note.md")
    assert files.find_similar_path(tmp_path / "notes_2.md") == tmp_path / "notes.md"
    (tmp_path / "notes.md").rename(tmp_path / "notes_1.md")
    assert files.find_similar_path(tmp_path / "notes_2.md") is None  # another one, not misspelled
    (tmp_path / "notes_1.md").rename(tmp_path / "notes.md")
    assert files.suggest_path(tmp_path / "notes.md") == ""
    files.require_folder(tmp_path)

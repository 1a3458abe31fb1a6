"""Refuses to replace a file that another program, or the user, has written."""

import re
from collections.abc import Callable
from pathlib import Path

from gpt2lab.errors import GPT2LabError

_HEAD = 8192  # bytes in which a file shows what wrote it
# The beginnings of files that gpt2lab writes; also used on those of earlier versions.
PAGE = re.compile(" · gpt2lab</title>".encode())
PICTURE = re.compile(rb"\A\x89PNG.*tEXtSoftware\0gpt2lab", re.DOTALL)
PICTURE_METADATA = {"Software": "gpt2lab"}  # for savefig of matplotlib


def begins_with(pattern: re.Pattern[bytes]) -> Callable[[Path], bool]:
    """Make a test of whether a pattern occurs at the beginning of a file.

    Args:
        pattern: searched in the first 8 KiB.

    Returns:
        A function for `require_replaceable`.
    """

    def test(path: Path) -> bool:
        with open(path, "rb") as file:
            return pattern.search(file.read(_HEAD)) is not None

    return test


def require_replaceable(option: str, path: Path, is_own: Callable[[Path], bool], kind: str) -> None:
    """Check, before the work starts, that writing a file destroys nothing that the same command has not written.

    Args:
        option: that names the file, such as `--out`.
        path: the file; it may not exist, or be empty.
        is_own: whether an existing file was written by this command.
        kind: what the command writes, such as "a report".

    Raises:
        GPT2LabError: the path is a folder, a device, or a file of another kind, or the file cannot be read.
    """
    if path.is_dir():
        raise GPT2LabError(f"{option} {path} is a folder; name a file in it")
    if path.exists() and not (path.is_file() and (path.stat().st_size == 0 or is_own(path))):
        raise GPT2LabError(f"{path} exists and is not {kind}; give another {option}")

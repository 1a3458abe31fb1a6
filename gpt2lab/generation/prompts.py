"""Prompts: where the command line takes them from, and which texts are none. Imports no torch."""

import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from gpt2lab.errors import UTF8_ADVICE, GPT2LabError

DEFAULT = "Hello this is AI model,"
_MAX_BYTES = 2**20  # more than any context window holds


def read(prompt: str | None, file_name: str | None) -> str:
    """Read the prompt of the command line, and check it.

    Args:
        prompt: of `--prompt`; `-` for standard input, None without the option.
        file_name: of `--prompt-file`; `-` for standard input, None without the option.

    Returns:
        The text; without both options, of a pipe or file at standard input, else DEFAULT.

    Raises:
        GPT2LabError: both are given, or the prompt is unreadable or not valid (see `check`).
    """
    if prompt is not None and file_name is not None:
        raise GPT2LabError("--prompt and --prompt-file both give a prompt; use one of them")
    if file_name not in (None, "-"):
        try:
            with Path(str(file_name)).open("rb") as file:
                text = _decode(file, str(file_name))
        except OSError as error:
            raise GPT2LabError(f"--prompt-file {file_name}: {error.strerror}") from error
    elif "-" in (prompt, file_name) or (prompt is None and _is_piped()):
        text = _decode(sys.stdin.buffer, "standard input")
    else:
        text = DEFAULT if prompt is None else prompt
    check(text)
    return text


def check(prompt: str) -> None:
    """Check that a model can continue a text, as far as that does not depend on the model.

    Args:
        prompt: the text.

    Raises:
        GPT2LabError: it is empty, contains a NUL, or is not valid Unicode.
    """
    if not isinstance(prompt, str):
        raise GPT2LabError(f"the prompt is {type(prompt).__name__} {prompt!r:.60}; it must be text (str)")
    if not prompt:
        raise GPT2LabError("the prompt is empty; give the model something to continue, such as a space")
    if "\0" in prompt:
        raise GPT2LabError(f"the prompt has a NUL (character {prompt.index(chr(0)) + 1}); take it out")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, by which Python represents bytes that are not UTF-8
        raise GPT2LabError(f"the prompt is not valid UTF-8 (character {error.start + 1}){UTF8_ADVICE}") from None


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file, rather than a terminal, /dev/null or closed."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _decode(file: BinaryIO, name: str) -> str:
    """The content of a file as a prompt, without the newline that editors add at the end."""
    data = file.read(_MAX_BYTES + 1)
    is_long = len(data) > _MAX_BYTES
    try:
        prompt = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not is_long or error.start < _MAX_BYTES - 3:  # else the end of the data is inside a character
            raise GPT2LabError(f"{name}: not valid UTF-8 at byte {error.start}; save it as UTF-8") from None
    if is_long:
        raise GPT2LabError(f"{name}: the prompt is longer than any context window; shorten it")
    return prompt.removesuffix("\n").removesuffix("\r")

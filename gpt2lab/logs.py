"""Log messages of the command line, and its results on standard output.

Modules log through `logging.getLogger(__name__)`. `configure` prints their messages, warnings with the prefix
`warning: `, in color and wrapped at words on a terminal. Without it, a program that imports gpt2lab configures logging
as it likes.
"""

import contextlib
import logging
import os
import shutil
import sys
import textwrap
from typing import TextIO

from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import paint


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stdout` or `sys.stderr`, also after they were replaced."""

    def __init__(self, to_stderr: bool):
        self._to_stderr = to_stderr
        super().__init__()

    @property
    def stream(self) -> TextIO:
        return sys.stderr if self._to_stderr else sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass

    def format(self, record: logging.LogRecord) -> str:
        """The message; warnings have a prefix."""
        warns = record.levelno > logging.INFO
        text = f"{record.levelname.lower()}: {record.getMessage()}" if warns else record.getMessage()
        text = wrap(text, self.stream)
        return paint(text, "yellow", self.stream) if warns else text

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        """Raise the error of a failed write, such as a closed pipe or a full disk, instead of printing a traceback."""
        error = sys.exception()
        assert error is not None  # logging calls this while it handles one
        raise _name_stream(error, self.stream) from error


def print_result(text: str, *, end: str = "\n") -> None:
    """Print the result of a command to standard output, at once: a write that fails must not look like a success.

    Args:
        text: one or several lines.
        end: what follows them.

    Raises:
        GPT2LabError: standard output refused the write, such as a file on a full disk.
        BrokenPipeError: its reader is gone.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        raise _name_stream(error, sys.stdout) from error


def drop_unwritten() -> None:
    """Discard what cannot be written: Python would write it at its exit, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _name_stream(error: BaseException, stream: TextIO) -> BaseException:
    """The error to raise: if a stream refused a write, one that names the stream."""
    if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
        return error
    return GPT2LabError(f"standard {'output' if stream is sys.stdout else 'error'}: {error.strerror or error}")


def wrap(text: str, stream: TextIO) -> str:
    """Break lines that are wider than a terminal, between words.

    Args:
        text: one or several lines.
        stream: where they will be written; if it is no terminal, they stay as they are.
    """
    return "\n".join(map(_wrap_line, text.split("\n"))) if stream.isatty() else text


def _wrap_line(line: str) -> str:
    columns = shutil.get_terminal_size().columns
    if len(line) <= columns:
        return line
    return textwrap.fill(line, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def configure(*, to_stderr: bool = False) -> None:
    """Print the messages of gpt2lab, on rank 0 only. A second call replaces the first.

    Args:
        to_stderr: print to standard error, because other programs read standard output.
    """
    handler = _Handler(to_stderr)
    logger = logging.getLogger("gpt2lab")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)


def get_stream() -> TextIO:
    """Where messages are printed: standard output, unless `configure` was told otherwise."""
    handlers = [handler for handler in logging.getLogger("gpt2lab").handlers if isinstance(handler, _Handler)]
    return handlers[0].stream if handlers else sys.stdout

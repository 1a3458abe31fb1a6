"""Log messages of the command line, and its results on standard output.

Modules log through `logging.getLogger(__name__)`. `configure` prints their messages, warnings with the prefix
`warning: `, in color and wrapped at words on a terminal. Without it, a program that imports gpt2lab configures logging
as it likes.
"""

import contextlib
import errno
import logging
import os
import shutil
import stat
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
        _raise_named(error, self.stream)


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
        _raise_named(error, sys.stdout)


def print_error(line: str, details: str = "") -> None:
    """Print to standard error what ends the command, in one write: other ranks write to the same terminal.

    Args:
        line: wrapped at words on a terminal.
        details: lines that follow it, each with its end.
    """
    try:
        print(f"{wrap(line, sys.stderr)}\n{details}", end="", file=sys.stderr, flush=True)
    except OSError as error:
        _raise_named(error, sys.stderr)


def drop_unwritten() -> None:
    """Discard what cannot be written: Python would write it at its exit, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _raise_named(error: BaseException, stream: TextIO) -> None:
    """Raise an error that names the stream that refused a write.

    A closed terminal is no error: it has sent SIGHUP, which stops the run, unless the user ignores it, as with nohup.
    """
    if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
        raise error
    if error.errno == errno.EIO and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):
        drop_unwritten()
        return
    name = "output" if stream is sys.stdout else "error"
    raise GPT2LabError(f"standard {name}: {error.strerror or error}") from error


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
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # a line for each retry of a request


def get_stream() -> TextIO:
    """Where messages are printed: standard output, unless `configure` was told otherwise."""
    handlers = [handler for handler in logging.getLogger("gpt2lab").handlers if isinstance(handler, _Handler)]
    return handlers[0].stream if handlers else sys.stdout

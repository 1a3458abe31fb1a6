"""A terminal for tests: runs a command in a pseudo-terminal and returns what is left on its screen."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence

COLUMNS = 80
_PIECES = re.compile(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+")


def run_in_terminal(command: Sequence[str], variables: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command whose standard streams are a terminal of 80 columns.

    Returns:
        The exit status, and all bytes that the terminal received, as text.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color"} | (variables or {})
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        output = bytearray()
        while True:
            try:
                output += os.read(master, 65536)
            except OSError:  # the command has ended
                break
    os.close(master)
    return process.returncode, output.decode()


def render(output: str) -> list[str]:
    """The lines that a terminal of any width shows after it received this output, without colors."""
    lines, row, column = [""], 0, 0
    for piece in _PIECES.findall(output):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif piece.startswith("\x1b"):
            if piece.endswith("A"):
                row = max(0, row - int(piece[2:-1] or 1))
            elif piece == "\x1b[2K":
                lines[row] = ""
        else:
            lines[row] = lines[row].ljust(column)[:column] + piece + lines[row][column + len(piece) :]
            column += len(piece)
    return [line.rstrip() for line in lines]


def close_terminal(command: Sequence[str], after: str, timeout: float) -> int:
    """Run a command in a terminal of its own, and close the terminal when it has shown a text.

    Args:
        command: what to run.
        after: the text.
        timeout: seconds for the command to end afterwards.

    Returns:
        The exit status.
    """
    master, slave = pty.openpty()
    with subprocess.Popen(command, start_new_session=True, preexec_fn=lambda: os.login_tty(slave)) as process:
        os.close(slave)
        output = ""
        while after not in output:
            try:
                output += os.read(master, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"the command ended before it showed {after!r}: {output}") from None
        os.close(master)
        return process.wait(timeout)

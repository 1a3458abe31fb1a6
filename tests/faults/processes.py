"""Processes to do harm to: real commands, and forks of a process that has imported torch already.

A `gpt2lab train` spends seconds on importing torch and milliseconds on a step of these tiny models. So most victims
are forked from a server (multiprocessing's forkserver) that has done the importing, and call the command line's `main`
there: they are processes of their own, and SIGKILL is as final for them. Every experiment that needs it also goes
through real commands.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.faults.runs import Run

REPOSITORY = Path(__file__).parent.parent.parent
PATIENCE = 120.0  # seconds that anything here may take before it counts as hung

Harm = Callable[[], None]


class Victim:
    """Some processes that train one run together. A subclass says how they are started, watched and killed."""

    output: Path  # what they print, both streams

    def text(self) -> str:
        """Everything printed so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; False if a process ended before it came true."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if self.over():
                return condition()
            assert time.monotonic() < end, f"hung:\n{self.text()[-2000:]}"
            time.sleep(0.001)
        return True

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()


class Forked(Victim):
    """Ranks forked with torch imported; they are given the variables that torchrun would set."""

    def __init__(self, run: Run, output: Path, *arguments: str, ranks: int = 1, harm: Harm | None = None):
        self.output = output
        output.unlink(missing_ok=True)
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["tests.faults.warm"])
        os.environ["PYTHONPATH"] = str(REPOSITORY)  # for the server to find what it preloads
        command = ["train", "--config", str(run.recipe), *arguments]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        self.processes: list[BaseProcess] = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} if ranks > 1 else {}
            process = server.Process(target=_as_command, args=(command, own, output, harm))
            process.start()
            self.processes.append(process)

    def pids(self) -> list[int]:
        """Process ids of the ranks, in order."""
        return [int(process.pid or 0) for process in self.processes]

    def wait(self, patience: float = PATIENCE) -> int:
        """The exit status once all are gone: 0 if all have 0, else the first other (minus the signal that killed)."""
        end = time.monotonic() + patience
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
            assert process.exitcode is not None, f"hung:\n{self.text()[-2000:]}"
        return next((process.exitcode for process in self.processes if process.exitcode), 0)

    def over(self) -> bool:
        """Whether any process has ended."""
        return any(process.exitcode is not None for process in self.processes)

    def kill_all(self) -> None:
        """SIGKILL to every rank."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def _as_command(arguments: list[str], environment: Mapping[str, str], output: Path, harm: Harm | None) -> None:
    """What a forked process does: what the real command would, except for drawing plots."""
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from gpt2lab import cli
    from gpt2lab.tracking import report

    report.write = lambda folder: folder  # type: ignore[assignment]  # 0.2 s a checkpoint, and not what is tried here
    if harm is not None:
        harm()
    status = cli.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Command(Victim):
    """A real command: `gpt2lab train`, torchrun and the ranks that it starts, or `start`, which takes the arguments."""

    def __init__(
        self,
        run: Run,
        output: Path,
        *,
        ranks: int = 1,
        torchrun: tuple[str, ...] = (),
        start: tuple[str, ...] = (),
        **variables: str,
    ):
        self.output = output
        self._mark = f"GPT2LAB_FAULTS={uuid.uuid4()}"  # by which every descendant is known, orphans too
        python = (sys.executable, "-m")
        start = start or (*python, "gpt2lab", "train")
        if ranks > 1:
            agent = ("torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *torchrun)
            start = (*python, *agent, str(REPOSITORY / "train.py"))
        name, _, value = self._mark.partition("=")
        own = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", name: value, **variables}
        with open(output, "wb") as file:
            self.process = subprocess.Popen(
                [*start, "--config", str(run.recipe)],
                env=os.environ | own,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def members(self) -> dict[int, dict[str, str]]:
        """Process id and environment of everything this command started that lives."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                if self._mark in variables:  # a zombie's is empty
                    found[int(entry.name)] = dict(line.split("=", 1) for line in variables if "=" in line)
        return found

    def pids(self) -> list[int]:
        """Process ids of the ranks that live, in order; of the command itself without torchrun."""
        ranks = {}
        for pid, variables in self.members().items():
            if "RANK" in variables and _parent(pid) == self.process.pid:
                ranks[int(variables["RANK"])] = pid
        return [ranks[rank] for rank in sorted(ranks)] or [self.process.pid]

    def wait(self, patience: float = PATIENCE) -> int:
        """The command's exit status, minus the signal that killed it."""
        return self.process.wait(patience)

    def over(self) -> bool:
        """Whether the command has ended."""
        return self.process.poll() is not None

    def kill_all(self) -> None:
        """SIGKILL to the command and everything it started."""
        for pid in (self.process.pid, *self.members()) if not self.over() else self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _parent(pid: int) -> int | None:
    try:
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""Training processes for the experiments: real commands, and forks of a process that has already imported torch.

`gpt2lab train` takes seconds to import torch, and a step of these tiny models takes milliseconds. Most experiments
therefore fork their processes from a server that has done the imports (multiprocessing's forkserver) and call `main`
of the command line in them. SIGKILL ends a fork as it ends any other process. The experiments that depend on how a
process is started use real commands as well.
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
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.faults.runs import Run

REPOSITORY = Path(__file__).parent.parent.parent
WAIT_LIMIT = 120.0  # seconds; a process that takes longer counts as hung

Fault = Callable[[], None]  # called in the process before the command; it must be picklable


class TrainingProcesses(ABC):
    """The processes that train one run together. Leaving the context kills those that are alive.

    `output` is the file that holds what they print, both streams.
    """

    output: Path

    @abstractmethod
    def pids(self) -> list[int]:
        """Process ids of the ranks, in order."""

    @abstractmethod
    def wait(self, limit: float = WAIT_LIMIT) -> int:
        """Wait for all processes. Returns the exit status; minus the number of the signal that killed."""

    @abstractmethod
    def has_ended(self) -> bool:
        """Whether any process has ended."""

    @abstractmethod
    def kill_all(self) -> None:
        """Send SIGKILL to all processes."""

    def text(self) -> str:
        """Everything that was printed so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition. Returns False if a process ended before the condition was true."""
        end = time.monotonic() + WAIT_LIMIT
        while not condition():
            if self.has_ended():
                return condition()
            assert time.monotonic() < end, f"hung:\n{self.text()[-2000:]}"
            time.sleep(0.001)
        return True

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()


class Forked(TrainingProcesses):
    """Ranks that are forked with torch imported. Several ranks get the variables that torchrun sets."""

    def __init__(self, run: Run, output: Path, *arguments: str, ranks: int = 1, fault: Fault | None = None):
        self.output = output
        output.unlink(missing_ok=True)
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["tests.faults.preload"])
        os.environ["PYTHONPATH"] = str(REPOSITORY)  # so that the server finds the modules to preload
        command = ["train", "--config", str(run.recipe), *arguments]
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        self.processes: list[BaseProcess] = []
        for rank in range(ranks):
            variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), **address} if ranks > 1 else {}
            process = server.Process(target=_run_command, args=(command, variables, output, fault))
            process.start()
            self.processes.append(process)

    def pids(self) -> list[int]:
        """Process ids of the ranks, in order."""
        return [int(process.pid or 0) for process in self.processes]

    def wait(self, limit: float = WAIT_LIMIT) -> int:
        """Wait for all ranks. Returns 0 if all exited with 0, else the first other status (minus the signal number)."""
        end = time.monotonic() + limit
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
            assert process.exitcode is not None, f"hung:\n{self.text()[-2000:]}"
        return next((process.exitcode for process in self.processes if process.exitcode), 0)

    def has_ended(self) -> bool:
        """Whether any process has ended."""
        return any(process.exitcode is not None for process in self.processes)

    def kill_all(self) -> None:
        """Send SIGKILL to every rank."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def _run_command(arguments: list[str], variables: Mapping[str, str], output: Path, fault: Fault | None) -> None:
    """Run a command as the real process does, except that no plots are drawn."""
    os.environ.update(variables)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from gpt2lab import cli
    from gpt2lab.tracking import report

    report.write = lambda folder: folder  # type: ignore[assignment, misc]  # saves 0.2 s a checkpoint
    if fault is not None:
        fault()
    status = cli.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Command(TrainingProcesses):
    """A real command.

    Args:
        run: its recipe is the argument of the command.
        output: file for what the command prints.
        ranks: with more than one, the command is torchrun with train.py; with one, `gpt2lab train`.
        torchrun: more options of torchrun.
        start: another command to put before the arguments.
        variables: environment variables to set.
    """

    def __init__(
        self,
        run: Run,
        output: Path,
        *,
        ranks: int = 1,
        torchrun: tuple[str, ...] = (),
        start: tuple[str, ...] = (),
        variables: Mapping[str, str] | None = None,
    ):
        self.output = output
        self._mark = f"GPT2LAB_FAULTS={uuid.uuid4()}"  # identifies every descendant, orphans included
        python = (sys.executable, "-m")
        start = start or (*python, "gpt2lab", "train")
        if ranks > 1:
            agent = ("torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *torchrun)
            start = (*python, *agent, str(REPOSITORY / "train.py"))
        name, _, value = self._mark.partition("=")
        defaults = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", name: value}
        with open(output, "wb") as file:
            self.process = subprocess.Popen(
                [*start, "--config", str(run.recipe)],
                env=os.environ | defaults | dict(variables or {}),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def members(self) -> dict[int, dict[str, str]]:
        """Process id and environment of every living process that this command started."""
        members = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                if self._mark in variables:  # the environment of a zombie is empty
                    members[int(entry.name)] = dict(line.split("=", 1) for line in variables if "=" in line)
        return members

    def pids(self) -> list[int]:
        """Process ids of the living ranks, in order. Without torchrun: that of the command."""
        ranks = {}
        for pid, variables in self.members().items():
            if "RANK" in variables and _parent(pid) == self.process.pid:
                ranks[int(variables["RANK"])] = pid
        return [ranks[rank] for rank in sorted(ranks)] or [self.process.pid]

    def wait(self, limit: float = WAIT_LIMIT) -> int:
        """Wait for the command. Returns its exit status, or minus the number of the signal that killed it."""
        return self.process.wait(limit)

    def has_ended(self) -> bool:
        """Whether the command has ended."""
        return self.process.poll() is not None

    def kill_all(self) -> None:
        """Send SIGKILL to the command and every process it started."""
        for pid in (self.process.pid, *self.members()) if not self.has_ended() else self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _parent(pid: int) -> int | None:
    try:
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def free_port() -> int:
    """A port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

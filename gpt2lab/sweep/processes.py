"""Trains the runs of a sweep as processes: one a GPU side by side, or one after another.

waiting ─▶ Process on a free device ─▶ finished │ failed │ stopped      output: NAME.log beside the run directory
"""

import contextlib
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from subprocess import DEVNULL, STDOUT, Popen

from gpt2lab import progress
from gpt2lab.config import Config
from gpt2lab.sweep import record
from gpt2lab.sweep.grid import Sweep, SweepRun
from gpt2lab.sweep.record import State
from gpt2lab.system.signals import SWEEP_VARIABLE, list_stop_signals

logger = logging.getLogger(__name__)

_POLL = 0.25  # seconds
_REPEAT = 0.1  # seconds within which a signal is the same request: schedulers may send it to the process and its group

Device = str | None  # value of CUDA_VISIBLE_DEVICES; None: the run chooses its device
OnChange = Callable[[str, State], None]


def list_devices(config: Config) -> Sequence[Device]:
    """The devices that runs are trained on side by side: every visible GPU, or one entry for everything else.

    Args:
        config: of any run; its device is that of all.
    """
    if config.system.device in ("cpu", "mps"):
        return [None]
    import torch

    if not torch.cuda.is_available():
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [name.strip() for name in visible.split(",")][:count] if visible else [str(index) for index in range(count)]


class Process:
    """A run that is being trained.

    Args:
        sweep: of the run.
        run: the run.
        device: that it is trained on.
    """

    def __init__(self, sweep: Sweep, run: SweepRun, device: Device):
        self.run, self.device, self.began = run, device, time.monotonic()
        self._folder, self._log = sweep.folder / run.name, sweep.folder / f"{run.name}.log"
        environment = os.environ | {SWEEP_VARIABLE: str(os.getpid())}
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        self.phase = progress.Phase(run.name, run.config.train.max_steps, skip_first=True)
        with open(self._log, "ab") as output, _hold_back_interrupts():
            self._child = Popen(
                [sys.executable, "-m", "gpt2lab", *sweep.arguments(run)],
                stdin=DEVNULL,
                stdout=output,
                stderr=STDOUT,
                env=environment,
            )

    def poll(self) -> int | None:
        """Show the progress; the exit status, negative for a signal, or None while the run is being trained."""
        if (step := record.last_step(self._folder)) >= 0:
            self.phase.update(step)
        return self._child.poll()

    def send(self, number: int) -> None:
        """Send a signal."""
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(number)

    def error(self) -> str:
        """Why a run has failed: the last line of its output."""
        status = self._child.returncode
        if status < 0:
            return f"ended by {signal.Signals(-status).name}"
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return last.removeprefix("gpt2lab: ") or f"exit status {status}"


def train(sweep: Sweep, states: dict[str, State], devices: Sequence[Device], on_change: OnChange) -> int:
    """Train the runs that are not finished. A run that fails does not end the sweep.

    The first stop signal stops the runs under way, which save, and starts no more; a second one ends them at once.

    Args:
        sweep: the runs.
        states: of all runs; those that are finished are left out.
        devices: each is used by one run at a time.
        on_change: called with the name and the new state of a run when it begins and when it ends.

    Returns:
        The signal that stopped the sweep; 0 if all runs have ended by themselves.
    """
    waiting = deque(run for run in sweep.runs if states[run.name].status != "finished")
    free, active = deque(devices), list[Process]()
    with _catch_signals() as received, contextlib.ExitStack() as stack:
        stack.callback(_abandon, active)
        sent = 0
        while waiting or active:
            while waiting and free and not received:
                process = Process(sweep, waiting.popleft(), free.popleft())
                active.append(process)
                on_change(process.run.name, State("running", states[process.run.name].seconds))
            if len(received) > sent:
                sent = len(received)
                _stop(active, received)
                waiting.clear()
            for process in [*active]:
                if (status := process.poll()) is not None:
                    active.remove(process)
                    process.phase.close()
                    free.append(process.device)
                    name = process.run.name
                    on_change(name, _end_state(process, status, bool(received), states[name].seconds))
            if active:
                time.sleep(_POLL)
    return received[0] if received else 0


def _end_state(process: Process, status: int, stopping: bool, seconds: float) -> State:
    seconds += time.monotonic() - process.began
    if status == 0:
        return State("finished", seconds)
    if stopping and (status < 0 or status > 128):
        return State("stopped", seconds)
    return State("failed", seconds, process.error())


@contextlib.contextmanager
def _hold_back_interrupts() -> Iterator[None]:
    """Block SIGINT, also for the processes that begin in the context.

    They receive it once they are ready for it (`gpt2lab.__main__`), since Python starts with a traceback otherwise.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(active: Sequence[Process], received: Sequence[int]) -> None:
    name = signal.Signals(received[-1]).name
    if len(received) == 1:
        logger.info("%s: stopping and saving the runs under way; a second signal ends them at once", name)
    for process in active:
        process.send(received[0] if len(received) == 1 else signal.SIGKILL)


def _abandon(active: Sequence[Process]) -> None:
    """Stop the runs under way, because the sweep itself fails."""
    for process in active:
        process.phase.close()
        process.send(signal.SIGTERM)


@contextlib.contextmanager
def _catch_signals() -> Iterator[list[int]]:
    """Keep the stop signals that arrive in the context; one that is repeated at once counts once."""
    received: list[int] = []
    times: list[float] = []

    def receive(number: int, _: object) -> None:
        if not times or time.monotonic() - times[-1] > _REPEAT:
            received.append(number)
        times.append(time.monotonic())

    previous = {number: signal.signal(number, receive) for number in list_stop_signals()}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

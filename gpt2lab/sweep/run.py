"""The `sweep` command: trains every combination of settings as a run of its own, and resumes where it stopped.

    --over options ─▶ Sweep ─▶ data prepared once ─▶ processes ─▶ sweep.json, report.html

`gpt2lab scaling run` trains the runs of a plan in the same way.
"""

import logging
import shlex
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from signal import Signals

from gpt2lab import config as settings
from gpt2lab import progress
from gpt2lab.data import run_data
from gpt2lab.errors import GPT2LabError, RunStoppedError
from gpt2lab.files import DirectoryLock
from gpt2lab.formatting import format_duration
from gpt2lab.sweep import grid, page, processes, record
from gpt2lab.sweep.grid import Sweep
from gpt2lab.sweep.options import SweepOptions
from gpt2lab.sweep.record import State
from gpt2lab.tracking import records

logger = logging.getLogger(__name__)

_PAGE_EVERY = 60.0  # seconds between two writings of the page while runs are under way


def run(options: SweepOptions) -> None:
    """Train a grid of runs, or print their commands.

    Args:
        options: recipes, settings of all runs, and those to vary.
    """
    recipes = options.config or (options.RECIPE,)
    axes = grid.parse_axes(options.over, options.overrides)
    default_name = f"{settings.load(recipes).run.name}_sweep"
    sweep = grid.build(recipes, options.overrides, grid.list_combinations(axes), default_name)
    if any(run.config.train.eval_every == 0 for run in sweep.runs):
        logger.warning("train.eval_every is 0: without a validation loss, the page cannot say which run is the best")
    start(sweep, page.write, options.only_print)


def start(sweep: Sweep, write_page: Callable[[Path], Path], only_print: bool) -> None:
    """Train the runs of a sweep that are not finished, and write its page.

    Args:
        sweep: the runs.
        write_page: writes the page about the sweep's folder, and returns its path.
        only_print: print the commands of the runs, and start nothing.

    Raises:
        GPT2LabError: the settings of a run have changed since it began, or runs have failed.
        RunStoppedError: a signal stopped the sweep.
    """
    record.check_unchanged(sweep)
    if only_print:
        print("\n".join(shlex.join(["gpt2lab", *sweep.arguments(run)]) for run in sweep.runs))
        return
    _prepare_data(sweep)
    with DirectoryLock(sweep.folder):
        if change := record.describe_change(sweep):
            logger.info(change)
        states = record.initial_states(sweep)
        record.write(sweep, states)
        stop = _train(sweep, states, write_page)
        page_note = _write_page(write_page, sweep.folder)
    finished, failed = _select(states, "finished"), _select(states, "failed")
    summary = f"{len(finished)} of {len(sweep.runs)} runs are finished"
    if stop:
        name = Signals(stop).name
        raise RunStoppedError(stop, f"stopped by {name}: {summary}; the same command goes on with the others")
    logger.info(f"{summary}{page_note}")
    if failed:
        first = f"{failed[0]}: {states[failed[0]].error}"
        raise GPT2LabError(
            f"{len(failed)} of {len(sweep.runs)} runs failed, see {sweep.folder}/NAME.log; the same command tries them "
            f"again; {first}"
        )


def _select(states: dict[str, State], status: str) -> list[str]:
    return [name for name, state in states.items() if state.status == status]


def _prepare_data(sweep: Sweep) -> None:
    """Check the data of all runs, and prepare it where training would: runs side by side cannot do so at once."""
    for run in {run.config.data.model_dump_json(): run for run in sweep.runs}.values():
        data = run.config.data
        if data.dir is not None and data.input is None and "data.source" not in {**sweep.overrides, **run.settings}:
            run_data.require_shards(data)
        run_data.require_mirror(data)
        run_data.prepare(data)


def _train(sweep: Sweep, states: dict[str, State], write_page: Callable[[Path], Path]) -> int:
    """Train, and keep sweep.json and the page up to date; the signal that stopped the sweep, or 0."""
    total, done = len(sweep.runs), len(_select(states, "finished"))
    if done == total:
        return 0
    devices = processes.list_devices(sweep.runs[0].config)
    how = f"{len(devices)} side by side, one a GPU" if len(devices) > 1 else "one after another"
    logger.info(f"{sweep.folder}: {total - done} of {total} runs to train, {how}")
    written = time.monotonic()

    def change(name: str, state: State) -> None:
        nonlocal written
        states[name] = state
        record.write(sweep, states)
        number = Counter(state.status for state in states.values())
        if state.status == "running":
            ended = number["finished"] + number["failed"]
            logger.info(f"{name}: run {ended + number['running']} of {total}; its output: {sweep.folder / name}.log")
            return
        logger.info(f"{name}: {_describe_end(sweep.folder / name, state)}")
        if time.monotonic() - written > _PAGE_EVERY:
            _write_page(write_page, sweep.folder)
            written = time.monotonic()

    return processes.train(sweep, states, devices, change)


def _write_page(write_page: Callable[[Path], Path], folder: Path) -> str:
    """Write the page; a note with its path, for a message. A page that fails is only a warning, as of a single run."""
    try:
        with progress.Phase("drawing the page"):
            return f"\nthe page about all of them, for a browser: {write_page(folder)}"
    except Exception as error:  # a plot may fail in any way, but the runs are complete
        logger.warning("no page this time: %s", error)
        return ""


def _describe_end(folder: Path, state: State) -> str:
    if state.status == "failed":
        return f"failed: {state.error}"
    if state.status == "stopped":
        if any((folder / "checkpoints").glob("step_*")):
            return "stopped and saved"
        return "stopped before its first step" if record.last_step(folder) < 1 else "stopped, nothing was saved"
    losses = records.read(folder).curve("val/loss").values
    loss = f", validation loss {losses[-1]:.4f}" if len(losses) else ""
    return f"finished in {format_duration(state.seconds)}{loss}"

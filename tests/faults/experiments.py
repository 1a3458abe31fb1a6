"""Every experiment under its name: what it shows, a small form for `make test`, and the full one for `make faults`."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.faults import bad_input, canaries, damage, disk, elastic, guard, kills, lost, signals
from tests.faults.outcome import Outcome
from tests.faults.runs import EVERY

Form = Callable[[Path, Path], Outcome | None]  # (folder to work in, data) -> what came of it, None if it cannot be had


class Experiment(NamedTuple):
    """Either form; `short` is None for what would take long to say little more."""

    shows: str
    full: Form
    short: Form | None


STOPPED_AND_KILLED = (("stop", 0), ("stop", 1), ("kill", 0), ("kill", 1))

EXPERIMENTS = {
    "kills": Experiment(
        "SIGKILL at random steps, 1 rank",
        partial(kills.random_kills, count=40),
        partial(kills.random_kills, count=5),
    ),
    "kills-command": Experiment(
        "the same, `gpt2lab train`",
        partial(kills.random_kills, count=10, real=True),
        None,
    ),
    "kills-ranks": Experiment(
        "SIGKILL at random steps, 2 ranks",
        partial(kills.random_kills, count=30, ranks=2),
        partial(kills.random_kills, count=3, ranks=2),
    ),
    "kills-torchrun": Experiment(
        "the same, under torchrun with --max-restarts",
        partial(kills.random_kills, count=20, ranks=2, real=True),
        None,
    ),
    "writing": Experiment(
        "SIGKILL at every point of a checkpoint's writing",
        partial(kills.kills_while_writing, step=2 * EVERY),
        partial(kills.kills_while_writing, step=2 * EVERY),
    ),
    "bits": Experiment(
        "a bit of a checkpoint flipped: found, the one before used",
        partial(damage.bit_flips, count=200, commands=5),
        partial(damage.bit_flips, count=200, commands=1),
    ),
    "bits-of-digests": Experiment("every single bit of SHA256SUMS", damage.every_bit_of_digests, None),
    "elastic": Experiment(
        "other ranks and micro batches within a run: tokens and loss of every step",
        elastic.changing_ranks,
        elastic.changing_ranks,
    ),
    "gradients": Experiment(
        "first gradients of 2 ranks and of 1 that accumulates, float64, within 1e-12",
        elastic.first_gradients,
        elastic.first_gradients,
    ),
    "disk": Experiment("no room at five points, 1 rank", disk.full_disk, disk.full_disk),
    "disk-ranks": Experiment("the same, 2 ranks", partial(disk.full_disk, ranks=2), None),
    "disk-tmpfs": Experiment("a tmpfs of five sizes, `gpt2lab train`", disk.full_tmpfs, None),
    "signals": Experiment(
        "signals at random steps: saved, exit status, equal",
        partial(signals.interruptions, each=20),
        partial(signals.interruptions, each=1),
    ),
    "signals-ranks": Experiment("the same, to one of 2 ranks", partial(signals.interruptions, each=5, ranks=2), None),
    "signals-command": Experiment("the same, `gpt2lab train`", partial(signals.interruptions, each=2, real=True), None),
    "signals-torchrun": Experiment(
        "the same, to torchrun",
        partial(signals.interruptions, each=2, ranks=2, real=True),
        partial(signals.interruptions, each=1, ranks=2, real=True, signals=(signal.SIGTERM,)),
    ),
    "second-signals": Experiment(
        "a second signal ends a step that hangs",
        signals.second_signals,
        signals.second_signals,
    ),
    "guard": Experiment(
        "NaN, inf and a spike, in loss or gradient of 1 rank of 2: skipped alike, logged",
        guard.skipped_steps,
        guard.skipped_steps,
    ),
    "guard-alone": Experiment("the same, 1 rank", partial(guard.skipped_steps, ranks=1), None),
    "guard-stops": Experiment(
        "too many in a row: stops, names the last good checkpoint",
        guard.too_many_in_a_row,
        guard.too_many_in_a_row,
    ),
    "lost": Experiment(
        "a rank stopped or killed: all gone, and who it was is said",
        partial(lost.lost_ranks, torchrun=False, cases=STOPPED_AND_KILLED),
        partial(lost.lost_ranks, torchrun=False, cases=(("stop", 0), ("kill", 1))),
    ),
    "lost-torchrun": Experiment(
        "the same under torchrun, and torchrun itself killed",
        partial(lost.lost_ranks, torchrun=True, cases=(*STOPPED_AND_KILLED, ("kill", -1))),
        partial(lost.lost_ranks, torchrun=True, cases=(("stop", 1),)),
    ),
    "bad-input": Experiment(
        "one line that names the file or key, exit status 2", bad_input.bad_inputs, bad_input.bad_inputs
    ),
    "canaries": Experiment(
        "files that would act if trusted: refused, no side effect", canaries.canaries, canaries.canaries
    ),
}

"""Every experiment under its name: its bar, a small form for `make test`, and the full one for `make faults`."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.faults import agents, bad_input, canaries, damage, disk, elastic, guard, harm, kills, lost, signals
from tests.faults.outcome import Outcome
from tests.faults.runs import EVERY

Form = Callable[[Path, Path], Outcome | None]  # (folder to work in, data) -> what came of it, None if it cannot be had


class Experiment(NamedTuple):
    """Either form; `short` is None for what would take long to say little more."""

    bar: str
    full: Form
    short: Form | None


STOPPED_AND_KILLED = (("stop", 0), ("stop", 1), ("kill", 0), ("kill", 1))

EXPERIMENTS = {
    "kills": Experiment(
        "SIGKILL at 40 random steps, 1 rank: equal, at most an interval repeated",
        partial(kills.random_kills, count=40),
        partial(kills.random_kills, count=5),
    ),
    "kills-command": Experiment(
        "10 more, `gpt2lab train`",
        partial(kills.random_kills, count=10, real=True),
        None,
    ),
    "kills-ranks": Experiment(
        "SIGKILL at 30 random steps, to one or both of 2 ranks: the same",
        partial(kills.random_kills, count=30, ranks=2),
        partial(kills.random_kills, count=3, ranks=2),
    ),
    "kills-torchrun": Experiment(
        "20 more, torchrun with --max-restarts",
        partial(kills.random_kills, count=20, ranks=2, real=True),
        None,
    ),
    "writing": Experiment(
        f"SIGKILL at each of {len(harm.POINTS)} points of a checkpoint's writing: equal",
        partial(kills.kills_while_writing, step=2 * EVERY),
        partial(kills.kills_while_writing, step=2 * EVERY),
    ),
    "bits": Experiment(
        "200 random bits of a checkpoint flipped, one at a time: found, the one before used",
        partial(damage.bit_flips, count=200, commands=5),
        partial(damage.bit_flips, count=200, commands=1),
    ),
    "bits-of-digests": Experiment("every single bit of SHA256SUMS: the same", damage.every_bit_of_digests, None),
    "elastic": Experiment(
        "2, 1, 3 ranks and another micro batch each within a run: every step's sequences, loss within 1e-4",
        elastic.changing_ranks,
        elastic.changing_ranks,
    ),
    "gradients": Experiment(
        "first gradients of 2 ranks and of 1 that accumulates, float64: within 1e-12",
        elastic.first_gradients,
        elastic.first_gradients,
    ),
    "agents": Experiment(
        "two torchrun agents (`launch/torchrun_multinode.sh`): equal to one with 2 ranks",
        agents.two_agents,
        None,  # tests/launch does it
    ),
    "disk": Experiment(
        "no room at 5 points of a run (RLIMIT_FSIZE), 1 rank: said, the checkpoint before good, nothing temporary left",
        disk.full_disk,
        disk.full_disk,
    ),
    "disk-ranks": Experiment("the same, 2 ranks", partial(disk.full_disk, ranks=2), None),
    "disk-tmpfs": Experiment("a tmpfs of 5 sizes, `gpt2lab train`: the same", disk.full_tmpfs, None),
    "signals": Experiment(
        "20 each of 4 signals at random steps, 1 rank: saved, exit status as documented, equal",
        partial(signals.interruptions, each=20),
        partial(signals.interruptions, each=1),
    ),
    "signals-ranks": Experiment(
        "5 each, to one of 2 ranks: the same", partial(signals.interruptions, each=5, ranks=2), None
    ),
    "signals-command": Experiment(
        "2 each, `gpt2lab train`: the same", partial(signals.interruptions, each=2, real=True), None
    ),
    "signals-torchrun": Experiment(
        "2 each, to torchrun: the same, but for the exit status, which is torchrun's own",
        partial(signals.interruptions, each=2, ranks=2, real=True),
        partial(signals.interruptions, each=1, ranks=2, real=True, signals=(signal.SIGTERM,)),
    ),
    "second-signals": Experiment(
        "a second signal ends a step that hangs: within 2 s",
        signals.second_signals,
        signals.second_signals,
    ),
    "guard": Experiment(
        "NaN, inf and a spike, in loss or gradient of 1 rank of 2, at 5 steps: skipped on both alike, logged",
        guard.skipped_steps,
        partial(guard.skipped_steps, poisons=(("nan", "loss"), ("inf", "gradient"), ("spike", "loss"))),
    ),
    "guard-alone": Experiment("the same, 1 rank", partial(guard.skipped_steps, ranks=1), None),
    "guard-stops": Experiment(
        "too many in a row: stops, names the last good checkpoint, goes on equal",
        guard.too_many_in_a_row,
        guard.too_many_in_a_row,
    ),
    "lost": Experiment(
        "one of 2 ranks stopped or killed: all gone within timeout + 10 s, and who it was is said",
        partial(lost.lost_ranks, torchrun=False, cases=STOPPED_AND_KILLED),
        partial(lost.lost_ranks, torchrun=False, cases=(("stop", 0), ("kill", 1))),
    ),
    "lost-torchrun": Experiment(
        "the same under torchrun; and torchrun itself killed",
        partial(lost.lost_ranks, torchrun=True, cases=(*STOPPED_AND_KILLED, ("kill", -1))),
        partial(lost.lost_ranks, torchrun=True, cases=(("stop", 1),)),
    ),
    "bad-input": Experiment(
        "60 or more bad inputs, 10 of them to real commands: one line that names file or key, exit status 2",
        bad_input.bad_inputs,
        partial(bad_input.bad_inputs, real=bad_input.REAL[:3]),
    ),
    "canaries": Experiment(
        "files that would act if trusted: refused, no side effect",
        canaries.canaries,
        canaries.canaries,
    ),
}

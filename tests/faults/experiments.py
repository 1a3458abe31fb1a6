"""Every experiment by name: its bar, a short form for the tests, and the full form for `make faults`."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.faults import (
    agents,
    bad_input,
    damage,
    disk,
    elastic,
    guard,
    injection,
    kills,
    lost_ranks,
    signals,
    untrusted_files,
)
from tests.faults.outcome import Outcome
from tests.faults.runs import EVERY, MODERN

Form = Callable[[Path, Path], Outcome | None]  # (folder to work in, data) -> outcome, None if it cannot be measured


class Experiment(NamedTuple):
    """An experiment. `short` is None if it would take long and test little more than the other short forms."""

    bar: str
    full: Form
    short: Form | None


GENEROUS_LIMIT = 100.0  # seconds; the short forms must pass on a slow or busy machine
STOP_OR_KILL = (("stop", 0), ("stop", 1), ("kill", 0), ("kill", 1))

EXPERIMENTS = {
    "kills": Experiment(
        "SIGKILL at 40 random steps, 1 rank: equal, at most one checkpoint interval repeated",
        partial(kills.kill_at_random_steps, count=40),
        partial(kills.kill_at_random_steps, count=5),
    ),
    "kills-command": Experiment(
        "10 more, with `gpt2lab train`: the same",
        partial(kills.kill_at_random_steps, count=10, real=True),
        None,
    ),
    "kills-ranks": Experiment(
        "SIGKILL at 30 random steps, to one or both of 2 ranks: the same",
        partial(kills.kill_at_random_steps, count=30, ranks=2),
        partial(kills.kill_at_random_steps, count=3, ranks=2),
    ),
    "kills-torchrun": Experiment(
        "20 more, with torchrun and --max-restarts: the same",
        partial(kills.kill_at_random_steps, count=20, ranks=2, real=True),
        None,
    ),
    "writing": Experiment(
        f"SIGKILL at each of {len(injection.POINTS)} points of the write of a checkpoint: equal",
        partial(kills.kill_while_writing, step=2 * EVERY),
        partial(kills.kill_while_writing, step=2 * EVERY),
    ),
    "bits": Experiment(
        "200 random bits of a checkpoint flipped, one at a time: detected, the previous checkpoint used",
        partial(damage.flip_random_bits, count=200, commands=5),
        partial(damage.flip_random_bits, count=200, commands=1),
    ),
    "bits-of-digests": Experiment(
        "every bit of SHA256SUMS flipped, one at a time: the same", damage.flip_every_bit_of_digests, None
    ),
    "elastic": Experiment(
        "a run with 2, then 1, then 3 ranks and other micro batches: the same sequences per step, loss within 1e-4",
        elastic.change_ranks,
        elastic.change_ranks,
    ),
    "gradients": Experiment(
        "gradients of the first step, 2 ranks and 1 rank that accumulates, float64: equal within 1e-12",
        elastic.compare_first_gradients,
        elastic.compare_first_gradients,
    ),
    "agents": Experiment(
        "two torchrun agents (`launch/torchrun_multinode.sh`): equal to one agent with 2 ranks",
        agents.run_two_agents,
        None,  # tests/launch has it
    ),
    "disk": Experiment(
        "full disk at 5 points of a run (RLIMIT_FSIZE), 1 rank: error, previous checkpoint intact, no temporary file",
        disk.fill_disk,
        disk.fill_disk,
    ),
    "disk-ranks": Experiment("the same, 2 ranks", partial(disk.fill_disk, ranks=2), None),
    "disk-tmpfs": Experiment("a tmpfs of 5 sizes, `gpt2lab train`: the same", disk.fill_tmpfs, None),
    "signals": Experiment(
        "20 each of 4 signals at random steps, 1 rank: saved, exit status as documented, equal",
        partial(signals.interrupt, count=20),
        partial(signals.interrupt, count=1),
    ),
    "signals-ranks": Experiment(
        "5 each, to one of 2 ranks: the same", partial(signals.interrupt, count=5, ranks=2), None
    ),
    "signals-command": Experiment(
        "2 each, `gpt2lab train`: the same", partial(signals.interrupt, count=2, real=True), None
    ),
    "signals-torchrun": Experiment(
        "2 each, to torchrun: the same, except for the exit status, which is that of torchrun",
        partial(signals.interrupt, count=2, ranks=2, real=True),
        partial(signals.interrupt, count=1, ranks=2, real=True, signals=(signal.SIGTERM,)),
    ),
    "second-signals": Experiment(
        "a second signal during a step that hangs: exit within 2 s",
        partial(signals.send_second_signal, limit=2),
        partial(signals.send_second_signal, limit=GENEROUS_LIMIT),
    ),
    "guard": Experiment(
        "NaN, inf and a spike, in the loss or gradient of 1 of 2 ranks, at 5 steps: skipped on both, logged",
        guard.skip_steps,
        partial(guard.skip_steps, corruptions=(("nan", "loss"), ("inf", "gradient"), ("spike", "loss"))),
    ),
    "guard-alone": Experiment("the same, 1 rank", partial(guard.skip_steps, ranks=1), None),
    "guard-stops": Experiment(
        "too many skipped steps in a row: stops, names the last intact checkpoint, equal after resume",
        guard.stop_after_skipped_steps,
        guard.stop_after_skipped_steps,
    ),
    "lost": Experiment(
        "one of 2 ranks suspended or killed: all exit within timeout + 10 s and report the lost rank",
        partial(lost_ranks.lose_ranks, torchrun=False, cases=STOP_OR_KILL, grace=10),
        partial(lost_ranks.lose_ranks, torchrun=False, cases=(("stop", 0), ("kill", 1)), grace=GENEROUS_LIMIT),
    ),
    "lost-torchrun": Experiment(
        "the same with torchrun; also torchrun itself killed",
        partial(lost_ranks.lose_ranks, torchrun=True, cases=(*STOP_OR_KILL, ("kill", -1)), grace=10),
        partial(lost_ranks.lose_ranks, torchrun=True, cases=(("stop", 1),), grace=GENEROUS_LIMIT),
    ),
    "modern-kills": Experiment(
        "the modern architecture with Muon, SIGKILL at 20 random steps, 1 rank: as for GPT-2",
        partial(kills.kill_at_random_steps, count=20, **MODERN),
        None,  # tests/training/test_modern_run.py
    ),
    "modern-kills-ranks": Experiment(
        "10 more, to one or both of 2 ranks: the same",
        partial(kills.kill_at_random_steps, count=10, ranks=2, **MODERN),
        None,
    ),
    "modern-bits": Experiment(
        "200 random bits of its checkpoint flipped: as for GPT-2",
        partial(damage.flip_random_bits, count=200, commands=2, **MODERN),
        None,
    ),
    "modern-elastic": Experiment(
        "a run of it with 2, then 1, then 3 ranks: as for GPT-2",
        partial(elastic.change_ranks, **MODERN),
        partial(elastic.change_ranks, **MODERN),
    ),
    "bad-input": Experiment(
        "60 or more invalid inputs, 10 of them to real commands: a one-line error with the file or key, exit status 2",
        bad_input.bad_inputs,
        None,  # test_bad_input.py has it
    ),
    "canaries": Experiment(
        "files that would run code if they were trusted: refused, no side effect",
        untrusted_files.refuse_untrusted_files,
        untrusted_files.refuse_untrusted_files,
    ),
}

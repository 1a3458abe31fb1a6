"""Numbers that must not reach the weights: steps spoilt on one rank are skipped on all of them alike."""

import json
from functools import partial
from pathlib import Path

from gpt2lab.data.loader import Loader
from gpt2lab.data.shards import open_split
from tests.faults import harm, runs
from tests.faults.kills import straight
from tests.faults.outcome import Outcome
from tests.faults.processes import Forked
from tests.faults.runs import BLOCK_SIZE, EVERY, MICRO_BATCH, SEQUENCES, STEPS, Run

SPOILT = (12, 22, 32, 42, 52)
POISONS = tuple((kind, where) for where in ("loss", "gradient") for kind in ("nan", "inf", "spike"))
# Out of proportion even for so few steps to go by; and each spike has left the window before the next one.
GUARD = {"guard__window": 8, "guard__spike_sigma": 20, "guard__stop_after": 3}


def skipped_steps(folder: Path, data: Path, ranks: int = 2, poisons: tuple[tuple[str, str], ...] = POISONS) -> Outcome:
    """NaN, inf and a spike, of the loss and of a gradient, on the last rank at five steps of a run each.

    Whatever the poison, the runs must end with the same weights.
    """
    stream = open_split(data, "train")
    order = Loader(stream, block_size=BLOCK_SIZE, sequences_per_step=SEQUENCES, vocab_size=300, seed=1337)
    outcome, expected = Outcome(), None
    for kind, where in poisons:
        place = folder / f"{kind}-{where}"
        run = runs.make(place, data, **GUARD)
        digests = place / "digests"
        poison = partial(harm.poison, kind, where, SPOILT, SEQUENCES // ranks // MICRO_BATCH, digests)
        with Forked(run, place / "output", ranks=ranks, harm=poison) as victim:
            assert victim.wait() == 0, victim.text()
        wrong = []
        skipped = [line for line in _events(run) if line["event"] == "skipped"]
        if tuple(line["step"] for line in skipped) != SPOILT:
            wrong.append(f"skipped {[line['step'] for line in skipped]}")
        if any(line["sequences"] != order.sequence_ids(line["step"] - 1).tolist() for line in skipped):
            wrong.append("the sequences of a skipped step are not those that were logged")
        updates = _by_rank(digests, ranks)
        if any(of_rank != updates[0] for of_rank in updates) or len(updates[0]) != STEPS - len(SPOILT):
            wrong.append(f"updates {[len(of_rank) for of_rank in updates]}, the same on all ranks?")
        expected = expected or updates[0]
        if updates[0] != expected:
            wrong.append("other weights than with another poison")
        outcome.trial(f"{kind} in the {where}", wrong)
    outcome.figures = f"each at steps {', '.join(map(str, SPOILT))}, on rank {ranks - 1} of {ranks}"
    return outcome


def too_many_in_a_row(folder: Path, data: Path, ranks: int = 2) -> Outcome:
    """Poison without end: the run stops, names the last good checkpoint, and goes on from it when the cause is gone."""
    reference = straight(folder / "straight", data, ranks, **GUARD)
    run = runs.make(folder / "stopped", data, **GUARD)
    spoilt = range(2 * EVERY + 5, STEPS)
    poison = partial(harm.poison, "nan", "loss", spoilt, SEQUENCES // ranks // MICRO_BATCH, folder / "digests")
    with Forked(run, folder / "output-0", ranks=ranks, harm=poison) as victim:
        status, text = victim.wait(), victim.text()
    wrong = [] if status == 2 else [f"exit status {status}"]
    lines = [line for line in text.splitlines() if line.startswith("gpt2lab: ")]
    kept = run.checkpoints / f"step_{2 * EVERY:08d}"
    expected = ("steps in a row were skipped (guard.stop_after)", f"{kept} is kept")
    if len(lines) != ranks or any(words not in line for line in lines for words in expected):
        wrong.append(f"it says {lines}")
    if "Traceback" in text:
        wrong.append("traceback")
    with Forked(run, folder / "output-1", ranks=ranks) as again:
        assert again.wait() == 0, again.text()
    outcome = Outcome()
    outcome.trial("stopped", wrong + runs.differences(run, reference))
    return outcome


def _events(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]


def _by_rank(digests: Path, ranks: int) -> list[list[str]]:
    """The digests of the weights after every update, a list for each rank."""
    lines = [json.loads(line) for line in digests.read_text().splitlines()]
    return [[line["sha256"] for line in lines if line["rank"] == rank] for rank in range(ranks)]

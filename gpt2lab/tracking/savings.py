"""Whether the losses of runs can be compared, and how much sooner one run reaches the final loss of another."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt2lab.config import GPT2_VOCAB_SIZE
from gpt2lab.tracking import reference
from gpt2lab.tracking.records import Run


def describe(runs: Sequence[Run]) -> list[str]:
    """Say which runs reach the final validation loss of another one with fewer tokens.

    Between two evaluations, the loss is taken to fall linearly. Only runs are compared whose losses can be, see
    `describe_difference`.

    Args:
        runs: any number.

    Returns:
        A sentence for each pair, such as "b reaches the final validation loss of a, 4.869, with 2.5 times fewer tokens
        and in 2.1 times less training time."
    """
    sentences = []
    for other in runs:
        for run in runs:
            step = _step_of_loss(run, other)
            if run is other or step is None:
                continue
            tokens = other.last_step * other.tokens_per_step / (step * run.tokens_per_step)
            if tokens < 1.05:  # the same, or more
                continue
            loss = other.curve("val/loss").values[-1]
            sentence = (
                f"{run.name} reaches the final validation loss of {other.name}, {loss:.3f}, "
                f"with {tokens:.1f} times fewer tokens"
            )
            minutes, other_minutes = minutes_of_training(run), minutes_of_training(other)
            if minutes is not None and other_minutes is not None and run.hardware == other.hardware:
                ratio = other_minutes[-1] / np.interp(step, np.arange(len(minutes)), minutes)
                change = f"{ratio:.1f} times less" if ratio >= 1.05 else f"{1 / ratio:.1f} times the"
                sentence += f" and in {'the same' if 0.95 < ratio < 1.05 else change} training time"
            sentences.append(f"{sentence}.")
    return sentences


def describe_difference(runs: Sequence[Run]) -> str:
    """Say why the losses of runs cannot be compared.

    Args:
        runs: any number.

    Returns:
        A sentence; empty if the runs have the same text, tokens and validation data.
    """
    if len(sources := _distinct(run.source for run in runs)) > 1:
        return f"The runs were trained on different text ({', '.join(sources)}): do not compare their losses."
    # Rows of the vocabulary that only pad it do not change the tokens.
    if len(sizes := _distinct(min(run.settings.model.vocab_size, GPT2_VOCAB_SIZE) for run in runs)) > 1:
        return f"The runs have different tokens (model.vocab_size {', '.join(sizes)}): do not compare their losses."
    if len(_distinct(_validation_data(run) for run in runs)) > 1:
        return "The runs have different validation data: do not compare their losses."
    if len(sizes := _distinct(_validation_tokens(run) for run in runs)) > 1:
        return (
            f"The validation losses are over different numbers of tokens ({', '.join(sizes)}, train.eval_tokens): do "
            "not compare them."
        )
    return ""


def minutes_of_training(run: Run) -> np.ndarray | None:
    """Return the minutes of training up to each step, without evaluations and checkpoints.

    Args:
        run: the run.

    Returns:
        float64 (steps + 1,), from step 0 on; None if the time of a step is not in the records.
    """
    steps, milliseconds = run.curve("perf/step_ms")
    if len(steps) == 0 or not np.array_equal(steps, np.arange(1, len(steps) + 1)):
        return None
    return np.append(0.0, np.cumsum(milliseconds) / 60e3)


def _step_of_loss(run: Run, other: Run) -> float | None:
    """The step, a fraction, where a run reaches the final validation loss of another one; None if it does not."""
    (steps, losses), final = run.curve("val/loss"), other.curve("val/loss").values
    if describe_difference([run, other]) or len(final) < 2 or not (losses <= final[-1]).any():
        return None
    first = int(np.argmax(losses <= final[-1]))
    if first == 0:
        return None
    before = first - 1
    return float(np.interp(final[-1], [losses[first], losses[before]], [steps[first], steps[before]]))


def _distinct(values: Iterable[object]) -> list[str]:
    """The values as text, each once, in their order."""
    return list(dict.fromkeys(map(str, values)))


def _recorded_data(run: Run) -> Mapping[str, Any]:
    data = run.environment.get("data")
    return data if isinstance(data, Mapping) else {}


def _validation_data(run: Run) -> tuple[object, ...]:
    """What tells the validation split of a run from those of others."""
    if data_set := reference.find_data_set(run):  # published: the same text beside any number of train shards
        return (data_set,)
    if data := _recorded_data(run):
        return data.get("val_tokens"), data.get("train_tokens")
    return run.settings.data.dir, run.settings.data.input


def _validation_tokens(run: Run) -> int:
    """Tokens of the validation loss: no more than the split has."""
    limit, size = run.settings.train.eval_tokens, _recorded_data(run).get("val_tokens")
    return min(limit, size) if isinstance(size, int) else limit

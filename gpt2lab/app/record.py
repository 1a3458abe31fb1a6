"""Curves and figures of a run for the page, read at every visit."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gpt2lab.errors import GPT2LabError
from gpt2lab.tracking import records
from gpt2lab.tracking.records import Run

if TYPE_CHECKING:
    import pandas

MAX_POINTS = 400  # of a curve: the charts are no wider in pixels

TRAINING, VALIDATION, THIS_RUN = "training", "validation", "this run"
# The accuracy of GPT-2 is measured as that of the run is; each item has four endings, so chance is 0.25.
HELLASWAG_REFERENCES = {"GPT-2 124M: 0.2955": (0.2955, "#a35a00"), "chance: 0.25": (0.25, "#7d8794")}
COLORS = {TRAINING: "#7fa8d9", VALIDATION: "#d9730d", THIS_RUN: "#3a7fc4"}
COLORS |= {name: color for name, (_, color) in HELLASWAG_REFERENCES.items()}


class Record(NamedTuple):
    """Figures and curves of a run.

    Attributes:
        figures: (label, value) pairs.
        note: what is missing, in words.
        loss: columns step, loss and curve; None if nothing was measured.
        hellaswag: columns step, accuracy and curve; None if nothing was measured.
    """

    figures: list[tuple[str, str]]
    note: str
    loss: "pandas.DataFrame | None" = None
    hellaswag: "pandas.DataFrame | None" = None


def read(folder: Path | None) -> Record:
    """Read the record of a run.

    Args:
        folder: run directory; None if the model does not come from one.

    Returns:
        The record. Where files are missing or damaged, its note says so.
    """
    if folder is None:
        return Record([], "This model is not from a run directory, so there are no curves of its training here.")
    try:
        run = records.read(folder)
    except GPT2LabError as error:  # the model is usable without
        return Record([], f"No curves: {error}.")
    if not run.metrics:
        return Record([], f"No curves: {run.name} has no metrics.jsonl, or it is empty.")
    loss = _frame(run, {TRAINING: "train/loss", VALIDATION: "val/loss"}, "loss", {})
    references = {name: accuracy for name, (accuracy, _) in HELLASWAG_REFERENCES.items()}
    hellaswag = _frame(run, {THIS_RUN: "hellaswag/acc_norm"}, "accuracy", references)
    missing = ["No losses in metrics.jsonl."] if loss is None else []
    missing += ["HellaSwag was not measured while training."] if hellaswag is None else []
    figures = [
        ("steps", f"{run.last_step:,}"),
        ("validation loss", _last(run, "val/loss", ".3f")),
        ("HellaSwag acc_norm", _last(run, "hellaswag/acc_norm", ".4f")),
    ]
    return Record(figures, " ".join(missing), loss, hellaswag)


def _last(run: Run, key: str, form: str) -> str:
    values = run.curve(key).values
    return format(values[-1], form) if len(values) else "not measured"


def _frame(run: Run, keys: dict[str, str], column: str, references: dict[str, float]) -> "pandas.DataFrame | None":
    """Curves by name, below each other, with horizontal lines for the references; None if there are no values."""
    import pandas

    rows: list[tuple[float, float, str]] = []
    for name, key in keys.items():
        steps, values = run.curve(key)
        stride = max(1, -(-len(steps) // MAX_POINTS))
        kept = sorted({*range(0, len(steps), stride), len(steps) - 1} - {-1})  # always the last
        rows += [(float(steps[index]), float(values[index]), name) for index in kept]
    if not rows:
        return None
    ends = (min(row[0] for row in rows), max(row[0] for row in rows))
    rows += [(step, value, name) for name, value in references.items() for step in ends]
    return pandas.DataFrame(rows, columns=["step", column, "curve"])

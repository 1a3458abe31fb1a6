"""Curves and figures of a run for the page, read at every visit."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpt2lab.errors import GPT2LabError
from gpt2lab.model import resolve
from gpt2lab.tracking import plots, records
from gpt2lab.tracking.records import Curve, Run

if TYPE_CHECKING:
    import pandas

MAX_POINTS = 400  # of a curve: the charts are no wider in pixels

# The accuracy of GPT-2 is measured as that of the run is; each item has four endings, so chance is 0.25.
HELLASWAG_REFERENCES = {"GPT-2 124M: 0.2955": 0.2955, "chance: 0.25": 0.25}
COLORS = {"training": "#7fa8d9", "validation": "#d9730d", "this run": "#3a7fc4"}
COLORS |= dict(zip(HELLASWAG_REFERENCES, ("#a35a00", "#7d8794"), strict=True))


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


def read(folder: Path | None, step: int | None = None) -> Record:
    """Read the record of a run.

    Args:
        folder: run directory; None if the model does not come from one.
        step: of the weights on the page. The run may have gone on since they were loaded; the note says so.

    Returns:
        The record. Where files are missing or damaged, its note says so.
    """
    if folder is None:
        return Record([], "This model is not from a run directory, so there are no curves of its training here.")
    try:
        run = records.read(folder)
    except GPT2LabError as error:  # the model is usable without
        return Record([], f"No curves: {str(error).replace(str(folder), folder.name)}.")  # others may see the page
    if not run.metrics:
        return Record([], f"No curves: {run.name} has no metrics.jsonl, or it is empty.")
    loss = _frame("loss", {"training": run.curve("train/loss"), "validation": run.curve("val/loss")})
    accuracy = run.curve("hellaswag/acc_norm")
    ends = accuracy.steps[[0, -1]] if len(accuracy.steps) else accuracy.steps
    references = {name: Curve(ends, np.full_like(ends, value)) for name, value in HELLASWAG_REFERENCES.items()}
    hellaswag = _frame("accuracy", {"this run": accuracy, **references})
    missing = ["No losses in metrics.jsonl."] if loss is None else []
    missing += ["HellaSwag was not measured while training."] if hellaswag is None else []
    if step is not None and run.last_step > step:
        missing.insert(0, _gone_on(run, step))
    figures = [
        ("steps", f"{run.last_step:,}"),
        ("validation loss", _last(run, "val/loss", ".3f")),
        ("HellaSwag acc_norm", _last(run, "hellaswag/acc_norm", ".4f")),
    ]
    return Record(figures, " ".join(missing), loss, hellaswag)


def _gone_on(run: Run, step: int) -> str:
    """That the curves end after the step of the weights, and what to do."""
    note = f"The curves end at step {run.last_step:,}; the text is that of the weights of step {step:,}"
    checkpoints = resolve.list_checkpoints(run.folder / "checkpoints")
    if checkpoints and checkpoints[-1][0] > step:
        return f"{note}. There is a checkpoint of step {checkpoints[-1][0]:,}: start the app again to use it."
    return f"{note}, the newest checkpoint."


def _last(run: Run, key: str, form: str) -> str:
    values = run.curve(key).values
    return format(values[-1], form) if len(values) else "not measured"


def _frame(column: str, curves: dict[str, Curve]) -> "pandas.DataFrame | None":
    """The curves below each other; None if they have no values."""
    import pandas

    rows: list[tuple[float, float, str]] = []
    for name, curve in curves.items():
        few = plots.downsample(curve, MAX_POINTS)
        rows += zip(few.steps, few.mean, [name] * len(few.steps), strict=True)
    return pandas.DataFrame(rows, columns=["step", column, "curve"]) if rows else None

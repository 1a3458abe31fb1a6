"""What a run's files say, thinned for the page's charts; read anew at every visit."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gpt2lab.errors import GPT2LabError
from gpt2lab.tracking import records
from gpt2lab.tracking.records import Run

if TYPE_CHECKING:
    import pandas

POINTS = 400  # of a curve; the page's charts are no wider

TRAINING, VALIDATION, THIS_RUN = "training", "validation", "this run"
# GPT-2's is of the completion convention, as the run's is; one of four endings is right.
HELLASWAG_LINES = {"GPT-2 124M: 0.2955": (0.2955, "#a35a00"), "chance: 0.25": (0.25, "#7d8794")}
COLORS = {TRAINING: "#7fa8d9", VALIDATION: "#d9730d", THIS_RUN: "#3a7fc4"}
COLORS |= {name: color for name, (_, color) in HELLASWAG_LINES.items()}


class Record(NamedTuple):
    """The figures of a run; no curve where nothing was measured. Frames have the columns step, what and a value."""

    figures: list[tuple[str, str]]
    note: str
    loss: "pandas.DataFrame | None" = None
    hellaswag: "pandas.DataFrame | None" = None


def read(folder: Path | None) -> Record:
    """The record of a run directory; `None`: the model is of no run."""
    if folder is None:
        return Record([], "This model is not from a run directory, so there are no curves of its training here.")
    try:
        run = records.read(folder)
    except GPT2LabError as error:  # the model is good all the same
        return Record([], f"No curves: {error}.")
    if not run.metrics:
        return Record([], f"No curves: {run.name} has no metrics.jsonl, or nothing in it yet.")
    loss = _frame(run, {TRAINING: "train/loss", VALIDATION: "val/loss"}, "loss", {})
    references = {name: accuracy for name, (accuracy, _) in HELLASWAG_LINES.items()}
    hellaswag = _frame(run, {THIS_RUN: "hellaswag/acc_norm"}, "accuracy", references)
    missing = ["No losses in metrics.jsonl."] if loss is None else []
    missing += ["HellaSwag was not measured while training."] if hellaswag is None else []
    return Record(_figures(run), " ".join(missing), loss, hellaswag)


def _figures(run: Run) -> list[tuple[str, str]]:
    """(label, value) of what is known of the run, newest values."""
    shown = [("steps", f"{run.last_step:,}")]
    losses = run.curve("val/loss").values
    shown.append(("validation loss", f"{losses[-1]:.3f}" if len(losses) else "not measured"))
    scores = run.curve("hellaswag/acc_norm").values
    shown.append(("HellaSwag acc_norm", f"{scores[-1]:.4f}" if len(scores) else "not measured"))
    return shown


def _frame(run: Run, curves: dict[str, str], value: str, references: dict[str, float]) -> "pandas.DataFrame | None":
    """The curves one below the other, as the chart wants them; None without any."""
    import pandas

    rows: list[tuple[float, float, str]] = []
    for name, key in curves.items():
        steps, values = run.curve(key)
        every = max(1, -(-len(steps) // POINTS))
        kept = sorted({*range(0, len(steps), every), len(steps) - 1} - {-1})  # the last always
        rows += [(float(steps[n]), float(values[n]), name) for n in kept]
    if not rows:
        return None
    ends = (min(row[0] for row in rows), max(row[0] for row in rows))
    rows += [(step, at, name) for name, at in references.items() for step in ends]
    return pandas.DataFrame(rows, columns=["step", value, "what"])

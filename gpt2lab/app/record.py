"""What a run's metrics.jsonl says, thinned for the page's charts; read anew at every visit."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gpt2lab.app import markup
from gpt2lab.tracking import plots

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


def read(run: Path | None) -> Record:
    """The record of a run directory; `None`: the model is of no run."""
    if run is None:
        return Record([], "This model is not from a run directory, so there are no curves of its training here.")
    metrics = plots.read_metrics(run)
    if not metrics:
        return Record([], f"{run.name} has no metrics.jsonl, or nothing in it yet, so there are no curves.")
    last = {key: value for line in metrics for key, value in line.items() if value is not None}
    loss = {TRAINING: "train/loss", VALIDATION: "val/loss"}
    hellaswag = {THIS_RUN: "hellaswag/acc_norm"}
    lines = {name: accuracy for name, (accuracy, _) in HELLASWAG_LINES.items()}
    found = Record(
        markup.figures(last),
        "",
        _frame(metrics, loss, "loss", {}),
        _frame(metrics, hellaswag, "accuracy", lines),
    )
    missing = ["No losses in metrics.jsonl."] if found.loss is None else []
    missing += [] if found.hellaswag is not None else ["HellaSwag was not measured while training."]
    return found._replace(note=" ".join(missing))


def _frame(
    metrics: plots.Metrics, curves: dict[str, str], value: str, references: dict[str, float]
) -> "pandas.DataFrame | None":
    """The curves one below the other, as the chart wants them; None without any."""
    import pandas

    rows: list[tuple[float, float, str]] = []
    for name, key in curves.items():
        steps, values = plots.series(metrics, key)
        every = -(-len(steps) // POINTS) if steps else 1
        kept = sorted({*range(0, len(steps), every), len(steps) - 1} - {-1})  # the last always
        rows += [(steps[n], values[n], name) for n in kept]
    if not rows:
        return None
    ends = (min(row[0] for row in rows), max(row[0] for row in rows))
    rows += [(step, at, name) for name, at in references.items() for step in ends]
    return pandas.DataFrame(rows, columns=["step", value, "what"])

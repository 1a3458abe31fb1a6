"""Pictures of a run, made from its files alone."""

import json
from pathlib import Path

from gpt2lab import files
from gpt2lab.evaluation.baselines import BASELINES


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`, without a last one that is still being written; empty without the file."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]  # a whole line ends in a newline, so the last part is never one


def series(metrics: list[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the lines that have `key`."""
    pairs = [(line["step"], line[key]) for line in metrics if key in line]
    return [step for step, _ in pairs], [value for _, value in pairs]


def plot_loss(run: Path) -> None:
    """Draw training and validation loss over the steps into `loss_curve.png`."""
    from matplotlib.figure import Figure

    metrics = read_metrics(run)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*series(metrics, "train/loss"), color="#9db4d3", linewidth=1, label="train")
    steps, values = series(metrics, "val/loss")
    axes.plot(steps, values, color="#b3401f", marker="o", markersize=3, linewidth=1.5, label="validation")
    if values:
        axes.annotate(
            f"{values[-1]:.3f}",
            (steps[-1], values[-1]),
            xytext=(-6, 10),
            textcoords="offset points",
            ha="right",
            color="#b3401f",
        )
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token)", title=run.name)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with files.atomic_write(run / "loss_curve.png") as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def plot_hellaswag(run: Path) -> None:
    """Draw HellaSwag accuracy over the steps into `hellaswag_curve.png`, others' as lines; nothing without figures.

    Completion style, as in the reproductions; the lines are GPT-2 124M's in that style and GPT-3 Small's.
    """
    from matplotlib.figure import Figure

    steps, values = series(read_metrics(run), "hellaswag/acc_norm")
    if not steps:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, values, color="#b3401f", marker="o", markersize=3, linewidth=1.5, label="this run")
    drawn = [("GPT-2 124M", "completion", "--"), ("GPT-3 Small 125M", "other", ":")]
    for model, convention, style in drawn:
        known = next(b.acc_norm for b in BASELINES if (b.model, b.convention) == (model, convention))
        axes.axhline(known, color="#555555", linewidth=1, linestyle=style, label=f"{model}: {known}")
    axes.set(xlabel="optimizer step", ylabel="HellaSwag, acc_norm", title=run.name)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with files.atomic_write(run / "hellaswag_curve.png") as temporary:
        figure.savefig(temporary, format="png", dpi=130)

"""Writes `report.html` of a scaling run: the law and what it predicts, above the table and the curves of a sweep.

runs, predictions.jsonl ──▶ fits, outcomes ──▶ charts ──▶ sections ──▶ sweep.page
"""

from pathlib import Path
from typing import Any

from gpt2lab.config import SIZES, Config, GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import plural
from gpt2lab.model import flops
from gpt2lab.scaling import charts, fit, points
from gpt2lab.scaling.charts import Outcome
from gpt2lab.scaling.fit import Fits
from gpt2lab.scaling.points import Columns, Counted
from gpt2lab.sweep import page, record
from gpt2lab.sweep.page import Section
from gpt2lab.tracking import records

_DRAWS = 200  # of the bootstrap


def is_scaling_run(folder: Path) -> bool:
    """Whether a folder of runs belongs to `gpt2lab scaling`: trained by its plan, or with predictions.

    Args:
        folder: of runs.
    """
    return bool(record.read(folder).get("plan")) or (folder / points.PREDICTIONS).exists()


def write(folder: Path) -> Path:
    """Write the page of a scaling run. Without enough finished runs it is the page of a sweep.

    Args:
        folder: of the runs.

    Returns:
        The path of the page.

    Raises:
        GPT2LabError: the folder holds no runs, or a file is damaged or cannot be written.
    """
    return page.write(folder, _build_sections(folder), is_plan=True)


def _build_sections(folder: Path) -> list[Section]:
    outcomes = [_read_outcome(folder, line) for line in points.read_predictions(folder)]
    counted: Counted = outcomes[-1].record["counted"] if outcomes else "blocks-and-head"
    try:
        fits = _fit(folder, counted)
    except GPT2LabError as error:
        return [Section("Scaling law", [str(error)], [])]
    marks = {
        f"GPT-2 {name}": float(points.count_parameters(Config(model=GPT2Config(size=name)))[counted]) for name in SIZES
    }
    panels = [
        charts.draw_isoflops(fits.points),
        charts.draw_frontier(fits, outcomes),
        charts.draw_optimum(fits, True, marks),
        charts.draw_optimum(fits, False, marks),
    ]
    sections = [Section("Scaling law", _describe(fits, counted), [panel for panel in panels if panel])]
    if outcomes:
        drawn = [panel for outcome in outcomes if (panel := charts.draw_outcome(outcome))]
        sections.append(Section("Predictions", [], drawn, _tabulate(outcomes)))
    return sections


def _fit(folder: Path, counted: Counted) -> Fits:
    fits = fit.fit(points.read([str(folder)], Columns(), counted), _DRAWS)
    fits.best()
    return fits


def _read_outcome(folder: Path, line: dict[str, Any]) -> Outcome:
    """Find the run of a prediction."""
    compute, name = 6 * line["parameters"] * line["tokens"], line["run"]
    if not name or not (folder / name / "config.yaml").exists():
        return Outcome(line, compute, None, None)
    run = records.read(folder / name)
    train = run.settings.train
    compute = flops.flops_per_token(run.settings.model) * train.max_steps * train.total_batch_size
    curve = run.curve("val/loss")
    ended = len(curve.steps) and curve.steps[-1] == train.max_steps
    return Outcome(line, compute, run, float(curve.values[-1]) if ended else None)


def _describe(fits: Fits, counted: str) -> list[str]:
    """The law in numbers, and what must not be trusted."""
    best = fits.best()
    law, (a, b) = best.law, best.law.optimal_exponents()
    name = "Approach 3" if best.form == "approach3" else "Coupled form"
    equation = f"L = {law.E:.3f} + {law.A:.4g} N^-{law.alpha:.3f} + {law.B:.4g} D^-{law.beta:.3f}"
    intervals = ", ".join(f"{key} {low:.3g} to {high:.3g}" for key, (low, high) in best.interval95().items())
    lines = [
        f"{plural(len(fits.points), 'run')}, N counts {counted.replace('-', ' ')}. {name}: {equation}; "
        f"optimal N grows as C^{a:.2f}, D as C^{b:.2f}.",
        f"95% intervals: {intervals}.",
    ]
    if (two := fits.approach2) is not None:
        lines.append(f"Approach 2: N grows as C^{two.a:.2f}, D as C^{two.b:.2f}.")
    return lines + [f"Warning: {warning}." for warning in fits.warnings]


def _tabulate(outcomes: list[Outcome]) -> list[list[str]]:
    header = ["run", "recorded", "parameters", "tokens", "predicted loss", "95% interval", "reached", "difference"]
    rows = [header]
    for record_, _, _, loss in outcomes:
        low, high = record_["interval95"]
        when = f"{record_['date'].replace('T', ' ').removesuffix('+00:00')} UTC"
        rows.append(
            [
                str(record_["run"] or "-"),
                when + ("" if record_["before"] else ", after the run had begun"),
                f"{record_['parameters']:,.0f}",
                f"{record_['tokens']:,.0f}",
                f"{record_['loss']:.4f}",
                f"{low:.4f} to {high:.4f}",
                "-" if loss is None else f"{loss:.4f}, {'inside' if low <= loss <= high else 'outside'}",
                "-" if loss is None else f"{loss / record_['loss'] - 1:+.2%}",
            ]
        )
    return rows

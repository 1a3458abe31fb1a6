"""`report.html`: a run on one page that needs nothing else, made from the run's files alone.

config.yaml · environment.json · metrics.jsonl · samples.jsonl ──▶ report.html, PNGs of its curves
"""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from gpt2lab import files
from gpt2lab.config import load
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation.baselines import BASELINES
from gpt2lab.tracking import plots
from gpt2lab.tracking.plots import Metrics

# What OpenAI's 124M model scores, for lines to compare with. Loss: on FineWeb-Edu's validation shard, as build-nanogpt
# measures it. HellaSwag: acc_norm; GPT-2's is of the completion convention, as the run's is.
GPT2_FINEWEB_LOSS = ("GPT-2 124M on FineWeb-Edu: 3.29", 3.2924)
_DRAWN = (("GPT-2 124M", "completion"), ("GPT-3 Small 125M", "other"))
HELLASWAG_LINES = [(f"{b.model}: {b.acc_norm}", b.acc_norm) for b in BASELINES if (b.model, b.convention) in _DRAWN]

MAX_SAMPLE_STEPS = 8  # on the page; samples.jsonl has all


def write(run: Path, price_per_hour: float | None = None) -> Path:
    """Draw `loss_curve.png` and write `report.html` into a run directory; returns the page's path.

    Args:
        price_per_hour: of all the machines together, in any currency; overrides `tracking.price_per_hour`.

    Raises:
        GPT2LabError: the folder is no run, or one of its files is damaged.
    """
    page = run / "report.html"
    html = render(run, price_per_hour)
    with files.atomic_write(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page


def render(run: Path, price_per_hour: float | None = None) -> str:
    """The page as text; also draws `loss_curve.png`, and `hellaswag_curve.png` where it was measured.

    Raises:
        GPT2LabError: the folder is no run, or one of its files is damaged.
    """
    from jinja2 import Environment, FileSystemLoader

    if not (run / "config.yaml").exists():
        raise GPT2LabError(f"{run} is not a run directory: it has no config.yaml; give one such as runs/quickstart")
    settings = load([run / "config.yaml"])
    environment = _read_json(run / "environment.json")
    metrics = plots.read_metrics(run)
    source = (environment.get("data") or {}).get("source") or settings.data.source
    on_fineweb = source.startswith("fineweb-edu")
    loss = plots.loss_figure(metrics, GPT2_FINEWEB_LOSS if on_fineweb else None)
    plots.save_png(loss, run / "loss_curve.png")
    price = settings.tracking.price_per_hour if price_per_hour is None else price_per_hour
    figures = [("Loss", plots.to_svg(loss))]
    if any("hellaswag/acc_norm" in line for line in metrics):
        hellaswag = plots.curve_figure(metrics, "hellaswag/acc_norm", "HellaSwag acc_norm", HELLASWAG_LINES)
        plots.save_png(hellaswag, run / "hellaswag_curve.png")
        figures.append(("HellaSwag", plots.to_svg(hellaswag)))
    if any("perf/tokens_per_second" in line for line in metrics):
        figures.append(("Throughput", plots.to_svg(plots.curve_figure(metrics, "perf/tokens_per_second", "tokens/s"))))
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template(
        "report.html.j2"
    )
    return template.render(
        name=run.resolve().name,
        tiles=tiles(metrics, settings.train.total_batch_size, price, environment.get("parameters")),
        figures=figures,
        compared=on_fineweb,
        source=source,
        samples=_spread(_read_samples(run / "samples.jsonl")),
        settings=settings.flat(),
        environment=_flatten(environment),
    )


def tiles(
    metrics: Metrics, tokens_per_step: int, price_per_hour: float, parameters: int | None = None
) -> list[tuple[str, str]]:
    """(label, value) of the numbers at the top of the page; what was not measured is left out."""
    shown: list[tuple[str, str]] = [("parameters", _short(parameters))] if parameters else []
    _, losses = plots.series(metrics, "val/loss")
    if losses:
        shown.append(
            ("validation loss", f"{losses[0]:.2f} → {losses[-1]:.3f}" if len(losses) > 1 else f"{losses[0]:.3f}")
        )
    _, scores = plots.series(metrics, "hellaswag/acc_norm")
    if scores:
        shown.append(("HellaSwag", f"{scores[-1]:.4f}"))
    trained, milliseconds = plots.series(metrics, "perf/step_ms")
    if trained:
        hours = sum(milliseconds) / 3.6e6
        shown.append(("steps", f"{int(trained[-1]):,}"))
        shown.append(("tokens", _short(trained[-1] * tokens_per_step)))
        shown.append(("training time", _duration(hours)))
        shown.append(("tokens/s, median", f"{_median(plots.series(metrics, 'perf/tokens_per_second')[1]):,.0f}"))
        if price_per_hour:
            cost = hours * price_per_hour
            shown.append((f"cost at {price_per_hour:g} an hour", f"{cost:.2f}" if cost >= 1 else f"{cost:.2g}"))
    _, shares = plots.series(metrics, "perf/mfu")
    if shares:
        shown.append(("MFU, median", f"{_median(shares):.1%}"))
    _, memory = plots.series(metrics, "perf/peak_memory_gib")
    if memory:
        shown.append(("peak memory", f"{max(memory):.1f} GiB"))
    return shown


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise GPT2LabError(f"{path}: not valid JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def _read_samples(path: Path) -> list[tuple[int, list[dict[str, Any]]]]:
    """(step, samples of that step), in order."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    records = [json.loads(line) for line in lines]
    return [(step, list(group)) for step, group in groupby(records, key=lambda record: record["step"])]


def _spread(steps: Sequence[Any], most: int = MAX_SAMPLE_STEPS) -> list[Any]:
    """At most `most` of them, evenly, the first and the last always."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _short(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _duration(hours: float) -> str:
    minutes, seconds = divmod(round(hours * 3600), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {seconds:02d} s"

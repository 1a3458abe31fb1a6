"""The README.md of an exported model: what it is, and the figures that its run has written down, no others.

config.yaml · environment.json · metrics.jsonl · evaluations/step_NNNNNNNN.json ──▶ rows ──▶ model_card.md.j2
"""

import json
from pathlib import Path
from typing import Any

from gpt2lab.config import GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import format_duration
from gpt2lab.model import flops
from gpt2lab.model.resolve import ResolvedCheckpoint
from gpt2lab.tracking import records
from gpt2lab.tracking.records import Run

Rows = list[tuple[str, str]]
NOT_MEASURED = "not measured"
HELLASWAG_ITEMS = 10_042  # published figures are of all of them


def render(name: str, found: ResolvedCheckpoint, config: GPT2Config, dtype: str) -> str:
    """The card as Markdown, with the YAML front matter that the Hub reads.

    Args:
        name: what the user called the model.
        config: of the exported weights.

    Raises:
        GPT2LabError: one of the run's files is damaged.
    """
    from jinja2 import Environment, FileSystemLoader

    facts: dict[str, Any] = {"trained": [], "measured": [], "dataset": None, "hellaswag": None}
    if found.run is not None and found.step is not None and (found.run / "config.yaml").is_file():
        facts = _facts(found.run, found.step)
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True
    ).get_template("model_card.md.j2")  # no HTML, so nothing is escaped
    title = (found.run or Path(name)).resolve().name
    return template.render(
        title=title, step=found.step, config=config, dtype=dtype, parameters=flops.parameters(config), **facts
    )


def _facts(folder: Path, step: int) -> dict[str, Any]:
    run, evaluation = records.read(folder), _evaluation(folder, step)
    hellaswag = evaluation.get("tasks", {}).get("hellaswag", {}).get("completion", {})
    source = (run.environment.get("data") or {}).get("source")
    return {
        "trained": _trained(run, source, step),
        "measured": _measured(run, evaluation, step),
        "dataset": "HuggingFaceFW/fineweb-edu" if source == "fineweb-edu" else None,
        "hellaswag": hellaswag["acc_norm"] if hellaswag.get("total") == HELLASWAG_ITEMS else None,
    }


def _trained(run: Run, source: str | None, step: int) -> Rows:
    """How it came about; the environment is that of the run's last start."""
    settings, environment = run.settings, run.environment
    data, hardware = environment.get("data") or {}, environment.get("hardware") or {}
    tokens, batch = step * settings.train.total_batch_size, settings.train.total_batch_size
    rows = [("data", f"{source or 'not recorded'}, tokenized with GPT-2's byte-pair encoding")]
    passes = f" ({tokens / data['train_tokens']:.2f} times through the training split)" if data else ""
    rows.append(("tokens", f"{tokens:,}{passes}"))
    rows.append(("steps", f"{step:,} of {batch:,} tokens; {settings.train.max_steps:,} were planned"))
    rate = f"learning rate {settings.optimizer.max_lr:g} to {settings.optimizer.min_lr:g}"
    rows.append(("optimizer", f"AdamW, {rate}, weight decay {settings.optimizer.weight_decay:g}"))
    if machine := hardware.get("gpu") or hardware.get("cpu"):
        share = f"{environment['world_size']} x {machine}" if hardware.get("gpu") else machine
        cores = f", {hardware['cores']} cores" if not hardware.get("gpu") else ""
        rows.append(("hardware, of the last start", f"{share}{cores}"))
    times = run.curve("perf/step_ms")
    if len(times.steps):
        seconds = float(times.values[times.steps <= step].sum()) / 1000
        rows.append(("training time, sum of the steps", format_duration(seconds)))
    software = [f"gpt2lab {environment['gpt2lab']}"] if "gpt2lab" in environment else []
    software += [f"commit `{environment['commit']}`"] if environment.get("commit") else []
    software += [f"torch {torch}"] if (torch := (environment.get("versions") or {}).get("torch")) else []
    if software:
        rows.append(("software", ", ".join(software)))
    return rows


def _measured(run: Run, evaluation: dict[str, Any], step: int) -> Rows:
    """Figures of this very step: of `gpt2lab evaluate`, else what training measured."""

    def in_training(key: str) -> float | None:
        curve = run.curve(key)
        found = curve.values[curve.steps == step]
        return float(found[-1]) if len(found) else None

    loss, size = evaluation.get("val_loss"), evaluation.get("bits_per_byte")
    if loss is None:
        loss, size = in_training("val/loss"), in_training("val/bits_per_byte")
    rows = [("validation loss, nats a token", NOT_MEASURED if loss is None else f"{loss:.4f}")]
    if size is not None:
        rows.append(("validation, bits per byte", f"{size:.4f}"))
    tasks = dict(evaluation.get("tasks", {}))
    styles = tasks.pop("hellaswag", {})
    for style, key in (("completion", "hellaswag/acc_norm"), ("harness", "hellaswag/harness_acc_norm")):
        shown = NOT_MEASURED
        if style in styles:
            shown = _shares(styles[style])
        elif (accuracy := in_training(key)) is not None:
            limit = run.settings.train.hellaswag_limit
            shown = f"acc_norm {accuracy:.4f}" + (f", of {limit:,} items" if limit else "")
        rows.append((f"HellaSwag, {style} style", shown))
    return rows + [(f"`{name}`", _shares(figures)) for name, figures in tasks.items()]


def _shares(figures: dict[str, Any]) -> str:
    shown = [f"{key} {figures[key]:.4f}" for key in ("acc", "acc_norm") if isinstance(figures.get(key), float)]
    if "interval95" in figures:
        shown.append("95% interval {:.4f} to {:.4f}".format(*figures["interval95"]))
    shown += [f"{figures['total']:,} items"] if "total" in figures else []
    return ", ".join(shown) or NOT_MEASURED


def _evaluation(folder: Path, step: int) -> dict[str, Any]:
    """What `gpt2lab evaluate` measured at that step, over whole tasks; empty where it has not."""
    path = folder / "evaluations" / f"step_{step:08d}.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise GPT2LabError(f"{path}: not valid JSON: {error}; remove it or evaluate again") from None
    return values if isinstance(values, dict) else {}

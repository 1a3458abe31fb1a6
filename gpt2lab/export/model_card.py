"""The README.md of an exported model, with the recorded results of its run.

config.yaml · environment.json · metrics.jsonl · evaluations/step_NNNNNNNN.json ──▶ values ──▶ model_card.md.j2
"""

from pathlib import Path
from typing import Any

from gpt2lab.config import GPT2Config
from gpt2lab.formatting import format_duration
from gpt2lab.model import flops, resolve
from gpt2lab.model.resolve import ResolvedCheckpoint
from gpt2lab.tracking import records
from gpt2lab.tracking.records import Run

HELLASWAG_ITEMS = 10_042  # published accuracies are for all items


def title_of(name: str, checkpoint: ResolvedCheckpoint) -> str:
    """The title of a model's card: the name of its run, or else of its folder.

    Args:
        name: of the model, as the user gave it.
        checkpoint: of the model.
    """
    return (checkpoint.run or Path(name)).resolve().name


def render(name: str, checkpoint: ResolvedCheckpoint, config: GPT2Config, dtype: str) -> str:
    """Render the card.

    Args:
        name: of the model, as the user gave it.
        checkpoint: of the model; its run has the results.
        config: of the exported weights.
        dtype: of the exported weights.

    Returns:
        Markdown, with the YAML front matter that the Hub reads.

    Raises:
        GPT2LabError: a file of the run is damaged.
    """
    from jinja2 import Environment, FileSystemLoader

    folder, step = checkpoint.run, checkpoint.step
    values: dict[str, Any] = {"run": None}
    if folder is not None and step is not None and (folder / "config.yaml").is_file():
        values = _run_values(records.read(folder), step)
    environment = Environment(  # Markdown needs no escaping
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("model_card.md.j2").render(
        title=title_of(name, checkpoint),
        step=step,
        config=config,
        dtype=dtype,
        parameters=flops.parameters(config),
        **values,
    )


def _run_values(run: Run, step: int) -> dict[str, Any]:
    """The values of the template: of `gpt2lab evaluate` at this step, or else measured in training at this step."""
    evaluation = records.read_json(run.folder / "evaluations" / f"step_{step:08d}.json")
    tasks = evaluation.get("tasks", {})
    hellaswag = tasks.get("hellaswag", {})
    completion = hellaswag.get("completion", {})
    has_loss = evaluation.get("val_loss") is not None
    data = run.environment.get("data") or {}
    tokens = step * run.settings.train.total_batch_size
    times = run.curve("perf/step_ms")
    seconds = float(times.values[times.steps <= step].sum()) / 1000
    return {
        "run": run,
        "source": data.get("source"),
        "base_model": resolve.hub_repository(str(run.origin["from"])) if run.origin else None,
        "tokens": tokens,
        "epochs": tokens / data["train_tokens"] if data else None,
        "training_time": format_duration(seconds) if len(times.steps) else None,
        "val_loss": evaluation["val_loss"] if has_loss else _value_at(run, "val/loss", step),
        "bits_per_byte": evaluation.get("bits_per_byte") if has_loss else _value_at(run, "val/bits_per_byte", step),
        "completion": _format_scores(hellaswag.get("completion"), run, "hellaswag/acc_norm", step),
        "harness": _format_scores(hellaswag.get("harness"), run, "hellaswag/harness_acc_norm", step),
        "tasks": {name: _format_scores(scores) for name, scores in tasks.items() if name != "hellaswag"},
        "hub_score": completion["acc_norm"] if completion.get("total") == HELLASWAG_ITEMS else None,
    }


def _value_at(run: Run, key: str, step: int) -> float | None:
    curve = run.curve(key)
    values = curve.values[curve.steps == step]
    return float(values[-1]) if len(values) else None


def _format_scores(scores: dict[str, Any] | None, run: Run | None = None, key: str = "", step: int = 0) -> str | None:
    """The scores of an evaluation, or else the metric `key` of the run at `step`; None if neither exists."""
    if scores is None and run is not None and (accuracy := _value_at(run, key, step)) is not None:
        limit = run.settings.train.hellaswag_limit
        return f"acc_norm {accuracy:.4f}" + (f", of {limit:,} items" if limit else "")
    scores = scores or {}
    parts = [f"{key} {scores[key]:.4f}" for key in ("acc", "acc_norm", "core") if isinstance(scores.get(key), float)]
    if "interval95" in scores:
        parts.append("95% interval {:.4f} to {:.4f}".format(*scores["interval95"]))
    parts += [f"{scores['total']:,} items"] if "total" in scores else []
    return ", ".join(parts) or None

"""An evaluation as text: tables of the tasks, published results, and the result lines of HellaSwag and CORE."""

import textwrap
from collections.abc import Mapping
from typing import Any

from gpt2lab.evaluation import hellaswag
from gpt2lab.evaluation.baselines import BASELINES, CORE_BASELINES

_WIDTH = 80  # columns of a terminal
_CORE_HEAD = ("CORE task", "examples", "items", "baseline", "acc", "centered")
_HEAD = ("task", "acc", "acc_norm", "95% interval", "chance", "items", "format")


def render(result: dict[str, Any]) -> str:
    """Format an evaluation for a terminal.

    Args:
        result: of `evaluation.run.evaluate`.

    Returns:
        Several lines.
    """
    tasks = {name: figures for name, figures in result["tasks"].items() if name != "core"}
    blocks = []
    scores = [row for name, figures in tasks.items() for row in _split_conventions(name, figures)]
    if scores:
        blocks.append(_columns([_HEAD, *(_row(*score) for score in scores)]))
        blocks[-1] += "\n(the interval is that of acc_norm, or of acc if there is no acc_norm)"
    by_chance = [(name, style) for name, figures, style in scores if not is_above_chance(figures)]
    if by_chance:
        names = ", ".join(f"{name} {style}" if name == "hellaswag" else name for name, style in by_chance)
        line = f"not above chance: {names} (the interval is not above what random answers give)"
        blocks.append(textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    if "hellaswag" in tasks:
        published = [(b.model, _format(b.acc), _format(b.acc_norm), b.convention) for b in BASELINES]
        blocks.append(_columns([("published HellaSwag", "acc", "acc_norm", "format"), *published]))
        blocks[-1] += "\n(docs/evaluation.md has the sources)"
        blocks.append(hellaswag.result_line(tasks["hellaswag"]))
    if "core" in result["tasks"]:
        blocks += _render_core(result["tasks"]["core"], result.get("limit"))
    if result["val_loss"] is not None:
        blocks.append(
            f"validation loss: {result['val_loss']:.4f} ({result['bits_per_byte']:.4f} bits per byte, "
            f"over {result['val_tokens']:,} tokens)"
        )
    return "\n\n".join(blocks)


def _render_core(figures: Mapping[str, Any], limit: int | None) -> list[str]:
    """Published scores, and CORE's tasks with the score in the last line."""
    published = _columns([("published CORE", "score"), *((b.model, _format(b.core)) for b in CORE_BASELINES)])
    rows: list[tuple[str, ...]] = [_CORE_HEAD]
    for label, task in figures["tasks"].items():
        accuracies = (_format(task[key]) for key in ("baseline", "acc", "centered"))
        rows.append((label, str(task["shots"]), str(task["total"]), *accuracies))
    part = f", at most {limit:,} of each task: not comparable" if limit else ""
    score = f"CORE: {figures['core']:.4f} (mean of {len(rows) - 1} centered; {figures['total']:,} items{part})"
    return [f"{published}\n(docs/evaluation.md has the sources)", f"{_columns(rows)}\n{score}"]


def _split_conventions(name: str, figures: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    if name == "hellaswag":
        return [(name, figures[style], style) for style in hellaswag.CONVENTIONS]
    return [(name, figures, figures.get("format", "lm-eval"))]


def _row(name: str, figures: dict[str, Any], style: str) -> tuple[str, ...]:
    interval = "{:.4f}-{:.4f}".format(*figures["interval95"]) if "interval95" in figures else ""
    acc, normed = _format(figures.get("acc")), _format(figures.get("acc_norm"))
    chance = _format(figures.get("chance"))
    return (name, acc, normed, interval, chance, str(figures.get("total", "")), style)


def is_above_chance(figures: Mapping[str, Any]) -> bool:
    """Whether the 95% interval of an accuracy is above that of random answers, also where either is not known.

    Args:
        figures: of a task; `chance` and `interval95` if they are known.
    """
    return "chance" not in figures or "interval95" not in figures or figures["interval95"][0] > figures["chance"]


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _columns(rows: list[tuple[str, ...]]) -> str:
    """A table of at most `_WIDTH` columns: cells of the first column that are too long take several lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], _WIDTH - sum(width + 2 for width in widths[1:]))
    lines = []
    for first, *others in rows:
        start, *rest = textwrap.wrap(first, widths[0])
        lines.append("  ".join(cell.ljust(width) for cell, width in zip((start, *others), widths, strict=True)))
        lines += rest
    return "\n".join(line.rstrip() for line in lines)

"""Where the best learning rate lies at other widths, relative to the rule by which recipes are scaled.

    python benchmarks/rate_transfer.py plan --config quickstart --out rates_adamw.json
    python benchmarks/rate_transfer.py plan --config quickstart_modern --out rates_muon.json
    gpt2lab scaling run rates_adamw.json                   # 20 runs in runs/rates_adamw, of 80 steps each
    gpt2lab scaling run rates_muon.json
    python benchmarks/rate_transfer.py draw runs/rates_adamw --out rates_adamw.png

The models have the depth and the head size of the recipe, and 64 to 512 channels. `optimizer.max_lr` is 1/4 to 4 times
that of the rule (`gpt2lab.scaling.family.scale_rates`). The rates of embedding and head, if the recipe has them, are
those of the rule. `draw` fits a parabola of the loss over log(max_lr) through the lowest point of a width and its two
neighbors; its minimum is the best rate.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2lab import config as settings
from gpt2lab.config import OptimizerConfig
from gpt2lab.scaling.family import scale_rates
from gpt2lab.tracking import plots, records

WIDTHS = (64, 128, 256, 512)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


class Width(NamedTuple):
    """The runs of one width.

    Attributes:
        n_embd: the width.
        rule: `max_lr` by the rule.
        rates: `max_lr` of the runs, increasing.
        losses: their final validation losses.
    """

    n_embd: int
    rule: float
    rates: list[float]
    losses: list[float]

    def best(self) -> float | None:
        """The rate at the minimum of the parabola; None if the lowest loss is that of the first or last rate."""
        lowest = int(np.argmin(self.losses))
        if lowest in (0, len(self.losses) - 1):
            return None
        near = slice(lowest - 1, lowest + 2)
        square, linear, _ = np.polyfit(np.log(self.rates[near]), self.losses[near], 2)
        return math.exp(-linear / (2 * square))


def list_runs(recipe: str, overrides: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a recipe: each width with each factor.

    Args:
        recipe: name or path.
        overrides: settings of all runs.

    Returns:
        Name and settings of each run, as in the file of a plan.
    """
    config = settings.load([recipe], overrides)
    head_size = config.model.n_embd // config.model.n_head
    runs = []
    for width in WIDTHS:
        shape = {"n_embd": width, "n_head": width // head_size}
        rates = scale_rates(config.optimizer, config.model.model_copy(update=shape), config.model.n_embd / width, 1)
        rule = rates["max_lr"]
        assert rule is not None
        for factor in FACTORS:
            changed: dict[str, Any] = {f"model.{key}": value for key, value in shape.items()}
            changed |= {f"optimizer.{key}": value for key, value in rates.items() if value is not None}
            changed["optimizer.max_lr"] = float(f"{rule * factor:.3g}")
            runs.append({"name": f"width_{width}_times_{factor:g}", "settings": changed})
    return runs


def read_widths(folder: Path) -> tuple[OptimizerConfig, list[Width]]:
    """Read the finished runs of a plan.

    Args:
        folder: of the sweep.

    Returns:
        Optimizer settings of one of the runs, and the widths in increasing order.
    """
    runs = [records.read(path.parent) for path in folder.glob("width_*/metrics.jsonl")]
    if not runs:
        raise SystemExit(f"{folder} has no runs of a plan of this script")
    by_width: dict[int, list[tuple[float, float, float]]] = {}
    for run in runs:
        factor = float(run.folder.name.rpartition("_")[2])
        rate, loss = run.settings.optimizer.max_lr, float(run.curve("val/loss").values[-1])
        by_width.setdefault(run.settings.model.n_embd, []).append((rate, loss, rate / factor))
    widths = []
    for n_embd, points in sorted(by_width.items()):
        rates, losses, rules = zip(*sorted(points), strict=True)
        widths.append(Width(n_embd, rules[-1], list(rates), list(losses)))
    return runs[0].settings.optimizer, widths


def format_table(widths: Sequence[Width]) -> str:
    """Markdown: the losses by width and rate, and the best rate."""
    columns = [f"{factor:g} times" for factor in FACTORS]
    lines = ["| width | rule | " + " | ".join(columns) + " | best rate | of the rule |"]
    lines.append("|---:" * (len(columns) + 4) + "|")
    for width in widths:
        best = width.best()
        found = f"{best:.2g} | {best / width.rule:.2f} times" if best else "outside | —"
        losses = " | ".join(f"{loss:.3f}" for loss in width.losses)
        lines.append(f"| {width.n_embd} | {width.rule:.3g} | {losses} | {found} |")
    return "\n".join(lines)


def draw_losses(optimizer: OptimizerConfig, widths: Sequence[Width], path: Path) -> None:
    """Draw the losses over the rate, as a multiple of the rule's.

    Args:
        optimizer: of the runs.
        widths: the runs.
        path: of the PNG file.
    """
    figure, axes = plots.new_axes(f"max_lr of {optimizer.name}, relative to the rule", (520, 340))
    for width, color, marker in zip(widths, plots.COLORS, plots.MARKERS, strict=False):
        relative = np.array(width.rates) / width.rule
        axes.plot(relative, width.losses, color=color, marker=marker, label=f"width {width.n_embd}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(FACTORS, [f"{factor:g}" for factor in FACTORS])
    axes.minorticks_off()
    lowest, highest = (bound(loss for width in widths for loss in width.losses) for bound in (min, max))
    axes.set_ylim(lowest - 0.1, min(highest, lowest + 1.5) + 0.1)  # runs that diverge are not shown
    axes.set_title("Final validation loss", loc="left", color=plots.INK, fontsize=plots.FONT)
    axes.legend(frameon=False, labelcolor=plots.INK)
    figure.savefig(path, dpi=110, facecolor="white")


def main() -> None:
    """Write a plan, or read its runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    plan = actions.add_parser("plan", help="write the file of a plan for gpt2lab scaling run")
    plan.add_argument("--config", required=True, help="the recipe")
    plan.add_argument("--steps", type=int, default=80, help="steps of each run; default: 80")
    plan.add_argument("--source", default="cpython", help="data.source; default: cpython")
    plan.add_argument("--out", type=Path, required=True)
    draw = actions.add_parser("draw", help="read the runs, print their table, draw the losses")
    draw.add_argument("sweep", type=Path)
    draw.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.action == "plan":
        recipe = settings.load([arguments.config], {})
        steps = arguments.steps
        overrides = {
            "data.source": arguments.source,
            "train.max_steps": steps,
            "train.eval_every": steps,
            "train.sample_every": 0,
            "train.eval_tokens": 32768,
            "optimizer.warmup_steps": round(recipe.optimizer.warmup_steps / recipe.train.max_steps * steps),
            "checkpoint.every": steps,
            "checkpoint.keep_best": False,
            "checkpoint.keep_last": 1,
        }
        content = {"config": [arguments.config], "overrides": overrides, "runs": list_runs(arguments.config, overrides)}
        arguments.out.write_text(json.dumps(content, indent=2) + "\n")
        return
    optimizer, widths = read_widths(arguments.sweep)
    print(format_table(widths))
    draw_losses(optimizer, widths, arguments.out)


if __name__ == "__main__":
    main()

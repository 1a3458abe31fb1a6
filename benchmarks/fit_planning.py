"""Fit the constants of the model of speed (gpt2lab/planning/speed.py) to a table of measured runs.

    python benchmarks/fit_planning.py llm_foundry.csv [--splits 20]

The table has the columns that `gpt2lab plan --validate` takes. Printed are the constants from all rows, and the error
when they are fitted to a random half of the rows and tested on the other half. Fitted by scipy's least squares to the
logarithms, with a loss that grows linearly for outliers, of which the tables have several (a row at 45% MFU between
neighbours at 56%).
"""

import argparse
import random
import statistics
from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares

from gpt2lab.planning import speed, validate
from gpt2lab.planning.speed import SHIPPED, Constants, Efficiency
from gpt2lab.system import gpus

OUTLIER = 0.03  # relative error above which a row counts linearly


def constants_of(values: np.ndarray, generations: Sequence[str]) -> Constants:
    """The constants from logarithms: link, width, then matmul and attention by generation."""
    link, width, *rest = map(float, np.exp(values))
    pairs = zip(rest[::2], rest[1::2], strict=True)
    fitted = {name: Efficiency(*pair, width) for name, pair in zip(generations, pairs, strict=True)}
    return Constants({**SHIPPED.efficiency, **fitted}, link)


def fit(rows: Sequence[validate.Row]) -> Constants:
    """Fit link, width and the efficiencies of each generation in the rows."""
    generations = sorted({row.gpu.generation for row in rows})

    def residuals(values: np.ndarray) -> list[float]:
        constants = constants_of(values, generations)
        return [
            np.log(row.work.step_tokens / speed.step_time(row.work, row.gpu, constants).seconds / row.tokens_per_second)
            for row in rows
        ]

    start = np.log([0.6, 800.0] + [0.8, 0.2] * len(generations))
    return constants_of(least_squares(residuals, start, loss="soft_l1", f_scale=OUTLIER).x, generations)


def check_halves(rows: Sequence[validate.Row], seed: int) -> tuple[list[float], dict[str, float | int]]:
    """Fit a random half of the rows; return the errors of the other half, and their summary."""
    order = random.Random(seed).sample(rows, len(rows))
    half = len(rows) // 2
    errors = validate.errors(order[half:], fit(order[:half]))
    return errors, validate.summarize(errors)


def main() -> None:
    """Print the constants and the errors."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table")
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args()
    rows = validate.read(options.table, gpus.load())
    constants = fit(rows)
    for name, (matmul, attention, width) in constants.efficiency.items():
        print(f"{name:9} matmul {matmul:.3f}  attention {attention:.3f}  width {width:.0f}")
    print(f"link {constants.link:.3f}")
    summary = validate.summarize(validate.errors(rows, constants))
    print(f"all {len(rows)} rows: median {summary['median_error']:.2%}, p90 {summary['p90_error']:.2%}")
    tested, summaries = [], []
    for seed in range(options.splits):
        errors, summary = check_halves(rows, seed)
        tested += errors
        summaries.append(summary)
        print(f"  split {seed:2}: median {summary['median_error']:.2%}, p90 {summary['p90_error']:.2%}", flush=True)
    pooled = validate.summarize(tested)
    for key in ("median_error", "p90_error"):
        values = [summary[key] for summary in summaries]
        print(f"{key}: pooled {pooled[key]:.2%}, mean {statistics.mean(values):.2%}, worst split {max(values):.2%}")


if __name__ == "__main__":
    main()

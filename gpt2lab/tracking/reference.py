"""Published curves of GPT-2 124M (reference_curves.yaml), and whether a run is inside their band, ahead or behind.

The band at a number of tokens reaches from the lowest to the highest value of the published runs there, each
interpolated linearly over the logarithm of the tokens, and a margin beyond both: 1% of a loss, and 1.96 standard errors
of an accuracy.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2lab.config import yaml_format
from gpt2lab.formatting import format_count
from gpt2lab.tracking.records import Run

PARAMETERS, SIZE_TOLERANCE = 124_439_808, 0.03  # a vocabulary of 50,304 adds 0.03%
BLOCK_SIZE = 1024  # with another context the same model has another loss
LOSS_MARGIN = 0.01
HELLASWAG_ITEMS = 10_042
BEYOND = 1.02  # a run of the same length may end a little after the last measurement of a log

DATA_SETS = {"fineweb-edu": "FineWeb-Edu", "fineweb": "FineWeb"}
# First words of the shards' names: of ours and build-nanogpt's, llm.c's FineWeb-Edu, and llm.c's FineWeb.
_SHARDS = {"edufineweb_": "fineweb-edu", "edu_fineweb_": "fineweb-edu", "fineweb_": "fineweb"}
_KEYS = {"val/loss": "validation_loss", "hellaswag/acc_norm": "hellaswag"}
_NAMES = {"val/loss": "validation loss", "hellaswag/acc_norm": "HellaSwag"}


class Band(NamedTuple):
    """The range of published values: tokens in ascending order, lower and upper end, float64 (N,) each."""

    tokens: np.ndarray
    low: np.ndarray
    high: np.ndarray


class _Curve(NamedTuple):
    data: str
    tokens: np.ndarray
    values: np.ndarray


@functools.cache
def _curves(key: str) -> Sequence[_Curve]:
    """The published curves of a metric."""
    table = yaml_format.read(Path(__file__).with_name("reference_curves.yaml"))
    curves = []
    for log in table.values():
        if points := log.get(_KEYS[key]):
            tokens = np.array(list(points), float) * log["tokens_per_step"]
            curves.append(_Curve(log["data"], tokens, np.array(list(points.values()), float)))
    return curves


def find_data_set(run: Run) -> str | None:
    """The data set that a run was trained and validated on, by the names of its shards, or else its source.

    Args:
        run: the run.

    Returns:
        A key of `DATA_SETS`; None for other data.
    """
    data = run.environment.get("data")
    data = data if isinstance(data, Mapping) else {}
    if data.get("held_out"):  # other tokens than those that the published losses are for
        return None
    shard = str(data.get("val_shard") or "")
    if by_name := next((name for start, name in _SHARDS.items() if shard.startswith(start)), None):
        return by_name
    is_known = bool(data.get("source")) or not shard  # otherwise the source is only what the recipe expects
    source = run.source.partition("/")[0]
    return source if is_known and source in DATA_SETS else None


def is_comparable(run: Run) -> bool:
    """Whether there are published curves for the size, the context and the data of a run.

    Args:
        run: the run.
    """
    parameters = run.environment.get("parameters")
    return (
        isinstance(parameters, int)
        and abs(parameters / PARAMETERS - 1) <= SIZE_TOLERANCE
        and run.settings.model.block_size == BLOCK_SIZE
        and find_data_set(run) is not None
    )


def build_band(data_set: str, key: str, items: int = HELLASWAG_ITEMS) -> Band:
    """The band of a metric, at the tokens of all published measurements.

    Args:
        data_set: a key of `DATA_SETS`.
        key: `val/loss` or `hellaswag/acc_norm`.
        items: number of HellaSwag items that were measured, for the standard error.

    Returns:
        The band.
    """
    curves = [curve for curve in _curves(key) if curve.data == data_set]
    tokens = np.unique(np.concatenate([np.append(curve.tokens, curve.tokens[-1] * BEYOND) for curve in curves]))
    values = np.array([np.interp(np.log(tokens), np.log(curve.tokens), curve.values) for curve in curves])
    for row, curve in zip(values, curves, strict=True):
        row[tokens > curve.tokens[-1] * BEYOND] = np.nan
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    if key == "val/loss":
        return Band(tokens, low * (1 - LOSS_MARGIN), high * (1 + LOSS_MARGIN))
    return Band(tokens, low - 1.96 * (low * (1 - low) / items) ** 0.5, high + 1.96 * (high * (1 - high) / items) ** 0.5)


def band_of(run: Run, key: str) -> Band | None:
    """The band to compare a metric of a run with.

    Args:
        run: the run.
        key: `val/loss` or `hellaswag/acc_norm`.

    Returns:
        The band; None if there are no published curves for the run.
    """
    data_set = find_data_set(run)
    if data_set is None or not is_comparable(run):
        return None
    return build_band(data_set, key, run.settings.train.hellaswag_limit or HELLASWAG_ITEMS)


def compare(run: Run, key: str) -> str:
    """Say whether the last measurement of a run that can be compared is inside the band, ahead or behind.

    Args:
        run: the run.
        key: `val/loss` or `hellaswag/acc_norm`.

    Returns:
        A line without a period; empty if nothing can be compared.
    """
    band = band_of(run, key)
    if band is None:
        return ""
    steps, values = run.curve(key)
    tokens = steps * run.tokens_per_step
    inside = (tokens >= band.tokens[0]) & (tokens <= band.tokens[-1])
    if not inside.any():
        return ""
    at, value = tokens[inside][-1], values[inside][-1]
    low, high = (float(np.interp(np.log(at), np.log(band.tokens), end)) for end in (band.low, band.high))
    ahead, behind = (value < low, value > high) if key == "val/loss" else (value > high, value < low)
    place = "ahead of" if ahead else "behind" if behind else "within"
    digits = ".3f" if key == "val/loss" else ".4f"
    return (
        f"{_NAMES[key]} {value:{digits}} after {format_count(at)} tokens: {place} the band of published GPT-2 124M "
        f"runs on {DATA_SETS[str(find_data_set(run))]} ({low:{digits}} to {high:{digits}})"
    )

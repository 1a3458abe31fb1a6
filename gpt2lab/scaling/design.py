"""Designs the runs of a scaling fit: sizes on both sides of the expected minimum, for each of several computes."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2lab.config import Config
from gpt2lab.config.architecture import SHAPE
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import format_count
from gpt2lab.model import flops
from gpt2lab.scaling import family
from gpt2lab.scaling.family import Design
from gpt2lab.scaling.forms import Law
from gpt2lab.scaling.points import Counted, count_parameters

TOKENS_PER_PARAMETER = 20.0  # of Chinchilla, where nothing better is known
_SPACING = 2.0  # ratio of neighbouring sizes of one compute
_FEWEST_STEPS = 100  # below, a run is mostly warm-up


def plan(
    config: Config, budget: tuple[float, float], runs: int, counted: Counted, law: Law | None, ratio: float
) -> tuple[list[Design], list[str]]:
    """Design the runs.

    Args:
        config: the recipe that the runs are scaled from.
        budget: lowest and highest FLOPs of a run.
        runs: at most so many.
        counted: what N counts.
        law: a fit of earlier runs, whose optimum is in the middle of the sizes; None: use `ratio`.
        ratio: tokens a parameter in the middle of the sizes.

    Returns:
        The runs in increasing FLOPs and size, and warnings about them.

    Raises:
        GPT2LabError: the range of FLOPs is too narrow or too low for different runs, or the family has too few sizes.
    """
    low, high = budget
    if high < 4 * low:
        raise GPT2LabError(f"--flops {low:g}:{high:g}: the highest must be at least 4 times the lowest")
    computes = math.isqrt(runs)
    models = list(family.list_models(config.model))
    sizes = np.log([count_parameters(config.model_copy(update={"model": model}))[counted] for model in models])
    designs, warnings = [], []
    for compute in np.geomspace(low, high, computes):
        centre = law.optimum(compute)[0] if law else math.sqrt(compute / 6 / ratio)
        chosen = _choose(sizes, math.log(centre), runs // computes)
        scaled = [
            family.scale(config, models[index], compute / flops.flops_per_token(models[index]), counted)
            for index in chosen
        ]
        designs += scaled
        if sizes[chosen[0]] > math.log(centre):
            warnings.append(
                f"{compute:.2g} FLOPs: the expected optimum of {format_count(centre)} parameters is below the smallest "
                "size of the family: if so, the minimum is at the edge (--tokens-per-parameter, --model.vocab_size)"
            )
        if short := [design for design in scaled if design.config.train.max_steps < _FEWEST_STEPS]:
            warnings.append(f"{compute:.2g} FLOPs: {len(short)} runs have fewer than {_FEWEST_STEPS} steps")
    names = Counter(map(name_run, designs))
    if repeated := [name for name, count in names.items() if count > 1]:
        raise GPT2LabError(
            f"--flops {low:g}:{high:g} --runs {runs} gives only {len(names)} different runs ({repeated[0]} is there "
            f"{names[repeated[0]]} times); raise --flops, or widen its range"
        )
    return designs, warnings


def _choose(sizes: "np.ndarray", centre: float, count: int) -> list[int]:
    """Indices of `count` distinct sizes around `centre`, in log N, nearest to the intended spacing."""
    if len(sizes) < count:
        raise GPT2LabError(f"the family of the recipe has {len(sizes)} sizes, fewer than {count}")
    targets = centre + math.log(_SPACING) * (np.arange(count) - (count - 1) / 2)
    chosen: list[int] = []
    for target in targets:
        free = [index for index in range(len(sizes)) if index not in chosen]
        chosen.append(min(free, key=lambda index: abs(sizes[index] - target)))
    return sorted(chosen)


def to_json(designs: Sequence[Design], warnings: Sequence[str], speed: float | None) -> dict[str, Any]:
    """The plan as a JSON object: each run with its name and the settings that make it.

    Args:
        designs: the runs.
        warnings: about them.
        speed: FLOP/s of training; None if it is not known.

    Returns:
        The object.
    """
    rows = [
        {
            "name": name_run(design),
            "parameters": design.parameters,
            "tokens": design.tokens,
            "flops": design.flops,
            "seconds": design.flops / speed if speed else None,
            "settings": changed_settings(design),
        }
        for design in designs
    ]
    total = sum(design.flops for design in designs)
    return {"runs": rows, "flops": total, "seconds": total / speed if speed else None, "warnings": list(warnings)}


def read(path: str) -> dict[str, Any]:
    """Read the file of a plan.

    Args:
        path: written by `gpt2lab scaling plan --out`.

    Returns:
        Its content: `config`, `overrides`, and `runs` with their names and settings.

    Raises:
        GPT2LabError: the file does not exist or is no plan.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise GPT2LabError(f"{path}: {error.strerror}; write a plan with gpt2lab scaling plan --out {path}") from None
    except (ValueError, RecursionError):
        content = None
    if not (isinstance(content, dict) and _is_plan(content)):
        raise GPT2LabError(f"{path} is no plan; write one with gpt2lab scaling plan --out FILE")
    return content


def is_plan_file(path: Path) -> bool:
    """Whether a file is a plan.

    Args:
        path: of a file that exists.
    """
    try:
        return bool(read(str(path)))
    except GPT2LabError:
        return False


def _is_plan(content: Mapping[str, Any]) -> bool:
    recipes, overrides, runs = (content.get(key) for key in ("config", "overrides", "runs"))
    return (
        isinstance(recipes, list)
        and all(isinstance(recipe, str) for recipe in recipes)
        and isinstance(overrides, dict)
        and isinstance(runs, list)
        and bool(runs)
        and all(isinstance(run, dict) for run in runs)
        and all(isinstance(run.get("name"), str) and isinstance(run.get("settings"), dict) for run in runs)
    )


_CHANGED = (
    *(f"model.{key}" for key in SHAPE),
    *(f"train.{key}" for key in ("max_steps", "total_batch_size", "micro_batch_size")),
    *(f"optimizer.{key}" for key in ("max_lr", "min_lr", "embedding_lr", "head_lr", "warmup_steps")),
)


def changed_settings(design: Design) -> dict[str, Any]:
    """The settings in which a run differs from the recipe that it was scaled from, by dotted name."""
    return {key: value for key, value in design.config.flat().items() if key in _CHANGED}


def name_run(design: Design) -> str:
    """By compute, width and depth: `c1.0e13_w64_l2`."""
    model = design.config.model
    return f"c{design.flops:.1e}_w{model.n_embd}_l{model.n_layer}".replace("+", "")

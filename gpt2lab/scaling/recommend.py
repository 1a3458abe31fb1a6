"""Recommends a size, tokens, batch and learning rate for a given compute, as a recipe that `gpt2lab train` takes."""

import math
import re
from typing import NamedTuple

from gpt2lab.config import Config, GPT2Config, yaml_format
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import format_count, plural
from gpt2lab.model import flops
from gpt2lab.planning.loss import BESIROGLU
from gpt2lab.scaling import family
from gpt2lab.scaling.family import Design
from gpt2lab.scaling.forms import Law
from gpt2lab.scaling.points import Counted, count_parameters
from gpt2lab.system import gpus

CHINCHILLA = Law(*BESIROGLU[:5])
FIRST_LINE = re.compile(rb"\A# Scaled from [^\n]* by `gpt2lab scaling recommend`\.\n")  # of a recipe


def flops_of_gpu_hours(hours: float, gpu: str, mfu: float) -> float:
    """The FLOPs that GPUs compute in some hours.

    Args:
        hours: of all GPUs together.
        gpu: name in the planner's table, such as A100.
        mfu: share of the peak in bf16, or in fp16 where there is no bf16, that training reaches.

    Raises:
        GPT2LabError: the table does not have the GPU.
    """
    return hours * 3600 * gpus.find(gpu, gpus.load()).mixed_precision_flops() * mfu


class _Candidate(NamedTuple):
    """A size, the loss predicted for it, and its tokens a parameter."""

    model: GPT2Config
    loss: float
    ratio: float


def _consider(model: GPT2Config, config: Config, compute: float, law: Law, counted: Counted) -> _Candidate:
    n = count_parameters(config.model_copy(update={"model": model}))[counted]
    d = compute / flops.flops_per_token(model)
    return _Candidate(model, float(law.loss(n, d)), d / n)


def recommend(
    config: Config, compute: float, law: Law, counted: Counted, ratios: tuple[float, float] = (0, math.inf)
) -> tuple[Design, list[str]]:
    """Choose the model of a recipe's family that the law predicts the lowest loss for.

    A law is trusted at more compute than its runs had, but not at another ratio of tokens and parameters: it does not
    know how models end that are trained far longer, relative to their size (docs/scaling.md has an example).

    Args:
        config: the recipe that the run is scaled from.
        compute: FLOPs of the run.
        law: of the loss.
        counted: what N counts.
        ratios: lowest and highest tokens a parameter of the runs that the law was fitted to.

    Returns:
        The run, and a warning if the law's optimum has another ratio than those runs.

    Raises:
        GPT2LabError: the compute is for a larger model than the largest of the family.
    """
    candidates = [_consider(model, config, compute, law, counted) for model in family.list_models(config.model)]
    low, high = ratios
    within = [each for each in candidates if low <= each.ratio <= high]
    chosen = best = min(candidates, key=lambda each: each.loss)
    warnings = []
    if within and best not in within:
        chosen = min(within, key=lambda each: each.loss)
        warnings.append(
            f"the law's optimum has {best.ratio:.3g} tokens a parameter, and its runs had {low:.2g} to {high:.2g}: "
            f"chose the best size within that range; plan runs of smaller and larger models"
        )
    if chosen is candidates[-1]:
        raise GPT2LabError(
            f"{compute:.2g} FLOPs are for a larger model than the recipe's family has: at most "
            f"{format_count(flops.parameters(chosen.model))} parameters"
        )
    return family.scale(config, chosen.model, compute / flops.flops_per_token(chosen.model), counted), warnings


def write_recipe(design: Design, origin: str, comments: list[str]) -> str:
    """The recipe as YAML, with its arithmetic in comments.

    Args:
        design: the run.
        origin: name of the recipe that it was scaled from.
        comments: lines about the law and the prediction.

    Returns:
        The text of the file.
    """
    config = design.config
    train, block = config.train, config.model.block_size
    batch = train.total_batch_size
    lines = [
        f"Scaled from {origin} by `gpt2lab scaling recommend`.",
        "",
        f"  {plural(batch // block, 'sequence')} x {block:,} tokens = {batch:,} tokens a step",
        f"  {plural(train.max_steps, 'step')} x {batch:,} = {format_count(design.tokens)} tokens",
        f"  {design.parameters:,} parameters as counted by the law, {flops.parameters(config.model):,} in all",
        f"  {design.flops:.3g} FLOPs",
        "",
        *comments,
        f"Rates: docs/scaling.md, from {origin}.",
    ]
    settings = config.model_dump(exclude_unset=True, exclude={"run"})
    settings["model"] = config.model.model_dump(exclude={"size"})
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + yaml_format.dump(settings)

"""Models of other sizes than a recipe's, and the settings that go with them.

The rule: the depth grows with the width, heads keep their size; tokens a step grow with tokens^0.383 (Bergsma et al.
2025, "Power Lines"); the learning rate falls with 1 / width, as in table 2.1 of the GPT-3 paper, and grows with the
square root of the tokens a step (Malladi et al. 2022); warm-up stays the same share of the steps.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gpt2lab.config import SIZES, Config, GPT2Config
from gpt2lab.config.architecture import SHAPE
from gpt2lab.model import flops
from gpt2lab.scaling import points
from gpt2lab.scaling.points import Counted

BATCH_EXPONENT = 0.383
_WIDEST = 256  # heads; 16,384 channels for heads of 64


@dataclass(frozen=True)
class Design:
    """A run that is planned or recommended.

    Attributes:
        config: its settings.
        parameters: N, as counted.
        tokens: D, those of all steps.
        flops: of its training.
    """

    config: Config
    parameters: int
    tokens: int
    flops: float


def list_models(model: GPT2Config) -> Iterator[GPT2Config]:
    """Models like `model` with other widths, from one head to `_WIDEST`, in increasing width.

    Args:
        model: whose head size, depth a width, context and vocabulary the others have. With heads of 64 channels,
            GPT-2's published sizes are among them.

    Yields:
        The models.
    """
    head_size = model.n_embd // model.n_head
    shapes = {
        (max(1, round(model.n_layer * heads / model.n_head)), heads, head_size * heads) for heads in range(1, _WIDEST)
    }
    if head_size == 64:
        shapes |= set(SIZES.values())
    for shape in sorted(shapes, key=lambda shape: (shape[2], shape[0])):
        size = next((name for name, published in SIZES.items() if published == shape), None)
        yield model.model_copy(update={"size": size, **dict(zip(SHAPE, shape, strict=True))})


def scale(config: Config, model: GPT2Config, tokens: float, counted: Counted) -> Design:
    """Scale a recipe to another model and number of tokens, by the rule of this module.

    Args:
        config: the recipe.
        model: the architecture.
        tokens: to train on.
        counted: what N counts.

    Returns:
        The run; its tokens are a whole number of steps.
    """
    base, block = config.train.total_batch_size, config.model.block_size
    wanted = base / block * (tokens / (config.train.max_steps * base)) ** BATCH_EXPONENT
    batch = block * _round_to_divisible(wanted)
    steps = max(1, round(tokens / batch))
    rate = config.model.n_embd / model.n_embd * math.sqrt(batch / base)
    warmup = round(config.optimizer.warmup_steps / config.train.max_steps * steps)
    optimizer = {
        "max_lr": float(f"{config.optimizer.max_lr * rate:.3g}"),
        "min_lr": float(f"{config.optimizer.min_lr * rate:.3g}"),
        "warmup_steps": warmup,
    }
    train = {"max_steps": steps, "total_batch_size": batch, "micro_batch_size": "auto"}
    scaled = config.model_copy(
        update={
            "model": model,
            "train": config.train.model_copy(update=train),
            "optimizer": config.optimizer.model_copy(update=optimizer),
        }
    )
    trained = steps * batch
    return Design(scaled, points.count_parameters(scaled)[counted], trained, flops.flops_per_token(model) * trained)


def _round_to_divisible(sequences: float) -> int:
    """The nearest of 1, 2, 3, 4, 6, 8, 12, 16, ...: numbers that many counts of devices divide."""
    power = 2 ** max(0, math.floor(math.log2(sequences))) if sequences > 1 else 1
    return min((power, power * 3 // 2, power * 2), key=lambda candidate: abs(math.log(candidate / sequences)))

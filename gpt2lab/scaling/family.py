"""Models of other sizes than a recipe's, and the settings that go with them.

The rule: the depth grows with the width, and is at least 2; the width is at least 32; heads keep their size; tokens a
step grow with tokens^0.383 (Bergsma et al. 2025, "Power Lines"); warm-up stays the same share of the steps. All
learning rates grow with the square root of the tokens a step (Malladi et al. 2022), and depend on the width:

    AdamW (max_lr)           1 / width, as in table 2.1 of the GPT-3 paper; down to 32 channels in docs/lab-notes.md
    Muon (max_lr)            none (nanochat)
    embedding_lr             none (Yang et al. 2022, "Tensor Programs V", table 3)
    head_lr                  1 / width (the same)

nanochat lowers both with 1 / sqrt(width); docs/lab-notes.md compares the two at 256 channels.

A single layer cannot learn to repeat what followed an earlier occurrence of a token (Olsson et al. 2022, "In-context
learning and induction heads"), and the rank of the logits is at most the width (Yang et al. 2018, "Breaking the softmax
bottleneck"). So the losses of smaller models are not on one curve with those of larger ones: docs/scaling.md.

AdamW's rate stays below `HIGHEST_ADAMW_LR`. Without normalized queries and keys, high rates make the attention logits
of small models diverge as well (Wortsman et al. 2023). The number is a choice of this project.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gpt2lab.config import SIZES, Config, GPT2Config, OptimizerConfig
from gpt2lab.config.architecture import SHAPE
from gpt2lab.model import flops
from gpt2lab.scaling import points
from gpt2lab.scaling.points import Counted

BATCH_EXPONENT = 0.383
HIGHEST_ADAMW_LR = 2e-2  # or the recipe's own rate, if that is higher
_FEWEST_LAYERS, _FEWEST_CHANNELS = 2, 32  # or the recipe's own, if those are fewer
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
    """Models like `model` with other widths, up to `_WIDEST` heads, in increasing width.

    Args:
        model: whose head size, depth a width, context and vocabulary the others have. With heads of 64 channels,
            GPT-2's published sizes are among them.

    Yields:
        The models.
    """
    head_size = model.n_embd // model.n_head
    fewest = min(_FEWEST_LAYERS, model.n_layer)
    shapes = {
        (max(fewest, round(model.n_layer * heads / model.n_head)), heads, head_size * heads)
        for heads in range(1, _WIDEST)
        if head_size * heads >= min(_FEWEST_CHANNELS, model.n_embd)
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
    warmup = round(config.optimizer.warmup_steps / config.train.max_steps * steps)
    rates = scale_rates(config.optimizer, model, config.model.n_embd / model.n_embd, batch / base)
    optimizer = {**rates, "warmup_steps": warmup}
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


def scale_rates(
    optimizer: OptimizerConfig, model: GPT2Config, narrowing: float, batch_growth: float
) -> dict[str, float | None]:
    """Scale the learning rates to another width and batch.

    Args:
        optimizer: of the recipe.
        model: the architecture to scale to.
        narrowing: width of the recipe's model, divided by that of `model`.
        batch_growth: tokens of a step, divided by those of the recipe.

    Returns:
        Settings of the optimizer by name, rounded to three digits.
    """
    growth = math.sqrt(batch_growth)
    head = optimizer.head_lr
    if optimizer.name == "muon":
        highest = optimizer.max_lr * growth
        if head is None and not model.tie_word_embeddings and narrowing != 1:
            head = optimizer.max_lr  # which null stands for, and which does not depend on the width
    else:
        highest = min(optimizer.max_lr * narrowing * growth, max(HIGHEST_ADAMW_LR, optimizer.max_lr))
    rates: dict[str, float | None] = {
        "max_lr": highest,
        "min_lr": optimizer.min_lr * highest / optimizer.max_lr,
        "embedding_lr": optimizer.embedding_lr and optimizer.embedding_lr * growth,
        "head_lr": head and head * narrowing * growth,
    }
    return {name: rate and float(f"{rate:.3g}") for name, rate in rates.items()}


def _round_to_divisible(sequences: float) -> int:
    """The nearest of 1, 2, 3, 4, 6, 8, 12, 16, ...: numbers that many counts of devices divide."""
    power = 2 ** max(0, math.floor(math.log2(sequences))) if sequences > 1 else 1
    return min((power, power * 3 // 2, power * 2), key=lambda candidate: abs(math.log(candidate / sequences)))

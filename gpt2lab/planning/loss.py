"""The loss that a published scaling law expects of a recipe, for an idea of what the time and the money buy.

    L(N, D) = E + A N^-alpha + B D^-beta

N counts the parameters in matrix products (blocks and output head), D the tokens. The law was fitted to training runs
on other data than those of the recipes, with another tokenizer, so it is not a prediction: `gpt2lab scaling` makes one
from runs of your own.
"""

from typing import NamedTuple

from gpt2lab.config import Config
from gpt2lab.model import flops
from gpt2lab.planning.speed import Range


class Published(NamedTuple):
    """The constants of a law, and what it was fitted to."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    source: str
    data: str
    parameters: tuple[float, float]  # of the runs
    tokens: tuple[float, float]


# "Chinchilla Scaling: A replication attempt": approach 3, fitted to the points of Hoffmann et al. 2022.
BESIROGLU = Published(
    E=1.8172,
    A=482.01,
    alpha=0.3478,
    B=2085.43,
    beta=0.3658,
    source="Chinchilla's law (Besiroglu et al. 2024)",
    data="MassiveText, a tokenizer of 32,000 tokens",
    parameters=(4e7, 2e10),
    tokens=(2e8, 2e12),
)

# Of the law. Published runs of GPT-2 124M with 10B tokens end 1% to 9% above it: at 3.04 to 3.11 on FineWeb-Edu, and at
# 3.27 to 3.28 on FineWeb (tracking/reference_curves.yaml).
SPREAD = 1.1
_LARGE = {"fineweb-edu": 10e9, "fineweb": 10e9}  # tokens of the samples in the default directories
_EPOCHS = 4.0  # up to which repeated tokens are worth nearly as much as new ones (Muennighoff et al. 2023)


def expect(config: Config, train_tokens: float | None = None) -> Range | None:
    """The final loss that the law expects.

    Args:
        config: the recipe.
        train_tokens: of the training split, if it is known.

    Returns:
        Nats per token with a range; None where the law says nothing: a corpus that is repeated many times or whose size
        is not known, weights to start from, or a model or a number of tokens far from those of its runs.
    """
    model, law = config.model, BESIROGLU
    parameters = (flops.flops_per_token(model) - 12 * model.n_layer * model.n_embd * model.block_size) / 6
    tokens = float(config.train.max_steps * config.train.total_batch_size)
    if train_tokens is None and config.data.dir is None:
        if config.data.source not in _LARGE:
            return None
        train_tokens = _LARGE[config.data.source]
    if train_tokens is not None and tokens > _EPOCHS * train_tokens:
        return None
    within = law.parameters[0] <= parameters <= law.parameters[1] and law.tokens[0] <= tokens <= law.tokens[1]
    if not within or config.train.overfit_batch or config.train.init_from is not None:
        return None
    loss = law.E + law.A * parameters**-law.alpha + law.B * tokens**-law.beta
    return Range(loss, loss / SPREAD, loss * SPREAD)

"""The learning rate as a function of the step."""

import math

from gpt2lab.config import OptimizerConfig


def learning_rate(step: int, max_steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then half a cosine from `max_lr` to `min_lr`, as in the GPT-3 paper (appendix B).

    The schedule `linear` is constant after the warm-up, and linear over the last `decay_fraction` of the steps (Zhai et
    al. 2022, "Scaling vision transformers"). Runs of any length share its constant part.

    Args:
        step: the optimizer step about to be taken, counted from 1.
        max_steps: the step that has `min_lr`.
        config: the step `warmup_steps` has `max_lr`, the first has `max_lr / warmup_steps`.

    Returns:
        The learning rate of the step.
    """
    if step <= config.warmup_steps:
        return config.max_lr * step / config.warmup_steps
    if config.schedule == "linear":
        share = min(1.0, (max_steps - step) / (max_steps * config.decay_fraction))
        return config.min_lr + share * (config.max_lr - config.min_lr)
    progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.min_lr + cosine * (config.max_lr - config.min_lr)


def constant_steps(max_steps: int, decay_fraction: float) -> int:
    """Return the last step before the schedule `linear` lowers the learning rate.

    Args:
        max_steps: of the run.
        decay_fraction: share of them over which the learning rate falls.
    """
    return int(max_steps * (1 - decay_fraction) + 1e-9)  # 10 * (1 - 0.9) is 0.9999999999999998

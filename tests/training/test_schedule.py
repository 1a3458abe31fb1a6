"""The learning rate's shape, at the places where it could be off by one."""

import pytest

from gpt2lab.config import OptimizerConfig
from gpt2lab.training.schedule import learning_rate

CONFIG = OptimizerConfig(max_lr=6e-4, min_lr=6e-5, warmup_steps=715)


def test_first_last_and_middle_learning_rates():
    assert learning_rate(1, 19073, CONFIG) == pytest.approx(6e-4 / 715)
    assert learning_rate(715, 19073, CONFIG) == pytest.approx(6e-4)
    assert learning_rate(19073, 19073, CONFIG) == pytest.approx(6e-5)
    middle = 715 + (19073 - 715) // 2
    assert learning_rate(middle, 19073, CONFIG) == pytest.approx((6e-4 + 6e-5) / 2)


def test_the_learning_rate_rises_then_falls():
    rates = [learning_rate(step, 19073, CONFIG) for step in range(1, 19074)]
    peak = rates.index(max(rates))
    assert peak == 714
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_no_warmup_and_warmup_beyond_the_end():
    assert learning_rate(1, 1, CONFIG.model_copy(update={"warmup_steps": 0})) == pytest.approx(6e-5)
    assert learning_rate(10, 10, CONFIG) == pytest.approx(6e-4 * 10 / 715)

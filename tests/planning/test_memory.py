"""Estimated memory against what torch allocates, on a CPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from gpt2lab.config import GPT2Config, OptimizerConfig
from gpt2lab.model import pretrained
from gpt2lab.planning import memory
from gpt2lab.planning.memory import GIB, Layout
from gpt2lab.system.precision import Precision
from gpt2lab.training import optimizer
from tests.planning.helpers import AllocationCounter

# Large enough that what is not counted (indices, the causal mask, statistics of layer norms) is small.
WIDE = GPT2Config(n_layer=4, n_head=4, n_embd=256, block_size=128, vocab_size=2048)
DEEP = GPT2Config(n_layer=10, n_head=2, n_embd=128, block_size=64, vocab_size=1024)
WORDY = GPT2Config(n_layer=2, n_head=2, n_embd=128, block_size=64, vocab_size=8192)


def measure_peak(config: GPT2Config, layout: Layout) -> int:
    """Bytes that torch allocates at most in a training step after the first."""
    model = pretrained.build(config)
    model.trunk.activation_checkpointing = layout.checkpointing
    idx = torch.zeros(layout.micro_batch_size, config.block_size, dtype=torch.int64)
    kind: Any = layout.precision
    precision = Precision(kind, "cpu")
    name: Any = "muon" if layout.muon else "adamw"
    optimizers = optimizer.build(model, OptimizerConfig(name=name), None, precision.dtype)
    with AllocationCounter(model) as counter:
        for _ in range(2):
            counter.peak = 0
            for _ in range(layout.grad_accum_steps):
                with precision.autocast():
                    loss = model(idx, idx)[1]
                loss.backward()
                del loss
            for each in optimizers:
                each.step()
                each.zero_grad(set_to_none=True)
    return counter.peak


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("config", "batch", "steps"),
    [(WIDE, 8, 1), (WIDE, 2, 2), (DEEP, 16, 2), pytest.param(DEEP, 32, 2, marks=pytest.mark.slow), (WORDY, 16, 1)],
)
def test_estimate_is_what_torch_allocates(config, batch, steps, precision, checkpointing):
    layout = Layout(batch, steps, precision=precision, checkpointing=checkpointing, compiled=False, device="cpu")
    estimated = memory.estimate(config, layout)
    assert estimated.total - estimated.process == pytest.approx(measure_peak(config, layout), rel=0.05)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("config", "batch", "steps", "checkpointing", "muon"),
    [
        (WIDE, 8, 1, False, False),
        pytest.param(DEEP, 32, 2, True, False, marks=pytest.mark.slow),
        (WORDY, 16, 1, False, True),
        (WIDE, 1, 1, False, True),
    ],
)
def test_the_modern_architecture(config, batch, steps, checkpointing, muon, precision):
    modern = config.model_copy(update={"architecture": "modern", "tie_word_embeddings": False})
    layout = Layout(
        batch, steps, precision=precision, checkpointing=checkpointing, compiled=False, device="cpu", muon=muon
    )
    estimated = memory.estimate(modern, layout)
    assert estimated.total - estimated.process == pytest.approx(measure_peak(modern, layout), rel=0.05)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("config", [WIDE, DEEP])
def test_muon_with_gpt2(config, precision):
    layout = Layout(1, precision=precision, compiled=False, device="cpu", muon=True)
    estimated = memory.estimate(config, layout)
    assert estimated.total - estimated.process == pytest.approx(measure_peak(config, layout), rel=0.05)


def test_sharding_divides_weights_gradients_and_optimizer():
    alone, sharded = (
        memory.estimate(GPT2Config(size="xl"), Layout(1, 2, gpus=8, shard=shard)) for shard in (False, True)
    )
    assert sharded.optimizer == alone.optimizer / 8
    assert sharded.gradients == alone.gradients / 8
    assert sharded.activations == alone.activations
    assert sharded.total < alone.total


def test_checkpointing_trades_activations_away():
    kept, recomputed = (memory.estimate(GPT2Config(), Layout(32, checkpointing=each)) for each in (False, True))
    assert recomputed.activations < 0.2 * kept.activations
    assert recomputed.optimizer == kept.optimizer


@pytest.mark.parametrize("layout", [Layout(1), Layout(1, gpus=8, shard=True), Layout(1, compiled=False)])
def test_the_largest_micro_batch_fits_and_the_next_does_not(layout):
    sequences = 480
    divisors = [n for n in range(1, sequences + 1) if sequences % n == 0]
    found = [memory.largest_micro_batch(GPT2Config(), layout, sequences, gib * GIB) for gib in (1, 12, 24, 80, 10**4)]
    assert found == sorted(found)
    assert found[0] == 0
    assert found[-1] == sequences
    for gib, size in zip((12, 24, 80), found[1:4], strict=True):
        larger = divisors[divisors.index(size) + 1]

        def total(n):
            return memory.estimate(
                GPT2Config(), replace(layout, micro_batch_size=n, grad_accum_steps=sequences // n)
            ).total

        assert total(size) <= gib * GIB < total(larger)

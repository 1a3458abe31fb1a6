"""Checkpoint, resume, evaluation, sampling and export on a simulated GPU, as far as they go without values.

What is copied to the host has no values there either, so no file can be written or read, and no score or text computed.
Tested is what happens on the device: what is copied, how often the host waits, and with what a restored run continues.
Scoring is in test_attention.py. Export reads a checkpoint and uses no device.
"""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from gpt2lab.config import GPT2Config
from gpt2lab.evaluation.loss import validation_loss
from gpt2lab.generation import engine
from gpt2lab.generation.cache import KVCache
from gpt2lab.model import pretrained
from gpt2lab.system import precision as precisions
from gpt2lab.system.distributed import DistContext
from gpt2lab.training import checkpoint, optimizer
from tests.simulated_cuda import training
from tests.simulated_cuda.simulation import SimulatedGPU, simulated

pytestmark = pytest.mark.simulated_cuda

TINY = {
    "model__n_layer": 2,
    "model__n_head": 2,
    "model__n_embd": 64,
    "model__block_size": 64,
    "train__total_batch_size": 1024,
    "train__micro_batch_size": 8,
}


def take_snapshots() -> dict[str, Any]:
    """Two snapshots of a training state after a step, into the same buffers."""
    with simulated(SimulatedGPU()) as gpu, mock.patch.object(checkpoint, "_get_rng", return_value={}):
        trainer, batch, _ = training.build_trainer(gpu, training.settings(**TINY))
        trainer._train_step(1, iter([batch]))
        before, waits, buffers = gpu.allocated, [], {}
        for step in (1, 2):
            gpu.waits.clear()
            snapshot = checkpoint.copy_state(step, trainer.state, {}, buffers)
            waits.append(list(gpu.waits))
        model = trainer.state.model
        return {
            "weights": {name: (str(t.device), t.shape) for name, t in snapshot.weights.items()},
            "expected": {name: ("cpu", t.shape) for name, t in model.state_dict().items()},
            "moments": sorted(snapshot.optimizer),
            "parameters": sorted(name for name, _ in model.named_parameters()),
            "devices": {str(t.device) for t in (*snapshot.weights.values(), *snapshot.optimizer.values())},
            "waits": waits,
            "more": gpu.allocated - before,
            "pinned": all(name in buffers for name in snapshot.optimizer),
        }


def test_a_snapshot_has_weights_and_moments_and_the_host_waits_once_for_it(on_gpu):
    result = on_gpu(take_snapshots)
    assert result["weights"] == result["expected"]
    keys = ("exp_avg", "exp_avg_sq", "step")
    assert result["moments"] == sorted(f"{name}.{key}" for name in result["parameters"] for key in keys)
    assert result["devices"] == {"cpu"}
    assert result["waits"] == [["synchronize"]] * 2
    assert result["more"] == 0  # nothing stays on the device


def resume(name: str) -> dict[str, Any]:
    """Restore the optimizers' state of one run in another, and take a step there."""
    with simulated(SimulatedGPU()) as gpu:
        config = training.settings(**TINY, optimizer__name=name)
        first, batch, _ = training.build_trainer(gpu, config)
        first._train_step(1, iter([batch]))
        saved = optimizer.state_tensors(first.state.model, first.state.optimizers)
        saved = {key: torch.empty(tensor.shape, dtype=tensor.dtype) for key, tensor in saved.items()}  # on the host
        second, batch, _ = training.build_trainer(gpu, config)
        optimizer.load_state_tensors(second.state.model, second.state.optimizers, saved)
        gpu.records_operations = True
        second._train_step(2, iter([batch]))
        restored = optimizer.state_tensors(second.state.model, second.state.optimizers)
        return {
            "saved": {key: (tensor.shape, tensor.dtype) for key, tensor in saved.items()},
            "restored": {key: (tensor.shape, tensor.dtype) for key, tensor in restored.items()},
            "devices": {tensor.device.type for key, tensor in restored.items()},
            "operations": gpu.operations,
        }


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_restored_optimizer_is_on_the_device_and_steps_without_a_wait(on_gpu, name):
    result = on_gpu(resume, name)
    assert result["restored"] == result["saved"]
    assert result["devices"] == {"cuda"}
    operations = result["operations"]
    waits = [n for n, operation in enumerate(operations) if operation.startswith("wait")]
    assert min(waits) > max(n for n, operation in enumerate(operations) if operation == "aten._fused_adamw_.default")


def prefill(architecture: str) -> tuple[str, torch.dtype, tuple[int, ...]]:
    """Compute the logits after a prompt. Decoding makes index tensors in a way that fake tensors cannot follow."""
    with simulated(SimulatedGPU()):
        with torch.device("cuda"):
            model = pretrained.build(GPT2Config(architecture=architecture, n_layer=2, n_head=2, n_embd=64))
        with precisions.choose("bf16", torch.device("cuda", 0)).autocast():
            logits = engine.prefill(model, [1, 2, 3], KVCache(1, 16), 0)
        return str(logits.device), logits.dtype, tuple(logits.shape)


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_the_logits_after_a_prompt_are_copied_to_the_host(on_gpu, architecture):
    assert on_gpu(prefill, architecture) == ("cpu", torch.float32, (1, 50257))


def validate() -> list[str]:
    """The host's waits while the validation loss of 32 sequences is measured, 8 at a time."""
    device = torch.device("cuda", 0)
    data: Any = SimpleNamespace(gather=lambda starts, length: np.zeros((len(starts), length), dtype=np.uint16))
    with simulated(SimulatedGPU()) as gpu:
        with torch.device("cuda"):
            model = pretrained.build(GPT2Config(n_layer=1, n_head=2, n_embd=64, block_size=64))
        gpu.waits.clear()
        policy = precisions.choose("bf16", device)
        validation_loss(model, data, 1, sequences=32, batch_size=8, dist=DistContext(0, 1, device), precision=policy)
        return gpu.waits


def test_validation_reads_its_loss_once(on_gpu):
    assert on_gpu(validate) == ["aten._to_copy.default", "item"]  # the second is on the host

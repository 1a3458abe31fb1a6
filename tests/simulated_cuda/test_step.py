"""The training step on a simulated GPU: precisions, memory, and what the host waits for."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2lab.config import GPT2Config, OptimizerConfig
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.system import device as devices
from gpt2lab.system import precision as precisions
from gpt2lab.training import optimizer as optimizers
from tests.simulated_cuda.simulation import GIB, SimulatedGPU, simulated

pytestmark = pytest.mark.simulated_cuda


def take_steps(precision: str, sequences: int, steps: int = 2) -> dict[str, Any]:
    """Train GPT-2 124M on sequences of 1,024; the peak memory of the last step, and dtype and device of its numbers."""
    with simulated(SimulatedGPU()) as gpu:
        device = devices.choose("auto")
        policy = precisions.choose(precision, device)
        with device:
            model = GPT2(GPT2Config())
        (adamw,) = optimizers.build(model, OptimizerConfig())
        scaler = policy.scaler()
        x = torch.zeros(sequences, 1024, dtype=torch.int64, device=device)
        for _ in range(steps):
            gpu.reset_peak()
            with policy.autocast():
                loss: Tensor = model(x, x)[1]
            scaler.scale(loss).backward()
            scaler.unscale_(adamw)
            norm = optimizers.clip_gradients(model, 1.0)
            skip = torch.isfinite(norm).logical_not().float()
            optimizers.step_unless(skip, adamw)
            scaler.update()
            adamw.zero_grad(set_to_none=True)
        return {"loss": (str(loss.dtype), str(loss.device)), "norm": str(norm.device), "peak": gpu.peak / GIB}


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"])
def test_a_step_runs(on_gpu, precision):
    result = on_gpu(take_steps, precision, 4)
    assert result["loss"] == ("torch.float32", "cuda:0")

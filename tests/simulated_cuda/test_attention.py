"""cuDNN's attention plans anew for every shape, so it is not used where the shapes change."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gpt2lab.config import GPT2Config
from gpt2lab.evaluation import scoring
from gpt2lab.generation import engine
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.system import attention, precision
from gpt2lab.system.distributed import DistContext
from tests.simulated_cuda import simulation
from tests.simulated_cuda.simulation import SimulatedGPU, simulated

pytestmark = pytest.mark.simulated_cuda

TINY = GPT2Config(n_layer=1, n_head=2, n_embd=64, block_size=64)


def kernels(work: str) -> list[bool]:
    """For each attention of a piece of work in training on Hopper: whether cuDNN's kernel may be used."""
    used: list[bool] = []

    def attend(*args: Any, **kwargs: Any) -> torch.Tensor:
        used.append(torch.backends.cuda.cudnn_sdp_enabled())
        return simulation._attend(*args, **kwargs)

    class ReadError(Exception):
        """The host reads fake numbers."""

    def read(*_: Any) -> None:
        raise ReadError

    with simulated(SimulatedGPU()) as gpu, attention.prefer_fastest(torch.device("cuda")):
        F.scaled_dot_product_attention = attend
        with torch.device("cuda"):
            model = GPT2(TINY)
        device = torch.device("cuda", 0)
        policy = precision.choose("bf16", device)
        gpu.wait = read  # type: ignore[assignment]
        try:
            if work == "scoring":
                requests = [scoring.Request([1, 2, 3], [4, 5]), scoring.Request([1, 2, 3], [6])]
                scoring.score(model, requests, dist=DistContext(0, 1, device), precision=policy)
            elif work == "decoding":
                with policy.autocast():
                    list(engine.stream(model, [[1, 2, 3]], 4))
            else:
                with policy.autocast():
                    model(torch.zeros(1, 64, dtype=torch.int64, device=device))
        except ReadError:
            pass
    return used


@pytest.mark.parametrize(("work", "cudnn"), [("training", True), ("scoring", False), ("decoding", False)])
def test_only_training_on_hopper_uses_cudnn(on_gpu, work, cudnn):
    used = on_gpu(kernels, work)
    assert used
    assert set(used) == {cudnn}

"""The automatic micro batch of GPT-2 124M on simulated GPUs of common sizes."""

import pytest

from tests.simulated_cuda import training
from tests.simulated_cuda.simulation import GIB, SimulatedGPU, simulated

pytestmark = pytest.mark.simulated_cuda


def find(gib: float, sequences: int) -> tuple[int, float]:
    """The micro batch, and the GiB of a micro-step with it and AdamW's moments."""
    config = training.settings(train__micro_batch_size="auto", train__total_batch_size=sequences * 1024)
    with simulated(SimulatedGPU(gib)) as gpu:
        trainer, *_ = training.build_trainer(gpu, config)
        size = trainer.model.micro_batch_size
        trainer.model.try_micro_step(size)
        return size, (gpu.peak + 8 * trainer.state.model.num_parameters()) / GIB


@pytest.mark.parametrize(
    ("gib", "sequences", "size"),
    [
        (11.2, 512, 16),
        pytest.param(23.2, 480, 40, marks=pytest.mark.slow),
        pytest.param(39.0, 512, 64, marks=pytest.mark.slow),
        (79.0, 480, 60),
        pytest.param(139.8, 512, 64, marks=pytest.mark.slow),
    ],
)
def test_auto_uses_most_of_the_memory_up_to_the_size_at_which_a_gpu_is_busy(on_gpu, gib, sequences, size):
    found, needed = on_gpu(find, gib, sequences)
    assert found == size
    assert needed < 0.9 * gib

"""Every recipe of 124M to XL parameters fits on one GPU or is refused, as `gpt2lab plan` says (docs/planning.md)."""

from unittest import mock

import pytest
import torch

from gpt2lab import config as configs
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import flops
from gpt2lab.planning import plan
from gpt2lab.system import gpus
from gpt2lab.training import build
from gpt2lab.training.memory import TrainingModel
from tests.simulated_cuda import training
from tests.simulated_cuda.simulation import GIB, SimulatedGPU, simulated

pytestmark = pytest.mark.simulated_cuda

GPUS = (11.2, 23.2, 39.0, 79.0, 139.8)  # GiB
# The micro batch of `auto` on each of them, without the compiler; 0: refused, not even one sequence fits.
RECIPES: dict[str, tuple[int, ...]] = {
    "gpt2_124m": (16, 40, 60, 60, 60),
    "gpt2_medium": (4, 16, 16, 64, 64),
    "gpt2_large": (0, 4, 8, 32, 64),
    "gpt2_xl": (0, 0, 4, 16, 32),
    "modern_124m": (8, 16, 32, 64, 64),
}
SAME_MODEL = {"minigpt", "minillm", "tinyrb", "shakespeare", "finetune_shakespeare", "modern_24gb"}  # as one of these
_MEASURED = (1, 2, 4)  # sequences


def find(recipe: str) -> list[int]:
    """The micro batches. Micro-steps are simulated for few sizes; memory grows linearly from there on."""
    config = configs.load([recipe], {"system.compile": "off"})
    with simulated(SimulatedGPU()) as gpu:
        state, batches, dist, precision = training.build_state(config)
        model = TrainingModel(state.model, lambda: state.model, 1, config.model.block_size, False, dist, precision)
        needed = {}
        for size in _MEASURED:
            gpu.reset_peak()
            model.try_micro_step(size)
            needed[size] = gpu.peak - gpu.allocated

        def try_micro_step(_: TrainingModel, size: int) -> None:
            one = (needed[4] - needed[2]) / 2
            gpu.peak = gpu.allocated + needed.get(size, int(needed[4] + (size - 4) * one))
            if gpu.peak > gpu.capacity:
                raise torch.OutOfMemoryError

        found = []
        with mock.patch.object(TrainingModel, "try_micro_step", try_micro_step):
            for gib in GPUS:
                gpu.capacity = gib * GIB
                try:
                    wrapped = build.wrap_for_training(state, config.train, config.system, batches, dist, precision)
                    found.append(wrapped.micro_batch_size)
                except GPT2LabError as error:
                    assert "out of memory with one sequence" in str(error)  # noqa: PT017
                    found.append(0)
        return found


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=() if name.endswith("124m") else pytest.mark.slow) for name in RECIPES]
)
def test_a_recipe_fits_or_is_refused_as_planned(on_gpu, recipe):
    found = on_gpu(find, recipe)
    assert tuple(found) == RECIPES[recipe]
    config = configs.load([recipe], {"system.compile": "off"})
    for gib, size in zip(GPUS, found, strict=True):
        gpu = gpus.load()["h100-80gb"].model_copy(update={"memory_gib": gib})
        planned = plan.make(config, gpu)
        assert bool(planned.micro_batch_size) == bool(size), gib
        assert planned.micro_batch_size <= 2 * size <= 4 * planned.micro_batch_size, gib


def test_the_table_has_every_recipe_for_gpus():
    for name in configs.recipes():
        if name in RECIPES or configs.load([name]).train.micro_batch_size != "auto":
            continue
        smaller = flops.parameters(configs.load([name]).model) < 124e6
        assert smaller or name in SAME_MODEL, name

"""The parts of a training run on a simulated GPU, built as `training.run` builds them."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from gpt2lab.config import BatchPlan, Config
from gpt2lab.system import device as devices
from gpt2lab.system import precision as precisions
from gpt2lab.system.distributed import DistContext
from gpt2lab.training import build
from gpt2lab.training.state import TrainState
from gpt2lab.training.trainer import Trainer
from tests.simulated_cuda.simulation import SimulatedGPU

Batch = tuple[Tensor, Tensor]


def settings(**changes: Any) -> Config:
    """GPT-2 124M, 64 sequences a step, not compiled. Changes by dotted name, `.` as `__`."""
    values: dict[str, dict[str, Any]] = {
        "train": {"total_batch_size": 65536, "micro_batch_size": 16},
        "system": {"compile": "off"},
    }
    for name, value in changes.items():
        section, key = name.split("__")
        values.setdefault(section, {})[key] = value
    return Config.model_validate(values)


def build_state(config: Config) -> tuple[TrainState, BatchPlan, DistContext, precisions.Precision]:
    """Build model and optimizer on the simulated GPU, and divide the tokens of a step.

    Args:
        config: of the run.
    """
    device = devices.choose("auto")
    dist = DistContext(0, 1, device)
    precision, plan = build.plan_steps(config, dist)
    # Parameters cannot move from one device to another while they are fake.
    with device, mock.patch.object(torch.nn.Module, "to", lambda self, _: self):
        state = build.build_state(config, None, None, dist, precision)
    return state, plan, dist, precision


def build_trainer(gpu: SimulatedGPU, config: Config) -> tuple[Trainer, Batch, list[Any]]:
    """Build a trainer inside `simulated(gpu)`; also its batch, `(sequences, T)`, and the events that it records.

    Args:
        gpu: where it trains.
        config: of the run.
    """
    state, plan, dist, precision = build_state(config)
    model = build.wrap_for_training(state, config.train, config.system, plan, dist, precision)
    events: list[Any] = []
    others: Any = SimpleNamespace(
        failed=False,
        received=0,
        record_event=lambda step, name, details: events.append((step, name, details)),
    )
    trainer = Trainer(config.train, config.optimizer, state, model, others, [], others, others, others, [])
    x, y = (
        torch.zeros(plan.sequences, config.model.block_size, dtype=torch.int64, device=dist.device) for _ in range(2)
    )
    return trainer, (x, y), events


def train(gpu: SimulatedGPU, config: Config, steps: int = 2) -> dict[str, Any]:
    """Take optimizer steps inside `simulated(gpu)`; the operations of the last one are recorded.

    Args:
        gpu: where to train.
        config: of the run.
        steps: how many.

    Returns:
        The metrics of the last step, `micro_batch_size` before and after the steps, and `events`.
    """
    trainer, batch, events = build_trainer(gpu, config)
    found = trainer.model.micro_batch_size
    metrics: dict[str, float] = {}
    for step in range(1, steps + 1):
        gpu.records_operations = step == steps
        metrics = trainer._train_step(step, iter([batch]))
    gpu.records_operations = False
    return metrics | {"found": found, "micro_batch_size": trainer.model.micro_batch_size, "events": events}

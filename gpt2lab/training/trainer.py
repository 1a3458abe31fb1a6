"""The loop. It is handed everything it uses, and makes nothing itself (launch.py does)."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gpt2lab.errors import GPT2LabError
from gpt2lab.system import device as devices
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision
from gpt2lab.tracking.metrics import Sink
from gpt2lab.training.optimizer import clip_gradients

Measure = Callable[[nn.Module, int], dict[str, float]]  # (plain model, step) -> values by metric key


class Evaluator(NamedTuple):
    """Something measured on the plain model every so many steps; every rank calls it, all get the same numbers."""

    name: str
    every: int
    measure: Measure


@dataclass(frozen=True)
class Trainer:
    """One training run, from any step to the last."""

    model: nn.Module  # as it trains: compiled, and wrapped for many ranks
    plain_model: nn.Module  # the same weights without either: evaluated, sampled and saved
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    grad_clip: float
    tokens_per_step: int
    flops_per_token: int
    evaluators: Sequence[Evaluator]
    save: Callable[[int], None]
    save_every: int
    sinks: Sequence[Sink]
    dist: DistContext
    precision: Precision

    def run(self, batches: Iterator[tuple[Tensor, Tensor]], start: int, stop: int) -> None:
        """Take the optimizer steps start + 1 … stop.

        Args:
            batches: one (x, y) a step, int64 (grad_accum_steps, B, T) on the device.

        Raises:
            GPT2LabError: the loss or the gradient is not finite; the weights are still those of the step before.
        """
        if start == 0:
            self._log(0, self._evaluate(0, stop))
        for step in range(start + 1, stop + 1):
            values = self._train_step(step, batches)
            self._log(step, values | self._evaluate(step, stop))
            if step == stop or (self.save_every and step % self.save_every == 0):
                self.save(step)

    def _train_step(self, step: int, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, float]:
        began = time.perf_counter()
        x, y = next(batches)
        data_ready = time.perf_counter()
        micro_steps = len(x)
        loss_sum = torch.zeros((), device=self.dist.device)
        for micro_step in range(micro_steps):
            with self.dist.gradient_sync(self.model, last=micro_step == micro_steps - 1):
                with self.precision.autocast():
                    _, loss = self.model(x[micro_step], y[micro_step])
                (loss / micro_steps).backward()
            loss_sum += loss.detach()
        norm = float(clip_gradients(self.plain_model, self.grad_clip))
        loss_mean = float(self.dist.mean(loss_sum / micro_steps))
        if not (math.isfinite(loss_mean) and math.isfinite(norm)):
            raise GPT2LabError(
                f"step {step}: loss {loss_mean}, gradient norm {norm}: not finite, so training stops here; "
                "lower optimizer.max_lr and run again to go on from the last checkpoint"
            )
        lr = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        devices.synchronize(self.dist.device)
        seconds = time.perf_counter() - began
        values = {
            "train/loss": loss_mean,
            "train/lr": lr,
            "train/grad_norm": norm,
            "perf/tokens_per_second": self.tokens_per_step / seconds,
            "perf/step_ms": seconds * 1e3,
            "perf/data_ms": (data_ready - began) * 1e3,
            "perf/peak_memory_gib": devices.peak_memory_gib(self.dist.device),
        }
        if (peak := devices.peak_flops(self.dist.device)) is not None:
            achieved = self.flops_per_token * self.tokens_per_step / seconds
            values["perf/mfu"] = achieved / (peak * self.dist.world_size)
        return values

    def _evaluate(self, step: int, stop: int) -> dict[str, float]:
        """Whatever is due: before the first step, at multiples of its `every`, and after the last."""
        values: dict[str, float] = {}
        began = time.perf_counter()
        for _, every, measure in self.evaluators:
            if every and (step % every == 0 or step == stop):
                self.plain_model.eval()
                with torch.no_grad():
                    values |= measure(self.plain_model, step)
                self.plain_model.train()
        if values:
            values["perf/eval_seconds"] = time.perf_counter() - began
        return values

    def _log(self, step: int, values: dict[str, float]) -> None:
        for sink in self.sinks:
            sink.log(step, values)

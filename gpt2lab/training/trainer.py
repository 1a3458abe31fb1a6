"""The loop. It is handed everything it uses, and makes nothing itself (launch.py does)."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpt2lab.errors import GPT2LabError
from gpt2lab.system import device as devices
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision
from gpt2lab.tracking.metrics import Sink
from gpt2lab.training.guard import Guard, GuardError
from gpt2lab.training.optimizer import clip_gradients

Measure = Callable[[nn.Module, int], dict[str, float]]  # (plain model, step) -> values by metric key


class Evaluator(NamedTuple):
    """Something measured on the plain model every so many steps; every rank calls it, all get the same numbers."""

    name: str
    every: int
    measure: Measure


class _OutOfMemory(Exception):
    """A rank ran out of memory in this step, and all of them know."""


@dataclass
class Trainer:
    """One training run, from any step to the last."""

    model: nn.Module  # as it trains: compiled, and wrapped for many ranks
    wrap: Callable[[], nn.Module]  # makes that anew
    plain: Callable[[], contextlib.AbstractContextManager[nn.Module]]  # the same weights without either, to evaluate
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    grad_clip: float
    tokens_per_step: int
    flops_per_token: int
    micro_batch_size: int
    evaluators: Sequence[Evaluator]
    save: Callable[[int, dict[str, float], dict[str, Any]], None]  # (step, its values, state())
    save_every: int
    asked_to_stop: Callable[[], int]  # 0, or a number other than 0: save, and return it
    event: Callable[[int, str, dict[str, Any]], None]  # (step, what happened, details)
    sinks: Sequence[Sink]
    dist: DistContext
    precision: Precision
    guard: Guard
    sharded: bool = False  # every rank holds a part of the model, and all compute each layer together
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = self.precision.scaler()
        self._unlogged: dict[str, float] = {}  # of the step that a checkpoint was saved at before it was evaluated

    def run(self, batches: Iterator[tuple[Tensor, Tensor]], start: int, stop: int) -> int:
        """Take the optimizer steps start + 1 … stop, or fewer if asked to stop.

        Args:
            batches: one (x, y) a step, int64 (n, T) on the device: this rank's n sequences of the step.

        Returns:
            0 at the end, else what `asked_to_stop` said on one of the ranks; either way the last step is saved. Who
            asks does not wait for evaluations: those of that step are made up for by the run that goes on.

        Raises:
            GuardError: too many steps in a row had to be skipped.
        """
        if start == 0:
            self._log(0, self._evaluate(0, stop))
        elif self._unlogged:
            self._log(start, self._unlogged | self._evaluate(start, stop))
        for step in range(start + 1, stop + 1):
            values = self._train_step(step, batches)
            asked = self.dist.all_reduce_max(self.asked_to_stop())
            if asked and step < stop:
                self.save(step, values, self.state() | {"unlogged": values})
                return asked
            values |= self._evaluate(step, stop)
            self._log(step, values)
            if step == stop or (self.save_every and step % self.save_every == 0):
                self.save(step, values, self.state())
        return 0

    def state(self) -> dict[str, Any]:
        """What the trainer remembers beside weights and optimizer, as JSON."""
        return {"guard": self.guard.state(), "scaler": self.scaler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave; a checkpoint of an earlier version, or of another precision, has less.

        Raises:
            GPT2LabError: it was changed by hand.
        """
        try:
            self._unlogged = dict(state.get("unlogged") or {})
            if "guard" in state:
                self.guard.load(state["guard"])
            if self.scaler.is_enabled() and state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GPT2LabError(f"state.json: its guard or loss scale cannot be read: {error}") from error

    def _train_step(self, step: int, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, float]:
        began = time.perf_counter()
        x, y = next(batches)
        data_ready = time.perf_counter()
        loss_here = self._gradients(step, x, y)
        self.scaler.unscale_(self.optimizer)
        norm_here = clip_gradients(self.model, self.grad_clip)
        # Every rank judges by the same two numbers, also if one of them has miscalculated.
        loss, norm = self.dist.mean(torch.stack([loss_here, norm_here])).tolist()
        lr = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        scale = self.scaler.get_scale()
        if self.scaler.is_enabled() and scale > 1 and math.isfinite(loss) and not math.isfinite(norm):
            self.scaler.update(scale / 2)  # fp16 gradients overflowed: no fault of the step's, so not the guard's
        elif self._may_step(step, loss, norm):
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        devices.synchronize(self.dist.device)
        seconds = time.perf_counter() - began
        values = {
            "train/loss": loss,
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
        if self.guard.skipped:
            values["guard/skipped"] = self.guard.skipped
        if self.scaler.is_enabled():
            values["train/loss_scale"] = self.scaler.get_scale()
        return values

    def _may_step(self, step: int, loss: float, norm: float) -> bool:
        """The guard's judgement."""
        why = self.guard.judge(loss, norm)
        if why is not None:
            self.event(step, "skipped", {"why": why})
        if self.guard.exhausted:
            raise GuardError(
                f"step {step}: {why}; too many steps in a row were skipped (guard.stop_after), so training stops; "
                "lower optimizer.max_lr, or look at the data of these steps (events.jsonl)"
            )
        return why is None

    def _gradients(self, step: int, x: Tensor, y: Tensor) -> Tensor:
        """Accumulate the step's gradients, in smaller micro batches if memory runs out; the mean loss, 0-d float32."""
        while True:
            try:
                return self._micro_steps(x, y)
            except _OutOfMemory:
                pass  # outside the except clause nothing holds on to the failed step's tensors any more
            self.optimizer.zero_grad(set_to_none=True)
            self.model = nn.Identity()  # a wrapper that was left between forward and backward waits for gradients
            gc.collect()
            devices.release_memory(self.dist.device)
            self.model = self.wrap()
            was, self.micro_batch_size = self.micro_batch_size, smaller_micro_batch(self.micro_batch_size, len(x))
            self.event(step, "out of memory", {"micro_batch_size": self.micro_batch_size, "was": was})

    def _micro_steps(self, x: Tensor, y: Tensor) -> Tensor:
        parts = list(zip(torch.split(x, self.micro_batch_size), torch.split(y, self.micro_batch_size), strict=True))
        loss_sum, full = torch.zeros((), device=self.dist.device), False
        for number, (inputs, targets) in enumerate(parts, start=1):
            last = number == len(parts)
            with self.dist.gradient_sync(self.model, last=last):
                try:
                    with self.precision.autocast():
                        loss = None if full else self.model(inputs, targets)[1]
                except torch.OutOfMemoryError:
                    if self.sharded:
                        raise  # the others are in the middle of the same layer, and wait
                    loss, full = None, True
                if last and self.dist.all_reduce_max(int(full)):  # before gradients cross ranks: all of them turn back
                    raise _OutOfMemory
                try:
                    if loss is not None:
                        self.scaler.scale(loss / len(parts)).backward()
                        loss_sum += loss.detach()
                except torch.OutOfMemoryError:
                    if self.sharded or (last and self.dist.world_size > 1):
                        raise  # the others wait for these gradients; launch says what to do
                    full = True
        if full:
            raise _OutOfMemory
        return loss_sum / len(parts)

    def _evaluate(self, step: int, stop: int) -> dict[str, float]:
        """Whatever is due: before the first step, at multiples of its `every`, and after the last."""
        due = [one.measure for one in self.evaluators if one.every and (step % one.every == 0 or step == stop)]
        values: dict[str, float] = {}
        began = time.perf_counter()
        if due:
            with self.plain() as model, torch.no_grad():
                model.eval()
                for measure in due:
                    values |= measure(model, step)
                model.train()
        if values:
            values["perf/eval_seconds"] = time.perf_counter() - began
        return values

    def _log(self, step: int, values: dict[str, float]) -> None:
        for sink in self.sinks:
            sink.log(step, values)


def smaller_micro_batch(size: int, share: int) -> int:
    """The largest divisor of a rank's `share` of a step, in sequences, that is at most half of `size`.

    Raises:
        GPT2LabError: one sequence is already too much.
    """
    if size == 1:
        raise GPT2LabError(
            "out of memory with one sequence at a time; set system.activation_checkpointing, more processes with "
            "system.shard, a smaller model.block_size, or a smaller model"
        )
    return next(n for n in range(size // 2, 0, -1) if share % n == 0)

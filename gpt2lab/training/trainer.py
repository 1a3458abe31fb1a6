"""The training loop. All components are passed in; `build.py` creates them."""

import contextlib
import gc
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gpt2lab.config import OptimizerConfig, TrainConfig
from gpt2lab.formatting import plural
from gpt2lab.model import flops
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.planning.speed import Range
from gpt2lab.system import device as devices
from gpt2lab.system.signals import CheckStop, StopRequestedError, StopSignals
from gpt2lab.tracking.metrics import Sink
from gpt2lab.training.async_checkpointer import AsyncCheckpointer
from gpt2lab.training.batches import TrainingData
from gpt2lab.training.guard import GuardError
from gpt2lab.training.memory import MicroStepVotes, TrainingModel
from gpt2lab.training.optimizer import clip_gradients, step_unless
from gpt2lab.training.outlook import Outlook
from gpt2lab.training.run_directory import RunDirectory
from gpt2lab.training.schedule import learning_rate
from gpt2lab.training.state import TrainState

logger = logging.getLogger(__name__)

_WRITE_FAILED = 255  # larger than the number of any signal

# (model in eval mode, step, CheckStop to call between forward passes) -> values by metric key
Measure = Callable[[LanguageModel, int, CheckStop], dict[str, float]]


class Evaluator(NamedTuple):
    """A measurement of the model every `every` steps. Every rank calls it, and gets the same values."""

    every: int
    measure: Measure


@contextlib.contextmanager
def exclude_from_garbage_collection() -> Generator[None, None, None]:
    """Exclude all objects that exist now from garbage collection, so that it does not slow down the steps inside."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass
class Trainer:
    """The training loop of one run, from `first_step` to `train.max_steps`."""

    train: TrainConfig
    optimizer: OptimizerConfig
    state: TrainState
    model: TrainingModel  # of `state.model`
    data: TrainingData
    evaluators: Sequence[Evaluator]
    checkpointer: AsyncCheckpointer
    signals: StopSignals
    directory: RunDirectory
    sinks: Sequence[Sink]
    estimate: Range | None = None  # of tokens per second, for messages

    def __post_init__(self) -> None:
        self.dist = self.model.dist
        self.step = self.first_step = 0  # optimizer steps taken: now, and when the process began
        self.values: dict[str, float] = {}  # of the last step that was logged
        self.votes = MicroStepVotes(self.model, self.directory, self._stop_reason)
        self.signals.describe_loss, self.signals.has_progress = self.describe_loss, lambda: self.step > 0
        self.outlook = Outlook(self.train, self.dist.device.type, self.estimate)

    @exclude_from_garbage_collection()
    def run(self, first_step: int) -> int:
        """Take the optimizer steps from `first_step` + 1 to `train.max_steps`, or fewer if a stop is requested.

        A checkpoint is saved at the end. A stop request is noticed between micro-steps, and between the forward passes
        of an evaluation. The unfinished step or evaluation is discarded, and repeated when training is resumed.

        Args:
            first_step: steps already taken.

        Returns:
            0 at the end, else the number of the signal that one of the ranks received.

        Raises:
            GuardError: too many steps in a row were skipped.
            GPT2LabError: a checkpoint could not be written.
        """
        self.step = self.first_step = first_step
        last_step, stop = self.train.max_steps, 0
        batches = self.data.batches(first_step, last_step, self.train.overfit_batch, self.dist.device)
        try:
            with contextlib.closing(batches):
                if first_step == 0 or self.state.unlogged:
                    self._complete_step()
                for step in range(first_step + 1, last_step + 1):
                    self.state.unlogged = self._train_step(step, batches)
                    self.step = step
                    with self.outlook.between_steps():
                        self._complete_step()
        except StopRequestedError as request:
            for optimizer in self.state.optimizers:
                optimizer.zero_grad(set_to_none=True)  # of an unfinished step
            self.checkpointer.save_if_new(self.step, self.state.unlogged or self.values)  # raises if a write failed
            stop = request.reason
        self.checkpointer.wait()
        return stop

    def _complete_step(self) -> None:
        """Evaluate and log the step that was taken, and save a checkpoint if it is due."""
        step = self.step
        self.values = self.state.unlogged | self._evaluate(step)
        self._log(step, self.values)
        self.state.unlogged = {}
        if step >= self.train.max_steps or (step and self.checkpointer.is_due(step)):
            self.checkpointer.save(step, self.values)

    def describe_loss(self, verb: str = "lost") -> str:
        """Return what is saved, and what is lost, if the process ends now, as the end of a message.

        Args:
            verb: what is said of these steps, as `lost` or `repeated`.
        """
        saved = max(self.checkpointer.written, self.first_step)  # which another run may have saved
        steps = self.step - saved
        kept, since = (f"step {saved:,} is saved", "since") if saved else ("nothing is saved", "since the beginning")
        if steps == 0:
            return f"{kept}, and only the unfinished step is {verb}"
        return f"{kept}, and the {plural(steps, 'step')} {since} {'are' if steps > 1 else 'is'} {verb}"

    def _stop_reason(self) -> int:
        """The signal that this rank received, or _WRITE_FAILED; 0 to go on."""
        return _WRITE_FAILED if self.checkpointer.failed else self.signals.received

    def _check_stop(self, *, together: bool = True) -> None:
        """Agree with the other ranks whether to stop, a collective on the CPU, or check this rank alone; `CheckStop`.

        Raises:
            StopRequestedError: on all ranks, if one of them is to stop; on this rank, if the others were not asked.
        """
        reason = self._stop_reason()
        if reason := self.dist.all_reduce_max(reason) if together else reason:
            raise StopRequestedError(reason)

    def _train_step(self, step: int, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Take one optimizer step and return its metrics."""
        start = time.perf_counter()
        x, y = next(batches)
        data_seconds = time.perf_counter() - start
        lr = learning_rate(step, self.train.max_steps, self.optimizer)
        for optimizer in self.state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
        loss_and_norm = self._optimizer_step(step, x, y)
        with self.dist.deadline():
            loss, norm = loss_and_norm.tolist()  # waits for all work queued on the device
        seconds = time.perf_counter() - start
        self._count_skipped(step, loss, norm)
        values = {"train/loss": loss, "train/lr": lr, "train/grad_norm": norm, **self._speed(seconds, data_seconds)}
        if self.state.guard.skipped:
            values["guard/skipped"] = self.state.guard.skipped
        if self.state.scaler.is_enabled():
            values["train/loss_scale"] = self.state.scaler.get_scale()
        return values

    def _optimizer_step(self, step: int, x: Tensor, y: Tensor) -> Tensor:
        """Micro-steps, clip, guard, step. Return loss and gradient norm, `(2,)`, averaged over the ranks."""
        state = self.state
        loss = self.votes.run(step, len(x), lambda: self._micro_steps(step, x, y))
        for optimizer in state.optimizers:
            state.scaler.unscale_(optimizer)
        norm = clip_gradients(self.model.module, self.optimizer.grad_clip)
        loss_and_norm = self.dist.mean(torch.stack([loss, norm]))  # equal on all ranks, so all skip the same steps
        skip = state.guard.skip_flag(loss_and_norm)
        for optimizer in state.optimizers:
            step_unless(skip, optimizer)
            optimizer.zero_grad(set_to_none=True)
        return loss_and_norm

    def _micro_steps(self, step: int, x: Tensor, y: Tensor) -> Tensor:
        """Accumulate the gradients of a step over its micro batches; the mean loss, a float32 scalar."""
        size = self.model.micro_batch_size
        micro_batches = list(zip(torch.split(x, size), torch.split(y, size), strict=True))
        total = torch.zeros((), device=self.dist.device)
        with self.outlook.step(step, len(micro_batches)) as advance:
            for number, (inputs, targets) in enumerate(micro_batches, start=1):
                last = number == len(micro_batches)
                with self.dist.gradient_sync(self.model.module, last=last):
                    self.votes.before_forward()
                    loss = self.model.loss(inputs, targets)
                    self.votes.before_backward(last)  # which exchanges gradients, if it is the last
                    self.state.scaler.scale(loss / len(micro_batches)).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
                advance()
        return total / len(micro_batches)

    def _count_skipped(self, step: int, loss: float, norm: float) -> None:
        """Update the guard's counts and the loss scale after a step, and report the step if it was skipped."""
        guard, scaler = self.state.guard, self.state.scaler
        scale = scaler.get_scale()  # 1 without fp16
        if scale > 1 and math.isfinite(loss) and not math.isfinite(norm):
            scaler.update(scale / 2)  # fp16 gradients overflowed because of the loss scale, not of the data
            return
        reason = guard.record(loss, norm)
        scaler.update(scale if reason else None)
        if reason is None:
            return
        logger.warning("step %d was skipped: %s", step, reason)
        sequences = self.data.loader.sequence_ids(step - 1).tolist()
        self.directory.record_event(step, "skipped", {"why": reason, "sequences": sequences})
        if guard.too_many_skipped:
            raise GuardError(
                f"step {step}: {reason}; too many steps in a row were skipped (guard.stop_after), so training stops; "
                "lower optimizer.max_lr, or look at the data of these steps (events.jsonl)"
            )

    def _speed(self, seconds: float, data_seconds: float) -> dict[str, float]:
        values = {
            "perf/tokens_per_second": self.train.total_batch_size / seconds,
            "perf/step_ms": seconds * 1e3,
            "perf/data_ms": data_seconds * 1e3,
            "perf/peak_memory_gib": devices.peak_memory_gib(self.dist.device),
        }
        if (peak := devices.peak_flops(self.dist.device)) is not None:
            achieved = flops.flops_per_token(self.state.model.config) * self.train.total_batch_size / seconds
            values["perf/mfu"] = achieved / (peak * self.dist.world_size)
        return values

    def _evaluate(self, step: int) -> dict[str, float]:
        """Run the evaluators that are due: before the first step, at multiples of its `every`, and after the last."""
        last = step >= self.train.max_steps
        due = [evaluator for evaluator in self.evaluators if last or step % evaluator.every == 0]
        if not due:
            return {}
        start = time.perf_counter()
        values: dict[str, float] = {}
        with self.state.full_model() as model, torch.no_grad():
            model.eval()
            for evaluator in due:
                began = time.perf_counter()
                values |= evaluator.measure(model, step, self._check_stop)
                self._check_stop()
                self.outlook.add_evaluation(evaluator, evaluator.every, time.perf_counter() - began)
            model.train()
        return values | ({"perf/eval_seconds": time.perf_counter() - start} if values else {})

    def _log(self, step: int, values: dict[str, float]) -> None:
        for sink in self.sinks:
            sink.log(step, values)

"""Find the largest micro batch that fits in memory, and reduce it on out-of-memory errors.

Smaller micro batches take more micro-steps for the same optimizer step, so the result of training does not change.
"""

import gc
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt2lab.config import BatchPlan, Config, largest_divisor
from gpt2lab.errors import GPT2LabError
from gpt2lab.planning.memory import AUTO_FRACTION, AUTO_TOKENS
from gpt2lab.system import device as devices
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision
from gpt2lab.system.signals import StopRequestedError
from gpt2lab.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_TRIALS = 4  # micro batches from which `auto` estimates
_OUT_OF_MEMORY = 1  # a vote; a vote to stop is higher by its reason


class _RetryError(Exception):
    """The micro-steps are to be repeated, because a rank ran out of memory."""


class MicroStepError(Exception):
    """A micro-step failed on one of the ranks for another reason than memory."""


@dataclass
class TrainingModel:
    """The model as it trains: compiled and wrapped for many ranks, with a micro batch that fits into memory."""

    module: nn.Module
    wrap: Callable[[], nn.Module]  # builds `module` again
    micro_batch_size: int  # sequences per rank in a forward pass
    block_size: int  # tokens a sequence
    sharded: bool  # every rank holds a part of the parameters, and all ranks compute each layer together
    dist: DistContext
    precision: Precision

    @property
    def compiled(self) -> bool:
        """Whether `module` is compiled."""
        return hasattr(self.module, "_orig_mod")

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Run the forward pass of a micro batch.

        Args:
            idx: int64 `(B, T)`.
            targets: int64 `(B, T)`.

        Returns:
            The mean loss in nats per token, a float32 scalar.
        """
        with self.precision.autocast():
            loss: Tensor = self.module(idx, targets)[1]
        return loss

    def try_micro_step(self, size: int) -> None:
        """Run forward and backward pass on sequences of zeros, without the other ranks, and drop the gradients.

        Args:
            size: number of sequences.

        Raises:
            torch.OutOfMemoryError: they do not fit. Any other exception: the module does not run.
        """
        # Two tensors, as in training: the compiler would make another graph of `module(idx, idx)`.
        idx, targets = torch.zeros(2, size, self.block_size, dtype=torch.int64, device=self.dist.device)
        try:
            with self.dist.gradient_sync(self.module, last=False):
                self.loss(idx, targets).backward()  # type: ignore[no-untyped-call]
            devices.synchronize(self.dist.device)
        finally:
            self.module.zero_grad(set_to_none=True)

    def restart(self, micro_batch_size: int) -> None:
        """Discard an unfinished step, and set another micro batch size.

        Args:
            micro_batch_size: the new size, in sequences.
        """
        self.module.zero_grad(set_to_none=True)
        self.module = nn.Identity()  # DistributedDataParallel between forward and backward cannot be used again
        gc.collect()
        devices.release_memory(self.dist.device)
        self.module, self.micro_batch_size = self.wrap(), micro_batch_size


class MicroStepVotes:
    """The ranks vote once in each micro-step: whether to go on, to stop, or that memory ran out.

    All ranks leave a step at the same vote. If one left it alone, the others would wait for it in the exchange of
    gradients. The vote is on the CPU and waits for no device. If memory ran out, the micro-steps are repeated in
    smaller micro batches; if a stop was requested, the step is discarded.

    Args:
        model: its `micro_batch_size` is lowered.
        directory: events.jsonl records each retry.
        stop_reason: why this rank wants to stop; 0 to go on.
    """

    def __init__(self, model: TrainingModel, directory: RunDirectory, stop_reason: Callable[[], int]):
        self._model, self._directory, self._stop_reason = model, directory, stop_reason
        self._can_retry = True  # false while the others exchange gradients, or compute a layer, with this rank

    def run(self, step: int, sequences: int, micro_steps: Callable[[], Tensor]) -> Tensor:
        """Call `micro_steps` until all ranks have enough memory for it.

        Args:
            step: the optimizer step.
            sequences: of this rank in the step; every micro batch size divides it.
            micro_steps: computes the gradients of the step, in micro batches of the model's size.

        Returns:
            What `micro_steps` returned.

        Raises:
            StopRequestedError: a rank wants to stop. The gradients are those of an unfinished step.
            GPT2LabError: not even one sequence fits.
            torch.OutOfMemoryError: memory ran out in a collective in which the other ranks wait.
        """
        while (result := self._attempt(micro_steps)) is None:
            size = self._model.micro_batch_size
            smaller = smaller_micro_batch_size(size, sequences)
            self._model.restart(smaller)
            logger.warning("step %d: out of memory; micro_batch_size is now %d, was %d", step, smaller, size)
            self._directory.record_event(step, "out of memory", {"micro_batch_size": smaller, "was": size})
        return result

    def before_forward(self) -> None:
        """Vote if the model is sharded. Between its forward and backward pass, some of its parameters are gathered.

        Raises:
            StopRequestedError: a rank wants to stop.
        """
        if self._model.sharded:
            self._vote_on_stop()

    def before_backward(self, last: bool) -> None:
        """Vote if the model is not sharded: this rank has enough memory for the forward pass.

        Args:
            last: whether this is the last micro-step of the step, whose backward pass exchanges gradients.

        Raises:
            StopRequestedError: a rank wants to stop.
        """
        if not self._model.sharded:
            self._vote_on_stop()
            self._can_retry = not last or self._model.dist.world_size == 1

    def _vote_on_stop(self) -> None:
        reason = self._stop_reason()
        self._vote(_OUT_OF_MEMORY + reason if reason else 0)

    def _vote(self, value: int) -> None:
        highest = self._model.dist.all_reduce_max(value)
        if highest > _OUT_OF_MEMORY:
            raise StopRequestedError(highest - _OUT_OF_MEMORY)
        if highest:
            raise _RetryError

    def _attempt(self, micro_steps: Callable[[], Tensor]) -> Tensor | None:
        self._can_retry = self._model.dist.world_size == 1 or not self._model.sharded
        try:
            try:
                return micro_steps()
            except torch.OutOfMemoryError:
                if not self._can_retry:
                    raise
                self._vote(_OUT_OF_MEMORY)  # in place of this rank's vote in the next micro-step of the others
        except _RetryError:
            pass
        return None


def plan_batches(config: Config, world_size: int, device: torch.device) -> BatchPlan:
    """Divide the tokens of a step, on a CPU in micro batches that suit it.

    Args:
        config: all settings.
        world_size: number of ranks.
        device: of this rank.

    Raises:
        GPT2LabError: the tokens do not divide among the ranks.
    """
    plan = config.batch_plan(world_size, devices.micro_batch_tokens(device))
    return lower_on_cpu(plan, config.model.block_size, device)


def lower_on_cpu(plan: BatchPlan, block_size: int, device: torch.device) -> BatchPlan:
    """Lower a micro batch size that is meant for GPUs. On a CPU it is not faster, and a micro-step would take minutes.

    Args:
        plan: of the settings.
        block_size: tokens a sequence.
        device: where training runs.

    Returns:
        The plan, with another micro batch size if the device is a CPU and a micro batch has more than 8,192 tokens.
    """
    limit = devices.micro_batch_tokens(device)
    if device.type != "cpu" or plan.micro_batch_size * block_size <= 4 * limit:
        return plan
    sequences = plan.micro_batch_size * plan.grad_accum_steps
    size = largest_divisor(sequences, limit // block_size)
    if size == plan.micro_batch_size:  # one sequence has more tokens than the limit
        return plan
    logger.info(f"micro_batch_size is {size} on this CPU, not {plan.micro_batch_size}: more is not faster")
    return BatchPlan(plan.sequences, size, sequences // size)


def smaller_micro_batch_size(size: int, sequences: int) -> int:
    """Return the largest divisor of `sequences` that is at most half of `size`.

    Args:
        size: the micro batch size that does not fit, in sequences.
        sequences: sequences a rank in an optimizer step.

    Returns:
        The next micro batch size to try.

    Raises:
        GPT2LabError: `size` is 1.
    """
    if size == 1:
        raise GPT2LabError(
            "out of memory with one sequence at a time; set system.activation_checkpointing, more processes with "
            "system.shard, a smaller model.block_size, or a smaller model"
        )
    return largest_divisor(sequences, size // 2)


def find_micro_batch_size(model: TrainingModel, size: int, sequences: int, reserve: int) -> int:
    """Find the largest micro batch up to `size` that fits on every rank, by halving.

    Args:
        model: runs the micro-steps; its own `micro_batch_size` is not changed.
        size: the size to begin with, in sequences.
        sequences: sequences a rank in an optimizer step; the result divides it.
        reserve: bytes that training needs besides a micro-step.

    Returns:
        The micro batch size, in sequences, the same on all ranks.

    Raises:
        GPT2LabError: not even one sequence fits.
        MicroStepError: a micro-step fails for another reason.
    """
    dist = model.dist
    while True:
        outcome, reason, reserved = 0, "on another rank", torch.empty(0)
        try:
            reserved = torch.empty(reserve, dtype=torch.uint8, device=dist.device)
            model.try_micro_step(size)
        except torch.OutOfMemoryError:
            outcome = 1
        except Exception as error:  # a compiler may fail in any way
            outcome, reason = 2, f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        del reserved
        gc.collect()
        devices.release_memory(dist.device)
        outcome = dist.all_reduce_max(outcome)
        if outcome == 0:
            return size
        if outcome == 2:
            raise MicroStepError(reason)
        size, previous = smaller_micro_batch_size(size, sequences), size
        logger.info("micro_batch_size %d does not fit into memory; trying %d", previous, size)


def estimate_micro_batch_size(model: TrainingModel, sequences: int, reserve: int) -> int:
    """Estimate the largest micro batch that fits on a GPU from small ones; memory grows linearly with its size.

    The result has at most `AUTO_TOKENS` tokens: larger ones are not faster.

    Args:
        model: runs the micro-steps.
        sequences: sequences a rank in an optimizer step; the result divides it.
        reserve: bytes that training needs besides a micro-step.

    Returns:
        The micro batch size, in sequences, the same on all ranks.
    """
    dist = model.dist
    sizes = [n for n in range(1, sequences + 1) if sequences % n == 0][:_TRIALS]
    peaks = []
    try:
        for size in sizes:
            devices.release_memory(dist.device)
            torch.cuda.reset_peak_memory_stats(dist.device)
            model.try_micro_step(size)
            peaks.append(torch.cuda.max_memory_allocated(dist.device))
    except torch.OutOfMemoryError:
        pass
    if dist.all_reduce_max(int(len(peaks) < 2)):
        return 1
    tried = sizes[len(peaks) - 2 : len(peaks)]  # the largest that fit: the first sequences take more memory than others
    bytes_per_sequence = (peaks[-1] - peaks[-2]) / (tried[1] - tried[0])
    free, _ = torch.cuda.mem_get_info(dist.device)
    available = AUTO_FRACTION * (free + torch.cuda.memory_reserved(dist.device)) - reserve - peaks[-1]
    fitting = tried[1] + math.floor(available / max(bytes_per_sequence, 1.0))
    largest = max(1, min(fitting, AUTO_TOKENS // model.block_size))
    return -dist.all_reduce_max(-largest_divisor(sequences, largest))  # the smallest of the ranks' estimates

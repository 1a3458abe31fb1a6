"""Seconds of an optimizer step: a roofline with separate efficiencies, and the traffic between GPUs.

A token costs a GPU

    (6 k N + 6 V C) (1 + w / C) / (P e_m)  +  6 k L C T / (P e_a)  +  (130 k L C + 10 V) / W      seconds

    N   parameters in matrix products of the blocks; V C those of the output head
    P   peak FLOP/s; W memory bandwidth; L layers, C channels, T block size, V vocabulary
    e_m, e_a   share of the peak that large matrix products and causal attention reach, by generation of GPU
    w   width at which a product reaches half of e_m: narrow products are limited by other things than arithmetic
    130, 10    bytes that fused kernels move per channel of a layer and per logit, forward and backward
    k   4/3 with activation checkpointing (one more forward pass), else 1

and a step, in addition, the traffic between GPUs and the optimizer. The modern architecture moves as many bytes: the
rotation and the norms of q and k add about 32, and the gradients of biases and gains, which it has not, take as many.
e_m, e_a, w and the share of the links were fitted
to LLM Foundry's published tables (benchmarks/fit_planning.py), in which each code is as fast as that one. Another code
is faster or slower by one factor, its stack factor. docs/planning.md explains each term.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gpt2lab.system.gpus import GPU

BYTES_PER_CHANNEL = 130.0  # of a layer and token, counted in Inductor's code for this model's step
BYTES_PER_LOGIT = 10.0  # bf16: written, read twice, gradient written, read
OPTIMIZER_BYTES = 32.0  # a parameter: read weight, gradient, both moments, write three of them; read for the norm
# Of a parameter of Muon besides the iterations of Newton-Schulz: counted in training/muon.py, operation by operation.
MUON_BYTES = 90.0
# Floating-point operations of five iterations for a parameter and channel: 5 (4 r^2 c + 2 r^3) for a matrix r x c with
# r <= c; a layer has four matrices C x C and two C x 4 C.
MUON_FLOPS = 25.0
LAUNCH_SECONDS = 0.25e-3  # a layer and micro-step: the host needs as long to queue about 50 kernels (an assumption)

_BUCKET_BYTES = 25e6  # of DistributedDataParallel

Sharding = Literal["none", "gradients", "full"]


class Efficiency(NamedTuple):
    """What a generation of GPUs reaches."""

    matmul: float  # share of the peak, of wide matrix products
    attention: float  # share of the peak, of the operations of causal attention
    width: float  # channels at which products reach half of `matmul`


@dataclass(frozen=True)
class Constants:
    """The constants of the model of speed."""

    efficiency: Mapping[str, Efficiency]  # by generation
    link: float  # share of the bandwidth between GPUs that is reached, after what computation hides

    def of(self, generation: str) -> Efficiency:
        """The efficiencies of a generation, or those of the fitted generation that is closest to it."""
        return self.efficiency[generation if generation in self.efficiency else _CLOSEST.get(generation, "ampere")]


# Generations without published rows use those of another one.
_CLOSEST = {"volta": "ampere", "turing": "ampere", "ada": "ampere", "blackwell": "hopper"}

SHIPPED = Constants(
    efficiency={
        "ampere": Efficiency(0.920, 0.282, 745),
        "hopper": Efficiency(0.713, 0.163, 745),
        "cpu": Efficiency(0.95, 0.30, 40),  # docs/performance.md: the parts of a step of 124M; quickstart for the width
    },
    link=0.673,
)


class Range(NamedTuple):
    """An estimate with the ends of its range."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Stack:
    """How fast a code is: the speed of a step divided by that of the model with stack factor 1, which is LLM Foundry's.

    Args:
        factor: the middle of the range.
        spread: the ends of the range are `factor / spread` and `factor * spread`.
        source: where the factor comes from, in words.
        constants: those to which the factor applies.
    """

    factor: float = 1.0
    spread: float = 1.0
    source: str = "LLM Foundry"
    constants: Constants = SHIPPED


# Geometric mean of the published GPT-2 runs in PyTorch on such GPUs (docs/results/planning.md), all of which are within
# the range. `gpt2lab plan --calibrate` replaces it by a measurement.
_SPREAD = math.sqrt(1.5)
_STACKS = {
    "ampere": Stack(0.80, _SPREAD, "published GPT-2 runs in PyTorch on A100"),
    "hopper": Stack(1.14, _SPREAD, "published GPT-2 runs in PyTorch on H100"),
    "cpu": Stack(0.9, 1.5, "measured on one machine with two cores"),
}


def default_stack(gpu: GPU) -> Stack:
    """The stack factor of this code on a GPU on which it has not been measured.

    Args:
        gpu: from the table.
    """
    return _STACKS.get(gpu.generation, Stack(1.0, 1.5, "no published runs on such GPUs"))


@dataclass(frozen=True)
class Work:
    """What the GPUs compute: a model, and how a step is divided."""

    n_layer: int
    n_embd: int
    block_size: int
    vocab_size: int
    parameters: int  # all of them
    matmul_parameters: int  # blocks and output head
    micro_batch_size: int
    grad_accum_steps: int
    gpus: int
    sharding: Sharding = "none"
    gather_bytes: int = 4  # a parameter or gradient between GPUs: 4 in this code (fp32), 2 in LLM Foundry (bf16)
    checkpointing: bool = False
    precision: str = "bf16"
    muon_parameters: int = 0  # of matrices that Muon updates

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step, over all GPUs."""
        return self.micro_batch_size * self.grad_accum_steps * self.block_size * self.gpus


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step by part, with stack factor 1."""

    matmul: float
    attention: float
    traffic: float  # of the memory, by all other operations
    optimizer: float
    communication: float  # what computation does not hide
    launch: float  # host time beyond the device's
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        parts = (self.matmul, self.attention, self.traffic, self.optimizer, self.communication, self.launch)
        object.__setattr__(self, "seconds", sum(parts))


def step_time(work: Work, gpu: GPU, constants: Constants = SHIPPED) -> StepTime:
    """Estimate the seconds of an optimizer step.

    Args:
        work: the model and the division of a step.
        gpu: on which each rank computes.
        constants: efficiencies.

    Returns:
        The seconds by part.

    Raises:
        GPT2LabError: the GPU does not have the precision.
    """
    peak, bandwidth = gpu.peak_flops(work.precision), gpu.bandwidth * 1e9
    efficiency = constants.of(gpu.generation)
    micro_tokens = work.micro_batch_size * work.block_size
    tokens = micro_tokens * work.grad_accum_steps
    again = 4 / 3 if work.checkpointing else 1.0
    element = 1.0 if work.precision in ("bf16", "fp16", "fp8") else 2.0  # tensors of 32 bits are twice as large
    channels = work.n_layer * work.n_embd

    head = work.vocab_size * work.n_embd  # not computed again
    products = 6 * (again * (work.matmul_parameters - head) + head) * (1 + efficiency.width / work.n_embd)
    matmul = products / (peak * efficiency.matmul) * tokens
    pairs = again * 6 * channels * work.block_size  # the causal half of 12 L C T
    attention = pairs / (gpu.attention_flops(work.precision) * efficiency.attention) * tokens
    moved = again * BYTES_PER_CHANNEL * channels + BYTES_PER_LOGIT * work.vocab_size
    traffic = element * moved / bandwidth * tokens
    compute = matmul + attention + traffic
    shards = work.gpus if work.sharding != "none" else 1
    adamw = OPTIMIZER_BYTES * (work.parameters - work.muon_parameters) / shards
    return StepTime(
        matmul=matmul,
        attention=attention,
        traffic=traffic,
        optimizer=(adamw + MUON_BYTES * work.muon_parameters) / bandwidth + _orthogonalization(work, gpu, efficiency),
        communication=_communication(work, gpu, constants.link, compute / work.grad_accum_steps),
        launch=max(0.0, 0.0 if gpu.is_cpu else LAUNCH_SECONDS * work.n_layer * work.grad_accum_steps - compute),
    )


def _orthogonalization(work: Work, gpu: GPU, efficiency: Efficiency) -> float:
    """Seconds of Muon's matrix products. The ranks share the matrices of each shape, one or more of a layer."""
    if not work.muon_parameters:
        return 0.0
    single = [name for name in ("tf32", "fp32") if name in gpu.tflops]  # fp16 is not used: it would overflow
    precision = work.precision if work.precision in ("bf16", "fp32", "tf32") else single[0]
    rate = gpu.peak_flops(precision) * efficiency.matmul / (1 + efficiency.width / work.n_embd)
    share = math.ceil(work.n_layer / work.gpus) / work.n_layer
    return MUON_FLOPS * work.n_embd * work.muon_parameters * share / rate


def _communication(work: Work, gpu: GPU, link: float, micro_step: float) -> float:
    """Seconds of a step in which GPUs wait for each other's data.

    Rings pass through the slower of the links within a machine and the network between machines. FSDP gathers the
    weights for the forward and for the backward pass, and scatters the gradients, in each micro-step; what of it is
    hidden is in `link`, because the published rows do not tell both apart. DDP sums the gradients in the last backward
    pass (two thirds of a micro-step), which hides as much.
    """
    if work.gpus == 1:
        return 0.0
    slowest = gpu.link if work.gpus <= gpu.per_machine else min(gpu.link, gpu.network)
    seconds_per_value = (work.gpus - 1) / work.gpus / (slowest * 1e9 * link) * work.gather_bytes
    if work.sharding == "none":
        seconds = 2 * work.parameters * seconds_per_value
        last_bucket = seconds * min(
            1.0, 25e6 / (4 * work.parameters)
        )  # DDP's buckets have 25 MB; nothing hides the last
        gathered = 4 / work.gather_bytes * work.muon_parameters * seconds_per_value  # by Muon, in fp32
        return max(last_bucket, seconds - 2 / 3 * micro_step) + gathered
    passes = 3 if work.sharding == "full" else 2
    return passes * work.parameters * seconds_per_value * work.grad_accum_steps


def tokens_per_second(work: Work, gpu: GPU, stack: Stack, constants: Constants | None = None) -> Range:
    """Estimate the tokens per second of all GPUs.

    Args:
        work: the model and the division of a step.
        gpu: on which each rank computes.
        stack: how fast the code is.
        constants: efficiencies; None: those of the stack.

    Returns:
        The estimate with its range.

    Raises:
        GPT2LabError: the GPU does not have the precision.
    """
    middle = work.step_tokens / step_time(work, gpu, constants or stack.constants).seconds * stack.factor
    return Range(middle, middle / stack.spread, middle * stack.spread)

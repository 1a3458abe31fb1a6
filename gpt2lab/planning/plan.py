"""From settings and a GPU to a plan: does it fit, how fast is it, how long does it take, what does it cost."""

import os
from dataclasses import dataclass, replace

from gpt2lab.config import SIZES, Config, GPT2Config, largest_divisor
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import flops
from gpt2lab.planning import cost, memory, speed
from gpt2lab.planning.cost import Duration, Limits
from gpt2lab.planning.memory import GIB, Layout, Memory
from gpt2lab.planning.speed import Range, Stack, StepTime, Work
from gpt2lab.system.gpus import GPU

FIT_FRACTION = 0.97  # of a GPU's memory: the allocator cannot use the last parts of it
_CPU_FRACTION = 0.9  # the system needs the rest
_DISK_MB_PER_SECOND = 200.0  # a network volume; local disks are faster


@dataclass(frozen=True)
class Outlook:
    """Speed, time and cost of a run that fits."""

    step: StepTime  # with stack factor 1
    tokens_per_second: Range  # of all GPUs
    mfu: float
    duration: Duration
    cost: Range | None  # None: there is no price
    limits: Limits


@dataclass(frozen=True)
class Plan:
    """What to expect of a run on some GPUs."""

    gpu: GPU
    gpus: int
    precision: str
    stack: Stack
    memory: Memory  # with one sequence, if not more fits
    available: float  # bytes of a GPU
    largest_micro_batch_size: int  # that fits; 0: none
    micro_batch_size: int
    grad_accum_steps: int
    price_per_hour: float | None  # of all machines
    outlook: Outlook | None  # None: not even one sequence fits


def make(
    config: Config, gpu: GPU, gpus: int = 1, price_per_hour: float | None = None, stack: Stack | None = None
) -> Plan:
    """Plan a run.

    Args:
        config: the recipe.
        gpu: the kind of all GPUs.
        gpus: number of ranks.
        price_per_hour: of all machines; None: the table's price, if it has one.
        stack: how fast this code is, if it was measured on the GPU; None: the default for such GPUs.

    Returns:
        The plan.

    Raises:
        GPT2LabError: the tokens of a step do not divide among the GPUs, the GPU lacks the precision, or Muon is used
            with a sharded model.
    """
    if config.optimizer.name == "muon" and config.system.shard and gpus > 1:
        raise GPT2LabError("optimizer.name muon needs whole matrices; use it without system.shard")
    precision = gpu.choose_precision(config.system.precision)
    gpu.peak_flops(precision)
    layout = _layout(config, gpu, gpus, precision)
    requested = config.train.micro_batch_size
    plan = config.batch_plan(gpus, max_micro_tokens=config.model.block_size)
    sequences = plan.sequences // gpus
    available = _available(gpu, gpus)
    limit = available * (_CPU_FRACTION if gpu.is_cpu else memory.AUTO_FRACTION if requested == "auto" else FIT_FRACTION)
    largest = memory.largest_micro_batch(config.model, layout, sequences, limit)
    size = _lowered(plan.micro_batch_size, sequences, largest)
    if requested == "auto":  # on a CPU, training prefers small micro batches (system/device.py)
        tokens = 2048 if gpu.is_cpu else memory.AUTO_TOKENS
        size = min(largest, config.batch_plan(gpus, max_micro_tokens=tokens).micro_batch_size)
    layout = replace(layout, micro_batch_size=max(size, 1), grad_accum_steps=sequences // max(size, 1))
    price = price_per_hour if price_per_hour is not None else gpu.price_per_hour and gpu.price_per_hour * gpus
    stack = stack or speed.default_stack(gpu)
    return Plan(
        gpu=gpu,
        gpus=gpus,
        precision=precision,
        stack=stack,
        memory=memory.estimate(config.model, layout),
        available=available,
        largest_micro_batch_size=largest,
        micro_batch_size=size,
        grad_accum_steps=layout.grad_accum_steps,
        price_per_hour=price,
        outlook=_look_ahead(config, gpu, layout, stack, price) if largest else None,
    )


def is_compiled(config: Config, gpu: GPU) -> bool:
    """Whether training compiles the step on such a GPU.

    Args:
        config: the recipe.
        gpu: from the table.
    """
    return config.system.compile == "on" or (config.system.compile == "auto" and not gpu.is_cpu)


def _layout(config: Config, gpu: GPU, gpus: int, precision: str) -> Layout:
    return Layout(
        micro_batch_size=1,
        gpus=gpus,
        shard=config.system.shard and gpus > 1,
        checkpointing=config.system.activation_checkpointing,
        precision=precision,
        compiled=is_compiled(config, gpu),
        device="cpu" if gpu.is_cpu else "cuda",
        muon=config.optimizer.name == "muon",
    )


def _available(gpu: GPU, gpus: int) -> float:
    """Bytes of a rank: a GPU's memory, or its share of this machine's."""
    if gpu.memory_gib:
        return gpu.memory_gib * GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / gpus


def _lowered(requested: int, sequences: int, largest: int) -> int:
    """The micro batch that training comes to: it halves the requested one until it fits (training/memory.py)."""
    size = requested
    while size > max(largest, 1):
        size = largest_divisor(sequences, size // 2)
    return size if largest else 0


def _look_ahead(config: Config, gpu: GPU, layout: Layout, stack: Stack, price_per_hour: float | None) -> Outlook:
    work = work_of(config.model, layout)
    rate = speed.tokens_per_second(work, gpu, stack)
    duration = cost.estimate_duration(config, gpu, rate, layout.compiled)
    return Outlook(
        step=speed.step_time(work, gpu, stack.constants),
        tokens_per_second=rate,
        mfu=flops.flops_per_token(config.model) * rate.estimate / (gpu.peak_flops(layout.precision) * layout.gpus),
        duration=duration,
        cost=None if price_per_hour is None else cost.cost(duration, price_per_hour),
        limits=cost.find_limits(config, rate, duration, _DISK_MB_PER_SECOND),
    )


def work_of(model: GPT2Config, layout: Layout) -> Work:
    """What the GPUs compute in a step.

    Args:
        model: the architecture.
        layout: micro batch, ranks, precision.
    """
    attention = 12 * model.n_layer * model.n_embd * model.block_size
    return Work(
        n_layer=model.n_layer,
        n_embd=model.n_embd,
        block_size=model.block_size,
        vocab_size=model.vocab_size,
        parameters=flops.parameters(model),
        matmul_parameters=(flops.flops_per_token(model) - attention) // 6,
        micro_batch_size=layout.micro_batch_size,
        grad_accum_steps=layout.grad_accum_steps,
        gpus=layout.gpus,
        sharding="full" if layout.shard else "none",
        checkpointing=layout.checkpointing,
        precision=layout.precision,
        muon_parameters=12 * model.n_layer * model.n_embd**2 if layout.muon else 0,
    )


def suggest_settings(config: Config, gpu: GPU, gpus: int) -> tuple[str, ...]:
    """Settings with which a run that does not fit would, the fewest first.

    Args:
        config: the recipe, which does not fit.
        gpu: the kind of all GPUs.
        gpus: number of ranks.

    Returns:
        Options of the command line; empty if none helps.
    """
    for names in (("activation_checkpointing",), ("shard",), ("activation_checkpointing", "shard")):
        if "shard" in names and gpus == 1:
            continue
        changed = config.model_copy(update={"system": config.system.model_copy(update=dict.fromkeys(names, True))})
        if make(changed, gpu, gpus).outlook:
            return tuple(f"--system.{name}" for name in names)
    return ()


@dataclass(frozen=True)
class Offer:
    """What a budget buys for a model of GPT-2's family, in the batches and on the GPUs of a plan."""

    size: str
    parameters: int
    hours: float
    tokens: Range
    tokens_per_parameter: float


def spend(config: Config, plan: Plan, budget: float) -> list[Offer]:
    """Find the tokens that a budget buys, for the recipe's model and for the sizes of GPT-2.

    Args:
        config: the recipe.
        plan: of the recipe.
        budget: money, in the currency of the price.

    Returns:
        The recipe's model first; sizes that do not fit are left out. Empty without a price, or if the recipe does not
        fit.
    """
    if not plan.price_per_hour or plan.outlook is None:
        return []
    hours = budget / plan.price_per_hour
    models = {"recipe": config.model}
    for size in SIZES:
        shape = {"size": size} | config.model.model_dump(
            include={"architecture", "block_size", "vocab_size", "activation"}
        )
        if (model := GPT2Config.model_validate(shape)) != config.model:
            models[size] = model
    offers = []
    for name, model in models.items():
        # The micro batch is chosen anew for another size.
        train = config.train if name == "recipe" else config.train.model_copy(update={"micro_batch_size": "auto"})
        other = make(config.model_copy(update={"model": model, "train": train}), plan.gpu, plan.gpus, stack=plan.stack)
        if other.outlook is None:
            continue
        duration = other.outlook.duration
        share = duration.training / (duration.training + duration.evaluation + duration.checkpoints)
        seconds = max(0.0, hours - duration.start) * 3600 * share
        tokens = Range(*(rate * seconds for rate in other.outlook.tokens_per_second))
        parameters = flops.parameters(model)
        offers.append(Offer(name, parameters, hours, tokens, tokens.estimate / parameters))
    return offers

"""The `plan` command: a plan, a table of several, what a budget buys, or the errors on measured runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gpt2lab import config as settings
from gpt2lab import logs
from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import format_duration
from gpt2lab.model import flops
from gpt2lab.options import PlanOptions
from gpt2lab.planning import plan, validate
from gpt2lab.planning.memory import GIB
from gpt2lab.planning.plan import Offer, Outlook, Plan
from gpt2lab.planning.speed import Range
from gpt2lab.system import gpus


def run(options: PlanOptions) -> None:
    """Print what the options ask for.

    Args:
        options: the recipe, the GPUs and the prices.

    Raises:
        GPT2LabError: a setting, a GPU or a file is not valid.
    """
    table = gpus.load(options.gpus_file)
    if options.validate is not None:
        rows = validate.read(options.validate, table)
        summary = validate.summarize(validate.errors(rows))
        text = json.dumps(summary) if options.as_json else _describe_errors(summary, validate.count_too_big(rows))
        logs.print_result(text)
        return
    config = settings.load(options.config or [options.RECIPE], options.overrides)
    priced = sorted({gpu.name for gpu in table.values() if gpu.price_per_hour})
    kinds = [gpus.find(name, table) for name in options.gpu or priced]
    price = options.price_per_hour
    if price is not None and len(kinds) > 1:
        raise GPT2LabError("--price-per-hour is the price of one choice; with several GPUs the table's prices are used")
    if price is None and len(kinds) == 1 and config.tracking.price_per_hour:
        price = config.tracking.price_per_hour
    plans = [plan.make(config, kind, options.gpus, price) for kind in kinds]
    if options.budget is not None and not any(each.price_per_hour for each in plans):
        raise GPT2LabError(f"--budget needs a price: the table has none for {kinds[0].name}; add --price-per-hour")
    offers = [[] if options.budget is None else plan.spend(config, each, options.budget) for each in plans]
    if options.as_json:
        logs.print_result(json.dumps(_as_json(config, plans, offers)))
        return
    lines = _describe(config, plans[0]) if len(plans) == 1 else _compare(plans, offers, options.budget)
    if len(plans) == 1 and offers[0]:
        lines += _describe_offers(offers[0], options.budget)
    logs.print_result("\n".join([_headline(config, options.overrides), "", *lines]))


def _as_json(config: Config, plans: Sequence[Plan], offers: Sequence[Sequence[Offer]]) -> dict[str, Any]:
    """The object that docs/planning.md documents."""
    train = config.train
    return {
        "recipe": config.run.name,
        "parameters": flops.parameters(config.model),
        "flops_per_token": flops.flops_per_token(config.model),
        "tokens": train.max_steps * train.total_batch_size,
        "steps": train.max_steps,
        "plans": [_plan_as_json(each, bought) for each, bought in zip(plans, offers, strict=True)],
    }


def _plan_as_json(each: Plan, offers: Sequence[Offer]) -> dict[str, Any]:
    memory = each.memory.parts() | {"total": each.memory.total, "available": each.available}
    values: dict[str, Any] = {
        "gpu": each.gpu.name,
        "gpus": each.gpus,
        "precision": each.precision,
        "fits": each.outlook is not None,
        "micro_batch_size": each.micro_batch_size,
        "largest_micro_batch_size": each.largest_micro_batch_size,
        "grad_accum_steps": each.grad_accum_steps,
        "memory_gib": {part: size / GIB for part, size in memory.items()},
        "stack": asdict(each.stack),
        "price_per_hour": each.price_per_hour,
        "budget": [asdict(offer) | {"tokens": offer.tokens._asdict()} for offer in offers] or None,
    }
    return values | (_outlook_as_json(each.outlook) if each.outlook else dict.fromkeys(_OUTLOOK_KEYS))


_OUTLOOK_KEYS = ("tokens_per_second", "mfu", "step_seconds", "hours", "cost", "limits")


def _outlook_as_json(outlook: Outlook) -> dict[str, Any]:
    parts = asdict(outlook.duration)
    total = parts.pop("total")
    values = (
        outlook.tokens_per_second._asdict(),
        outlook.mfu,
        asdict(outlook.step),
        Range(*total)._asdict() | parts,
        None if outlook.cost is None else outlook.cost._asdict(),
        asdict(outlook.limits),
    )
    return dict(zip(_OUTLOOK_KEYS, values, strict=True))


def _headline(config: Config, overrides: Mapping[str, str]) -> str:
    """The recipe and the settings that change its model, its size and its length."""
    train = config.train
    given = " ".join(f"--{name} {value}" for name, value in overrides.items() if name.startswith("model."))
    name = f"{config.run.name or 'run'}{f' with {given}' if given else ''}"
    return (
        f"{name}: {flops.parameters(config.model):,} parameters, "
        f"{_short(train.max_steps * train.total_batch_size)} tokens in {train.max_steps:,} steps of "
        f"{train.total_batch_size:,}"
    )


def _describe(config: Config, each: Plan) -> list[str]:
    """One plan, a line for each question."""
    title = f"{each.gpus} x {each.gpu.name}, {each.precision}"
    sizes = {name: size / GIB for name, size in each.memory.parts().items()}
    parts = ", ".join(f"{name} {size:.1f}" for name, size in sizes.items() if size >= 0.05)
    memory = f"{each.memory.total / GIB:.1f} of {each.available / GIB:.1f} GiB: {parts}"
    outlook = each.outlook
    if outlook is None:
        helps = plan.suggest_settings(config, each.gpu, each.gpus)
        advice = f"add {' '.join(helps)}" if helps else "take more or larger GPUs, or a smaller model"
        return [title, f"  does not fit: one sequence takes {memory}", f"  {advice}"]
    hours, low, high = (format_duration(3600 * value) for value in outlook.duration.total)
    lines = [
        title,
        f"  micro batch   {each.micro_batch_size} sequences, {each.grad_accum_steps} in a step "
        f"(largest that fits: {each.largest_micro_batch_size}{_why_lowered(config, each)})",
        f"  memory        {memory}",
        f"  speed         {_range(outlook.tokens_per_second)} tokens/s, MFU {outlook.mfu:.0%}",
        f"                as fast as: {each.stack.source}",
        f"  time          {hours} ({low} to {high})",
    ]
    if outlook.cost is not None:
        cost = f"${_range(outlook.cost, 2)} at ${each.price_per_hour:,.2f} per hour"
        lines.append(f"  cost          {cost}{_price_source(each)}")
    return [*lines, f"  bottleneck    {_describe_bottleneck(outlook)}"]


def _why_lowered(config: Config, each: Plan) -> str:
    """Why the micro batch is smaller than the setting, which is its upper limit."""
    limit = config.train.micro_batch_size
    if limit in ("auto", each.micro_batch_size):
        return ""
    divides = config.batch_plan(each.gpus, max_micro_tokens=0).micro_batch_size
    if divides == each.micro_batch_size:
        return f"; {limit} does not divide the {each.micro_batch_size * each.grad_accum_steps} sequences of a GPU"
    return f"; {divides} does not fit, so training lowers it"


def _price_source(each: Plan) -> str:
    """Where the price comes from, if it is the table's."""
    price = each.gpu.price_per_hour
    if price is None or each.price_per_hour != price * each.gpus:
        return ""
    return f" ({each.gpu.price_source}, {each.gpu.price_date})"


def _describe_bottleneck(outlook: Outlook) -> str:
    limits = outlook.limits
    texts = {
        "data": f"reading {limits.read_mb_per_second:.0f} MB/s of tokens",
        "evaluation": f"evaluation, {limits.evaluation_share:.0%} of the time",
        "checkpoints": f"checkpoints: a write takes {format_duration(limits.checkpoint_seconds)}, "
        f"one is due every {format_duration(limits.checkpoint_interval_seconds)}",
    }
    if limits.holds_up:
        return "; ".join(texts[name] for name in limits.holds_up)
    return (
        f"the GPU; not the data ({limits.read_mb_per_second:.1f} MB/s of tokens), "
        f"evaluation ({limits.evaluation_share:.1%} of the time) or checkpoints"
    )


def _compare(plans: Sequence[Plan], offers: Sequence[Sequence[Offer]], budget: float | None) -> list[str]:
    """Several plans, a row for each, the cheapest first."""
    header = f"{'GPUs':16} {'micro batch':>12} {'memory GiB':>12} {'tokens/s':>12} {'hours':>22} {'cost':>24}"
    lines = [header + (f" {f'tokens for ${budget:g}':>20}" if budget is not None else "")]
    for each, bought in sorted(zip(plans, offers, strict=True), key=lambda pair: _rank(pair[0])):
        used = f"{each.memory.total / GIB:.1f}/{each.available / GIB:.0f}"
        line = f"{f'{each.gpus} x {each.gpu.name}':16} "
        outlook = each.outlook
        if outlook is None:
            lines.append(f"{line}{'does not fit':>12} {used:>12}")
            continue
        price = "no price" if outlook.cost is None else f"${_range(outlook.cost, 2)}"
        line += f"{each.micro_batch_size:>12} {used:>12} {outlook.tokens_per_second.estimate:>12,.0f}"
        line += f" {_range(outlook.duration.total, 2):>22} {price:>24}"
        lines.append(line + (f" {_short(bought[0].tokens.estimate):>20}" if bought else ""))
    return lines


def _rank(each: Plan) -> tuple[bool, bool, float]:
    """Order of the rows: by cost, then those without a price by time, then those that do not fit."""
    outlook = each.outlook
    if outlook is None:
        return True, True, 0.0
    return False, outlook.cost is None, (outlook.cost or outlook.duration.total).estimate


def _describe_offers(offers: Sequence[Offer], budget: float | None) -> list[str]:
    return ["", f"For ${budget:g}, {format_duration(3600 * offers[0].hours)} on these GPUs:"] + [
        f"  {offer.size:8} {offer.parameters / 1e6:7,.0f}M parameters: {_short(offer.tokens.estimate)} tokens "
        f"({_short(offer.tokens.low)} to {_short(offer.tokens.high)}), {offer.tokens_per_parameter:.1f} a parameter"
        for offer in offers
    ]


def _describe_errors(summary: dict[str, float | int], too_big: int) -> str:
    return (
        f"{summary['rows']} rows, error of tokens/s: median {summary['median_error']:.1%}, "
        f"90th percentile {summary['p90_error']:.1%}; {too_big} micro batches that ran would be called too big"
    )


def _range(values: Range, digits: int = 0) -> str:
    """An estimate with its range, without decimals for large values."""
    digits = 0 if values.estimate >= 100 else digits
    estimate, low, high = (f"{value:,.{digits}f}" for value in values)
    return f"{estimate} ({low} to {high})"


def _short(value: float) -> str:
    return f"{value / 1e9:.2f}B" if value >= 1e9 else f"{value / 1e6:.1f}M"

"""The `plan` command: a plan, a table of several, what a budget buys, or the errors on measured runs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gpt2lab import config as settings
from gpt2lab import logs
from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import flops, init_from
from gpt2lab.options import PlanOptions
from gpt2lab.planning import calibration, loss, plan, text, validate
from gpt2lab.planning.memory import GIB
from gpt2lab.planning.plan import Offer, Outlook, Plan
from gpt2lab.planning.speed import Range
from gpt2lab.system import cpu, gpus
from gpt2lab.system.gpus import GPU


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
        errors = json.dumps(summary) if options.as_json else _describe_errors(summary, validate.count_too_big(rows))
        logs.print_result(errors)
        return
    config = init_from.apply(settings.load(options.config or [options.RECIPE], options.overrides), options.overrides)
    priced = sorted({gpu.name for gpu in table.values() if gpu.price_per_hour})
    kinds = [gpus.find(name, table) for name in options.gpu or priced]
    price = options.price_per_hour
    if price is not None and len(kinds) > 1:
        raise GPT2LabError("--price-per-hour is the price of one choice; with several GPUs the table's prices are used")
    if price is None and len(kinds) == 1 and config.tracking.price_per_hour:
        price = config.tracking.price_per_hour
    plans = [_make(config, kind, options.gpus, price) for kind in kinds]
    if options.budget is not None and not any(each.price_per_hour for each in plans):
        raise GPT2LabError(f"--budget needs a price: the table has none for {kinds[0].name}; add --price-per-hour")
    offers = [[] if options.budget is None else plan.spend(config, each, options.budget) for each in plans]
    if options.as_json:
        logs.print_result(json.dumps(_as_json(config, plans, offers)))
        return
    lines = text.describe(config, plans[0]) if len(plans) == 1 else text.compare(plans, offers, options.budget)
    if len(plans) == 1 and offers[0]:
        lines += text.describe_offers(offers[0], options.budget)
    logs.print_result("\n".join([*text.headline(config, options.overrides), "", *lines]))


def _make(config: Config, gpu: GPU, gpus: int, price: float | None) -> Plan:
    """Plan with what `--calibrate` measured on such a GPU, if it did."""
    device = cpu.name() if gpu.is_cpu else ""
    precision = gpu.choose_precision(config.system.precision)
    measured = calibration.find(precision, plan.is_compiled(config, gpu), gpu=gpu.name, device=device)
    known, stack = measured.apply(gpu, gpus) if measured and precision in gpu.tflops else (gpu, None)
    return plan.make(config, known, gpus, price, stack)


def _as_json(config: Config, plans: Sequence[Plan], offers: Sequence[Sequence[Offer]]) -> dict[str, Any]:
    """The object that docs/planning.md documents."""
    train, expected = config.train, loss.expect(config)
    return {
        "recipe": config.run.name,
        "parameters": flops.parameters(config.model),
        "flops_per_token": flops.flops_per_token(config.model),
        "tokens": train.max_steps * train.total_batch_size,
        "steps": train.max_steps,
        "loss": None if expected is None else expected._asdict() | {"law": loss.BESIROGLU.source},
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
        "stack": {key: getattr(each.stack, key) for key in ("factor", "spread", "source")},
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


def _describe_errors(summary: dict[str, float | int], too_big: int) -> str:
    return (
        f"{summary['rows']} rows, error of tokens/s: median {summary['median_error']:.1%}, "
        f"90th percentile {summary['p90_error']:.1%}; {too_big} micro batches that ran would be called too big"
    )

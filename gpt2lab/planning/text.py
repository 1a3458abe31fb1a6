"""A plan as text: one in full, or several in a table."""

from collections.abc import Mapping, Sequence

from gpt2lab.config import Config
from gpt2lab.formatting import format_duration, plural
from gpt2lab.model import flops
from gpt2lab.planning import loss, plan
from gpt2lab.planning.memory import GIB
from gpt2lab.planning.plan import Offer, Outlook, Plan
from gpt2lab.planning.speed import Range


def headline(config: Config, overrides: Mapping[str, str], train_tokens: int | None = None) -> list[str]:
    """The lines about the recipe: its model, its length, and the loss to expect where a law says it.

    Args:
        config: the recipe.
        overrides: settings of the command line, of which those of the model are named.
        train_tokens: of the training split, if it is known.
    """
    train = config.train
    given = " ".join(f"--{name} {value}" for name, value in overrides.items() if name.startswith("model."))
    name = f"{config.run.name or 'run'}{f' with {given}' if given else ''}"
    lines = [
        f"{name}: {flops.parameters(config.model):,} parameters, "
        f"{_short(train.max_steps * train.total_batch_size)} tokens in {plural(train.max_steps, 'step')} of "
        f"{train.total_batch_size:,}"
    ]
    if expected := loss.expect(config, train_tokens):
        law = loss.BESIROGLU
        lines += [
            f"expected loss: {expected.estimate:.2f} ({expected.low:.2f} to {expected.high:.2f}) nats per token, by "
            f"{law.source},",
            f"  which was fitted to other data ({law.data})",
        ]
    return lines


def describe(config: Config, each: Plan, title: str = "") -> list[str]:
    """One plan, a line for each question.

    Args:
        config: the recipe.
        each: its plan.
        title: the first line; empty: number and name of the GPUs.
    """
    title = title or f"{each.gpus} x {each.gpu.name}, {each.precision}"
    sizes = {name: size / GIB for name, size in each.memory.parts().items()}
    parts = ", ".join(f"{name} {size:.1f}" for name, size in sizes.items() if size >= 0.05)
    memory = f"{each.memory.total / GIB:.1f} of {each.available / GIB:.1f} GiB: {parts}"
    outlook = each.outlook
    if outlook is None:
        helps = plan.suggest_settings(config, each.gpu, each.gpus)
        advice = f"add {' '.join(helps)}" if helps else "take more or larger GPUs, or a smaller model"
        return [title, f"  does not fit: one sequence takes {memory}", f"  {advice}"]
    hours, low, high = (format_duration(3600 * value) for value in outlook.duration.total)
    mfu = "" if each.gpu.is_cpu else f", MFU {outlook.mfu:.0%}"
    lines = [
        title,
        f"  micro batch   {plural(each.micro_batch_size, 'sequence')}, {each.grad_accum_steps} in a step "
        f"(largest that fits: {each.largest_micro_batch_size}{_why_lowered(config, each)})",
        f"  memory        {memory}",
        f"  speed         {_range(outlook.tokens_per_second)} tokens/s{mfu}",
        f"                as fast as: {each.stack.source}",
        f"  time          {hours} ({low} to {high})",
    ]
    if outlook.cost is not None:
        cost = f"${_range(outlook.cost, 2)} at ${each.price_per_hour:,.2f} per hour"
        lines.append(f"  cost          {cost}{_price_source(each)}")
    return [*lines, f"  bottleneck    {_describe_bottleneck(outlook, 'CPU' if each.gpu.is_cpu else 'GPU')}"]


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


def _describe_bottleneck(outlook: Outlook, device: str) -> str:
    limits = outlook.limits
    texts = {
        "data": f"reading {limits.read_mb_per_second:.0f} MB/s of tokens",
        "evaluation": f"evaluation, {limits.evaluation_share:.0%} of the time",
        "checkpoints": f"checkpoints: a write takes {_format_interval(limits.checkpoint_seconds)}, "
        f"one is due every {_format_interval(limits.checkpoint_interval_seconds)}",
    }
    if limits.holds_up:
        return "; ".join(texts[name] for name in limits.holds_up)
    return (
        f"the {device}; not the data ({limits.read_mb_per_second:.1f} MB/s of tokens), "
        f"evaluation ({limits.evaluation_share:.1%} of the time) or checkpoints"
    )


def _format_interval(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else format_duration(seconds)


def compare(plans: Sequence[Plan], offers: Sequence[Sequence[Offer]], budget: float | None) -> list[str]:
    """Several plans, a row for each, the cheapest first.

    Args:
        plans: of one recipe.
        offers: for each plan, what the budget buys; empty without one.
        budget: money; None: there is none.
    """
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


def describe_offers(offers: Sequence[Offer], budget: float | None) -> list[str]:
    """What a budget buys, a line for each size.

    Args:
        offers: at least one.
        budget: money.
    """
    return ["", f"For ${budget:g}, {format_duration(3600 * offers[0].hours)} on these GPUs:"] + [
        f"  {offer.size:8} {offer.parameters / 1e6:7,.0f}M parameters: {_short(offer.tokens.estimate)} tokens "
        f"({_short(offer.tokens.low)} to {_short(offer.tokens.high)}), {offer.tokens_per_parameter:.1f} a parameter"
        for offer in offers
    ]


def _range(values: Range, digits: int = 0) -> str:
    """An estimate with its range, without decimals for large values."""
    digits = 0 if values.estimate >= 100 else digits
    estimate, low, high = (f"{value:,.{digits}f}" for value in values)
    return f"{estimate} ({low} to {high})"


def _short(value: float) -> str:
    if value < 1e6:
        return f"{value:,.0f}"
    return f"{value / 1e9:.2f}B" if value >= 1e9 else f"{value / 1e6:.1f}M"

"""Results of the `scaling` command as text for a person."""

from collections.abc import Mapping
from typing import Any

from gpt2lab.formatting import format_count, format_duration, plural
from gpt2lab.scaling.forms import Law

EQUATIONS = {
    "approach3": "approach 3: L = E + A N^-alpha + B D^-beta",
    "coupled": "coupled form: L = E + (a M^eta + b M^-eta) C^-eta, M = D / N",
}


def format_fit(result: Mapping[str, Any], counted: str) -> str:
    """The forms with intervals, optimal growth, ways of counting and largest residuals.

    Args:
        result: of `fit.to_json`.
        counted: what N counts.

    Returns:
        Lines of text.
    """
    lines = [f"{plural(result['points'], 'point')}, N: {counted}"]
    for form, equation in EQUATIONS.items():
        lines += ["", equation, *(_parameter_lines(result[form]) if result[form] else ["  cannot be fitted"])]
        if residuals := result["residuals"].get(form):
            name, largest = max(residuals.items(), key=lambda item: abs(item[1]))
            rms = (sum(value * value for value in residuals.values()) / len(residuals)) ** 0.5
            lines.append(f"  residuals: {rms:.2%} (root mean square), largest {largest:+.2%} at {name}")
    lines += ["", "approach 2: N = n_factor C^a, D = d_factor C^b, through the minima of equal compute"]
    two = result["approach2"]
    lines += _parameter_lines({k: two[k] for k in ("a", "b", "interval95")}) if two else ["  cannot be fitted"]
    if optimum := result["optimum"]:
        n, d = optimum["parameters"], optimum["tokens"]
        sizes = f"{format_count(n)} parameters, {format_count(d)} tokens, {d / n:.3g} tokens a parameter"
        lines += ["", f"optimum at {optimum['flops']:.2g} FLOPs, the largest compute of a point: {sizes}"]
    laws = {way: Law(**law) for way, law in result["counts"].items() if law}
    if laws:
        lines += ["", "approach 3 by what N counts: alpha, beta, and the exponent a of N = G C^a"]
        for way, law in laws.items():
            lines.append(f"  {way:16} {law.alpha:7.3f} {law.beta:7.3f} {law.optimal_exponents()[0]:7.3f}")
    return "\n".join(lines)


def _parameter_lines(values: Mapping[str, Any]) -> list[str]:
    intervals = values["interval95"]
    lines = []
    for name, value in values.items():
        if name == "interval95":
            continue
        low, high = intervals.get(name, (None, None))
        interval = f"   95%: {low:.4g} to {high:.4g}" if low is not None else ""
        lines.append(f"  {name:5} {value:10.4g}{interval}")
    return lines


def format_prediction(result: Mapping[str, Any]) -> str:
    """The predicted loss with its interval, and where it was recorded.

    Args:
        result: the prediction.

    Returns:
        Lines of text.
    """
    low, high = result["interval95"]
    lines = [
        f"predicted final loss {result['loss']:.4f}, 95% interval {low:.4f} to {high:.4f}",
        f"{result['parameters']:,.0f} parameters, {result['tokens']:,.0f} tokens, {result['compute_ratio']:.1f} times "
        f"the compute of the largest of {result['points']} points; form: {result['form']}",
    ]
    if result.get("recorded"):
        lines.append(f"recorded {result['date']} in {result['recorded']}")
    return "\n".join(lines)


def format_plan(plan: Mapping[str, Any]) -> str:
    """The runs of a plan, and what all of them cost.

    Args:
        plan: of `design.to_json`.

    Returns:
        Lines of text.
    """
    header = ("run", "FLOPs", "parameters", "tokens", "steps", "batch", "rate", "time")
    rows = [
        (
            row["name"],
            f"{row['flops']:.1e}",
            format_count(row["parameters"]),
            format_count(row["tokens"]),
            f"{row['settings']['train.max_steps']:,}",
            f"{row['settings']['train.total_batch_size']:,}",
            f"{row['settings']['optimizer.max_lr']:.1e}",
            format_duration(row["seconds"]) if row["seconds"] else "?",
        )
        for row in plan["runs"]
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    total = f"{plural(len(rows), 'run')}, {plan['flops']:.2e} FLOPs"
    time = f", {format_duration(plan['seconds'])} one after another" if plan["seconds"] else ""
    return "\n".join([*lines, total + (time or "; for their time, give --speed or a finished run")])

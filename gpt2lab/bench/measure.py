"""Tools for timing: turns, medians, checks against a target, and a description of the machine.

`gpt2lab bench` and the scripts in `benchmarks/` share them. Contenders take turns, so that other load on the machine
slows all of them alike. No torch is imported here until a device is used.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from gpt2lab import progress

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """Repeated measurements of one contender.

    Args:
        seconds: duration of each repetition.
    """

    seconds: Sequence[float]

    @property
    def median(self) -> float:
        """Median duration in seconds."""
        return statistics.median(self.seconds)

    def rate(self, amount: float) -> float:
        """Units of work a second, if each repetition does `amount` of them; by the median."""
        return amount / self.median

    def rate_range(self, amount: float) -> str:
        """The slowest and the fastest rate as text, `4.1-5.0`."""
        return f"{amount / max(self.seconds):.1f}-{amount / min(self.seconds):.1f}"


def take_turns(contenders: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call each contender once a round; each round begins with another contender.

    Args:
        contenders: functions by name.
        rounds: calls of each.

    Returns:
        The results of each contender by name, in the order of the calls.
    """
    results: dict[str, list[T]] = {name: [] for name in contenders}
    names = list(contenders)
    with progress.Phase("measuring", rounds * len(names)) as phase:
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                phase.update(phase.completed, f"round {number + 1} of {rounds}, {name}" if name else "")
                results[name].append(contenders[name]())
                phase.advance()
            logger.info("round %d of %d", number + 1, rounds)
    return results


def time_call(function: Callable[[], object], device: "torch.device") -> float:
    """Seconds that a call takes, including the work that it queues on the device."""
    from gpt2lab.system.device import synchronize

    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def time_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int, device: "torch.device"
) -> dict[str, Timing]:
    """Time contenders in turns.

    Args:
        contenders: functions by name.
        rounds: calls of each.
        device: where they compute.

    Returns:
        The durations of each contender by name.
    """
    timed = {name: lambda function=function: time_call(function, device) for name, function in contenders.items()}
    return {name: Timing(seconds) for name, seconds in take_turns(timed, rounds).items()}


def environment(device: "torch.device") -> dict[str, Any]:
    """Commit, version of torch and hardware, which belong to every published figure."""
    import torch

    from gpt2lab.system.device import describe
    from gpt2lab.training.environment import commit

    return {"commit": commit(), "torch": torch.__version__, **describe(device)}


def format_environment(values: Mapping[str, object]) -> str:
    """The description of a machine on one line."""
    return "; ".join(f"{key} {'unknown' if value is None else value}" for key, value in values.items())


class Check(NamedTuple):
    """A line of a benchmark's output; `passed` tells whether the figure meets its target (None: there is none)."""

    name: str
    figure: str
    passed: bool | None = None


Part = Callable[[], Iterable[Check]]


def run_parts(parts: Mapping[str, Part], selected: Sequence[str]) -> None:
    """Run the selected parts of a benchmark and print each check as soon as it is known: `ok`, `MISS` or no verdict."""
    for part in selected:
        for check in parts[part]():
            verdict = "    " if check.passed is None else "ok  " if check.passed else "MISS"
            print(f"{verdict} {part:9} {check.name}: {check.figure}", flush=True)


def argument_parser(
    description: str | None, parts: Sequence[str] = (), *, rounds: int | None = None
) -> argparse.ArgumentParser:
    """The parser of a benchmark script.

    Args:
        description: the script's docstring, printed as it is.
        parts: if given, `--only A,B` selects some of them; the result's `only` is a list.
        rounds: default of `--rounds`; None: the script has no such option.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def part_names(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(parts):
            raise argparse.ArgumentTypeError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
        return names

    if parts:
        parser.add_argument(
            "--only", type=part_names, default=list(parts), metavar="A,B", help=f"parts of {', '.join(parts)}"
        )
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, metavar="N", help=f"default: {rounds}")
    return parser


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table.

    Args:
        columns: headings.
        rows: cells of each row, in the order of the columns.
    """
    lines: list[Sequence[object]] = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)

"""The outcome of an experiment: how many trials, how many of them passed, and what was wrong with the others."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """Filled by an experiment, one trial at a time.

    Args:
        passed: how many trials had no problem.
        problems: one line for every other trial.
        figures: what else was measured.
        missed_bar: the part of the bar that was not reached although no trial failed.
    """

    passed: int = 0
    problems: list[str] = field(default_factory=list)
    figures: str = ""
    missed_bar: str = ""

    @property
    def trials(self) -> int:
        """The number of all trials."""
        return self.passed + len(self.problems)

    def add(self, name: str, problems: Iterable[str]) -> None:
        """Count a trial. It passed if there are no problems."""
        problems = list(problems)
        if problems:
            self.problems.append(f"{name}: {'; '.join(problems)}")
        else:
            self.passed += 1

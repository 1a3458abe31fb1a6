"""What came of an experiment: how many trials, how many of them good, and what was wrong with the others."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """Filled by an experiment a trial at a time; `figures` is whatever else was measured, `short_of` what of the bar
    was not reached although nothing is wrong."""

    good: int = 0
    wrong: list[str] = field(default_factory=list)
    figures: str = ""
    short_of: str = ""

    @property
    def tried(self) -> int:
        """All trials."""
        return self.good + len(self.wrong)

    def trial(self, name: str, complaints: Iterable[str]) -> None:
        """Count a trial: good without complaints."""
        complaints = list(complaints)
        if complaints:
            self.wrong.append(f"{name}: {'; '.join(complaints)}")
        else:
            self.good += 1

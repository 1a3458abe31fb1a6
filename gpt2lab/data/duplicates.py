"""Which documents were seen before: exact duplicates, told by 64-bit hashes.

Sorted runs of hashes, each at least twice as long as the next, as in a log-structured store: eight bytes a document,
and a look-up of a thousand documents at once is a handful of binary searches. The probability that any two different
documents among 100 million share a hash is about 1 in 4,000.
"""

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


class Seen:
    """A set of hashes that only grows."""

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def add(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Take in `hashes` `(documents,)`; returns which of them were seen before, here or earlier in `hashes`."""
        _, first = np.unique(hashes, return_index=True)
        again = np.ones(len(hashes), dtype=np.bool_)
        again[first] = False
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            again |= run[places] == hashes
        if not again.all():
            self._runs.append(np.sort(hashes[~again]))
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort(kind="stable")
            self._runs.append(merged)
        return again

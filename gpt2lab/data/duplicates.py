"""Find exact duplicates among documents by their 64-bit hashes.

Memory is 8 bytes a document, plus 100 MB at most. The probability that two different documents among 100 million have
the same hash is about 1 in 4,000.
"""

import numpy as np
import numpy.typing as npt

_MAX_RECENT = 1 << 20


class SeenHashes:
    """A set of hashes: a sorted array, and a Python set of the latest ones, which is merged into it when it is large.

    Args:
        hashes: `(n,)` uint64, the initial elements.
    """

    def __init__(self, hashes: npt.NDArray[np.uint64] | None = None):
        self._sorted = np.unique(np.empty(0, dtype=np.uint64) if hashes is None else hashes)
        self._recent: set[int] = set()

    def add(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Add hashes and find duplicates.

        Args:
            hashes: `(documents,)` uint64.

        Returns:
            `(documents,)` bool, true where the hash was in the set, or earlier in `hashes`.
        """
        left, right = (np.searchsorted(self._sorted, hashes, side=side) for side in ("left", "right"))
        seen: npt.NDArray[np.bool_] = left < right
        for row, value in enumerate(hashes.tolist()):
            if value in self._recent:
                seen[row] = True
            elif not seen[row]:
                self._recent.add(value)
        if len(self._recent) >= _MAX_RECENT:
            recent = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, np.sort(recent)]), kind="stable")  # merges two runs
            self._recent.clear()
        return seen

"""Duplicates are found like with a Python set, also after the recent hashes have been merged."""

import numpy as np

from gpt2lab.data import duplicates


def test_the_same_duplicates_as_with_a_set(monkeypatch):
    monkeypatch.setattr(duplicates, "_MAX_RECENT", 50)
    rng, known = np.random.default_rng(0), {3, 2**64 - 1}
    seen = duplicates.SeenHashes(np.array(sorted(known), dtype=np.uint64))
    for size in (0, 1, 30, 200, 7, 500):
        hashes = rng.integers(0, 400, size).astype(np.uint64) * np.uint64(2**55)
        expected = [value in known or value in hashes[:i].tolist() for i, value in enumerate(hashes.tolist())]
        assert seen.add(hashes).tolist() == expected
        known.update(hashes.tolist())

"""A pseudo-random permutation of 0 … n - 1 that is computed element by element and needs no memory."""

import hashlib

import numpy as np
import numpy.typing as npt

_ROUNDS = 6  # of the Feistel network; theory asks for four, two more cost little


def permute(indices: npt.NDArray[np.int64], n: int, key: str) -> npt.NDArray[np.int64]:
    """Apply the permutation of 0 … n - 1 that `key` selects.

    A Feistel network permutes 0 … 4^k - 1, where 4^k is the smallest power of four that is not below n. A result that
    is not below n is permuted again until one is ("cycle walking"), which gives a permutation of 0 … n - 1.

    Args:
        indices: what to permute, int64 below n, any shape.
        n: number of elements of the permutation.
        key: selects the permutation.

    Returns:
        int64 of the shape of `indices`.
    """
    half_bits = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))  # k
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    round_keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest(), dtype="<u8")

    def feistel(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        high, low = values >> half_bits, values & mask
        for round_key in round_keys:
            high, low = low, high ^ (_mix(low ^ round_key) & mask)
        return (high << half_bits) | low

    values = feistel(indices.astype(np.uint64))
    while (outside := values >= n).any():
        values[outside] = feistel(values[outside])
    return values.astype(np.int64)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix the bits of each value: the finalizer of splitmix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

"""Batches for training, by arithmetic alone: nothing is remembered from one step to the next.

A split of N tokens is n = ceil((N - 1) / T) sequences. Sequence i is the T + 1 tokens from min(i * T, N - 1 - T) on:
inputs and, one further, targets. The last one overlaps its neighbour, so that no token is left out.

    step ─▶ S places in the endless order  step * S + (0 … S - 1)
         ─▶ (epoch, place in the epoch)    divmod by n; a step may straddle two epochs
         ─▶ sequence i                     a permutation of 0 … n - 1 keyed by (seed, epoch), computed as needed
         ─▶ this rank's contiguous share   tokens x (S / world_size, T), targets y

Resuming is calling `batch` with another step, and the tokens of a step do not depend on the number of processes.
"""

import hashlib
import math
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gpt2lab.data.shards import TokenStream
from gpt2lab.errors import GPT2LabError

Ids = npt.NDArray[np.int64]
Result = TypeVar("Result")

_ROUNDS = 6  # of the Feistel network; four suffice in theory, two more are cheap
_CHECKED_AT_OPENING = 65_536


class Loader:
    """The batches of one process.

    Args:
        stream: the training split.
        block_size: T, tokens of a sequence.
        sequences_per_step: S, over all processes and micro-steps; a multiple of `world_size`.
        vocab_size: ids must be below it.
        seed: of the order.
        rank, world_size: which share of a step `batch` returns.

    Raises:
        GPT2LabError: on construction, when the split is shorter than one sequence, or an id at the beginning of a
            shard is not in the vocabulary.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        block_size: int,
        sequences_per_step: int,
        vocab_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        assert 0 <= rank < world_size
        assert sequences_per_step % world_size == 0
        _require_one_sequence(stream, block_size)
        self.stream, self.block_size, self.sequences_per_step = stream, block_size, sequences_per_step
        self.vocab_size, self.seed, self.rank, self.world_size = vocab_size, seed, rank, world_size
        self.sequences = math.ceil((len(stream) - 1) / block_size)
        for start, end in zip(stream.starts[:-1], stream.starts[1:], strict=True):
            length = min(int(end - start), _CHECKED_AT_OPENING)
            _check_ids(stream, np.array([start]), stream.read(int(start), length)[None], vocab_size)

    def sequence_ids(self, step: int) -> Ids:
        """The sequences of a whole step, `(sequences_per_step,)` int64; the same on every rank."""
        assert step >= 0
        places = step * self.sequences_per_step + np.arange(self.sequences_per_step, dtype=np.int64)
        epochs, places = np.divmod(places, self.sequences)
        ids = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            ids[of_epoch] = permute(places[of_epoch], self.sequences, f"{self.seed}/{epoch}")
        return ids

    def batch(self, step: int) -> tuple[Ids, Ids]:
        """This rank's inputs and targets of a step: x and y, each `(sequences_per_step / world_size, T)` int64.

        Raises:
            GPT2LabError: an id is not in the vocabulary.
        """
        share = self.sequences_per_step // self.world_size
        mine = self.sequence_ids(step)[self.rank * share : (self.rank + 1) * share]
        return read_sequences(self.stream, mine, self.block_size, self.vocab_size)


def read_sequences(stream: TokenStream, ids: Ids, block_size: int, vocab_size: int) -> tuple[Ids, Ids]:
    """Inputs and targets of the sequences `ids` `(n,)`: x and y, each `(n, T)` int64.

    Raises:
        GPT2LabError: an id is not in the vocabulary.
    """
    starts = np.minimum(ids * block_size, len(stream) - 1 - block_size)
    tokens = stream.gather(starts, block_size + 1)
    _check_ids(stream, starts, tokens, vocab_size)
    return tokens[:, :-1].astype(np.int64), tokens[:, 1:].astype(np.int64)


def fixed_sequences(stream: TokenStream, block_size: int, tokens: int) -> int:
    """How many whole sequences the first `tokens` targets of a split hold, or the whole split if it has fewer.

    Sequences 0 up to this number, given to `read_sequences`, are the validation set: always the same tokens.

    Raises:
        GPT2LabError: the split, or `tokens`, is shorter than one sequence.
    """
    _require_one_sequence(stream, block_size)
    if tokens < block_size:
        raise GPT2LabError(
            f"train.eval_tokens {tokens} is less than one sequence; set at least {block_size} (block_size)"
        )
    return min(tokens, len(stream) - 1) // block_size


def prefetch(batch_of: Callable[[int], Result], start_step: int, end_step: int) -> Generator[Result, None, None]:
    """`batch_of(step)` for the steps from `start_step` up to `end_step`, each computed while the one before is in use.

    One background thread does it; it ends with the iterator (at its end, or when it is closed or collected). What
    `batch_of` raises is raised here, at its step.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        coming = thread.submit(batch_of, start_step) if start_step < end_step else None
        for step in range(start_step, end_step):
            assert coming is not None
            ready = coming.result()
            coming = thread.submit(batch_of, step + 1) if step + 1 < end_step else None
            yield ready


def permute(places: Ids, n: int, key: str) -> Ids:
    """Where a permutation of 0 … n - 1 chosen by `key` takes each of `places` (int64, below n).

    A Feistel network permutes 0 … 4^k - 1, the next power of four; a result that is not below n is put through it
    again until one is ("cycle walking"), which makes it a permutation of 0 … n - 1.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))  # k
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest(), dtype="<u8")

    def network(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> half, values & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << half) | right

    values = network(places.astype(np.uint64))
    while (outside := values >= n).any():
        values[outside] = network(values[outside])
    return values.astype(np.int64)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Every bit of the result depends on every bit of the value (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _require_one_sequence(stream: TokenStream, block_size: int) -> None:
    if len(stream) < block_size + 1:
        raise GPT2LabError(
            f"{stream.folder}: {stream.split} split too short: {len(stream)} tokens, "
            f"one sequence takes {block_size + 1}; add shards or lower model.block_size"
        )


def _check_ids(stream: TokenStream, starts: Ids, tokens: npt.NDArray[np.uint16], vocab_size: int) -> None:
    """Refuse ids outside the vocabulary. `tokens` `(n, length)` were read at the positions `starts` `(n,)`."""
    if tokens.size and int(tokens.max()) >= vocab_size:
        row, column = np.argwhere(tokens >= vocab_size)[0]
        file, offset = stream.locate(int(starts[row] + column))
        raise GPT2LabError(
            f"{file}: token {offset} is {tokens[row, column]}, but model.vocab_size is {vocab_size}; "
            f"set the model's vocabulary to the shards', or prepare them again if they are damaged"
        )

"""Batches for training. They depend only on the step number; the loader has no state.

How one batch is made, for sequences of T tokens (`block_size`) and a split of N tokens:

1. The split is divided into n = ceil((N - 1) / T) sequences. Sequence i has the inputs [i T, i T + T) and the targets
   one token further. The last sequence ends with the last token and overlaps its predecessor, so that no token is left
   out.
2. An epoch visits all n sequences in a pseudo-random order, which `permute` computes from (seed, epoch). Epochs follow
   each other without a gap.
3. Step s takes the S sequences (`sequences_per_step`) at the places s S to s S + S - 1 of this order. A step may begin
   in one epoch and end in the next.
4. Rank r of R reads the r-th of R equal parts of these sequences through the memory maps of the shards: tokens
   `x` and targets `y`, each int64 `(S / R, T)`.

A resumed run requests the next step, and a step has the same tokens for every number of processes. `prefetch`
computes the next batch in the background.
"""

import math
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gpt2lab.data.permutation import permute
from gpt2lab.data.shard_formats import REPAIR, Tokens
from gpt2lab.data.shards import TokenStream
from gpt2lab.data.tokenizer import VOCAB_SIZE
from gpt2lab.errors import GPT2LabError

Ids = npt.NDArray[np.int64]
Result = TypeVar("Result")

_CHECKED_TOKENS = 65_536  # of each shard on construction; all others are checked when they are read


class Loader:
    """Reads the training batches of one process.

    Args:
        stream: the training split.
        block_size: T, tokens of a sequence.
        sequences_per_step: S, sequences of an optimizer step over all processes and micro-steps. Must be a multiple of
            `world_size`.
        vocab_size: token ids must be below it.
        seed: of the order of sequences.
        rank: index of this process.
        world_size: number of processes.

    Raises:
        GPT2LabError: on construction, if the split is shorter than one sequence, or a token at the beginning of a shard
            is not in the vocabulary.
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
        for start, end in zip(stream.starts[:-1].tolist(), stream.starts[1:].tolist(), strict=True):
            tokens = stream.read(start, min(end - start, _CHECKED_TOKENS))
            _check_ids(stream, np.array([start]), tokens[None], vocab_size)

    def sequence_ids(self, step: int) -> Ids:
        """Compute the sequences of a step, which are the same on every rank.

        Args:
            step: index of the step, from 0.

        Returns:
            int64 `(sequences_per_step,)`.
        """
        assert step >= 0
        places = step * self.sequences_per_step + np.arange(self.sequences_per_step, dtype=np.int64)
        epochs, places = np.divmod(places, self.sequences)
        ids = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            in_epoch = epochs == epoch
            ids[in_epoch] = permute(places[in_epoch], self.sequences, f"{self.seed}/{epoch}")
        return ids

    def batch(self, step: int) -> tuple[Ids, Ids]:
        """Read this rank's share of a step.

        Args:
            step: index of the step, from 0.

        Returns:
            Inputs x and targets y, each int64 `(sequences_per_step / world_size, T)`.

        Raises:
            GPT2LabError: a token is not in the vocabulary.
        """
        share = self.sequences_per_step // self.world_size
        ids = self.sequence_ids(step)[self.rank * share : (self.rank + 1) * share]
        return read_sequences(self.stream, ids, self.block_size, self.vocab_size)


def read_sequences(stream: TokenStream, ids: Ids, block_size: int, vocab_size: int) -> tuple[Ids, Ids]:
    """Read sequences of a split.

    Args:
        stream: the split.
        ids: int64 `(n,)`, which sequences.
        block_size: T, tokens of a sequence.
        vocab_size: token ids must be below it.

    Returns:
        Inputs x and targets y, each int64 `(n, T)`.

    Raises:
        GPT2LabError: a token is not in the vocabulary.
    """
    starts = np.minimum(ids * block_size, len(stream) - 1 - block_size)
    tokens = stream.gather(starts, block_size + 1)
    _check_ids(stream, starts, tokens, vocab_size)
    return tokens[:, :-1].astype(np.int64), tokens[:, 1:].astype(np.int64)


def fixed_sequences(stream: TokenStream, block_size: int, tokens: int, option: str = "train.eval_tokens") -> int:
    """Count the whole sequences in the first `tokens` targets of a split, or in all of a shorter split.

    The sequences from 0 to this number are the validation set, so it always consists of the same tokens.

    Args:
        stream: the validation split.
        block_size: T, tokens of a sequence.
        tokens: maximum number of targets.
        option: what sets `tokens`, for messages.

    Raises:
        GPT2LabError: the split, or `tokens`, is shorter than one sequence.
    """
    _require_one_sequence(stream, block_size)
    require_tokens(block_size, tokens, option)
    return min(tokens, len(stream) - 1) // block_size


def require_tokens(block_size: int, tokens: int, option: str = "train.eval_tokens") -> None:
    """Check that a validation loss over `tokens` targets has a whole sequence, before there is a split.

    Args:
        block_size: T, tokens of a sequence.
        tokens: maximum number of targets.
        option: what sets `tokens`, for messages.

    Raises:
        GPT2LabError: they are fewer than T.
    """
    if tokens < block_size:
        raise GPT2LabError(f"{option} {tokens} is less than one sequence; set at least {block_size} (block_size)")


def prefetch(batch_of: Callable[[int], Result], start_step: int, end_step: int) -> Generator[Result, None, None]:
    """Compute `batch_of(step)` for consecutive steps, each in a background thread while the previous one is in use.

    The thread ends with the iterator. An exception of `batch_of` is raised at its step.

    Args:
        batch_of: computes the batch of a step.
        start_step: first step.
        end_step: step after the last.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        batches = (thread.submit(batch_of, step) for step in range(start_step, end_step))  # submits when advanced
        pending = next(batches, None)
        while pending is not None:
            batch = pending.result()
            pending = next(batches, None)
            yield batch


def _require_one_sequence(stream: TokenStream, block_size: int) -> None:
    if len(stream) < block_size + 1:
        raise GPT2LabError(
            f"{stream.folder}: {stream.split} split too short: {len(stream)} tokens, "
            f"one sequence takes {block_size + 1}; add shards or lower model.block_size"
        )


def _check_ids(stream: TokenStream, starts: Ids, tokens: Tokens, vocab_size: int) -> None:
    """Check that all ids are below `vocab_size`. Row i of `tokens` `(n, length)` was read at position `starts[i]`."""
    if tokens.size and int(tokens.max()) >= vocab_size:
        row, column = np.argwhere(tokens >= vocab_size)[0]
        file, offset = stream.locate(int(starts[row] + column))
        if stream.documents is not None and tokens[row, column] >= VOCAB_SIZE:  # a manifest says that they are GPT-2's
            raise GPT2LabError(
                f"{file}: token {offset} is {tokens[row, column]}, but GPT-2's ids end at {VOCAB_SIZE - 1}, so the "
                f"shard is damaged; {REPAIR}"
            )
        raise GPT2LabError(
            f"{file}: token {offset} is {tokens[row, column]}, but model.vocab_size is {vocab_size}; "
            f"set it to the vocabulary size of the shards, or, if they are damaged, copy or convert them again"
        )

"""Split the stream of encoded chunks into shards, so that an interruption loses no finished shard.

    encoded chunks, in order ──drop duplicates──▶ val, then train ──ShardWriter──▶ shards
                                                                        └──▶ journal, after every shard

For every shard the journal records the position of the chunk in which the shard ended, and the counts before that
chunk. To continue, the chunk is added again from its beginning: everything is counted, and tokens that are in shards
already are not written again. If a shard is damaged, its predecessor's state is used.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt2lab.data.duplicates import SeenHashes
from gpt2lab.data.encoded_cache import MIN_DIVISIBLE
from gpt2lab.data.encoder import Encoded
from gpt2lab.data.journal import HASHES, Journal
from gpt2lab.data.shard_formats import Tokens
from gpt2lab.data.shard_writer import ShardWriter
from gpt2lab.data.shards import SPLITS, Split
from gpt2lab.data.sources import Position
from gpt2lab.data.tokenizer import EOT
from gpt2lab.files import cannot_write, sync
from gpt2lab.options import PrepareOptions

_MAX_PROBLEMS = 20
_NEWLINES = (198, 628)  # the tokens of one and of two line ends


class OutdatedJournalError(Exception):
    """Val of the journal's shards ends elsewhere than now; to continue would put tokens into both splits."""


@dataclass
class Counts:
    """Counts of what has been added. `problems` holds the first messages, `skipped` is the number of all."""

    split: Split = "val"
    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    duplicates: int = 0
    skipped: int = 0
    text_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    divided: bool = False  # whether a document begins in val and ends in train


class ShardBuilder:
    """Builds shards: call `add` with every chunk in order, then `close_shard`, then look at `problem`.

    Args:
        folder: where to write. The caller holds its lock.
        name: prefix of the shards' file names.
        journal: the journal of the folder. If it has shards, the builder continues after them, at `position`.
        options: `shard_size`, `shards` and `drop_duplicates`. Duplicates are counted in any case.
        val_tokens: the validation split is the first documents that fit into so many tokens, and at least one document.

    Attributes:
        may_divide: divide the document at which `val_tokens` are reached, at the end of a line if possible.

    Raises:
        GPT2LabError: on construction, if the file system refused a write.
    """

    def __init__(self, folder: Path, name: str, journal: Journal, options: PrepareOptions, val_tokens: int):
        self.folder, self.journal, self.options, self.val_tokens = folder, journal, options, val_tokens
        self.writer = ShardWriter(folder, name, options.shard_size, journal.shards)
        self.counts, self.may_divide = Counts(), False
        self.position: Position | None = None  # of the chunk to continue with; None for the first
        self._hash_count = 0
        self._in_shards = dict.fromkeys(SPLITS, 0)  # tokens that were written before an interruption
        for shard in journal.shards:
            self._in_shards[shard["split"]] += shard["tokens"]
        if journal.states:
            state = journal.states[-1]
            self.counts, self._hash_count = Counts(**state["counts"]), state["hashes"]
            self.position = Position(*state["place"])
        try:
            with open(folder / HASHES, "ab") as file:
                file.truncate(self._hash_count * 8)
        except OSError as error:
            raise cannot_write(folder / HASHES, error) from error
        self._seen = SeenHashes(np.fromfile(folder / HASHES, dtype="<u8"))

    def add(self, position: Position, encoded: Encoded) -> bool:
        """Add the next chunk; returns whether more documents are needed.

        Args:
            position: position of the chunk.
            encoded: its documents.

        Raises:
            GPT2LabError: the file system refused a write.
            OutdatedJournalError: an earlier release wrote the journal, by another rule of the end of val.
        """
        self._state = {"counts": asdict(self.counts), "hashes": self._hash_count}
        self.position = position
        tokens, lengths = self._divide(*self._count(encoded))
        ends = np.concatenate([[0], np.cumsum(lengths)])  # documents i to j are tokens[ends[i]:ends[j]]
        first, last, full = 0, len(lengths), False
        if self.counts.split == "val":
            first = _count_fitting(ends, self.val_tokens - self.counts.tokens["val"])
            if not self.counts.tokens["val"]:
                first = max(first, min(1, last))
            self._write(tokens[: ends[first]], first)
            if first < last:
                self._check_border()
                self.close_shard()
                self.counts.split = "train"
        if first < last:
            if self.options.shards is not None:
                val_shards = -(-self.counts.tokens["val"] // self.options.shard_size)
                room = (self.options.shards - val_shards) * self.options.shard_size - self.counts.tokens["train"]
                fitting = max(first, _count_fitting(ends, int(ends[first]) + room))
                full, last = fitting < last, fitting
            self._write(tokens[ends[first] : ends[last]], last - first)
        return not full

    def _check_border(self) -> None:
        """Compare the end of val with the shards that were written before an interruption."""
        before = self._in_shards
        had_ended = before["train"] or before["val"] % self.options.shard_size
        missing = self.counts.tokens["val"] - before["val"]
        if missing < 0 or (missing > 0 and had_ended):
            raise OutdatedJournalError

    def problem(self) -> str | None:
        """Explain why the documents cannot be split into val and train; None if they can."""
        documents, tokens = self.counts.documents, self.counts.tokens
        if tokens["train"]:
            return None
        if not tokens["val"]:
            return "there is no text in the input; check what it holds" + (
                f" ({self.counts.problems[0].replace(', or use --on-error skip', '')})" if self.counts.problems else ""
            )
        if (given := self.options.val_tokens) is not None and documents["val"] > 1:
            return (
                f"--val-tokens {given} leaves nothing for train: the corpus has {tokens['val']} tokens; "
                f"lower it, such as --val-tokens {max(1, tokens['val'] // 10)}"
            )
        if given is not None and tokens["val"] >= MIN_DIVISIBLE:
            return (
                f"--val-tokens leaves nothing for train: the text is one document of {tokens['val']} tokens, which the "
                "option does not divide; without it, a tenth is val"
            )
        if documents["val"] == 1:
            return (
                f"the text has {tokens['val']} tokens, too few to divide into val and train; add text: "
                f"{MIN_DIVISIBLE:,} tokens, about {MIN_DIVISIBLE * 4 / 1000:.0f} kB of English, are enough"
            )
        return f"the corpus has {tokens['val']} tokens, and all of them are val; add text"

    def _count(self, encoded: Encoded) -> tuple[Tokens, npt.NDArray[np.int64]]:
        """Count a chunk and record its hashes. Returns the tokens and lengths of the documents to keep."""
        duplicate = self._seen.add(encoded.hashes)
        try:
            with open(self.folder / HASHES, "ab") as file:
                file.write(encoded.hashes.astype("<u8").tobytes())
        except OSError as error:
            raise cannot_write(self.folder / HASHES, error) from error
        self._hash_count += len(encoded.hashes)
        counts = self.counts
        counts.duplicates += int(duplicate.sum())
        counts.text_bytes += encoded.text_bytes
        counts.skipped += len(encoded.problems)
        counts.problems = [*counts.problems, *encoded.problems][:_MAX_PROBLEMS]
        if not self.options.drop_duplicates or not duplicate.any():
            return encoded.tokens, encoded.lengths
        return encoded.tokens[np.repeat(~duplicate, encoded.lengths)], encoded.lengths[~duplicate]

    def _divide(self, tokens: Tokens, lengths: npt.NDArray[np.int64]) -> tuple[Tokens, npt.NDArray[np.int64]]:
        """Divide the document in which val ends into two, if this is allowed and it is in this chunk."""
        room = self.val_tokens - self.counts.tokens["val"]
        if not self.may_divide or self.counts.divided or self.counts.split != "val" or room >= len(tokens):
            return tokens, lengths
        document = int(np.searchsorted(np.cumsum(lengths), room, side="right"))
        start = int(lengths[:document].sum())
        earliest = max(start + 1, room - self.val_tokens // 8)
        line_ends = np.flatnonzero(np.isin(tokens[earliest:room], _NEWLINES))
        border = earliest + int(line_ends[-1]) + 1 if len(line_ends) else room
        self.counts.divided = True
        self.val_tokens = self.counts.tokens["val"] + border
        halves = np.array([border - start, lengths[document] - (border - start) + 1], dtype=np.int64)
        return np.insert(tokens, border, EOT), np.concatenate([lengths[:document], halves, lengths[document + 1 :]])

    def _write(self, tokens: Tokens, documents: int) -> None:
        """Write the next tokens of the chunk, except those that were written before an interruption."""
        split = self.counts.split
        missing = tokens[max(0, self._in_shards[split] - self.counts.tokens[split]) :]
        self.counts.documents[split] += documents
        self.counts.tokens[split] += len(tokens)
        while len(missing):
            missing = missing[self.writer.write(split, missing) :]
            if self.writer.is_full:
                self.close_shard()

    def close_shard(self) -> None:
        """Finish the open shard, if there is one, and record it in the journal.

        Raises:
            GPT2LabError: the file system refused a write.
        """
        if self.writer.close():
            self.journal.states.append({"place": self.position, **self._state})
            sync(self.folder / HASHES)
            self.journal.write(self.folder)


def _count_fitting(ends: npt.NDArray[np.int64], room: int) -> int:
    """Count the leading documents that fit into `room` tokens. `ends` `(documents + 1,)` begins with 0."""
    return max(0, int(np.searchsorted(ends, room, side="right")) - 1)

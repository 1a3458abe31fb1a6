"""Cutting the stream of encoded units into shards, in such a way that a crash loses no finished shard.

    Encoded, in order ──drop duplicates──▶ ──split──▶ ──ShardWriter──▶ shards
                                                            └──▶ journal: shards so far, and where to go on

The journal is the file `.preparing`, written anew whenever a shard is finished. For every shard it has the counts as
they were before the unit that the shard ended in, and how many tokens of that unit are already in shards. Going on
means to take that unit again from its beginning, count everything, and leave those tokens out: so nothing depends on
where it stopped. If a shard was damaged meanwhile, the work goes on from the one before it.

Beside it lies `.preparing.hashes`, eight bytes for each document so far, from which the known duplicates are restored.
"""

import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2lab.data.duplicates import Seen
from gpt2lab.data.encoder import Encoded
from gpt2lab.data.shards import PREPARING, SPLITS, Split, Tokens
from gpt2lab.data.writer import ShardWriter
from gpt2lab.files import atomic_write, cannot_write, sha256, sync

HASHES = f"{PREPARING}.hashes"
_PROBLEMS_KEPT = 20


@dataclass
class Counts:
    """What has been taken in so far. `problems` keeps the first few, `skipped` counts them all."""

    split: Split = "val"
    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    duplicates: int = 0
    skipped: int = 0
    text_bytes: int = 0
    problems: list[str] = field(default_factory=list)


class Cutter:
    """Cuts shards. Give it every unit in order, then close the writer and ask for the `problem`.

    Args:
        folder: where the shards go; the caller holds its lock.
        writer: for that folder.
        settings: what the output depends on; kept in the journal.
        val_tokens: at most this many tokens are val, but at least one document.
        max_shards: stop when this many are full; None: take everything.
        drop_duplicates: leave out documents that were seen before, rather than only count them.
    """

    def __init__(
        self,
        folder: Path,
        writer: ShardWriter,
        settings: dict[str, Any],
        *,
        val_tokens: int,
        max_shards: int | None = None,
        drop_duplicates: bool = False,
    ):
        self.folder, self.writer, self.settings = folder, writer, settings
        self.val_tokens, self.max_shards, self.drop_duplicates = val_tokens, max_shards, drop_duplicates
        self.counts = Counts()
        self.place: tuple[int, int] | None = None  # of the unit to go on with; None: from the beginning
        self.full = False
        self._seen = Seen()
        self._hashes = 0
        self._written = 0  # tokens of the unit at `place` that are in shards
        self._before = self._snapshot()
        self._states: list[dict[str, Any]] = []  # for each shard, what it takes to go on after it

    def begin(self, journal: "Journal | None") -> None:
        """Start anew, or go on after the good shards of a journal, which become the writer's.

        Raises:
            GPT2LabError: the file system refused a write.
        """
        if journal is not None and journal.shards:
            state = journal.states[-1]
            self._states, self.writer.shards = journal.states, journal.shards
            self.counts, self._hashes = Counts(**state["counts"]), state["hashes"]
            self.place, self._written = (state["place"][0], state["place"][1]), state["written"]
        path = self.folder / HASHES
        try:
            with open(path, "ab") as file:
                file.truncate(self._hashes * 8)
        except OSError as error:
            raise cannot_write(path, error) from error
        known = np.fromfile(path, dtype="<u8")
        for start in range(0, len(known), 1 << 20):
            self._seen.add(known[start : start + (1 << 20)])
        self._write_journal()

    def add(self, place: tuple[int, int], encoded: Encoded) -> bool:
        """Take in the next unit; returns whether more are wanted.

        Raises:
            GPT2LabError: the file system refused a write.
        """
        self._before, self._skip = self._snapshot(), self._written if place == self.place else 0
        self.place, self._written = place, 0
        tokens, lengths = self._without_duplicates(encoded)
        self._count_input(encoded)
        self._remember(encoded.hashes)
        start = 0
        ends = np.cumsum(lengths)
        if self.counts.split == "val":
            start = self._fitting(ends, self.val_tokens - self.counts.tokens["val"], self.counts.tokens["val"] == 0)
            self._put(tokens[: ends[start - 1] if start else 0], start)
            if start < len(lengths):
                self._close()
                self.counts.split = "train"
        if start < len(lengths):
            before = int(ends[start - 1]) if start else 0
            stop = len(lengths)
            if (room := self._room()) is not None:
                stop = self._fitting(ends, before + room, False)
                self.full = stop < len(lengths)
            if stop > start:
                self._put(tokens[before : ends[stop - 1]], stop - start)
        return not self.full

    def problem(self) -> str | None:
        """Why the corpus cannot be split, once all of it was added; None if it can."""
        documents, tokens = self.counts.documents, self.counts.tokens
        if tokens["train"]:
            return None
        if not tokens["val"]:
            return "there is no text in the input; check what it holds" + (
                f" ({self.counts.problems[0]})" if self.counts.problems else ""
            )
        if documents["val"] == 1:
            return "the corpus is a single document, and val and train are cut between documents; give it as several"
        return f"the corpus has {tokens['val']} tokens, and val takes all of them; lower --val-tokens, or add text"

    def _snapshot(self) -> dict[str, Any]:
        return {"counts": asdict(self.counts), "hashes": self._hashes}

    def _without_duplicates(self, encoded: Encoded) -> tuple[Tokens, npt.NDArray[np.int64]]:
        again = self._seen.add(encoded.hashes)
        self.counts.duplicates += int(again.sum())
        if not self.drop_duplicates or not again.any():
            return encoded.tokens, encoded.lengths
        return encoded.tokens[np.repeat(~again, encoded.lengths)], encoded.lengths[~again]

    def _count_input(self, encoded: Encoded) -> None:
        self.counts.text_bytes += encoded.text_bytes
        self.counts.skipped += len(encoded.problems)
        self.counts.problems += encoded.problems[: max(0, _PROBLEMS_KEPT - len(self.counts.problems))]

    def _remember(self, hashes: npt.NDArray[np.uint64]) -> None:
        try:
            with open(self.folder / HASHES, "ab") as file:
                file.write(hashes.astype("<u8").tobytes())
        except OSError as error:
            raise cannot_write(self.folder / HASHES, error) from error
        self._hashes += len(hashes)

    def _fitting(self, ends: npt.NDArray[np.int64], room: int, at_least_one: bool) -> int:
        """How many documents, whose tokens end at `ends` `(documents,)`, fit into `room` tokens."""
        fitting = int(np.searchsorted(ends, room, side="right"))
        return max(fitting, min(1, len(ends))) if at_least_one else fitting

    def _room(self) -> int | None:
        """Tokens that train still takes."""
        if self.max_shards is None:
            return None
        val_shards = -(-self.counts.tokens["val"] // self.writer.shard_tokens)
        return (self.max_shards - val_shards) * self.writer.shard_tokens - self.counts.tokens["train"]

    def _put(self, tokens: Tokens, documents: int) -> None:
        """Write the next tokens of the unit, but not those that were written before a crash."""
        split = self.counts.split
        self.counts.documents[split] += documents
        self.counts.tokens[split] += len(tokens)
        left_out = min(self._skip, len(tokens))
        self._skip -= left_out
        self._written += left_out
        tokens = tokens[left_out:]
        while len(tokens):
            finished = len(self.writer.shards)
            taken = self.writer.write(split, tokens)
            self._written += taken
            tokens = tokens[taken:]
            if len(self.writer.shards) > finished:
                self._note_shard()

    def _close(self) -> None:
        """End the shard in hand, short: the split ends here."""
        finished = len(self.writer.shards)
        self.writer.close()
        if len(self.writer.shards) > finished:
            self._note_shard()

    def _note_shard(self) -> None:
        self._states.append({"place": self.place, "written": self._written, **self._before})
        sync(self.folder / HASHES)
        self._write_journal()

    def _write_journal(self) -> None:
        content = {
            "note": "Shards are being written here; this file goes when they are complete.",
            "settings": self.settings,
            "shards": self.writer.shards,
            "states": self._states,
        }
        with atomic_write(self.folder / PREPARING) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@dataclass
class Journal:
    """What `.preparing` says about work that was interrupted: the settings, and shards with the state after each."""

    settings: dict[str, Any]
    shards: list[dict[str, Any]]
    states: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "Journal | None":
        """The journal of a folder; None where there is none, or one that nobody can go on from."""
        try:
            content = json.loads((folder / PREPARING).read_text(encoding="utf-8"))
            return cls(content["settings"], content["shards"], content["states"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def good_part(self, folder: Path) -> "Journal":
        """The same, up to the last shard before the first that is missing or damaged."""

        def is_good(shard: dict[str, Any]) -> bool:
            path = folder / str(shard["file"])
            return path.is_file() and sha256(path) == shard["sha256"]

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            good = sum(1 for _ in itertools.takewhile(bool, pool.map(is_good, self.shards)))
        hashes = folder / HASHES
        remembered = hashes.stat().st_size // 8 if hashes.is_file() else 0
        while good and self.states[good - 1]["hashes"] > remembered:
            good -= 1
        return Journal(self.settings, self.shards[:good], self.states[:good])

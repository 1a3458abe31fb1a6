"""Encoded units on disk, for when the shards cannot be cut yet.

    Unit ──encode──▶ .parts/00003-000017.part ──┐
    …     (any order, any number of machines)   ├──▶ in the order of the corpus, or shuffled ──▶ shards
    .parts/00003.json: piece 3 has 726 units ───┘

That is so when a tenth of the corpus is to be val (how much that is, only its end tells), when row groups are to be
shuffled, and when several machines share the work. Each part is written once and under its own name, with a digest in
front: what was finished before a crash is used after it.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt2lab.data.encoder import Encoded
from gpt2lab.data.jobs import Job, jobs
from gpt2lab.data.loader import permute
from gpt2lab.data.sources import Source
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import atomic_write

FOLDER = ".parts"

Run = Callable[[Iterator[Job]], Iterator[tuple[Job, Encoded]]]
Tell = Callable[[int, int], None]


class Parts:
    """The parts of one output folder."""

    def __init__(self, folder: Path):
        self.folder = folder / FOLDER

    def open(self) -> None:
        """Make the folder. Several machines may be writing to it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GPT2LabError(
                f"cannot write {self.folder}: {error.strerror}; free space or use another --out"
            ) from None

    def fill(self, source: Source, run: Run, pieces: Iterable[int] | None = None, tell: Tell | None = None) -> None:
        """Encode what is not there yet: of all pieces, or of some (the share of one machine).

        Args:
            source: the corpus.
            run: gives each job back with its unit encoded.
            pieces: which.
            tell: is told the bytes of text and the tokens so far.

        Raises:
            GPT2LabError: something cannot be read or written.
        """
        self.open()
        units: dict[int, int] = {}

        def todo() -> Iterator[Job]:
            for piece in range(len(source.pieces)) if pieces is None else pieces:
                if self.missing(piece):
                    units[piece] = 0
                    for job in jobs(source, pieces=[piece]):
                        units[piece] += 1
                        if self.read(piece, job.number) is None:
                            yield job

        text_bytes = tokens = 0
        for job, encoded in run(todo()):
            self.write(job.piece, job.number, encoded)
            text_bytes, tokens = text_bytes + encoded.text_bytes, tokens + len(encoded.tokens)
            if tell is not None:
                tell(text_bytes, tokens)
        for piece, count in units.items():
            self.finish(piece, count)

    def remove(self) -> None:
        """Delete them all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, piece: int, number: int) -> Path:
        """Where a unit's part is."""
        return self.folder / f"{piece:05d}-{number:06d}.part"

    def write(self, piece: int, number: int, encoded: Encoded) -> None:
        """Keep an encoded unit.

        Raises:
            GPT2LabError: the file system refused it.
        """
        notes = json.dumps({"text_bytes": encoded.text_bytes, "problems": encoded.problems}).encode()
        content = io.BytesIO()
        for array in (encoded.lengths, encoded.hashes, np.frombuffer(notes, dtype=np.uint8), encoded.tokens):
            np.save(content, array, allow_pickle=False)
        with atomic_write(self.path(piece, number)) as path, open(path, "wb") as file:
            file.write(hashlib.sha256(content.getbuffer()).digest())
            file.write(content.getbuffer())

    def read(self, piece: int, number: int) -> Encoded | None:
        """A unit that was kept, or None where it is missing or damaged (then it is removed)."""
        path = self.path(piece, number)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(memoryview(content)[32:]).digest() != content[:32]:
            path.unlink()
            return None
        stream = io.BytesIO(content)
        stream.seek(32)
        lengths, hashes, notes, tokens = (np.load(stream, allow_pickle=False) for _ in range(4))
        about = json.loads(notes.tobytes())
        return Encoded(tokens, lengths, hashes, about["text_bytes"], tuple(about["problems"]))

    def lengths(self, piece: int, number: int) -> npt.NDArray[np.int64]:
        """Tokens of each document of a unit that was kept, without reading the tokens."""
        with open(self.path(piece, number), "rb") as file:
            file.seek(32)
            lengths: npt.NDArray[np.int64] = np.load(file, allow_pickle=False)
            return lengths

    def finish(self, piece: int, units: int) -> None:
        """Note that all units of a piece are there."""
        with atomic_write(self.folder / f"{piece:05d}.json") as path:
            path.write_text(json.dumps({"units": units}) + "\n", encoding="utf-8")

    def finished(self, piece: int) -> int | None:
        """How many units a piece has, once they are all there."""
        try:
            return int(json.loads((self.folder / f"{piece:05d}.json").read_text(encoding="utf-8"))["units"])
        except FileNotFoundError:
            return None

    def missing(self, piece: int) -> bool:
        """Whether a piece is unfinished, or a part of it has gone or was damaged since; such a part is removed."""
        units = self.finished(piece)
        return units is None or any(self.read(piece, number) is None for number in range(units))

    def order(self, pieces: int, seed: int | None) -> list[tuple[int, int]]:
        """Every unit as (piece, number), in the order of the corpus, or permuted by `seed`. All are finished."""
        places = []
        for piece in range(pieces):
            units = self.finished(piece)
            assert units is not None
            places += [(piece, number) for number in range(units)]
        if seed is None:
            return places
        return [places[place] for place in permute(np.arange(len(places)), len(places), f"{seed}/units").tolist()]

    def stream(
        self, order: list[tuple[int, int]], seed: int | None, start: tuple[int, int] | None
    ) -> Generator[tuple[tuple[int, int], Encoded], None, None]:
        """The units in this order, from `start` on, with the documents of each permuted by `seed`.

        Raises:
            GPT2LabError: a part was damaged since it was looked at.
        """
        for place in order[order.index(start) if start else 0 :]:
            encoded = self.read(*place)
            if encoded is None:
                raise GPT2LabError(f"{self.path(*place)} was damaged just now; run the same command again")
            yield place, encoded if seed is None else _shuffle(encoded, seed, place)

    def border(self, order: list[tuple[int, int]], seed: int | None, share: int) -> int:
        """Tokens up to the first border between documents at or after one `share`th of all, in this order."""
        lengths = [self.lengths(*place) for place in order]
        total = sum(int(unit.sum()) for unit in lengths)
        before = 0
        for place, unit in zip(order, lengths, strict=True):
            if len(unit) and (before + int(unit.sum())) * share >= total:
                ends = before + np.cumsum(unit if seed is None else unit[_permutation(len(unit), seed, place)])
                return int(ends[np.argmax(ends * share >= total)])
            before += int(unit.sum())
        return total


def _permutation(documents: int, seed: int, place: tuple[int, int]) -> npt.NDArray[np.int64]:
    """The order `(documents,)` in which `seed` puts the documents of a unit."""
    return permute(np.arange(documents), documents, f"{seed}/{place[0]}/{place[1]}")


def _shuffle(encoded: Encoded, seed: int, place: tuple[int, int]) -> Encoded:
    if not len(encoded.lengths):
        return encoded
    order = _permutation(len(encoded.lengths), seed, place)
    starts = np.cumsum(encoded.lengths) - encoded.lengths
    documents = [encoded.tokens[starts[i] : starts[i] + encoded.lengths[i]] for i in order]
    return encoded._replace(
        tokens=np.concatenate(documents), lengths=encoded.lengths[order], hashes=encoded.hashes[order]
    )

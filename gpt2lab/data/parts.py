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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpt2lab.data.encoder import Encoded
from gpt2lab.data.loader import permute
from gpt2lab.data.sources import BadInput, Report, Source, Texts, Unit
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import atomic_write

FOLDER = ".parts"


class Job(NamedTuple):
    """A unit and its place in the corpus: piece, and number within the piece."""

    piece: int
    number: int
    unit: Unit


def jobs(source: Source, start: tuple[int, int] = (0, 0), pieces: Iterable[int] | None = None) -> Iterator[Job]:
    """The units of a source in order, from `start` on, or of some pieces; others are not touched.

    A piece that cannot be read ends in a unit that cannot, so that this is told in its turn.
    """
    for piece in range(start[0], len(source.pieces)) if pieces is None else pieces:
        number = 0
        try:
            for unit in source.pieces[piece].units():
                if (piece, number) >= start:
                    yield Job(piece, number, unit)
                number += 1
        except BadInput as error:
            yield Job(piece, number, Unreadable(source.pieces[piece].name, str(error)))


@dataclass(frozen=True)
class Unreadable(Unit):
    """Stands where a piece broke off."""

    name: str
    message: str

    def read(self, report: Report) -> Texts:
        raise BadInput(self.message)


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


def shuffled_documents(lengths: npt.NDArray[np.int64], seed: int, place: tuple[int, int]) -> npt.NDArray[np.int64]:
    """The order `(documents,)` in which `seed` puts the documents of a unit."""
    return permute(np.arange(len(lengths)), len(lengths), f"{seed}/{place[0]}/{place[1]}")


def shuffle(encoded: Encoded, seed: int, place: tuple[int, int]) -> Encoded:
    """The same documents in the order of `shuffled_documents`."""
    if not len(encoded.lengths):
        return encoded
    order = shuffled_documents(encoded.lengths, seed, place)
    starts = np.cumsum(encoded.lengths) - encoded.lengths
    documents = [encoded.tokens[starts[i] : starts[i] + encoded.lengths[i]] for i in order]
    return encoded._replace(
        tokens=np.concatenate(documents), lengths=encoded.lengths[order], hashes=encoded.hashes[order]
    )

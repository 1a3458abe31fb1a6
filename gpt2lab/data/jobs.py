"""The units of a source, one after the other, each with its place in the corpus."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from gpt2lab.data.sources import BadInput, Report, Source, Texts, Unit


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

"""Where texts come from. Each module here makes a `Source`; whatever reads one knows these few names and no more.

    Source ──▶ Piece   what is fetched and listed by itself: a file, on this disk or still to be downloaded
           ──▶ Unit    what one worker takes at a time: a row group, some megabytes of lines; always the same ones
           ──▶ Texts   its documents, end to end in one buffer of UTF-8

Units of all pieces in order are the corpus. A unit is read by whoever encodes it, maybe on another machine, so it can
be pickled, and holds a path and a place rather than the text where the format allows it.

To add a source: write `source(...) -> Source` in a module of its own, and name it in `data.catalogue`. A corpus that
fits in memory needs nothing else than `Gathered(name, documents)` for its one piece.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt2lab.errors import GPT2LabError

Report = Callable[[str], None]
"""Told about one document or unit that cannot be used: raises (`--on-error stop`) or takes a note (`skip`)."""


class Document(NamedTuple):
    """One text. `id` is unique within its corpus."""

    id: str
    text: str


class BadInput(GPT2LabError):
    """A unit or a piece that cannot be read; with `--on-error skip` the rest of the corpus goes on without it."""


@dataclass(frozen=True)
class Texts:
    """Documents end to end: document i is the UTF-8 of `data[offsets[i]:offsets[i + 1]]`.

    Attributes:
        data: `(bytes,)` uint8.
        offsets: `(documents + 1,)` int64, from 0 to `bytes`.
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Iterable[str | bytes]) -> "Texts":
        """From separate texts; a lone surrogate becomes U+FFFD."""
        encoded = [text if isinstance(text, bytes) else to_utf8(text) for text in texts]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes().decode("utf-8")


class Unit(ABC):
    """What one worker takes at a time."""

    name: str

    @abstractmethod
    def read(self, report: Report) -> Texts:
        """The documents, in order. A document that cannot be used is reported, and left out if `report` returns.

        Raises:
            BadInput: nothing of the unit can be used.
        """


class Piece(ABC):
    """What is fetched and listed by itself: usually a file."""

    name: str
    text_bytes: int
    """Bytes of text in it, about: what progress and the space that is needed are reckoned from."""

    @abstractmethod
    def identity(self) -> str:
        """A digest that changes when the content does."""

    @abstractmethod
    def units(self) -> Iterator[Unit]:
        """Its units, always the same ones in the same order; downloads first where that is needed.

        Raises:
            BadInput: the piece cannot be read.
        """


@dataclass(frozen=True)
class Source:
    """A corpus, ready to be read.

    Attributes:
        name: what the command line calls it.
        shard_name: first part of its shards' file names.
        revision: which version of the corpus this is.
        pieces: in order.
        val: what is val unless `--val-tokens` says: a tenth of the corpus, one shard, or the first document.
        shuffle_seed: of the order in which the source itself gives its documents; None: they are not shuffled.
        downloads: bytes that reading it brings onto this disk besides.
    """

    name: str
    shard_name: str
    revision: str
    pieces: Sequence[Piece]
    val: Literal["tenth", "shard", "first document"] = "tenth"
    shuffle_seed: int | None = None
    downloads: int = 0

    def identity(self) -> str:
        """A digest over the names and contents of all pieces, in order."""
        digest = hashlib.sha256(f"{self.name} {self.revision}\n".encode())
        for piece in self.pieces:
            digest.update(f"{piece.name} {piece.identity()}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Ready(Unit):
    """A unit whose texts are at hand, because its file can only be read from front to back."""

    name: str
    texts: Texts

    def read(self, report: Report) -> Texts:
        return self.texts


@dataclass(frozen=True)
class Gathered(Piece):
    """A piece made of documents in memory: one unit."""

    name: str
    documents: tuple[Document, ...]

    @property
    def text_bytes(self) -> int:  # type: ignore[override]
        return sum(len(document.text) for document in self.documents)

    def identity(self) -> str:
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(hashlib.sha256(to_utf8(document.text)).digest())
        return digest.hexdigest()

    def units(self) -> Iterator[Unit]:
        yield Ready(self.name, Texts.of(document.text for document in self.documents))


def documents(source: Source) -> Iterator[Document]:
    """The corpus one document at a time, for tests and for looking; `prepare` takes whole units.

    Raises:
        BadInput: something in it cannot be read.
    """
    for piece in source.pieces:
        for unit in piece.units():
            texts = unit.read(stop)
            for row in range(len(texts)):
                yield Document(f"{unit.name}:{row}", texts[row])


def stop(message: str) -> None:
    """The `Report` of `--on-error stop`."""
    raise BadInput(message)


def to_utf8(text: str) -> bytes:
    """UTF-8 of a text; a lone surrogate, which has none, becomes U+FFFD."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")

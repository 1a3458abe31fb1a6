"""From a unit of a source to tokens: what the workers do, and nearly all the time goes into.

    Unit ──read──▶ Texts ──gigatoken, or tiktoken──▶ ids ──50256 before each document──▶ Encoded

`gigatoken` takes the whole unit at once, in Rust, and is some ten times as fast as `tiktoken`, which is the reference.
So that speed is never bought with wrong ids, of every unit one document is encoded by both, and must come out equal;
and documents with characters about which the two are known to disagree (`disputed`) are left to tiktoken.
Without gigatoken tiktoken does all of it: slower, the same ids.

Workers are threads that share one encoder: reading, encoding and hashing all happen outside the interpreter's lock.
"""

import base64
import functools
import hashlib
import importlib.util
import os
import tempfile
import threading
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt2lab.data import disputed
from gpt2lab.data.sources import BadInput, Texts, Unit, stop
from gpt2lab.data.tokenizer import EOT, Tokenizer, ranks
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import cannot_write

Engine = Literal["auto", "gigatoken", "tiktoken"]
OnError = Literal["stop", "skip"]

_SAMPLE = 20_000  # bytes: a document that is compared should not be longer
# gigatoken remembers how it split every word it ever saw. On prose that levels off; on text that is all new words it
# would not, so it starts afresh when the process has grown to this size.
_RESIDENT = 700 << 20
_BETWEEN = 64 << 20  # bytes of text between two such fresh starts


class Encoded(NamedTuple):
    """A unit's documents as tokens.

    Attributes:
        tokens: `(tokens,)` uint16; every document begins with 50256.
        lengths: `(documents,)` int64; tokens of each, 50256 included.
        hashes: `(documents,)` uint64; equal for equal documents.
        text_bytes: of all documents.
        problems: what had to be left out.
    """

    tokens: npt.NDArray[np.uint16]
    lengths: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    text_bytes: int
    problems: tuple[str, ...]


class Recipe(NamedTuple):
    """Everything a worker needs to know; travels to other processes and machines.

    Attributes:
        engine: `auto` is gigatoken where it is installed, else tiktoken.
        check: compare a sample of every unit with tiktoken.
        on_error: what to do about documents and units that cannot be read.
        mirror: where the tokenizer's files may be found.
    """

    engine: Engine = "auto"
    check: bool = True
    on_error: OnError = "stop"
    mirror: str | None = None


def encode(recipe: Recipe, unit: Unit) -> Encoded:
    """Read a unit and encode it. The result depends on nothing but the unit.

    Raises:
        BadInput: something in it cannot be used, and `on_error` is `stop`.
        GPT2LabError: the two tokenizers disagree.
    """
    problems: list[str] = []
    report = problems.append if recipe.on_error == "skip" else stop
    try:
        texts = unit.read(report)
    except BadInput as error:
        report(str(error))
        texts = Texts.of([])
    with _building:  # by one worker, not by each
        encoder = _encoder(recipe)
    tokens, lengths = encoder.encode(texts, unit.name)
    return Encoded(tokens, lengths, _hashes(tokens, lengths), len(texts.data), tuple(problems))


_building = threading.Lock()


@functools.lru_cache(maxsize=4)
def _encoder(recipe: Recipe) -> "Encoder":
    return Encoder(recipe.engine, recipe.check, recipe.mirror)


class Encoder:
    """Texts to tokens, by gigatoken or tiktoken; safe to share between threads.

    Raises:
        GPT2LabError: on construction, when `engine` is gigatoken and it is not installed.
    """

    def __init__(self, engine: Engine = "auto", check: bool = True, mirror: str | None = None):
        installed = importlib.util.find_spec("gigatoken") is not None
        if engine == "gigatoken" and not installed:
            raise GPT2LabError("gigatoken is not installed: pip install -e '.[data]', or use --tokenizer tiktoken")
        self._reference = Tokenizer(mirror)
        self._check = check
        self._mirror = mirror
        self._fast = _gigatoken(mirror) if installed and engine != "tiktoken" else None
        self._since_fresh = 0
        self._lock = threading.Lock()

    def encode(self, texts: Texts, name: str = "") -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
        """Tokens `(tokens,)` uint16 of all documents, 50256 before each, and the length of each `(documents,)` int64.

        Args:
            texts: the documents.
            name: of their unit, for messages.

        Raises:
            GPT2LabError: gigatoken and tiktoken disagree about the document that is compared.
        """
        if self._fast is None:
            ids = [np.array(self._reference.encode(texts[i]), dtype=np.uint16) for i in range(len(texts))]
            lengths = np.array([len(one) for one in ids], dtype=np.int64)
            flat = np.concatenate(ids) if ids else np.empty(0, dtype=np.uint16)
            starts = np.cumsum(lengths) - lengths
        else:
            flat, offsets = self._encode_fast(texts)
            for row in disputed.documents_with(texts):
                flat, offsets = self._encode_again(texts, flat, offsets, row)
            starts, lengths = offsets[:-1], np.diff(offsets)
            if self._check and len(texts):
                self._compare(texts, flat, offsets, name)
        return np.insert(flat, starts, EOT), lengths + 1

    def _encode_fast(self, texts: Texts) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
        import awkward

        if not len(texts):
            return np.empty(0, dtype=np.uint16), np.zeros(1, dtype=np.int64)
        characters = awkward.contents.NumpyArray(texts.data, parameters={"__array__": "char"})
        strings = awkward.contents.ListOffsetArray(
            awkward.index.Index64(texts.offsets), characters, parameters={"__array__": "string"}
        )
        # One thread a unit: the workers are the parallelism.
        encoded = self._fresh_enough(len(texts.data)).encode_batch(awkward.Array(strings), parallel=False).layout
        offsets = np.asarray(encoded.offsets.data, dtype=np.int64)
        ids = np.asarray(encoded.content.data)[offsets[0] : offsets[-1]]
        return ids.astype(np.uint16), offsets - offsets[0]

    def _encode_again(
        self, texts: Texts, flat: npt.NDArray[np.uint16], offsets: npt.NDArray[np.int64], row: int
    ) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
        """The same with one document encoded by the reference. Rare, so copying all of it does not matter."""
        ids = np.array(self._reference.encode(texts[row]), dtype=np.uint16)
        longer = len(ids) - int(offsets[row + 1] - offsets[row])
        flat = np.concatenate([flat[: offsets[row]], ids, flat[offsets[row + 1] :]])
        return flat, np.concatenate([offsets[: row + 1], offsets[row + 1 :] + longer])

    def _fresh_enough(self, text_bytes: int) -> Any:
        with self._lock:
            self._since_fresh += text_bytes
            if self._since_fresh > _BETWEEN and _resident() > _RESIDENT:
                self._fast, self._since_fresh = _gigatoken(self._mirror), 0
            return self._fast

    def _compare(self, texts: Texts, flat: npt.NDArray[np.uint16], offsets: npt.NDArray[np.int64], name: str) -> None:
        sizes = np.diff(texts.offsets)
        fitting = np.flatnonzero(sizes <= _SAMPLE)
        # Another place in every unit, and the same one each time.
        place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
        row = int(fitting[place % len(fitting)]) if len(fitting) else int(sizes.argmin())
        if flat[offsets[row] : offsets[row + 1]].tolist() != self._reference.encode(texts[row]):
            raise GPT2LabError(
                f"{name}: gigatoken and tiktoken give different tokens for document {row}; run again with "
                f"--tokenizer tiktoken, and please report it"
            )


def _gigatoken(mirror: str | None) -> Any:
    """gigatoken with GPT-2's ranks, and no special tokens: `<|endoftext|>` in a text is text."""
    import gigatoken

    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks(mirror).items())
    with tempfile.TemporaryDirectory() as folder:  # a file is the one way in that asks for no network
        file = Path(folder) / "gpt2.tiktoken"
        try:
            file.write_bytes(lines)
        except OSError as error:
            raise cannot_write(file, error) from error
        return gigatoken.Tokenizer.from_tiktoken(file, pretokenizer="gpt2", special_tokens={})


def _hashes(tokens: npt.NDArray[np.uint16], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """The first eight bytes of a SHA-256 over each document's tokens. Tokens are equal exactly where texts are."""
    ends = np.cumsum(lengths).tolist()
    digests = (
        [hashlib.sha256(tokens[start:end].data).digest()[:8] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        if ends
        else []
    )
    return np.frombuffer(b"".join(digests), dtype="<u8")


def _resident() -> int:
    """Bytes of memory this process holds; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0

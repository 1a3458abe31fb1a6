"""Encode chunks of a source. This is what the workers of `prepare` do, and where nearly all the time is spent.

    Chunk ──read──▶ Texts ──gigatoken or tiktoken──▶ ids ──<|endoftext|> before each document──▶ Encoded

tiktoken is the reference. gigatoken encodes a whole chunk in one call and is about ten times as fast. To make sure that
both give the same ids, one document of every chunk is encoded by both and compared. Documents with characters on which
the two are known to differ (`unicode_differences`) are always encoded by tiktoken. Without gigatoken, tiktoken encodes
everything.

Workers are threads that share one encoder: reading, encoding and hashing release the interpreter lock.
"""

import base64
import functools
import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt2lab import packages
from gpt2lab.data import unicode_differences
from gpt2lab.data.shard_formats import Tokens
from gpt2lab.data.sources import BadInputError, Chunk, Texts, raise_problem
from gpt2lab.data.tokenizer import EOT, Tokenizer, ranks
from gpt2lab.errors import GPT2LabError
from gpt2lab.options import PrepareOptions

Counts = npt.NDArray[np.int64]
OnBytes = Callable[[int], None]  # receives the number of bytes of text that were encoded; may raise to stop

_PIECE = 1 << 20  # characters of a long document that tiktoken encodes at a time, in a fraction of a second
# No token has white space after another character, so these borders are borders of tokens.
_BORDER = re.compile(r"(?<=\S)(?=[ \n])")
_MAX_COMPARED_BYTES = 20_000  # of longer documents the beginning is compared, because tiktoken is slow
# gigatoken caches every word that it has seen. On text with ever new words the cache would grow without limit, so a new
# instance is made when the process is larger than this, but at most once for every so many bytes of text.
_MAX_RESIDENT_BYTES = 700 << 20
_MIN_BYTES_BETWEEN_RESETS = 64 << 20


class Encoded(NamedTuple):
    """The encoded documents of a chunk.

    Attributes:
        tokens: `(tokens,)` uint16; every document begins with 50256.
        lengths: `(documents,)` int64, tokens of each document with its 50256.
        hashes: `(documents,)` uint64, equal for equal documents.
        text_bytes: bytes of all documents as UTF-8.
        problems: a message for each document, or the chunk, that was left out.
    """

    tokens: Tokens
    lengths: Counts
    hashes: npt.NDArray[np.uint64]
    text_bytes: int
    problems: tuple[str, ...]


def encode(options: PrepareOptions, chunk: Chunk, on_bytes: OnBytes | None = None) -> Encoded:
    """Read and encode a chunk. The result depends on the chunk alone.

    Args:
        options: how to encode: `tokenizer`, `check`, `on_error` and `mirror`.
        chunk: what to encode.
        on_bytes: called now and then.

    Raises:
        BadInputError: something cannot be read, and `on_error` is `stop`.
        GPT2LabError: gigatoken and tiktoken give different tokens.
    """
    problems: list[str] = []
    report = problems.append if options.on_error == "skip" else raise_problem
    try:
        texts = chunk.read(report)
    except BadInputError as error:
        report(str(error))
        texts = Texts.join([])
    with _encoder_lock:  # the first worker builds the encoder, the others wait for it
        encoder = _get_encoder(options.tokenizer, options.check, options.mirror)
    tokens, lengths = encoder.encode(texts, chunk.name, on_bytes)
    return Encoded(tokens, lengths, _hash_documents(tokens, lengths), len(texts.data), tuple(problems))


class Encoder:
    """Encodes texts with gigatoken or tiktoken. Safe to share between threads.

    Args:
        engine: tokenizer to use; `auto` is gigatoken if it is installed, else tiktoken.
        check: compare one document of every call with tiktoken.
        mirror: folder with the tokenizer's files.

    Raises:
        GPT2LabError: on construction, if `engine` is gigatoken and it is not installed.
    """

    def __init__(
        self,
        engine: Literal["auto", "gigatoken", "tiktoken"] = "auto",
        check: bool = True,
        mirror: str | None = None,
    ):
        if engine == "gigatoken":  # also in a worker on another machine
            packages.require("gigatoken", "--tokenizer gigatoken", "data")
        self._tiktoken = Tokenizer(mirror)
        use_gigatoken = engine != "tiktoken" and packages.is_installed("gigatoken")
        self._gigatoken = _build_gigatoken(mirror) if use_gigatoken else None
        self._check, self._mirror = check, mirror
        self._bytes_since_reset = 0
        self._lock = threading.Lock()

    def encode(self, texts: Texts, name: str = "", on_bytes: OnBytes | None = None) -> tuple[Tokens, Counts]:
        """Encode documents.

        Args:
            texts: the documents.
            name: name of their chunk, for messages. It also selects the document that is compared.
            on_bytes: called after each piece of text that tiktoken has encoded, and after all others.

        Returns:
            The tokens of all documents with 50256 before each, `(tokens,)` uint16, and the number of tokens of each,
            `(documents,)` int64.

        Raises:
            GPT2LabError: gigatoken and tiktoken give different tokens for the document that is compared.
        """
        if self._gigatoken is None:
            documents = [self._encode_with_tiktoken(texts[row], on_bytes) for row in range(len(texts))]
            tokens = np.concatenate([np.empty(0, dtype=np.uint16), *documents])
            lengths = np.array([len(document) for document in documents], dtype=np.int64)
        else:
            tokens, lengths = self._encode_with_gigatoken(texts)
            if on_bytes is not None:
                on_bytes(len(texts.data))
            for row in unicode_differences.find_documents(texts):  # rare, so copying all tokens does not matter
                start = int(lengths[:row].sum())
                document = self._encode_with_tiktoken(texts[row], _stop_only(on_bytes))
                tokens = np.concatenate([tokens[:start], document, tokens[start + lengths[row] :]])
                lengths[row] = len(document)
            if self._check and len(texts):
                self._compare(texts, tokens, lengths, name, _stop_only(on_bytes))
        return np.insert(tokens, np.cumsum(lengths) - lengths, EOT), lengths + 1

    def _encode_with_tiktoken(self, text: str, on_bytes: OnBytes | None) -> Tokens:
        pieces = [np.empty(0, dtype=np.uint16)]
        for piece in _split(text, _PIECE):
            pieces.append(np.array(self._tiktoken.encode(piece), dtype=np.uint16))
            if on_bytes is not None:
                on_bytes(len(piece.encode()))
        return np.concatenate(pieces)

    def _encode_with_gigatoken(self, texts: Texts) -> tuple[Tokens, Counts]:
        import awkward

        if not len(texts):
            return np.empty(0, dtype=np.uint16), np.zeros(0, dtype=np.int64)
        characters = awkward.contents.NumpyArray(texts.data, parameters={"__array__": "char"})
        strings = awkward.contents.ListOffsetArray(
            awkward.index.Index64(texts.offsets), characters, parameters={"__array__": "string"}
        )
        # One thread for each call: the workers run in parallel.
        encoded = self._bounded_gigatoken(len(texts.data)).encode_batch(awkward.Array(strings), parallel=False).layout
        offsets = np.asarray(encoded.offsets.data, dtype=np.int64)
        tokens = np.asarray(encoded.content.data)[offsets[0] : offsets[-1]]
        return tokens.astype(np.uint16), np.diff(offsets)

    def _bounded_gigatoken(self, text_bytes: int) -> Any:
        with self._lock:
            self._bytes_since_reset += text_bytes
            if self._bytes_since_reset > _MIN_BYTES_BETWEEN_RESETS and _resident_bytes() > _MAX_RESIDENT_BYTES:
                self._gigatoken, self._bytes_since_reset = _build_gigatoken(self._mirror), 0
            return self._gigatoken

    def _compare(self, texts: Texts, tokens: Tokens, lengths: Counts, name: str, on_bytes: OnBytes | None) -> None:
        sizes = np.diff(texts.offsets)
        short = np.flatnonzero(sizes <= _MAX_COMPARED_BYTES)
        # A hash of the name selects another row in every chunk, and the same one each time.
        number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
        row = int(short[number % len(short)]) if len(short) else int(sizes.argmin())
        start = int(lengths[:row].sum())
        text = texts[row]
        beginning = next(_split(text, _MAX_COMPARED_BYTES), "")
        if len(beginning) > 2 * _MAX_COMPARED_BYTES:  # without white space tiktoken would take minutes
            return
        expected = self._encode_with_tiktoken(beginning, on_bytes)
        count = int(lengths[row]) if len(beginning) == len(text) else len(expected)
        if not np.array_equal(tokens[start : start + count], expected):
            raise GPT2LabError(
                f"{name}: gigatoken and tiktoken give different tokens for document {row}; use "
                f"--tokenizer tiktoken, and please report it"
            )


def _split(text: str, size: int) -> Iterator[str]:
    """Pieces of a text, at least `size` long where they can be, that have the same tokens as the whole."""
    start = 0
    while len(text) - start > size and (border := _BORDER.search(text, start + size)):
        yield text[start : border.start()]
        start = border.start()
    yield text[start:]


def _stop_only(on_bytes: OnBytes | None) -> OnBytes | None:
    """For text that is encoded again: it may be stopped, but has been counted."""
    return None if on_bytes is None else lambda _: on_bytes(0)


_get_encoder = functools.lru_cache(maxsize=4)(Encoder)
_encoder_lock = threading.Lock()


def _build_gigatoken(mirror: str | None) -> Any:
    """Build gigatoken with GPT-2's ranks and no special tokens: `<|endoftext|>` in a text is encoded as text."""
    import gigatoken

    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks(mirror).items())
    with tempfile.TemporaryDirectory() as folder:  # gigatoken's other constructors use the network
        file = Path(folder) / "gpt2.tiktoken"
        file.write_bytes(lines)
        return gigatoken.Tokenizer.from_tiktoken(file, pretokenizer="gpt2", special_tokens={})


def _hash_documents(tokens: Tokens, lengths: Counts) -> npt.NDArray[np.uint64]:
    """Hash each document: the first 8 bytes of the SHA-256 of its tokens, which are equal exactly where texts are."""
    ends = np.cumsum(lengths)
    bounds = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
    digests = [hashlib.sha256(tokens[start:end].data).digest()[:8] for start, end in bounds]
    return np.frombuffer(b"".join(digests), dtype="<u8")


def _resident_bytes() -> int:
    """Memory of this process in bytes; 0 on systems without /proc."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0

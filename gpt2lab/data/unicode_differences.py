"""Characters on which gigatoken and tiktoken differ: the 4,657 letters and digits that Unicode 17.0 added.

gigatoken 0.10 knows them as letters and digits, tiktoken 0.14 does not, so that words with them are split in other
places. tiktoken is the reference, and encodes all documents with such a character. A test compares both on all of
Unicode, and fails if other versions differ on other characters.
"""

import numpy as np

from gpt2lab.data.sources import Texts

_RANGES = """
0088F 00C5C 00CDC 0A7CE-0A7CF 0A7D2 0A7D4 0A7F1 10940-10959 10EC5-10EC7 11DB0-11DDB 11DE0-11DE9 16EA0-16EB8
16EBB-16ED3 16FF2-16FF6 187F8-187FF 18D09-18D1E 18D80-18DF2 1E6C0-1E6DE 1E6E0-1E6E2 1E6E4-1E6E5 1E6E7-1E6ED
1E6F0-1E6F4 1E6FE-1E6FF 2B73A-2B73F 2CEA2-2CEAD 323B0-33479
"""

RANGES = np.array([[int(code, 16) for code in (word.split("-") * 2)[:2]] for word in _RANGES.split()])
"""int64 `(ranges, 2)`: first and last code point of each range."""

# UTF-8 keeps the order of code points. As numbers of four bytes, big end first, the encodings of a range and any byte
# that follows a character of three bytes are between these bounds.
_FIRST, _LAST = (
    np.array([int.from_bytes(chr(code).encode().ljust(4, filler), "big") for code in codes])
    for codes, filler in zip(RANGES.T.tolist(), (b"\x00", b"\xff"), strict=True)
)


def find_documents(texts: Texts) -> list[int]:
    """Find the documents with such a character. Fast for English text, in which few bytes can begin one.

    Args:
        texts: the documents.

    Returns:
        Their indices, in order.
    """
    starts = np.flatnonzero(texts.data >= 0xE0)  # of characters of three or four bytes
    starts = starts[np.isin(texts.data[starts], (0xE0, 0xEA, 0xF0))]
    codes = np.zeros(len(starts), dtype=np.int64)
    for offset in range(4):
        codes = (codes << 8) | texts.data.take(starts + offset, mode="clip")
    ranges = np.searchsorted(_FIRST, codes, side="right") - 1
    matches = starts[(ranges >= 0) & (codes <= _LAST[ranges])]
    documents: list[int] = np.unique(np.searchsorted(texts.offsets, matches, side="right") - 1).tolist()
    return documents

"""Characters on which gigatoken and tiktoken differ: the 4,657 letters and digits that Unicode 17.0 added.

gigatoken 0.10 knows them as letters and digits, tiktoken 0.14 does not, so that words with them are split in other
places. tiktoken is the reference, and encodes all documents with such a character. A test compares both on all of
Unicode, and fails if other versions differ on other characters.
"""

import numpy as np
import numpy.typing as npt

from gpt2lab.data.sources import Texts

_RANGES = """
0088F 00C5C 00CDC 0A7CE-0A7CF 0A7D2 0A7D4 0A7F1 10940-10959 10EC5-10EC7 11DB0-11DDB 11DE0-11DE9 16EA0-16EB8
16EBB-16ED3 16FF2-16FF6 187F8-187FF 18D09-18D1E 18D80-18DF2 1E6C0-1E6DE 1E6E0-1E6E2 1E6E4-1E6E5 1E6E7-1E6ED
1E6F0-1E6F4 1E6FE-1E6FF 2B73A-2B73F 2CEA2-2CEAD 323B0-33479
"""

RANGES = np.array([[int(code, 16) for code in (word.split("-") * 2)[:2]] for word in _RANGES.split()])
"""int64 `(ranges, 2)`: first and last code point of each range."""


def find_documents(texts: Texts) -> list[int]:
    """Find the documents with such a character. Fast for English text, in which few bytes can begin one.

    Args:
        texts: the documents.

    Returns:
        Their indices, in order.
    """
    starts = np.flatnonzero(texts.data >= 0xE0)  # of characters of three or four bytes
    first_bytes = texts.data[starts]
    positions = np.concatenate(
        [
            _find_characters(texts.data, starts[(first_bytes == 0xE0) | (first_bytes == 0xEA)], 3),
            _find_characters(texts.data, starts[first_bytes == 0xF0], 4),
        ]
    )
    documents: list[int] = np.unique(np.searchsorted(texts.offsets, positions, side="right") - 1).tolist()
    return documents


def _find_characters(data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Those of `starts` whose characters, of `size` bytes each, are in the ranges."""
    codes = data[starts].astype(np.int64) & (0xFF >> (size + 1))
    for offset in range(1, size):
        codes = (codes << 6) | (data[starts + offset] & 0x3F)
    ranges = np.searchsorted(RANGES[:, 0], codes, side="right") - 1
    matches: npt.NDArray[np.int64] = starts[(ranges >= 0) & (codes <= RANGES[ranges, 1])]
    return matches

"""The characters about which gigatoken and tiktoken disagree: the 4,657 letters and digits that Unicode 17.0 added.

gigatoken 0.10 knows them; to the tables of tiktoken 0.14 they are signs. So `X's`, X one of them, is split at another
place. tiktoken is the reference, so documents that hold such a character are left to it. A test goes through all of
Unicode, so that newer versions of either are noticed.
"""

import numpy as np
import numpy.typing as npt

from gpt2lab.data.sources import Texts

# First and last of each range.
RANGES = np.array(
    [
        (0x0088F, 0x0088F),
        (0x00C5C, 0x00C5C),
        (0x00CDC, 0x00CDC),
        (0x0A7CE, 0x0A7CF),
        (0x0A7D2, 0x0A7D2),
        (0x0A7D4, 0x0A7D4),
        (0x0A7F1, 0x0A7F1),
        (0x10940, 0x10959),
        (0x10EC5, 0x10EC7),
        (0x11DB0, 0x11DDB),
        (0x11DE0, 0x11DE9),
        (0x16EA0, 0x16EB8),
        (0x16EBB, 0x16ED3),
        (0x16FF2, 0x16FF6),
        (0x187F8, 0x187FF),
        (0x18D09, 0x18D1E),
        (0x18D80, 0x18DF2),
        (0x1E6C0, 0x1E6DE),
        (0x1E6E0, 0x1E6E2),
        (0x1E6E4, 0x1E6E5),
        (0x1E6E7, 0x1E6ED),
        (0x1E6F0, 0x1E6F4),
        (0x1E6FE, 0x1E6FF),
        (0x2B73A, 0x2B73F),
        (0x2CEA2, 0x2CEAD),
        (0x323B0, 0x33479),
    ]
)


def documents_with(texts: Texts) -> list[int]:
    """The documents that hold such a character, in order. Next to nothing for English: few bytes begin one."""
    data = texts.data
    begins = np.flatnonzero(data >= 0xE0)  # of characters of three or four bytes
    lead = data[begins]
    found = [
        _places(data, begins[(lead == 0xE0) | (lead == 0xEA)], 3),
        _places(data, begins[lead == 0xF0], 4),
    ]
    places = np.concatenate(found)
    return np.unique(np.searchsorted(texts.offsets, places, side="right") - 1).tolist()  # type: ignore[no-any-return]


def _places(data: npt.NDArray[np.uint8], begins: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Those of `begins` at which a character of the ranges begins; all are characters of `length` bytes."""
    codes = data[begins].astype(np.int64) & (0xFF >> (length + 1))
    for place in range(1, length):
        codes = (codes << 6) | (data[begins + place] & 0x3F)
    ranges = np.searchsorted(RANGES[:, 0], codes, side="right") - 1
    found: npt.NDArray[np.int64] = begins[(ranges >= 0) & (codes <= RANGES[ranges, 1])]
    return found

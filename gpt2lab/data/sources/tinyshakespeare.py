"""Shakespeare's plays in one file of 1.1 MB, split where everybody splits it: the last tenth of the characters is val.

Val lies first in a folder of shards, so the file's end is the first document here, and its beginning the second.
"""

from pathlib import Path

from gpt2lab import resources
from gpt2lab.data.sources import Document, Gathered, Source

_FILE = "tinyshakespeare/input.txt"
_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_COMMIT = "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
_URL = f"https://raw.githubusercontent.com/karpathy/char-rnn/{_COMMIT}/data/tinyshakespeare/input.txt"


def source(mirror: str | Path | None = None) -> Source:
    """From the cache, a mirror, or the network.

    Raises:
        GPT2LabError: none of them has the file.
    """
    text = resources.find(_FILE, _SHA256, mirror=mirror, url=_URL).read_bytes().decode("utf-8")
    cut = len(text) * 9 // 10
    piece = Gathered(_FILE, (Document("val", text[cut:]), Document("train", text[:cut])))
    return Source(
        "tinyshakespeare", "tinyshakespeare", f"karpathy/char-rnn {_COMMIT[:12]}", (piece,), val="first document"
    )

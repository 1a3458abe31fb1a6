"""Tiny Shakespeare: plays in one file of 1.1 MB. The last tenth of the characters is val, as in other projects.

The validation split comes first in a folder of shards, so the end of the file is the first document here.
"""

from pathlib import Path

from gpt2lab import resources
from gpt2lab.data.sources import Source, in_memory_file

_FILE = "tinyshakespeare/input.txt"
_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_COMMIT = "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
_URL = f"https://raw.githubusercontent.com/karpathy/char-rnn/{_COMMIT}/data/tinyshakespeare/input.txt"


def source(mirror: str | Path | None = None) -> Source:
    """Open the corpus from the cache, a mirror or the network.

    Args:
        mirror: folder with `tinyshakespeare/input.txt`.

    Raises:
        GPT2LabError: the file cannot be found or downloaded.
    """
    text = resources.find(_FILE, _SHA256, mirror=mirror, url=_URL).read_bytes().decode("utf-8")
    val_start = len(text) * 9 // 10
    files = (in_memory_file(_FILE, (text[val_start:], text[:val_start])),)
    revision = f"karpathy/char-rnn {_COMMIT[:12]}"
    return Source("tinyshakespeare", "tinyshakespeare", revision, files, val="first document")

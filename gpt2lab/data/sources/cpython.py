"""A larger corpus that needs no download: the Python sources of the running Python's standard library.

One document for each module, about 4M tokens in all: enough for small runs that show how the loss falls with size and
data. Tests, other packages and tables (character encodings, the text of `help()`) are left out. The documents are
shuffled; val is the first tenth of the tokens. The same Python version always gives the same documents.
"""

import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

from gpt2lab.data.sources import Source, stdlib
from gpt2lab.data.sources.stdlib import SHUFFLE_SEED, Document
from gpt2lab.errors import GPT2LabError


def source(seed: int = SHUFFLE_SEED) -> Source:
    """Open the corpus.

    Args:
        seed: of the order of the documents.

    Raises:
        GPT2LabError: the source files of the standard library are not installed.
    """
    return stdlib.shuffled_source("cpython", documents(), seed)


def documents(folder: Path | None = None) -> Iterator[Document]:
    """Read the modules, sorted by name. A text that has occurred before is left out.

    Args:
        folder: root of a standard library; None for that of the running Python.

    Raises:
        GPT2LabError: the folder holds no source files (some installations have only compiled files).
    """
    root = folder or stdlib.find_library()
    seen: set[str] = set()
    for path in stdlib.find_modules(root):
        text = _read(path)
        if text and text not in seen:
            seen.add(text)
            yield Document(".".join(path.relative_to(root).with_suffix("").parts), text)
    if not seen:
        raise GPT2LabError(f"{root} holds no Python sources; use a Python that includes those of its standard library")


def _read(path: Path) -> str:
    """The text of a file in the encoding that it declares, ending with one newline; empty if it cannot be read."""
    try:
        content = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding).replace("\r\n", "\n").strip("\n")
    except (OSError, SyntaxError, UnicodeDecodeError):
        return ""
    return f"{text}\n" if text.strip() else ""

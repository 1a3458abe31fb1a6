"""The sources by name: where their shards go and how they are opened."""

import shlex
from collections.abc import Iterable
from pathlib import Path

from gpt2lab.data.sources import Source, fineweb_edu, local_files, stdlib, tinyshakespeare
from gpt2lab.errors import GPT2LabError

DEFAULT_DIRS = {
    "stdlib": "data/stdlib",
    "tinyshakespeare": "data/tinyshakespeare",
    "fineweb-edu": "data/edu_fineweb10B",
    "files": "data/files",
}


def open_source(
    name: str,
    *,
    subset: str = "sample-10BT",
    mirror: str | Path | None = None,
    inputs: Iterable[str] = (),
    field: str = "text",
    seed: int | None = None,
) -> Source:
    """Open a source by name. The other arguments apply to the sources that have such an option.

    Args:
        name: a key of `DEFAULT_DIRS`.
        subset: subset of fineweb-edu.
        mirror: folder to read downloads from.
        inputs: paths or glob patterns of files.
        field: JSON field or parquet column with the text.
        seed: of the order of the documents of stdlib.

    Raises:
        GPT2LabError: the source is unknown or cannot be found, or files has no inputs.
    """
    if name == "fineweb-edu":
        return fineweb_edu.source(subset, mirror, field)
    if name == "files":
        if not (patterns := list(inputs)):
            raise GPT2LabError("prepare files needs --input with files or patterns, such as --input 'corpus/**/*.txt'")
        return local_files.source(patterns, field)
    if name == "tinyshakespeare":
        return tinyshakespeare.source(mirror)
    if name == "stdlib":
        return stdlib.source() if seed is None else stdlib.source(seed)
    raise GPT2LabError(f"source {name!r} is not known; use one of {', '.join(DEFAULT_DIRS)}, pretokenized")


def default_folder(name: str, subset: str = "sample-10BT") -> str:
    """Return the folder for the shards of a source, unless `--out` or `data.dir` is given.

    Args:
        name: a key of `DEFAULT_DIRS`.
        subset: subset of fineweb-edu.
    """
    if name == "fineweb-edu" and subset != "sample-10BT":
        return f"data/edu_fineweb{subset.removeprefix('sample-').removesuffix('T')}"
    return DEFAULT_DIRS[name]


def prepare_command(name: str, folder: Path, mirror: str | Path | None = None) -> str:
    """Return the command line that prepares a source.

    Args:
        name: a key of `DEFAULT_DIRS`.
        folder: where the shards go.
        mirror: folder to read downloads from.
    """
    words = ["gpt2lab", "prepare", name]
    words += ["--mirror", str(mirror)] if mirror is not None else []
    words += ["--out", str(folder)] if str(folder) != DEFAULT_DIRS[name] else []
    return shlex.join(words)

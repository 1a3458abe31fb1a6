"""FineWeb-Edu: educational web pages as parquet files, from the Hugging Face hub or from a folder with the same layout.

    hub (one pinned revision) ──download, two files ahead──▶ the hub's own cache ──▶ row groups
    mirror folder             ─────────────────────────────────────────────────────▶ row groups

The hub's cache, resuming of broken downloads, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` are huggingface_hub's. This
module adds patience: a hub that says "too many requests", or a network that is gone for a minute, is asked again.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gpt2lab import resources
from gpt2lab.data.sources import Piece, Source, Unit
from gpt2lab.data.sources.parquet import ParquetFile
from gpt2lab.errors import GPT2LabError

REPOSITORY = "HuggingFaceFW/fineweb-edu"
REVISION = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"

_FOLDERS = {"sample-10BT": "sample/10BT", "sample-100BT": "sample/100BT", "sample-350BT": "sample/350BT"}
_TEXT_SHARE = 1.7  # bytes of text a byte of the hub's files, about
_AHEAD = 2  # files that are downloaded while one is being read
_PATIENCE = (2, 5, 15, 30, 60, 120)  # seconds between attempts

Result = TypeVar("Result")


def source(subset: str = "sample-10BT", mirror: str | Path | None = None, column: str = "text") -> Source:
    """A subset of the corpus: `sample-10BT`, `sample-100BT`, `sample-350BT`, or one crawl (`CC-MAIN-2024-10`).

    Args:
        subset: which.
        mirror: folder that holds `sample/` (or `data/`), or one that holds such a folder named `fineweb_edu…`;
            `$GPT2LAB_MIRROR` unless given, and the hub without either.

    Raises:
        GPT2LabError: no such subset, or the mirror or the hub does not have it.
    """
    if subset not in _FOLDERS and not subset.startswith("CC-MAIN-"):
        raise GPT2LabError(f"--subset {subset!r}: use {', '.join(_FOLDERS)}, or a crawl such as CC-MAIN-2024-10")
    folder = _FOLDERS.get(subset, f"data/{subset}")
    if mirror is not None:
        return _from_disk(_find(Path(mirror), folder), folder, column)
    default = resources.default_mirror()
    if default is not None and any(_candidates(default, folder)):
        return _from_disk(_find(default, folder), folder, column)
    return _from_hub(folder, column)


def _candidates(mirror: Path, folder: str) -> Iterator[Path]:
    for root in (mirror, *sorted(mirror.glob("fineweb_edu*")), *sorted(mirror.glob("fineweb-edu*"))):
        if any((root / folder).glob("*.parquet")):
            yield root


def _find(mirror: Path, folder: str) -> Path:
    for root in _candidates(mirror, folder):
        return root
    raise GPT2LabError(
        f"--mirror {mirror} has no {folder}/*.parquet, nor a folder fineweb_edu* that has; "
        f"give the folder that holds {folder.partition('/')[0]}/"
    )


def _from_disk(root: Path, folder: str, column: str) -> Source:
    paths = sorted((root / folder).glob("*.parquet"))
    pieces = tuple(ParquetFile(str(path.resolve()), f"{folder}/{path.name}", column) for path in paths)
    return Source("fineweb-edu", "edufineweb", f"{root.resolve().name}/{folder}", pieces, val="shard")


def _from_hub(folder: str, column: str) -> Source:
    # huggingface_hub itself tries for some twenty seconds. Without any network that is long enough to know; in the
    # middle of a long download it is worth waiting longer.
    listed = _on_hub(lambda: _list(folder), f"the list of files in {folder}", patience=())
    if not listed:
        raise GPT2LabError(f"{REPOSITORY} at revision {REVISION[:12]} has no {folder}/*.parquet; check --subset")
    downloads = _Downloads([name for name, _, _ in listed])
    pieces = tuple(HubFile(name, size, mark, column, downloads) for name, size, mark in listed)
    missing = sum(size for name, size, _ in listed if not _cached(name))
    revision = f"{REPOSITORY} {REVISION[:12]} {folder}"
    return Source("fineweb-edu", "edufineweb", revision, pieces, val="shard", downloads=missing)


def _list(folder: str) -> list[tuple[str, int, str]]:
    """Name, bytes and digest of each parquet file, in order. Offline: what the cache has."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        pattern = f"{folder}/*.parquet"
        options: dict[str, Any] = {"repo_type": "dataset", "revision": REVISION, "allow_patterns": pattern}
        root = Path(huggingface_hub.snapshot_download(REPOSITORY, local_files_only=True, **options))
        files = sorted((root / folder).glob("*.parquet"))
        # In the cache a file is a link to one that is named after its digest, the same that the hub lists.
        return [(f"{folder}/{file.name}", file.stat().st_size, file.resolve().name) for file in files]
    tree = huggingface_hub.HfApi().list_repo_tree(
        REPOSITORY, path_in_repo=folder, repo_type="dataset", revision=REVISION
    )
    remote = [
        entry for entry in tree if isinstance(entry, huggingface_hub.RepoFile) and entry.path.endswith(".parquet")
    ]
    return sorted((file.path, file.size, file.lfs.sha256 if file.lfs else file.blob_id) for file in remote)


def _cached(name: str) -> bool:
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(REPOSITORY, name, repo_type="dataset", revision=REVISION)
    return isinstance(found, str)


def _fetch(name: str) -> str:
    """Path of a file in the hub's cache, downloaded first where it is not there; a broken download goes on."""
    import huggingface_hub

    def download() -> str:
        return huggingface_hub.hf_hub_download(REPOSITORY, name, repo_type="dataset", revision=REVISION)

    return _on_hub(download, name)


def _fetch_for(name: str, waiting: Future[str]) -> None:
    try:
        waiting.set_result(_fetch(name))
    except BaseException as error:
        waiting.set_exception(error)


def _on_hub(ask: Callable[[], Result], what: str, patience: Sequence[float] = _PATIENCE) -> Result:
    """`ask()`, again and again while the hub is busy or out of reach.

    Raises:
        GPT2LabError: it stays so, or the hub refuses.
    """
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(len(_PATIENCE) + 1):
        try:
            return ask()
        except Exception as error:
            answer = error.response if isinstance(error, HfHubHTTPError) else None
            if answer is not None:
                again, reason = answer.status_code == 429 or answer.status_code >= 500, f"status {answer.status_code}"
            elif isinstance(error, OSError) or type(error).__module__.startswith("httpx"):  # or not even an answer
                again, reason = not _offline() and attempt < len(patience), _root_cause(error)
            else:
                raise
        if not again or attempt == len(_PATIENCE):
            break
        pause = _retry_after(answer) or _PATIENCE[attempt]
        print(f"the hub does not give {what} ({reason}); asking again in {pause:.0f} s", flush=True)
        time.sleep(pause)
    raise GPT2LabError(
        f"{REPOSITORY}: cannot get {what} from the hub ({reason}); without a network, give a folder that holds the "
        f"same files with --mirror, or fill HF_HOME elsewhere and set HF_HUB_OFFLINE=1"
    )


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0] or type(error).__name__


def _retry_after(answer: Any) -> float | None:
    """Seconds that a busy hub asks us to wait."""
    try:
        return min(300.0, max(1.0, float(answer.headers["Retry-After"])))
    except (AttributeError, KeyError, ValueError):
        return None


class _Downloads:
    """Files of the hub on their way to the cache: whoever waits for one sets the next ones going.

    The threads are daemons: a process that ends need not wait for gigabytes, and the next one goes on with them.
    """

    def __init__(self, names: list[str]):
        self.names = names
        self._coming: dict[str, Future[str]] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> str:
        """The path of a file, once it is there."""
        place = self.names.index(name)
        with self._lock:
            for wanted in self.names[place : place + 1 + _AHEAD]:
                if wanted not in self._coming:
                    self._coming[wanted] = Future()
                    arguments = (wanted, self._coming[wanted])
                    threading.Thread(target=_fetch_for, args=arguments, name="download", daemon=True).start()
        return self._coming[name].result()

    def __getstate__(self) -> dict[str, Any]:
        return {"names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["names"])  # type: ignore[misc]


@dataclass(frozen=True)
class HubFile(Piece):
    """A file of the hub, downloaded when its units are asked for."""

    name: str
    size: int
    mark: str
    column: str
    downloads: _Downloads

    @property
    def text_bytes(self) -> int:  # type: ignore[override]
        return int(self.size * _TEXT_SHARE)

    def identity(self) -> str:
        return f"{self.column} {self.mark}"

    def units(self) -> Iterator[Unit]:
        yield from ParquetFile(self.downloads.get(self.name), self.name, self.column).units()

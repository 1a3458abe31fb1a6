"""From a source to a folder of shards: `prepare` makes them when they are not there, and otherwise does nothing.

    documents ──shuffle──▶ ──Tokenizer──▶ tokens ──┬── the first tenth ─▶ val ──┬──ShardWriter──▶ folder
                                                   └── the rest ───────▶ train ─┘

A process that is killed leaves the mark of an unfinished folder (see `shards`); the next call begins anew.
"""

import hashlib
import time
from pathlib import Path
from typing import NamedTuple

from gpt2lab.data import shards
from gpt2lab.data.sources import stdlib
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import DirectoryLock

DEFAULT_DIRS = {"stdlib": "data/stdlib", "fineweb-edu": "data/edu_fineweb10B"}

SHUFFLE_SEED = 1337
VAL_SHARE = 10  # val is one token in ten


class Summary(NamedTuple):
    """What a folder holds, both splits together. `documents` is None where no manifest counts them."""

    documents: int | None
    tokens: int
    seconds: float


def prepare(
    source: str, folder: str | Path, *, mirror: str | Path | None = None, shard_tokens: int = shards.SHARD_TOKENS
) -> Summary:
    """See to it that `folder` holds the shards of `source`, and open both splits once.

    Args:
        source: `stdlib` is made on the spot; `fineweb-edu` must be there.
        folder: where the shards are, or are to be.
        mirror: where the tokenizer's files may be found.
        shard_tokens: tokens of a full shard.

    Raises:
        GPT2LabError: the folder holds something else or damaged shards, another process is preparing it, or the disk
            refused a write.
    """
    begun = time.perf_counter()
    folder = Path(folder)
    if source == "stdlib":
        if not _is_complete(folder, source):
            with DirectoryLock(folder):
                if not _is_complete(folder, source):  # another process may have done it just now
                    _write(folder, Tokenizer(mirror), shard_tokens)
    elif source in DEFAULT_DIRS:
        if not folder.is_dir() or not shards.shard_files(folder):
            raise GPT2LabError(
                f"{folder} holds no shards of {source}; put them there (NAME_train_000001.npy, NAME_val_000000.npy), "
                f"or set --data.dir to their folder"
            )
    else:
        raise GPT2LabError(f"data.source {source!r} is not known; use one of {', '.join(DEFAULT_DIRS)}")
    splits = [shards.open_split(folder, "train"), shards.open_split(folder, "val")]
    counts = [split.documents for split in splits if split.documents is not None]
    documents = sum(counts) if len(counts) == len(splits) else None
    return Summary(documents, sum(map(len, splits)), time.perf_counter() - begun)


def _is_complete(folder: Path, source: str) -> bool:
    """Whether the folder has its manifest. A folder of someone else's shards is refused, lest it be overwritten."""
    if not folder.is_dir():
        return False
    manifest = shards.read_manifest(folder)
    ours = manifest.source == source if manifest else (folder / shards.PREPARING).exists()
    if not ours and shards.shard_files(folder):
        raise GPT2LabError(
            f"{folder} holds shards that are not of data.source {source}; set another --data.dir, or --data.source"
        )
    return manifest is not None


def _write(folder: Path, tokenizer: Tokenizer, shard_tokens: int) -> None:
    """Tokenise the standard library's prose, shuffle it, split it, write it. The folder's lock is held."""
    documents = sorted(stdlib.documents(), key=lambda document: _shuffle_key(document.id))
    encoded = tokenizer.encode_documents([document.text for document in documents])
    total = sum(1 + len(tokens) for tokens in encoded)  # 1: the <|endoftext|> before each
    written = 0
    with shards.ShardWriter(
        folder,
        "stdlib",
        source="stdlib",
        revision=stdlib.revision(),
        seed=SHUFFLE_SEED,
        shard_tokens=shard_tokens,
    ) as writer:
        for tokens in encoded:
            writer.add("val" if written * VAL_SHARE < total else "train", tokens)
            written += 1 + len(tokens)


def _shuffle_key(name: str) -> bytes:
    """Sorting by a hash is a shuffle, and no version of a random number generator can change it."""
    return hashlib.blake2b(f"{SHUFFLE_SEED}/{name}".encode()).digest()

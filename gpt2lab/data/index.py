"""Taking on shards that others made: check them, and write the manifest that they lack.

`.npy` of uint16 and llm.c's `.bin` are read as they are, so nothing is converted. They stay where they lie, unless
another folder is asked for: then they are linked there, or copied where the file system cannot link.
"""

import os
import shutil
import time
from pathlib import Path

import numpy as np

from gpt2lab.data import shards, verify
from gpt2lab.data.prepare import Summary
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import DirectoryLock, atomic_write, remove_temporaries, sha256

SOURCE = "pretokenized"


def index_shards(given: str | Path, folder: str | Path | None = None) -> Summary:
    """Write a manifest for the shards in `given`, there or in `folder`. Does nothing where that was done before.

    Raises:
        GPT2LabError: a shard is not whole, holds ids that are none of GPT-2's, or says not which split it is of; the
            folder holds other shards.
    """
    begun = time.perf_counter()
    given = Path(given)
    folder = given if folder is None else Path(folder)
    if not given.is_dir():
        raise GPT2LabError(f"--input {given} is not a folder; give the one that holds the shards")
    streams = {split: shards.open_split(given, split) for split in shards.SPLITS}
    if odd := [file for file in shards.shard_files(given) if shards.split_of(file.name) is None]:
        raise GPT2LabError(f"{odd[0]}: its name says neither train nor val; rename it, or move it away")
    with DirectoryLock(folder):
        existing = shards.read_manifest(folder)
        if existing is not None and folder == given:
            known = sum(existing.documents.values())
            return Summary(known, sum(existing.tokens.values()), time.perf_counter() - begun, len(existing.shards))
        remove_temporaries(folder)
        names = {file.name for stream in streams.values() for file in stream.files}
        if other := [file for file in shards.shard_files(folder) if file.name not in names]:
            raise GPT2LabError(f"{folder} holds other shards, such as {other[0].name}; give another --out")
        entries = []
        documents: dict[str, int] = dict.fromkeys(shards.SPLITS, 0)
        for split, stream in streams.items():
            for number, file in enumerate(stream.files):
                documents[split] += verify.scan(stream, number).documents
                digest = sha256(file)
                if folder != given:
                    _bring(file, folder / file.name, digest)
                count = int(np.diff(stream.starts)[number])
                entries.append({"file": file.name, "split": split, "tokens": count, "sha256": digest})
        lengths: dict[str, int] = {split: len(stream) for split, stream in streams.items()}
        about = {"source": SOURCE, "revision": given.resolve().name}
        shards.write_manifest(folder, about, documents, lengths, entries)
    tokens = sum(map(len, streams.values()))
    return Summary(sum(documents.values()), tokens, time.perf_counter() - begun, len(entries), text_bytes=0, made=True)


def _bring(file: Path, target: Path, digest: str) -> None:
    if target.exists():
        if sha256(target) == digest:
            return
        raise GPT2LabError(f"{target} exists and is another file; give another --out")
    with atomic_write(target) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)

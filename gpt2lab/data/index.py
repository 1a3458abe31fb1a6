"""Use shards of other projects: check them, and write the manifest that they lack.

`.npy` files of uint16 and llm.c's `.bin` files are not converted. They stay in their folder, or are linked into another
one (copied if the file system has no links).
"""

import os
import shutil
import time
from pathlib import Path

import numpy as np

from gpt2lab import progress
from gpt2lab.data import shards, verify
from gpt2lab.data.summary import Summary
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import DirectoryLock, atomic_write, remove_temporaries, sha256, suggest_path


def index_shards(input_folder: str | Path, folder: str | Path | None = None) -> Summary:
    """Write a manifest for existing shards. A folder that has one is not changed.

    Args:
        input_folder: folder of the shards.
        folder: where to write the manifest and link the shards; None for `input_folder`.

    Raises:
        GPT2LabError: a shard is damaged, has ids that are not GPT-2's, or no split in its name; or `folder` holds other
            shards.
    """
    began = time.perf_counter()
    input_folder = Path(input_folder)
    folder = input_folder if folder is None else Path(folder)
    if not input_folder.is_dir():
        guess = suggest_path(input_folder)
        raise GPT2LabError(f"--input {input_folder} is not a folder{guess or '; give the one that holds the shards'}")
    streams = {split: shards.open_split(input_folder, split) for split in shards.SPLITS}
    if unnamed := [file for file in shards.shard_files(input_folder) if shards.split_of(file.name) is None]:
        raise GPT2LabError(f"{unnamed[0]}: its name has neither train nor val; rename it, or move it away")
    with DirectoryLock(folder):
        manifest = shards.read_manifest(folder)
        if manifest is not None and folder == input_folder:
            documents, tokens = sum(manifest.documents.values()), sum(manifest.tokens.values())
            return Summary(documents, tokens, len(manifest.shards), val_tokens=manifest.tokens["val"])
        remove_temporaries(folder)
        names = {file.name for stream in streams.values() for file in stream.files}
        if other := [file for file in shards.shard_files(folder) if file.name not in names]:
            raise GPT2LabError(f"{folder} holds other shards, such as {other[0].name}; give another --out")
        entries = []
        document_counts: dict[str, int] = dict.fromkeys(shards.SPLITS, 0)
        size = sum(map(verify.count_bytes, streams.values()))
        with progress.Phase(f"reading {input_folder.name}", size) as phase:
            for split, stream in streams.items():
                for number, (file, count) in enumerate(zip(stream.files, np.diff(stream.starts).tolist(), strict=True)):
                    document_counts[split] += verify.count_documents(stream, number)
                    digest = sha256(file)
                    if folder != input_folder:
                        _link_or_copy(file, folder / file.name, digest)
                    entries.append({"file": file.name, "split": split, "tokens": count, "sha256": digest})
                    phase.advance(file.stat().st_size)
        token_counts: dict[str, int] = {split: len(stream) for split, stream in streams.items()}
        info = {"source": "pretokenized", "revision": input_folder.resolve().name}
        shards.write_manifest(folder, info, document_counts, token_counts, entries)
    seconds = time.perf_counter() - began
    documents, tokens = sum(document_counts.values()), sum(token_counts.values())
    return Summary(documents, tokens, len(entries), seconds, made=True, val_tokens=token_counts["val"])


def _link_or_copy(file: Path, target: Path, digest: str) -> None:
    if target.exists():
        if sha256(target) == digest:
            return
        raise GPT2LabError(f"{target} exists and is another file; give another --out")
    with atomic_write(target) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)

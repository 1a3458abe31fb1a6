"""Use shards of other projects: check them, and write the manifest that they lack.

Shards of uint16 are not converted. They stay in their folder, or are linked into another one (copied if the file system
has no links). Shards of wider integers, and the part of train that becomes val where there is none, are written anew.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt2lab import progress
from gpt2lab.data import shard_formats, shards, verify
from gpt2lab.data.summary import Summary
from gpt2lab.data.tokenizer import VOCAB_SIZE
from gpt2lab.disk_space import SpaceNeeded, require_space
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import (
    DirectoryLock,
    atomic_write,
    remove_temporaries,
    sha256,
    suggest_path,
)

_BLOCK_TOKENS = 1 << 22  # converted at a time


class Part(NamedTuple):
    """What becomes one shard: a file as it is, or tokens to be written."""

    name: str
    file: Path
    tokens: npt.NDArray[Any] | None  # None: the file as it is


def index_shards(input_folder: str | Path, folder: str | Path | None = None, text: str | None = None) -> Summary:
    """Write a manifest for existing shards. A folder that has one is not changed, except for `text`.

    Args:
        input_folder: folder of the shards.
        folder: where to write the manifest and link or convert the shards; None for `input_folder`.
        text: name of the corpus that the shards hold, such as `fineweb-edu`; None if it is not known.

    Raises:
        GPT2LabError: a shard is damaged, has ids that are not GPT-2's, or no split in its name; shards have to be
            written, and `folder` is `input_folder`; or `folder` holds other shards.
    """
    began = time.perf_counter()
    input_folder = Path(input_folder)
    folder = input_folder if folder is None else Path(folder)
    if not input_folder.is_dir():
        guess = suggest_path(input_folder)
        raise GPT2LabError(f"--input {input_folder} is not a folder{guess or '; give the one that holds the shards'}")
    if unnamed := [file for file in shards.shard_files(input_folder) if shards.split_of(file.name) is None]:
        raise GPT2LabError(f"{unnamed[0]}: its name has neither train nor val; rename it, or move it away")
    parts = _list_parts(input_folder, folder)
    with DirectoryLock(folder):
        manifest = shards.read_manifest(folder)
        if manifest is not None and folder.resolve() == input_folder.resolve():
            return _keep_manifest(folder, manifest, text)
        remove_temporaries(folder)
        names = {part.name for part in parts}
        if other := [file for file in shards.shard_files(folder) if file.name not in names]:
            raise GPT2LabError(f"{folder} holds other shards, such as {other[0].name}; give another --out")
        size = 2 * sum(len(part.tokens) for part in parts if part.tokens is not None)
        require_space([SpaceNeeded(folder, size, "converted shards")], "free some space, or give another --out")
        if folder.resolve() != input_folder.resolve():
            _write_parts(parts, folder)
        entries, documents, tokens = _check(folder, {part.name for part in parts})
        info = {"source": "pretokenized", "text": text, "revision": input_folder.resolve().name}
        shards.write_manifest(folder, info, documents, tokens, entries)
    seconds = time.perf_counter() - began
    counts = sum(documents.values()), sum(tokens.values()), len(entries)
    return Summary(*counts, seconds, made=True, val_tokens=tokens["val"])


def _keep_manifest(folder: Path, manifest: shards.Manifest, text: str | None) -> Summary:
    """Record `text` in the manifest of a folder that is indexed already."""
    if text is not None and manifest.source == "pretokenized" and manifest.content.get("text") != text:
        info = {key: value for key, value in manifest.content.items() if key not in ("version", "tokenizer", "splits")}
        entries = info.pop("shards")
        shards.write_manifest(folder, info | {"text": text}, manifest.documents, manifest.tokens, entries)
    documents, tokens = sum(manifest.documents.values()), sum(manifest.tokens.values())
    return Summary(documents, tokens, len(manifest.shards), val_tokens=manifest.tokens["val"])


def _list_parts(input_folder: Path, folder: Path) -> list[Part]:
    """The shards to be, of which those that cannot stay as they are need another folder."""
    parts = []
    for file in shards.shard_files(input_folder):
        tokens = shard_formats.map_integers(file)
        wide = tokens.dtype != shard_formats.DTYPE
        parts.append(Part(f"{file.stem}.npy" if wide else file.name, file, tokens if wide else None))
    if parts and shards.read_manifest(input_folder) is None and all(shards.split_of(p.name) == "train" for p in parts):
        parts = _hold_out(parts)
    written = [part for part in parts if part.tokens is not None]
    if written and folder.resolve() == input_folder.resolve():
        dtype = written[0].tokens.dtype if written[0].tokens is not None else ""
        reason = "there is no shard of val, so the end of train becomes val" if dtype == shard_formats.DTYPE else dtype
        raise GPT2LabError(
            f"{written[0].file} has to be written anew ({reason}), and --input is not changed; give another folder: "
            f"--out {folder}_uint16"
        )
    if len({part.name for part in parts}) < len(parts):
        raise GPT2LabError(f"{input_folder} holds files that differ in the suffix only; move one of them away")
    return parts


def _hold_out(parts: list[Part]) -> list[Part]:
    """Divide train into train and val where `shards.open_split` would."""
    arrays = [shard_formats.map_integers(part.file) for part in parts]
    border = shards.held_out_border(arrays)
    if border is None:
        raise GPT2LabError(f"{parts[0].file.parent} holds no shard of the split 'val'; a file name must contain 'val'")
    divided, position = [], 0
    for part, array in zip(parts, arrays, strict=True):
        cut = min(max(0, border - position), len(array))
        stem = Path(part.name).stem
        at = stem.lower().rindex("train")  # as `shards.split_of` finds it
        if cut == len(array):
            divided.append(part)
        else:
            divided += [Part(f"{stem}.npy", part.file, array[:cut])] * (cut > 0)
            divided.append(Part(f"{stem[:at]}val{stem[at + 5 :]}.npy", part.file, array[cut:]))
        position += len(array)
    return divided


def _write_parts(parts: list[Part], folder: Path) -> None:
    """Link or write all shards. Until then the folder is marked: some of them must not pass for all."""
    unfinished = folder / shards.PREPARING
    with atomic_write(unfinished) as temporary:
        temporary.touch()
    for part in parts:
        _write_part(part, folder)
    unfinished.unlink()


def _write_part(part: Part, folder: Path) -> None:
    """Link or write a shard; leave one that is there already."""
    target = folder / part.name
    if part.tokens is None:
        if not (target.exists() and target.samefile(part.file)):
            _link_or_copy(part.file, target)
        return
    with atomic_write(target) as temporary, open(temporary, "wb") as file:
        header = {"descr": "<u2", "fortran_order": False, "shape": part.tokens.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(part.tokens), _BLOCK_TOKENS):
            block = part.tokens[start : start + _BLOCK_TOKENS]
            if block.min() < 0 or block.max() >= VOCAB_SIZE:
                index = int(np.flatnonzero((block < 0) | (block >= VOCAB_SIZE))[0])
                raise GPT2LabError(
                    f"{part.file}: token {start + index} is {block[index]}, but GPT-2's ids are 0 to {VOCAB_SIZE - 1}; "
                    "the shard is damaged or from another tokenizer"
                )
            file.write(block.astype(shard_formats.DTYPE).tobytes())


def _check(
    folder: Path, names: set[str]
) -> tuple[list[dict[str, Any]], dict[shards.Split, int], dict[shards.Split, int]]:
    """Read every token. Returns the entries of the manifest, and documents and tokens of each split."""
    streams = {split: shards.open_split(folder, split) for split in shards.SPLITS}
    assert {file.name for stream in streams.values() for file in stream.files} == names
    entries: list[dict[str, Any]] = []
    documents = dict.fromkeys(shards.SPLITS, 0)
    size = sum(map(verify.count_bytes, streams.values()))
    with progress.Phase(f"reading {folder.name}", size) as phase:
        for split, stream in streams.items():
            for number, (file, count) in enumerate(zip(stream.files, np.diff(stream.starts).tolist(), strict=True)):
                documents[split] += verify.count_documents(stream, number)
                entries.append({"file": file.name, "split": split, "tokens": count, "sha256": sha256(file)})
                phase.advance(file.stat().st_size)
    return entries, documents, {split: len(stream) for split, stream in streams.items()}


def _link_or_copy(file: Path, target: Path) -> None:
    if target.exists():
        if sha256(target) == sha256(file):
            return
        raise GPT2LabError(f"{target} exists and is another file; give another --out")
    with atomic_write(target) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)

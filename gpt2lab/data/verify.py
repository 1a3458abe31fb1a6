"""Show what a folder of shards holds, and check every byte of it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gpt2lab import progress
from gpt2lab.data import shard_folders, shards
from gpt2lab.data.shard_formats import REPAIR
from gpt2lab.data.shards import TokenStream
from gpt2lab.data.tokenizer import EOT, EOT_TEXT, VOCAB_SIZE, Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import sha256
from gpt2lab.formatting import plural

_BLOCK_TOKENS = 1 << 24  # read at a time
_SHOWN_DOCUMENTS = 3
_SHOWN_CHARACTERS = 100
_SHOWN_KEYS = ("revision", "tokenizer", "shuffle_seed", "shard_tokens", "text_bytes", "duplicates", "skipped")


def inspect(folder: str | Path, mirror: str | None = None) -> list[str]:
    """Describe a folder: manifest, shards, counts, and the beginnings of its first documents.

    Args:
        folder: folder of the shards.
        mirror: folder with the tokenizer's files.

    Returns:
        Lines of text.

    Raises:
        GPT2LabError: the shards are not complete.
    """
    folder = Path(folder)
    shard_folders.check_not_above(folder)
    manifest = shards.read_manifest(folder)
    lines = [f"{folder}: {'no manifest' if manifest is None else f'source {manifest.source}'}"]
    if manifest is not None:
        lines += [f"  corpus: {text}"] if (text := manifest.content.get("text")) else []
        lines += [f"  {key}: {manifest.content[key]}" for key in _SHOWN_KEYS if manifest.content.get(key) is not None]
        lines += [f"  left out: {problem}" for problem in manifest.content.get("problems", [])]
    tokenizer = Tokenizer(mirror)
    for split in shards.SPLITS:
        stream = shards.open_split(folder, split)
        documents = stream.documents
        if documents is None:
            with progress.Phase(f"counting the documents of {split}", count_bytes(stream)) as phase:
                documents = _count_all_documents(stream, phase)
        lines.append(
            f"{split}: {len(stream):,} tokens, {plural(documents, 'document')}, {plural(len(stream.files), 'shard')}"
        )
        for file, count in zip(stream.files, np.diff(stream.starts).tolist(), strict=True):
            lines.append(f"  {file.name}  {count:,} tokens")
        lines += [f"  | {text}" for text in _first_documents(stream, tokenizer)]
    return lines


def verify(folder: str | Path) -> str:
    """Read every byte of a folder of shards.

    Every shard must have the SHA-256 of the manifest, every id must be one of GPT-2's, and there must be as many
    documents as the manifest says, each with 50256 before it.

    Args:
        folder: folder of the shards.

    Returns:
        One line that summarizes the folder.

    Raises:
        GPT2LabError: something is wrong, or there is no manifest. Only the first problem is reported.
    """
    folder = Path(folder)
    shard_folders.check_not_above(folder)
    streams = {split: shards.open_split(folder, split) for split in shards.SPLITS}
    manifest = shards.read_manifest(folder)
    if manifest is None:
        raise GPT2LabError(
            f"{folder} has no {shards.MANIFEST} to check it against; write one with: "
            f"gpt2lab prepare pretokenized --input {folder}"
        )
    size = sum(map(count_bytes, streams.values()))
    with progress.Phase(f"verifying {folder.name}", 2 * size) as phase:  # every byte is read twice
        _verify_digests(folder, manifest, phase)
        for split, stream in streams.items():
            documents, expected = _count_all_documents(stream, phase), manifest.documents[split]
            if documents != expected:
                raise GPT2LabError(
                    f"{folder}: {split} has {documents} documents, {shards.MANIFEST} says {expected}; {REPAIR}"
                )
            if manifest.source != "pretokenized" and stream.read(0, 1)[0] != EOT:
                raise GPT2LabError(f"{stream.files[0]}: there is no {EOT} before its first document; {REPAIR}")
    documents, tokens = sum(manifest.documents.values()), sum(manifest.tokens.values())
    content = f"{plural(len(manifest.shards), 'shard')}, {plural(documents, 'document')}, {tokens:,} tokens"
    return f"{folder} is sound: {content}"


def _verify_digests(folder: Path, manifest: shards.Manifest, phase: progress.Phase) -> None:
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(lambda name: sha256(folder / name), manifest.shards)
        for (name, shard), digest in zip(manifest.shards.items(), digests, strict=True):
            if digest != shard.sha256:
                raise GPT2LabError(f"{folder / name} does not match its sha256 in {shards.MANIFEST}; {REPAIR}")
            phase.advance((folder / name).stat().st_size)


def count_bytes(stream: TokenStream) -> int:
    """The bytes of the shards of a split.

    Args:
        stream: the split.
    """
    return sum(file.stat().st_size for file in stream.files)


def count_documents(stream: TokenStream, number: int) -> int:
    """Read every token of a shard, and count the 50256s.

    Args:
        stream: the split.
        number: index of the shard.

    Raises:
        GPT2LabError: an id is not one of GPT-2's.
    """
    start, end = int(stream.starts[number]), int(stream.starts[number + 1])
    documents = 0
    for block_start in range(start, end, _BLOCK_TOKENS):
        tokens = stream.read(block_start, min(_BLOCK_TOKENS, end - block_start))
        if tokens[index := int(tokens.argmax())] >= VOCAB_SIZE:
            raise GPT2LabError(
                f"{stream.files[number]}: token {block_start - start + index} is {tokens[index]}, but GPT-2's ids end "
                f"at {VOCAB_SIZE - 1}; the shard is damaged or from another tokenizer"
            )
        documents += int((tokens == EOT).sum())
    return documents


def _count_all_documents(stream: TokenStream, phase: progress.Phase) -> int:
    documents = 0
    for number, file in enumerate(stream.files):
        documents += count_documents(stream, number)
        phase.advance(file.stat().st_size)
    return documents


def _first_documents(stream: TokenStream, tokenizer: Tokenizer) -> list[str]:
    """The beginnings of the first documents, each on one line."""
    tokens = stream.read(0, min(len(stream), 4096)).tolist()
    if max(tokens) >= VOCAB_SIZE:
        return ["(there are ids that are not GPT-2's)"]
    texts = [" ".join(text.split()) for text in tokenizer.decode(tokens).split(EOT_TEXT)]
    texts = [text for text in texts if text][:_SHOWN_DOCUMENTS]
    return [text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…" for text in texts]

"""Looking at a folder of shards, and vouching for it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2lab.data import shards
from gpt2lab.data.shards import TokenStream
from gpt2lab.data.tokenizer import EOT, VOCAB_SIZE, Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import sha256

_BLOCK = 1 << 24  # tokens that are looked at in one go
_SHOWN = 3  # documents of each split


class Found(NamedTuple):
    """What the tokens of one shard say."""

    documents: int  # how many 50256 there are
    largest: int
    place: int  # of the first token of that value


def inspect(folder: str | Path, mirror: str | None = None) -> list[str]:
    """Lines that say what a folder holds: manifest, shards, counts, and how its documents begin.

    Raises:
        GPT2LabError: the folder holds no whole set of shards.
    """
    folder = Path(folder)
    manifest = shards.read_manifest(folder)
    lines = [f"{folder}: {'no manifest' if manifest is None else f'source {manifest.source}'}"]
    if manifest is not None:
        shown = ("revision", "tokenizer", "shuffle_seed", "shard_tokens", "text_bytes", "duplicates", "skipped")
        lines += [f"  {key}: {manifest.content[key]}" for key in shown if manifest.content.get(key) is not None]
        lines += [f"  left out: {problem}" for problem in manifest.content.get("problems", [])]
    tokenizer = Tokenizer(mirror)
    for split in shards.SPLITS:
        stream = shards.open_split(folder, split)
        documents = stream.documents if stream.documents is not None else _count(stream)
        lines.append(f"{split}: {len(stream):,} tokens, {documents:,} documents, {len(stream.files)} shards")
        for file, count in zip(stream.files, np.diff(stream.starts).tolist(), strict=True):
            lines.append(f"  {file.name}  {count:,} tokens")
        lines += [f"  | {_one_line(text)}" for text in _first_documents(stream, tokenizer)]
    return lines


def verify(folder: str | Path) -> str:
    """Read every byte of a folder of shards; returns a line that says what was found right.

    Every shard has the sha256 of the manifest, every id is one of GPT-2's, and the documents that the manifest counts
    are there, each with its 50256 in front.

    Raises:
        GPT2LabError: the first thing that is wrong. A folder without a manifest cannot be vouched for.
    """
    folder = Path(folder)
    streams = {split: shards.open_split(folder, split) for split in shards.SPLITS}
    manifest = shards.read_manifest(folder)
    if manifest is None:
        raise GPT2LabError(
            f"{folder} has no {shards.MANIFEST} to check it against; write one with: "
            f"gpt2lab prepare pretokenized --input {folder}"
        )
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(lambda name: sha256(folder / name), manifest.shards)
        for (name, shard), digest in zip(manifest.shards.items(), digests, strict=True):
            if digest != shard.sha256:
                raise GPT2LabError(f"{folder / name} does not match its sha256 in {shards.MANIFEST}: prepare it again")
    for split, stream in streams.items():
        counted = sum(scan(stream, number).documents for number in range(len(stream.files)))
        if counted != manifest.documents[split]:
            raise GPT2LabError(
                f"{folder}: {split} has {counted} documents, {shards.MANIFEST} says {manifest.documents[split]}; "
                f"prepare it again"
            )
        if manifest.source != "pretokenized" and stream.read(0, 1)[0] != EOT:
            raise GPT2LabError(f"{stream.files[0]}: its first document has no {EOT} in front; prepare it again")
    documents, tokens = sum(manifest.documents.values()), sum(manifest.tokens.values())
    return f"{folder} is sound: {len(manifest.shards)} shards, {documents:,} documents, {tokens:,} tokens"


def scan(stream: TokenStream, number: int) -> Found:
    """Look at every token of one shard.

    Raises:
        GPT2LabError: an id is none of GPT-2's.
    """
    start, end = int(stream.starts[number]), int(stream.starts[number + 1])
    found = Found(0, -1, 0)
    for begin in range(start, end, _BLOCK):
        tokens = stream.read(begin, min(_BLOCK, end - begin))
        largest = int(tokens.max())
        place = begin + int(tokens.argmax()) - start if largest > found.largest else found.place
        found = Found(found.documents + int((tokens == EOT).sum()), max(largest, found.largest), place)
    if found.largest >= VOCAB_SIZE:
        raise GPT2LabError(
            f"{stream.files[number]}: token {found.place} is {found.largest}, but GPT-2's ids end at {VOCAB_SIZE - 1}; "
            f"the shard is damaged or from another tokenizer"
        )
    return found


def _count(stream: TokenStream) -> int:
    return sum(scan(stream, number).documents for number in range(len(stream.files)))


def _first_documents(stream: TokenStream, tokenizer: Tokenizer) -> list[str]:
    tokens = stream.read(0, min(len(stream), 4096)).tolist()
    if any(token >= VOCAB_SIZE for token in tokens):
        return ["(ids that are none of GPT-2's)"]
    texts = [text for text in tokenizer.decode(tokens).split("<|endoftext|>") if text.strip()]
    return texts[:_SHOWN]


def _one_line(text: str, width: int = 100) -> str:
    line = " ".join(text[: 2 * width].split())
    return line if len(line) <= width else line[: width - 1] + "…"

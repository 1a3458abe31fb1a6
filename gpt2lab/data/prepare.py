"""Prepare a corpus: from the text of a source to a folder of token shards.

    Source ──chunks──▶ executor ──Encoded, in order──▶ ShardBuilder ──▶ shards, then manifest.json
                          └──▶ EncodedCache, if everything must be encoded first ──┘

`make` does this. If it is interrupted, the next call continues: finished shards and cached chunks are kept, and the
shards are byte for byte those of an uninterrupted run, for every executor and number of workers. `prepare` is what
training calls: it makes small corpora itself, and for others names the command that makes them.
"""

import contextlib
import functools
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from gpt2lab.data import catalogue, executors, shards
from gpt2lab.data.encoded_cache import EncodedCache
from gpt2lab.data.encoder import EncodeOptions
from gpt2lab.data.journal import Journal, close_journal, describe_changes, discard, open_journal
from gpt2lab.data.progress import Progress
from gpt2lab.data.shard_builder import ShardBuilder
from gpt2lab.data.sources import Source
from gpt2lab.data.tokenizer import NAME as TOKENIZER
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import DirectoryLock, SpaceNeeded, require_space
from gpt2lab.options import ShardOptions as Options

MADE_BY_TRAINING = ("stdlib", "tinyshakespeare")

_MIN_VAL_SHARDS = 10  # a corpus with at least so many shards may have one of them as val, a smaller one a tenth
_BYTES_PER_TOKEN = 4  # of English text, a low estimate: too much disk space is required rather than too little
_EXTRA_DOWNLOADS = 3  # files that are downloaded ahead and may not be needed


class Summary(NamedTuple):
    """What a folder holds, both splits together.

    Attributes:
        documents: number of documents; None if no manifest counts them.
        tokens: number of tokens.
        seconds: duration of this call.
        shards: number of shards.
        text_bytes: bytes of text that were encoded.
        duplicates: documents that occurred before.
        skipped: documents and chunks that could not be read.
        made: False if the folder was complete already.
    """

    documents: int | None
    tokens: int
    seconds: float
    shards: int = 0
    text_bytes: int = 0
    duplicates: int = 0
    skipped: int = 0
    made: bool = False

    def line(self, folder: Path) -> str:
        """Return one line for people."""
        documents = "" if self.documents is None else f"{self.documents:,} documents, "
        content = f"{documents}{self.tokens:,} tokens in {self.shards} shards"
        if not self.made:
            return f"{folder} is complete: {content}"
        rate = f", {self.text_bytes / self.seconds / 1e6:.3g} MB/s of text" if self.text_bytes else ""
        notes = f"; {self.duplicates:,} exact duplicates" if self.duplicates else ""
        notes += f"; {self.skipped:,} left out, see {shards.MANIFEST}" if self.skipped else ""
        return f"prepared {folder}: {content} in {self.seconds:.1f} s{rate}{notes}"


def prepare(
    source: str, folder: str | Path, *, mirror: str | Path | None = None, shard_tokens: int = shards.SHARD_TOKENS
) -> Summary:
    """Make sure that `folder` holds the shards for training. Makes `stdlib` and `tinyshakespeare` if they are missing.

    Args:
        source: value of `data.source`.
        folder: folder of the shards.
        mirror: folder to read downloads and the tokenizer's files from.
        shard_tokens: tokens of a full shard.

    Raises:
        GPT2LabError: the shards are missing, damaged or of another source, another process is preparing the folder, or
            the disk refused a write.
    """
    began = time.perf_counter()
    folder = Path(folder)
    if source in MADE_BY_TRAINING:
        manifest = shards.read_manifest(folder)
        if manifest is None or manifest.source != source:
            options = Options(shard_tokens=shard_tokens, mirror=None if mirror is None else str(mirror), restart=True)
            make(catalogue.open_source(source, mirror=mirror), folder, options)
    elif source not in catalogue.DEFAULT_DIRS:
        raise GPT2LabError(f"data.source {source!r} is not known; use one of {', '.join(catalogue.DEFAULT_DIRS)}")
    elif not folder.is_dir() or not shards.shard_files(folder):
        raise GPT2LabError(
            f"{folder} holds no shards of {source}; make them with: "
            f"{catalogue.prepare_command(source, folder, mirror)} (or set --data.dir to a folder that has some)"
        )
    splits = [shards.open_split(folder, "train"), shards.open_split(folder, "val")]
    counts = [split.documents for split in splits if split.documents is not None]
    documents = sum(counts) if len(counts) == len(splits) else None
    return Summary(documents, sum(map(len, splits)), time.perf_counter() - began)


def make(source: Source, folder: str | Path, options: Options | None = None) -> Summary:
    """Write the shards of a source, or continue an interrupted call. A complete folder is not changed.

    Args:
        source: the corpus.
        folder: where to write.
        options: how to prepare it.

    Raises:
        GPT2LabError: the folder holds other shards or is in use, there is not enough disk space, something cannot be
            read, or the disk refused a write. Finished shards are kept for the next call.
    """
    began = time.perf_counter()
    folder, options = Path(folder), options or Options()
    settings = _settings(source, options)
    if (complete := _read_complete(folder, settings, began)) is not None:
        return complete
    with DirectoryLock(folder):
        if (complete := _read_complete(folder, settings, began)) is not None:  # another process has just finished it
            return complete
        builder = _build_shards(source, folder, options, settings)
        counts = builder.counts
        if problem := builder.problem():
            discard(folder)
            raise GPT2LabError(problem)
        recorded = {key: getattr(counts, key) for key in ("text_bytes", "duplicates", "skipped", "problems")}
        shards.write_manifest(folder, settings | recorded, counts.documents, counts.tokens, builder.writer.shards)
        close_journal(folder)
    return Summary(
        sum(counts.documents.values()),
        sum(counts.tokens.values()),
        time.perf_counter() - began,
        len(builder.writer.shards),
        counts.text_bytes,
        counts.duplicates,
        counts.skipped,
        made=True,
    )


def reserve(source: Source, folder: Path, options: Options) -> None:
    """Make the checks of `make` and write the journal, so that other machines can fill the cache of the folder.

    Args:
        source: the corpus.
        folder: where to write.
        options: how to prepare it.

    Raises:
        GPT2LabError: as for `make`, or the folder is complete.
    """
    settings = _settings(source, options)
    if _read_complete(folder, settings) is not None:
        raise GPT2LabError(f"{folder} is complete; there is nothing to do")
    with DirectoryLock(folder):
        _require_space(source, folder, options, open_journal(folder, settings, options.restart))


def open_cache(source: Source, folder: Path, options: Options) -> EncodedCache:
    """Open the cache of encoded chunks. `shuffle_seed` does not apply to a source that has shuffled its documents.

    Args:
        source: the corpus.
        folder: the output folder.
        options: how to prepare it.
    """
    return EncodedCache(folder, options.shuffle_seed if source.shuffle_seed is None else None)


def encode_chunks(options: Options, chunks: executors.Chunks) -> executors.EncodedChunks:
    """Encode chunks in parallel; returns them in order."""
    workers = options.workers
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    encode_options = EncodeOptions(options.engine, options.check, options.on_error, options.mirror)
    return executors.run("ray" if options.executor == "ray" else "local", chunks, encode_options, workers)


def _build_shards(source: Source, folder: Path, options: Options, settings: dict[str, Any]) -> ShardBuilder:
    """Encode the corpus and write all shards. The caller holds the lock of the folder."""
    journal = open_journal(folder, settings, options.restart)
    _require_space(source, folder, options, journal)
    builder = ShardBuilder(
        folder,
        source.shard_name,
        options.shard_tokens,
        journal,
        val_tokens=settings["val_tokens"] or 0,
        max_shards=options.max_shards,
        drop_duplicates=options.drop_duplicates,
    )
    cache = open_cache(source, folder, options)
    max_tokens = options.max_shards * options.shard_tokens if options.max_shards else float("inf")
    with contextlib.ExitStack() as stack:
        stack.callback(builder.writer.abandon)  # deletes the unfinished shard after an error
        progress = stack.enter_context(Progress(source.text_bytes))
        if _needs_cache(source, options) or cache.folder.exists():
            cache.fill(source, functools.partial(encode_chunks, options), progress=progress)
            positions = cache.positions(len(source.files))
            if settings["val_tokens"] is None:
                builder.val_tokens = cache.tokens_in_tenth(positions)
            stream = cache.read_from(positions, builder.position)
        else:
            stream = encode_chunks(options, source.chunks(builder.position))
        stack.enter_context(contextlib.closing(stream))
        for position, encoded in stream:
            if not builder.add(position, encoded):
                break
            tokens = sum(builder.counts.tokens.values())
            progress.update(f"writing {folder}", builder.counts.text_bytes, tokens, tokens / max_tokens)
        builder.finish()
    return builder


def _settings(source: Source, options: Options) -> dict[str, Any]:
    """Everything that the shards depend on, as recorded in the journal and the manifest."""
    if options.max_shards is not None and options.max_shards < 2:
        raise GPT2LabError("--shards must be at least 2: one for val, one for train")
    return {
        "tokenizer": TOKENIZER,
        "source": source.name,
        "revision": source.revision,
        "source_digest": source.identity(),
        "shuffle_seed": source.shuffle_seed if options.shuffle_seed is None else options.shuffle_seed,
        "shard_tokens": options.shard_tokens,
        "val_tokens": _val_tokens(source, options),
        "max_shards": options.max_shards,
        "drop_duplicates": options.drop_duplicates,
        "on_error": options.on_error,
    }


def _val_tokens(source: Source, options: Options) -> int | None:
    """Maximum number of validation tokens; None for a tenth of all tokens."""
    if options.val_tokens is not None:
        return options.val_tokens
    if source.val == "first document":
        return 1  # less than a document, and val has at least one
    is_large = source.text_bytes // _BYTES_PER_TOKEN >= _MIN_VAL_SHARDS * options.shard_tokens
    return options.shard_tokens if source.val == "shard" and is_large else None


def _needs_cache(source: Source, options: Options) -> bool:
    is_shuffled = options.shuffle_seed is not None and source.shuffle_seed is None
    return options.encode_first or is_shuffled or _val_tokens(source, options) is None


def _read_complete(folder: Path, settings: dict[str, Any], began: float = 0.0) -> Summary | None:
    """Summarize a complete folder; None if it is not complete. Raises if it was made with other settings."""
    if (manifest := shards.read_manifest(folder)) is None:
        return None
    if changes := describe_changes(settings, manifest.content):
        raise GPT2LabError(
            f"{folder} was made with other settings ({changes}); use another --out or --data.dir, or remove it"
        )
    tokens = sum(len(shards.open_split(folder, split)) for split in shards.SPLITS)
    documents = sum(manifest.documents.values())
    return Summary(documents, tokens, time.perf_counter() - began, len(manifest.shards))


def _require_space(source: Source, folder: Path, options: Options, journal: Journal) -> None:
    """Check that the disks have space for the remaining shards, the cache and the downloads."""
    cache = EncodedCache(folder)
    tokens = all_tokens = source.text_bytes // _BYTES_PER_TOKEN
    size = 2 * tokens  # of the cache
    if not _needs_cache(source, options):
        size = 0
        if options.max_shards is not None:
            tokens = min(tokens, options.max_shards * options.shard_tokens)
    size += 2 * tokens - 2 * sum(shard["tokens"] for shard in journal.shards) - cache.size()
    needs = [SpaceNeeded(folder, max(0, size), "shards")]
    if source.downloads:
        from huggingface_hub import constants

        share = min(1.0, tokens / max(1, all_tokens) + _EXTRA_DOWNLOADS / len(source.files))
        needs.append(SpaceNeeded(Path(constants.HF_HUB_CACHE), int(source.downloads * share), "downloads"))
    require_space(needs, "free some space, write elsewhere with --out, or take fewer shards with --shards")

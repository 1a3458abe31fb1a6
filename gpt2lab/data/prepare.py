"""Prepare a corpus: from the text of a source to a folder of token shards.

    Source ──chunks──▶ executor ──Encoded, in order──▶ ShardBuilder ──▶ shards, then manifest.json
                          └──▶ EncodedCache, if everything must be encoded first ──┘

`make` writes the shards. If it is interrupted, the next call continues: finished shards and cached chunks are kept, and
the shards are byte for byte those of an uninterrupted run, for every executor and number of workers.
"""

import contextlib
import functools
import logging
import time
from pathlib import Path
from typing import Any

from gpt2lab import progress
from gpt2lab.data import executors, replacement, shards
from gpt2lab.data.encoded_cache import EncodedCache
from gpt2lab.data.journal import (
    Journal,
    close_journal,
    describe_changes,
    discard,
    discard_if_failed,
    open_journal,
    require_own_folder,
)
from gpt2lab.data.shard_builder import OutdatedJournalError, ShardBuilder
from gpt2lab.data.sources import Source
from gpt2lab.data.summary import Summary
from gpt2lab.data.tokenizer import NAME as TOKENIZER
from gpt2lab.disk_space import SpaceNeeded, require_space
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import DirectoryLock
from gpt2lab.options import PrepareOptions

logger = logging.getLogger(__name__)

_MIN_VAL_SHARDS = 10  # a corpus with at least so many shards may have one of them as val, a smaller one a tenth
_BYTES_PER_TOKEN = 4  # of English text, a low estimate: too much disk space is required rather than too little
_EXTRA_DOWNLOADS = 3  # files that are downloaded ahead and may not be needed


def make(source: Source, folder: str | Path, options: PrepareOptions) -> Summary:
    """Write the shards of a source, or continue an interrupted call. A complete folder is only changed by `restart`.

    Args:
        source: the corpus.
        folder: where to write.
        options: how to prepare it. `source`, `out` and `input` are not used.

    Raises:
        GPT2LabError: the folder holds other shards or is in use, there is not enough disk space, something cannot be
            read, or the disk refused a write. Finished shards are kept for the next call; the message says so.
    """
    began = time.perf_counter()
    executors.require_packages(options)
    folder = Path(folder)
    settings = _settings(source, options)
    work_folder = replacement.choose_folder(folder, options.restart)
    if work_folder == folder and (complete := _read_complete(folder, settings)) is not None:
        return complete
    require_own_folder(folder)
    with DirectoryLock(folder):
        moved = replacement.publish(folder)  # by a preparation that was interrupted
        just_finished = moved or work_folder == folder  # perhaps by another process
        if just_finished and (complete := _read_complete(folder, settings)) is not None:
            return complete
        with replacement.create(work_folder), discard_if_failed(work_folder, settings):
            builder = _make_shards(source, work_folder, options, settings)
        replacement.publish(folder)
    counts = builder.counts
    return Summary(
        sum(counts.documents.values()),
        sum(counts.tokens.values()),
        len(builder.writer.shards),
        time.perf_counter() - began,
        counts.text_bytes,
        counts.duplicates,
        options.drop_duplicates,
        counts.skipped,
        made=True,
        val_tokens=counts.tokens["val"],
        divided=counts.divided,
    )


def reserve(source: Source, folder: Path, options: PrepareOptions) -> None:
    """Make the checks of `make` and write the journal, so that other machines can fill the cache of the folder.

    Args:
        source: the corpus.
        folder: where to write.
        options: how to prepare it.

    Raises:
        GPT2LabError: as for `make`, or the folder is complete.
    """
    settings = _settings(source, options)
    work_folder = replacement.choose_folder(folder, options.restart)
    if work_folder == folder and _read_complete(folder, settings) is not None:
        raise GPT2LabError(f"{folder} is complete; there is nothing to do")
    require_own_folder(folder)
    with DirectoryLock(folder), replacement.create(work_folder):
        _require_space(source, work_folder, options, open_journal(work_folder, settings, options.restart))


def open_cache(source: Source, folder: Path, options: PrepareOptions) -> EncodedCache:
    """Open the cache of encoded chunks. `shuffle_seed` does not apply to a source that has shuffled its documents.

    Args:
        source: the corpus.
        folder: the output folder.
        options: how to prepare it.

    Raises:
        GPT2LabError: the folder holds shards that must not be replaced.
    """
    folder = replacement.choose_folder(folder, options.restart)
    return EncodedCache(folder, options.shuffle_seed if source.shuffle_seed is None else None)


def _make_shards(source: Source, folder: Path, options: PrepareOptions, settings: dict[str, Any]) -> ShardBuilder:
    """Write all shards and the manifest."""
    try:
        builder = _build_shards(source, folder, options, settings)
    except OutdatedJournalError:
        logger.warning(f"{folder}: an earlier release began it and divided val and train otherwise; starting again")
        Journal(settings).write(folder)  # without shards; the cache is kept
        builder = _build_shards(source, folder, options, settings)
    counts = builder.counts
    if problem := builder.problem():
        discard(folder)
        raise GPT2LabError(problem)
    recorded = {key: getattr(counts, key) for key in ("text_bytes", "duplicates", "skipped", "problems", "divided")}
    recorded["text_field"] = options.text_field
    shards.write_manifest(folder, settings | recorded, counts.documents, counts.tokens, builder.writer.shards)
    close_journal(folder)
    return builder


def _build_shards(source: Source, folder: Path, options: PrepareOptions, settings: dict[str, Any]) -> ShardBuilder:
    """Encode the corpus and write all shards. The caller holds the lock of the folder."""
    journal = open_journal(folder, settings, options.restart)
    _require_space(source, folder, options, journal)
    builder = ShardBuilder(folder, source.shard_name, journal, options, settings["val_tokens"] or 0)
    cache, encode = open_cache(source, folder, options), functools.partial(executors.run, options)
    max_tokens = options.shards * options.shard_size if options.shards else float("inf")
    with contextlib.ExitStack() as stack:
        stack.callback(builder.writer.abandon)  # deletes the unfinished shard after an error
        if _needs_cache(source, options) or cache.folder.exists():
            cache.fill(source, encode)
            positions = cache.positions(len(source.files))
            if settings["val_tokens"] is None:
                builder.val_tokens, builder.may_divide = cache.choose_val(positions, options.drop_duplicates)
            stream = cache.read_from(positions, builder.position)
        else:
            stream = encode(source.chunks(builder.position))
        stack.enter_context(contextlib.closing(stream))
        phase = stack.enter_context(progress.Phase(f"writing {folder}", 1.0, skip_first=True))
        for position, encoded in stream:
            if not builder.add(position, encoded):
                break
            tokens, share = sum(builder.counts.tokens.values()), builder.counts.text_bytes / max(1, source.text_bytes)
            phase.update(min(1.0, max(share, tokens / max_tokens)), f"{tokens:,} tokens")
        builder.close_shard()
    return builder


def _settings(source: Source, options: PrepareOptions) -> dict[str, Any]:
    """Everything that the shards depend on, as recorded in the journal and the manifest."""
    if options.shards is not None and options.shards < 2:
        raise GPT2LabError("--shards must be at least 2: one for val, one for train")
    return {
        "tokenizer": TOKENIZER,
        "source": source.name,
        "revision": source.revision,
        "source_digest": source.identity(),
        "shuffle_seed": source.shuffle_seed if options.shuffle_seed is None else options.shuffle_seed,
        "shard_tokens": options.shard_size,
        "val_tokens": _val_tokens(source, options),
        "max_shards": options.shards,
        "drop_duplicates": options.drop_duplicates,
        "on_error": options.on_error,
    }


def _val_tokens(source: Source, options: PrepareOptions) -> int | None:
    """Maximum number of validation tokens; None for a tenth of all tokens."""
    if options.val_tokens is not None:
        return options.val_tokens
    if source.val == "first document":
        return 1  # less than a document, and val has at least one
    is_large = source.text_bytes // _BYTES_PER_TOKEN >= _MIN_VAL_SHARDS * options.shard_size
    return options.shard_size if source.val == "shard" and is_large else None


def _needs_cache(source: Source, options: PrepareOptions) -> bool:
    is_shuffled = options.shuffle_seed is not None and source.shuffle_seed is None
    return options.executor == "slurm" or is_shuffled or _val_tokens(source, options) is None


def _read_complete(folder: Path, settings: dict[str, Any]) -> Summary | None:
    """Summarize a complete folder; None if it is not complete."""
    if (manifest := shards.read_manifest(folder)) is None:
        return None
    if changes := describe_changes(settings, manifest.content):
        advice = (
            ""
            if manifest.source == "pretokenized"
            else (", or replace it with --restart (runs that were trained on it then cannot resume)")
        )
        raise GPT2LabError(f"{folder} was made {changes}; give another --out{advice}")
    tokens = sum(len(shards.open_split(folder, split)) for split in shards.SPLITS)
    divided = bool(manifest.content.get("divided"))
    return Summary(
        sum(manifest.documents.values()),
        tokens,
        len(manifest.shards),
        duplicates=manifest.content.get("duplicates", 0),
        dropped=settings["drop_duplicates"],
        skipped=manifest.content.get("skipped", 0),
        val_tokens=manifest.tokens["val"],
        divided=divided,
    )


def _require_space(source: Source, folder: Path, options: PrepareOptions, journal: Journal) -> None:
    """Check that the disks have space for the remaining shards, the cache and the downloads."""
    cache = EncodedCache(folder)
    tokens = all_tokens = source.text_bytes // _BYTES_PER_TOKEN
    size = 2 * tokens  # of the cache
    if not _needs_cache(source, options):
        size = 0
        if options.shards is not None:
            tokens = min(tokens, options.shards * options.shard_size)
    size += 2 * tokens - 2 * sum(shard["tokens"] for shard in journal.shards) - cache.size()
    needs = [SpaceNeeded(folder, max(0, size), "shards")]
    if source.downloads:
        from huggingface_hub import constants

        share = min(1.0, tokens / max(1, all_tokens) + _EXTRA_DOWNLOADS / len(source.files))
        needs.append(SpaceNeeded(Path(constants.HF_HUB_CACHE), int(source.downloads * share), "downloads"))
    require_space(needs, "free some space, or write elsewhere with --out, or take fewer shards with --shards")

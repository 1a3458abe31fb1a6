"""Prepare a corpus: from the text of a source to a folder of token shards.

    Source ──chunks──▶ executor ──Encoded, in order──▶ ShardBuilder ──▶ shards, then manifest.json
                          └──▶ EncodedCache, if everything must be encoded first ──┘

`make` writes the shards. If it is interrupted, the next call continues: finished shards and cached chunks are kept, and
the shards are byte for byte those of an uninterrupted run, for every executor and number of workers. Training calls
`prepare`, which makes small corpora itself. For other corpora it raises an error with the command to run.
"""

import contextlib
import functools
import logging
import shlex
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gpt2lab import progress
from gpt2lab.config import DataConfig
from gpt2lab.data import catalogue, executors, shards
from gpt2lab.data.encoded_cache import EncodedCache
from gpt2lab.data.journal import Journal, close_journal, describe_changes, discard, open_journal, require_own_folder
from gpt2lab.data.shard_builder import OutdatedJournalError, ShardBuilder
from gpt2lab.data.sources import Source, local_files
from gpt2lab.data.tokenizer import NAME as TOKENIZER
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import DirectoryLock, SpaceNeeded, require_space, suggest_path
from gpt2lab.options import PrepareOptions

logger = logging.getLogger(__name__)

_MIN_VAL_SHARDS = 10  # a corpus with at least so many shards may have one of them as val, a smaller one a tenth
_BYTES_PER_TOKEN = 4  # of English text, a low estimate: too much disk space is required rather than too little
_EXTRA_DOWNLOADS = 3  # files that are downloaded ahead and may not be needed


class Summary(NamedTuple):
    """What a folder holds, both splits together.

    Attributes:
        documents: number of documents.
        tokens: number of tokens.
        shards: number of shards.
        seconds: duration of this call, if it made the shards.
        text_bytes: bytes of text that were encoded.
        duplicates: documents that occurred before.
        skipped: documents and chunks that could not be read.
        made: False if the folder was complete already.
        val_tokens: tokens of the validation split.
        divided: whether a document begins in val and ends in train.
    """

    documents: int
    tokens: int
    shards: int
    seconds: float = 0.0
    text_bytes: int = 0
    duplicates: int = 0
    skipped: int = 0
    made: bool = False
    val_tokens: int = 0
    divided: bool = False

    def line(self, folder: Path) -> str:
        """Return a one-line summary."""
        share = f"{100 * self.val_tokens / self.tokens:.2g}% val"
        share += ", the last document of val is continued in train" if self.divided else ""
        content = f"{self.documents:,} documents, {self.tokens:,} tokens in {self.shards} shards ({share})"
        if not self.made:
            return f"{folder} is complete: {content}"
        rate = f", {self.text_bytes / self.seconds / 1e6:.3g} MB/s of text" if self.text_bytes else ""
        notes = f"; {self.duplicates:,} exact duplicates" if self.duplicates else ""
        notes += f"; {self.skipped:,} left out, see {shards.MANIFEST}" if self.skipped else ""
        return f"prepared {folder}: {content} in {self.seconds:.1f} s{rate}{notes}"


def prepare(
    source: Literal["stdlib", "cpython", "tinyshakespeare", "fineweb-edu"],
    folder: str | Path,
    *,
    mirror: str | None = None,
) -> None:
    """Make sure that `folder` holds shards for training. Makes all but `fineweb-edu` if there are none.

    Args:
        source: value of `data.source`.
        folder: folder of the shards.
        mirror: folder to read downloads and the tokenizer's files from.

    Raises:
        GPT2LabError: the shards are missing and of another source, another process is preparing the folder, or the disk
            refused a write.
    """
    folder = Path(folder)
    if shards.is_ready(folder):
        return
    unfinished = Journal.read(folder)
    if unfinished and unfinished.settings.get("source") != source:
        raise GPT2LabError(
            f"{folder} holds an unfinished preparation of {unfinished.settings.get('source')}; run the same prepare "
            f"command again, or remove it"
        )
    if source == "fineweb-edu":
        command = ["gpt2lab", "prepare", source, *(["--mirror", mirror] if mirror else [])]
        command += ["--out", str(folder)] if str(folder) != catalogue.DEFAULT_DIRS[source] else []
        raise GPT2LabError(
            f"{folder} holds no shards of {source}; make them with: {shlex.join(command)} "
            f"(or set --data.dir to a folder that has some)"
        )
    options = PrepareOptions(source, mirror=mirror, restart=True)
    logger.info(make(catalogue.open_source(options), folder, options).line(folder))


def require_shards(data: DataConfig) -> None:
    """Check that the folder that `data.dir` names holds shards: a misspelled name must not be filled with other text.

    The default folder of the source may be missing: training makes it.

    Args:
        data: names the folder and the source.

    Raises:
        GPT2LabError: the folder does not exist, or holds no complete shards.
    """
    assert data.dir is not None
    folder = Path(data.dir)
    if shards.is_ready(folder) or folder == Path(catalogue.DEFAULT_DIRS[data.source]):
        return
    if (folder / shards.PREPARING).exists():
        raise GPT2LabError(f"data.dir: {folder} is incomplete; run the same prepare command again, or remove it")
    guess, out = suggest_path(folder), shlex.quote(str(folder))
    if folder.is_dir() and local_files.has_files(folder):
        name = shlex.quote(f"data/{folder.resolve().name}")
        advice = f"; to train on its texts: gpt2lab prepare files --input {out} --out {name}"
    elif data.source == "fineweb-edu":
        advice = f"; to make it: gpt2lab prepare fineweb-edu --out {out}"
    else:
        advice = f"; to prepare {data.source} there, add --data.source {data.source}"
    if folder.exists():
        raise GPT2LabError(f"data.dir: {folder} holds no token shards{advice}")
    beside = sorted(str(other) for other in folder.parent.glob("*") if _holds_splits(other))
    others = f" (there are {', '.join(beside[:5])}{', …' * (len(beside) > 5)})" if beside else ""
    raise GPT2LabError(f"data.dir: {folder} does not exist{guess or others + advice}")


def require_mirror(data: DataConfig) -> None:
    """Check that the folder that `data.mirror` names exists: else the network would be used without a word.

    Args:
        data: names the folder, or none.

    Raises:
        GPT2LabError: there is no such folder.
    """
    if data.mirror is not None and not Path(data.mirror).is_dir():
        raise GPT2LabError(f"data.mirror: no such folder: {data.mirror}{suggest_path(data.mirror)}")


def _holds_splits(folder: Path) -> bool:
    """Whether a folder holds token shards, by their manifest or names: other programs have .npy and .bin files, too."""
    if not shards.is_ready(folder):
        return False
    return (folder / shards.MANIFEST).exists() or any(shards.split_of(f.name) for f in shards.shard_files(folder))


def make(source: Source, folder: str | Path, options: PrepareOptions) -> Summary:
    """Write the shards of a source, or continue an interrupted call. A complete folder is not changed.

    Args:
        source: the corpus.
        folder: where to write.
        options: how to prepare it. `source`, `out` and `input` are not used.

    Raises:
        GPT2LabError: the folder holds other shards or is in use, there is not enough disk space, something cannot be
            read, or the disk refused a write. Finished shards are kept for the next call.
    """
    began = time.perf_counter()
    executors.require_packages(options)
    folder = Path(folder)
    settings = _settings(source, options)
    if (complete := _read_complete(folder, settings, options.restart)) is not None:
        return complete
    require_own_folder(folder)
    with DirectoryLock(folder):
        if (complete := _read_complete(folder, settings, options.restart)) is not None:  # just finished by another
            return complete
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
        shards.write_manifest(folder, settings | recorded, counts.documents, counts.tokens, builder.writer.shards)
        close_journal(folder)
    return Summary(
        sum(counts.documents.values()),
        sum(counts.tokens.values()),
        len(builder.writer.shards),
        time.perf_counter() - began,
        counts.text_bytes,
        counts.duplicates,
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
    if _read_complete(folder, settings, options.restart) is not None:
        raise GPT2LabError(f"{folder} is complete; there is nothing to do")
    require_own_folder(folder)
    with DirectoryLock(folder):
        _require_space(source, folder, options, open_journal(folder, settings, options.restart))


def open_cache(source: Source, folder: Path, options: PrepareOptions) -> EncodedCache:
    """Open the cache of encoded chunks. `shuffle_seed` does not apply to a source that has shuffled its documents.

    Args:
        source: the corpus.
        folder: the output folder.
        options: how to prepare it.
    """
    return EncodedCache(folder, options.shuffle_seed if source.shuffle_seed is None else None)


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


def _read_complete(folder: Path, settings: dict[str, Any], restart: bool) -> Summary | None:
    """Summarize a complete folder; None if it is not complete, or was made with other settings and may be discarded."""
    if (manifest := shards.read_manifest(folder)) is None:
        return None
    if changes := describe_changes(settings, manifest.content):
        if restart and manifest.source != "pretokenized":
            return None
        raise GPT2LabError(
            f"{folder} was made with other settings ({changes}); give another --out, or --restart to discard it"
        )
    tokens = sum(len(shards.open_split(folder, split)) for split in shards.SPLITS)
    divided = bool(manifest.content.get("divided"))
    return Summary(
        sum(manifest.documents.values()),
        tokens,
        len(manifest.shards),
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
    require_space(needs, "free some space, write elsewhere with --out, or take fewer shards with --shards")

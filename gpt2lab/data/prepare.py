"""From a source to a folder of shards.

    Source ──jobs──▶ executor ──Encoded, in order──▶ Cutter ──▶ shards, then manifest.json
                         └──▶ Parts, where the whole must be known before it can be cut ──┘

`make` does it, and goes on where an earlier call was interrupted: finished shards and parts are kept, and the result is
byte for byte the one of an uninterrupted run, whatever the number of workers and whoever they are. `prepare` is what
training calls: it makes small corpora itself, and says how to make the others.
"""

import contextlib
import os
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gpt2lab import disk
from gpt2lab.data import executors, shards
from gpt2lab.data.cutting import HASHES, Cutter, Journal
from gpt2lab.data.encoder import Encoded, Engine, OnError, Recipe
from gpt2lab.data.jobs import Job, jobs
from gpt2lab.data.parts import Parts
from gpt2lab.data.progress import Progress
from gpt2lab.data.sources import Source, fineweb_edu, local_files, stdlib, tinyshakespeare
from gpt2lab.data.tokenizer import NAME as TOKENIZER
from gpt2lab.data.writer import ShardWriter
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import DirectoryLock, remove_temporaries

DEFAULT_DIRS = {
    "stdlib": "data/stdlib",
    "tinyshakespeare": "data/tinyshakespeare",
    "fineweb-edu": "data/edu_fineweb10B",
    "files": "data/files",
}
MADE_BY_TRAINING = ("stdlib", "tinyshakespeare")
VAL_SHARE = 10  # where a source does not say otherwise, val is one token in ten

_BYTES_A_TOKEN = 4  # of English text, at least: the space that is asked for is rather too much than too little
_SPARE_DOWNLOADS = 3  # files that are fetched ahead and may not be needed


# Encoded units with their places (piece, number), in the order in which they are cut.
Stream = Generator[tuple[tuple[int, int], Encoded], None, None]


@dataclass(frozen=True)
class Options:
    """How to prepare. What the shards depend on comes first.

    Attributes:
        shard_tokens: tokens of a full shard.
        val_tokens: val is the documents that fit into this many; None: as the source has it.
        max_shards: stop when this many are full.
        shuffle_seed: put row groups, and the documents in each, in an order of this seed.
        drop_duplicates: leave out documents that were there before.
        on_error: `skip` leaves out what cannot be read, and says so in the manifest.
        workers: units that are encoded at the same time; None: one a core.
        executor: who encodes.
        engine, check: see `encoder.Recipe`.
        mirror: where the tokenizer's files may be found.
        restart: discard what an interrupted run with other settings left.
        use_parts: encode all before cutting, although it could be cut at once.
    """

    shard_tokens: int = shards.SHARD_TOKENS
    val_tokens: int | None = None
    max_shards: int | None = None
    shuffle_seed: int | None = None
    drop_duplicates: bool = False
    on_error: OnError = "stop"
    workers: int | None = None
    executor: executors.Executor = "local"
    engine: Engine = "auto"
    check: bool = True
    mirror: str | None = None
    restart: bool = False
    use_parts: bool = False

    @property
    def recipe(self) -> Recipe:
        """What the workers need to know."""
        return Recipe(self.engine, self.check, self.on_error, self.mirror)

    def run(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Encoded]]:
        """Have jobs done: each with its unit encoded, in order."""
        return executors.run(self.executor, jobs, self.recipe, self.worker_count)

    @property
    def worker_count(self) -> int:
        """How many of them."""
        if self.workers is not None:
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Summary(NamedTuple):
    """What a folder holds, both splits together. `documents` is None where no manifest counts them.

    The last four are of this call: text read, duplicates found, documents left out, and whether there was anything
    left to do.
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
        """The closing line."""
        documents = "" if self.documents is None else f"{self.documents:,} documents, "
        holds = f"{documents}{self.tokens:,} tokens in {self.shards} shards"
        if not self.made:
            return f"{folder} is complete: {holds}"
        rate = f", {self.text_bytes / self.seconds / 1e6:.3g} MB/s of text" if self.text_bytes else ""
        notes = f"; {self.duplicates:,} exact duplicates" if self.duplicates else ""
        notes += f"; {self.skipped:,} left out, see {shards.MANIFEST}" if self.skipped else ""
        return f"prepared {folder}: {holds} in {self.seconds:.1f} s{rate}{notes}"


def prepare(
    source: str, folder: str | Path, *, mirror: str | Path | None = None, shard_tokens: int = shards.SHARD_TOKENS
) -> Summary:
    """See to it that `folder` holds the shards that training asks for, and open both splits once.

    Args:
        source: `stdlib` and `tinyshakespeare` are made on the spot; `fineweb-edu` must be there.
        folder: where the shards are, or are to be.
        mirror: where downloads and the tokenizer's files may be found.
        shard_tokens: tokens of a full shard.

    Raises:
        GPT2LabError: the folder holds something else or damaged shards, another process is preparing it, or the disk
            refused a write.
    """
    begun = time.perf_counter()
    folder = Path(folder)
    if source in MADE_BY_TRAINING:
        if not _is_complete(folder, source):
            path = None if mirror is None else str(mirror)
            options = Options(shard_tokens=shard_tokens, mirror=path, restart=True)
            make(stdlib.source() if source == "stdlib" else tinyshakespeare.source(mirror), folder, options)
    elif source not in DEFAULT_DIRS:
        raise GPT2LabError(f"data.source {source!r} is not known; use one of {', '.join(DEFAULT_DIRS)}")
    elif not folder.is_dir() or not shards.shard_files(folder):
        raise GPT2LabError(
            f"{folder} holds no shards of {source}; make them with: {command(source, folder, mirror)} (or set "
            f"--data.dir to a folder that has some)"
        )
    splits = [shards.open_split(folder, "train"), shards.open_split(folder, "val")]
    counts = [split.documents for split in splits if split.documents is not None]
    documents = sum(counts) if len(counts) == len(splits) else None
    return Summary(documents, sum(map(len, splits)), time.perf_counter() - begun)


def command(source: str, folder: Path, mirror: str | Path | None = None) -> str:
    """The command line that makes the shards of `source` in `folder`."""
    import shlex

    words = ["gpt2lab", "prepare", source]
    words += ["--mirror", str(mirror)] if mirror is not None else []
    words += ["--out", str(folder)] if str(folder) != DEFAULT_DIRS[source] else []
    return shlex.join(words)


def open_source(
    name: str,
    *,
    subset: str = "sample-10BT",
    mirror: str | None = None,
    inputs: Iterable[str] = (),
    field: str = "text",
    seed: int | None = None,
) -> Source:
    """The source that the command line calls `name`.

    Raises:
        GPT2LabError: it cannot be found, or was asked for in a way that makes no sense.
    """
    if name == "fineweb-edu":
        return fineweb_edu.source(subset, mirror, field)
    if name == "files":
        if not (patterns := list(inputs)):
            raise GPT2LabError("prepare files needs --input with files or patterns, such as --input 'corpus/**/*.txt'")
        return local_files.source(patterns, field)
    if name == "tinyshakespeare":
        return tinyshakespeare.source(mirror)
    if name == "stdlib":
        return stdlib.source() if seed is None else stdlib.source(seed)
    raise GPT2LabError(f"source {name!r} is not known; use one of {', '.join(DEFAULT_DIRS)}, pretokenized")


def default_folder(name: str, subset: str = "sample-10BT") -> str:
    """Where the shards of a source go unless the user says."""
    if name == "fineweb-edu" and subset != "sample-10BT":
        return f"data/edu_fineweb{subset.removeprefix('sample-').removesuffix('T')}"
    return DEFAULT_DIRS[name]


def make(source: Source, folder: str | Path, options: Options | None = None) -> Summary:
    """Write the shards of `source` into `folder`, or go on doing so; a folder that is complete is left alone.

    Raises:
        GPT2LabError: the folder holds other shards or is in use; there is not enough space; something of the source
            cannot be read; the disk refused a write. What was finished by then is kept, for the next call.
    """
    begun = time.perf_counter()
    folder, options = Path(folder), options or Options()
    settings = _settings(source, options)
    if options.max_shards is not None and options.max_shards < 2:
        raise GPT2LabError("--shards must be at least 2: one for val, one for train")
    if (done := _already(folder, settings, begun)) is not None:
        return done
    with DirectoryLock(folder):
        if (done := _already(folder, settings, begun)) is not None:  # another process may have done it just now
            return done
        journal = _journal(folder, settings, options.restart)
        parts = Parts(folder)
        _require_space(folder, source, options, journal, parts)
        progress = Progress(sum(piece.text_bytes for piece in source.pieces))
        try:
            cutter = _cut(source, folder, options, settings, journal, parts, progress)
        finally:
            progress.close()
        if problem := cutter.problem():
            _discard(folder)  # other settings will be wanted next time
            raise GPT2LabError(problem)
        counts = cutter.counts
        found = ("text_bytes", "duplicates", "skipped", "problems")
        about = settings | {name: getattr(counts, name) for name in found}
        shards.write_manifest(folder, about, counts.documents, counts.tokens, cutter.writer.shards)
        _clean_up(folder)
    return Summary(
        sum(counts.documents.values()),
        sum(counts.tokens.values()),
        time.perf_counter() - begun,
        len(cutter.writer.shards),
        counts.text_bytes,
        counts.duplicates,
        counts.skipped,
        True,
    )


def _settings(source: Source, options: Options) -> dict[str, Any]:
    """All that the shards depend on."""
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
    """How many tokens are val, or None: a tenth of the corpus, as many as that may be."""
    if options.val_tokens is not None:
        return options.val_tokens
    if source.val == "first document":
        return 1  # no room for a second one, and there is always one
    size = sum(piece.text_bytes for piece in source.pieces) // _BYTES_A_TOKEN
    return options.shard_tokens if source.val == "shard" and size >= VAL_SHARE * options.shard_tokens else None


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """What differs between two sets of settings, in words; empty if nothing does."""
    names = {"source_digest": "content of the source"}
    changed = [key for key in ours if theirs.get(key) != ours[key]]
    if "source" in changed:
        return f"source {theirs.get('source')!r} rather than {ours['source']!r}"
    return ", ".join(names.get(key, f"{key} {theirs.get(key)!r} rather than {ours[key]!r}") for key in changed)


def _already(folder: Path, settings: dict[str, Any], begun: float) -> Summary | None:
    """What a complete folder holds, or None where there is work to do.

    Raises:
        GPT2LabError: it is complete, but of something else.
    """
    manifest = shards.read_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        return None
    if changed := _differences(settings, manifest.content):
        raise GPT2LabError(
            f"{folder} holds shards made from something else ({changed}); give another --out, or remove it first"
        )
    train, val = shards.open_split(folder, "train"), shards.open_split(folder, "val")
    documents = manifest.documents["train"] + manifest.documents["val"]
    return Summary(documents, len(train) + len(val), time.perf_counter() - begun, len(manifest.shards))


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


def reserve(source: Source, folder: Path, options: Options) -> None:
    """Begin an output for other machines to fill: check all that `make` would, and leave a journal to go on from.

    Raises:
        GPT2LabError: as `make`; or the folder is complete.
    """
    settings = _settings(source, options)
    if _already(folder, settings, 0) is not None:
        raise GPT2LabError(f"{folder} is complete; there is nothing to do")
    with DirectoryLock(folder):
        journal = _journal(folder, settings, options.restart)
        _require_space(folder, source, options, journal, Parts(folder))
        Cutter(folder, ShardWriter(folder, source.shard_name, options.shard_tokens), settings, val_tokens=0).begin(
            journal
        )


def _journal(folder: Path, settings: dict[str, Any], restart: bool) -> Journal | None:
    """What to go on from; everything else that an interrupted run left is cleared away. The folder's lock is held.

    Raises:
        GPT2LabError: there are shards of someone else, or of a run with other settings.
    """
    remove_temporaries(folder)
    begun_before = (folder / shards.PREPARING).exists()
    present = shards.shard_files(folder)
    if present and not begun_before:
        raise GPT2LabError(
            f"{folder} holds shards that were not made here, such as {present[0].name}; give another --out"
        )
    journal = Journal.read(folder)
    if journal is not None and (changed := _differences(settings, journal.settings)):
        worth_keeping = journal.shards or any(Parts(folder).folder.glob("*.part"))
        if worth_keeping and not restart:
            raise GPT2LabError(
                f"{folder} was begun with something else ({changed}); give another --out, or --restart to begin anew"
            )
        journal = None
        _discard(folder)
    if journal is None:
        Parts(folder).remove()
    else:
        journal = journal.good_part(folder)
        remove_temporaries(Parts(folder).folder)
    kept = {shard["file"] for shard in journal.shards} if journal else set()
    for file in shards.shard_files(folder):
        if file.name not in kept and shards.SHARD_NAME.fullmatch(file.name):
            file.unlink()
    return journal


def _cut(
    source: Source,
    folder: Path,
    options: Options,
    settings: dict[str, Any],
    journal: Journal | None,
    parts: Parts,
    progress: Progress,
) -> Cutter:
    """Encode and write all shards. The folder's lock is held."""
    writer = ShardWriter(folder, source.shard_name, options.shard_tokens)
    cutter = Cutter(
        folder,
        writer,
        settings,
        val_tokens=settings["val_tokens"] or 0,
        max_shards=options.max_shards,
        drop_duplicates=options.drop_duplicates,
    )
    cutter.begin(journal)
    seed = options.shuffle_seed if source.shuffle_seed is None else None
    if _needs_parts(source, options) or parts.folder.exists():
        parts.fill(
            source, options.run, tell=lambda done, tokens: progress.update(done, tokens, f"encoding {source.name}")
        )
        order = parts.order(len(source.pieces), seed)
        if settings["val_tokens"] is None:
            cutter.val_tokens = parts.border(order, seed, VAL_SHARE)
        stream = parts.stream(order, seed, cutter.place)
    else:
        stream = _from_workers(jobs(source, cutter.place or (0, 0)), options)
    budget = None if options.max_shards is None else options.max_shards * options.shard_tokens
    try:
        with contextlib.closing(stream):
            for place, encoded in stream:
                if not cutter.add(place, encoded):
                    break
                counts = cutter.counts
                tokens = sum(counts.tokens.values())
                share = max(counts.text_bytes / progress.total, tokens / budget if budget else 0.0)
                progress.update(counts.text_bytes, tokens, f"writing {folder}", min(share, 1.0))
        writer.close()
    finally:
        writer.abandon()  # nothing, unless that failed
    return cutter


def _needs_parts(source: Source, options: Options) -> bool:
    shuffled = options.shuffle_seed is not None and source.shuffle_seed is None
    return options.use_parts or shuffled or _val_tokens(source, options) is None


def _from_workers(todo: Iterator[Job], options: Options) -> Stream:
    for job, encoded in options.run(todo):
        yield (job.piece, job.number), encoded


def _require_space(folder: Path, source: Source, options: Options, journal: Journal | None, parts: Parts) -> None:
    """
    Raises:
        GPT2LabError: the disks do not have the space that is needed from here on, about.
    """
    tokens = all_tokens = sum(piece.text_bytes for piece in source.pieces) // _BYTES_A_TOKEN
    if options.max_shards is not None and not _needs_parts(source, options):
        tokens = min(tokens, options.max_shards * options.shard_tokens)
    needed = 2 * tokens * (2 if _needs_parts(source, options) else 1)
    needed -= 2 * sum(shard["tokens"] for shard in journal.shards) if journal else 0
    needed -= sum(file.stat().st_size for file in parts.folder.glob("*.part"))
    needs = [disk.SpaceNeeded(folder, max(0, needed), "shards")]
    if source.downloads:
        from huggingface_hub import constants

        share = min(1.0, tokens / max(1, all_tokens) + _SPARE_DOWNLOADS / len(source.pieces))
        needs.append(disk.SpaceNeeded(Path(constants.HF_HUB_CACHE), int(source.downloads * share), "downloads"))
    disk.require_space(needs, "free some space, write elsewhere with --out, or take fewer shards with --shards")


def _discard(folder: Path) -> None:
    """Remove what was made so far. The mark that it is ours goes last."""
    for file in shards.shard_files(folder):
        if shards.SHARD_NAME.fullmatch(file.name):
            file.unlink()
    _clean_up(folder)


def _clean_up(folder: Path) -> None:
    """Remove what only the making needed. The manifest is there, so none of it is missed after a crash."""
    Parts(folder).remove()
    (folder / HASHES).unlink(missing_ok=True)
    (folder / shards.PREPARING).unlink(missing_ok=True)

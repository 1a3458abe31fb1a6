"""The shards of a training run: small sources and one's own text are prepared, for others the command is named."""

import contextlib
import logging
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gpt2lab.config import DataConfig
from gpt2lab.data import catalogue, shard_folders, shards
from gpt2lab.data.journal import Journal
from gpt2lab.data.prepare import make
from gpt2lab.data.sources import Source, fineweb, local_files
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import require_folder, suggest_path
from gpt2lab.options import PrepareOptions

logger = logging.getLogger(__name__)

# Options of `prepare` that messages about a text advise.
_ADVISED = re.compile(r"use (--(?:text-field (?:'[^']*'|[^\s;]+)|on-error skip|tokenizer tiktoken))")


def prepare(data: DataConfig) -> None:
    """Make sure that there are shards for training. Makes them of small sources and of one's own text.

    Args:
        data: the source, its input, the folder of the shards, and the mirror.

    Raises:
        GPT2LabError: the shards are missing and of a source that takes long to prepare; they are of another source, or
            of another text than `data.input`; another process is preparing the folder; or the disk refused a write.
    """
    require_input(data)
    folder = catalogue.data_folder(data)
    if shards.is_ready(folder):
        if data.input is not None:
            _require_same_text(folder, data)
        elif data.dir is None:
            _require_same_source(folder, data.source)
        return
    unfinished = Journal.read(folder)
    if unfinished and unfinished.settings.get("source") != data.source:
        raise GPT2LabError(
            f"{folder} holds an unfinished preparation of {unfinished.settings.get('source')}; run the same prepare "
            f"command again, or remove it"
        )
    if data.source in fineweb.CORPORA:
        command = ["gpt2lab", "prepare", data.source, *(["--mirror", data.mirror] if data.mirror else [])]
        command += ["--out", str(folder)] if str(folder) != catalogue.DEFAULT_DIRS[data.source] else []
        raise GPT2LabError(
            f"{folder} holds no shards of {data.source}; make them with: {shlex.join(command)} "
            f"(or set --data.dir to a folder that has some)"
        )
    if data.source == "files" and data.input is None:
        advice = shard_folders.suggest_below(folder) or "; to make them of your text, add --data.input"
        raise GPT2LabError(f"data.dir: {folder} holds no token shards{advice}")
    source = open_source(data)
    with _name_commands(data, folder):
        logger.info(make(source, folder, _options(data)).line(folder))


@contextlib.contextmanager
def _name_commands(data: DataConfig, folder: Path) -> Iterator[None]:
    """Replace the options of `prepare` in messages, which training lacks, by a command or a setting."""

    def command(option: re.Match[str]) -> str:
        return f"run first: {_prepare_command(data, folder)} {option[1]}"

    try:
        yield
    except GPT2LabError as error:
        message = str(error).replace("--restart to discard it", f"remove {folder}").replace("--out", "--data.dir")
        message = message.replace(", or take fewer shards with --shards", "")
        raise GPT2LabError(_ADVISED.sub(command, message)) from error


def _prepare_command(data: DataConfig, folder: Path) -> str:
    """The command that prepares the text of a run without its training."""
    words = ["gpt2lab", "prepare", data.source]
    for option, value in (("--input", _options(data).input), ("--mirror", (data.mirror,)), ("--out", (str(folder),))):
        words += [option, *map(str, value)] if value and value[0] else []
    return shlex.join(words)


def open_source(data: DataConfig) -> Source:
    """Open the source that training would prepare.

    Args:
        data: names it, and its input.

    Raises:
        GPT2LabError: it cannot be found, or read.
    """
    require_input(data)
    with _name_commands(data, catalogue.data_folder(data)):
        return catalogue.open_source(_options(data))


def _options(data: DataConfig) -> PrepareOptions:
    inputs = () if data.input is None else (os.path.relpath(data.input),)
    return PrepareOptions(data.source, input=inputs, mirror=data.mirror)


def _require_same_source(folder: Path, source: str) -> None:
    """Check that the default folder of a source was not filled with another source: nobody named it for this run."""
    manifest = shards.read_manifest(folder)
    if manifest is not None and manifest.source != source and manifest.source in catalogue.DEFAULT_DIRS:
        raise GPT2LabError(
            f"{folder} holds shards of {manifest.source}, not of {source}; to train on them, add --data.dir {folder}"
        )


def _require_same_text(folder: Path, data: DataConfig) -> None:
    """Check that shards were made of the text that a run asks for: two books may have the same file name.

    The text may have been prepared with other options, such as --text-field.
    """
    manifest = shards.read_manifest(folder)
    if manifest is None:
        raise GPT2LabError(
            f"{folder} has shards but no {shards.MANIFEST}, so it is not known which text they hold; to train on them, "
            f"use only --data.dir {shlex.quote(str(folder))}, without data.source and data.input; else remove {folder}"
        )
    field = str(manifest.content.get("text_field", "text"))
    options = replace(_options(data), text_field=field)
    with _name_commands(data, folder):
        identity = catalogue.open_source(options).identity()
    if manifest.content.get("source_digest") != identity:
        command = _prepare_command(data, folder) + (f" --text-field {shlex.quote(field)}" if field != "text" else "")
        raise GPT2LabError(
            f"{folder} holds shards of another text, or of another version of {options.input[0]}; to train on them, or "
            f"resume a run that did, use only --data.dir {shlex.quote(str(folder))}, without data.source and "
            f"data.input; for the new text, give another --data.dir, or replace them (runs that were trained on them "
            f"then cannot resume): {command} --restart"
        )


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
    if folder.is_file():
        raise GPT2LabError(
            f"data.dir: {folder} is a file; to train on its text: --data.source files --data.input {out}"
        )
    if below := shard_folders.suggest_below(folder):
        advice = below
    elif folder.is_dir() and local_files.has_files(folder):
        name = shlex.quote(f"data/{folder.resolve().name}")
        advice = f"; to train on its texts: gpt2lab prepare files --input {out} --out {name}"
    elif data.source in fineweb.CORPORA:
        advice = f"; to make it: gpt2lab prepare {data.source} --out {out}"
    elif data.source == "files":
        advice = "; to prepare a text there, add --data.input"
    else:
        advice = f"; to prepare {data.source} there, add --data.source {data.source}"
    if folder.exists():
        raise GPT2LabError(f"data.dir: {folder} holds no token shards{advice}")
    beside = sorted(other for other in folder.parent.glob("*") if shard_folders.holds_splits(other))
    others = f" (there are {shard_folders.name_some(beside)})" if beside else ""
    raise GPT2LabError(f"data.dir: {folder} does not exist{guess or others + advice}")


def require_input(data: DataConfig) -> None:
    """Check that `data.input` is a text, or a folder of texts.

    Args:
        data: names it, or none.

    Raises:
        GPT2LabError: it cannot be read, or is empty.
    """
    if data.input is not None:
        local_files.require([data.input], "--data.input")


def require_mirror(data: DataConfig) -> None:
    """Check that the folder that `data.mirror` names exists: else the network would be used without a word.

    Args:
        data: names the folder, or none.

    Raises:
        GPT2LabError: there is no such folder.
    """
    if data.mirror is not None:
        require_folder(data.mirror, "data.mirror")

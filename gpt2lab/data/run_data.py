"""The shards of a training run: small sources and one's own text are prepared, for others the command is named."""

import logging
import os
import shlex
from pathlib import Path

from gpt2lab.config import DataConfig
from gpt2lab.data import catalogue, shards
from gpt2lab.data.journal import Journal
from gpt2lab.data.prepare import make
from gpt2lab.data.sources import fineweb, local_files
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import require_folder, suggest_path
from gpt2lab.options import PrepareOptions

logger = logging.getLogger(__name__)


def prepare(data: DataConfig) -> None:
    """Make sure that there are shards for training. Makes them of small sources and of one's own text.

    Args:
        data: the source, its input, the folder of the shards, and the mirror.

    Raises:
        GPT2LabError: the shards are missing and of a source that takes long to prepare; they are of another text than
            `data.input`; another process is preparing the folder; or the disk refused a write.
    """
    require_input(data)
    folder = catalogue.data_folder(data)
    inputs = () if data.input is None else (os.path.relpath(data.input),)
    options = PrepareOptions(data.source, input=inputs, mirror=data.mirror, restart=True)
    if shards.is_ready(folder):
        if inputs:
            _require_same_text(folder, options)
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
    if data.source == "files" and not inputs:
        raise GPT2LabError(f"data.dir: {folder} holds no token shards; to make them of your text, add --data.input")
    source = catalogue.open_source(options)
    logger.info(make(source, folder, options).line(folder))


def _require_same_text(folder: Path, options: PrepareOptions) -> None:
    """Check that shards were made of the text that a run asks for: two books may have the same file name."""
    manifest = shards.read_manifest(folder)
    if manifest is None or manifest.content.get("source_digest") != catalogue.open_source(options).identity():
        text, out = shlex.quote(options.input[0]), shlex.quote(str(folder))
        raise GPT2LabError(
            f"{folder} holds shards of another text, or of another version of {options.input[0]}; give another "
            f"--data.dir, or replace them: gpt2lab prepare files --input {text} --out {out} --restart"
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
    if folder.is_dir() and local_files.has_files(folder):
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
    beside = sorted(str(other) for other in folder.parent.glob("*") if _holds_splits(other))
    others = f" (there are {', '.join(beside[:5])}{', …' * (len(beside) > 5)})" if beside else ""
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


def _holds_splits(folder: Path) -> bool:
    """Whether a folder holds token shards, by their manifest or names: other programs have .npy and .bin files, too."""
    if not shards.is_ready(folder):
        return False
    return (folder / shards.MANIFEST).exists() or any(shards.split_of(f.name) for f in shards.shard_files(folder))

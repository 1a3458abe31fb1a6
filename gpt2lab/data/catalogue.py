"""The sources by name: where their shards go and how they are opened."""

import re
import shlex
from pathlib import Path

from gpt2lab.config import DataConfig
from gpt2lab.data.sources import Source, cpython, fineweb, local_files, stdlib, tinyshakespeare
from gpt2lab.errors import GPT2LabError
from gpt2lab.options import PrepareOptions

DEFAULT_DIRS = {
    "stdlib": "data/stdlib",
    "cpython": "data/cpython",
    "tinyshakespeare": "data/tinyshakespeare",
    "fineweb-edu": "data/edu_fineweb10B",
    "fineweb": "data/fineweb10B",
    "files": "data/files",
}

LARGE = tuple(fineweb.CORPORA)  # prepared by a command of their own, not by training


def open_source(options: PrepareOptions) -> Source:
    """Open a source by name.

    Args:
        options: the name, and the options of the single sources.

    Raises:
        GPT2LabError: the source cannot be found, files has no inputs, or another source has an option that it ignores.
    """
    _require_no_ignored(options)
    if options.source in fineweb.CORPORA:
        return fineweb.source(options.subset, options.mirror, options.text_field, fineweb.CORPORA[options.source])
    if options.source == "files":
        if not options.input:
            raise GPT2LabError("prepare files needs --input with files or patterns, such as --input 'corpus/**/*.txt'")
        return local_files.source(options.input, options.text_field)
    if options.source == "tinyshakespeare":
        return tinyshakespeare.source(options.mirror)
    embedded = {"stdlib": stdlib.source, "cpython": cpython.source}[options.source]
    return embedded() if options.shuffle_seed is None else embedded(options.shuffle_seed)


def _require_no_ignored(options: PrepareOptions) -> None:
    """Check that no option is given that the source ignores: other text than the user means would be prepared."""
    large = ", ".join(fineweb.CORPORA)
    for option, default, sources, names in (
        ("input", (), ("files",), "files"),
        ("text_field", "text", ("files", *fineweb.CORPORA), f"files, {large}"),
        ("subset", "sample-10BT", tuple(fineweb.CORPORA), large),
    ):
        if options.source not in sources and getattr(options, option) != default:
            flag = f"--{option.replace('_', '-')}"
            own = f"to prepare your text: gpt2lab prepare files --input {shlex.join(options.input)}"
            advice = own if option == "input" else "leave it out"
            raise GPT2LabError(f"{flag} is for prepare {names}, not {options.source}; {advice}")


def format_train_command(name: str, folder: Path) -> str:
    """Return the command that trains on a folder of shards.

    Args:
        name: the source.
        folder: folder of the shards.
    """
    recipe = {"stdlib": "", "cpython": " --data.source cpython", "tinyshakespeare": " --config shakespeare_cpu"}
    recipe |= {"fineweb-edu": " --config gpt2_124m", "fineweb": " --config gpt2_124m --data.source fineweb"}
    if name in recipe and folder == Path(DEFAULT_DIRS[name]):
        return f"gpt2lab train{recipe[name]}"
    run = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("._-") or "mine"
    return f"gpt2lab train{recipe.get(name, '')} --data.dir {shlex.quote(str(folder))} --run.name {run}"


def default_folder(name: str, subset: str = "sample-10BT") -> str:
    """Return the folder for the shards of a source, unless `--out` or `data.dir` is given.

    Args:
        name: a key of `DEFAULT_DIRS`.
        subset: subset of fineweb-edu or fineweb.
    """
    if name in fineweb.CORPORA:
        return DEFAULT_DIRS[name].replace("10B", subset.removeprefix("sample-").removesuffix("T"))
    return DEFAULT_DIRS[name]


def data_folder(data: DataConfig) -> Path:
    """Return the folder of a run's shards: `data.dir`, or the default one; for a text of one's own, named after it.

    Args:
        data: names the source, and perhaps the folder.
    """
    if data.dir is not None:
        return Path(data.dir)
    folder = Path(DEFAULT_DIRS[data.source])
    if data.input is None:
        return folder
    path = Path(data.input).resolve()
    name = path.name if path.is_dir() else path.name.partition(".")[0]
    return folder / (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-") or "text")

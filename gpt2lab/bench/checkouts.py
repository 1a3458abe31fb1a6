"""The checkouts of other projects that `gpt2lab bench` measures. Imports no torch: a wrong path is found at once."""

import re
from pathlib import Path

from gpt2lab import outputs
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import require_folder
from gpt2lab.options import BenchOptions

FILES = {"nanogpt": "model.py", "build-nanogpt": "train_gpt2.py"}  # what is read, by the name of the rival
_TRACE = re.compile(rb'\A\s*\{\s*"schemaVersion"')  # the beginning of what torch's profiler writes


def folders(options: BenchOptions) -> dict[str, str | None]:
    """The folder of each checkout that the options name, by the name of the rival.

    Args:
        options: of the command.
    """
    return {"nanogpt": options.nanogpt, "build-nanogpt": options.build_nanogpt}


def require(options: BenchOptions) -> None:
    """Check the files that the options name, before anything is measured.

    Args:
        options: of the command.

    Raises:
        GPT2LabError: a checkout is missing or is not one, or a file to write is in no folder, or would
            replace something else.
    """
    for name, folder in folders(options).items():
        if folder is not None:
            find_file(name, folder)
        elif name in options.rivals:
            raise GPT2LabError(f"--rivals {name} needs the folder of a checkout: --{name} FOLDER")
    for option, file, pattern, kind in (
        ("--chart", options.chart, outputs.PICTURE, "a chart of gpt2lab"),
        ("--profile", options.profile, _TRACE, "a Chrome trace"),
    ):
        if file is not None:
            outputs.require_replaceable(option, Path(file), outputs.begins_with(pattern), kind)
            require_folder(Path(file).parent, f"{option} {file}:")


def find_file(name: str, folder: str) -> Path:
    """Return the file of a checkout that is read.

    Args:
        name: of the rival.
        folder: of the checkout.

    Raises:
        GPT2LabError: there is no such folder, or it lacks the file.
    """
    file = Path(folder) / FILES[name]
    require_folder(folder, f"--{name}")
    if not file.is_file():
        raise GPT2LabError(f"--{name} {folder}: no {file.name} there; give the folder of a checkout")
    return file

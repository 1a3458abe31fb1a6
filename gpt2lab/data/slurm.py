"""Many machines through Slurm, submitted by datatrove, the engine that FineWeb was made with.

    gpt2lab prepare … --executor slurm ──▶ job array: task r of n encodes the pieces r, r + n, … into .parts/
                                       └─▶ one job after it: cuts the parts into shards, exactly as on one machine

The folder must lie where all nodes see it, and so must the source (for the hub: a shared HF_HOME). datatrove writes the
batch scripts, splits arrays that are too big, and queues again what was preempted; what is encoded, and that the order
is the one of the corpus, is ours. A task that is run again finds the parts it has finished.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2lab.data import prepare
from gpt2lab.data.parts import Parts
from gpt2lab.data.prepare import Options
from gpt2lab.data.sources import Source
from gpt2lab.errors import GPT2LabError

FOLDER = ".slurm"


def parse(settings: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` words as a mapping.

    Raises:
        GPT2LabError: a word has no `=`.
    """
    pairs = [word.partition("=") for word in settings]
    if odd := [key for key, equals, _ in pairs if not equals]:
        raise GPT2LabError(f"--slurm {odd[0]}: write KEY=VALUE, such as partition=cpu")
    return {key: value for key, _, value in pairs}


def submit(source: Source, folder: Path, options: Options, settings: dict[str, str]) -> str:
    """Submit both jobs; returns a line that says which.

    Args:
        source, folder, options: as for `prepare.make`.
        settings: `partition` (required), `tasks` (default: one a piece, at most 64), `time` (default 4 hours), `cpus`
            (a task, default 4); anything else is passed to sbatch.

    Raises:
        GPT2LabError: datatrove or sbatch is missing, no partition is named, or the folder cannot be used.
    """
    try:
        from datatrove.executor.slurm import SlurmPipelineExecutor
    except ImportError:
        raise GPT2LabError("--executor slurm needs datatrove: pip install -e '.[slurm]'") from None

    settings = dict(settings)
    if not (partition := settings.pop("partition", "")):
        raise GPT2LabError("--executor slurm needs a partition to run in: --slurm partition=NAME")
    try:
        tasks = int(settings.pop("tasks", min(64, len(source.pieces))))
        cpus = int(settings.pop("cpus", 4))
    except ValueError as error:
        raise GPT2LabError(f"--slurm: tasks and cpus are numbers ({error})") from None
    folder = folder.resolve()
    options = dataclasses.replace(options, use_parts=True, workers=options.workers or cpus)
    prepare.reserve(source, folder, options)

    common: dict[str, Any] = {
        "partition": partition,
        "time": settings.pop("time", "04:00:00"),
        "qos": settings.pop("qos", ""),
        "cpus_per_task": cpus,
        "venv_path": f"{sys.prefix}/bin/activate" if sys.prefix != sys.base_prefix else None,
        "sbatch_args": settings,
        "skip_completed": False,  # a task sees for itself what is there
        "mail_type": "NONE",
    }
    encode = SlurmPipelineExecutor(
        [functools.partial(encode_share, source, folder, options)],
        tasks=tasks,
        job_name="gpt2lab-encode",
        logging_dir=str(folder / FOLDER / "encode"),
        **common,
    )
    cut = SlurmPipelineExecutor(
        [functools.partial(cut_parts, source, folder, options)],
        tasks=1,
        job_name="gpt2lab-cut",
        logging_dir=str(folder / FOLDER / "cut"),
        depends=encode,
        **common,
    )
    try:
        cut.run()
    except FileNotFoundError as error:
        raise GPT2LabError(f"{error.filename} was not found; submit from a machine that has Slurm") from None
    return f"submitted: {tasks} tasks encode, then job {cut.job_id} cuts {folder}; logs are in {folder / FOLDER}"


def encode_share(source: Source, folder: Path, options: Options, _: object, rank: int, world_size: int) -> None:
    """What one task of the array does."""
    Parts(folder).fill(source, options.run, range(rank, len(source.pieces), world_size))


def cut_parts(source: Source, folder: Path, options: Options, _: object, rank: int, world_size: int) -> None:
    """What the last job does."""
    print(prepare.make(source, folder, options).line(folder), flush=True)

"""What each verb does between the command line and the package that does the work.

Mistakes that can be found without torch, whose import takes seconds, are found before it. Verbs whose package takes
the options as they are (sweep, scaling) have no function here.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path

from gpt2lab import logs
from gpt2lab.errors import GPT2LabError
from gpt2lab.options import (
    AppOptions,
    BenchOptions,
    DataOptions,
    EvaluateOptions,
    ExportOptions,
    ImportOptions,
    PlanOptions,
    PrepareOptions,
    PrintSettingsOptions,
    ReportOptions,
    SampleOptions,
    TrainOptions,
)

logger = logging.getLogger(__name__)


def train(options: TrainOptions) -> None:
    """Train a model.

    Args:
        options: recipes and settings.
    """
    from gpt2lab import config
    from gpt2lab.config import notes
    from gpt2lab.data import run_data
    from gpt2lab.model import names

    recipes = options.config or [options.RECIPE]
    settings, renames = config.load_with_notes(recipes, options.overrides)
    if settings.tracking.log_format == "json":
        logs.configure(to_stderr=True)  # standard output has one object per line, for other programs to read
    for note in renames:
        logger.info(note)
    if settings.data.dir is not None and settings.data.input is None and "data.source" not in options.overrides:
        run_data.require_shards(settings.data)
    run_data.require_mirror(settings.data)
    if not options.dry_run:
        run_data.require_input(settings.data)
    folder = Path(settings.run.out_dir) / (settings.run.name or "run")
    is_new = settings.run.resume not in ("auto", "never") and not (folder / "checkpoints").exists()
    if is_new and os.environ.get("RANK", "0") == "0":  # the other ranks may not see the folders of runs
        names.require_start(settings.run.resume)
    if not options.config:
        logger.info(notes.describe_quickstart(settings, options.overrides))
    elif note := notes.describe_defaults(settings):
        logger.info(note)
    for warning in notes.find_unusual(settings):
        logger.warning(warning)

    from gpt2lab.training import dry_run, run  # torch takes seconds: only once the settings are valid

    if options.dry_run:
        dry_run.run(settings, options.overrides)
    else:
        run.run(settings, given=options.overrides)


def evaluate(options: EvaluateOptions) -> None:
    """Score a model on tasks.

    Args:
        options: the model and the tasks.
    """
    from gpt2lab.evaluation import names as tasks
    from gpt2lab.model import names

    tasks.check(options.tasks)
    names.require(options.checkpoint)
    from gpt2lab.evaluation import run

    run.run(options)


def sample(options: SampleOptions) -> None:
    """Continue a prompt.

    Args:
        options: the model, the prompt and how to sample.
    """
    from gpt2lab.generation import prompts
    from gpt2lab.model import names

    names.require(options.checkpoint)
    prompt = prompts.read(options.prompt, options.prompt_file)
    from gpt2lab import sample

    sample.run(options, prompt)


def app(options: AppOptions) -> None:
    """Serve the page that compares two models.

    Args:
        options: the models, and where to serve and compute.
    """
    from gpt2lab import packages
    from gpt2lab.model import names

    packages.require("gradio", "gpt2lab app", "app")
    names.require(options.trained)
    if options.untrained != "random":
        names.require(options.untrained)
    from gpt2lab.app import run

    run.run(options)


def plan(options: PlanOptions) -> None:
    """Plan a run, or measure this device.

    Args:
        options: recipes, settings and what to print.
    """
    if options.calibrate:
        from gpt2lab.planning import calibrate

        calibrate.run(options)
    else:
        from gpt2lab.planning import run

        run.run(options)


def bench(options: BenchOptions) -> None:
    """Time a training step.

    Args:
        options: recipes, settings and what to compare with.
    """
    from gpt2lab import config
    from gpt2lab.bench import checkouts

    checkouts.require(options)
    from gpt2lab.bench import run
    from gpt2lab.system import device

    overrides = options.overrides
    if not options.config:
        on_cpu = device.choose(overrides.get("system.device", "auto")).type == "cpu"
        block_size, micro_batch_size = ("512", "2") if on_cpu else ("1024", "16")
        overrides = {"model.block_size": block_size, "train.micro_batch_size": micro_batch_size} | overrides
        sizes = [overrides["model.block_size"], overrides["train.micro_batch_size"]]
        if all(size.isdecimal() for size in sizes):
            overrides = {"train.total_batch_size": str(int(sizes[0]) * int(sizes[1]))} | overrides
    run.run(config.load(options.config or [options.RECIPE], overrides), options)


def prepare(options: PrepareOptions) -> None:
    """Make token shards, and print one line about them.

    Args:
        options: the source, the shards and how to make them.
    """
    from gpt2lab.data import catalogue, index
    from gpt2lab.data import prepare as preparation

    if options.source == "pretokenized":
        if len(options.input) != 1:
            raise GPT2LabError("prepare pretokenized takes one --input, the directory that holds the shards")
        folder = Path(options.out or options.input[0])
        _print(index.index_shards(options.input[0], folder, options.text_source).line(folder))
        logger.info(f"next: {catalogue.format_train_command(options.source, folder)}")
        return
    if options.text_source is not None:
        raise GPT2LabError(f"--source is for prepare pretokenized; {options.source} says itself what it holds")
    source = catalogue.open_source(options)
    folder = Path(options.out or catalogue.default_folder(options.source, options.subset))
    if options.executor == "slurm":
        from gpt2lab.data import slurm

        _print(slurm.submit(source, folder, options))
    else:
        _print(preparation.make(source, folder, options).line(folder))
        logger.info(f"next: {catalogue.format_train_command(options.source, folder)}")


def data(options: DataOptions) -> None:
    """Show or verify a directory of shards.

    Args:
        options: the action and the directory.
    """
    from gpt2lab.data import verify

    if options.action == "inspect":
        _print("\n".join(verify.inspect(options.folder, options.mirror)))
    else:
        _print(verify.verify(options.folder))


def report(options: ReportOptions) -> None:
    """Write the report of runs, or the page of a sweep, and print the files that were written.

    Args:
        options: the runs, or the folder of a sweep.
    """
    from gpt2lab.tracking import report

    folder = Path(options.runs[0])
    if len(options.runs) == 1 and any((folder / name).is_file() for name in ("sweep.json", "predictions.jsonl")):
        from gpt2lab.scaling import page as scaling_page
        from gpt2lab.sweep import page

        if options.out or options.price_per_hour:
            raise GPT2LabError(f"{folder} is a sweep, whose page takes no --out and no --price-per-hour")
        write = scaling_page.write if scaling_page.is_scaling_run(folder) else page.write
        _print(f"wrote {write(folder)}")
        return
    out = Path(options.out) if options.out else None
    written = report.write(
        *map(Path, options.runs),
        out=out,
        price_per_hour=options.price_per_hour,
        tokens_per_step=options.tokens_per_step,
    )
    _print(f"wrote {', '.join(map(str, written))}")


def export(options: ExportOptions) -> None:
    """Write a model for other tools.

    Args:
        options: the model, the directory or repository, and the dtype.

    Raises:
        GPT2LabError: the options do not fit together, or the model cannot be written or uploaded.
    """
    if options.out and options.space:
        raise GPT2LabError("--out and --space: give one of them")
    if not (options.out or options.space or options.push):
        raise GPT2LabError("give --out or --space, a directory, or --push OWNER/NAME (see gpt2lab export --help)")
    if (options.public or options.dry_run) and not options.push:
        raise GPT2LabError("--public and --dry-run belong to --push OWNER/NAME")
    from gpt2lab.model import names

    names.require(options.checkpoint)
    from gpt2lab.export import push, run

    if options.push:
        push.check(options.push, needs_login=not options.dry_run)
    with tempfile.TemporaryDirectory(prefix="gpt2lab-export-") as scratch:
        target = None if options.dry_run else options.space or options.out
        folder = target or Path(scratch) / "export"
        written = run.export(
            options.checkpoint,
            folder,
            options.dtype,
            mirror=options.mirror,
            as_space=options.space is not None,
            is_temporary=target is None,
        )
        if options.push:
            kind: push.Kind = "space" if options.space else "model"
            arguments = (written, options.push, kind, options.public)
            _print(push.describe(*arguments) if options.dry_run else f"uploaded to {push.push(*arguments)}")


def import_file(options: ImportOptions) -> None:
    """Write a model of another project for other tools.

    Args:
        options: the file, the directory and the dtype.
    """
    if not Path(options.file).is_file():
        what = "a directory" if Path(options.file).is_dir() else "no such file"
        raise GPT2LabError(
            f"{options.file}: {what}; give a checkpoint of another project, and for a run or a directory use "
            "gpt2lab export"
        )
    from gpt2lab.export import run

    run.export(options.file, options.out, options.dtype, mirror=options.mirror)


def settings(options: PrintSettingsOptions) -> None:
    """Print every setting, or a settings file of another project in our settings.

    Args:
        options: the format, or the file.
    """
    from gpt2lab.config import reference, translation

    if options.action:
        if len(options.action) != 2 or options.action[0] != "translate":
            raise GPT2LabError(f"settings {' '.join(options.action)}: expected settings translate FILE")
        file = Path(options.action[1])
        translated = translation.translate_file(file)
        for item in translated.items:
            if item.note:
                logger.warning(item.describe())
        for note in translated.notes:
            logger.warning(note)
        logs.print_result(translated.to_yaml(f"{file} in gpt2lab's settings"), end="")
        return
    logs.print_result(reference.json_schema() if options.schema else reference.markdown(), end="")


def _print(text: str) -> None:
    """Print the result of a verb; on a terminal, lines are broken between words."""
    logs.print_result(logs.wrap(text, sys.stdout))

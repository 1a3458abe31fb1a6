"""The `gpt2lab` command: its verbs, and what each error prints and exits with."""

import importlib
import io
import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from gpt2lab import __version__, cli_parser, files, logs, options, packages, slow_imports
from gpt2lab.errors import GPT2LabError, LostRankError, RunStoppedError, describe, did_you_mean
from gpt2lab.scaling.options import ScalingOptions
from gpt2lab.sweep.options import SweepOptions
from gpt2lab.system import startup

EPILOG = """\
gpt2lab train                                  the quickstart: a small GPT-2 on your CPU, in minutes
gpt2lab train --config config/gpt2_124m.yaml   GPT-2 124M
gpt2lab evaluate --model-checkpoint runs/x     HellaSwag and other tasks, for a run, a directory or a Hub model
gpt2lab plan --config minigpt --gpu h100-80gb  memory, hours and cost, before you rent
gpt2lab prepare fineweb-edu                    token shards, from the Hub or a --mirror
gpt2lab sweep --over optimizer.max_lr=1e-3,2e-3    a grid of runs, and a page that compares them
gpt2lab scaling fit runs/sweep                 the law of small runs' losses, to predict a larger one
gpt2lab sample --model-checkpoint runs/x --prompt "Once"
gpt2lab export --model-checkpoint runs/x --out out/x    a directory for transformers and other tools
gpt2lab app --trained runs/x                   a page: the trained and an untrained model, side by side
gpt2lab VERB --help                            the options of a verb
"""


class Verb(NamedTuple):
    """A subcommand. `function` is `module:name`, imported when the verb runs; it takes an instance of `options`.

    `uses_ranks`: torchrun's processes share its work. Those of the others would all do the same.
    """

    name: str
    help: str
    options: type
    function: str
    uses_ranks: bool = False


VERBS = (
    Verb("train", "train a model; resumes an interrupted run", options.TrainOptions, "gpt2lab.commands:train", True),
    Verb("plan", "estimate memory, hours and cost on GPUs", options.PlanOptions, "gpt2lab.commands:plan"),
    Verb("prepare", "make token shards from a corpus", options.PrepareOptions, "gpt2lab.commands:prepare"),
    Verb("data", "inspect or verify a directory of shards", options.DataOptions, "gpt2lab.commands:data"),
    Verb("evaluate", "score a model on tasks", options.EvaluateOptions, "gpt2lab.commands:evaluate", True),
    Verb("bench", "time a training step and compare it", options.BenchOptions, "gpt2lab.commands:bench"),
    Verb("sweep", "train a grid of runs; resumes where it stopped", SweepOptions, "gpt2lab.sweep.run:run"),
    Verb("scaling", "predict the loss of larger runs", ScalingOptions, "gpt2lab.scaling.run:run"),
    Verb("sample", "continue a prompt with a trained model", options.SampleOptions, "gpt2lab.commands:sample"),
    Verb("app", "serve a page that compares two models", options.AppOptions, "gpt2lab.commands:app"),
    Verb("report", "write the page of one or more runs", options.ReportOptions, "gpt2lab.commands:report"),
    Verb("export", "write a model for other tools", options.ExportOptions, "gpt2lab.commands:export"),
    Verb("import", "convert a checkpoint of another project", options.ImportOptions, "gpt2lab.commands:import_file"),
    Verb("settings", "print every setting", options.PrintSettingsOptions, "gpt2lab.commands:settings"),
)

# Names of our verbs in other projects, for "did you mean".
_OTHER_VERBS = {"benchmark": "bench", "chat": "sample", "complete": "sample", "config": "settings", "convert": "export"}
_OTHER_VERBS |= {"download": "prepare", "finetune": "train", "generate": "sample", "inspect": "data", "plot": "report"}
_OTHER_VERBS |= {"resume": "train", "serve": "app", "test": "evaluate", "tokenize": "prepare", "verify": "data"}

_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator"  # in torch's message; it has no type of its own for it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows `gpt2lab`; None: those of the process.

    Returns:
        The exit status. 0: done. 1: a bug, with its traceback. 2: an error that the user can correct. 3: another
        process of a distributed run was lost. 128 + the number of a signal: stopped by it after saving (130 Ctrl-C,
        143 SIGTERM, 129 SIGHUP, 138 SIGUSR1, 140 SIGUSR2). 141: the reader of the output is gone.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a character must not end a run
    logs.configure()
    try:
        return _run(arguments)
    except BrokenPipeError:  # also of standard error, which messages are printed to
        return 141
    finally:
        logs.drop_unwritten()


def _run(arguments: list[str]) -> int:
    """Run the verb, and print what ends it."""
    rank = os.environ.get("RANK", "0")
    try:
        _run_verb(arguments)
        logs.print_result("", end="")  # writes what libraries have printed but Python has not written yet
        return 0
    except BrokenPipeError:  # as in `gpt2lab train --help | head`
        raise
    except (GPT2LabError, OSError) as error:
        if rank != "0" and _is_reported_by_rank_0(error):
            return getattr(error, "status", 2)
        text = " ".join(describe(error).split())
        logs.print_error(f"gpt2lab: {'' if rank == '0' else f'[rank {rank}] '}{text}", getattr(error, "details", ""))
        return error.status if isinstance(error, GPT2LabError) else 2
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and _CPU_OUT_OF_MEMORY not in str(error):
            raise
        reason = str(error).rpartition(f"{_CPU_OUT_OF_MEMORY}: ")[2] or "MemoryError"
        logs.print_error(f"gpt2lab: the memory is not enough ({reason}); lower the batch size or take a smaller model")
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "gpt2lab").partition(".")[0]
        if package == "gpt2lab":
            raise  # a bug
        if rank == "0":
            advice = packages.format_install_command(package, None)
            logs.print_error(f"gpt2lab: the package {package} is missing: {advice}")
        return 2
    except RunStoppedError as stop:
        if rank == "0":
            logs.print_error(f"gpt2lab: {stop}")
        return stop.status
    except KeyboardInterrupt as interruption:
        if rank == "0":
            logs.print_error(f"gpt2lab: interrupted{f'; {interruption}' if str(interruption) else ''}")
        return 130


def _is_reported_by_rank_0(error: GPT2LabError | OSError) -> bool:
    """Whether rank 0 has the error of this other rank, too, and prints it.

    Before the ranks are connected, this is known only by what happens: if rank 0 ends, torchrun ends this process
    (SIGTERM) while it waits here. If only this rank has the error, or the ranks of one machine, the first prints it.
    """
    if isinstance(error, LostRankError):
        return False
    if getattr(error, "same_on_rank_0", None) is None:
        local_rank = os.environ.get("LOCAL_RANK", "0")
        time.sleep(2 + 0.5 * (int(local_rank) if local_rank.isdecimal() else 0))
    return getattr(error, "same_on_rank_0", None) is True


def _run_verb(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-") and arguments[0] not in [verb.name for verb in VERBS]:
        raise GPT2LabError(_unknown_verb(arguments[0]))
    if arguments and arguments[0].startswith("--") and arguments[0].partition("=")[0] not in ("--help", "--version"):
        raise GPT2LabError(f"give a command first, such as: gpt2lab train {shlex.join(arguments)}")
    parser = cli_parser.Parser(prog="gpt2lab", description="Train GPT-2 from scratch.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"gpt2lab {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        subparsers.add_parser(verb.name, help=verb.help, add_help=False)
    namespace, rest = parser.parse_known_args(arguments)
    verb = next(verb for verb in VERBS if verb.name == namespace.verb)
    if verb.name != "bench":  # which compares with implementations that use torch's own defaults
        startup.prepare()
    parsed: object = cli_parser.parse(verb.options, rest, f"gpt2lab {verb.name}")
    if not verb.uses_ranks:
        _require_one_process(verb.name)
    mirror: str | None = getattr(parsed, "mirror", None)
    if mirror is not None:  # rather than use the network without a word
        files.require_folder(mirror, "--mirror")
    # Standard output of these holds the result alone, for other programs to read.
    logs.configure(
        to_stderr=verb.name in ("sample", "bench", "prepare", "data", "scaling", "settings")
        or getattr(parsed, "as_json", False)
    )
    module, _, function = verb.function.partition(":")
    with slow_imports.shown():
        getattr(importlib.import_module(module), function)(parsed)


def _require_one_process(name: str) -> None:
    """Refuse to be one of several processes of torchrun. A cluster may set WORLD_SIZE for all, but not LOCAL_RANK."""
    if "LOCAL_RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return
    error = GPT2LabError(f"{name} is not for several processes; run it without torchrun")
    error.same_on_rank_0 = True
    raise error


def _unknown_verb(name: str) -> str:
    """The error message about a verb that does not exist."""
    if name.endswith((".yaml", ".yml")):
        return f"no such command: {name}; did you mean: gpt2lab train --config {shlex.quote(name)}?"
    names = [verb.name for verb in VERBS]
    hint = did_you_mean(_OTHER_VERBS.get(name, name), names) or f"; the commands are {', '.join(names)}"
    return f"no such command: {name}{hint} (see gpt2lab --help)"

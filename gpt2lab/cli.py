"""The `gpt2lab` command: its verbs, and how errors leave it. A wing is imported only when its verb is called."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpt2lab import __version__
from gpt2lab.errors import GPT2LabError

EPILOG = """\
gpt2lab train                                  the quickstart: a small GPT-2 on your CPU, in minutes
gpt2lab train --config config/gpt2_124m.yaml   GPT-2 124M
gpt2lab evaluate --model-checkpoint runs/x     HellaSwag and more, of a run, a folder or a model of the Hub
gpt2lab VERB --help                            what a verb takes
"""


class _Parser(argparse.ArgumentParser):
    """No abbreviations, and complaints that go out like every other: one line, exit status 2."""

    def __init__(self, **settings: object):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise GPT2LabError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 for an error the user can mend, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(arguments)
    except GPT2LabError as error:
        rank = os.environ.get("RANK", "0")
        print(f"gpt2lab: {'' if rank == '0' else f'[rank {rank}] '}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; the same command goes on from the last checkpoint" if arguments[:1] == ["train"] else ""
        print(f"gpt2lab: interrupted{hint}", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    parser = _Parser(prog="gpt2lab", description="Train GPT-2 from scratch.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"gpt2lab {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("train", help="train a model; resumes where the run stopped", add_help=False)
    verbs.add_parser("evaluate", help="score a model: HellaSwag, other tasks, validation loss", add_help=False)
    parsed, rest = parser.parse_known_args(arguments)
    return {"train": _train, "evaluate": _evaluate}[parsed.verb](rest)


def _train(arguments: list[str]) -> int:
    from gpt2lab import config

    parser = _Parser(
        prog="gpt2lab train",
        description="Train a model. Settings come from the defaults, then each --config, then the options below.",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="recipe: a YAML file, or the name of one that ships; repeat to put one over another (default: quickstart)",
    )
    groups = {section: parser.add_argument_group(section) for section in config.Config.model_fields}
    for name, field in config.leaves():
        switch = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
        groups[name.partition(".")[0]].add_argument(
            f"--{name}",
            metavar="VALUE",
            default=argparse.SUPPRESS,
            help=f"{field.description} (default: {field.default})".replace("%", "%%"),
            **switch,  # type: ignore[arg-type]
        )
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        option = unknown[0].partition("=")[0]
        if option.startswith("--"):
            raise GPT2LabError(config.unknown_setting(option[2:]))
        raise GPT2LabError(f"unexpected argument {option}; settings look like --train.max_steps 50")
    overrides = {name: value for name, value in vars(parsed).items() if name != "config"}
    if not parsed.config and os.environ.get("RANK", "0") == "0":
        print(
            "no --config, so this is the quickstart recipe: a small model on the text of Python's own documentation. "
            "For GPT-2 124M: gpt2lab train --config config/gpt2_124m.yaml",
            flush=True,
        )
    settings = config.load([config.find_recipe(name) for name in parsed.config or ["quickstart"]], overrides)

    from gpt2lab.training import launch  # torch is imported here, after the settings are known to be good

    launch.run(settings)
    return 0


def _evaluate(arguments: list[str]) -> int:
    parser = _Parser(
        prog="gpt2lab evaluate",
        description="Score a model on HellaSwag and other tasks, and take its validation loss.",
    )
    add = parser.add_argument
    add(
        "--model-checkpoint",
        required=True,
        metavar="NAME",
        help="a run directory (its newest good checkpoint), a model's folder, or a Hub id such as gpt2",
    )
    add("--tasks", default="hellaswag", metavar="A,B", help="tasks by name, lm_eval:NAME for one of lm-eval's own")
    add("--hellaswag-file", metavar="FILE", help="HellaSwag's validation set, in either schema (default: downloaded)")
    add("--data-dir", metavar="DIR", help="folder of token shards for the validation loss, or of the tasks' files")
    add("--mirror", metavar="DIR", help="folder to take downloads from instead of the network (or $GPT2LAB_MIRROR)")
    add("--limit", type=_count, metavar="N", help="so many items of each task, always the same ones (default: all)")
    add(
        "--val-tokens",
        type=_count,
        metavar="N",
        help="tokens of the validation loss; 0: none (default: the run's)",
    )
    add("--json", action="store_true", help="print one JSON object, and nothing else, to standard output")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the matrix products (default: auto)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute (default: auto)")
    add("--batch-tokens", type=_count, metavar="N", help="tokens of a forward pass (default: by device)")
    add("--include", metavar="DIR", help="folder of further task files for lm_eval:NAME")
    parsed = parser.parse_args(arguments)

    from gpt2lab.evaluation import launch

    names = tuple(dict.fromkeys(name.strip() for name in parsed.tasks.split(",") if name.strip()))
    launch.run(
        launch.Options(
            checkpoint=parsed.model_checkpoint,
            tasks=names,
            hellaswag_file=parsed.hellaswag_file,
            data_dir=parsed.data_dir,
            mirror=parsed.mirror,
            limit=parsed.limit or None,
            val_tokens=parsed.val_tokens,
            as_json=parsed.json,
            device=parsed.device,
            precision=parsed.precision,
            batch_tokens=parsed.batch_tokens or None,
            include=parsed.include,
        )
    )
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)

"""The `gpt2lab` command: its verbs, and how errors leave it. A wing is imported only when its verb is called."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpt2lab import __version__, logs
from gpt2lab.errors import GPT2LabError, Stopped
from gpt2lab.system import startup

EPILOG = """\
gpt2lab train                                  the quickstart: a small GPT-2 on your CPU, in minutes
gpt2lab train --config config/gpt2_124m.yaml   GPT-2 124M
gpt2lab evaluate --model-checkpoint runs/x     HellaSwag and more, of a run, a folder or a model of the Hub
gpt2lab prepare fineweb-edu                    its data, from the hub or a --mirror
gpt2lab sample --model-checkpoint runs/x --prompt "Once"
gpt2lab export --model-checkpoint runs/x --out out/x    a folder for transformers and others
gpt2lab app --trained runs/x                   a page: the trained model and an untrained one, side by side
gpt2lab VERB --help                            what a verb takes
"""


class _Parser(argparse.ArgumentParser):
    """No abbreviations, and complaints that go out like every other: one line, exit status 2."""

    def __init__(self, **settings: object):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise GPT2LabError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: done. 2: an error the user can mend. 3: another process of a distributed run was lost. 128 + a signal's number:
    stopped by it, and saved (130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1, 140 SIGUSR2). 1: a bug, with its traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without a sample's letters must not end a run
    logs.configure()
    try:
        return _dispatch(arguments)
    except BrokenPipeError:  # whoever read our output has gone, as in `gpt2lab train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (GPT2LabError, OSError) as error:
        rank = os.environ.get("RANK", "0")
        text = " ".join(str(error).split())
        # In one piece, also when Python does not buffer: other ranks write to the same terminal at the same time.
        print(f"gpt2lab: {'' if rank == '0' else f'[rank {rank}] '}{text}\n", end="", file=sys.stderr)
        return error.status if isinstance(error, GPT2LabError) else 2
    except Stopped as stop:
        if os.environ.get("RANK", "0") == "0":
            print(f"gpt2lab: {stop}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt as interruption:
        print(f"gpt2lab: interrupted{f'; {interruption}' if str(interruption) else ''}", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    parser = _Parser(prog="gpt2lab", description="Train GPT-2 from scratch.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"gpt2lab {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("train", help="train a model; resumes where the run stopped", add_help=False)
    verbs.add_parser("prepare", help="make token shards from a corpus; goes on where it stopped", add_help=False)
    verbs.add_parser("data", help="look at a folder of token shards, or verify it", add_help=False)
    verbs.add_parser("evaluate", help="score a model: HellaSwag, other tasks, validation loss", add_help=False)
    verbs.add_parser(
        "bench", help="time a training step, beside other projects and the hardware's limit", add_help=False
    )
    verbs.add_parser("sample", help="continue a prompt with a trained model", add_help=False)
    verbs.add_parser("app", help="a page where a trained and an untrained model write side by side", add_help=False)
    verbs.add_parser("report", help="write the page of a run, or of several beside each other", add_help=False)
    verbs.add_parser("export", help="write a model as a folder that transformers and others open", add_help=False)
    verbs.add_parser("settings", help="print every setting, as text or as a JSON schema", add_help=False)
    parsed, rest = parser.parse_known_args(arguments)
    if parsed.verb != "bench":  # there everybody has what torch does by itself
        startup.prepare()
    doors = {"train": _train, "bench": _bench, "prepare": _prepare, "data": _data, "evaluate": _evaluate}
    doors |= {"sample": _sample, "app": _app, "report": _report, "export": _export, "settings": _settings}
    return doors[parsed.verb](rest)


def _train(arguments: list[str]) -> int:
    parser = _Parser(
        prog="gpt2lab train",
        usage="gpt2lab train [--config FILE] [--section.key VALUE ...]",
        description="Train a model. Settings come from the defaults, then each --config, then these options.\n"
        "The defaults shown lie below every recipe; without --config the recipe is the quickstart, which sets its own.",
        epilog="gpt2lab train --config gpt2_124m --train.max_steps 50 --optimizer.max_lr 3e-4",
    )
    parsed, overrides = _read_settings(parser, arguments, "quickstart")
    if not parsed.config and os.environ.get("RANK", "0") == "0":
        print(
            "no --config, so this is the quickstart recipe: a small model on the text of Python's own documentation. "
            "For GPT-2 124M: gpt2lab train --config config/gpt2_124m.yaml",
            flush=True,
        )
    from gpt2lab import config

    settings = config.load([config.find_recipe(name) for name in parsed.config or ["quickstart"]], overrides)

    from gpt2lab.training import run as training_run  # torch is imported here, after the settings are known to be good

    training_run.run(settings)
    return 0


def _read_settings(parser: _Parser, arguments: list[str], recipe: str) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parse a verb's own options, `--config` and every setting; the settings by dotted name, as they were typed."""
    from gpt2lab import config

    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help=f"recipe: a YAML file, or the name of one that ships; repeat to put one over another (default: {recipe})",
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
        if option in config.recipes():
            raise GPT2LabError(f"unexpected argument {option}; a recipe goes with --config {option}")
        raise GPT2LabError(f"unexpected argument {option}; settings look like --train.max_steps 50")
    names = {name for name, _ in config.leaves()}
    return parsed, {name: value for name, value in vars(parsed).items() if name in names}


BENCH_EPILOG = """\
gpt2lab bench                                           GPT-2 124M, beside transformers
gpt2lab bench --nanogpt DIR --build-nanogpt DIR         and beside checkouts of these
gpt2lab bench --ladder --chart ladder.png               what each of the usual measures is worth here
gpt2lab bench --profile trace.json                      where the time of our step goes
gpt2lab bench --config config/quickstart.yaml --train.micro_batch_size 2
"""


def _bench(arguments: list[str]) -> int:
    parser = _Parser(
        prog="gpt2lab bench",
        usage="gpt2lab bench [--rivals A,B] [--ladder] [--json] [--config FILE] [--section.key VALUE ...]",
        description="Time the training step of a recipe (default: gpt2_124m) in turns with other people's.\n"
        "On a CPU, without a recipe, it is 2 sequences of 512 tokens; on a card 16 of 1024.",
        epilog=BENCH_EPILOG,
    )
    add = parser.add_argument
    add("--rivals", default="transformers,transformers-best", metavar="A,B", help="transformers, transformers-best, "
        "transformers-trainer, nanogpt, build-nanogpt; or none (default: the first two)")  # fmt: skip
    add("--nanogpt", metavar="DIR", help="a checkout of nanoGPT, to be measured as well")
    add("--build-nanogpt", metavar="DIR", help="a checkout of build-nanogpt, to be measured as well")
    add("--rounds", type=_positive, default=5, metavar="N", help="turns that everybody has (default: 5)")
    add("--steps", type=_positive, default=2, metavar="N", help="steps a turn (default: 2)")
    add("--ladder", action="store_true", help="from fp32 to fused AdamW, one measure after another")
    add("--profile", metavar="FILE", help="write a Chrome trace of our step, and print its longest operations")
    add("--chart", metavar="FILE", help="draw the table as a PNG")
    add("--json", action="store_true", help="print one JSON object, and nothing else, to standard output")
    parsed, overrides = _read_settings(parser, arguments, "gpt2_124m")

    from gpt2lab import config

    if not parsed.config:
        from gpt2lab.system import device

        card = device.choose(overrides.get("system.device", "auto")).type != "cpu"
        shape = ("1024", "16") if card else ("512", "2")
        overrides = {"model.block_size": shape[0], "train.micro_batch_size": shape[1]} | overrides
        sizes = [overrides[name] for name in ("model.block_size", "train.micro_batch_size")]
        if all(size.isdecimal() for size in sizes):
            overrides = {"train.total_batch_size": str(int(sizes[0]) * int(sizes[1]))} | overrides
    settings = config.load([config.find_recipe(name) for name in parsed.config or ["gpt2_124m"]], overrides)

    from gpt2lab.bench import run as bench_run

    logs.configure(to_stderr=True)  # standard output is the table or the JSON

    rivals = tuple(name.strip() for name in parsed.rivals.split(",") if name.strip() not in ("", "none"))
    checkouts = {"nanogpt": parsed.nanogpt, "build-nanogpt": parsed.build_nanogpt}
    bench_run.run(
        settings,
        bench_run.Options(
            rivals=rivals,
            checkouts=tuple((name, folder) for name, folder in checkouts.items() if folder),
            rounds=parsed.rounds,
            steps=parsed.steps,
            ladder=parsed.ladder,
            as_json=parsed.json,
            chart=parsed.chart,
            profile=parsed.profile,
        ),
    )
    return 0


PREPARE_EPILOG = """\
gpt2lab prepare fineweb-edu                                  sample-10BT from the hub, into data/edu_fineweb10B
gpt2lab prepare fineweb-edu --shards 20 --mirror FOLDER      2B tokens, from parquet files on disk
gpt2lab prepare files --input 'corpus/**/*.txt' more.jsonl   your own text
gpt2lab prepare pretokenized --input FOLDER                  shards that others made: check them, write a manifest
gpt2lab prepare tinyshakespeare                              1 MB, for a first try
"""


def _prepare(arguments: list[str]) -> int:
    parser = _Parser(
        prog="gpt2lab prepare",
        description="Make token shards from a corpus. A killed run goes on where it stopped, to the same bytes.",
        epilog=PREPARE_EPILOG,
    )
    add = parser.add_argument
    sources = ("fineweb-edu", "files", "pretokenized", "tinyshakespeare", "stdlib")
    add("source", metavar="SOURCE", choices=sources, help=", ".join(sources))
    add("--out", metavar="DIR", help="folder for the shards (default: data/NAME)")
    add("--input", nargs="+", action="extend", metavar="PATH", help="files, patterns, or the folder of shards")
    add("--text-field", default="text", metavar="NAME", help="JSON field or parquet column of the text (default: text)")
    add("--subset", default="sample-10BT", help="of fineweb-edu: sample-10BT, sample-100BT, … (default: sample-10BT)")
    add("--mirror", metavar="DIR", help="take downloads from this folder (default: $GPT2LAB_MIRROR, else the network)")
    add("--shards", type=_positive, metavar="N", help="stop when N shards are full")
    add("--shard-size", type=_positive, default=100_000_000, metavar="TOKENS", help="of a full shard (default: 100M)")
    add("--val-tokens", type=_positive, metavar="TOKENS", help="at most so many are val (default: by source)")
    add("--shuffle-seed", type=int, metavar="N", help="shuffle row groups and the documents in each")
    add("--drop-duplicates", action="store_true", help="leave out documents that were there before")
    add(
        "--on-error", choices=("stop", "skip"), default="stop", help="what to do about unreadable input (default: stop)"
    )
    add("--tokenizer", choices=("auto", "gigatoken", "tiktoken"), default="auto", help="same ids, other speed")
    add("--no-check", action="store_true", help="do not compare a sample of every shard with tiktoken")
    add("--workers", type=_positive, metavar="N", help="how many encode at a time (default: one a core)")
    add("--executor", choices=("local", "ray", "slurm"), default="local", help="threads, or many machines")
    add(
        "--slurm", action="append", default=[], metavar="KEY=VALUE", help="tasks, time, partition, or any sbatch option"
    )
    add("--restart", action="store_true", help="discard what an interrupted run with other settings left")
    parsed = parser.parse_args(arguments)

    from pathlib import Path

    from gpt2lab.data import index, prepare

    if parsed.source == "pretokenized":
        if len(parsed.input or []) != 1:
            raise GPT2LabError("prepare pretokenized takes one --input, the folder that holds the shards")
        folder = Path(parsed.out or parsed.input[0])
        summary = index.index_shards(parsed.input[0], folder)
    else:
        source = prepare.open_source(
            parsed.source,
            subset=parsed.subset,
            mirror=parsed.mirror,
            inputs=parsed.input or (),
            field=parsed.text_field,
            seed=parsed.shuffle_seed,
        )
        folder = Path(parsed.out or prepare.default_folder(parsed.source, parsed.subset))
        options = prepare.Options(
            shard_tokens=parsed.shard_size,
            val_tokens=parsed.val_tokens,
            max_shards=parsed.shards,
            shuffle_seed=parsed.shuffle_seed,
            drop_duplicates=parsed.drop_duplicates,
            on_error=parsed.on_error,
            workers=parsed.workers,
            executor="ray" if parsed.executor == "ray" else "local",
            engine=parsed.tokenizer,
            check=not parsed.no_check,
            mirror=parsed.mirror,
            restart=parsed.restart,
        )
        if parsed.executor == "slurm":
            from gpt2lab.data import slurm

            print(slurm.submit(source, folder, options, slurm.parse(parsed.slurm)))
            return 0
        summary = prepare.make(source, folder, options)
    print(summary.line(folder))
    return 0


def _data(arguments: list[str]) -> int:
    parser = _Parser(prog="gpt2lab data", description="Look at a folder of token shards, or verify it.")
    parser.add_argument("action", choices=("inspect", "verify"), help="show what it holds, or check every byte of it")
    parser.add_argument("folder", metavar="DIR", help="the folder that holds the shards")
    parser.add_argument("--mirror", metavar="DIR", help="where the tokenizer's files may be found")
    parsed = parser.parse_args(arguments)

    from gpt2lab.data import verify

    if parsed.action == "inspect":
        print("\n".join(verify.inspect(parsed.folder, parsed.mirror)))
    else:
        print(verify.verify(parsed.folder))
    return 0


def _positive(text: str) -> int:
    """A positive whole number; `100M` and `100_000_000` are fine."""
    factor = {"K": 10**3, "M": 10**6, "B": 10**9}.get(text[-1:].upper(), 1)
    try:
        number = float(text[:-1]) * factor if factor > 1 else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 100000 or 100M") from None
    if number < 1 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return int(number)


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
    precisions = ("auto", "fp32", "tf32", "bf16", "fp16")
    add("--precision", choices=precisions, default="auto", help="of the matrix products (default: auto)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute (default: auto)")
    add("--batch-tokens", type=_count, metavar="N", help="tokens of a forward pass (default: by device)")
    add("--include", metavar="DIR", help="folder of further task files for lm_eval:NAME")
    parsed = parser.parse_args(arguments)

    from gpt2lab.evaluation import run as evaluation_run

    names = tuple(dict.fromkeys(name.strip() for name in parsed.tasks.split(",") if name.strip()))
    evaluation_run.run(
        evaluation_run.Options(
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


def _sample(arguments: list[str]) -> int:
    parser = _Parser(
        prog="gpt2lab sample",
        description="Continue a prompt with a trained model, as many times as you like; prints as it goes.",
        epilog="""\
gpt2lab sample --model-checkpoint runs/x --prompt "Once" --temperature 0       the likeliest text
gpt2lab sample --model-checkpoint gpt2 --prompt-file start.txt --stop $'\\n'    up to the end of the line
echo "Once upon" | gpt2lab sample --model-checkpoint runs/x --json             for a program
""",
    )
    add = parser.add_argument
    add("--model-checkpoint", required=True, metavar="NAME", help="a run directory, a model's folder, or a Hub id")
    add("--prompt", metavar="TEXT", help="what to continue; - for standard input (default: what is piped in)")
    add("--prompt-file", metavar="FILE", help="read the prompt from a file, in UTF-8")
    add("--num-samples", type=_positive, default=4, metavar="N", help="how many continuations (default: 4)")
    add("--max-new-tokens", type=_positive, default=64, metavar="N", help="of each (default: 64)")
    add("--temperature", type=float, default=1.0, metavar="X", help="0: always the likeliest token (default: 1)")
    add("--top-k", type=_count, default=50, metavar="N", help="draw from the N likeliest tokens; 0: all (default: 50)")
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest that have P together (default: 1)",
    )
    add(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="draw from those with P times the best's chance (default: 0)",
    )
    add(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="make tokens already there less likely (default: 1, not)",
    )
    add("--stop", action="append", default=[], metavar="TEXT", help="end a sample before this text; may be repeated")
    add("--seed", type=int, default=42, metavar="N", help="of the first sample; the next has N + 1 (default: 42)")
    add("--json", action="store_true", help="print one JSON object, and nothing else, to standard output")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute (default: auto)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the matrix products (default: auto)")
    parsed = parser.parse_args(arguments)

    from gpt2lab import sample
    from gpt2lab.generation.sampling import Sampling

    sample.run(
        sample.Options(
            checkpoint=parsed.model_checkpoint,
            prompt=parsed.prompt,
            prompt_file=parsed.prompt_file,
            count=parsed.num_samples,
            max_new_tokens=parsed.max_new_tokens,
            sampling=Sampling(
                temperature=parsed.temperature,
                top_k=parsed.top_k or None,
                top_p=parsed.top_p,
                min_p=parsed.min_p,
                repetition_penalty=parsed.repetition_penalty,
            ),
            stop=parsed.stop,
            seed=parsed.seed,
            as_json=parsed.json,
            device=parsed.device,
            precision=parsed.precision,
        )
    )
    return 0


def _app(arguments: list[str]) -> int:
    parser = _Parser(
        prog="gpt2lab app",
        description="Serve a page on this machine, where a trained and an untrained model continue the same prompt.",
    )
    add = parser.add_argument
    add("--trained", required=True, metavar="NAME", help="a run directory, a model's folder, or a Hub id")
    add(
        "--untrained",
        default="random",
        metavar="NAME",
        help="what to compare with: random (the weights the run began with), or a name as above (default: random)",
    )
    add("--port", type=_port, default=7860, metavar="N", help="the first to try; then the next ones (default: 7860)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute (default: auto)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the matrix products (default: auto)")
    parsed = parser.parse_args(arguments)

    from gpt2lab.app import run as app_run

    app_run.run(app_run.Options(parsed.trained, parsed.untrained, parsed.port, parsed.device, parsed.precision))
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or not 1024 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1024 to 65535")
    return int(text)


def _report(arguments: list[str]) -> int:
    parser = _Parser(
        prog="gpt2lab report",
        description="Write the page of a run, or of several beside each other, and draw their curves as PNGs.",
        epilog="gpt2lab report runs/x                 writes runs/x/report.html\n"
        "gpt2lab report runs/x runs/y          writes runs/compare_x_y.html",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run directory, such as runs/quickstart")
    add("--out", metavar="FILE", help="the page (default: report.html in the run, for several compare_… beside them)")
    add("--price-per-hour", type=_price, metavar="PRICE", help="of all the machines of a run together")
    parsed = parser.parse_args(arguments)

    from pathlib import Path

    from gpt2lab.tracking import report

    out = Path(parsed.out) if parsed.out else None
    written = report.write(*map(Path, parsed.runs), out=out, price_per_hour=parsed.price_per_hour)
    print(f"wrote {', '.join(map(str, written))}")
    return 0


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = -1
    if not 0 <= price < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a price such as 2.50")
    return price


def _export(arguments: list[str]) -> int:
    parser = _Parser(
        prog="gpt2lab export",
        description="Write a model with its tokenizer and a model card as a folder for transformers, vLLM, llama.cpp.",
    )
    add = parser.add_argument
    add("--model-checkpoint", required=True, metavar="NAME", help="a run directory, a model's folder, or a Hub id")
    add("--out", required=True, metavar="DIR", help="a new or empty folder, or an earlier export, which is replaced")
    add("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the weights (default: fp32, as trained)")
    add("--mirror", metavar="DIR", help="folder to take models from instead of the Hub (or $GPT2LAB_MIRROR)")
    parsed = parser.parse_args(arguments)

    from gpt2lab.export import run as export_run

    export_run.export(parsed.model_checkpoint, parsed.out, parsed.dtype, mirror=parsed.mirror)
    return 0


def _settings(arguments: list[str]) -> int:
    parser = _Parser(prog="gpt2lab settings", description="Print every setting with its type, default and meaning.")
    parser.add_argument("--schema", action="store_true", help="as a JSON schema, for completion in an editor")
    parsed = parser.parse_args(arguments)

    from gpt2lab import config

    print(config.json_schema() if parsed.schema else config.reference(), end="")
    return 0

"""Composes an evaluation: from the name of a checkpoint to figures on the screen, in JSON and in the run's directory.

    name ─▶ folder ─▶ model ─┐
    tasks ─▶ files ─▶ requests ─▶ scoring ─▶ figures ─┬─▶ table
    run's config.yaml ─▶ val tokens ─▶ loss ──────────┼─▶ one JSON object
                                                      └─▶ runs/NAME/evaluations/step_NNNNNNNN.json

Everything that can be refused is refused before the model is asked anything.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gpt2lab import config, files
from gpt2lab.data.loader import fixed_sequences
from gpt2lab.data.catalogue import DEFAULT_DIRS
from gpt2lab.data.shards import TokenStream, is_ready, open_split
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation import harness, hellaswag, loss, scoring, table, tasks
from gpt2lab.model import resolve
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.model.resolve import ResolvedCheckpoint
from gpt2lab.system import device as devices
from gpt2lab.system import distributed, precision
from gpt2lab.system.distributed import DistContext

Say = Callable[[str], None]
LM_EVAL = "lm_eval:"


@dataclass(frozen=True)
class Options:
    """What `gpt2lab evaluate` takes."""

    checkpoint: str
    tasks: tuple[str, ...] = ("hellaswag",)
    hellaswag_file: str | None = None
    data_dir: str | None = None
    mirror: str | None = None
    limit: int | None = None
    val_tokens: int | None = None
    as_json: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    batch_tokens: int | None = None
    include: str | None = None


def run(options: Options) -> None:
    """Evaluate as the options say; rank 0 prints.

    Raises:
        GPT2LabError: anything the user can mend.
    """
    with distributed.start(options.device) as dist:
        # With --json all words go to standard error, also those of libraries, and standard output has one object.
        words = contextlib.redirect_stdout(sys.stderr) if options.as_json else contextlib.nullcontext()
        with words:
            result = evaluate(options, dist, say=_say if dist.is_main else lambda text: None)
        if dist.is_main and options.as_json:
            print(json.dumps(result))


def evaluate(options: Options, dist: DistContext, say: Say) -> dict[str, Any]:
    """The JSON object of an evaluation (docs/evaluation.md), after showing it as a table; the same on all ranks."""
    began = time.perf_counter()
    ours = [name for name in options.tasks if not name.startswith(LM_EVAL)]
    theirs = [name.removeprefix(LM_EVAL) for name in options.tasks if name.startswith(LM_EVAL)]
    tasks.check_names(ours)
    if theirs:
        harness.check(theirs, options.include)
    found = dist.on_main(lambda: resolve.find_checkpoint(options.checkpoint, mirror=options.mirror, warn=say))
    settings = _settings(found.run)
    if settings is not None and options.mirror is None:
        options = replace(options, mirror=settings.data.mirror)
    tokenizer = Tokenizer(options.mirror)
    sets = {name: _load(name, options, tokenizer, dist, say) for name in ours}
    val = _validation(options, settings, say)

    if dist.device.type == "cpu":
        devices.keep_freed_memory()
    policy = precision.choose(options.precision, dist.device)
    model = GPT2.from_pretrained(found).to(dist.device).eval()
    say(f"{found.folder}: {model.num_parameters():,} parameters; {dist.device.type}, {policy.name}")
    requests = [list(one.requests) for one in sets.values()]
    scores = scoring.score(
        model,
        [request for part in requests for request in part],
        dist=dist,
        precision=policy,
        batch_tokens=options.batch_tokens,
        greedy="lambada_openai" in sets,
    )
    figures: dict[str, Any] = {}
    for (name, one), part in zip(sets.items(), scores.split([len(part) for part in requests]), strict=True):
        figures[name] = one.as_json(part)
        if lost := int(part.truncated.sum()):
            figures[name]["truncated"] = lost
            say(f"{name}: {lost} of {len(part.loss)} texts are longer than the window and lost their beginning")
    if theirs:
        made = harness.adapter(model, tokenizer, dist=dist, precision=policy, batch_tokens=options.batch_tokens)
        for name, values in harness.run(made, theirs, limit=options.limit, include=options.include).items():
            figures[f"{LM_EVAL}{name}"] = values
    result: dict[str, Any] = {"checkpoint": str(found.folder), "step": found.step, "tasks": figures, "val_loss": None}
    if val is not None:
        result |= _val_loss(model, val, options, settings, tokenizer, dist, policy)
    result |= {"precision": policy.name, "device": dist.device.type, "limit": options.limit}
    result["seconds"] = round(time.perf_counter() - began, 3)
    say(table.render(result))
    if found.run is not None:
        dist.on_main(lambda: _record(found, result, say))
    return result


def _say(text: str) -> None:
    print(text, flush=True)


def _settings(run: Path | None) -> config.Config | None:
    """The settings of a run, from its config.yaml."""
    path = run / "config.yaml" if run else None
    return config.load([path]) if path is not None and path.is_file() else None


def _load(name: str, options: Options, tokenizer: Tokenizer, dist: DistContext, say: Say) -> tasks.Evaluation:
    """A task, read and tokenised. Rank 0 goes first, so that a download and the kept ids are there for the others."""

    def load() -> tasks.Evaluation:
        if name == "hellaswag":
            file = options.hellaswag_file or _file_in(options.data_dir, hellaswag.NAME)
            try:
                data = hellaswag.find(options.mirror, file)
            except GPT2LabError as error:
                raise GPT2LabError(f"{error}. --tasks everyday needs no file") from None
            say(data.describe())
            return hellaswag.Evaluation(data, tokenizer, limit=options.limit, keep=dist.is_main)
        folder = _file_in(options.data_dir, f"eval/{name}.jsonl") or _file_in(options.data_dir, f"{name}.jsonl")
        path = tasks.find(name, options.mirror, folder.parent if folder else None)
        return tasks.load(name, path, tokenizer, limit=options.limit, keep=dist.is_main)

    if dist.world_size == 1:
        return load()
    first: list[tasks.Evaluation] = []
    dist.on_main(lambda: first.append(load()))
    return first[0] if dist.is_main else load()


def _file_in(folder: str | None, name: str) -> Path | None:
    path = Path(folder) / name if folder is not None else None
    return path if path is not None and path.is_file() else None


def _validation(options: Options, settings: config.Config | None, say: Say) -> TokenStream | None:
    """The val split: of --data-dir if it has shards, else what the run was trained on; None where there is none."""
    if options.val_tokens == 0:
        return None
    if options.data_dir is not None and Path(options.data_dir).is_dir() and is_ready(Path(options.data_dir)):
        return open_split(options.data_dir, "val")
    if settings is not None:
        folder = Path(settings.data.dir or DEFAULT_DIRS[settings.data.source])
        if is_ready(folder):
            return open_split(folder, "val")
        say(f"no validation loss: the run's data is not in {folder} (give its folder with --data-dir)")
    return None


def _val_loss(
    model: GPT2,
    val: TokenStream,
    options: Options,
    settings: config.Config | None,
    tokenizer: Tokenizer,
    dist: DistContext,
    policy: precision.Precision,
) -> dict[str, Any]:
    block_size = model.config.block_size
    wanted = options.val_tokens or (settings.train if settings else config.TrainConfig()).eval_tokens
    sequences = fixed_sequences(val, block_size, wanted)
    batch_tokens = options.batch_tokens or scoring.BATCH_TOKENS[dist.device.type] // 4  # the head runs everywhere here
    value = loss.mean_loss(
        model,
        val.gather,
        sequences=sequences,
        block_size=block_size,
        batch_size=max(1, batch_tokens // block_size),
        dist=dist,
        precision=policy,
    )
    tokens = sequences * block_size
    size = loss.target_bytes(tokenizer, val.gather, sequences=sequences, block_size=block_size)
    return {"val_loss": value, "bits_per_byte": loss.bits_per_byte(value, tokens, size), "val_tokens": tokens}


def _record(found: ResolvedCheckpoint, result: dict[str, Any], say: Say) -> None:
    """Keep the figures in the run, one file a step; tasks that the file has of this step stay in it.

    Where that cannot be done it is said and no more: the figures took their time, and still go to the screen.
    """
    assert found.run is not None
    limited = f"_limit_{result['limit']}" if result["limit"] else ""
    path = found.run / "evaluations" / f"step_{found.step or 0:08d}{limited}.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.exists() else {}
        path.parent.mkdir(exist_ok=True)
        with files.atomic_write(path) as temporary:
            temporary.write_text(json.dumps(result | {"tasks": before | result["tasks"]}) + "\n", encoding="utf-8")
        say(f"written to {path}")
    except (OSError, ValueError, KeyError, TypeError) as error:  # a GPT2LabError is a ValueError
        say(f"not kept in the run, {path} cannot be used: {error}")

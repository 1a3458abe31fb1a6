"""The `evaluate` command: from the name of a checkpoint to a table, a JSON object and a file in the run directory.

    name ─▶ folder ─▶ model ─┐
    tasks ─▶ files ─▶ requests ─▶ scoring ─▶ figures ─┬─▶ table
    run's config.yaml ─▶ val tokens ─▶ loss ──────────┼─▶ one JSON object
                                                      └─▶ runs/NAME/evaluations/step_NNNNNNNN.json

All input is checked before the model computes anything.
"""

import contextlib
import functools
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from gpt2lab import config, files, logs, packages, progress
from gpt2lab.data import catalogue, shard_folders
from gpt2lab.data.loader import fixed_sequences
from gpt2lab.data.shards import PREPARING, TokenStream, is_ready, open_split
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation import core, core_bundle, hellaswag, loss, names, scoring, table, tasks
from gpt2lab.evaluation.names import LM_EVAL
from gpt2lab.model import pretrained, resolve
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.model.resolve import ResolvedCheckpoint
from gpt2lab.options import EvaluateOptions
from gpt2lab.system import distributed
from gpt2lab.system import precision as precisions
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision

logger = logging.getLogger(__name__)
T = TypeVar("T")
Evaluation = hellaswag.Evaluation | tasks.Evaluation | core_bundle.Bundle


def run(options: EvaluateOptions) -> None:
    """Evaluate a checkpoint and print the result on rank 0.

    Args:
        options: of the command.

    Raises:
        GPT2LabError: the input cannot be used; or a task was not scored, or the result not written to the run
            directory, after it was printed.
    """
    _check_data_dir(options.data_dir)
    with distributed.start(options.device) as dist:
        # With --json, messages go to standard error, also those of libraries; standard output has one object.
        redirect = contextlib.redirect_stdout(sys.stderr) if options.as_json else contextlib.nullcontext()
        with redirect:
            checkpoint, result = evaluate(options, dist)
        try:
            if dist.is_main:
                with redirect:
                    logs.print_result(table.render(result))
                if options.as_json:
                    logs.print_result(json.dumps(result))
        finally:
            elsewhere = "keep what was printed" if options.as_json else "save what gpt2lab evaluate --json prints"
            dist.on_main(lambda: _write(checkpoint, result, elsewhere))
        if result["not_scored"]:
            raise GPT2LabError(f"not scored: {', '.join(result['not_scored'])} (see the reason above)")


def evaluate(options: EvaluateOptions, dist: DistContext) -> tuple[ResolvedCheckpoint, dict[str, Any]]:
    """Evaluate a checkpoint.

    Args:
        options: of the command.
        dist: the ranks that share the work.

    Returns:
        The checkpoint, and the JSON object of docs/evaluation.md, the same on all ranks.

    Raises:
        GPT2LabError: the input cannot be used.
    """
    began = time.perf_counter()
    own_tasks = [name for name in options.tasks if not name.startswith(LM_EVAL)]
    harness_tasks = [name.removeprefix(LM_EVAL) for name in options.tasks if name.startswith(LM_EVAL)]
    names.check(own_tasks)
    harness = _import_harness(harness_tasks, options.include) if harness_tasks else None
    checkpoint = dist.on_main(lambda: resolve.find_checkpoint(options.checkpoint, mirror=options.mirror))
    run = checkpoint.run
    settings = config.find_run_settings(run, "there is no validation loss without --data-dir") if run else None
    if settings is not None and options.mirror is None:
        options = replace(options, mirror=settings.data.mirror)
    tokenizer = Tokenizer(options.mirror)
    evaluations, not_scored = _load_all(tokenizer, own_tasks, options, dist, only_these=not harness_tasks)
    val_data = _open_validation_data(options, settings)

    precision = precisions.choose(options.precision, dist.device)
    with progress.Phase("loading the model", announce=True):
        model = pretrained.from_pretrained(checkpoint).to(dist.device).eval()
    sequences = _count_sequences(options, settings, val_data, model.config.block_size)
    logger.info(f"{checkpoint.folder}: {model.num_parameters():,} parameters; {dist.device.type}, {precision.name}")
    batch_tokens = options.batch_tokens
    figures = {
        name: _score(model, tokenizer, name, task, batch_tokens, dist, precision) for name, task in evaluations.items()
    }
    if harness:
        adapter = harness.Adapter(model, tokenizer, batch_tokens=batch_tokens, dist=dist, precision=precision)
        for name in harness_tasks:
            try:
                results = harness.run(adapter, [name], limit=options.limit, include=options.include)
                figures |= {f"{LM_EVAL}{task}": values for task, values in results.items()}
            except GPT2LabError as error:
                not_scored[f"{LM_EVAL}{name}"] = str(error)
                logger.warning(f"{LM_EVAL}{name} is not scored: {error}")
    if not_scored and not figures:
        raise GPT2LabError(next(iter(not_scored.values())))
    result: dict[str, Any] = {"checkpoint": str(checkpoint.folder), "step": checkpoint.step, "tasks": figures}
    result |= {"not_scored": not_scored, "val_loss": None}
    if val_data is not None:
        result |= _measure_loss(model, tokenizer, val_data, sequences, batch_tokens, dist, precision)
    result |= {"precision": precision.name, "device": dist.device.type, "limit": options.limit}
    result["seconds"] = round(time.perf_counter() - began, 3)
    return checkpoint, result


def _import_harness(names: Sequence[str], include: str | None) -> Any:
    """The module `harness`, after it has checked the names of its tasks."""
    packages.require("lm_eval", "a task lm_eval:NAME", "eval")
    try:
        from gpt2lab.evaluation import harness
    except ImportError as error:
        command = packages.format_install_command("lm_eval", "eval")
        raise GPT2LabError(f"lm-evaluation-harness cannot be imported ({error}): {command}") from None
    harness.check(names, include)
    return harness


class _NotAvailableError(GPT2LabError):
    """The file of a task can be neither found nor downloaded."""


@progress.show_as("reading the tasks", announce=True)
def _load_all(
    tokenizer: Tokenizer, names: Sequence[str], options: EvaluateOptions, dist: DistContext, *, only_these: bool
) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """The tasks that are available, and by name the reason why another one is not; raises it if none of them is."""
    evaluations: dict[str, Evaluation] = {}
    not_available: dict[str, str] = {}
    for name in names:
        try:
            evaluations[name] = _load(tokenizer, name, options, dist)
        except _NotAvailableError as error:
            not_available[name] = str(error)
    if only_these and not_available and not evaluations:
        raise GPT2LabError(next(iter(not_available.values())))
    for name, reason in not_available.items():
        logger.warning(f"{name} is not scored: {reason}")
    return evaluations, not_available


def _load(tokenizer: Tokenizer, name: str, options: EvaluateOptions, dist: DistContext) -> Evaluation:
    """Read a task, and tokenize it unless it is CORE."""
    if name == "core":
        find_bundle = functools.partial(core_bundle.find, options.mirror, options.data_dir)
        _find(find_bundle, dist, is_named=False)
        bundle = core_bundle.load(find_bundle(), limit=options.limit)
        logger.info(bundle.describe())
        return bundle
    if name == "hellaswag":
        find_data = functools.partial(hellaswag.find, options.mirror, options.hellaswag_file, options.data_dir)
        data = _find(find_data, dist, is_named=options.hellaswag_file is not None)
        logger.info(data.describe())
        return hellaswag.Evaluation(tokenizer, data, limit=options.limit)
    find = functools.partial(tasks.find, name, options.mirror, options.data_dir)
    _find(find, dist, is_named=False)  # downloads the file before the other ranks look for it
    return tasks.load(tokenizer, name, find(), limit=options.limit)


def _find(find: Callable[[], T], dist: DistContext, *, is_named: bool) -> T:
    """Call `find` on rank 0. What is missing is an error of the user if it is named by an option."""
    try:
        return dist.on_main(find)
    except GPT2LabError as error:
        if is_named:
            raise
        raise _NotAvailableError(str(error)) from None


def _score(
    model: LanguageModel,
    tokenizer: Tokenizer,
    name: str,
    task: Evaluation,
    batch_tokens: int | None,
    dist: DistContext,
    precision: Precision,
) -> dict[str, Any]:
    """The figures of a task, by JSON key."""
    if isinstance(task, core_bundle.Bundle):
        return core.measure(model, tokenizer, task, batch_tokens=batch_tokens, dist=dist, precision=precision)
    greedy = name == "lambada_openai"
    scores = scoring.score(
        model, task.requests, batch_tokens=batch_tokens, greedy=greedy, dist=dist, precision=precision, name=name
    )
    figures = task.as_json(scores)
    if truncated := int(scores.truncated.sum()):
        figures["truncated"] = truncated
        logger.info(f"{name}: {truncated} of {len(scores.loss)} texts are longer than the context window and were cut")
    return figures


def _check_data_dir(name: str | None) -> None:
    """Check that --data-dir holds shards or the files of a task: else the run's data would be measured in its place."""
    if name is None:
        return
    folder = Path(name)
    files.require_folder(folder, "--data-dir")
    if (folder / PREPARING).exists() and not is_ready(folder):
        raise GPT2LabError(f"--data-dir {name} is incomplete; run the same prepare command again, or name another")
    found = [core_bundle.find_in(folder), *(tasks.find_in(folder, task) for task in names.TASKS)]
    if not (is_ready(folder) or (folder / hellaswag.NAME).is_file() or any(found)):
        raise GPT2LabError(f"--data-dir {name} holds no shards and no task files{shard_folders.suggest_below(folder)}")


def _open_validation_data(options: EvaluateOptions, settings: config.Config | None) -> TokenStream | None:
    """The val split of --data-dir if it has shards, else of the run's data; None if there is none."""
    if options.val_tokens == 0:
        return None
    if options.data_dir is not None and is_ready(Path(options.data_dir)):
        return open_split(options.data_dir, "val")
    if settings is not None:
        folder = catalogue.data_folder(settings.data)
        if is_ready(folder):
            return open_split(folder, "val")
        logger.info(f"no validation loss: {folder} does not have the run's data; name its folder with --data-dir")
    return None


def _count_sequences(
    options: EvaluateOptions, settings: config.Config | None, data: TokenStream | None, block_size: int
) -> int:
    """The sequences of the validation loss, so that too few tokens are an error before the tasks are scored."""
    if data is None:
        return 0
    tokens = options.val_tokens or (settings.train if settings else config.TrainConfig()).eval_tokens
    return fixed_sequences(data, block_size, tokens, "--val-tokens")


def _measure_loss(
    model: LanguageModel,
    tokenizer: Tokenizer,
    data: TokenStream,
    sequences: int,
    batch_tokens: int | None,
    dist: DistContext,
    precision: Precision,
) -> dict[str, Any]:
    """Validation loss and bits per byte over the first sequences of a split, by JSON key."""
    block_size = model.config.block_size
    # Fewer than when scoring, because here the head runs at all positions.
    batch_tokens = batch_tokens or max(512, scoring.BATCH_TOKENS[dist.device.type] // 4)
    batch_size = max(1, batch_tokens // block_size)
    text_bytes = loss.target_bytes(tokenizer, data.gather, sequences, block_size)
    value, bits = loss.validation_loss(model, data, text_bytes, sequences, batch_size, dist, precision)
    return {"val_loss": value, "bits_per_byte": bits, "val_tokens": sequences * block_size}


def _write(checkpoint: ResolvedCheckpoint, result: dict[str, Any], elsewhere: str) -> None:
    """Write the result to the run directory, if there is one: a file per step; other tasks in the file are kept.

    `elsewhere` is what the user can do instead, for the error.
    """
    if checkpoint.run is None:
        return
    limit = f"_limit_{result['limit']}" if result["limit"] else ""
    path = checkpoint.run / "evaluations" / f"step_{checkpoint.step or 0:08d}{limit}.json"
    try:
        previous = json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.exists() else {}
        content = json.dumps(result | {"tasks": previous | result["tasks"]}) + "\n"
    except OSError as error:
        raise files.cannot_read(path, error) from error
    except (ValueError, KeyError, TypeError):
        raise GPT2LabError(f"the result is not in {path}, which is damaged; remove it, or {elsewhere}") from None
    with files.atomic_write(path, elsewhere=elsewhere) as temporary:
        temporary.write_text(content, encoding="utf-8")
    logger.info(f"written to {path}")

"""Composes a run: the one place where settings become objects and meet each other.

    Config ─▶ ranks, device ─▶ data ─▶ run directory (lock, checkpoint) ─▶ model, optimizer
           ─▶ evaluators, sinks ─▶ Trainer

Everything that can be refused is refused before the first step.
"""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Generator
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpt2lab import files
from gpt2lab.config import BatchPlan, Config
from gpt2lab.data import prepare
from gpt2lab.data.loader import Loader, fixed_sequences, prefetch
from gpt2lab.data.shards import TokenStream, is_ready, open_split, read_manifest
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation import hellaswag, loss, samples, scoring
from gpt2lab.model import flops
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.system import device as devices
from gpt2lab.system import distributed, precision
from gpt2lab.system.distributed import DistContext
from gpt2lab.tracking import report, trackers
from gpt2lab.tracking.metrics import Console, JsonLines, Sink
from gpt2lab.tracking.trackers import Trackers
from gpt2lab.training import checkpoint, optimizer, run_directory
from gpt2lab.training.run_directory import RunDirectory
from gpt2lab.training.schedule import learning_rate
from gpt2lab.training.trainer import Evaluator, Measure, Trainer

Say = Callable[[str], None]


def run(config: Config) -> None:
    """Train as the settings say, from the beginning or from where the run stopped.

    Raises:
        GPT2LabError: anything the user can mend.
    """
    began = time.perf_counter()
    with distributed.start(config.system.device) as dist, contextlib.ExitStack() as stack:
        say: Say = (lambda text: print(text, flush=True)) if dist.is_main else (lambda text: None)
        if dist.device.type == "cpu":
            devices.keep_freed_memory()
        plan = config.batch_plan(dist.world_size, devices.micro_batch_tokens(dist.device))
        train_data, val_data = _open_data(config, dist, say)
        loader = Loader(
            train_data,
            block_size=config.model.block_size,
            sequences_per_step=plan.sequences,
            vocab_size=config.model.vocab_size,
            seed=config.run.seed,
            rank=dist.rank,
            world_size=dist.world_size,
        )
        policy = precision.choose(config.system.precision, dist.device)
        directory = RunDirectory(config)
        if not dist.on_main(directory.metrics.exists):  # a run that is under way is not ended by a missing tracker
            dist.on_main(lambda: trackers.check_installed(config.tracking))
        possible: list[tuple[str, int, Callable[[], Measure]]] = [
            ("val", config.train.eval_every, lambda: _val_loss(config, val_data, plan, policy, dist)),
            ("hellaswag", config.train.hellaswag_every, lambda: _hellaswag(config, policy, dist, say)),
            ("sample", config.train.sample_every, lambda: _sampler(config, directory, dist)),
        ]
        evaluators = [Evaluator(name, every, make()) for name, every, make in possible if every]

        dist.on_main(lambda: _enter(stack, directory))
        start = dist.on_main(lambda: directory.starting_point(config.run.resume, say))
        data_digest = f"{train_data.fingerprint} {val_data.fingerprint}"
        if start is not None:
            run_directory.check_match(start, config, data_digest, say)
            if start.step >= config.train.max_steps:
                say(
                    f"{directory.path} is finished: step {start.step} of {config.train.max_steps}. "
                    "To train on, raise --train.max_steps; to train anew, give another --run.name."
                )
                return
        model, adamw = _build(config, dist)
        if start is not None:
            start.restore(model, adamw)
        first_step = start.step if start else 0
        _introduce(config, plan, model, train_data, policy.name, dist, first_step, say)
        facts = {"parameters": model.num_parameters(), "data": _describe(train_data, val_data)}
        dist.on_main(lambda: directory.prepare(config, start, dist, facts))

        sinks = _sinks(config, directory, first_step, say) if dist.is_main else []
        for sink in sinks:
            stack.callback(sink.close)

        def save(step: int) -> None:
            files.sync(directory.metrics)  # a step's record is on disk before the checkpoint that goes on from it
            fingerprint = run_directory.fingerprint(config, data_digest)
            checkpoint.write(directory.checkpoints, step, model, adamw, fingerprint)
            checkpoint.prune(directory.checkpoints, step, config.checkpoint.keep_last, config.checkpoint.keep_every)
            try:
                report.write(directory.path)
            except Exception as error:  # whatever a plot may stumble over, training is not ended by it
                say(f"warning: no report this time: {error}")

        trainer = Trainer(
            model=_as_it_trains(model, config, dist),
            plain_model=model,
            optimizer=adamw,
            learning_rate=lambda step: learning_rate(step, config.train.max_steps, config.optimizer),
            grad_clip=config.optimizer.grad_clip,
            tokens_per_step=config.train.total_batch_size,
            flops_per_token=flops.flops_per_token(config.model),
            evaluators=evaluators,
            save=lambda step: dist.on_main(lambda: save(step)),
            save_every=config.checkpoint.every,
            sinks=sinks,
            dist=dist,
            precision=policy,
        )
        batches = _batches(loader, plan, dist, first_step, config.train.max_steps, config.train.overfit_batch)
        stack.callback(batches.close)
        try:
            trainer.run(batches, first_step, config.train.max_steps)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(directory.what_is_kept()) from None
        except torch.OutOfMemoryError as error:
            raise GPT2LabError(
                f"out of memory on {dist.device}: lower train.micro_batch_size (now {plan.micro_batch_size})"
            ) from error
        say(
            f"done in {time.perf_counter() - began:.0f} s. Open {directory.path}/report.html in a browser; "
            f"gpt2lab sample --model-checkpoint {directory.path} continues a prompt."
        )


def _describe(train_data: TokenStream, val_data: TokenStream) -> dict[str, Any]:
    """Which text a run sees, for environment.json. The source is what the manifest says, null without one."""
    manifest = read_manifest(train_data.folder)
    return {
        "folder": str(train_data.folder),
        "source": manifest.source if manifest else None,
        "train_tokens": len(train_data),
        "val_tokens": len(val_data),
    }


def _enter(stack: contextlib.ExitStack, directory: RunDirectory) -> None:
    stack.enter_context(directory.lock)


def _build(config: Config, dist: DistContext) -> tuple[GPT2, torch.optim.AdamW]:
    """The model with its first weights, which `run.seed` fixes, and its optimizer."""
    torch.manual_seed(config.run.seed)
    try:
        model = GPT2(config.model).to(dist.device)
    except RuntimeError as error:  # also torch's OutOfMemoryError; torch has no type of its own for the CPU's
        gib = 4 * flops.parameters(config.model) / 2**30
        raise GPT2LabError(
            f"cannot make the model: its weights alone take {gib:,.1f} GiB ({error}); lower model.size or model.n_embd"
        ) from error
    return model, optimizer.build(model, config.optimizer)


def _open_data(config: Config, dist: DistContext, say: Say) -> tuple[TokenStream, TokenStream]:
    """The train and val streams; `stdlib` is made first where it is missing."""
    folder = Path(config.data.dir or prepare.DEFAULT_DIRS[config.data.source])

    def make() -> None:
        if not is_ready(folder):  # shards that lie there are used, whoever made them
            made = prepare.prepare(config.data.source, folder, mirror=config.data.mirror)
            say(f"prepared {folder}: {made.documents:,} documents, {made.tokens:,} tokens in {made.seconds:.1f} s")

    dist.on_main(make)
    return open_split(folder, "train"), open_split(folder, "val")


def _introduce(
    config: Config,
    plan: BatchPlan,
    model: GPT2,
    data: TokenStream,
    precision_name: str,
    dist: DistContext,
    first_step: int,
    say: Say,
) -> None:
    """Say what is about to run, with every derived number."""
    arch, steps, total = config.model, config.train.max_steps, config.train.total_batch_size
    if config.optimizer.warmup_steps > steps:
        say(
            f"warning: optimizer.warmup_steps {config.optimizer.warmup_steps} is beyond train.max_steps {steps}: "
            "the learning rate never reaches optimizer.max_lr"
        )
    say(
        f"model: {model.num_parameters():,} parameters (n_layer {arch.n_layer}, n_head {arch.n_head}, "
        f"n_embd {arch.n_embd}, block_size {arch.block_size}, vocab_size {arch.vocab_size})"
    )
    say(
        f"step: {total:,} tokens = {plan.sequences} sequences of {arch.block_size} = {dist.world_size} ranks "
        f"x {plan.grad_accum_steps} micro-steps x {plan.micro_batch_size}; {dist.device.type}, {precision_name}"
    )
    source = _describe(data, data)["source"]
    if source is not None and not source.startswith(config.data.source):
        say(f"note: {data.folder} holds {source}, whatever data.source ({config.data.source}) says")
    tokens = steps * total
    say(f"run: {steps:,} steps, {tokens:,} tokens, {tokens / len(data):.2f} epochs of {len(data):,} tokens")
    if first_step:
        say(f"resuming after step {first_step}")


def _as_it_trains(model: GPT2, config: Config, dist: DistContext) -> nn.Module:
    """Wrapped for the ranks, and compiled where that was asked for or pays."""
    trained = dist.wrap(model)
    pays = dist.device.type == "cuda" and importlib.util.find_spec("triton") is not None
    if config.system.compile == "on" or (config.system.compile == "auto" and pays):
        trained = torch.compile(trained)  # type: ignore[assignment]
    return trained


def _sinks(config: Config, directory: RunDirectory, first_step: int, say: Say) -> list[Sink]:
    console = Console(config.train.max_steps, first_step, config.tracking.log_every, terminal=sys.stdout.isatty())
    return [JsonLines(directory.metrics), console, Trackers(config.tracking, directory.path, first_step, say)]


def _val_loss(
    config: Config, data: TokenStream, plan: BatchPlan, policy: precision.Precision, dist: DistContext
) -> Measure:
    """An evaluator: loss over the first `train.eval_tokens` of val."""
    block_size = config.model.block_size
    sequences = fixed_sequences(data, block_size, config.train.eval_tokens)
    tokenizer = Tokenizer(config.data.mirror)
    size = loss.target_bytes(tokenizer, data.gather, sequences=sequences, block_size=block_size)

    def measure(plain: nn.Module, step: int) -> dict[str, float]:
        value = loss.mean_loss(
            plain,
            data.gather,
            sequences=sequences,
            block_size=block_size,
            batch_size=plan.micro_batch_size,
            dist=dist,
            precision=policy,
        )
        return {"val/loss": value, "val/bits_per_byte": loss.bits_per_byte(value, sequences * block_size, size)}

    return measure


def _hellaswag(config: Config, policy: precision.Precision, dist: DistContext, say: Say) -> Measure:
    """An evaluator: HellaSwag in both conventions, the items shared among the ranks. The file is found here and now."""
    data = dist.on_main(lambda: hellaswag.find(config.data.mirror))
    say(data.describe())
    tokenizer = Tokenizer(config.data.mirror)
    task = hellaswag.Evaluation(data, tokenizer, limit=config.train.hellaswag_limit, keep=dist.is_main)
    hellaswag.check_fits(task.requests, config.model.vocab_size)

    def measure(plain: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(plain, GPT2)
        began = time.perf_counter()
        scores = scoring.score(plain, task.requests, dist=dist, precision=policy)
        figures = task.as_json(scores)
        seconds = time.perf_counter() - began
        lost = f", {lost} texts beyond the window cut on the left" if (lost := int(scores.truncated.sum())) else ""
        say(f"{hellaswag.result_line(figures)} in {seconds:.1f} s{lost}")
        return hellaswag.metrics(figures) | {"perf/hellaswag_seconds": seconds}

    return measure


def _sampler(config: Config, directory: RunDirectory, dist: DistContext) -> Measure:
    """An evaluator that prints text and keeps it in samples.jsonl; rank 0 alone does."""
    settings = config.train
    tokenizer = Tokenizer(config.data.mirror)
    if max(tokenizer.encode(settings.sample_prompt)) >= config.model.vocab_size:
        raise GPT2LabError(
            "train.sample_prompt has tokens beyond model.vocab_size; use another or set train.sample_every 0"
        )

    def sample(plain: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(plain, GPT2)
        if not dist.is_main:
            return {}
        drawn = samples.draw(
            plain,
            tokenizer,
            settings.sample_prompt,
            count=settings.sample_count,
            max_new_tokens=settings.sample_tokens,
            top_k=settings.sample_top_k,
            seed=config.run.seed,
        )
        file = JsonLines(directory.samples)
        for one in drawn:
            print(f"sample {one.seed - config.run.seed + 1} at step {step}: {one.text!r}", flush=True)
            file.write({"step": step, **one._asdict()})
        file.close()
        return {}

    return sample


def _batches(
    loader: Loader, plan: BatchPlan, dist: DistContext, first_step: int, stop: int, overfit: bool
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """(x, y) a step, int64 (grad_accum_steps, micro_batch_size, T) on the device, read while the last step computes."""

    def on_host(tokens: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(tokens).view(plan.grad_accum_steps, plan.micro_batch_size, -1)
        return tensor.pin_memory() if dist.device.type == "cuda" else tensor

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = loader.batch(step)
        return on_host(x), on_host(y)

    for x, y in repeat(batch(0)) if overfit else prefetch(batch, first_step, stop):
        yield x.to(dist.device, non_blocking=True), y.to(dist.device, non_blocking=True)

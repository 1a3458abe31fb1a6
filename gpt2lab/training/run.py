"""Composes a run: the one place where settings become objects and meet each other.

    Config ─▶ ranks, device ─▶ data ─▶ run directory (lock, checkpoint) ─▶ model, optimizer
           ─▶ evaluators, sinks ─▶ Trainer

Everything that can be refused is refused before the first step.
"""

import contextlib
import gc
import importlib.util
import random
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpt2lab.config import BatchPlan, Config
from gpt2lab.data import prepare
from gpt2lab.data.loader import Loader, fixed_sequences, prefetch
from gpt2lab.data.shards import TokenStream, is_ready, open_split, read_manifest
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError, Stopped
from gpt2lab.evaluation import hellaswag, loss, samples, scoring
from gpt2lab.model import flops
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.system import attention, distributed, precision
from gpt2lab.system import device as devices
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.signals import StopSignals
from gpt2lab.tracking import trackers
from gpt2lab.tracking.metrics import Console, JsonLines, Sink
from gpt2lab.tracking.trackers import Trackers
from gpt2lab.training import checkpoint, memory, optimizer, run_directory
from gpt2lab.training.guard import Guard, GuardError
from gpt2lab.training.run_directory import RunDirectory
from gpt2lab.training.saver import Saver
from gpt2lab.training.schedule import learning_rate
from gpt2lab.training.trainer import Evaluator, Measure, Trainer

Say = Callable[[str], None]


def run(config: Config, watch: Sequence[Sink] = ()) -> None:
    """Train as the settings say, from the beginning or from where the run stopped.

    Args:
        watch: further sinks, on rank 0.

    Raises:
        GPT2LabError: anything the user can mend.
    """
    began = time.perf_counter()
    timeouts = {"start_timeout": config.system.start_timeout, "timeout": config.system.timeout}
    with distributed.start(config.system.device, **timeouts) as dist, contextlib.ExitStack() as stack:
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
        changed: dict[str, str] = {}
        if start is not None:
            changed = run_directory.changes(start, config, data_digest)
            if start.step >= config.train.max_steps:
                say(
                    f"{directory.path} is finished: step {start.step} of {config.train.max_steps}. "
                    "To train on, raise --train.max_steps; to train anew, give another --run.name."
                )
                return
            for name, what in changed.items():
                say(f"note: from step {start.step} on {name} is {what} (another --run.name would train anew)")
        model, adamw = _build(config, dist, start)
        kernels = _attention_kernels(config, plan, policy, dist, stack)
        trained, wrap, plan = _as_it_trains(model, config, plan, policy, dist, say)
        first_step = start.step if start else 0
        _introduce(config, plan, model, train_data, policy.name, dist, first_step, say)
        facts = {"parameters": flops.parameters(config.model), "data": _describe(train_data, val_data)}
        if kernels:
            facts["attention_seconds"] = kernels
            say(f"attention: {', '.join(f'{name} {1e3 * each:.2f} ms' for name, each in kernels.items())} a layer")
        dist.on_main(lambda: directory.prepare(config, start, dist, facts))

        events = _Events(directory, loader, dist, say)
        sinks = [*_sinks(config, directory, start, say), *watch] if dist.is_main else []
        for sink in sinks:
            stack.callback(sink.close)
        if start is not None:
            where = {"checkpoint": str(start.path), "world_size": dist.world_size}
            events.note(first_step, "resumed", where | changed)
        saver = Saver(
            directory,
            config.checkpoint,
            model,
            adamw,
            dist,
            sharded=config.system.shard,
            fingerprint=run_directory.fingerprint(config, data_digest),
            say=say,
        )
        stack.callback(saver.close)
        signals = stack.enter_context(StopSignals())
        trainer = Trainer(
            model=trained,
            wrap=wrap,
            sharded=config.system.shard and dist.world_size > 1,
            plain=lambda: _plain(model, config, dist),
            optimizer=adamw,
            learning_rate=lambda step: learning_rate(step, config.train.max_steps, config.optimizer),
            grad_clip=config.optimizer.grad_clip,
            tokens_per_step=config.train.total_batch_size,
            flops_per_token=flops.flops_per_token(config.model),
            micro_batch_size=plan.micro_batch_size,
            evaluators=evaluators,
            save=saver.save,
            save_every=config.checkpoint.every,
            asked_to_stop=lambda: _WRITE_FAILED if saver.failed else signals.received,
            event=events.note,
            sinks=sinks,
            dist=dist,
            precision=policy,
            guard=Guard(config.guard),
        )
        del trained  # the trainer's alone: if memory runs out it must be able to let go of it
        if start is not None:
            trainer.load(start.state)
        batches = _batches(loader, dist, first_step, config.train.max_steps, config.train.overfit_batch)
        stack.callback(batches.close)
        gc.collect()
        gc.freeze()  # what there is by now stays: garbage collection in a step looks at the step's own objects alone
        stack.callback(gc.unfreeze)
        with _in_plain_words(trainer, saver, directory, dist):
            stopped_by = trainer.run(batches, first_step, config.train.max_steps)
            saver.wait()
        saver.report()
        if stopped_by:
            raise Stopped(stopped_by, f"stopped by {signal.Signals(stopped_by).name}: {directory.what_is_kept()}")
        say(
            f"done in {time.perf_counter() - began:.0f} s. Open {directory.path}/report.html in a browser; "
            f"gpt2lab sample --model-checkpoint {directory.path} continues a prompt."
        )


_WRITE_FAILED = 255  # beyond every signal's number


@contextlib.contextmanager
def _in_plain_words(
    trainer: Trainer, saver: Saver, directory: RunDirectory, dist: DistContext
) -> Generator[None, None, None]:
    """Whatever ends a run before its time, said in one line that names what is kept."""
    try:
        yield
    except GuardError as error:
        saver.wait()
        raise GPT2LabError(f"{error}; {directory.what_is_kept()}") from error
    except torch.OutOfMemoryError as error:
        raise GPT2LabError(
            f"out of memory on {dist.device}: lower train.micro_batch_size (now {trainer.micro_batch_size})"
        ) from error
    except RuntimeError as error:
        if dist.heartbeat is not None:
            dist.heartbeat.explain(error)  # here, where torchrun's SIGTERM does not yet end this process
        raise


class _Events:
    """What happened to a run beside its steps, in `events.jsonl` and on the screen. Every rank may call it."""

    def __init__(self, directory: RunDirectory, loader: Loader, dist: DistContext, say: Say):
        self._path = directory.events if dist.is_main else None
        self._loader, self._say = loader, say

    def note(self, step: int, event: str, details: dict[str, Any]) -> None:
        """One line; with the sequences of the step, where it was skipped."""
        if self._path is None:
            return
        if event == "skipped":
            details = details | {"sequences": self._loader.sequence_ids(step - 1).tolist()}
        if event != "resumed":
            shown = ", ".join(f"{key} {value}" for key, value in details.items() if key != "sequences")
            self._say(f"step {step:5d} | {event}: {shown}")
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        file = JsonLines(self._path)  # opened each time: most runs have no events, and need no file
        file.write({"step": step, "time": now, "event": event, **details})
        file.close()


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


def _build(config: Config, dist: DistContext, start: checkpoint.Checkpoint | None) -> tuple[GPT2, torch.optim.AdamW]:
    """The model with its first weights, which `run.seed` fixes, or those of a checkpoint; and its optimizer."""
    torch.manual_seed(config.run.seed)
    random.seed(config.run.seed)
    np.random.seed(config.run.seed % 2**32)
    try:
        model = GPT2(config.model)
        model.transformer.activation_checkpointing = config.system.activation_checkpointing
        if start is not None:
            start.restore_weights(model)
        if config.system.shard and dist.world_size > 1:
            dist.shard(model, model.transformer.h)  # a block at a time goes to the card, all of it might not fit
        model.to(dist.device)
    except RuntimeError as error:  # also torch's OutOfMemoryError; torch has no type of its own for the CPU's
        gib = 4 * flops.parameters(config.model) / 2**30
        raise GPT2LabError(
            f"cannot make the model: its weights alone take {gib:,.1f} GiB ({error}); lower model.size or model.n_embd"
        ) from error
    adamw = optimizer.build(model, config.optimizer)
    if start is not None:
        start.restore_optimizer(model, adamw)
    return model, adamw


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
        f"step: {total:,} tokens = {plan.sequences} sequences of {arch.block_size} = "
        f"{dist.world_size} rank{'s' * (dist.world_size > 1)} x {plan.grad_accum_steps} micro-steps x "
        f"{plan.micro_batch_size}; {dist.device.type}, {precision_name}"
    )
    source = _describe(data, data)["source"]
    if source is not None and not source.startswith(config.data.source):
        say(f"note: {data.folder} holds {source}, whatever data.source ({config.data.source}) says")
    tokens = steps * total
    say(f"run: {steps:,} steps, {tokens:,} tokens, {tokens / len(data):.2f} epochs of {len(data):,} tokens")
    if first_step:
        say(f"resuming after step {first_step}")


def _attention_kernels(
    config: Config, plan: BatchPlan, policy: precision.Precision, dist: DistContext, stack: contextlib.ExitStack
) -> dict[str, float]:
    """On CUDA: seconds of each attention kernel; for as long as `stack` lasts all ranks take the fastest."""
    if dist.device.type != "cuda":
        return {}
    arch, sequences = config.model, min(plan.micro_batch_size, 16)  # enough to fill a card
    shape = (sequences, arch.n_head, arch.block_size, arch.n_embd // arch.n_head)
    found = dist.on_main(lambda: attention.measure(shape, policy.dtype, dist.device))
    stack.enter_context(attention.preferring(list(found)))
    return found


def _as_it_trains(
    model: GPT2, config: Config, plan: BatchPlan, policy: precision.Precision, dist: DistContext, say: Say
) -> tuple[nn.Module, Callable[[], nn.Module], BatchPlan]:
    """The model wrapped and compiled for training, how to make that anew, and a micro batch that fits the card."""
    sharded = config.system.shard and dist.world_size > 1
    share, size = plan.sequences // dist.world_size, plan.micro_batch_size
    # Beside a micro-step: AdamW's two moments, and the buckets in which gradients cross ranks.
    reserve = (8 + 4 * (dist.world_size > 1)) * flops.parameters(config.model) if dist.device.type == "cuda" else 0

    def micro_step_of(module: nn.Module) -> Callable[[int], None]:
        return lambda size: memory.micro_step(module, size, config.model.block_size, dist, policy)

    if dist.device.type == "cuda" and not sharded:  # sharded, a rank cannot try anything alone
        if config.train.micro_batch_size == "auto":
            size = memory.estimate(micro_step_of(model), share, reserve, dist)
        size = memory.fitting(micro_step_of(model), size, share, reserve, dist, say)
    wrap: Callable[[], nn.Module] = (lambda: model) if sharded else (lambda: dist.wrap(model))
    trained = wrap()
    pays = dist.device.type == "cuda" and importlib.util.find_spec("triton") is not None
    if config.system.compile == "on" or (config.system.compile == "auto" and pays):
        compiled: Any = torch.compile(trained)
        try:
            size = memory.fitting(micro_step_of(compiled), size, share, reserve, dist, say)
            eager, trained = wrap, compiled
            wrap = lambda: torch.compile(eager())  # type: ignore[assignment, return-value]  # noqa: E731
        except memory.Broken as error:
            say(f"torch.compile does not work here, so training goes on without it ({error})")
    return trained, wrap, plan._replace(micro_batch_size=size, grad_accum_steps=share // size)


@contextlib.contextmanager
def _plain(model: GPT2, config: Config, dist: DistContext) -> Generator[nn.Module, None, None]:
    """The weights as an ordinary model, whatever wraps them in training; a sharded one is put together for the while.

    Evaluations deal out their work unevenly, and so could not run on a model whose every layer all ranks must enter.
    """
    if not (config.system.shard and dist.world_size > 1):
        yield model
        return
    with torch.device("meta"):
        copy = GPT2(config.model)
    weights = {name: distributed.full_tensor(tensor.detach()) for name, tensor in model.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    copy._tie()
    yield copy


def _sinks(config: Config, directory: RunDirectory, start: checkpoint.Checkpoint | None, say: Say) -> list[Sink]:
    first_step, recorded = (start.step, start.recorded) if start else (0, None)
    console = Console(config.train.max_steps, first_step, config.tracking.log_every, terminal=sys.stdout.isatty())
    return [JsonLines(directory.metrics), console, Trackers(config.tracking, directory.path, recorded, say)]


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
            batch_size=min(plan.micro_batch_size, max(1, devices.micro_batch_tokens(dist.device) // block_size)),
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
        try:
            scores = scoring.score(plain, task.requests, dist=dist, precision=policy)
        except GPT2LabError as error:
            say(f"warning: no HellaSwag at step {step}: {error}")
            return {}
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
        try:
            drawn = samples.draw(
                plain,
                tokenizer,
                settings.sample_prompt,
                count=settings.sample_count,
                max_new_tokens=settings.sample_tokens,
                top_k=settings.sample_top_k,
                seed=config.run.seed,
            )
        except (GPT2LabError, RuntimeError) as error:  # weights that are not finite: the guard decides about the run
            print(f"warning: no samples at step {step}: {error}", flush=True)
            return {}
        file = JsonLines(directory.samples)
        for one in drawn:
            print(f"sample {one.seed - config.run.seed + 1} at step {step}: {one.text!r}", flush=True)
            file.write({"step": step, **one._asdict()})
        file.close()
        return {}

    return sample


def _batches(
    loader: Loader, dist: DistContext, first_step: int, stop: int, overfit: bool
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """(x, y) a step, int64 (this rank's sequences, T) on the device, read while the last step computes."""

    def on_host(tokens: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(tokens)
        return tensor.pin_memory() if dist.device.type == "cuda" else tensor

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = loader.batch(step)
        return on_host(x), on_host(y)

    for x, y in repeat(batch(0)) if overfit else prefetch(batch, first_step, stop):
        yield x.to(dist.device, non_blocking=True), y.to(dist.device, non_blocking=True)

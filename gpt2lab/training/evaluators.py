"""What is measured while a run trains: validation loss, HellaSwag, and text samples.

Each builder finds its files and checks the settings at once, so that a run that cannot be evaluated does not start.
HellaSwag is an exception: it comes from the network, and a run without it is worth more than none.
"""

import functools
import logging
import time
from pathlib import Path

from gpt2lab import progress
from gpt2lab.config import BatchPlan, GPT2Config, RunConfig, TrainConfig
from gpt2lab.data.loader import fixed_sequences, require_tokens
from gpt2lab.data.shards import TokenStream
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation import hellaswag, loss, samples, scoring
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.system import device as devices
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision
from gpt2lab.system.signals import CheckStop, StopRequestedError
from gpt2lab.tracking import console
from gpt2lab.tracking.metrics import JsonLines
from gpt2lab.training.batches import TrainingData
from gpt2lab.training.run_directory import RunDirectory
from gpt2lab.training.trainer import Evaluator, Measure

logger = logging.getLogger(__name__)

PRINTED_SAMPLES = 2  # samples.jsonl has all of them
# Of a forward pass of the validation loss. GPT-2 124M takes seconds for them, and a stop request waits as long.
_CPU_TOKENS = 1024


def build_evaluators(
    train: TrainConfig,
    model: GPT2Config,
    run: RunConfig,
    data: TrainingData,
    directory: RunDirectory,
    plan: BatchPlan,
    dist: DistContext,
    precision: Precision,
) -> list[Evaluator]:
    """Build the evaluators that the settings ask for.

    Args:
        train: how often each is due, and how much it measures.
        model: block size and vocabulary.
        run: the seed of the samples.
        data: the validation split, and where to look for HellaSwag and the tokenizer's files.
        directory: holds samples.jsonl.
        plan: at most so many sequences in a forward pass of the validation loss.
        dist: the ranks, which share the work.
        precision: of the forward passes.

    Returns:
        The evaluators, in the order in which they run.

    Raises:
        GPT2LabError: a file of the tokenizer is missing, or the vocabulary does not have the tokens.
    """
    if not (train.eval_every or train.hellaswag_every or train.sample_every):
        return []
    check(train, model, data.mirror, data.val)
    evaluators, tokenizer = [], Tokenizer(data.mirror)
    if train.eval_every:
        max_tokens = _CPU_TOKENS if dist.device.type == "cpu" else devices.micro_batch_tokens(dist.device)
        batch_size = min(plan.micro_batch_size, max(1, max_tokens // model.block_size))
        tokens, block_size = train.eval_tokens, model.block_size
        val_loss = _validation_loss(tokenizer, data.val, tokens, block_size, batch_size, dist, precision)
        evaluators.append(Evaluator(train.eval_every, val_loss))
    if train.hellaswag_every:
        accuracy = _hellaswag(tokenizer, data.mirror, train.hellaswag_limit, model.vocab_size, dist, precision)
        if accuracy is not None:
            evaluators.append(Evaluator(train.hellaswag_every, accuracy))
    if train.sample_every:
        draw = _sampler(tokenizer, train, directory.samples, run.seed, dist)
        evaluators.append(Evaluator(train.sample_every, draw))
    return evaluators


def check(train: TrainConfig, model: GPT2Config, mirror: str | None, val: TokenStream | None) -> None:
    """Check the settings of the evaluators, without the files of HellaSwag.

    Args:
        train: what is measured.
        model: block size and vocabulary.
        mirror: where to look for the tokenizer's files.
        val: the validation split; None: it is not there yet.

    Raises:
        GPT2LabError: a validation loss without a whole sequence, or a prompt outside the vocabulary.
    """
    if train.eval_every:
        if val is None:
            require_tokens(model.block_size, train.eval_tokens)
        else:
            fixed_sequences(val, model.block_size, train.eval_tokens)
    if train.sample_every and max(Tokenizer(mirror).encode(train.sample_prompt)) >= model.vocab_size:
        raise GPT2LabError(
            "train.sample_prompt has tokens beyond model.vocab_size; use another or set train.sample_every 0"
        )


def _validation_loss(
    tokenizer: Tokenizer,
    val: TokenStream,
    tokens: int,
    block_size: int,
    batch_size: int,
    dist: DistContext,
    precision: Precision,
) -> Measure:
    """Loss over the first `tokens` tokens of the validation split."""
    sequences = fixed_sequences(val, block_size, tokens)
    text_bytes = loss.target_bytes(tokenizer, val.gather, sequences, block_size)

    def measure(model: LanguageModel, _step: int, check_stop: CheckStop) -> dict[str, float]:
        value, bits = loss.validation_loss(
            model, val, text_bytes, sequences, batch_size, dist, precision, check_stop=check_stop
        )
        return {"val/loss": value, "val/bits_per_byte": bits}

    return measure


def _hellaswag(
    tokenizer: Tokenizer, mirror: str | None, limit: int, vocab_size: int, dist: DistContext, precision: Precision
) -> Measure | None:
    """HellaSwag in both conventions; the ranks share the items. None where its file is out of reach."""
    try:
        data = dist.on_main(lambda: hellaswag.find(mirror))
    except GPT2LabError as error:
        logger.warning("training goes on without HellaSwag: %s (train.hellaswag_every 0 does not ask for it)", error)
        return None
    logger.info(data.describe())
    with progress.Phase("tokenizing HellaSwag"):
        task = hellaswag.Evaluation(tokenizer, data, limit=limit)
    hellaswag.check_fits(task.requests, vocab_size)
    noted = False

    def measure(model: LanguageModel, step: int, check_stop: CheckStop) -> dict[str, float]:
        nonlocal noted
        start = time.perf_counter()
        try:
            scores = scoring.score(
                model, task.requests, dist=dist, precision=precision, name="HellaSwag", check_stop=check_stop
            )
        except GPT2LabError as error:  # a loss that is not finite
            logger.warning("no HellaSwag at step %d: %s", step, error)
            return {}
        figures = task.as_json(scores)
        seconds = time.perf_counter() - start
        if not noted and (truncated := int(scores.truncated.sum())):  # the same at every step
            logger.info("HellaSwag: %s texts longer than block_size are truncated on the left", f"{truncated:,}")
            noted = True
        return hellaswag.metrics(figures) | {"perf/hellaswag_seconds": seconds}

    return measure


def _sampler(tokenizer: Tokenizer, train: TrainConfig, samples_file: Path, seed: int, dist: DistContext) -> Measure:
    """Rank 0 prints texts and appends them to `samples_file`."""

    def measure(model: LanguageModel, step: int, check_stop: CheckStop) -> dict[str, float]:
        if not dist.is_main:
            return {}
        try:
            with progress.Phase("sampling"):
                drawn = samples.draw(
                    model,
                    tokenizer,
                    train.sample_prompt,
                    count=train.sample_count,
                    max_new_tokens=train.sample_tokens,
                    top_k=train.sample_top_k,
                    seed=seed,
                    check_stop=functools.partial(check_stop, together=False),  # the other ranks do not sample
                )
        except StopRequestedError:
            return {}  # the trainer asks all ranks right after this
        except (GPT2LabError, RuntimeError) as error:  # weights that are not finite: the guard decides about the run
            logger.warning("no samples at step %d: %s", step, error)
            return {}
        file = JsonLines(samples_file)
        for number, sample in enumerate(drawn, start=1):
            if number <= PRINTED_SAMPLES:
                name = console.format_step_name(step, train.max_steps)
                logger.info("%s  sample %d of %d\n%s", name, number, len(drawn), console.format_sample(sample.text))
            file.write({"step": step, **sample._asdict()})
        file.close()
        return {}

    return measure

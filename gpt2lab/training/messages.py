"""Log messages about a run as a whole: before the first step, and at the end."""

import logging
import time

from gpt2lab.config import GPT2_VOCAB_SIZE, Config, TrainConfig
from gpt2lab.formatting import format_duration, plural
from gpt2lab.training import profiling
from gpt2lab.training.batches import TrainingData
from gpt2lab.training.checkpoint import Checkpoint
from gpt2lab.training.disk_space import CheckpointSpace
from gpt2lab.training.memory import TrainingModel
from gpt2lab.training.run_directory import RunDirectory
from gpt2lab.training.state import TrainState

logger = logging.getLogger(__name__)

_MANY_EPOCHS = 100  # several times those of the recipes


def log_finished(directory: RunDirectory, train: TrainConfig, start: Checkpoint) -> None:
    """Log that there is nothing left to train.

    Args:
        directory: of the run.
        train: the number of steps.
        start: the newest checkpoint.
    """
    logger.info(
        f"{directory.path} is finished: step {start.step} of {train.max_steps}. To train longer, raise "
        "--train.max_steps; to start again, give another --run.name."
    )


def log_done(directory: RunDirectory, began: float) -> None:
    """Log where to look after the last step.

    Args:
        directory: of the run.
        began: `time.perf_counter()` at the beginning.
    """
    page = directory.path / "report.html"  # missing where it could not be drawn
    logger.info(
        f"done in {format_duration(time.perf_counter() - began)}\n"
        + (f"the report, for a browser: {page}\n" if page.exists() else "")
        + f"to continue a prompt: gpt2lab sample --model-checkpoint {directory.path}"
    )


def warn(config: Config, first_step: int) -> None:
    """Warn of settings that do not fit to the steps of the run.

    Args:
        config: all settings.
        first_step: steps already taken.
    """
    warmup_steps, max_steps = config.optimizer.warmup_steps, config.train.max_steps
    if warmup_steps > max_steps:
        logger.warning(
            f"optimizer.warmup_steps {warmup_steps} is beyond train.max_steps {max_steps}: "
            f"the learning rate never reaches optimizer.max_lr; for so short a run, set it to {max_steps // 4}"
        )
    if reason := profiling.explain_no_trace(config.system, first_step, max_steps):
        logger.warning(reason)


def warn_of_epochs(epochs: float) -> None:
    """Warn of a run that reads its text so often that the model memorizes it.

    Args:
        epochs: of the whole run.
    """
    if epochs > _MANY_EPOCHS:
        logger.warning(f"{epochs:,.0f} epochs: the model will memorize the text; lower train.max_steps, or add text")


def log_summary(
    train: TrainConfig,
    state: TrainState,
    data: TrainingData,
    model: TrainingModel,
    space: CheckpointSpace,
    estimate: str,
) -> None:
    """Log what is about to run, with all derived numbers.

    Args:
        train: steps and batch.
        state: holds the plain model.
        data: both splits.
        model: as it trains.
        space: its checkpoints on disk.
        estimate: the line about speed and time; empty: there is no estimate.
    """
    shape = state.model.config
    vocabulary = f", vocab_size {shape.vocab_size}" if shape.vocab_size != GPT2_VOCAB_SIZE else ""
    logger.info(
        f"model: {state.model.num_parameters():,} parameters, n_layer {shape.n_layer}, n_head {shape.n_head}, "
        f"n_embd {shape.n_embd}{vocabulary}"
    )
    ranks, size = model.dist.world_size, model.micro_batch_size
    micro_steps = data.loader.sequences_per_step // ranks // size
    logger.info(
        f"step: {train.total_batch_size:,} tokens = {plural(ranks, 'rank')} x {plural(micro_steps, 'micro-step')} "
        f"x {plural(size, 'sequence')} of {shape.block_size:,}"
    )
    tokens = train.max_steps * train.total_batch_size
    epochs = tokens / len(data.train)
    logger.info(
        f"run: {plural(train.max_steps, 'step')}, {tokens:,} tokens, {epochs:,.2f} epochs of {len(data.train):,} tokens"
    )
    warn_of_epochs(epochs)
    logger.info(f"device: {model.dist.device.type}, {model.precision.name}")
    logger.info(space.line())
    if estimate:
        logger.info(estimate)

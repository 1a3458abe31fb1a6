"""What a run logs about itself before it starts and when it ends."""

import logging

from gpt2lab.config import OptimizerConfig, TrainConfig
from gpt2lab.training.batches import TrainingData
from gpt2lab.training.checkpoint import Checkpoint
from gpt2lab.training.memory import TrainingModel
from gpt2lab.training.run_directory import RunDirectory
from gpt2lab.training.state import TrainState

logger = logging.getLogger(__name__)


def log_finished(directory: RunDirectory, start: Checkpoint, train: TrainConfig) -> None:
    """Log that the run has nothing left to do.

    Args:
        directory: of the run.
        start: its last checkpoint.
        train: the number of steps.
    """
    logger.info(
        f"{directory.path} is finished: step {start.step} of {train.max_steps}. "
        "To train longer, raise --train.max_steps; to start again, give another --run.name."
    )


def log_done(directory: RunDirectory, seconds: float) -> None:
    """Log where to look after a run.

    Args:
        directory: of the run.
        seconds: that it took.
    """
    logger.info(
        f"done in {seconds:.0f} s. Open {directory.path}/report.html in a browser; "
        f"gpt2lab sample --model-checkpoint {directory.path} continues a prompt."
    )


def log_run_summary(
    train: TrainConfig, adamw: OptimizerConfig, state: TrainState, data: TrainingData, model: TrainingModel
) -> None:
    """Log what is about to run, with all derived numbers.

    Args:
        train: steps and batch size.
        adamw: the length of the warm-up.
        state: holds the plain model.
        data: both splits.
        model: as it trains.
    """
    if adamw.warmup_steps > train.max_steps:
        logger.warning(
            f"optimizer.warmup_steps {adamw.warmup_steps} is beyond train.max_steps {train.max_steps}: "
            "the learning rate never reaches optimizer.max_lr"
        )
    config, ranks, sequences = state.model.config, model.dist.world_size, data.loader.sequences_per_step
    micro_steps, tokens = sequences // ranks // model.micro_batch_size, train.max_steps * train.total_batch_size
    logger.info(
        f"model: {state.model.num_parameters():,} parameters (n_layer {config.n_layer}, n_head {config.n_head}, "
        f"n_embd {config.n_embd}, block_size {config.block_size}, vocab_size {config.vocab_size})"
    )
    logger.info(
        f"step: {train.total_batch_size:,} tokens = {sequences} sequences of {config.block_size} = {ranks} "
        f"rank{'s' * (ranks > 1)} x {micro_steps} micro-steps x {model.micro_batch_size}; "
        f"{model.dist.device.type}, {model.precision.name}"
    )
    epochs = tokens / len(data.train)
    logger.info(f"run: {train.max_steps:,} steps, {tokens:,} tokens, {epochs:.2f} epochs of {len(data.train):,} tokens")

"""Settings: names, types and defaults (`settings`, `architecture`), and where values come from (`loading`)."""

from gpt2lab.config.architecture import GPT2_VOCAB_SIZE, SHAPE, SIZES, GPT2Config
from gpt2lab.config.batches import BatchPlan, largest_divisor
from gpt2lab.config.loading import (
    RENAMED_SETTINGS,
    find_recipe,
    find_run_settings,
    load,
    load_run,
    load_with_notes,
    recipes,
    suggest_recipe,
)
from gpt2lab.config.settings import (
    CheckpointConfig,
    Config,
    DataConfig,
    GuardConfig,
    OptimizerConfig,
    RunConfig,
    SystemConfig,
    TrackingConfig,
    TrainConfig,
    leaves,
)

__all__ = [
    "GPT2_VOCAB_SIZE",
    "RENAMED_SETTINGS",
    "SHAPE",
    "SIZES",
    "BatchPlan",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "GPT2Config",
    "GuardConfig",
    "OptimizerConfig",
    "RunConfig",
    "SystemConfig",
    "TrackingConfig",
    "TrainConfig",
    "find_recipe",
    "find_run_settings",
    "largest_divisor",
    "leaves",
    "load",
    "load_run",
    "load_with_notes",
    "recipes",
    "suggest_recipe",
]

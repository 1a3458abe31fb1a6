"""Every setting of a training run: name, type, range, default and meaning.

The dotted name of a field (`train.max_steps`) is its name on the command line, in YAML and in messages. The docstring
below a field is its help text. Imports no torch, so that a typo is reported immediately.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from gpt2lab.config import yaml_format
from gpt2lab.config.architecture import GPT2Config, Section
from gpt2lab.config.batches import BatchPlan, plan_batches

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]
NotEmpty = Annotated[str, Field(min_length=1)]


class RunConfig(Section):
    """Name, place, seed and start of the run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=255)] | None = None
    """Name of the run directory; the same name resumes the run. null: the file name of the recipe."""
    out_dir: NotEmpty = "runs"
    """Directory that holds the run directories."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 1337
    """Seed of the initial weights, the data order and the samples."""
    resume: NotEmpty = "auto"
    """auto: the newest valid checkpoint of this run, if any; never: error if the run exists; or a checkpoint's path."""

    @field_validator("name", mode="before")
    @classmethod
    def _check_name(cls, name: Any) -> Any:
        if name == "":
            raise ValueError("the name is empty; give one, or leave run.name out")
        if isinstance(name, str) and "/" in name:
            raise ValueError(f"give a name, not a path ({name[:60]!r}); the folder of all runs is run.out_dir")
        return name


class DataConfig(Section):
    """Training and validation data."""

    source: Literal["stdlib", "cpython", "tinyshakespeare", "files", "fineweb-edu", "fineweb"] = "stdlib"
    """stdlib (the documentation in Python's library), cpython (its source code), tinyshakespeare and files (data.input)
    are prepared by training; fineweb-edu and fineweb by `gpt2lab prepare`."""
    input: NotEmpty | None = None
    """Your own text, for data.source files: a text file, or a directory of them."""
    dir: NotEmpty | None = None
    """Directory of the token shards; null: the default directory of data.source, such as data/stdlib."""
    mirror: NotEmpty | None = None
    """Directory to read downloads from instead of the network."""

    @model_validator(mode="after")
    def _files_have_an_input(self) -> "DataConfig":
        if self.input is not None and self.source != "files":
            raise ValueError(
                f"data.input {self.input} is for data.source files, not {self.source}; set data.source files"
            )
        if self.source == "files" and self.input is None and self.dir is None:
            raise ValueError("data.source files needs data.input: a text file, or a directory of them")
        return self


class TrainConfig(Section):
    """Steps, batch size, and measurements during training."""

    init_from: NotEmpty | None = None
    """Model whose weights a new run starts from: a run, a checkpoint, a model directory, a Hub id such as gpt2, or a
    checkpoint file of another project. It replaces `model:` of the recipe (docs/weights.md); null: random weights."""
    max_steps: Annotated[int, Field(gt=0, le=10**9)] = 19073
    """Optimizer steps; 19,073 steps of 524,288 tokens are 10B tokens."""
    total_batch_size: PositiveInt = 524288
    """Tokens per optimizer step, over all devices and micro-steps."""
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """At most so many sequences per device and forward pass (on a CPU 8,192 tokens); auto: as many as fit in memory, up
    to 65,536 tokens."""
    eval_every: NonNegativeInt = 250
    """Measure the validation loss every so many steps, at the start and at the end; 0: never."""
    eval_tokens: PositiveInt = 10_485_760
    """Tokens for the validation loss, from the beginning of the validation split."""
    hellaswag_every: NonNegativeInt = 0
    """Measure HellaSwag accuracy every so many steps, at the start and at the end; 0: never."""
    hellaswag_limit: NonNegativeInt = 0
    """Number of HellaSwag items, a fixed random subset of the 10,042; 0: all."""
    sample_every: NonNegativeInt = 250
    """Generate text samples every so many steps, at the start and at the end; 0: never."""
    sample_prompt: NotEmpty = "Hello this is AI model,"
    """Prompt of the samples."""
    sample_count: PositiveInt = 4
    """Number of samples each time; the terminal shows two of them."""
    sample_tokens: PositiveInt = 32
    """New tokens per sample."""
    sample_top_k: PositiveInt = 50
    """Sample only from this number of most likely tokens."""
    overfit_batch: bool = False
    """Train on the first batch only, to test the training code: the loss should approach zero."""


class OptimizerConfig(Section):
    """Optimizer, learning rate schedule and gradient clipping."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw; or muon for the matrices of the blocks, and AdamW for the rest."""
    max_lr: Positive = 6e-4
    """Peak learning rate, reached after warm-up; with muon, that of Muon."""
    min_lr: NonNegative = 6e-5
    """Learning rate at max_steps, the end of the schedule."""
    embedding_lr: Positive | None = None
    """Peak learning rate of embeddings, which follows the same schedule; null: max_lr."""
    head_lr: Positive | None = None
    """Peak learning rate of an output head that is not tied to the embedding, likewise; null: max_lr."""
    warmup_steps: NonNegativeInt = 715
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """After the warm-up: cosine; or linear: constant, then linear over the last steps (optimizer.decay_fraction)."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of max_steps over which the linear schedule decays, at the end."""
    momentum: Beta = 0.95
    """Muon's decay rate of the mean of the gradient."""
    weight_decay: NonNegative = 0.1
    """Decoupled weight decay of tensors with two or more dimensions; with muon, of the matrices of the blocks only."""
    beta1: Beta = 0.9
    """AdamW's decay rate of the mean of the gradient."""
    beta2: Beta = 0.95
    """AdamW's decay rate of the mean of the squared gradient."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    grad_clip: NonNegative = 1.0
    """Maximum norm of the gradient; 0: no clipping."""


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every: NonNegativeInt = 1000
    """Save a checkpoint every so many steps and at the end; 0: only at the end."""
    keep_last: PositiveInt = 2
    """Number of newest checkpoints to keep."""
    keep_every: NonNegativeInt = 0
    """Also keep checkpoints at multiples of this step; 0: none."""
    keep_best: bool = True
    """Also keep the checkpoint with the lowest validation loss."""


class GuardConfig(Section):
    """Steps that are skipped."""

    spike_sigma: NonNegative = 0.0
    """Skip a step whose loss or gradient norm is more than this many standard deviations above the mean of the
    last guard.window steps; 0: off."""
    window: Annotated[int, Field(ge=4)] = 128
    """Steps over which spike_sigma takes the mean and the standard deviation; it applies after half of them."""
    stop_after: PositiveInt = 10
    """Number of consecutive skipped steps after which the run stops."""


class TrackingConfig(Section):
    """Where metrics are shown and logged."""

    log_every: PositiveInt | Literal["auto"] = "auto"
    """Steps between printed lines; auto: 20 to 50 lines in a run, and at least one a minute. metrics.jsonl has every
    step."""
    log_format: Literal["short", "build-nanogpt", "json"] = "short"
    """Format of printed lines: short, build-nanogpt (as miniLLM and TinyRB), or json (as in metrics.jsonl; all other
    messages go to standard error)."""
    price_per_hour: NonNegative = 0.0
    """Price of all machines of the run per hour, for the cost in the report; 0: not shown."""
    tensorboard: bool = False
    """Also write event files to runs/NAME/tensorboard; view them with `tensorboard --logdir runs`."""
    wandb: Literal["off", "online", "offline"] = "off"
    """Also log to Weights & Biases: off, online or offline (to runs/NAME/wandb, for `wandb sync`)."""
    trackio: bool = False
    """Also log to trackio; view it with `trackio show`."""
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "gpt2lab"
    """Project name at Weights & Biases and trackio."""


class SystemConfig(Section):
    """Device, precision, memory and timeouts."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device: auto, cpu, cuda or mps; auto: cuda, else mps, else cpu."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Precision of matrix products: auto (bf16; on GPUs before Ampere fp16; on other hardware without bf16 fp32), fp32,
    tf32, bf16 or fp16, which scales the loss; weights stay fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for the training step: auto (on CUDA), on or off; if it fails, training continues without it."""
    shard: bool = False
    """Shard weights, gradients and optimizer state over the ranks (FSDP2), for models that do not fit on one GPU."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass instead of storing them: less memory, more time."""
    profile: bool | Annotated[str, Field(pattern=r"^[1-9][0-9]*-[1-9][0-9]*$")] = False
    """Write a trace to runs/NAME/trace.json: true: of the 10th to the 15th step; or of other steps, such as 100-103."""
    start_timeout: Positive = 300.0
    """Seconds within which all processes must have started."""
    timeout: Positive = 600.0
    """Seconds that a process waits for another one before it exits with an error."""

    @field_validator("profile", mode="before")
    @classmethod
    def _check_profile(cls, value: Any) -> Any:
        if isinstance(value, str) and value[:1].isdigit() and not re.fullmatch(r"[1-9]\d*-[1-9]\d*", value):
            raise ValueError(f"should be true, false, or the first and the last step such as 100-103, not {value!r}")
        if isinstance(value, str) and value[:1].isdigit() and int(value.split("-")[0]) > int(value.split("-")[1]):
            raise ValueError(f"should name the first step before the last, not {value!r}")
        return value


class Config(Section):
    """All settings of a run. `load` builds one; `Config()` has the defaults."""

    run: RunConfig = RunConfig()
    model: GPT2Config = GPT2Config()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    tracking: TrackingConfig = TrackingConfig()
    system: SystemConfig = SystemConfig()

    @model_validator(mode="after")
    def _rates_in_order(self) -> "Config":
        if self.optimizer.min_lr > self.optimizer.max_lr:
            raise ValueError(
                f"optimizer.min_lr {self.optimizer.min_lr:g} is above optimizer.max_lr {self.optimizer.max_lr:g}; "
                f"set optimizer.min_lr to {self.optimizer.max_lr / 10:g} for instance"
            )
        return self

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted name."""
        return {f"{section}.{key}": value for section, keys in self.model_dump().items() for key, value in keys.items()}

    def batch_plan(self, world_size: int, max_micro_tokens: int) -> BatchPlan:
        """Derive `micro_batch_size` and `grad_accum_steps` from the tokens of a step.

        Args:
            world_size: number of processes.
            max_micro_tokens: limit of an `auto` micro batch in tokens; one sequence is always allowed.

        Returns:
            The sequences of a step, and per process those of a micro-step and the number of micro-steps.

        Raises:
            GPT2LabError: the processes cannot share `train.total_batch_size` equally.
        """
        return plan_batches(
            self.train.total_batch_size,
            self.model.block_size,
            self.train.micro_batch_size,
            world_size,
            max_micro_tokens,
        )

    def to_yaml(self) -> str:
        """The settings as YAML that `load` reads back to an equal Config."""
        return yaml_format.dump(self.model_dump())


def leaves() -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, pydantic field) of every setting, in order."""
    for section, field in Config.model_fields.items():
        for key, leaf in field.annotation.model_fields.items():  # type: ignore[union-attr]
            yield f"{section}.{key}", leaf

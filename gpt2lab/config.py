"""Every setting of a training run: typed, validated, and read in one order: defaults, YAML files, command line.

    config/*.yaml ──┐
    --train.x 5   ──┴─▶ one nested dict ──▶ Config (pydantic: types, ranges, unknown keys) ──▶ runs/NAME/config.yaml

The dotted name of a field (`train.max_steps`) is its name on the command line, in YAML and in every message.
The docstring below a field is its help text. Nothing here imports torch, so a typo is reported at once.
"""

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gpt2lab.errors import GPT2LabError

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]

GPT2_VOCAB_SIZE = 50257  # 256 bytes + 50,000 merges + <|endoftext|>; ids from here on are padding, never text

# n_layer, n_head, n_embd of the four published models (GPT-2 paper, table 2, with OpenAI's corrected counts).
SIZES = {"124M": (12, 12, 768), "medium": (24, 16, 1024), "large": (36, 20, 1280), "xl": (48, 25, 1600)}
_SHAPE = ("n_layer", "n_head", "n_embd")
_SIZE_ALIASES = {"gpt2": "124M", "small": "124M", "355M": "medium", "774M": "large", "1558M": "xl"}


class Section(BaseModel):
    """One section of the settings: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("holds a NUL character")
        if isinstance(value, bool) and info.field_name and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"takes a number or text, not {str(value).lower()}")
        return value


class RunConfig(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Name of the run directory; the recipe's file name unless set."""
    out_dir: str = "runs"
    """Folder that holds run directories."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 1337
    """Seed of the initial weights, the order of the data and the samples."""
    resume: str = "auto"
    """auto: the newest good checkpoint of this run, if any; never: refuse an existing run; or a checkpoint's path."""


class GPT2Config(Section):
    """The architecture. Named by `size`; a number that is given explicitly beats it."""

    size: Literal["124M", "medium", "large", "xl"] | None = "124M"
    """124M, medium, large or xl (or gpt2, gpt2-medium, …): fills n_layer, n_head and n_embd."""
    n_layer: PositiveInt = 12
    """Transformer blocks; by size unless set."""
    n_head: PositiveInt = 12
    """Attention heads a block; by size unless set."""
    n_embd: PositiveInt = 768
    """Channels of the residual stream, divisible by n_head; by size unless set."""
    block_size: PositiveInt = 1024
    """Context window in tokens."""
    vocab_size: Annotated[int, Field(ge=1, le=65536)] = GPT2_VOCAB_SIZE
    """50257, or padded (50304) for faster matrix products."""
    tie_word_embeddings: bool = True
    """Share one matrix between token embedding and output head, as GPT-2 does."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = {key: value for key, value in values.items() if value is not None}
        if isinstance(size := values.get("size"), str):
            values["size"] = _SIZE_ALIASES.get(size.removeprefix("gpt2-"), size.removeprefix("gpt2-"))
        size = values.get("size", "124M")
        if isinstance(size, str) and (shape := SIZES.get(size)) is not None:
            values = dict(zip(_SHAPE, shape, strict=True)) | values
            if tuple(values[key] for key in _SHAPE) != shape:
                values["size"] = None  # a 7M model is not called 124M, wherever the settings are shown
        return values

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> "GPT2Config":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        return self


class DataConfig(Section):
    source: Literal["stdlib", "tinyshakespeare", "fineweb-edu"] = "stdlib"
    """stdlib (Python's own texts), tinyshakespeare: made on the spot; fineweb-edu: see `gpt2lab prepare`."""
    dir: str | None = None
    """Folder of the shards; data/NAME by source unless set."""
    mirror: str | None = None
    """Folder to take downloads from instead of the network."""


class TrainConfig(Section):
    max_steps: PositiveInt = 19073
    """Optimizer steps; 19,073 steps of 524,288 tokens are 10B tokens."""
    total_batch_size: PositiveInt = 524288
    """Tokens an optimizer step, over all devices and micro-steps."""
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Sequences a device a forward pass; auto: the most that divides a device's share within a few thousand tokens."""
    eval_every: NonNegativeInt = 250
    """Validation loss every so many steps, before the first and after the last; 0: never."""
    eval_tokens: PositiveInt = 10_485_760
    """Tokens of the validation split that the loss is taken over: always the same ones, its first."""
    hellaswag_every: NonNegativeInt = 0
    """HellaSwag accuracy every so many steps, before the first and after the last; 0: never."""
    hellaswag_limit: NonNegativeInt = 0
    """Take so many of its 10,042 items, always the same ones; 0: all."""
    sample_every: NonNegativeInt = 250
    """Text samples every so many steps, before the first and after the last; 0: never."""
    sample_prompt: Annotated[str, Field(min_length=1)] = "Hello this is AI model,"
    """What the samples continue."""
    sample_count: PositiveInt = 4
    """Samples a time."""
    sample_tokens: PositiveInt = 32
    """New tokens a sample."""
    sample_top_k: PositiveInt = 50
    """Samples draw from this many likeliest tokens."""
    overfit_batch: bool = False
    """Train on the first batch again and again: a model that works drives its loss to zero."""


class OptimizerConfig(Section):
    max_lr: Positive = 6e-4
    """Peak learning rate, reached after the warm-up."""
    min_lr: NonNegative = 6e-5
    """Learning rate at max_steps, the end of the cosine."""
    warmup_steps: NonNegativeInt = 715
    """Steps of linear warm-up."""
    weight_decay: NonNegative = 0.1
    """Decoupled decay of tensors with two or more dimensions (weights, not biases or layer norms)."""
    beta1: Beta = 0.9
    """AdamW's decay of the gradient's mean."""
    beta2: Beta = 0.95
    """AdamW's decay of the gradient's square."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    grad_clip: NonNegative = 1.0
    """Gradients are scaled down to this norm; 0: not clipped."""


class CheckpointConfig(Section):
    every: NonNegativeInt = 1000
    """Checkpoint every so many steps, and after the last; 0: only after the last."""
    keep_last: PositiveInt = 2
    """Newest checkpoints that stay."""
    keep_every: NonNegativeInt = 0
    """Checkpoints at multiples of this step stay as well; 0: none."""
    keep_best: bool = True
    """The checkpoint with the lowest validation loss stays as well."""


class GuardConfig(Section):
    spike_sigma: NonNegative = 0.0
    """Skip a step whose loss or gradient norm is this many standard deviations above the recent mean; 0: off."""
    window: Annotated[int, Field(ge=4)] = 128
    """How many steps are recent; there is no judgement until half as many were seen."""
    stop_after: PositiveInt = 10
    """Skipped steps in a row that end the run."""


class TrackingConfig(Section):
    log_every: PositiveInt = 1
    """Steps a line on the screen or in the log; metrics.jsonl has every step."""
    price_per_hour: NonNegative = 0.0
    """What all machines of the run cost an hour, for the report's cost; 0: not shown."""
    tensorboard: bool = False
    """Event files in runs/NAME/tensorboard as well; look at them with `tensorboard --logdir runs`."""
    wandb: Literal["off", "online", "offline"] = "off"
    """Weights & Biases as well, off, online or offline (in runs/NAME/wandb, for `wandb sync`)."""
    trackio: bool = False
    """trackio as well; look at it with `trackio show`."""
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "gpt2lab"
    """The project's name at Weights & Biases and trackio."""


class SystemConfig(Section):
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute, auto, cpu, cuda or mps; auto: cuda, else mps, else cpu."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Matrix products in auto, fp32, tf32, bf16 or fp16; weights stay fp32. auto: bf16 where the hardware has it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for the training step, auto, on or off; auto: on CUDA. If it fails, training goes on without."""
    shard: bool = False
    """Deal weights, gradients and optimizer state out to the ranks (FSDP2), for a model too big for one card."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them: less memory, more time."""
    start_timeout: Positive = 300.0
    """Seconds within which all processes must have started."""
    timeout: Positive = 600.0
    """Seconds after which a process that waits for another gives up; one that has died or was stopped is named."""


# What other projects call our settings, for "did you mean".
_OTHERS_WORDS = {
    "batch_size": "train.micro_batch_size",
    "beta_1": "optimizer.beta1",
    "beta_2": "optimizer.beta2",
    "compile": "system.compile",
    "dataset": "data.source",
    "dtype": "system.precision",
    "eval_interval": "train.eval_every",
    "global_batch_size": "train.total_batch_size",
    "gradient_accumulation_steps": "train.total_batch_size",
    "learning_rate": "optimizer.max_lr",
    "lr": "optimizer.max_lr",
    "max_iters": "train.max_steps",
    "seq_len": "model.block_size",
    "wandb_log": "tracking.wandb",
    "wandb_project": "tracking.project",
    "warmup_iters": "optimizer.warmup_steps",
}


class BatchPlan(NamedTuple):
    """How `total_batch_size` tokens are dealt out: sequences = world_size x grad_accum_steps x micro_batch_size."""

    sequences: int
    micro_batch_size: int
    grad_accum_steps: int


class Config(Section):
    """A whole run. Build one with `load`, or `Config()` for the defaults."""

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
                f"set it too, to {self.optimizer.max_lr / 10:g} for instance"
            )
        return self

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted name."""
        return {f"{section}.{key}": value for section, keys in self.model_dump().items() for key, value in keys.items()}

    def batch_plan(self, world_size: int, max_micro_tokens: int) -> BatchPlan:
        """Derive `grad_accum_steps` from the tokens of a step.

        Args:
            world_size: processes that share a step.
            max_micro_tokens: tokens that an `auto` micro batch may hold (one sequence is always allowed).

        Raises:
            GPT2LabError: `train.total_batch_size` does not divide; the message names the nearest values that do.
        """
        block, micro = self.model.block_size, self.train.micro_batch_size
        unit = block * world_size * (1 if micro == "auto" else micro)
        total = self.train.total_batch_size
        if total % unit:
            below, above = total // unit * unit, (total // unit + 1) * unit
            nearest = f"{below} or {above}" if below else f"{above}"
            raise GPT2LabError(
                f"train.total_batch_size {total} tokens is not a multiple of {unit} (block_size {block} x "
                f"micro_batch_size {micro} x {world_size} processes); the nearest that works: {nearest}"
            )
        share = total // (block * world_size)
        if micro == "auto":
            most = max(1, min(share, max_micro_tokens // block))
            size = next(n for n in range(most, 0, -1) if share % n == 0)
        else:
            size = micro
        return BatchPlan(sequences=share * world_size, micro_batch_size=size, grad_accum_steps=share // size)

    def to_yaml(self) -> str:
        """The resolved settings as YAML that `load` reads back to an equal Config."""
        import io

        from ruamel.yaml import YAML

        stream = io.StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.representer.add_representer(float, _represent_float)
        yaml.representer.add_representer(str, _represent_text)
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # keep the order of the sections
        yaml.dump(self.model_dump(), stream)
        return stream.getvalue()


def _represent_float(representer: Any, value: float) -> Any:
    """1e-08 as 1.0e-08: readers of YAML 1.1 take the former for text."""
    text = repr(value)
    return representer.represent_scalar("tag:yaml.org,2002:float", text if "." in text else text.replace("e", ".0e"))


def _represent_text(representer: Any, value: str) -> Any:
    """off as "off": readers of YAML 1.1 take it for false."""
    switch = value.lower() in ("on", "off", "yes", "no", "y", "n")
    return representer.represent_scalar("tag:yaml.org,2002:str", value, style='"' if switch else None)


def leaves() -> Iterator[tuple[str, Any]]:
    """(dotted name, pydantic field) of every setting, in order."""
    for section, field in Config.model_fields.items():
        for key, leaf in field.annotation.model_fields.items():  # type: ignore[union-attr]
            yield f"{section}.{key}", leaf


def json_schema() -> str:
    """JSON schema of a recipe file, for editors that complete and check YAML by one."""
    import json

    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


def reference() -> str:
    """Every setting as Markdown tables, one a section."""
    lines = [
        "# Settings",
        "",
        "Each is a key in a recipe (`section:` and below it `key: value`) and an option on the command line",
        "(`--section.key value`). Made by `gpt2lab settings`; recipes set their own values over these defaults.",
    ]
    section = ""
    for name, field in leaves():
        if name.partition(".")[0] != section:
            section = name.partition(".")[0]
            lines += ["", f"## {section}", "", "| setting | type | default | meaning |", "|---|---|---|---|"]
        lines.append(f"| `{name}` | {_type_name(field.annotation)} | `{_plain(field.default)}` | {field.description} |")
    return "\n".join(lines) + "\n"


def _type_name(annotation: Any) -> str:
    """A field's type in words: `int`, `float or null`, `one of auto, on, off`."""
    options = get_args(annotation)
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, options))}" if len(options) > 1 else str(options[0])
    if get_origin(annotation) is Annotated:
        return _type_name(options[0])
    if options:
        return " or ".join(_type_name(option) for option in options)
    return "null" if annotation is type(None) else str(annotation.__name__)


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the known word closest to `word`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def recipes() -> dict[str, Path]:
    """Name and file of every recipe that ships: `config/` of the checkout, or its copy inside an installed wheel."""
    package = Path(__file__).parent
    checkout = package.parent / "config"
    folder = checkout if (checkout / "quickstart.yaml").exists() else package / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file that `--config NAME` means: a path, or the bare name of a recipe.

    Raises:
        GPT2LabError: neither exists.
    """
    if Path(name).is_file():
        return Path(name)
    known = recipes()
    if name in known:
        return known[name]
    guess = nearest(Path(name).stem, known)
    raise GPT2LabError(f"--config {name}: no such file or recipe{guess} (recipes: {', '.join(known)})")


def load(files: Iterable[str | Path] = (), overrides: Mapping[str, Any] | None = None) -> Config:
    """Defaults, then each YAML file in turn, then `overrides` (dotted name to value, or text from a command line).

    Raises:
        GPT2LabError: a file is unreadable or not YAML, a key is unknown or repeated, a value is of the wrong type
            or out of range. The message names the file or the key.
    """
    merged: dict[str, dict[str, Any]] = {}
    origin: dict[str, str] = {}
    file_name = None
    for file in map(Path, files):
        for section, values in _read_yaml(file).items():
            if section not in Config.model_fields:
                raise GPT2LabError(f"{file}: {unknown_setting(str(section))}")
            if values is None:
                continue  # a section whose keys are all commented out
            if not isinstance(values, Mapping):
                raise GPT2LabError(f"{file}: {section} must hold settings, not {_shown(values)}")
            if section == "model" and values.get("size") is not None:
                _forget_shape(merged)
            for key, value in values.items():
                merged.setdefault(str(section), {})[str(key)] = value
                origin[f"{section}.{key}"] = f"{file}: "
        file_name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).lstrip("._-") or None
    if overrides and overrides.get("model.size") is not None:
        _forget_shape(merged)
    for name, value in (overrides or {}).items():
        section, _, key = name.partition(".")
        merged.setdefault(section, {})[key] = None if value == "null" else value
        origin[name] = "--" if isinstance(value, str) else ""
    merged.setdefault("run", {})["name"] = merged.get("run", {}).get("name") or file_name
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise GPT2LabError(_first_line(error, origin)) from None


def _forget_shape(merged: dict[str, dict[str, Any]]) -> None:
    """A size means its own numbers, not those that a file before it gave."""
    for key in _SHAPE:
        merged.get("model", {}).pop(key, None)


def _read_yaml(file: Path) -> Mapping[str, Any]:
    """A YAML 1.2 mapping of sections: `6e-4` is a number, `on` is text, repeated keys and python tags are errors."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except DuplicateKeyError as error:
        repeated = str(error.problem).split(" with value")[0]
        raise GPT2LabError(f"{file}: line {_line(error)}: {repeated}; keep one") from None
    except MarkedYAMLError as error:
        raise GPT2LabError(f"{file}: line {_line(error)}: not valid YAML: {error.problem}") from None
    except RecursionError:
        raise GPT2LabError(f"{file}: nested too deep for a recipe; sections hold plain values") from None
    except (YAMLError, ValueError) as error:  # not UTF-8, an impossible date, a number of thousands of digits
        raise GPT2LabError(f"{file}: not valid YAML: {error}") from None
    except OSError as error:
        raise GPT2LabError(f"{file}: cannot read it: {error.strerror}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise GPT2LabError(f"{file}: expected sections such as 'train:', found {type(content).__name__}")
    return content


def _line(error: Any) -> int:
    return error.problem_mark.line + 1 if error.problem_mark else 1


def unknown_setting(name: str) -> str:
    """The complaint about a dotted name that is no setting, with the nearest one that is."""
    known = [key for key, _ in leaves()]
    last = name.rpartition(".")[2]
    elsewhere = [key for key in known if key.rpartition(".")[2] == last]
    elsewhere += [_OTHERS_WORDS[last]] if last in _OTHERS_WORDS else []
    guess = (
        f"; did you mean {elsewhere[0]}?" if elsewhere else nearest(name, known if "." in name else Config.model_fields)
    )
    return f"unknown setting {name}{guess}"


def _first_line(error: ValidationError, origin: Mapping[str, str]) -> str:
    """The first problem that pydantic found, as one line that names the key, the value and what is allowed."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][:2])  # deeper parts name members of a union, not settings
    place = origin.get(name, "")
    if first["type"] == "extra_forbidden":
        return f"{'' if place == '--' else place}{unknown_setting(name)}"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{place}{name}: {message}" if "." in name else f"{message} ({name})" if name else message
    wanted = [_wanted(e) for e in error.errors() if e["loc"][:2] == first["loc"][:2]]
    return f"{place}{name}: should be {' or '.join(dict.fromkeys(wanted))}, not {_shown(first['input'])}"


def _wanted(error: Any) -> str:
    """What pydantic would have taken, in our words where its own are a programmer's."""
    kind, _, problem = error["type"].partition("_")
    if kind in _KINDS and problem in ("type", "parsing", "parsing_size", "from_float"):
        return _KINDS[kind]
    return _FORMS.get(error["type"]) or str(error["msg"]).removeprefix("Input should be ")


_KINDS = {"int": "a whole number", "float": "a number", "string": "text", "bool": "true or false"}
_FORMS = {
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', beginning with a letter or digit",
    "string_too_short": "text that is not empty",
}


def _shown(value: Any) -> str:
    """A value as the user wrote it, more or less; a short one, however much a recipe's aliases make of it."""
    if value is None or isinstance(value, bool):
        return _plain(value)
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxlong, brief.maxother = 1, 60, 60, 60
    return brief.repr(value)

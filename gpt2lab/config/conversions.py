"""Values of settings of other projects that are something else than the value of our setting."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gpt2lab.config.foreign_names import NAMES, NANOGPT_ONLY
from gpt2lab.config.settings import leaves

BY_LEAF = {name.rpartition(".")[2]: name for name, _ in reversed(list(leaves()))}  # setting by the end of its name

_WORDS: dict[str, dict[Any, str]] = {
    "system.precision": {
        **dict.fromkeys(("bfloat16", "bf16-mixed", "bf16-true"), "bf16"),
        **dict.fromkeys(("float16", "16-mixed", "half"), "fp16"),
        **dict.fromkeys(("float32", "32-true", "32"), "fp32"),
    },
    "system.compile": {True: "on", False: "off"},
    "tracking.wandb": {True: "online", False: "off", "disabled": "off"},
    "optimizer.name": {"AdamW": "adamw", "Muon": "muon"},
    "data.source": {
        **dict.fromkeys(("shakespeare", "shakespeare_char"), "tinyshakespeare"),
        **dict.fromkeys(("edu_fineweb10B", "edu_fineweb", "fineweb_edu", "HuggingFaceFW/fineweb-edu"), "fineweb-edu"),
    },
}
_ACCUMULATION = [name for name in NAMES if "accum" in name]


class Source(NamedTuple):
    """All settings of a file, for values that depend on each other. Attribute `values`: by the end of their names."""

    values: Mapping[str, Any]

    def find(self, setting: str, default: float | None = None) -> float | None:
        """The positive number of a setting of ours, under any name whose values need no conversion."""
        for name, value in self.values.items():
            if name not in CONVERSIONS and (NAMES.get(name) or BY_LEAF.get(name)) == setting and is_number(value):
                return float(value)
        return default

    @property
    def block_size(self) -> int:
        """Tokens of a sequence."""
        return int(self.find("model.block_size") or 1024)

    @property
    def micro_tokens(self) -> int:
        """Tokens of a micro batch; 0 if they are not known."""
        return int(self.find("train.micro_batch_size") or 0) * self.block_size

    @property
    def step_tokens(self) -> int:
        """Tokens of a step; 0 if they are not known."""
        if tokens := self.find("train.total_batch_size"):
            return int(tokens)
        if is_number(self.values.get("global_batch_size")):
            return int(self.values["global_batch_size"]) * self.block_size
        steps = next((self.values[name] for name in _ACCUMULATION if is_number(self.values.get(name))), 0)
        return int(steps) * self.micro_tokens


Result = tuple[Mapping[str, Any], str]  # our settings, and a note


def is_number(value: Any) -> bool:
    """Whether a value is a positive number of a sensible size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e18


def convert_word(setting: str, value: Any) -> Result:
    """Convert a value to one of the words of a setting.

    Args:
        setting: dotted name.
        value: the value elsewhere.

    Returns:
        The setting, or a note.
    """
    if isinstance(value, bool | str) and value in _WORDS.get(setting, {}):
        note = "GPT-2's tokenizer, not characters" if value == "shakespeare_char" else ""
        return {setting: _WORDS[setting][value]}, note
    if setting == "data.source" and value not in ("stdlib", "tinyshakespeare", "fineweb-edu", "fineweb"):
        return {}, "prepare the text with gpt2lab prepare and give its folder as data.dir"
    if setting == "system.device" and isinstance(value, str):
        return {setting: value.partition(":")[0]}, ""
    if setting in ("run.name", "tracking.project") and isinstance(value, str):
        return {setting: re.sub(r"[^A-Za-z0-9._-]+", "-", value).lstrip("._-")}, ""
    return {setting: value}, ""


def _accumulation(value: Any, source: Source) -> Result:
    if not (is_number(value) and source.micro_tokens):
        return {}, "computed from train.total_batch_size, the tokens of a step on all GPUs"
    sequences = source.micro_tokens // source.block_size
    note = f"{value} x {sequences} sequences x {source.block_size} tokens"
    if not NANOGPT_ONLY & source.values.keys():  # where the number is for all GPUs together
        note += f"; multiply it by the number of GPUs if {value} is for each of them"
    return {"train.total_batch_size": source.step_tokens}, note


def _global_batch_size(value: Any, source: Source) -> Result:
    if not is_number(value):
        return {}, "train.total_batch_size is in tokens"
    return {"train.total_batch_size": source.step_tokens}, f"{value} sequences x {source.block_size} tokens"


def _evaluation_batches(value: Any, source: Source) -> Result:
    if not (is_number(value) and source.micro_tokens):
        return {}, "train.eval_tokens is in tokens"
    return {"train.eval_tokens": int(value) * source.micro_tokens}, ""


def _tokens_to_steps(setting: str) -> Callable[[Any, Source], Result]:
    def convert(value: Any, source: Source) -> Result:
        if not (is_number(value) and source.step_tokens):
            return {}, f"{setting} is in steps: tokens / train.total_batch_size"
        return {setting: max(1, int(value) // source.step_tokens)}, f"steps of {source.step_tokens} tokens"

    return convert


def _warmup_ratio(value: Any, source: Source) -> Result:
    steps = source.find("train.max_steps")
    if not (is_number(value) and steps):
        return {}, "optimizer.warmup_steps is in steps"
    return {"optimizer.warmup_steps": round(value * steps)}, ""


def _epochs(_value: Any, _source: Source) -> Result:
    return {}, "give train.max_steps; an epoch has tokens of the data / train.total_batch_size"


def _betas(value: Any, _source: Source) -> Result:
    if isinstance(value, list) and len(value) == 2:
        return dict(zip(("optimizer.beta1", "optimizer.beta2"), value, strict=True)), ""
    return {}, "give optimizer.beta1 and optimizer.beta2"


def _decay_lr(value: Any, source: Source) -> Result:
    rate = source.find("optimizer.max_lr")
    if value is not False or rate is None:
        return {}, ""
    return {"optimizer.min_lr": rate, "optimizer.warmup_steps": 0}, "a constant learning rate without warm-up"


def _decay_steps(value: Any, source: Source) -> Result:
    same = value == source.find("train.max_steps")
    return {}, "" if same else "the learning rate reaches optimizer.min_lr at train.max_steps instead"


def _start(value: Any, _source: Source) -> Result:
    if value in ("scratch", None, False):
        return {}, ""
    if value in ("resume", True):
        return {}, "the same run.name resumes a run; leave it out"
    if isinstance(value, str):
        return {"train.init_from": value}, "a new run from these weights; to resume a run of gpt2lab, run.resume"
    return {}, "give the weights to start from as train.init_from"


def _data(_value: Any, _source: Source) -> Result:
    return {}, "give the folder of the token shards as data.dir"


def _precision(name: str) -> Callable[[Any, Source], Result]:
    return lambda value, _source: ({"system.precision": name} if value is True else {}, "")


# By name elsewhere.
CONVERSIONS: dict[str, Callable[[Any, Source], Result]] = {
    **dict.fromkeys(_ACCUMULATION, _accumulation),
    **dict.fromkeys(
        ("eval_iters", "eval_max_iters", "eval_batches", "val_loss_steps", "val_max_steps"), _evaluation_batches
    ),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs"), _epochs),
    **dict.fromkeys(("lr_decay_iters", "lr_decay_steps", "max_lr_steps", "decay_steps"), _decay_steps),
    **dict.fromkeys(("init_from", "resume", "resume_from", "resume_from_checkpoint", "initial_checkpoint_dir"), _start),
    "global_batch_size": _global_batch_size,
    "max_tokens": _tokens_to_steps("train.max_steps"),
    "warmup_tokens": _tokens_to_steps("optimizer.warmup_steps"),
    "warmup_ratio": _warmup_ratio,
    "betas": _betas,
    "data": _data,
    "decay_lr": _decay_lr,
    "fp16": _precision("fp16"),
    "bf16": _precision("bf16"),
}

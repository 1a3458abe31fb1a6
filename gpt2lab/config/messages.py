"""Error messages about settings: one line that names the setting, its value and what is allowed."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from gpt2lab.errors import GPT2LabError, find_similar

# Names of our settings in other projects (nanoGPT, build-nanogpt, llm.c, lit-gpt, transformers), for "did you mean".
_FOREIGN_NAMES = {
    name: setting
    for setting, names in {
        "checkpoint.every": "interval save_every save_interval save_steps checkpoint_every checkpoint_interval",
        "data.dir": "data_dir data_path dataset_dir dataset_path data input input_dir train_data",
        "data.source": "dataset dataset_name",
        "guard.spike_sigma": "spike_threshold",
        "model.block_size": "seq_len seq_length sequence_length max_seq_len max_seq_length context context_length"
        " context_size n_ctx n_positions ctx_len",
        "model.n_embd": "n_embed d_model dim hidden_size hidden_dim embed_dim width",
        "model.n_head": "n_heads num_heads num_attention_heads",
        "model.n_layer": "n_layers num_layers num_hidden_layers layers depth",
        "model.size": "model_size model_name model_type model model_name_or_path",
        "optimizer.beta1": "beta_1 adam_beta1",
        "optimizer.beta2": "beta_2 adam_beta2",
        "optimizer.eps": "epsilon adam_eps adam_epsilon",
        "optimizer.grad_clip": "max_grad_norm clip clip_grad clip_grad_norm gradient_clip_val",
        "optimizer.max_lr": "lr learning_rate rate base_lr peak_lr",
        "optimizer.min_lr": "min_learning_rate final_lr end_lr lr_min",
        "optimizer.warmup_steps": "warmup warmup_iters num_warmup_steps warmup_ratio warmup_tokens",
        "optimizer.weight_decay": "wd decay",
        "run.name": "run_name name experiment wandb_run_name exp_name",
        "run.out_dir": "output_dir output out save_dir log_dir",
        "run.resume": "resume_from resume_from_checkpoint",
        "run.seed": "random_seed manual_seed",
        "system.compile": "torch_compile use_compile",
        "system.precision": "dtype fp16 bf16 amp mixed_precision",
        "tracking.log_every": "log_interval logging_steps print_every log_steps",
        "tracking.project": "wandb_project",
        "tracking.wandb": "wandb_log use_wandb wandb_mode",
        "train.eval_every": "eval_interval eval_steps val_every val_interval val_loss_every",
        "train.eval_tokens": "eval_iters eval_batches val_tokens val_max_steps",
        "train.init_from": "pretrained pretrained_model pretrained_path from_pretrained finetune_from load_from"
        " load_checkpoint load_weights init_checkpoint init_weights weights",
        "train.max_steps": "max_iters steps iters iterations num_iterations num_steps max_iterations epochs num_epochs"
        " num_train_epochs total_steps",
        "train.micro_batch_size": "batch_size per_device_train_batch_size device_batch_size micro_batch",
        "train.sample_prompt": "prompt",
        "train.total_batch_size": "global_batch_size gradient_accumulation_steps accumulation accumulation_steps"
        " grad_accum grad_accum_steps total_batch batch_tokens tokens_per_step",
    }.items()
    for name in names.split()
}


_WHOLE, _NUMBER, _BOOLEAN = "a whole number such as 100000 or 100M", "a number such as 2.50", "true or false"
# What a value should be, by pydantic's type of problem; the fields are those of its context.
_EXPECTED = {
    "bool_parsing": _BOOLEAN,
    "bool_type": _BOOLEAN,
    "finite_number": "a finite number",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": "a smaller number",
    "int_type": _WHOLE,
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "a name of letters, digits, '.', '_' and '-' that begins with a letter or a digit",
    "string_too_short": "text that is not empty",
    "string_type": "text",
}


def describe_unknown_setting(name: str, known: Sequence[str]) -> str:
    """The error message about a name that is not a setting.

    Args:
        name: dotted name, or the name of a section.
        known: dotted names of all settings.

    Returns:
        The message, with the setting that was probably meant.
    """
    section, _, key = name.lower().replace("-", "_").rpartition(".")
    if key in _FOREIGN_NAMES:
        return f"unknown setting {name}; did you mean {_FOREIGN_NAMES[key]}?"
    settings = {setting.rpartition(".")[2]: setting for setting in reversed(known)}
    sections = {setting.partition(".")[0] for setting in known}
    here = {setting.rpartition(".")[2]: setting for setting in known if setting.startswith(f"{section}.")}
    guess = find_similar(key, here)
    if guess is None:  # keys before sections: train.warmup_stps is in no section of a similar name
        here, guess = settings, find_similar(key, settings if section else [*settings, *sorted(sections)])
    return f"unknown setting {name}{f'; did you mean {here.get(guess, guess)}?' if guess else ''}"


def translate(error: ValidationError, origins: Mapping[str, str], known: Sequence[str]) -> GPT2LabError:
    """Turn the first problem that pydantic reports into an error for the user.

    Args:
        error: what validating the settings raised.
        origins: by dotted name, what precedes the name in the message: `FILE: ` or `--`.
        known: dotted names of all settings.

    Returns:
        The error to raise.
    """
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][:2])  # deeper parts name members of a union, not settings
    origin = origins.get(name, "")
    if first["type"] == "extra_forbidden":
        return GPT2LabError(f"{'' if origin == '--' else origin}{describe_unknown_setting(name, known)}")
    prefix = f"{origin}{name}: " if name else ""
    if first["type"] == "value_error":
        return GPT2LabError(prefix + first["msg"].removeprefix("Value error, "))
    expected = [
        _EXPECTED[problem["type"]].format_map(problem.get("ctx", {}))
        if problem["type"] in _EXPECTED
        else problem["msg"].removeprefix("Input should be ")
        for problem in error.errors()
        if problem["loc"][:2] == first["loc"][:2]
    ]
    return GPT2LabError(f"{prefix}should be {', or '.join(dict.fromkeys(expected))}, not {shorten(first['input'])}")


def shorten(value: Any) -> str:
    """A value as it is written in YAML, shortened: aliases can make a short recipe's value huge.

    Args:
        value: any value.

    Returns:
        Text for a message.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxlong, brief.maxother = 1, 60, 60, 60
    return brief.repr(value)

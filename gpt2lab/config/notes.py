"""What a user should know about the settings before training: defaults that no file sets, and unusual values."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from gpt2lab.config.settings import Config
from gpt2lab.formatting import plural


class Usual(NamedTuple):
    """The values of a setting that are known to work, for any model of this package, and where they come from."""

    setting: str
    smallest: float
    largest: float
    source: str


# Wide: a value outside was far from everything that was published or tried. 0 turns some settings off and is not here.
USUAL = (
    Usual("optimizer.max_lr", 1e-5, 3e-2, "GPT-3 6e-5 to 6e-4, the quickstart's 7M model a few 1e-3"),
    Usual("optimizer.weight_decay", 1e-4, 1.0, "GPT-3 0.1"),
    Usual("optimizer.beta1", 0.5, 0.99, "GPT-3 0.9"),
    Usual("optimizer.beta2", 0.8, 0.9999, "GPT-3 0.95, PyTorch 0.999"),
    Usual("optimizer.eps", 1e-15, 1e-4, "GPT-3 1e-8"),
    Usual("optimizer.grad_clip", 0.01, 100.0, "GPT-3 1.0"),
    Usual("guard.spike_sigma", 2.0, 100.0, "3 to 10 standard deviations"),
    Usual("train.total_batch_size", 1, 33_554_432, "GPT-3 0.5M to 3.2M tokens"),
)


def find_unusual(config: Config) -> Iterator[str]:
    """Find settings far outside the range that has worked.

    Args:
        config: the settings.

    Yields:
        One line for each of them.
    """
    values = config.flat()
    for setting, smallest, largest, source in USUAL:
        if values[setting] and not smallest <= values[setting] <= largest:
            yield f"{setting} {values[setting]:g} is far outside the usual {smallest:g} to {largest:g} ({source})"


def describe_quickstart(config: Config, overrides: Mapping[str, str]) -> str:
    """Say what is trained without --config: the quickstart recipe, or another model with the recipe's other settings.

    Args:
        config: the settings.
        overrides: those of the command line, by dotted name.

    Returns:
        One line.
    """
    text = {"stdlib": "the text of Python's documentation"}.get(config.data.source, config.data.source)
    data = config.data.dir or config.data.input or text
    if config.train.init_from is not None:
        return (
            f"no --config: training the quickstart recipe, from {config.train.init_from} on {data}. "
            "To fine-tune: gpt2lab train --config finetune_shakespeare --data.dir FOLDER"
        )
    size = config.model.size or "124M"
    advice = f"For GPT-2 {size}: gpt2lab train --config config/gpt2_{size.lower()}.yaml"
    given = " ".join(f"--{name} {value}" for name, value in overrides.items() if name.startswith("model."))
    if not given:
        return f"no --config: training the quickstart recipe, a small model on {data}. {advice}"
    steps = f"{plural(config.train.max_steps, 'step')} of {config.train.total_batch_size:,} tokens"
    return f"no --config: the quickstart recipe, which is for a small model, with {given}: {steps} on {data}. {advice}"


def describe_defaults(config: Config) -> str:
    """Name the size of the model and the length of the run, where the files and the command line leave it to defaults.

    Args:
        config: the settings.

    Returns:
        One line; empty if both are set.
    """
    model, train = config.model, config.train
    missing = ["model.size"] * ("size" not in model.model_fields_set and train.init_from is None)
    missing += ["train.max_steps"] * ("max_steps" not in train.model_fields_set)
    if not missing:
        return ""
    text = ""
    if not {"source", "dir", "input"} & config.data.model_fields_set:
        missing.append("data.source")
        text = f", text {config.data.source}"
    size = model.size or f"n_layer {model.n_layer}, n_head {model.n_head}, n_embd {model.n_embd}"
    size = f"GPT-2 {size}, " if train.init_from is None else ""
    return (
        f"no {', no '.join(missing)} in the settings, so the defaults apply: "
        f"{size}{plural(train.max_steps, 'step')} of {train.total_batch_size:,} tokens{text}"
    )

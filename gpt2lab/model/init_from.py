"""The architecture of a run that starts from weights (`train.init_from`). Knows no torch, so that a plan can use it.

The architecture is that of the weights. Only the context window and the padding of the vocabulary can be chosen.
"""

import logging
from collections.abc import Collection
from pathlib import Path

from gpt2lab.config import GPT2_VOCAB_SIZE, SHAPE, Config, GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import config_json, names

logger = logging.getLogger(__name__)

_ADAPTED = ("block_size", "vocab_size")  # these fields of the model may differ from those of the weights


def apply(config: Config, given: Collection[str]) -> Config:
    """Put the architecture of the weights in place of `model:`, as training does, without reading the weights.

    Args:
        config: all settings.
        given: dotted names of the settings on the command line, which must not contradict the weights.

    Returns:
        The settings of the run. Those of a name of the Hub, or of a file of another project, are returned as they are,
        with a message.

    Raises:
        GPT2LabError: the model does not exist, its config.json cannot be read, or a setting contradicts it.
    """
    name = config.train.init_from
    if name is None:
        return config
    require(name)
    if not Path(name).is_dir():
        what = "is not read" if Path(name).exists() else "is not downloaded"
        logger.info(f"train.init_from {name} {what}: the architecture below is that of the settings")
        return config
    try:
        stored = config_json.read_config(_find_folder(Path(name)))
    except GPT2LabError as error:
        raise GPT2LabError(f"train.init_from: {error}") from error
    model, _ = adapt(config.model, given, stored, name)
    return config.model_copy(update={"model": model})


def require(name: str) -> None:
    """Check that there is such a model, or that there could be one on the Hub.

    Args:
        name: as the settings give it.

    Raises:
        GPT2LabError: it is neither.
    """
    try:
        names.require(name)
    except GPT2LabError as error:
        raise GPT2LabError(f"train.init_from: {error}") from error


def _find_folder(path: Path) -> Path:
    """The folder of the newest checkpoint of a run; of a model, the folder itself."""
    checkpoints = path / "checkpoints" if (path / "checkpoints").exists() else path
    if newest := max(checkpoints.glob(f"step_*/{config_json.CONFIG}"), default=None):  # steps have a fixed width
        return newest.parent
    if checkpoints != path or (path / "metrics.jsonl").exists():
        raise GPT2LabError(f"{path} has no checkpoint yet; wait for the first one (checkpoint.every)")
    names.require_no_runs(path)
    return path


def adapt(
    model: GPT2Config, given: Collection[str], stored: GPT2Config, name: str
) -> tuple[GPT2Config, dict[str, str]]:
    """Choose the architecture of a run that starts from weights.

    Args:
        model: that of the settings.
        given: dotted names of the settings on the command line, which must not contradict the weights.
        stored: that of the weights.
        name: of the weights, for messages.

    Returns:
        The architecture, and what differs from that of the weights, by field.

    Raises:
        GPT2LabError: a setting on the command line contradicts the weights.
    """
    _refuse_contradictions(model, given, stored, name)
    block_size, block_change = _choose_block_size(model, given, stored)
    vocab_size, vocab_change = _choose_vocab_size(model, given, stored, name)
    changes = {key: text for key, text in zip(_ADAPTED, (block_change, vocab_change), strict=True) if text}
    return stored.model_copy(update={"block_size": block_size, "vocab_size": vocab_size}), changes


def _refuse_contradictions(model: GPT2Config, given: Collection[str], stored: GPT2Config, name: str) -> None:
    """Raise if a setting on the command line is not that of the weights."""
    fields = [field for field in GPT2Config.model_fields if field not in ("size", *_ADAPTED)]
    for field in fields:
        asked = f"model.{field}" in given or ("model.size" in given and model.size is not None and field in SHAPE)
        wanted, value = getattr(model, field), getattr(stored, field)
        if asked and wanted != value:
            option = f"model.{field}" if f"model.{field}" in given else "model.size"
            wanted = getattr(model, option.removeprefix("model."))
            raise GPT2LabError(
                f"--{option} {str(wanted).lower()}: {name} has {field} {str(value).lower()}, and a run keeps the "
                f"architecture of the weights that it starts from; leave --{option} out, or start from another model"
            )


def _choose_block_size(model: GPT2Config, given: Collection[str], stored: GPT2Config) -> tuple[int, str]:
    """The context window of the run, and how it differs from that of the weights or of the recipe."""
    wanted, has = model.block_size, stored.block_size
    if "block_size" not in model.model_fields_set or wanted == has:
        return has, ""
    learned = stored.architecture == "gpt2"
    if wanted < has:
        return wanted, f"shorter than the model's {has:,}" + ("; the positions after it are cut" if learned else "")
    if "model.block_size" not in given:
        return has, f"that of the model; the recipe's {wanted:,} is longer (--model.block_size {wanted} extends it)"
    new = f"positions from {has:,} on start from random values" if learned else "rotary positions have no weights"
    return wanted, f"longer than the model's {has:,}; {new}"


def _choose_vocab_size(model: GPT2Config, given: Collection[str], stored: GPT2Config, name: str) -> tuple[int, str]:
    """The rows of the vocabulary, and how they differ from those of the weights or of the recipe."""
    wanted, has = model.vocab_size, stored.vocab_size
    if "vocab_size" not in model.model_fields_set or wanted == has:
        return has, ""
    if "model.vocab_size" not in given:
        return has, f"that of the model; the recipe's is {wanted} (--model.vocab_size {wanted} pads or trims it)"
    if wanted > has:
        return wanted, f"padded from {has}"
    if wanted < GPT2_VOCAB_SIZE:
        raise GPT2LabError(
            f"--model.vocab_size {wanted} would cut tokens of {name}, which has {has}; only padding beyond "
            f"{GPT2_VOCAB_SIZE} can be trimmed"
        )
    return wanted, f"trimmed from {has}, which was padded"

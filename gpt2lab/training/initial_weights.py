"""The weights that a new run starts from (`train.init_from`), and the architecture that comes with them.

name ─▶ folder or file ─▶ config, weights ─▶ compared with the settings ─▶ Config of the run, InitialWeights

Optimizer, schedule and step count begin anew. A run that has a checkpoint is resumed with its own weights: what it
started from is then not read, and may be gone.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt2lab import progress
from gpt2lab.config import SHAPE, Config, GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import huggingface, init_from, resolve
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.model.resolve import ResolvedCheckpoint
from gpt2lab.system.distributed import DistContext
from gpt2lab.training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialWeights:
    """Weights on the CPU, and where they come from."""

    name: str  # as the settings give it
    source: ResolvedCheckpoint
    weights: dict[str, Tensor]  # as in a state dict
    changes: Mapping[str, str]  # what differs from the source, by field of the model

    @torch.no_grad()
    def load_into(self, model: LanguageModel) -> None:
        """Copy the weights into a model that has its initial values, and is not sharded yet.

        Rows that the model does not have are cut. New positions keep the model's initial values. New rows of the
        vocabulary, which no token has, become the mean of the others: their logits are then the mean of all logits, so
        the padding raises the loss by at most log(V / V_before), 0.001 for 50304.

        The weights are gone afterwards.

        Args:
            model: of the architecture that `find` returned.
        """
        vocabulary = huggingface.vocabulary_tensors(model.config)
        for name, target in model.state_dict().items():  # the tensors share the memory of the parameters
            stored = self.weights.pop(name)  # frees its memory as soon as it is copied
            target[: len(stored)].copy_(stored[: len(target)])
            if name in vocabulary and len(target) > len(stored):
                target[len(stored) :].copy_(stored.mean(dim=0))

    def describe(self) -> dict[str, Any]:
        """The details of the event in events.jsonl."""
        of_step = {} if self.source.step is None else {"from_step": self.source.step}
        return {"from": self.name, "path": str(self.source.folder), **of_step, **self.changes}


def find(
    config: Config, given: Collection[str], start: Checkpoint | None, dist: DistContext
) -> tuple[Config, InitialWeights | None]:
    """Read the weights that `train.init_from` names, and put their architecture in place of `model:`.

    Args:
        config: all settings.
        given: dotted names of the settings on the command line, which must not contradict the weights.
        start: the checkpoint that the run resumes from, whose architecture and `train.init_from` are kept; None: a new
            run.
        dist: the ranks; rank 0 downloads.

    Returns:
        The settings of the run, and the weights; None if the run resumes or starts from random weights.

    Raises:
        GPT2LabError: the model cannot be found or read, or a setting on the command line contradicts it.
    """
    name = config.train.init_from
    if start is not None:
        return _keep_origin(config, given, start), None
    if name is None:
        return config, None
    try:
        source = dist.on_main(lambda: resolve.find_checkpoint(name, mirror=config.data.mirror))
        if not source.folder.exists():  # a machine with another cache than that of rank 0
            source = resolve.find_checkpoint(name, mirror=config.data.mirror)
        with progress.Phase("reading the weights", announce=True):
            stored, weights = resolve.read(source)
    except GPT2LabError as error:
        raise GPT2LabError(f"train.init_from: {error}") from error
    model, changes = init_from.adapt(config.model, given, stored, name)
    place = f" ({source.folder})" if str(source.folder) != name else ""
    logger.info(f"starting from the weights of {name}{place}")
    for key, text in changes.items():
        logger.info(f"model.{key} {getattr(model, key)}: {text}")
    return config.model_copy(update={"model": model}), InitialWeights(name, source, weights, changes)


def _keep_origin(config: Config, given: Collection[str], start: Checkpoint) -> Config:
    """The settings of a run that resumes: where it began, and if that was a model, its architecture."""
    name, saved = config.train.init_from, start.state["fingerprint"]["settings"]
    if name is not None and {"run.resume", "train.init_from"} <= set(given):
        raise GPT2LabError(
            f"run.resume {config.run.resume} continues a run, and train.init_from {name} starts a new one; give one of "
            "them"
        )
    origin = saved.get("train.init_from")
    if name not in (None, origin):
        began = f"the weights of {origin}" if origin else "random weights"
        logger.info(
            f"train.init_from {name} is not read: the run has gone on to step {start.step} from {began}; to start from "
            f"{name}, give another --run.name"
        )
    config = config.model_copy(update={"train": config.train.model_copy(update={"init_from": origin})})
    if origin is None:
        return config
    fields = {field: saved[f"model.{field}"] for field in GPT2Config.model_fields if f"model.{field}" in saved}
    names = {*given, *(f"model.{field}" for field in SHAPE if "model.size" in given)}
    kept = {field: getattr(config.model, field) for field in GPT2Config.model_fields if f"model.{field}" in names}
    # Not validated: `changed_settings` names what contradicts the checkpoint.
    return config.model_copy(update={"model": GPT2Config.model_validate(fields).model_copy(update=kept)})

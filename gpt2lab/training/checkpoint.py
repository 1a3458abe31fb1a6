"""The format of checkpoints: written atomically, and verified when read.

    runs/NAME/checkpoints/step_00001000/
        config.json, model.safetensors     a Hugging Face model directory
        optimizer.safetensors              AdamW's state by parameter name
        state.json                         step, RNG, guard, loss scale, fingerprint of data and settings
        SHA256SUMS                         written last, over all of them

No pickle. A checkpoint is written under a temporary name, synced, then renamed (`files.atomic_directory`).
"""

import base64
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gpt2lab import disk_space, files
from gpt2lab.config import GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import huggingface, weight_files
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.model.resolve import list_checkpoints
from gpt2lab.system import device as devices
from gpt2lab.system import distributed
from gpt2lab.training import optimizer as optimizers
from gpt2lab.training.state import TrainState

FORMAT = 1
STATE_FILES = ("optimizer.safetensors", "state.json")  # which a model without a training run does not have
FILES = (huggingface.CONFIG, huggingface.WEIGHTS, *STATE_FILES)
BYTES_PER_PARAMETER = 12  # a weight and AdamW's two moments, in fp32


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose digests were verified. Tensors are read when they are restored."""

    path: Path
    state: dict[str, Any]  # state.json

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.state["step"])

    @property
    def recorded(self) -> int:
        """The last step in metrics.jsonl: a run that was stopped by a signal leaves its last step to the next start."""
        return self.step - bool(self.state.get("unlogged"))

    def restore_weights(self, model: LanguageModel) -> None:
        """Load the weights.

        Args:
            model: not sharded yet.

        Raises:
            GPT2LabError: the weights are damaged or of another shape than the model's.
        """
        config, weights = huggingface.read(self.path)
        if huggingface.shapes(config) != huggingface.shapes(model.config):
            raise GPT2LabError(f"{self.path}: the shapes of its weights are not those of this run's model")
        model.load_state_dict(weights)

    def restore_optimizer(self, model: LanguageModel, optimizer: Sequence[torch.optim.Optimizer]) -> None:
        """Load the optimizers' state and the states of the random number generators.

        Args:
            model: on its device, sharded or not.
            optimizer: those of the model's parameters.

        Raises:
            GPT2LabError: tensors are missing or of another shape than the model's.
        """
        try:
            tensors = load_file(self.path / "optimizer.safetensors")
        except PermissionError as error:
            raise files.cannot_read(self.path / "optimizer.safetensors", error) from error
        except (SafetensorError, OSError) as error:
            raise GPT2LabError(f"{self.path / 'optimizer.safetensors'}: cannot be read: {error}") from error
        optimizers.load_state_tensors(model, optimizer, tensors)
        try:
            _set_rng(self.state["rng"], next(model.parameters()).device)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise GPT2LabError(f"{self.path / 'state.json'}: its random state cannot be read: {error}") from error


class Snapshot(NamedTuple):
    """A copy of a training state in CPU memory."""

    step: int
    config: GPT2Config
    weights: dict[str, Tensor]  # as in a state dict
    optimizer: dict[str, Tensor]
    state: dict[str, Any]  # state.json


def copy_state(
    step: int, state: TrainState, details: Mapping[str, Any], buffers: dict[str, Tensor] | None
) -> Snapshot | None:
    """Copy a training state to the CPU. If the model is sharded, all ranks must call this.

    Args:
        step: optimizer steps taken.
        state: what is copied.
        details: more keys of `state.json`.
        buffers: tensors that the snapshot is copied into, by name; empty at first, and reused by later calls. None on
            ranks that only contribute their part of a sharded model.

    Returns:
        The snapshot, or None without buffers.
    """
    model, device = state.model, next(state.model.parameters()).device
    parameters, moments = dict(model.named_parameters()), optimizers.state_tensors(model, state.optimizers)
    for name, tensor in (parameters | moments).items():
        full = distributed.full_tensor(tensor.detach())
        if buffers is not None:
            if name not in buffers:
                pinned = device.type == "cuda"  # for copies at full speed that do not block the host
                buffers[name] = torch.empty_like(full, device="cpu", pin_memory=pinned)
            buffers[name].copy_(full, non_blocking=True)
    devices.synchronize(device)
    if buffers is None:
        return None
    weights = {name: buffers[name] for name in parameters}
    if model.config.tie_word_embeddings:
        embedding, head = huggingface.vocabulary_tensors(model.config)
        weights[head] = weights[embedding]
    values = {"format": FORMAT, "step": step, "rng": _get_rng(device), **details, **state.state_dict()}
    return Snapshot(step, model.config, weights, {name: buffers[name] for name in moments}, values)


def write(folder: Path, snapshot: Snapshot) -> Path:
    """Write `folder/step_NNNNNNNN`.

    Args:
        folder: the `checkpoints` folder of a run.
        snapshot: what to write.

    Returns:
        The path of the checkpoint.

    Raises:
        GPT2LabError: there is no space, or the file system refuses; nothing incomplete is left.
    """
    path = folder / f"step_{snapshot.step:08d}"
    tensors = {t.data_ptr(): t.nbytes for t in (*snapshot.weights.values(), *snapshot.optimizer.values())}
    size = sum(tensors.values())  # tied weights once
    advice = "free space, or move run.out_dir to another disk"  # keep_last applies once this one is written
    disk_space.require_space([disk_space.SpaceNeeded(folder, size, "a checkpoint")], advice)
    with files.atomic_directory(path) as temporary:
        huggingface.write(temporary, snapshot.config, snapshot.weights)
        weight_files.save_tensors(temporary / "optimizer.safetensors", snapshot.optimizer)
        (temporary / "state.json").write_text(json.dumps(snapshot.state), encoding="utf-8")
    return path


def read(path: Path) -> Checkpoint:
    """Verify the digests of a checkpoint and read its `state.json`.

    Args:
        path: the folder of the checkpoint.

    Returns:
        The checkpoint, without its tensors.

    Raises:
        UnreadableError: the system refuses to read a file.
        GPT2LabError: the folder is missing, incomplete, or differs from its SHA256SUMS.
    """
    if not path.is_dir():
        raise GPT2LabError(f"{path}: there is no such checkpoint folder")
    files.verify_digests(path, required=FILES)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GPT2LabError(f"{path}: state.json cannot be read, so training cannot be resumed from it") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise GPT2LabError(f"{path}: state.json is not of format {FORMAT}, the one this version reads")
    match state:
        case {"step": int(step), "rng": _, "fingerprint": {"settings": dict(), "data": _}} if step >= 0:
            return Checkpoint(path, state)
    raise GPT2LabError(f"{path}: state.json lacks step, rng, or its run's settings or data; it was changed by hand")


def prune(folder: Path, keep_last: int, keep_every: int, keep_best: bool = False) -> None:
    """Remove old checkpoints.

    Args:
        folder: the `checkpoints` folder of a run.
        keep_last: keep so many of the newest.
        keep_every: keep the multiples of this step; 0: none.
        keep_best: keep the one with the lowest validation loss, of those that were evaluated at their step.
    """
    present = list_checkpoints(folder)
    losses = [(loss, step) for step, path in present if (loss := _val_loss(path)) is not None]
    best = min(losses)[1] if keep_best and losses else None
    for step, path in present[:-keep_last]:
        if not (keep_every and step % keep_every == 0) and step != best:
            removed = files.temporary_name(path)  # renamed first, so that a kill leaves no damaged checkpoint
            path.rename(removed)
            shutil.rmtree(removed)


def _val_loss(path: Path) -> float | None:
    try:
        value = json.loads((path / "state.json").read_text(encoding="utf-8")).get("val_loss")
    except (OSError, ValueError, AttributeError):
        return None  # damaged
    return value if isinstance(value, float) else None


def _get_rng(device: torch.device) -> dict[str, Any]:
    """The states of all generators. gpt2lab uses torch's alone; Python's and numpy's are for code built on it."""
    algorithm, keys, *rest = np.random.get_state(legacy=True)
    rng: dict[str, Any] = {
        "cpu": _encode(torch.get_rng_state()),
        "python": random.getstate(),
        "numpy": [algorithm, np.asarray(keys).tolist(), *rest],
    }
    if device.type == "cuda":
        rng["cuda"] = _encode(torch.cuda.get_rng_state(device))
    return rng


def _set_rng(rng: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(_decode(rng["cpu"]))
    if device.type == "cuda" and "cuda" in rng:
        torch.cuda.set_rng_state(_decode(rng["cuda"]), device)
    if "python" in rng:
        version, numbers, gauss = rng["python"]
        random.setstate((version, tuple(numbers), gauss))
        np.random.set_state(tuple(rng["numpy"]))


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

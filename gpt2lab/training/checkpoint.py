"""Checkpoints: whole or absent, and checked when read.

    runs/NAME/checkpoints/step_00001000/
        config.json, model.safetensors     a Hugging Face model directory as it lies
        optimizer.safetensors              AdamW's state by parameter name
        state.json                         step, RNG, fingerprint of data and settings
        SHA256SUMS                         written last, over all of them

No pickle anywhere. The folder is written under a temporary name, synced and renamed (files.atomic_directory).
"""

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gpt2lab import files
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import huggingface, pretrained
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.model.pretrained import steps as steps
from gpt2lab.training import optimizer as optimizers

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose digests were verified; tensors are read when asked for."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.state["step"])

    def restore(self, model: GPT2, optimizer: torch.optim.Optimizer) -> None:
        """Fill a model and its optimizer, and set the random number generators.

        Raises:
            GPT2LabError: tensors are missing or of another shape than the model's.
        """
        _, weights = huggingface.read(self.path)
        ours = model.state_dict()
        for name in (*ours, *(weights.keys() - ours.keys())):
            if name not in weights or name not in ours or weights[name].shape != ours[name].shape:
                raise GPT2LabError(f"{self.path}: tensor {name} is missing or does not fit this run's model")
        model.load_state_dict(weights)
        try:
            tensors = load_file(self.path / "optimizer.safetensors")
        except (SafetensorError, OSError) as error:
            raise GPT2LabError(f"{self.path / 'optimizer.safetensors'}: cannot be read: {error}") from error
        optimizers.load_state_tensors(model, optimizer, tensors)
        try:
            _set_rng(self.state["rng"], next(model.parameters()).device)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise GPT2LabError(f"{self.path / 'state.json'}: its random state cannot be read: {error}") from error


def write(folder: Path, step: int, model: GPT2, optimizer: torch.optim.Optimizer, fingerprint: dict[str, Any]) -> Path:
    """Write `folder/step_NNNNNNNN` and return its path.

    Raises:
        GPT2LabError: no space, or another refusal of the file system; nothing half-written is left behind.
    """
    path = folder / f"step_{step:08d}"
    tensors = optimizers.state_tensors(model, optimizer)
    _check_space(folder, sum(t.nbytes for t in tensors.values()) + sum(p.nbytes for p in model.parameters()))
    state = {
        "format": FORMAT,
        "step": step,
        "rng": _get_rng(next(model.parameters()).device),
        "fingerprint": fingerprint,
    }
    with files.atomic_directory(path) as temporary:
        model.save_pretrained(temporary)
        huggingface.save_tensors(temporary / "optimizer.safetensors", tensors)
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    return path


def read(path: Path) -> Checkpoint:
    """Verify a checkpoint's digests and read its `state.json`.

    Raises:
        GPT2LabError: the folder is missing, incomplete, or differs from its SHA256SUMS.
    """
    if not path.is_dir():
        raise GPT2LabError(f"{path}: there is no such checkpoint folder")
    files.verify_digests(path)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GPT2LabError(f"{path}: state.json cannot be read, so training cannot go on from it") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise GPT2LabError(f"{path}: state.json is not of format {FORMAT}, the one this version reads")
    fingerprint = state.get("fingerprint")
    if not (isinstance(state.get("step"), int) and isinstance(fingerprint, dict) and "rng" in state):
        raise GPT2LabError(f"{path}: state.json lacks step, fingerprint or rng; it was changed by hand")
    if not isinstance(fingerprint.get("settings"), dict) or "data" not in fingerprint:
        raise GPT2LabError(f"{path}: state.json lacks the settings or the data of its run; it was changed by hand")
    return Checkpoint(path, state)


def newest_good(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies; `warn` hears of every newer one that does not. None without any.

    Raises:
        GPT2LabError: there are checkpoints, and none of them is good.
    """
    return pretrained.newest_good(folder, read, warn)


def prune(folder: Path, newest: int, keep_last: int, keep_every: int) -> None:
    """Remove all but the last `keep_last` checkpoints up to step `newest` and those at multiples of `keep_every`.

    Later ones do not count: they are damaged ones that the run went back behind, and will be written again.
    """
    for step, path in [(step, path) for step, path in steps(folder) if step <= newest][:-keep_last]:
        if not (keep_every and step % keep_every == 0):
            doomed = files.temporary_name(path)  # renamed first: a kill half-way leaves no damaged checkpoint
            path.rename(doomed)
            shutil.rmtree(doomed)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise GPT2LabError(
            f"{folder}: a checkpoint needs {needed / 2**20:.0f} MiB and the disk has {free / 2**20:.0f} MiB free; "
            "free space, lower checkpoint.keep_last, or move run.out_dir"
        )


def _get_rng(device: torch.device) -> dict[str, str]:
    rng = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(device)
    return {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in rng.items()}


def _set_rng(rng: dict[str, str], device: torch.device) -> None:
    def decode(text: str) -> Tensor:
        return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

    torch.set_rng_state(decode(rng["cpu"]))
    if device.type == "cuda" and "cuda" in rng:
        torch.cuda.set_rng_state(decode(rng["cuda"]), device)

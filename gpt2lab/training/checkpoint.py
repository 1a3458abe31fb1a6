"""Checkpoints: whole or absent, and checked when read.

    runs/NAME/checkpoints/step_00001000/
        config.json, model.safetensors     a Hugging Face model directory as it lies
        optimizer.safetensors              AdamW's state by parameter name
        state.json                         step, RNG, guard, loss scale, fingerprint of data and settings
        SHA256SUMS                         written last, over all of them

No pickle anywhere. A snapshot is taken between two steps and written by a thread while training goes on: under a
temporary name, synced, then renamed (files.atomic_directory).
"""

import base64
import concurrent.futures
import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gpt2lab import disk, files
from gpt2lab.config import GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import huggingface, resolve, weight_files
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.model.resolve import list_checkpoints as list_checkpoints
from gpt2lab.system import device as devices
from gpt2lab.system import distributed
from gpt2lab.training import optimizer as optimizers

FORMAT = 1
FILES = (huggingface.CONFIG, huggingface.WEIGHTS, "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose digests were verified; tensors are read when asked for."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.state["step"])

    @property
    def recorded(self) -> int:
        """The last step whose line stands in the record: who stops at a signal leaves its line to the next start."""
        return self.step - bool(self.state.get("unlogged"))

    def restore_weights(self, model: GPT2) -> None:
        """Fill a model, before it is sharded.

        Raises:
            GPT2LabError: tensors are missing or of another shape than the model's.
        """
        _, weights = huggingface.read(self.path)
        ours = model.state_dict()
        for name in (*ours, *(weights.keys() - ours.keys())):
            if name not in weights or name not in ours or weights[name].shape != ours[name].shape:
                raise GPT2LabError(f"{self.path}: tensor {name} is missing or does not fit this run's model")
        model.load_state_dict(weights)

    def restore_optimizer(self, model: GPT2, optimizer: torch.optim.Optimizer) -> None:
        """Fill an optimizer, and set the random number generators.

        Raises:
            GPT2LabError: tensors are missing or of another shape than the model's.
        """
        try:
            tensors = load_file(self.path / "optimizer.safetensors")
        except (SafetensorError, OSError) as error:
            raise GPT2LabError(f"{self.path / 'optimizer.safetensors'}: cannot be read: {error}") from error
        optimizers.load_state_tensors(model, optimizer, tensors)
        try:
            _set_rng(self.state["rng"], next(model.parameters()).device)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise GPT2LabError(f"{self.path / 'state.json'}: its random state cannot be read: {error}") from error


class Snapshot(NamedTuple):
    """A moment of training on the CPU, which training on does not change."""

    step: int
    config: GPT2Config
    weights: dict[str, Tensor]  # as in a state dict
    optimizer: dict[str, Tensor]
    state: dict[str, Any]  # of state.json


class Snapshots:
    """Takes snapshots into one set of buffers, made at the first: so only one can be in use at a time."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(
        self, step: int, model: GPT2, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: bool = True
    ) -> Snapshot | None:
        """Copy weights and optimizer state; of a sharded model on every rank, since each has but its part.

        Args:
            state: more for state.json, as JSON.
            keep: false where only the parts of a sharded model are asked for; the result is then None.
        """
        device = next(model.parameters()).device
        live: dict[str, Tensor] = {f"model.{name}": tensor for name, tensor in model.named_parameters()}
        live |= {f"optimizer.{name}": t for name, t in optimizers.state_tensors(model, optimizer).items()}
        for name, tensor in live.items():
            all_of_it = distributed.full_tensor(tensor.detach())
            if keep:
                if name not in self._buffers:
                    pinned = device.type == "cuda"  # a card writes into such memory at full speed, and by itself
                    self._buffers[name] = torch.empty_like(all_of_it, device="cpu", pin_memory=pinned)
                self._buffers[name].copy_(all_of_it, non_blocking=True)
        devices.synchronize(device)
        if not keep:
            return None
        weights = {name[6:]: t for name, t in self._buffers.items() if name.startswith("model.")}
        if model.config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["transformer.wte.weight"]
        moments = {name[10:]: t for name, t in self._buffers.items() if name.startswith("optimizer.")}
        state = {"format": FORMAT, "step": step, "rng": _get_rng(device), **state}
        return Snapshot(step, model.config, weights, moments, state)


def write(folder: Path, snapshot: Snapshot) -> Path:
    """Write `folder/step_NNNNNNNN` and return its path.

    Raises:
        GPT2LabError: no space, or another refusal of the file system; nothing half-written is left behind.
    """
    path = folder / f"step_{snapshot.step:08d}"
    size = sum(t.nbytes for t in (*snapshot.weights.values(), *snapshot.optimizer.values()))
    advice = "free space, lower checkpoint.keep_last, or move run.out_dir"
    disk.require_space([disk.SpaceNeeded(folder, size, "a checkpoint")], advice)
    with files.atomic_directory(path) as temporary:
        huggingface.write(temporary, snapshot.config, snapshot.weights)
        weight_files.save_tensors(temporary / "optimizer.safetensors", snapshot.optimizer)
        (temporary / "state.json").write_text(json.dumps(snapshot.state), encoding="utf-8")
    return path


class Writer:
    """Writes snapshots on a thread, so that training goes on meanwhile; one at a time.

    Args:
        work: writes one. What it raises is raised by the next `submit` or `wait`.
    """

    def __init__(self, work: Callable[[Snapshot], None]):
        self._work = work
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether the last write is over and did not succeed."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def busy(self, patience: float) -> bool:
        """Whether a write is still going on, after waiting for its end for up to `patience` seconds."""
        return self._writing is not None and bool(concurrent.futures.wait([self._writing], patience).not_done)

    def submit(self, snapshot: Snapshot) -> None:
        """Begin to write; the one before must have been waited for."""
        assert self._writing is None
        self._writing = self._thread.submit(self._work, snapshot)

    def wait(self) -> None:
        """Return when nothing is being written, so that the buffers of the snapshot are free.

        Raises:
            GPT2LabError: the last write failed.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let a write that has begun come to its end."""
        self._thread.shutdown()


def read(path: Path) -> Checkpoint:
    """Verify a checkpoint's digests and read its `state.json`.

    Raises:
        GPT2LabError: the folder is missing, incomplete, or differs from its SHA256SUMS.
    """
    if not path.is_dir():
        raise GPT2LabError(f"{path}: there is no such checkpoint folder")
    files.verify_digests(path, required=FILES)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GPT2LabError(f"{path}: state.json cannot be read, so training cannot go on from it") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise GPT2LabError(f"{path}: state.json is not of format {FORMAT}, the one this version reads")
    fingerprint = state.get("fingerprint")
    step = state.get("step")
    if not (isinstance(step, int) and step >= 0 and isinstance(fingerprint, dict) and "rng" in state):
        raise GPT2LabError(f"{path}: state.json lacks step, fingerprint or rng; it was changed by hand")
    if not isinstance(fingerprint.get("settings"), dict) or "data" not in fingerprint:
        raise GPT2LabError(f"{path}: state.json lacks the settings or the data of its run; it was changed by hand")
    return Checkpoint(path, state)


def newest_valid(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies; `warn` hears of every newer one that does not. None without any.

    Raises:
        GPT2LabError: there are checkpoints, and none of them is good.
    """
    return resolve.newest_valid(folder, read)


def prune(folder: Path, newest: int, keep_last: int, keep_every: int, keep_best: bool = False) -> None:
    """Remove all checkpoints up to step `newest` but the last `keep_last`, multiples of `keep_every`, and the best.

    Later ones do not count: they are damaged ones that the run went back behind, and will be written again. The best
    has the lowest validation loss of those that were measured at their very step.
    """
    present = [(step, path) for step, path in list_checkpoints(folder) if step <= newest]
    losses = [(loss, step) for step, path in present if (loss := _val_loss(path)) is not None]
    best = min(losses)[1] if keep_best and losses else None
    for step, path in present[:-keep_last]:
        if not (keep_every and step % keep_every == 0) and step != best:
            doomed = files.temporary_name(path)  # renamed first: a kill half-way leaves no damaged checkpoint
            path.rename(doomed)
            shutil.rmtree(doomed)


def _val_loss(path: Path) -> float | None:
    try:
        value = json.loads((path / "state.json").read_text(encoding="utf-8")).get("val_loss")
    except (OSError, ValueError, AttributeError):
        return None  # damaged: it cannot be the best
    return value if isinstance(value, float) else None


def _get_rng(device: torch.device) -> dict[str, Any]:
    """Every generator's state. This project draws from torch's alone; Python's and numpy's are for who builds on it."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    rng: dict[str, Any] = {
        "cpu": _encode(torch.get_rng_state()),
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
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

"""The data of a run: the token streams of both splits, and this rank's batches on its device.

folder of shards ─▶ TokenStream ─▶ Loader.batch(step) ─▶ pinned memory ─▶ device
"""

from collections.abc import Generator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from gpt2lab.data.loader import Loader, prefetch
from gpt2lab.data.shards import TokenStream, read_manifest


@dataclass(frozen=True)
class TrainingData:
    """Both splits, and the loader of the training split."""

    train: TokenStream
    val: TokenStream
    loader: Loader
    mirror: str | None = None  # folder to take other files from instead of the network

    @property
    def digest(self) -> str:
        """Digests of both splits. A run can only be resumed on the same data."""
        return f"{self.train.fingerprint} {self.val.fingerprint}"

    @property
    def source(self) -> str | None:
        """The name of the text by the shards' manifest; None if there is none, or it does not say."""
        manifest = read_manifest(self.train.folder)
        if manifest is None or manifest.source != "pretokenized":
            return manifest and manifest.source
        return manifest.content.get("text") or None

    def describe(self) -> dict[str, Any]:
        """Return folder, source, first validation shard and numbers of tokens, for `environment.json`.

        `held_out` is true if the validation split is the end of the train shards.
        """
        return {
            "folder": str(self.train.folder),
            "source": self.source,
            "val_shard": self.val.files[0].name,
            "train_tokens": len(self.train),
            "val_tokens": len(self.val),
            **({"held_out": True} if self.val.held_out else {}),
        }

    def batches(
        self, first_step: int, last_step: int, overfit_batch: bool, device: torch.device
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield the batches of the steps after `first_step` up to `last_step`, each read while the one before is used.

        Args:
            first_step: steps already taken.
            last_step: the number of the last step.
            overfit_batch: yield the first batch of the run, for ever.
            device: where the batches are needed.

        Yields:
            Inputs and targets of this rank, each int64 `(sequences, block_size)` on the device.
        """

        def batch(step: int) -> list[Tensor]:
            tensors = [torch.from_numpy(tokens) for tokens in self.loader.batch(step)]
            return [tensor.pin_memory() for tensor in tensors] if device.type == "cuda" else tensors

        for x, y in repeat(batch(0)) if overfit_batch else prefetch(batch, first_step, last_step):
            yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)

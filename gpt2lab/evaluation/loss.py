"""Loss over fixed tokens of a split, the same whatever the number of ranks or the batch size."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision


def mean_loss(
    model: nn.Module,
    gather: Callable[[np.ndarray, int], np.ndarray],
    *,
    sequences: int,
    block_size: int,
    batch_size: int,
    dist: DistContext,
    precision: Precision,
) -> float:
    """Mean cross-entropy in nats a token over the first `sequences` x `block_size` targets of a split.

    Args:
        model: called as `model(idx, targets)`; in eval mode.
        gather: (starts int64 (n,), length) -> tokens (n, length), of the split.
        batch_size: sequences a forward pass; changes speed and memory only.
    """
    share = range(sequences)[dist.rank :: dist.world_size]
    sums = [torch.zeros((), device=dist.device)]
    for first in range(0, len(share), batch_size):
        ids = np.asarray(share[first : first + batch_size], dtype=np.int64)
        tokens = torch.from_numpy(gather(ids * block_size, block_size + 1).astype(np.int64)).to(dist.device)
        with torch.no_grad(), precision.autocast():
            _, loss = model(tokens[:, :-1], tokens[:, 1:])
        sums.append(loss.float() * len(ids))  # stays on the device: no wait a batch
    total = torch.stack(sums).cpu().double().sum()
    return float(dist.sum(total)) / sequences

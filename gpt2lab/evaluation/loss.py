"""Loss over fixed tokens of a split, the same whatever the number of ranks or the batch size; and bits per byte.

A loss in nats a token depends on the tokenizer: longer tokens are harder to guess. Bits per byte do not: they are what
the model would need to transmit the text, divided by the text's length in bytes.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gpt2lab.data.tokenizer import EOT, Tokenizer
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


def target_bytes(
    tokenizer: Tokenizer, gather: Callable[[np.ndarray, int], np.ndarray], *, sequences: int, block_size: int
) -> int:
    """Bytes of text that the targets of `mean_loss` stand for, counted from the tokens themselves.

    <|endoftext|> counts for none: no text has it, though the model has to predict it. Nor do padding ids.
    """
    lengths: npt.NDArray[np.int64] = np.zeros(1 << 16, dtype=np.int64)
    lengths[:EOT] = [len(tokenizer.decode_bytes([token])) for token in range(EOT)]
    total = 0
    for first in range(0, sequences, 1024):
        ids = np.arange(first, min(first + 1024, sequences), dtype=np.int64)
        total += int(lengths[gather(ids * block_size + 1, block_size)].sum())
    return total


def bits_per_byte(loss: float, tokens: int, size: int) -> float:
    """A mean loss in nats over `tokens` that stand for `size` bytes of text."""
    return loss * tokens / (math.log(2) * max(size, 1))

"""Validation loss over fixed tokens, independent of the number of ranks and of the batch size; and bits per byte.

A loss in nats per token depends on the tokenizer: longer tokens are harder to predict. Bits per byte do not depend on
it: they are the length of the text as compressed by the model, divided by its length in bytes.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from gpt2lab import progress
from gpt2lab.data.shards import TokenStream
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision
from gpt2lab.system.signals import CheckStop


def validation_loss(
    model: LanguageModel,
    data: TokenStream,
    text_bytes: int,
    sequences: int,
    batch_size: int,
    dist: DistContext,
    precision: Precision,
    check_stop: CheckStop | None = None,
) -> tuple[float, float]:
    """Loss over the first sequences of a validation split.

    Args:
        model: in eval mode; its block size is the length of a sequence.
        data: the validation split.
        text_bytes: what `target_bytes` returns for these sequences; it need not be counted at every evaluation.
        sequences: number of sequences, as `fixed_sequences` counts them.
        batch_size: sequences of a forward pass; changes speed and memory only.
        dist: the ranks that share the sequences.
        precision: of the matrix products.
        check_stop: called before each forward pass, equally often on every rank; may raise to end the evaluation.

    Returns:
        The loss in nats per token and in bits per byte, the same on every rank.
    """
    block_size = model.config.block_size
    own_sequences = range(sequences)[dist.rank :: dist.world_size]
    sums = [torch.zeros((), device=dist.device)]
    passes = math.ceil(math.ceil(sequences / dist.world_size) / batch_size)  # of rank 0, which has the most sequences
    with progress.Phase("validating", passes) as phase:
        for first in range(0, passes * batch_size, batch_size):
            if check_stop is not None:
                check_stop()
            ids = np.asarray(own_sequences[first : first + batch_size], dtype=np.int64)
            if len(ids):
                tokens = torch.from_numpy(data.gather(ids * block_size, block_size + 1).astype(np.int64))
                tokens = tokens.to(dist.device)
                with torch.no_grad(), precision.autocast():
                    _, loss = model(tokens[:, :-1], tokens[:, 1:])
                sums.append(loss.float() * len(ids))  # stays on the device: no synchronization in the loop
            phase.advance()
    total = torch.stack(sums).cpu().double().sum()
    mean = float(dist.sum(total)) / sequences
    return mean, mean * (sequences * block_size) / (math.log(2) * max(text_bytes, 1))


def target_bytes(
    tokenizer: Tokenizer, gather: Callable[[np.ndarray, int], np.ndarray], sequences: int, block_size: int
) -> int:
    """Length of the text behind the targets of `validation_loss`. <|endoftext|> and padding ids count as 0 bytes.

    Args:
        tokenizer: GPT-2's.
        gather: (starts int64 (n,), length) -> tokens (n, length) of the split.
        sequences: number of sequences.
        block_size: targets of a sequence.

    Returns:
        The length in bytes.
    """
    lengths: npt.NDArray[np.int64] = np.zeros(1 << 16, dtype=np.int64)
    lengths[: tokenizer.vocab_size] = tokenizer.byte_lengths()
    total = 0
    with progress.Phase("counting the bytes of the validation text", sequences) as phase:
        for first in range(0, sequences, 1024):
            ids = np.arange(first, min(first + 1024, sequences), dtype=np.int64)
            total += int(lengths[gather(ids * block_size + 1, block_size)].sum())
            phase.advance(len(ids))
    return total

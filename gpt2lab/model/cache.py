"""Keys and values of the tokens a model has seen, so that a new token costs one position and not the whole text.

A row's tokens lie in slots 0, 1, 2, … of the cache, and a token's slot is its position. Rows may differ in length:

    row 0   k0 k1 k2 k3 ·  ·        lengths[0] = 4
    row 1   k0 k1 ·  ·  ·  ·        lengths[1] = 2: what lies in its other slots is not looked at

It is an argument of the forward pass (`Transformer.forward(..., cache=cache)`), and the model never keeps it, so that
any number of texts can be on their way through one model.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpt2lab.config import GPT2Config

Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # the cache as one layer sees it


class KVCache:
    """Preallocated keys and values of all layers.

    Args:
        rows: texts, B.
        slots: tokens that each can hold, L; at most block_size can be used.
        dtype: of the keys and values as the model computes them (under autocast not the one of its weights).
    """

    def __init__(self, config: GPT2Config, rows: int, slots: int, *, device: torch.device, dtype: torch.dtype):
        shape = (config.n_layer, rows, config.n_head, slots, config.n_embd // config.n_head)
        # Zeros, because a slot that is masked out is multiplied by 0, and what was never written might not be a number.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (n_layer, B, H, L, D)
        self.values = torch.zeros_like(self.keys)
        self.lengths = [0] * rows  # tokens held of each row; the caller counts up, once all layers are through

    def layer(self, n: int) -> Extend:
        """`extend` of the n-th layer."""
        return functools.partial(self.extend, n)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values of new tokens, and return all that they may look at.

        Args:
            k, v: (B, H, T, D). Either the first T tokens of every row (the cache is empty), or one more of each.

        Returns:
            (B, H, K, D) each. Where rows differ in length, slots from a row's own length on have to be masked out.
        """
        keys, values = self.keys[layer], self.values[layer]
        if k.shape[2] > 1 or not any(self.lengths):
            assert not any(self.lengths), "several tokens at a time only go into an empty cache"
            keys[:, :, : k.shape[2]] = k
            values[:, :, : k.shape[2]] = v
            return k, v
        end = max(self.lengths)
        if min(self.lengths) == end:
            keys[:, :, end] = k[:, :, 0]
            values[:, :, end] = v[:, :, 0]
        else:
            rows = torch.arange(len(self.lengths), device=k.device)
            slots = torch.tensor(self.lengths, device=k.device)
            keys[rows, :, slots] = k[:, :, 0]
            values[rows, :, slots] = v[:, :, 0]
        return keys[:, :, : end + 1], values[:, :, : end + 1]

    def select(self, rows: Sequence[int]) -> "KVCache":
        """A cache of its own with these rows, in this order; a row may come up several times."""
        index = torch.tensor(rows, device=self.keys.device)
        return self._of(
            self.keys.index_select(1, index), self.values.index_select(1, index), [self.lengths[r] for r in rows]
        )

    def emptied_row(self, row: int) -> "KVCache":
        """This row's memory as an empty cache of one row: what is written there, is written here."""
        return self._of(self.keys[:, row : row + 1], self.values[:, row : row + 1], [0])

    @classmethod
    def _of(cls, keys: Tensor, values: Tensor, lengths: list[int]) -> "KVCache":
        cache = cls.__new__(cls)
        cache.keys, cache.values, cache.lengths = keys, values, lengths
        return cache

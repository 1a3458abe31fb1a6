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

Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # the cache as one layer sees it


class KVCache:
    """Keys and values of all layers, allocated for all tokens to come when the first are written.

    Args:
        rows: texts, B.
        slots: tokens that each can hold, L; at most block_size can be used.
    """

    def __init__(self, rows: int, slots: int):
        self.lengths = [0] * rows  # tokens held of each row; the caller counts up, once all layers are through
        self._slots = slots
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values, (B, H, L, D) each

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
        if layer not in self._layers:
            # Zeros, because a slot that is masked out is multiplied by 0, and unwritten memory may hold no numbers.
            shape = (*k.shape[:2], self._slots, k.shape[3])
            self._layers[layer] = k.new_zeros(shape), v.new_zeros(shape)
        keys, values = self._layers[layer]
        end, new = max(self.lengths), k.shape[2]
        assert new == 1 or end == 0, "several tokens at a time only go into an empty cache"
        if min(self.lengths) == end:
            keys[:, :, end : end + new] = k
            values[:, :, end : end + new] = v
        else:
            rows = torch.arange(len(self.lengths), device=k.device)
            slots = torch.tensor(self.lengths, device=k.device)
            keys[rows, :, slots] = k[:, :, 0]
            values[rows, :, slots] = v[:, :, 0]
        return keys[:, :, : end + new], values[:, :, : end + new]

    def select(self, rows: Sequence[int]) -> "KVCache":
        """A cache of its own with these rows, in this order; a row may come up several times."""
        cache = KVCache(len(rows), self._slots)
        cache.lengths = [self.lengths[row] for row in rows]
        for layer, (keys, values) in self._layers.items():
            index = torch.tensor(rows, device=keys.device)
            cache._layers[layer] = keys.index_select(0, index), values.index_select(0, index)
        return cache

    def emptied_row(self, row: int) -> "KVCache":
        """This row's memory as an empty cache of one row: what is written there, is written here."""
        cache = KVCache(1, self._slots)
        for layer, (keys, values) in self._layers.items():
            cache._layers[layer] = keys[row : row + 1], values[row : row + 1]
        return cache

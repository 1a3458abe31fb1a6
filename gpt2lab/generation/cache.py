"""Keys and values of the tokens a model has seen, so that a new token costs one position and not the whole text.

A row's tokens lie in slots 0, 1, 2, … of the cache, and a token's slot is its position. Rows may differ in length:

    row 0   k0 k1 k2 k3 ·  ·        lengths[0] = 4
    row 1   k0 k1 ·  ·  ·  ·        lengths[1] = 2

Rows of one length attend together, others each for itself. Nothing is padded or masked, so that a row's numbers do not
depend on its neighbours.

The cache is an argument of the forward pass (`Transformer.forward(..., cache=cache)`) and the model never keeps it: any
number of texts can be on their way through one model.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as _attention

from gpt2lab.model import cpu_attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # the cache as one layer sees it


class KVCache:
    """Keys and values of all layers, allocated for all tokens to come when the first are written.

    Args:
        rows: texts, B.
        slots: tokens that each can hold, L; at most block_size can be used.
    """

    def __init__(self, rows: int, slots: int):
        self.lengths = [0] * rows  # tokens held of each row; the caller counts up, once all layers are through
        self._shape = (rows, slots)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values, (B, H, L, D) each
        self._here = slice(0, rows)  # the rows that this object is about

    def layer(self, n: int) -> Attend:
        """`attend` of the n-th layer."""
        return functools.partial(self.attend, n)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the keys and values of new tokens, and let their queries look at all that the row has up to them.

        Args:
            q, k, v: (B, H, T, D). Either the first T tokens of every row (the cache is empty), or one more of each.

        Returns:
            (B, H, T, D): softmax(q k^T / sqrt(D)) v.
        """
        if layer not in self._layers:
            rows, slots = self._shape
            shape = (rows, k.shape[1], slots, k.shape[3])
            self._layers[layer] = k.new_empty(shape), v.new_empty(shape)
        keys, values = (part[self._here] for part in self._layers[layer])
        end, new = self.lengths[0], k.shape[2]
        assert new == 1 or not any(self.lengths), "several tokens at a time only go into an empty cache"
        if min(self.lengths) == max(self.lengths):
            keys[:, :, end : end + new] = k
            values[:, :, end : end + new] = v
            if new > 1:
                fast = cpu_attention.pays(q)
                return cpu_attention.attention(q, k, v) if fast else _attention(q, k, v, is_causal=True)
            return _attention(q, keys[:, :, : end + 1], values[:, :, : end + 1])
        rows_of_their_own = []
        for row, end in enumerate(self.lengths):
            keys[row, :, end] = k[row, :, 0]
            values[row, :, end] = v[row, :, 0]
            this = slice(row, row + 1)
            rows_of_their_own.append(_attention(q[this], keys[this, :, : end + 1], values[this, :, : end + 1]))
        return torch.cat(rows_of_their_own)

    def select(self, rows: Sequence[int]) -> "KVCache":
        """A cache of its own with these rows, in this order; a row may come up several times."""
        cache = KVCache(len(rows), self._shape[1])
        cache.lengths = [self.lengths[row] for row in rows]
        for layer, (keys, values) in self._layers.items():
            index = torch.tensor(rows, device=keys.device)
            cache._layers[layer] = keys.index_select(0, index), values.index_select(0, index)
        return cache

    def emptied(self, row: int) -> "KVCache":
        """One row as an empty cache: what is written there, is written here; its length is for the caller to note."""
        cache = KVCache(1, self._shape[1])
        cache._shape, cache._layers, cache._here = self._shape, self._layers, slice(row, row + 1)
        return cache

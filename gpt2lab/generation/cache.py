"""Keys and values of the tokens that a model has processed, so that a new token costs one position only.

A row's tokens are in slots 0, 1, 2, ... of the cache, and a token's slot is its position:

    row 0   k0 k1 k2 k3 ·  ·        lengths[0] = 4
    row 1   k0 k1 ·  ·  ·  ·        lengths[1] = 2

Rows of equal length are computed together, other rows one by one. Nothing is padded or masked, so a row's numbers do
not depend on other rows.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2lab.model import ops


class KVCache:
    """Keys and values of all layers for the tokens so far; an argument of the forward pass, not part of the model.

    Args:
        rows: number of texts, B.
        slots: tokens that each can hold, L, at most block_size. Memory is allocated at the first use.
    """

    def __init__(self, rows: int, slots: int):
        self.lengths = [0] * rows  # tokens per row; the caller adds to them after the last layer
        self._shape = (rows, slots)
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> keys and values, (B, H, L, D) each
        self._rows = slice(0, rows)  # the part of the tensors that belongs to this object

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the keys and values of new tokens and compute causal attention over all tokens so far.

        Args:
            layer: counted from 0.
            q: queries (B, H, T, D): of the first T tokens of each row (the cache is empty), or of one more (T = 1).
            k: keys (B, H, T, D).
            v: values (B, H, T, D).

        Returns:
            (B, H, T, D): softmax(q k^T / sqrt(D)) v.
        """
        if layer not in self._tensors:
            B, L = self._shape
            shape = (B, k.shape[1], L, k.shape[3])
            self._tensors[layer] = k.new_empty(shape), v.new_empty(shape)
        keys, values = (tensor[self._rows] for tensor in self._tensors[layer])
        T = k.shape[2]
        if not any(self.lengths):
            keys[:, :, :T], values[:, :, :T] = k, v
            return ops.attention(q, k, v)
        assert T == 1, "several tokens at a time need an empty cache"
        all_rows = [(slice(None), self.lengths[0] + 1)]
        one_by_one = [(slice(row, row + 1), length + 1) for row, length in enumerate(self.lengths)]
        outputs = []
        for rows, end in all_rows if len(set(self.lengths)) == 1 else one_by_one:
            keys[rows, :, end - 1 : end], values[rows, :, end - 1 : end] = k[rows], v[rows]
            outputs.append(F.scaled_dot_product_attention(q[rows], keys[rows, :, :end], values[rows, :, :end]))
        return torch.cat(outputs)

    def select(self, rows: Sequence[int]) -> "KVCache":
        """Copy these rows, in this order, to a new cache; a row may be repeated."""
        cache = KVCache(len(rows), self._shape[1])
        cache.lengths = [self.lengths[row] for row in rows]
        for layer, (keys, values) in self._tensors.items():
            index = torch.tensor(rows, device=keys.device)
            cache._tensors[layer] = keys.index_select(0, index), values.index_select(0, index)
        return cache

    def view_empty(self, row: int) -> "KVCache":
        """Return one row as an empty cache that shares this one's memory; `lengths` is not shared."""
        cache = KVCache(1, self._shape[1])
        cache._shape, cache._tensors, cache._rows = self._shape, self._tensors, slice(row, row + 1)
        return cache

"""How surprised a model is by continuations of contexts: the core of every multiple-choice and last-word task.

    requests (context, continuation) ──equal contexts together──▶ rows ──by length, token budget──▶ batches
        batch ──transformer──▶ hidden ──where a continuation is predicted──▶ head ──▶ a loss a token ──▶ Scores

A row is a context once, then every continuation of it, each without its last token (nothing is predicted from that):

    tokens      c0 c1 c2 | a0 a1 | b0 b1 b2        continuations a0 a1 a2 and b0 b1 b2 b3
    positions    0  1  2 |  3  4 |  3  4  5
    predicts           a0   a1 a2   b1 b2 b3       c2 predicts a0 and b0

A mask lets a continuation look at the context and at itself, never at its neighbours, so each is scored as if it stood
alone. The output head, with GPT-2 nearly a third of the work, runs at the predicting positions only.

The batches are planned from all requests before they are dealt out to the ranks, so a batch is the same computation
whoever does it, and the answers do not depend on the number of ranks. Nothing waits for the device until all is queued.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt2lab.errors import GPT2LabError
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.model.ops import linear
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision

# Tokens of a batch: on a CPU enough to keep matrix products efficient, on a card enough to fill it.
BATCH_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 65536}
HEAD_ROWS = {"cpu": 1024, "mps": 2048, "cuda": 4096}  # positions of the head at a time; each has 200 KB of logits

_CONTEXT, _PADDING = 0, -1  # segments of a row; its continuations are 1, 2, …


class Request(NamedTuple):
    """Token ids: how likely is `continuation` after `context`? Both have at least one."""

    context: Sequence[int]
    continuation: Sequence[int]


@dataclass(frozen=True)
class Scores:
    """What came of n requests, in their order; the same on every rank."""

    loss: npt.NDArray[np.float64]  # (n,) summed over the continuation, in nats
    tokens: npt.NDArray[np.int64]  # (n,) that the sum was taken over
    greedy: npt.NDArray[np.bool_]  # (n,) every token of the continuation was the likeliest
    truncated: npt.NDArray[np.bool_]  # (n,) lost tokens on the left, to fit the context window

    def split(self, sizes: Sequence[int]) -> list["Scores"]:
        """The scores of the first sizes[0] requests, of the next sizes[1], and so on."""
        ends = np.cumsum(sizes).tolist()
        parts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        return [Scores(self.loss[p], self.tokens[p], self.greedy[p], self.truncated[p]) for p in parts]


class _Row(NamedTuple):
    context: tuple[int, ...]
    continuations: list[tuple[int, tuple[int, ...]]]  # (request, tokens)

    def __len__(self) -> int:
        return len(self.context) + sum(len(tokens) - 1 for _, tokens in self.continuations)


class _Batch(NamedTuple):
    tokens: Tensor  # int64 (B, T)
    positions: Tensor  # int64 (B, T)
    segments: Tensor | None  # int64 (B, T); None where every row has one continuation, and the causal mask will do
    sources: Tensor  # int64 (S,) places of B * T that predict something, each once
    inverse: Tensor  # int64 (P,) rising: which of the sources each prediction comes from
    targets: Tensor  # int64 (P,) the tokens predicted
    pieces: list[tuple[int, int, int]]  # (first source, first prediction, end of predictions) of each call of the head
    requests: npt.NDArray[np.int64]  # (P,) whose they are


@torch.no_grad()
def score(
    model: GPT2,
    requests: Sequence[Request],
    *,
    dist: DistContext,
    precision: Precision,
    batch_tokens: int | None = None,
    greedy: bool = False,
) -> Scores:
    """Score every request.

    Args:
        model: plain (not compiled, not wrapped), in eval mode, on the device of `dist`.
        requests: all of them, on every rank.
        batch_tokens: tokens of a forward pass, padding included; by device unless given. One row is always allowed.
        greedy: find out which continuations are greedy, which costs another pass over the logits; else all false.

    A request longer than the window keeps its last block_size + 1 tokens.

    Raises:
        GPT2LabError: a token is not in the model's vocabulary, or a loss is not finite.
    """
    _check_vocabulary(model, requests)
    device = dist.device.type
    rows, tokens, truncated = _rows(requests, model.config.block_size)
    batches = list(_batches(rows, batch_tokens or BATCH_TOKENS[device]))
    losses, misses, owners = [], [], []
    with precision.autocast():  # once around all batches: the cast weights are kept from one to the next
        weight = _head_weight(model, precision)
        for rows_of_batch in batches[dist.rank :: dist.world_size]:
            batch = _assemble(rows_of_batch, dist.device, HEAD_ROWS[device])
            loss, miss = _predict(model, weight, batch, HEAD_ROWS[device], greedy)
            losses.append(loss)
            misses.append(miss)
            owners.append(batch.requests)
    totals = np.zeros((2, len(requests)))
    if owners:
        owner = np.concatenate(owners)
        for total, values in zip(totals, (losses, misses), strict=True):  # the only wait for the device
            total += np.bincount(owner, weights=torch.cat(values).float().cpu().numpy(), minlength=len(requests))
    if dist.world_size > 1:
        totals = dist.sum(torch.from_numpy(totals).to(dist.device)).cpu().numpy()
    if not np.isfinite(totals[0]).all():
        raise GPT2LabError("the model's losses are not finite; its weights are damaged, or training went astray")
    return Scores(totals[0], tokens, (totals[1] == 0) if greedy else np.zeros(len(requests), bool), truncated)


def _check_vocabulary(model: GPT2, requests: Sequence[Request]) -> None:
    largest = max((max(max(context), max(continuation)) for context, continuation in requests), default=0)
    if largest >= model.config.vocab_size:
        raise GPT2LabError(
            f"the text has token {largest}, but the model's vocab_size is {model.config.vocab_size}; "
            "evaluate a model that was trained with GPT-2's tokenizer (50257 tokens)"
        )


def _rows(
    requests: Sequence[Request], block_size: int
) -> tuple[list[_Row], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Requests with equal contexts in common rows, the longest rows first; the tokens scored a request; truncations.

    A row takes continuations as long as it is within the window, so that attention stays small beside the rest.
    """
    open_rows: dict[tuple[int, ...], _Row] = {}
    rows: list[_Row] = []
    scored = np.zeros(len(requests), dtype=np.int64)
    truncated = np.zeros(len(requests), dtype=bool)
    for number, (head, tail) in enumerate(requests):
        assert len(head) > 0 < len(tail)
        context, continuation = tuple(head), tuple(tail)
        if (excess := len(context) + len(continuation) - 1 - block_size) > 0:
            truncated[number] = True
            whole = (context + continuation)[excess:]
            split = max(1, len(context) - excess)  # a continuation that fills the window loses its beginning too
            context, continuation = whole[:split], whole[split:]
        scored[number] = len(continuation)
        row = open_rows.get(context)
        if row is None or len(row) + len(continuation) - 1 > block_size:
            row = open_rows[context] = _Row(context, [])
            rows.append(row)
        row.continuations.append((number, continuation))
    return sorted(rows, key=len, reverse=True), scored, truncated


def _batches(rows: Sequence[_Row], batch_tokens: int) -> Iterator[Sequence[_Row]]:
    """Rows, longest first, in batches of at most `batch_tokens` with the padding."""
    start = 0
    while start < len(rows):
        stop = start + max(1, batch_tokens // len(rows[start]))
        yield rows[start:stop]
        start = stop


def _assemble(rows: Sequence[_Row], device: torch.device, head_rows: int) -> _Batch:
    """A batch on the device, and everything about it that is better known on this side."""
    width = len(rows[0])
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    positions = np.zeros_like(tokens)
    segments = np.full_like(tokens, _PADDING)
    sources: list[int] = []  # place in B * T that predicts
    targets: list[int] = []  # what it predicts
    owners: list[int] = []  # for whom
    for n, (context, continuations) in enumerate(rows):
        end = len(context)
        tokens[n, :end], positions[n, :end], segments[n, :end] = context, np.arange(end), _CONTEXT
        for segment, (owner, continuation) in enumerate(continuations, start=1):
            begin, more = end, len(continuation) - 1
            end += more
            tokens[n, begin:end] = continuation[:-1]
            positions[n, begin:end] = np.arange(len(context), len(context) + more)
            segments[n, begin:end] = segment
            sources += [n * width + len(context) - 1, *range(n * width + begin, n * width + end)]
            targets += continuation
            owners += [owner] * len(continuation)
    order = np.argsort(np.array(sources), kind="stable")
    unique, inverse = np.unique(np.array(sources)[order], return_inverse=True)
    starts = range(0, len(unique), head_rows)
    cuts = np.searchsorted(inverse, [*starts, len(unique)]).tolist()
    alone = all(len(row.continuations) == 1 for row in rows)

    def on_device(array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return _Batch(
        tokens=on_device(tokens),
        positions=on_device(positions),
        segments=None if alone else on_device(segments),
        sources=on_device(unique),
        inverse=on_device(inverse),
        targets=on_device(np.array(targets)[order]),
        pieces=list(zip(starts, cuts[:-1], cuts[1:], strict=True)),
        requests=np.array(owners)[order],
    )


def _mask(segments: Tensor) -> Tensor:
    """bool (B, 1, T, T): look at yourself and what came before, of the context or of your own continuation."""
    T = segments.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    look_at = segments[:, None, :]
    return (causal & ((look_at == _CONTEXT) | (look_at == segments[:, :, None])))[:, None]


def _head_weight(model: GPT2, precision: Precision) -> Tensor:
    """(V, C), in 16 bits less its mean row.

    That takes one number from all logits of a position, which no softmax sees. GPT-2's logits lie around -50, where
    bf16 goes in steps of a quarter; around 0 the steps are small.
    """
    weight = model.lm_head.weight
    return weight if precision.dtype == torch.float32 else (weight - weight.mean(dim=0)).to(precision.dtype)


def _predict(model: GPT2, weight: Tensor, batch: _Batch, head_rows: int, greedy: bool) -> tuple[Tensor, Tensor]:
    """A loss in nats, and whether another token was likelier, for each prediction: float32 and bool (P,)."""
    mask = None if batch.segments is None else _mask(batch.segments)
    hidden = model.transformer(batch.tokens, batch.positions, mask).flatten(0, 1)[batch.sources]  # (S, C)
    normalisers, picked, misses = [], [], []
    for start, first, last in batch.pieces:
        logits = linear(hidden[start : start + head_rows], weight).float()  # (rows, V)
        here = batch.inverse[first:last] - start
        normalisers.append(logits.logsumexp(dim=-1))
        picked.append(logits[here, batch.targets[first:last]])
        misses.append(logits.argmax(dim=-1)[here] != batch.targets[first:last] if greedy else torch.zeros_like(here))
    return torch.cat(normalisers)[batch.inverse] - torch.cat(picked), torch.cat(misses).bool()

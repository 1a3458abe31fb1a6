"""Losses of continuations given their contexts: the basis of every multiple-choice and last-word task.

    requests (context, continuation) ──group by context──▶ rows ──by length, token budget──▶ batches
        batch ──transformer──▶ hidden ──positions that predict a continuation──▶ head ──▶ loss per token ──▶ Scores

A row is a context followed by all of its continuations, each without its last token, from which nothing is predicted:

    tokens      c0 c1 c2 | a0 a1 | b0 b1 b2        continuations a0 a1 a2 and b0 b1 b2 b3
    positions    0  1  2 |  3  4 |  3  4  5
    predicts           a0   a1 a2   b1 b2 b3       c2 predicts a0 and b0

An attention mask lets a continuation attend to the context and to itself, but not to the other continuations, so each
is scored as if it were alone in its row. The output head, about a third of GPT-2's computation, runs only at positions
that predict a continuation.

Batches are formed from all requests before they are distributed to the ranks, so the scores do not depend on the number
of ranks. The host does not synchronize with the device until all batches are queued.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt2lab import progress
from gpt2lab.errors import GPT2LabError
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.model.ops import linear, softcap, without_attention_plans
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision
from gpt2lab.system.signals import CheckStop

# Tokens of a batch: enough for efficient matrix products on a CPU, where a stop request waits for them, and to use a
# whole GPU.
BATCH_TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 65536}
HEAD_ROWS = {"cpu": 1024, "mps": 2048, "cuda": 4096}  # positions per call of the head; each has 200 KB of logits

_CONTEXT, _PADDING = 0, -1  # segment ids within a row; its continuations are 1, 2, …


class Request(NamedTuple):
    """Score the token ids `continuation` after the token ids `context`. Both have at least one."""

    context: Sequence[int]
    continuation: Sequence[int]


@dataclass(frozen=True)
class Scores:
    """Scores of n requests, in their order; the same on every rank."""

    loss: npt.NDArray[np.float64]  # (n,) summed over the continuation, in nats
    tokens: npt.NDArray[np.int64]  # (n,) number of tokens in the sum
    greedy: npt.NDArray[np.bool_]  # (n,) every token of the continuation was the most likely one
    truncated: npt.NDArray[np.bool_]  # (n,) tokens were cut on the left to fit the context window

    def select(self, part: slice) -> "Scores":
        """The scores of some of the requests."""
        return Scores(self.loss[part], self.tokens[part], self.greedy[part], self.truncated[part])


class _Row(NamedTuple):
    context: tuple[int, ...]
    continuations: list[tuple[int, tuple[int, ...]]]  # (index of the request, tokens)

    def __len__(self) -> int:
        return len(self.context) + sum(len(tokens) - 1 for _, tokens in self.continuations)


class _Batch(NamedTuple):
    tokens: Tensor  # int64 (B, T)
    positions: Tensor  # int64 (B, T)
    sources: Tensor  # int64 (P,) the position that predicts, as an index into B * T
    targets: Tensor  # int64 (P,) the token to predict
    segments: Tensor | None  # int64 (B, T); None if every row has one continuation, so that the causal mask is enough
    requests: npt.NDArray[np.int64]  # (P,) index of the request


@torch.no_grad()
def score(
    model: LanguageModel,
    requests: Sequence[Request],
    *,
    batch_tokens: int | None = None,
    greedy: bool = False,
    dist: DistContext,
    precision: Precision,
    name: str = "texts",
    check_stop: CheckStop | None = None,
) -> Scores:
    """Score every request.

    Args:
        model: not compiled, not wrapped, in eval mode, on the device of `dist`.
        requests: all requests, on every rank. Of a request longer than the context window, the last block_size + 1
            tokens are used.
        batch_tokens: tokens of a forward pass with padding; by device unless given. A batch has at least one row.
        greedy: also compute `Scores.greedy`, which takes another pass over the logits; otherwise it is all false.
        dist: the ranks that share the work.
        precision: of the matrix products.
        name: of the task, for the display of the progress.
        check_stop: called before each forward pass, equally often on every rank; may raise to end the evaluation.

    Returns:
        The scores.

    Raises:
        GPT2LabError: a token is not in the model's vocabulary, or a loss is not finite.
    """
    if (token := largest_token(requests)) >= model.config.vocab_size:
        raise GPT2LabError(
            f"the text has token {token}, but the model's vocab_size is {model.config.vocab_size}; "
            "evaluate a model that was trained with GPT-2's tokenizer (50257 tokens)"
        )
    device = dist.device.type
    rows, tokens, truncated = _group_by_context(requests, model.config.block_size)
    batches = list(_split_into_batches(rows, batch_tokens or BATCH_TOKENS[device]))
    values, owners = [], []
    # autocast is around all batches, so that it keeps its cast weights.
    with precision.autocast(), progress.Phase(f"scoring {name}", len(batches)) as phase:
        weight = _head_weight(model, precision)
        for first in range(0, len(batches), dist.world_size):  # a batch for each rank
            if check_stop is not None:
                check_stop()
            for batch_rows in batches[first : first + dist.world_size][dist.rank : dist.rank + 1]:
                batch = _build_batch(batch_rows, dist.device)
                values.append(_predict(model, weight, batch, HEAD_ROWS[device], greedy))
                owners.append(batch.requests)
            phase.advance(min(dist.world_size, len(batches) - first))
    totals = np.zeros((2, len(requests)))
    if owners:
        owner = np.concatenate(owners)
        for row, weights in enumerate(torch.cat(values, dim=1).cpu().numpy()):  # synchronizes with the device here only
            totals[row] = np.bincount(owner, weights, minlength=len(requests))
    if dist.world_size > 1:
        totals = dist.sum(torch.from_numpy(totals).to(dist.device)).cpu().numpy()
    if not np.isfinite(totals[0]).all():
        raise GPT2LabError("the model's losses are not finite; its weights are damaged, or its training diverged")
    return Scores(totals[0], tokens, (totals[1] == 0) if greedy else np.zeros(len(requests), bool), truncated)


def largest_token(requests: Sequence[Request]) -> int:
    """The largest token id of all requests; 0 without any."""
    return max((max(max(context), max(continuation)) for context, continuation in requests), default=0)


def _group_by_context(
    requests: Sequence[Request], block_size: int
) -> tuple[list[_Row], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Rows, longest first; the number of tokens scored for each request; whether each was truncated.

    Requests with equal contexts share a row up to the length of the context window.
    """
    open_rows: dict[tuple[int, ...], _Row] = {}
    rows: list[_Row] = []
    scored = np.zeros(len(requests), dtype=np.int64)
    truncated = np.zeros(len(requests), dtype=bool)
    for number, request in enumerate(requests):
        context, continuation = tuple(request.context), tuple(request.continuation)
        assert len(context) > 0 < len(continuation)
        if (excess := len(context) + len(continuation) - 1 - block_size) > 0:
            truncated[number] = True
            tokens = (context + continuation)[excess:]
            split = max(1, len(context) - excess)  # a continuation longer than the window is truncated as well
            context, continuation = tokens[:split], tokens[split:]
        scored[number] = len(continuation)
        row = open_rows.get(context)
        if row is None or len(row) + len(continuation) - 1 > block_size:
            row = open_rows[context] = _Row(context, [])
            rows.append(row)
        row.continuations.append((number, continuation))
    return sorted(rows, key=len, reverse=True), scored, truncated


def _split_into_batches(rows: Sequence[_Row], batch_tokens: int) -> Iterator[Sequence[_Row]]:
    """Rows, longest first, in batches of at most `batch_tokens` tokens with padding."""
    start = 0
    while start < len(rows):
        stop = start + max(1, batch_tokens // len(rows[start]))
        yield rows[start:stop]
        start = stop


def _build_batch(rows: Sequence[_Row], device: torch.device) -> _Batch:
    """The tensors of a batch on the device, and the indices that the host needs."""
    width = len(rows[0])
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    positions = np.zeros_like(tokens)
    segments = np.full_like(tokens, _PADDING)
    sources: list[int] = []  # predicting position as an index into B * T
    targets: list[int] = []  # the token to predict there
    owners: list[int] = []  # index of the request
    for n, (context, continuations) in enumerate(rows):
        end = len(context)
        tokens[n, :end], positions[n, :end], segments[n, :end] = context, np.arange(end), _CONTEXT
        for segment, (owner, continuation) in enumerate(continuations, start=1):
            begin, length = end, len(continuation) - 1
            end += length
            tokens[n, begin:end] = continuation[:-1]
            positions[n, begin:end] = np.arange(len(context), len(context) + length)
            segments[n, begin:end] = segment
            sources += [n * width + len(context) - 1, *range(n * width + begin, n * width + end)]
            targets += continuation
            owners += [owner] * len(continuation)
    one_each = all(len(row.continuations) == 1 for row in rows)

    def on_device(array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return _Batch(
        tokens=on_device(tokens),
        positions=on_device(positions),
        sources=on_device(np.array(sources)),
        targets=on_device(np.array(targets)),
        segments=None if one_each else on_device(segments),
        requests=np.array(owners),
    )


def _attention_mask(segments: Tensor) -> Tensor:
    """Boolean (B, 1, T, T): causal, within the context and the same continuation."""
    T = segments.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    keys, queries = segments[:, None, :], segments[:, :, None]
    return (causal & ((keys == _CONTEXT) | (keys == queries)))[:, None]


def _head_weight(model: LanguageModel, precision: Precision) -> Tensor:
    """(V, C); in 16 bits, with its mean row subtracted.

    This subtracts one number from all logits of a position, which does not change their softmax. GPT-2's logits are
    around -50, where bf16 has a resolution of 0.25; around 0 it is much finer. A softcap bounds the logits, and its
    result would change.
    """
    weight = model.lm_head.weight
    if precision.dtype == torch.float32:
        return weight
    return (weight if model.softcap else weight - weight.mean(dim=0)).to(precision.dtype)


def _predict(model: LanguageModel, weight: Tensor, batch: _Batch, head_rows: int, greedy: bool) -> Tensor:
    """For each prediction the loss in nats, and 1 if another token was more likely: float32 (2, P)."""
    mask = None if batch.segments is None else _attention_mask(batch.segments)
    with without_attention_plans(batch.tokens.device):
        hidden = model.trunk(batch.tokens, batch.positions, mask).flatten(0, 1)  # (B * T, C)
    values = []
    for start in range(0, len(batch.targets), head_rows):
        targets = batch.targets[start : start + head_rows]
        logits = linear(hidden[batch.sources[start : start + head_rows]], weight).float()  # (rows, V)
        logits = logits if model.softcap is None else softcap(logits, model.softcap)
        loss = logits.logsumexp(dim=-1) - logits.gather(1, targets[:, None])[:, 0]
        misses = (logits.argmax(dim=-1) != targets).float() if greedy else torch.zeros_like(loss)
        values.append(torch.stack([loss, misses]))
    return torch.cat(values, dim=1)

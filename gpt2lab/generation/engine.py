"""Generate tokens: prefill the prompts into a key-value cache, then decode one token per row at a time.

    prompts ──prefill──▶ cache, logits of each row's last token ──sample──▶ a token per row ──▶ caller
                                          ▲                                     │
                                          └──────────────── decode ◀────────────┘

**The window.** GPT-2 has block_size learned positions, and a token's keys and values depend on its position and on
everything before it. A window that moved on by one token would have to be computed again for every token. Instead, when
a row's window is full and another token follows, the newest half of it is computed again, as a text that begins there,
and decoding goes on until the window is full once more. A prompt longer than the window is read from its last
block_size tokens. The rule depends on the row's own length only, so a row's text does not depend on other rows.

Any model works, in the dtype of its weights or under the caller's autocast; on a CPU, a model from
`inference.optimize_for_inference` is several times as fast. Train and eval mode give the same result, as there is no
dropout.
"""

import operator
from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from gpt2lab.config import GPT2_VOCAB_SIZE, GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation.cache import KVCache
from gpt2lab.generation.sampling import Sampling, sample
from gpt2lab.model import ops

TokenIds = TypeVar("TokenIds", Tensor, list[list[int]])


class LanguageModel(Protocol):
    """What generation needs of a model; `model.language_model.LanguageModel` has it."""

    @property
    def config(self) -> GPT2Config: ...  # noqa: D102
    @property
    def trunk(self) -> nn.Module: ...  # noqa: D102
    def compute_logits(self, hidden: Tensor) -> Tensor: ...  # noqa: D102


class Token(NamedTuple):
    """A new token and, where asked for, its probability by the model's logits, before any sampling setting."""

    row: int
    id: int
    probability: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # (id, probability) of the most likely tokens, most likely first


@torch.inference_mode()
def prefill(model: LanguageModel, prompt: Sequence[int], cache: KVCache, row: int) -> Tensor:
    """Compute a prompt's keys and values into a row of the cache, in place of what it held.

    One prompt at a time, because rows side by side would be padded to the longest, and their sums rounded differently.

    Args:
        model: any language model.
        prompt: token ids, at most block_size.
        cache: changed in place.
        row: of the cache.

    Returns:
        Logits after the last token, float32 (1, V) on the CPU.
    """
    idx = torch.tensor([prompt], device=next(model.trunk.parameters()).device)
    with ops.without_attention_plans(idx.device):
        hidden = model.trunk(idx, cache=cache.view_empty(row))  # (1, T, C)
    cache.lengths[row] = len(prompt)
    return _compute_logits(model, hidden[:, -1])


@torch.inference_mode()
def decode(model: LanguageModel, tokens: Sequence[int], cache: KVCache) -> Tensor:
    """Append one token to each row of the cache.

    Args:
        model: any language model.
        tokens: one id per row.
        cache: changed in place.

    Returns:
        Logits of the next token, float32 (B, V) on the CPU.
    """
    idx = torch.tensor(tokens, device=next(model.trunk.parameters()).device)[:, None]  # (B, 1)
    positions = torch.tensor(cache.lengths, device=idx.device)[:, None]
    with ops.without_attention_plans(idx.device):
        hidden = model.trunk(idx, positions, cache=cache)  # (B, 1, C)
    cache.lengths = [length + 1 for length in cache.lengths]
    return _compute_logits(model, hidden[:, 0])


def generate(
    model: LanguageModel,
    prompts: TokenIds,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    seeds: Sequence[int] | None = None,
) -> TokenIds:
    """Continue each prompt by `max_new_tokens` tokens.

    Args:
        model: any language model.
        prompts: token ids, int64 (B, T), or lists of any lengths.
        max_new_tokens: per row, >= 0.
        sampling: see `stream`.
        seeds: see `stream`.

    Returns:
        Prompts and new tokens, int64 (B, T + max_new_tokens) on the device of `prompts`, or lists for lists.

    Raises:
        GPT2LabError: an argument is out of range, or the logits are not finite.
    """
    if isinstance(prompts, Tensor):
        if prompts.dim() != 2 or prompts.is_floating_point():
            raise GPT2LabError(f"idx is {prompts.dtype} {tuple(prompts.shape)}; it must be int64 (B, T)")
        rows = generate(model, prompts.tolist(), max_new_tokens, sampling, seeds=seeds)
        return torch.tensor(rows, device=prompts.device)
    rows = _as_rows(prompts)
    for tokens in stream(model, rows, max_new_tokens, sampling, seeds=seeds):
        for token in tokens:
            rows[token.row].append(token.id)
    return rows


def stream(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    seeds: Sequence[int] | None = None,
    top: int | None = None,
    finished: set[int] | None = None,
) -> Generator[list[Token], None, None]:
    """Continue prompts side by side; yield the new token of each row, step by step.

    Nothing is computed ahead: closing the iterator stops the computation. Ids from 50257 on, which pad the vocabulary
    and stand for no text, are never sampled.

    Args:
        model: any language model.
        prompts: token ids, at least one each, of any lengths.
        max_new_tokens: per row, >= 0.
        sampling: None: from the model's unmodified distribution.
        seeds: one per row; the same prompt and seed give the same tokens whatever the other rows are, as far as their
            logits agree (docs/generation.md). None: random ones. torch's global generator is never used.
        top: report each token's probability and the `top` most likely tokens at its position; None: neither.
        finished: rows to stop; the caller may add to it between steps.

    Yields:
        The tokens of one step, one per row that is not finished.

    Raises:
        GPT2LabError: an argument is out of range, or the logits are not finite.
    """
    sampling = sampling or Sampling()
    _check_arguments(model, prompts, max_new_tokens, top)
    generators = _make_generators(len(prompts), seeds)
    finished = set() if finished is None else finished
    texts = [list(prompt) for prompt in prompts]
    rows = [row for row in range(len(texts)) if row not in finished]  # the rows of the cache and of the logits
    if not rows or max_new_tokens == 0:
        return
    cache, logits = _prefill_all(model, [texts[row] for row in rows], max_new_tokens)
    seen = _mark_seen(texts, logits.shape[1]) if sampling.repetition_penalty != 1 else None
    for step in range(1, max_new_tokens + 1):
        seen_by_rows = None if seen is None else seen[rows]
        sampled = sample(logits, sampling, [generators[row] for row in rows], seen_by_rows).tolist()
        for row, token in zip(rows, sampled, strict=True):
            texts[row].append(token)
            if seen is not None:
                seen[row, token] = True
        yield _make_tokens(rows, sampled, logits, top)
        remaining = [index for index, row in enumerate(rows) if row not in finished]
        if step == max_new_tokens or not remaining:
            return
        if len(remaining) < len(rows):
            cache, rows = cache.select(remaining), [rows[index] for index in remaining]
        for index, row in enumerate(rows):
            if cache.lengths[index] == model.config.block_size:
                _restart_window(model, texts[row][:-1], cache, index)
        logits = decode(model, [texts[row][-1] for row in rows], cache)


def _prefill_all(model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> tuple[KVCache, Tensor]:
    """A cache large enough for all new tokens, filled with the prompts; equal prompts are computed once."""
    window = model.config.block_size
    cropped = [tuple(prompt[-window:]) for prompt in prompts]
    distinct = list(dict.fromkeys(cropped))
    slots = min(window, max(map(len, distinct)) + max_new_tokens - 1)  # the last token is not fed back
    cache = KVCache(len(distinct), slots)
    logits = torch.cat([prefill(model, prompt, cache, row) for row, prompt in enumerate(distinct)])
    if len(distinct) == len(cropped):
        return cache, logits
    rows = [distinct.index(prompt) for prompt in cropped]
    return cache.select(rows), logits[rows]


def _restart_window(model: LanguageModel, text: Sequence[int], cache: KVCache, row: int) -> None:
    """Replace a full row by its newest tokens; together with the next token they fill half of the window."""
    keep = model.config.block_size // 2 - 1
    if keep > 0:
        prefill(model, text[-keep:], cache, row)
    else:
        cache.lengths[row] = 0


def _compute_logits(model: LanguageModel, hidden: Tensor) -> Tensor:
    """Map (B, C) to float32 (B, V) on the CPU, without the vocabulary's padding."""
    logits = model.compute_logits(hidden)
    return logits[:, :GPT2_VOCAB_SIZE].float().cpu()


def _make_tokens(rows: Sequence[int], ids: Sequence[int], logits: Tensor, top: int | None) -> list[Token]:
    if top is None:
        return [Token(row, id) for row, id in zip(rows, ids, strict=True)]
    probabilities = logits.softmax(dim=-1)
    top_probabilities, top_ids = (part.tolist() for part in probabilities.topk(min(top, logits.shape[1])))
    return [
        Token(row, id, float(probabilities[n, id]), tuple(zip(top_ids[n], top_probabilities[n], strict=True)))
        for n, (row, id) in enumerate(zip(rows, ids, strict=True))
    ]


def _mark_seen(texts: Sequence[Sequence[int]], vocab_size: int) -> Tensor:
    """Bool (B, V): the tokens that each text contains."""
    seen = torch.zeros(len(texts), vocab_size, dtype=torch.bool)
    for row, text in enumerate(texts):
        seen[row, [token for token in text if token < vocab_size]] = True
    return seen


def _make_generators(rows: int, seeds: Sequence[int] | None) -> list[torch.Generator]:
    """One CPU generator per row: the same numbers on every device."""
    generators = [torch.Generator() for _ in range(rows)]
    if seeds is not None and len(seeds) != rows:
        raise GPT2LabError(f"{len(seeds)} seeds for {rows} prompts; give each prompt one")
    for row, generator in enumerate(generators):
        if seeds is None:
            generator.seed()
        elif isinstance(seeds[row], int) and -(2**63) <= seeds[row] < 2**64:
            generator.manual_seed(seeds[row])
        else:
            raise GPT2LabError(f"seed is {seeds[row]!r:.60}; it must be a whole number that fits into 64 bits")
    return generators


def _as_rows(prompts: Iterable[Iterable[int]]) -> list[list[int]]:
    """Lists of token ids, from what a user passes from Python."""
    expected = "it must be token ids: int64 (B, T), or lists of them such as [[15496, 11]]"
    if isinstance(prompts, str):
        raise GPT2LabError(f"idx is text; {expected}; to continue text: model.complete(text)")
    try:
        return [[operator.index(token) for token in prompt] for prompt in prompts]
    except TypeError:
        raise GPT2LabError(f"idx is {type(prompts).__name__} {prompts!r:.60}; {expected}") from None


def _check_arguments(
    model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, top: int | None
) -> None:
    vocab_size = model.config.vocab_size
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise GPT2LabError(f"prompt {row} is empty; give at least one token to continue")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            token = min(prompt) if min(prompt) < 0 else max(prompt)
            raise GPT2LabError(f"prompt {row} has token {token}; the model's are 0 to {vocab_size - 1}")
    for name, value in (("max_new_tokens", max_new_tokens), ("top", top)):
        if value is not None and (not isinstance(value, int) or value < 0):
            raise GPT2LabError(f"{name} is {value!r:.60}; it must be a whole number, 0 or more")

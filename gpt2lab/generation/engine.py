"""Tokens from a model: read the prompts once, then draw one token a row, and feed it back.

    prompts ──prefill──▶ cache, logits of each row's last token ──sample──▶ a token a row ──▶ caller
                                          ▲                                     │
                                          └──────────────── decode ◀────────────┘

**The window.** GPT-2's positions are learned, and there are block_size of them; a token's keys and values depend on its
position and on everything before it. So a window that moves on by one token would have to be computed anew for every
token. Instead, when a row's window is full and another token has to go in, the newest half of it is read again, as a
text that begins there, and decoding goes on until the window is full once more. A prompt longer than the window is read
from its last block_size tokens. The rule looks at a row's own length alone, so a row's text does not depend on the
rows beside it.

Any GPT2 will do, in the dtype of its weights or under the caller's autocast; one from `inference.optimize_for_inference` is several
times as fast on a CPU. There is no dropout, so train or eval mode makes no difference.
"""

from collections.abc import Generator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gpt2lab.config import GPT2_VOCAB_SIZE, GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation.cache import KVCache
from gpt2lab.generation.sampling import Sampling, sample


class LanguageModel(Protocol):
    """What generation needs of a model; `GPT2` has it."""

    @property
    def config(self) -> GPT2Config: ...
    @property
    def transformer(self) -> nn.Module: ...
    @property
    def lm_head(self) -> nn.Module: ...


class Token(NamedTuple):
    """A token that was drawn, and, where asked for, how likely the model held it (before any sampling setting)."""

    row: int
    id: int
    probability: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # (id, probability) of the likeliest next tokens, falling


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """Continue each prompt by `max_new_tokens` tokens, and return all of each: see `stream`."""
    rows = [list(prompt) for prompt in prompts]
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
    ended: set[int] | None = None,
) -> Generator[list[Token], None, None]:
    """Continue prompts of any lengths side by side; yields the new token of each row, step by step.

    Nothing is computed ahead: whoever stops iterating, or closes the iterator, stops the computation.

    Args:
        prompts: token ids, at least one each.
        max_new_tokens: of each row, 0 or more.
        sampling: None: from the model's own distribution.
        seeds: one a row; the same prompt and seed give the same tokens whatever stands in the other rows, as far as
            their logits agree (docs/generation.md). None: fresh ones. torch's global generator is never used.
        top: report each token's probability, and the `top` likeliest tokens that it was chosen among; None: neither.
        ended: rows that the caller wants no more of; to be added to between steps.

    Ids from 50257 on are never drawn: they pad the vocabulary and stand for no text.

    Raises:
        GPT2LabError: an argument is out of range; from the iterator: the logits are not finite.
    """
    sampling = sampling or Sampling()
    _check(prompts, max_new_tokens, model.config.vocab_size, top)
    generators = _generators(len(prompts), seeds)
    return _steps(model, prompts, max_new_tokens, sampling, generators, top, set() if ended is None else ended)


def _steps(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    top: int | None,
    ended: set[int],
) -> Generator[list[Token], None, None]:
    texts = [list(prompt) for prompt in prompts]
    rows = [row for row in range(len(texts)) if row not in ended]  # those that the cache and the logits are of
    if not rows or max_new_tokens == 0:
        return
    cache, logits = _start(model, [texts[row] for row in rows], max_new_tokens)
    seen = _seen(texts, logits.shape[1]) if sampling.repetition_penalty != 1 else None
    for left in reversed(range(max_new_tokens)):
        seen_here = None if seen is None else seen[rows]
        drawn = sample(logits, sampling, [generators[row] for row in rows], seen_here).tolist()
        for row, token in zip(rows, drawn, strict=True):
            texts[row].append(token)
            if seen is not None:
                seen[row, token] = True
        yield _report(rows, drawn, logits, top)
        staying = [place for place, row in enumerate(rows) if row not in ended]
        if left == 0 or not staying:
            return
        if len(staying) < len(rows):
            cache, rows = cache.select(staying), [rows[place] for place in staying]
        for place, row in enumerate(rows):
            if cache.lengths[place] == model.config.block_size:
                _slide(model, texts[row][:-1], cache, place)
        logits = decode(model, [texts[row][-1] for row in rows], cache)


@torch.inference_mode()
def prefill(model: LanguageModel, prompt: Sequence[int], cache: KVCache, row: int) -> Tensor:
    """Read a prompt of at most block_size tokens into a row of the cache, in place of what it held.

    A prompt at a time, because rows side by side would be padded to the longest, and their sums rounded otherwise.

    Returns:
        Logits after its last token, float32 (1, V) on the CPU.
    """
    idx = torch.tensor([prompt], device=_device(model))
    hidden = model.transformer(idx, cache=cache.emptied(row))  # (1, T, C)
    cache.lengths[row] = len(prompt)
    return _logits(model, hidden[:, -1])


@torch.inference_mode()
def decode(model: LanguageModel, tokens: Sequence[int], cache: KVCache) -> Tensor:
    """Append one token to each row of the cache; logits of what comes next, float32 (B, V) on the CPU."""
    idx = torch.tensor(tokens, device=_device(model))[:, None]  # (B, 1)
    positions = torch.tensor(cache.lengths, device=idx.device)[:, None]
    hidden = model.transformer(idx, positions, cache=cache)  # (B, 1, C)
    cache.lengths = [length + 1 for length in cache.lengths]
    return _logits(model, hidden[:, 0])


def _start(model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> tuple[KVCache, Tensor]:
    """A cache with room for all that is to come, every prompt in it; each different prompt is read once."""
    window = model.config.block_size
    cropped = [tuple(prompt[-window:]) for prompt in prompts]
    different = list(dict.fromkeys(cropped))
    slots = min(window, max(map(len, different)) + max_new_tokens - 1)  # the last token drawn is not fed back
    cache = KVCache(len(different), slots)
    logits = torch.cat([prefill(model, prompt, cache, row) for row, prompt in enumerate(different)])
    if len(different) == len(cropped):
        return cache, logits
    places = [different.index(prompt) for prompt in cropped]
    return cache.select(places), logits[places]


def _slide(model: LanguageModel, text: Sequence[int], cache: KVCache, row: int) -> None:
    """Make room in a full row: its newest tokens again, as the first of a window that is half full with the next."""
    keep = model.config.block_size // 2 - 1
    if keep > 0:
        prefill(model, text[-keep:], cache, row)
    else:
        cache.lengths[row] = 0


def _device(model: LanguageModel) -> torch.device:
    return next(model.transformer.parameters()).device


def _logits(model: LanguageModel, hidden: Tensor) -> Tensor:
    """(B, C) to float32 (B, V) on the CPU, without the vocabulary's padding."""
    logits: Tensor = model.lm_head(hidden)
    return logits[:, :GPT2_VOCAB_SIZE].float().cpu()


def _report(rows: Sequence[int], drawn: Sequence[int], logits: Tensor, top: int | None) -> list[Token]:
    if top is None:
        return [Token(row, token) for row, token in zip(rows, drawn, strict=True)]
    probabilities = logits.softmax(dim=-1)
    best, ids = (part.tolist() for part in probabilities.topk(min(top, logits.shape[1])))
    return [
        Token(row, token, float(probabilities[n, token]), tuple(zip(ids[n], best[n], strict=True)))
        for n, (row, token) in enumerate(zip(rows, drawn, strict=True))
    ]


def _seen(texts: Sequence[Sequence[int]], vocab_size: int) -> Tensor:
    """bool (B, V): which tokens each text has."""
    seen = torch.zeros(len(texts), vocab_size, dtype=torch.bool)
    for row, text in enumerate(texts):
        seen[row, [token for token in text if token < vocab_size]] = True
    return seen


def _generators(rows: int, seeds: Sequence[int] | None) -> list[torch.Generator]:
    """A CPU generator a row, so that a text is the same on every device, as far as their logits agree."""
    generators = [torch.Generator() for _ in range(rows)]
    if seeds is not None and len(seeds) != rows:
        raise GPT2LabError(f"{len(seeds)} seeds for {rows} prompts; give each prompt one")
    for row, generator in enumerate(generators):
        if seeds is None:
            generator.seed()
        elif -(2**63) <= seeds[row] < 2**64:
            generator.manual_seed(seeds[row])
        else:
            raise GPT2LabError(f"seed is {seeds[row]}; it must fit into 64 bits")
    return generators


def _check(prompts: Sequence[Sequence[int]], max_new_tokens: int, vocab_size: int, top: int | None) -> None:
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise GPT2LabError(f"prompt {row} is empty; give at least one token to continue")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            wrong = min(prompt) if min(prompt) < 0 else max(prompt)
            raise GPT2LabError(f"prompt {row} has token {wrong}; the model's are 0 to {vocab_size - 1}")
    if max_new_tokens < 0:
        raise GPT2LabError(f"max_new_tokens is {max_new_tokens}; it must be 0 or more")
    if top is not None and top < 0:
        raise GPT2LabError(f"top is {top}; it must be 0 or more")

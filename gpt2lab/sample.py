"""`gpt2lab sample`: composes a prompt, a model and the way its text is shown.

    --prompt, --prompt-file, stdin ──▶ prompt ──┐
    --model-checkpoint ──▶ model ──────────────┴──▶ model.text.stream ──▶ terminal as it comes, or one JSON object

The samples of a prompt are drawn side by side, since a step for several costs little more than for one. The first is
shown while it grows, the others follow in their order, each as far as it has come.
"""

import json
import os
import stat
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation import inference, text
from gpt2lab.generation.sampling import Sampling
from gpt2lab.generation.text import TextDelta
from gpt2lab.model import resolve
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.system import device as devices
from gpt2lab.system import precision as precisions

DEFAULT_PROMPT = "Hello this is AI model,"
ROWS = 16  # samples drawn side by side
SEPARATOR = "\n\n---\n\n"

_LONGEST = 2**20  # bytes of a prompt that are read at all; no window takes as many
# Control characters that a terminal would obey (an untrained model writes such things), as U+FFFD.
_UNPRINTABLE = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    checkpoint: str
    prompt: str | None  # "-": standard input; None: standard input where something is piped in, else the default
    prompt_file: str | None
    count: int
    max_new_tokens: int
    sampling: Sampling
    stop: Sequence[str]
    seed: int
    as_json: bool
    device: str
    precision: Literal["auto", "fp32", "bf16"]


def run(options: Options) -> None:
    """Draw the samples and print them.

    Raises:
        GPT2LabError: the prompt cannot be had or continued (see `text.encode`), there is no such model, a setting is
            out of range.
    """
    prompt = _prompt(options)
    device = devices.choose(options.device)
    found = resolve.find_checkpoint(options.checkpoint)
    model = GPT2.from_pretrained(found).to(device)
    tokenizer = Tokenizer()
    ids = text.encode(model, tokenizer, prompt)
    model = inference.optimize_for_inference(model, precisions.choose(options.precision, device).dtype)
    seeds = range(options.seed, options.seed + options.count)
    pieces = _pieces(model, tokenizer, ids, seeds, options)
    if options.as_json:
        print(json.dumps({"checkpoint": str(found.folder), **_as_json(options, prompt, seeds, pieces)}))
        return
    for part in in_order(prompt, options.count, pieces):
        print(part.translate(_UNPRINTABLE) if sys.stdout.isatty() else part, end="", flush=True)
    print()


def _pieces(
    model: GPT2, tokenizer: Tokenizer, prompt: Sequence[int], seeds: Sequence[int], options: Options
) -> Generator[TextDelta, None, None]:
    """The pieces of all samples, `ROWS` samples at a time."""
    for first in range(0, len(seeds), ROWS):
        some = seeds[first : first + ROWS]
        for piece in text.stream(
            model,
            tokenizer,
            [prompt] * len(some),
            options.max_new_tokens,
            options.sampling,
            stop=options.stop,
            seeds=some,
        ):
            yield piece._replace(row=first + piece.row)


def in_order(prompt: str, count: int, pieces: Iterable[TextDelta]) -> Iterator[str]:
    """What to print when: the first sample as it grows, then the next with all it has by then, and so on."""
    waiting = [prompt] * count
    ended = [False] * count
    shown = 0
    for piece in pieces:
        waiting[piece.row] += piece.text
        ended[piece.row] = piece.end is not None
        while True:
            if waiting[shown]:
                yield waiting[shown]
                waiting[shown] = ""
            if not ended[shown] or shown + 1 == count:
                break
            shown += 1
            yield SEPARATOR


def _as_json(options: Options, prompt: str, seeds: Sequence[int], pieces: Iterable[TextDelta]) -> dict[str, Any]:
    samples: list[dict[str, Any]] = [{"seed": seed, "completion": "", "tokens": 0, "end": None} for seed in seeds]
    for piece in pieces:
        sample = samples[piece.row]
        sample["completion"] += piece.text
        sample["tokens"] += 1
        sample["end"] = piece.end
    settings = {"max_new_tokens": options.max_new_tokens, **vars(options.sampling), "stop": list(options.stop)}
    return {"prompt": prompt, "settings": settings, "samples": samples}


def _prompt(options: Options) -> str:
    if options.prompt is not None and options.prompt_file is not None:
        raise GPT2LabError("--prompt and --prompt-file both name a prompt; give one of them")
    if options.prompt_file is not None and options.prompt_file != "-":
        try:
            with Path(options.prompt_file).open("rb") as file:
                return _read(file, options.prompt_file)
        except OSError as error:
            raise GPT2LabError(f"--prompt-file {options.prompt_file}: {error.strerror}") from error
    if "-" in (options.prompt, options.prompt_file) or (options.prompt is None and _is_piped()):
        return _read(sys.stdin.buffer, "standard input")
    return DEFAULT_PROMPT if options.prompt is None else options.prompt


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file, and not a terminal, /dev/null or nothing at all."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read(file: BinaryIO, name: str) -> str:
    """The whole file as one prompt, without the line break that editors leave at the end."""
    data = file.read(_LONGEST + 1)
    if len(data) > _LONGEST:
        raise GPT2LabError(f"{name}: the prompt is longer than any window; shorten it")
    try:
        prompt = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GPT2LabError(f"{name}: not valid UTF-8 at byte {error.start}; save it as UTF-8") from None
    return prompt.removesuffix("\n").removesuffix("\r")

"""`gpt2lab sample`: continue a prompt with a trained model.

    --prompt, --prompt-file, stdin ─▶ generation.prompts.read ─┐
    --model-checkpoint ─▶ model ───────────────────────────────┴─▶ generation.text.stream ─▶ terminal, or JSON

Samples are generated as a batch, since a step for several costs little more than a step for one. The first sample is
printed while it grows. The others follow in order.
"""

import json
import logging
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from gpt2lab import logs, progress
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.formatting import replace_control_characters
from gpt2lab.generation import inference, text
from gpt2lab.generation.text import TextDelta
from gpt2lab.model import pretrained, resolve
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.options import SampleOptions
from gpt2lab.system import device as devices
from gpt2lab.system import precision as precisions

logger = logging.getLogger(__name__)

BATCH_SIZE = 16  # samples generated together
SEPARATOR = "\n\n---\n\n"


def run(options: SampleOptions, prompt: str) -> None:
    """Generate the samples and print them.

    Args:
        options: model and how to generate.
        prompt: the text to continue (see `prompts.read`).

    Raises:
        GPT2LabError: the prompt is not valid (see `text.encode`), there is no such model, or an option is out of range.
    """
    device = devices.choose(options.device)
    checkpoint = resolve.find_checkpoint(options.checkpoint)
    with progress.Phase("loading the model", announce=True):
        model = pretrained.from_pretrained(checkpoint).to(device)
    tokenizer = Tokenizer()
    ids = text.encode(model, tokenizer, prompt)
    if note := text.describe_window(model, ids):
        logger.warning(note)
    model = inference.optimize_for_inference(model, precisions.choose(options.precision, device).dtype)
    deltas = _generate(model, tokenizer, ids, options)
    if options.as_json:
        result = {"checkpoint": str(checkpoint.folder), **_as_json(options, prompt, deltas)}
        logs.print_result(json.dumps(result))
        return
    try:
        for part in in_order(prompt, options.num_samples, deltas):
            logs.print_result(replace_control_characters(part) if sys.stdout.isatty() else part, end="")
    except KeyboardInterrupt:
        logs.print_result("")  # the message that follows begins a line
        raise
    logs.print_result("")


def _generate(
    model: LanguageModel, tokenizer: Tokenizer, prompt: Sequence[int], options: SampleOptions
) -> Generator[TextDelta, None, None]:
    """The new text of all samples, as it is generated; `row` is the number of the sample."""
    generation = options.generation
    for first in range(0, options.num_samples, BATCH_SIZE):
        rows = range(first, min(first + BATCH_SIZE, options.num_samples))
        for delta in text.stream(
            model,
            tokenizer,
            [prompt] * len(rows),
            generation.max_new_tokens,
            generation.sampling,
            stop=options.stop,
            seeds=[generation.seed + row for row in rows],
        ):
            yield delta._replace(row=first + delta.row)


def in_order(prompt: str, num_samples: int, deltas: Iterable[TextDelta]) -> Iterator[str]:
    """Order the text of samples that grow at the same time: the first as it grows, then the second, and so on.

    Args:
        prompt: printed before each sample.
        num_samples: number of samples.
        deltas: new text of all samples, in the order of generation.

    Yields:
        Text to print, with SEPARATOR between samples.
    """
    texts = [prompt] * num_samples
    finished = [False] * num_samples
    current = -1  # nothing is printed before the first token, which checks the options
    for delta in deltas:
        texts[delta.row] += delta.text
        finished[delta.row] = delta.end is not None
        if delta.row == current:
            yield delta.text
        while current + 1 < num_samples and (current < 0 or finished[current]):
            current += 1
            yield SEPARATOR * (current > 0) + texts[current]


def _as_json(options: SampleOptions, prompt: str, deltas: Iterable[TextDelta]) -> dict[str, Any]:
    generation = options.generation
    seeds = range(generation.seed, generation.seed + options.num_samples)
    samples: list[dict[str, Any]] = [{"seed": seed, "completion": "", "tokens": 0, "end": None} for seed in seeds]
    for delta in deltas:
        sample = samples[delta.row]
        sample["completion"] += delta.text
        sample["tokens"] += 1
        sample["end"] = delta.end
    settings = {"max_new_tokens": generation.max_new_tokens, **vars(generation.sampling), "stop": list(options.stop)}
    return {"prompt": prompt, "settings": settings, "samples": samples}

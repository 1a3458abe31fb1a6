"""What a step of the modern recipe costs: its model against GPT-2's, and Muon's share.

    python benchmarks/modern_speed.py                  # both parts; nothing else may run on the machine
    python benchmarks/modern_speed.py --only share

`model` times forward and backward of GPT-2 124M and of modern_124m in turns, then one step of Muon, and adds them up to
a step of 524,288 tokens. `share` times a step of `quickstart_modern` with 8,192 tokens and, in it, that of Muon alone.
"""

import functools
from collections.abc import Iterator

import torch

from gpt2lab import config as settings
from gpt2lab.bench import measure
from gpt2lab.bench.measure import Check
from gpt2lab.config import GPT2_VOCAB_SIZE, Config
from gpt2lab.model import gpt2, modern
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.system import device as devices
from gpt2lab.system import precision as precisions
from gpt2lab.training import optimizer
from gpt2lab.training.muon import Muon
from gpt2lab.training.optimizer import clip_gradients

STEP_TOKENS = 524_288
HIGHEST_RATIO, HIGHEST_SHARE = 1.25, 0.10


class Contender:
    """A model with its optimizers, on random tokens."""

    def __init__(self, config: Config, sequences: int, block_size: int, device: torch.device):
        self.config = config
        self.precision = precisions.choose(config.system.precision, device)
        kind = modern.Modern if config.model.architecture == "modern" else gpt2.GPT2
        self.model: LanguageModel = kind(config.model, generator=torch.Generator().manual_seed(0)).to(device)
        self.optimizers = optimizer.build(self.model, config.optimizer, None, self.precision.dtype)
        self.muon = [each for each in self.optimizers if isinstance(each, Muon)]
        size = (sequences, block_size)
        self.idx = torch.randint(GPT2_VOCAB_SIZE, size, generator=torch.Generator().manual_seed(1)).to(device)

    def forward_and_backward(self) -> None:
        """The gradients of one micro batch."""
        with self.precision.autocast():
            loss = self.model(self.idx, self.idx)[1]
        assert loss is not None
        loss.backward()

    def step(self) -> None:
        """A whole optimizer step."""
        self.forward_and_backward()
        clip_gradients(self.model, self.config.optimizer.grad_clip)
        for each in self.optimizers:
            each.step()
            each.zero_grad(set_to_none=True)

    def orthogonalize(self) -> None:
        """Muon's part of a step; the gradients stay."""
        for each in self.muon:
            each.step()


def compare_models(device: torch.device, rounds: int) -> Iterator[Check]:
    """Forward and backward of 124M with 2 sequences of 512 tokens, and Muon's step."""
    tokens = 2 * 512
    faithful, new = (
        Contender(settings.load([recipe], {"model.block_size": "512"}), 2, 512, device)
        for recipe in ("gpt2_124m", "modern_124m")
    )
    timed = measure.time_turns(
        {"gpt2": faithful.forward_and_backward, "modern": new.forward_and_backward, "muon": new.orthogonalize},
        rounds + 1,
        device,
    )
    gpt2, modern, muon = (measure.Timing(timed[name].seconds[1:]).median for name in ("gpt2", "modern", "muon"))
    yield Check("gpt2, forward and backward of 2 x 512", f"{gpt2:.2f} s")
    ratio = modern / gpt2
    yield Check("modern, the same", f"{modern:.2f} s, {ratio:.2f} times", ratio <= HIGHEST_RATIO)
    yield Check("Muon, once a step", f"{muon:.2f} s")
    whole, faithful_step = modern * STEP_TOKENS / tokens + muon, gpt2 * STEP_TOKENS / tokens
    yield Check(
        f"a step of {STEP_TOKENS:,} tokens, computed from both, without AdamW",
        f"{whole:,.0f} s against {faithful_step:,.0f} s, {whole / faithful_step:.2f} times; Muon {muon / whole:.1%}",
    )


def measure_share(device: torch.device, rounds: int) -> Iterator[Check]:
    """Muon's share of a step of quickstart_modern with 8,192 tokens."""
    each = Contender(settings.load(["quickstart_modern"]), 128, 64, device)
    each.forward_and_backward()  # the gradients that `orthogonalize` needs beside whole steps
    gradients = {p: p.grad.clone() for p in each.model.parameters() if p.grad is not None}

    def orthogonalize() -> None:
        each.orthogonalize()
        for p in gradients:
            p.grad = None

    steps, muon = [], []
    for number in range(rounds + 2):
        steps.append(measure.time_call(each.step, device))
        for p, gradient in gradients.items():
            p.grad = gradient.clone()
        muon.append(measure.time_call(orthogonalize, device))
        if number < 2:  # warm-up
            steps, muon = [], []
    step, alone = measure.Timing(steps).median, measure.Timing(muon).median
    yield Check(
        "Muon in a step of 8,192 tokens",
        f"{1e3 * alone:.1f} of {1e3 * step:.0f} ms, {alone / step:.1%}",
        alone / step <= HIGHEST_SHARE,
    )


def main() -> None:
    """Run the parts and print their figures."""
    parts = {"model": compare_models, "share": measure_share}
    parser = measure.argument_parser(__doc__, list(parts), rounds=5)
    options, device = parser.parse_args(), devices.choose("auto", 0)
    print(measure.format_environment(measure.environment(device)))
    measure.run_parts(
        {name: functools.partial(part, device, options.rounds) for name, part in parts.items()}, options.only
    )


if __name__ == "__main__":
    main()

"""The speed of generation, its distance from the limit of memory, and its correctness. The targets of generation.

    python benchmarks/generate.py --only speed,latency        # some 4 minutes on two cores
    python benchmarks/generate.py --only equality,seeds       # some 15 minutes

The model has GPT-2 124M's shape and random weights (seed 0): speed and equality do not need trained ones. Parts:

    speed      256 new tokens of one prompt, greedy, against a loop without a cache (with torch's own linear layers and
               with ours) and against `transformers.generate` with its cache in the same dtype; and the share of the
               rate at which this machine copies memory
    latency    the first token after a short prompt and after one that fills the window; several rows at a time
    equality   greedy tokens of 50 prompts: cached, without a cache, alone, in a batch, and `transformers.generate`
    seeds      sampled text of 50 prompts with a seed each: alone and in a batch

Rates are medians over rounds in which every contender has its turn.
"""

import argparse
import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from gpt2lab import GPT2, GPT2Config
from gpt2lab.bench import measure
from gpt2lab.bench.measure import Check
from gpt2lab.generation import engine, inference
from gpt2lab.generation.sampling import Sampling
from gpt2lab.system import device as devices

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GREEDY = Sampling(temperature=0)


class GenerationBenchmark:
    """The model, its contenders, and the parts."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.device = devices.choose(arguments.device)
        self.model = GPT2(GPT2Config(), generator=torch.Generator().manual_seed(0)).to(self.device)
        self.optimized = {name: inference.optimize_for_inference(self.model, dtype) for name, dtype in DTYPES.items()}

    def speed(self) -> Iterator[Check]:
        """Tokens a second of one row, by each contender."""
        (prompt,), count = random_prompts(1, 16, 16), self.arguments.tokens
        contenders: dict[str, Callable[[], object]] = {
            "no cache": partial(generate_without_cache, with_plain_linear(self.model), prompt, count),
            "no cache, our linear layers": partial(generate_without_cache, self.model, prompt, count),
        }
        for name, model in self.optimized.items():
            generate = load_transformers_generate(self.model, DTYPES[name])
            contenders[f"transformers {name}"] = partial(generate, prompt, count)
            contenders[name] = partial(engine.generate, model, [prompt], count, GREEDY)
            generate(prompt, 8)  # first calls allocate and initialize
            engine.generate(model, [prompt], 8, GREEDY)
        copy_rate = self._copy_rate()
        timings = measure.time_turns(contenders, self.arguments.rounds, self.device)
        copy_rate = max(copy_rate, self._copy_rate())
        rates = {name: timing.rate(count) for name, timing in timings.items()}
        for name, timing in timings.items():
            yield Check(name, f"{rates[name]:.1f} tokens/s ({timing.rate_range(count)})")
        yield Check("memory", f"a copy reads and writes {copy_rate / 1e9:.1f} GB/s")
        speedup = rates["fp32"] / rates["no cache"]
        same_layers = rates["fp32"] / rates["no cache, our linear layers"]
        figure = f"{speedup:.1f}x ({same_layers:.1f}x the same with our linear layers)"
        yield Check("fp32 >= 10x the loop without a cache", figure, speedup >= 10)
        for name, dtype in DTYPES.items():
            ratio = rates[name] / rates[f"transformers {name}"]
            yield Check(f"{name} >= 1.5x transformers with its cache", f"{ratio:.1f}x", ratio >= 1.5)
            size = self.model.num_parameters() * dtype.itemsize  # every weight once (0.6% are positions)
            figure = f"{rates[name] * size / copy_rate:.0%} of {copy_rate / size:.0f} tokens/s"
            yield Check(f"{name}: share of the memory's limit", f"{figure} ({size / 1e6:.0f} MB a token)")

    def latency(self) -> Iterator[Check]:
        """Milliseconds to the first token; tokens a second of several rows."""
        for name, model in self.optimized.items():
            contenders = {
                str(length): partial(engine.generate, model, random_prompts(1, length, length), 1, GREEDY)
                for length in (32, 1024)
            }
            timings = measure.time_turns(contenders, 5, self.device)
            figure = ", ".join(f"{1e3 * timing.median:.0f} ms after {n} tokens" for n, timing in timings.items())
            yield Check(f"{name}: first token", figure)
            figures = []
            for rows in (1, 5, 20):
                call = partial(engine.generate, model, random_prompts(rows, 16, 32), 64, GREEDY)
                timing = measure.time_turns({"": call}, 3, self.device)[""]
                figures.append(f"{rows}: {timing.rate(rows * 64):.0f}")
            yield Check(f"{name}: tokens/s by rows", ", ".join(figures))

    def equality(self) -> Iterator[Check]:
        """Greedy tokens by several ways, against a loop without a cache."""
        prompts, count = random_prompts(self.arguments.prompts, 4, 40), 64
        reference = [generate_without_cache(self.model, prompt, count) for prompt in prompts]
        transformers_generate = load_transformers_generate(self.model, torch.float32)
        contenders: dict[str, Callable[[], list[list[int]]]] = {
            "transformers.generate": lambda: [transformers_generate(prompt, count) for prompt in prompts],
            "cached, alone": lambda: [self.model.generate([prompt], count, temperature=0)[0] for prompt in prompts],
            "cached, in one batch": lambda: self.model.generate(prompts, count, temperature=0),
        }
        for name, contender in contenders.items():
            same = count_equal(contender(), reference)
            figure = f"{same} of {len(prompts)} identical"
            yield Check(f"fp32, 64 greedy tokens: {name} and without a cache", figure, same == len(prompts))
        same = count_equal(engine.generate(self.optimized["bf16"], prompts, count, GREEDY), reference)
        yield Check("bf16, the same, in one batch", f"{same} of {len(prompts)} as in fp32")

    def seeds(self) -> Iterator[Check]:
        """Sampled tokens of a seed, alone and in a batch."""
        prompts = random_prompts(self.arguments.prompts, 4, 40)
        sampling = Sampling(temperature=0.8, top_k=50)
        for name, model in self.optimized.items():
            alone = [engine.generate(model, [p], 64, sampling, seeds=[n])[0] for n, p in enumerate(prompts)]
            together = engine.generate(model, prompts, 64, sampling, seeds=range(len(prompts)))
            same = count_equal(alone, together)
            passed = same == len(prompts) if name == "fp32" else None
            yield Check(f"{name}, 64 sampled tokens: alone and in one batch", f"{same} of {len(prompts)}", passed)

    def _copy_rate(self) -> float:
        """Bytes a second that a copy of 512 MiB reads and writes together, the best of ten."""
        source = torch.ones(2**27, device=self.device)
        target = torch.empty_like(source)
        target.copy_(source)
        return 2 * source.nbytes / min(measure.time_call(lambda: target.copy_(source), self.device) for _ in range(10))


def random_prompts(count: int, shortest: int, longest: int) -> list[list[int]]:
    """`count` prompts of random tokens, their lengths spread over the range."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.linspace(shortest, longest, count).long().tolist()
    return [torch.randint(50257, (length,), generator=generator).tolist() for length in lengths]


def with_plain_linear(model: GPT2) -> GPT2:
    """A copy with torch's own linear layers; ours use a faster product on some processors."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, torch.nn.Linear):
            module.__class__ = torch.nn.Linear
    return plain


@torch.no_grad()
def generate_without_cache(model: GPT2, prompt: list[int], count: int) -> list[int]:
    """The simple greedy loop: the whole text anew for each token, the head at the last position only."""
    idx = torch.tensor([prompt], device=next(model.parameters()).device)
    for _ in range(count):
        hidden = model.transformer(idx[:, -model.config.block_size :])
        idx = torch.cat([idx, model.lm_head(hidden[:, -1]).argmax(-1, keepdim=True)], dim=1)
    return idx[0].tolist()


def load_transformers_generate(model: GPT2, dtype: torch.dtype) -> Callable[[list[int], int], list[int]]:
    """Greedy generation by transformers with its cache: a function of prompt and number of new tokens."""
    import transformers

    device = next(model.parameters()).device
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    loaded = loaded.to(device).eval()
    greedy = {"do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}

    def generate(prompt: list[int], count: int) -> list[int]:
        idx = torch.tensor([prompt], device=device)
        mask = torch.ones_like(idx)
        tokens = loaded.generate(idx, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, **greedy)
        return list(tokens[0].tolist())

    return generate


def count_equal(texts: Sequence[list[int]], others: Sequence[list[int]]) -> int:
    """How many texts are the same."""
    return sum(map(list.__eq__, texts, others))


def main() -> None:
    """Run the selected parts."""
    parts = ("speed", "latency", "equality", "seeds")
    parser = measure.argument_parser(__doc__, parts, rounds=2)
    parser.add_argument("--tokens", type=int, default=256, metavar="N", help="new ones, of the part speed")
    parser.add_argument("--prompts", type=int, default=50, metavar="N", help="of the parts equality and seeds")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    benchmark = GenerationBenchmark(arguments)
    print(measure.format_environment(measure.environment(benchmark.device)), flush=True)
    measure.run_parts({part: getattr(benchmark, part) for part in parts}, arguments.only)


if __name__ == "__main__":
    main()

"""How fast is a token, how near to what the memory allows, and is it the right one? The bars of generation, in one run.

    python benchmarks/engine.py --only speed,latency        # some 4 minutes on two cores
    python benchmarks/engine.py --only equality,seeds       # some 15 minutes

The weights are GPT-2 124M's shape, drawn at random (seed 0): speed and equality do not need trained ones. Parts:

    speed      256 new tokens of one prompt, greedy, against a loop without a cache (with torch's own linear layers, as
               in the lessons, and with ours) and against `transformers.generate` with its cache in the same dtype; and
               the share of the rate at which this machine copies memory
    latency    the first token after a short prompt and after one that fills the window; several rows at a time
    equality   greedy tokens of 50 prompts: cached, without a cache, alone, in a batch, and `transformers.generate`
    seeds      sampled text of 50 prompts with a seed each: alone and in a batch

Rates are medians over rounds in which every contender has its turn, so that a busy machine slows all of them.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from gpt2lab import GPT2, GPT2Config
from gpt2lab.generation import engine, inference
from gpt2lab.generation.sampling import Sampling
from gpt2lab.system import device as devices
from gpt2lab.training.run_directory import commit

PARTS = ("speed", "latency", "equality", "seeds")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GREEDY = Sampling(temperature=0)
Line = tuple[str, str, bool | None]  # what, figure, bar met (None: no bar)


class Bench:
    """The model, its rivals, and the questions."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.device = devices.choose(arguments.device)
        self.model = GPT2(GPT2Config(), generator=torch.Generator().manual_seed(0)).to(self.device)
        self.ours = {name: inference.optimize_for_inference(self.model, dtype) for name, dtype in DTYPES.items()}

    def prompts(self, count: int, shortest: int, longest: int) -> list[list[int]]:
        """`count` prompts of random tokens, their lengths spread over the range."""
        generator = torch.Generator().manual_seed(1)
        lengths = torch.linspace(shortest, longest, count).long().tolist()
        return [torch.randint(50257, (length,), generator=generator).tolist() for length in lengths]

    def theirs(self, name: str) -> Callable[[list[int], int], list[int]]:
        """Greedy text from transformers, with its cache."""
        import transformers

        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[name])
        model = model.to(self.device).eval()

        def run(prompt: list[int], count: int) -> list[int]:
            idx = torch.tensor([prompt], device=self.device)
            counts = {"max_new_tokens": count, "min_new_tokens": count}
            settings = {"do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0, **counts}
            return model.generate(idx, attention_mask=torch.ones_like(idx), **settings)[0].tolist()

        return run

    @torch.no_grad()
    def without_cache(self, model: GPT2, prompt: list[int], count: int) -> list[int]:
        """The loop of the lessons: the whole text anew for each token; but the head at the last position only."""
        idx = torch.tensor([prompt], device=self.device)
        for _ in range(count):
            hidden = model.transformer(idx[:, -model.config.block_size :])
            idx = torch.cat([idx, model.lm_head(hidden[:, -1]).argmax(-1, keepdim=True)], dim=1)
        return idx[0].tolist()

    def plain(self) -> GPT2:
        """The model with torch's own linear layers (ours know a faster product on some processors)."""
        model = copy.deepcopy(self.model)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.__class__ = torch.nn.Linear
        return model

    def timed(self, ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                devices.synchronize(self.device)
                began = time.perf_counter()
                way()
                devices.synchronize(self.device)
                seconds[name].append(time.perf_counter() - began)
        return seconds

    def copy_rate(self) -> float:
        """Bytes a second that a copy of 512 MiB reads and writes together, the best of ten."""
        source = torch.ones(2**27, device=self.device)
        target = torch.empty_like(source)
        target.copy_(source)
        return 2 * source.nbytes / min(self.timed({"copy": lambda: target.copy_(source)}, 10)["copy"])

    # -- the parts

    def speed(self) -> list[Line]:
        (prompt,), count = self.prompts(1, 16, 16), self.arguments.tokens
        plain = self.plain()
        ways: dict[str, Callable[[], Any]] = {
            "no cache": lambda: self.without_cache(plain, prompt, count),
            "no cache, our linear layers": lambda: self.without_cache(self.model, prompt, count),
        }
        for name in DTYPES:
            theirs = self.theirs(name)
            ways[f"transformers {name}"] = lambda run=theirs: run(prompt, count)
            ways[name] = lambda name=name: engine.generate(self.ours[name], [prompt], count, GREEDY)
            theirs(prompt, 8)  # first calls set things up
            engine.generate(self.ours[name], [prompt], 8, GREEDY)
        before = self.copy_rate()
        seconds = self.timed(ways, self.arguments.rounds)
        copied = max(before, self.copy_rate())
        rates = {name: count / statistics.median(taken) for name, taken in seconds.items()}
        spread = {name: f"{count / max(taken):.1f}-{count / min(taken):.1f}" for name, taken in seconds.items()}
        lines: list[Line] = [(f"{name}", f"{rates[name]:.1f} tokens/s ({spread[name]})", None) for name in ways]
        lines.append(("memory", f"a copy reads and writes {copied / 1e9:.1f} GB/s", None))
        for name, dtype in DTYPES.items():
            if name == "fp32":
                ratio = rates[name] / rates["no cache"]
                other = rates[name] / rates["no cache, our linear layers"]
                figure = f"{ratio:.1f}x ({other:.1f}x the same with our linear layers)"
                lines.append((f"{name} >= 10x the loop without a cache", figure, ratio >= 10))
            ratio = rates[name] / rates[f"transformers {name}"]
            lines.append((f"{name} >= 1.5x transformers with its cache", f"{ratio:.1f}x", ratio >= 1.5))
            size = self.model.num_parameters() * dtype.itemsize  # every weight once (positions aside: 0.6%)
            lines.append(
                (
                    f"{name}: share of the memory's limit",
                    f"{rates[name] * size / copied:.0%} of {copied / size:.0f} tokens/s ({size / 1e6:.0f} MB a token)",
                    None,
                )
            )
        return lines

    def latency(self) -> list[Line]:
        lines: list[Line] = []
        short, full = self.prompts(1, 32, 32), self.prompts(1, 1024, 1024)
        for name, model in self.ours.items():
            ways = {
                "32": lambda model=model: engine.generate(model, short, 1, GREEDY),
                "1024": lambda model=model: engine.generate(model, full, 1, GREEDY),
            }
            seconds = {key: statistics.median(taken) for key, taken in self.timed(ways, 5).items()}
            figure = f"{1e3 * seconds['32']:.0f} ms after 32 tokens, {1e3 * seconds['1024']:.0f} ms after 1024"
            lines.append((f"{name}: first token", figure, None))
            figures = []
            for rows in (1, 5, 20):
                prompts = self.prompts(rows, 16, 32)
                way = {"": lambda model=model, prompts=prompts: engine.generate(model, prompts, 64, GREEDY)}
                figures.append(f"{rows}: {rows * 64 / statistics.median(self.timed(way, 3)['']):.0f}")
            lines.append((f"{name}: tokens/s by rows", ", ".join(figures), None))
        return lines

    def equality(self) -> list[Line]:
        prompts, count = self.prompts(self.arguments.prompts, 4, 40), 64
        reference = [self.without_cache(self.model, prompt, count) for prompt in prompts]
        theirs = self.theirs("fp32")
        ways: dict[str, Callable[[], list[list[int]]]] = {
            "transformers.generate": lambda: [theirs(prompt, count) for prompt in prompts],
            "cached, alone": lambda: [self.model.generate([p], count, temperature=0)[0] for p in prompts],
            "cached, in one batch": lambda: self.model.generate(prompts, count, temperature=0),
        }
        lines: list[Line] = []
        for name, way in ways.items():
            same = sum(map(list.__eq__, way(), reference))
            figure = f"{same} of {len(prompts)} identical"
            lines.append((f"fp32, 64 greedy tokens: {name} and without a cache", figure, same == len(prompts)))
        half = engine.generate(self.ours["bf16"], prompts, count, GREEDY)
        same = sum(map(list.__eq__, half, reference))
        lines.append(("bf16, the same, in one batch", f"{same} of {len(prompts)} as in fp32", None))
        return lines

    def seeds(self) -> list[Line]:
        prompts = self.prompts(self.arguments.prompts, 4, 40)
        lines: list[Line] = []
        for name, model in self.ours.items():
            sampling = Sampling(temperature=0.8, top_k=50)
            alone = [engine.generate(model, [p], 64, sampling, seeds=[n])[0] for n, p in enumerate(prompts)]
            together = engine.generate(model, prompts, 64, sampling, seeds=range(len(prompts)))
            same = sum(map(list.__eq__, alone, together))
            bar = same == len(prompts) if name == "fp32" else None
            lines.append((f"{name}, 64 sampled tokens: alone and in one batch", f"{same} of {len(prompts)}", bar))
        return lines


def main() -> None:
    """Run the parts asked for and print a line a figure; those with a bar say whether it is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), metavar="A,B", help=f"parts of {', '.join(PARTS)}")
    parser.add_argument("--tokens", type=int, default=256, metavar="N", help="new ones, of the part speed")
    parser.add_argument("--prompts", type=int, default=50, metavar="N", help="of the parts equality and seeds")
    parser.add_argument("--rounds", type=int, default=2, metavar="N")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    bench = Bench(arguments)
    print(f"commit {commit() or 'unknown'}; torch {torch.__version__}; {devices.describe(bench.device)}", flush=True)
    for part in arguments.only.split(","):
        for what, figure, met in getattr(bench, part)():
            print(f"{'    ' if met is None else 'ok  ' if met else 'MISS'} {part:9} {what}: {figure}", flush=True)


if __name__ == "__main__":
    main()

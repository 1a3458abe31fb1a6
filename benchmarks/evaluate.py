"""HellaSwag here against HellaSwag elsewhere: equality, speed and cost. The targets of evaluation.

    python benchmarks/evaluate.py --hellaswag-file FILE          # everything: some 25 minutes on two cores
    python benchmarks/evaluate.py --hellaswag-file FILE --only speed

The model has GPT-2 124M's shape and random weights (seed 0): equality and speed do not need trained ones. Parts:

    equality   losses of every ending against `transformers`, one ending at a time, nothing padded, fp32
    harness    lm-evaluation-harness's own hellaswag task against our harness style, on one file, item by item
    speed      items a second against one example at a time: 4 padded rows, all positions' logits, eager fp32,
               `transformers`' model and torch's defaults in a process of its own
    quality    acc_norm in bf16 against fp32
    training   the share of a 124M run's time that both conventions take every 250 steps

Rates are medians over rounds in which every contender has its turn.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gpt2lab import GPT2, GPT2Config, Tokenizer
from gpt2lab.bench import measure
from gpt2lab.bench.measure import Check
from gpt2lab.evaluation import hellaswag, multiple_choice
from gpt2lab.evaluation.scoring import Request, score
from gpt2lab.system import device as devices
from gpt2lab.system import precision
from gpt2lab.system.distributed import DistContext

STEP_TOKENS, STEPS_BETWEEN = 491_520, 250  # of a 124M run: tokens a step, steps from one evaluation to the next


class EvaluationBenchmark:
    """The model, the items, and the parts."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.device = devices.choose(arguments.device)
        if self.device.type == "cpu":
            devices.keep_freed_memory()  # as `gpt2lab evaluate` does
        self.dist = DistContext(rank=0, world_size=1, device=self.device)
        self.model = GPT2(GPT2Config(), generator=torch.Generator().manual_seed(0)).to(self.device).eval()
        self.data = hellaswag.read(Path(arguments.hellaswag_file))
        self.tokenizer = Tokenizer()

    def equality(self) -> Iterator[Check]:
        """Summed and mean losses of each ending, and the endings that are chosen by them."""
        import transformers

        requests = self._completion_requests(self.arguments.equality_items)
        losses = self._losses(requests)
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            reference: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        reference = reference.to(self.device).eval()
        expected = []
        with torch.no_grad():
            for context, ending in requests:
                tokens = torch.tensor([[*context, *ending]], device=self.device)
                logits = reference(tokens).logits[0, len(context) - 1 : -1]
                expected.append(float(F.cross_entropy(logits, tokens[0, len(context) :], reduction="sum")))
        lengths = ending_lengths(requests)
        difference = np.abs(losses - expected)
        mean = (difference / lengths).max()
        count = len(losses) // 4
        same = {
            "acc": count_equal(choices(losses), choices(np.array(expected))),
            "acc_norm": count_equal(choices(losses / lengths), choices(expected / lengths)),
        }
        figure = f"mean loss differs by {mean:.1e} at most (summed: {difference.max():.1e})"
        yield Check(
            f"within 1e-4 of transformers, {count} items",
            f"{figure}; same choices: {same} of {count}",
            bool(mean < 1e-4) and set(same.values()) == {count},
        )

    def harness(self) -> Iterator[Check]:
        """Correctness of each item by the harness and by our evaluation."""
        import lm_eval

        items = multiple_choice.subset(self.data.items, self.arguments.equality_items)
        policy = precision.choose("fp32", self.device)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "official.jsonl"  # the harness's task reads the official schema
            rows = [item.model_dump() | {"ind": n} for n, item in enumerate(items)]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            samples = self._harness_samples(file, Path(folder) / "task", policy)
            task = hellaswag.Evaluation(self.tokenizer, hellaswag.read(file))
        result = task.as_json(score(self.model, task.requests, dist=self.dist, precision=policy))["harness"]
        labels = [item.label for item in items]
        same = {
            metric: sum(
                sample[metric] == (choice == label)
                for sample, choice, label in zip(samples, result[key], labels, strict=True)
            )
            for metric, key in (("acc", "predictions"), ("acc_norm", "predictions_norm"))
        }
        name = f"lm-eval {lm_eval.__version__}'s hellaswag, {len(items)} items"
        yield Check(name, f"same verdict: {same} of {len(items)}", set(same.values()) == {len(items)})

    def speed(self) -> Iterator[Check]:
        """Items a second, in fp32 and bf16, against one at a time."""
        requests = self._completion_requests(self.arguments.speed_items)
        items = len(requests) // 4
        results: dict[str, np.ndarray] = {}
        # A process of its own: none of our settings (allocator, threads, precision) changes its speed.
        with (
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(
                1, get_context("spawn"), initializer=load_one_at_a_time, initargs=(folder, self.device.type)
            ) as pool,
        ):
            self.model.save_pretrained(folder)
            scorers: dict[str, Callable[[list[Request]], np.ndarray]] = {
                "one at a time": lambda requests: pool.submit(score_one_at_a_time, requests).result(),
                "fp32": self._losses,
                "bf16": partial(self._losses, dtype="bf16"),
            }
            for scorer in scorers.values():
                scorer(requests[:8])  # first calls allocate and initialize

            def contender(name: str) -> Callable[[], None]:
                return lambda: results.update({name: scorers[name](requests)})

            turns = {name: contender(name) for name in scorers}
            timings = measure.time_turns(turns, self.arguments.rounds, self.device)
        rates = {name: f"{timing.rate(items):.2f} ({timing.rate_range(items)})" for name, timing in timings.items()}
        same = all(
            (choices(results["fp32"] / size) == choices(results["one at a time"] / size)).all()
            for size in (1, ending_lengths(requests))
        )
        for name, target in (("fp32", 4), ("bf16", 8)):
            ratio = timings["one at a time"].median / timings[name].median
            figure = f"{ratio:.1f}x: {rates[name]} items/s against {rates['one at a time']}"
            figure += f"; choices {'identical' if same else 'DIFFER'}" if name == "fp32" else ""
            passed = ratio >= target and (same or name == "bf16")
            yield Check(f"{name} >= {target}x one at a time, {items} items", figure, passed)

    def quality(self) -> Iterator[Check]:
        """acc_norm in bf16 and fp32."""
        requests = self._completion_requests(self.arguments.quality_items)
        questions = self._evaluation(self.arguments.quality_items).questions["completion"]
        labels = np.array([question.gold for question in questions])
        lengths = ending_lengths(requests)
        chosen = {dtype: choices(self._losses(requests, dtype) / lengths) for dtype in ("fp32", "bf16")}
        acc_norm = {dtype: float((answers == labels).mean()) for dtype, answers in chosen.items()}
        points = 100 * abs(acc_norm["bf16"] - acc_norm["fp32"])
        same = count_equal(chosen["fp32"], chosen["bf16"])
        figure = f"{points:.2f} points apart ({acc_norm['bf16']:.4f}, {acc_norm['fp32']:.4f})"
        name = f"bf16 acc_norm within 0.3 points, {len(labels)} items"
        yield Check(name, f"{figure}; {same} of {len(labels)} choices alike", points <= 0.3)

    def training(self) -> Iterator[Check]:
        """Extrapolate a step from micro-steps forward and backward, and an evaluation from some items."""
        policy = precision.choose("auto", self.device)
        idx = torch.randint(0, 50257, (2 if self.device.type == "cpu" else 16, 1024), device=self.device)
        requests = self._evaluation(self.arguments.speed_items).requests

        def micro_step() -> None:
            with policy.autocast():
                _, loss = self.model(idx, idx)
            loss.backward()

        contenders: dict[str, Callable[[], object]] = {
            "micro-step": micro_step,
            "items": lambda: self._losses(requests, policy.name),
        }
        for contender in contenders.values():
            contender()  # first calls allocate and initialize
        timings = measure.time_turns(contenders, self.arguments.rounds, self.device)
        self.model.zero_grad(set_to_none=True)
        step = timings["micro-step"].median / idx.numel() * STEP_TOKENS
        evaluation = timings["items"].median / self.arguments.speed_items * hellaswag.ITEMS
        share = evaluation / (STEPS_BETWEEN * step + evaluation)
        figure = f"{share:.2%}: {evaluation:.0f} s per {STEPS_BETWEEN} steps of {step:.0f} s"
        name = f"HellaSwag every {STEPS_BETWEEN} steps < 5% of a 124M run"
        yield Check(name, f"{figure} ({policy.name}, both styles, computed)", share < 0.05)

    def _evaluation(self, items: int) -> hellaswag.Evaluation:
        return hellaswag.Evaluation(self.tokenizer, self.data, limit=items)

    def _completion_requests(self, items: int) -> list[Request]:
        """The requests of the completion style, which come first: four an item."""
        return self._evaluation(items).requests[: 4 * items]

    def _losses(self, requests: list[Request], dtype: str = "fp32") -> np.ndarray:
        """Summed loss of each ending."""
        policy = precision.choose(dtype, self.device)  # type: ignore[arg-type]
        return score(self.model, requests, dist=self.dist, precision=policy).loss

    def _harness_samples(self, file: Path, folder: Path, policy: precision.Precision) -> list[dict[str, Any]]:
        """The samples of lm-eval's own task on the items of `file`, in their order."""
        import lm_eval
        from lm_eval import evaluator
        from lm_eval.tasks import TaskManager

        from gpt2lab.evaluation import harness

        source = Path(lm_eval.__file__).parent / "tasks" / "hellaswag"
        local = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    validation: {file}"
        text = (source / "hellaswag.yaml").read_text().replace("task: hellaswag", "task: hellaswag_local")
        text = text.replace("training_split: train\n", "").replace("dataset_path: Rowan/hellaswag", local)
        folder.mkdir()
        (folder / "hellaswag_local.yaml").write_text(text)
        shutil.copy(source / "utils.py", folder / "utils.py")
        report = evaluator.simple_evaluate(
            model=harness.Adapter(self.model, self.tokenizer, dist=self.dist, precision=policy),
            tasks=["hellaswag_local"],
            bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        )
        return sorted(report["samples"]["hellaswag_local"], key=lambda sample: sample["doc_id"])


_model: Any = None  # of the process that scores one example at a time


def load_one_at_a_time(folder: str, device: str) -> None:
    """Load transformers' model in this process."""
    import transformers

    global _model
    _model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    _model = _model.to(device).eval()


@torch.no_grad()
def score_one_at_a_time(requests: list[Request]) -> np.ndarray:
    """As many reproductions do: four rows padded to the longest, the logits of every position; eager, fp32."""
    losses = []
    for first in range(0, len(requests), 4):
        item = requests[first : first + 4]
        width = max(len(context) + len(ending) for context, ending in item)
        tokens, mask = torch.zeros(4, width, dtype=torch.int64), torch.zeros(4, width)
        for n, (context, ending) in enumerate(item):
            length = len(context) + len(ending)
            tokens[n, :length] = torch.tensor([*context, *ending])
            mask[n, len(context) : length] = 1
        tokens, mask = tokens.to(_model.device), mask.to(_model.device)
        logits = _model(tokens).logits[:, :-1]
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1), reduction="none")
        losses.append((loss.view(4, -1) * mask[:, 1:]).sum(dim=1).cpu().numpy())
    return np.concatenate(losses)


def ending_lengths(requests: list[Request]) -> np.ndarray:
    """Tokens of each ending."""
    return np.array([len(ending) for _, ending in requests])


def choices(losses: np.ndarray) -> np.ndarray:
    """The ending of the least loss, of each item."""
    return np.asarray(losses.reshape(-1, 4).argmin(axis=1))


def count_equal(answers: np.ndarray, others: np.ndarray) -> int:
    """In how many items two lists of answers agree."""
    return int((answers == others).sum())


def main() -> None:
    """Run the selected parts."""
    parts = ("equality", "harness", "speed", "quality", "training")
    parser = measure.argument_parser(__doc__, parts, rounds=5)
    parser.add_argument("--hellaswag-file", required=True, metavar="FILE", help="the validation set, in either schema")
    parser.add_argument("--equality-items", type=int, default=500, metavar="N")
    parser.add_argument("--speed-items", type=int, default=96, metavar="N")
    parser.add_argument("--quality-items", type=int, default=1000, metavar="N")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    benchmark = EvaluationBenchmark(arguments)
    print(measure.format_environment(measure.environment(benchmark.device)), flush=True)
    print(benchmark.data.describe(), flush=True)
    measure.run_parts({part: getattr(benchmark, part) for part in parts}, arguments.only)


if __name__ == "__main__":
    main()

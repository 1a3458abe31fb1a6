"""Is HellaSwag here the HellaSwag of others, and how much faster? The bars of the evaluation wing, in one run.

    python benchmarks/evaluate.py --hellaswag-file FILE          # everything: some 25 minutes on two cores
    python benchmarks/evaluate.py --hellaswag-file FILE --only speed

The weights are GPT-2 124M's shape, drawn at random (seed 0): equality and speed do not need trained ones. Parts:

    equality   losses of every ending against `transformers`, one ending at a time, nothing padded, fp32
    harness    lm-evaluation-harness's own hellaswag task against our harness style, on one file, item by item
    speed      items a second against one example at a time: 4 padded rows, all positions' logits, eager fp32,
               `transformers`' model and torch's defaults in a process of its own
    quality    acc_norm in bf16 against fp32
    training   the share of a 124M run's time that both conventions take every 250 steps

Rates are medians over rounds in which every contender has its turn, so that a busy machine slows all of them.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2lab import GPT2, GPT2Config, Tokenizer
from gpt2lab.evaluation import hellaswag, multiple_choice
from gpt2lab.evaluation.scoring import Request, score
from gpt2lab.system import device as devices
from gpt2lab.system import precision
from gpt2lab.system.distributed import DistContext
from gpt2lab.training.run_directory import commit

PARTS = ("equality", "harness", "speed", "quality", "training")
Bar = tuple[str, str, str, bool]  # part, what, figure, met


class Bench:
    """The model, the items, and the ways to score them."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        device = devices.choose(arguments.device)
        if device.type == "cpu":
            devices.keep_freed_memory()  # as `gpt2lab evaluate` does
        self.dist = DistContext(rank=0, world_size=1, device=device)
        self.model = GPT2(GPT2Config(), generator=torch.Generator().manual_seed(0)).to(device).eval()
        self.data = hellaswag.read(Path(arguments.hellaswag_file))
        self.tokenizer = Tokenizer()

    def task(self, items: int) -> hellaswag.Evaluation:
        return hellaswag.Evaluation(self.tokenizer, self.data, limit=items)

    def losses(self, requests: list[Request], policy: str = "fp32") -> np.ndarray:
        chosen = precision.choose(policy, self.dist.device)  # type: ignore[arg-type]
        return score(self.model, requests, dist=self.dist, precision=chosen).loss

    # -- the parts

    def equality(self) -> list[Bar]:
        import transformers

        requests = self.task(self.arguments.equality_items).requests[: 4 * self.arguments.equality_items]  # completion
        ours = self.losses(requests)
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        theirs = theirs.to(self.dist.device).eval()
        expected = []
        with torch.no_grad():
            for context, tail in requests:
                tokens = torch.tensor([[*context, *tail]], device=self.dist.device)
                logits = theirs(tokens).logits[0, len(context) - 1 : -1]
                expected.append(
                    float(torch.nn.functional.cross_entropy(logits, tokens[0, len(context) :], reduction="sum"))
                )
        sizes = np.array([len(tail) for _, tail in requests])
        summed, mean = np.abs(ours - expected).max(), np.abs((ours - expected) / sizes).max()
        same = {
            name: int((part(ours) == part(np.array(expected))).sum())
            for name, part in (("acc", _choices), ("acc_norm", lambda losses: _choices(losses / sizes)))
        }
        count = len(ours) // 4
        figure = f"mean loss differs by {mean:.1e} at most (summed: {summed:.1e}); same choices: {same} of {count}"
        return [
            (
                "equality",
                f"within 1e-4 of transformers, {count} items",
                figure,
                mean < 1e-4 and set(same.values()) == {count},
            )
        ]

    def harness(self) -> list[Bar]:
        import lm_eval
        from lm_eval import evaluator
        from lm_eval.tasks import TaskManager

        from gpt2lab.evaluation import harness

        items = multiple_choice.subset(self.data.items, self.arguments.equality_items)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            file = folder / "official.jsonl"  # their task wants the official schema: both read this file
            rows = [item.model_dump() | {"ind": n} for n, item in enumerate(items)]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            source = Path(lm_eval.__file__).parent / "tasks" / "hellaswag"
            text = (source / "hellaswag.yaml").read_text().replace("task: hellaswag", "task: hellaswag_here")
            text = text.replace("training_split: train\n", "")
            place = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    validation: {file}"
            (folder / "task").mkdir()
            (folder / "task" / "here.yaml").write_text(text.replace("dataset_path: Rowan/hellaswag", place))
            shutil.copy(source / "utils.py", folder / "task" / "utils.py")
            policy = precision.choose("fp32", self.dist.device)
            report = evaluator.simple_evaluate(
                model=harness.Adapter(self.model, self.tokenizer, dist=self.dist, precision=policy),
                tasks=["hellaswag_here"],
                bootstrap_iters=0,
                task_manager=TaskManager(include_path=str(folder / "task"), include_defaults=False),
            )
            task = hellaswag.Evaluation(self.tokenizer, hellaswag.read(file))
        ours = task.as_json(score(self.model, task.requests, dist=self.dist, precision=policy))["harness"]
        samples = sorted(report["samples"]["hellaswag_here"], key=lambda sample: sample["doc_id"])
        gold = [item.label for item in items]
        same = {
            metric: sum(
                sample[metric] == (chosen == right)
                for sample, chosen, right in zip(samples, ours[key], gold, strict=True)
            )
            for metric, key in (("acc", "predictions"), ("acc_norm", "predictions_norm"))
        }
        figure = f"right or wrong alike: {same} of {len(items)}"
        return [
            (
                "harness",
                f"lm-eval {lm_eval.__version__}'s hellaswag, {len(items)} items",
                figure,
                set(same.values()) == {len(items)},
            )
        ]

    def speed(self) -> list[Bar]:
        requests = self.task(self.arguments.speed_items).requests[: 4 * self.arguments.speed_items]
        items = len(requests) // 4
        with tempfile.TemporaryDirectory() as folder, UsualScript(self.model, folder, self.dist.device) as usual:
            ways: dict[str, Callable[[list[Request]], np.ndarray]] = {
                "one at a time": usual.losses,
                "fp32": self.losses,
                "bf16": lambda requests: self.losses(requests, "bf16"),
            }
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            found = {}
            for way in ways.values():
                way(requests[:8])  # first calls set things up
            for _ in range(self.arguments.rounds):
                for name, way in ways.items():
                    began = time.perf_counter()
                    found[name] = way(requests)  # the losses are numpy's: the device is done
                    seconds[name].append(time.perf_counter() - began)
        rates = {name: items / statistics.median(taken) for name, taken in seconds.items()}
        spread = {name: f"{items / max(taken):.1f}-{items / min(taken):.1f}" for name, taken in seconds.items()}
        sizes = np.array([len(tail) for _, tail in requests])
        same = all(
            (_choices(found["fp32"] / size) == _choices(found["one at a time"] / size)).all() for size in (1, sizes)
        )
        bars = []
        for name, wanted in (("fp32", 4), ("bf16", 8)):
            ratio = rates[name] / rates["one at a time"]
            figure = (
                f"{ratio:.1f}x: {rates[name]:.2f} items/s ({spread[name]}) against {rates['one at a time']:.2f} "
                f"({spread['one at a time']})"
                + (f"; choices {'identical' if same else 'DIFFER'}" if name == "fp32" else "")
            )
            bars.append(
                (
                    "speed",
                    f"{name} >= {wanted}x one at a time, {items} items",
                    figure,
                    ratio >= wanted and (same or name == "bf16"),
                )
            )
        return bars

    def quality(self) -> list[Bar]:
        task = self.task(self.arguments.quality_items)
        part = task.requests[: 4 * self.arguments.quality_items]
        sizes = np.array([len(tail) for _, tail in part])
        gold = np.array([question.gold for question in task.questions["completion"]])
        chosen = {policy: _choices(self.losses(part, policy) / sizes) for policy in ("fp32", "bf16")}
        share = {policy: float((answers == gold).mean()) for policy, answers in chosen.items()}
        points = 100 * abs(share["bf16"] - share["fp32"])
        same = int((chosen["fp32"] == chosen["bf16"]).sum())
        figure = (
            f"{points:.2f} points apart ({share['bf16']:.4f}, {share['fp32']:.4f}); {same} of {len(gold)} choices alike"
        )
        return [("quality", f"bf16 acc_norm within 0.3 points, {len(gold)} items", figure, points <= 0.3)]

    def training(self) -> list[Bar]:
        """Seconds of a step from a few micro-steps forward and backward; seconds of an evaluation from some items."""
        policy = precision.choose("auto", self.dist.device)
        size, length = (2, 1024) if self.dist.device.type == "cpu" else (16, 1024)
        idx = torch.randint(0, 50257, (size, length), device=self.dist.device)
        task = self.task(self.arguments.speed_items)
        tokens, evaluations = [], []
        for turn in range(1 + self.arguments.rounds):  # the first sets things up
            began = time.perf_counter()
            with policy.autocast():
                _, loss = self.model(idx, idx)
            loss.backward()
            devices.synchronize(self.dist.device)
            middle = time.perf_counter()
            self.losses(task.requests, policy.name)
            devices.synchronize(self.dist.device)
            if turn:
                tokens.append((middle - began) / idx.numel())
                evaluations.append((time.perf_counter() - middle) / self.arguments.speed_items)
        self.model.zero_grad(set_to_none=True)
        step = statistics.median(tokens) * 491_520
        whole = statistics.median(evaluations) * hellaswag.ITEMS
        share = whole / (250 * step + whole)
        figure = f"{share:.2%}: {whole:.0f} s beside 250 steps of {step:.0f} s ({policy.name}, both styles, computed)"
        return [("training", "HellaSwag every 250 steps < 5% of a 124M run", figure, share < 0.05)]


class UsualScript:
    """One example at a time as the reproductions' script does it, with `transformers`' model and torch's defaults.

    It has a process of its own: no setting of ours (allocator, threads, precision) speeds it up or slows it down.
    """

    def __init__(self, model: GPT2, folder: str, device: torch.device):
        model.save_pretrained(folder)
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(theirs, folder, device.type), daemon=True)

    def __enter__(self) -> "UsualScript":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join()

    def losses(self, requests: list[Request]) -> np.ndarray:
        self._pipe.send(requests)
        return self._pipe.recv()


@torch.no_grad()
def _serve(pipe: Connection, folder: str, device: str) -> None:
    """Four rows padded to the longest, the logits of every position, a cross-entropy a position; eager, fp32."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    while (requests := pipe.recv()) is not None:
        losses = []
        for first in range(0, len(requests), 4):
            rows = [[*context, *tail] for context, tail in requests[first : first + 4]]
            width = max(map(len, rows))
            tokens = torch.zeros(4, width, dtype=torch.int64)
            mask = torch.zeros(4, width)
            for n, row in enumerate(rows):
                tokens[n, : len(row)] = torch.tensor(row)
                mask[n, len(requests[first + n].context) : len(row)] = 1
            tokens, mask = tokens.to(device), mask.to(device)
            logits = model(tokens).logits
            flat = logits[:, :-1].reshape(-1, logits.shape[-1])
            each = torch.nn.functional.cross_entropy(flat, tokens[:, 1:].reshape(-1), reduction="none")
            losses.append((each.view(4, -1) * mask[:, 1:]).sum(dim=1).cpu().numpy())
        pipe.send(np.concatenate(losses))


def _choices(losses: np.ndarray) -> np.ndarray:
    return losses.reshape(-1, 4).argmin(axis=1)


def main() -> None:
    """Run the parts asked for and print a line a bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hellaswag-file", required=True, metavar="FILE", help="the validation set, in either schema")
    parser.add_argument("--only", default=",".join(PARTS), metavar="A,B", help=f"parts of {', '.join(PARTS)}")
    parser.add_argument("--equality-items", type=int, default=500, metavar="N")
    parser.add_argument("--speed-items", type=int, default=96, metavar="N")
    parser.add_argument("--quality-items", type=int, default=1000, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    bench = Bench(arguments)
    hardware: dict[str, Any] = devices.describe(bench.dist.device)
    print(f"commit {commit() or 'unknown'}; torch {torch.__version__}; {hardware}; {bench.data.describe()}", flush=True)
    for part in arguments.only.split(","):
        for name, what, figure, met in getattr(bench, part)():
            print(f"{'ok  ' if met else 'MISS'} {name:9} {what}: {figure}", flush=True)


if __name__ == "__main__":
    main()

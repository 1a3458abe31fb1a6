"""The page of results on a GPU, from what the other calls of `benchmarks/gpu.sh` have left.

    python benchmarks/gpu_page.py FOLDER [--page docs/results/bench_gpu.md]

FOLDER holds CALL.jsonl, a line for each command, and CALL.tgz, its output. What was not measured is left out.
"""

import argparse
import json
import statistics
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2lab import files
from gpt2lab.bench.measure import format_environment, markdown_table

PAGE = Path(__file__).parent.parent / "docs" / "results" / "bench_gpu.md"
CALLS = {
    "check": "Every command",
    "bench": "The training step",
    "train": "A run",
    "modern": "A run of the modern recipe",
    "plan": "Estimates of `gpt2lab plan`",
}
FIRST_STEP = 5  # of the median; the ones before it allocate memory


class Call:
    """What a call of gpu.sh has left.

    Args:
        folder: of the results.
        name: of the call.
    """

    def __init__(self, folder: Path, name: str):
        record, archive = folder / f"{name}.jsonl", folder / f"{name}.tgz"
        self.lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
        self.files: dict[str, str] = {}
        if archive.exists():
            with tarfile.open(archive) as tar:
                for member in tar.getmembers():
                    if member.isfile() and member.name.endswith((".log", ".jsonl")):
                        content = tar.extractfile(member)
                        text = content.read().decode(errors="replace") if content else ""
                        self.files[member.name.removeprefix(f"{name}/")] = text

    def result(self, name: str) -> dict[str, Any] | None:
        """The JSON object that a command has printed; None if it has not."""
        for line in reversed(self.files.get(f"{name}.log", "").splitlines()):
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        return None

    def metrics(self, run: str) -> list[dict[str, Any]]:
        """The lines of a run's metrics.jsonl."""
        return [json.loads(line) for line in self.files.get(f"{run}/metrics.jsonl", "").splitlines()]


def write_page(folder: Path) -> str:
    """The page as Markdown."""
    calls = {name: Call(folder, name) for name in CALLS}
    parts = ["# The training step on a GPU", "Written by `benchmarks/gpu.sh page`."]
    for name, title in CALLS.items():
        call = calls[name]
        if not call.lines:
            continue
        environment = call.result("environment")
        parts += [f"## {title}", f"    benchmarks/gpu.sh {name}"]
        parts += [format_environment(environment) + "."] if environment else []
        parts += list(contents(name, calls))
        rows = [
            (line["name"], "ok" if line["status"] == "0" else line["status"], line["seconds"]) for line in call.lines
        ]
        failures = [f"- {line['name']}: {line['line']}" for line in call.lines if line["status"] != "0"]
        parts += [markdown_table(("command", "status", "s"), rows), "\n".join(failures)]
    return "\n\n".join(part for part in parts if part) + "\n"


def contents(name: str, calls: dict[str, Call]) -> Iterator[str]:
    """What a call has measured, as Markdown."""
    call = calls[name]
    if name == "bench":
        yield from _bench(call)
    elif name == "plan":
        yield from _plan(call)
    else:
        yield from _runs(call)
        yield from _curve(call)
    if name == "modern":
        yield from _compare(calls["train"], call)


def _bench(call: Call) -> Iterator[str]:
    rows = []
    for line in call.lines:
        result = call.result(line["name"]) or {}
        for row in result.get("rows", []):
            mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%}"
            figures = (f"{row['ms_per_step']:.1f}", f"{row['tokens_per_second']:,.0f}", mfu)
            rows.append(
                (line["name"], row["measured"], result["environment"]["B"], *figures, f"{row['peak_memory_gib']:.1f}")
            )
    if rows:
        yield markdown_table(("command", "step", "B", "ms", "tokens/s", "MFU", "GiB"), rows)
    for name in ("hellaswag", "hellaswag_again"):
        for task, figures in ((call.result(name) or {}).get("tasks") or {}).items():
            yield f"{name}: {task}, {figures.get('seconds', '?')} s."


def _runs(call: Call) -> Iterator[str]:
    runs = sorted({name.rpartition("/")[0] for name in call.files if name.endswith("/metrics.jsonl")})
    keys = ("perf/step_ms", "perf/data_ms", "perf/tokens_per_second", "perf/peak_memory_gib")
    rows = []
    for run in runs:
        steps = [line for line in call.metrics(run) if line["step"] >= FIRST_STEP and "perf/step_ms" in line]
        if steps:
            medians = [f"{statistics.median(line[key] for line in steps):,.1f}" for key in keys]
            rows.append((run, steps[-1]["step"], *medians, f"{steps[-1]['train/loss']:.3f}"))
    if rows:
        yield markdown_table(("run", "steps", "ms", "data ms", "tokens/s", "GiB", "last loss"), rows)


def _validation(call: Call) -> list[dict[str, Any]]:
    return [line for line in call.metrics("long") if "val/loss" in line]


def _curve(call: Call) -> Iterator[str]:
    rows = [(line["step"], f"{line['val/loss']:.4f}") for line in _validation(call)]
    if rows:
        yield markdown_table(("step", "validation loss"), rows)


def _compare(faithful: Call, modern: Call) -> Iterator[str]:
    """The tokens that the modern recipe needs for the last loss of the faithful one, and its speed."""
    target, reached = _validation(faithful), _validation(modern)
    if not (target and reached):
        return
    last = target[-1]
    hit = next((line for line in reached if line["val/loss"] <= last["val/loss"]), None)
    if hit is None:
        yield f"The loss of `train`, {last['val/loss']:.4f}, is not reached; the last is {reached[-1]['val/loss']:.4f}."
    else:
        share = hit["step"] / last["step"]  # both have as many tokens a step
        yield f"The loss of `train`, {last['val/loss']:.4f}, is reached with {share:.1%} of its tokens (target: 33%)."
    speeds = [_speed(call) for call in (modern, faithful)]
    yield f"Tokens per second: {speeds[0] / speeds[1]:.1%} of those of `train` (target: 90%)."


def _speed(call: Call) -> float:
    return statistics.median(line["perf/tokens_per_second"] for line in call.metrics("long") if "perf/step_ms" in line)


def _plan(call: Call) -> Iterator[str]:
    """The rows of benchmarks/plan_speed.py, in one table."""
    tables = [
        [line for line in call.files.get(f"{line['name']}.log", "").splitlines() if line.startswith("|")]
        for line in call.lines
    ]
    tables = [table for table in tables if table]
    if tables:
        yield "\n".join(tables[0][:2] + [row for table in tables for row in table[2:]])


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="OUT of benchmarks/gpu.sh")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    with files.atomic_write(arguments.page) as temporary:
        temporary.write_text(write_page(arguments.folder), encoding="utf-8")
    print(f"wrote {arguments.page}")


if __name__ == "__main__":
    main()

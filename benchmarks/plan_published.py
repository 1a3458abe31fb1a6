"""Compare the model of speed, with the constants fitted to LLM Foundry's table alone, with published single runs.

    python benchmarks/plan_published.py published_runs.csv      # a Markdown table; docs/results/planning.md

The CSV states for each run the GPUs and a speed, a time for so many tokens, or a time per step. What it lacks of the
model and of the division of a step is in RUNS below.
"""

import argparse
import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2lab.planning import speed
from gpt2lab.planning.speed import Stack, Work
from gpt2lab.system import gpus
from gpt2lab.system.gpus import GPU

FACTOR = 1.4  # of the bar
PADDED_VOCAB = 50304

# Of each run: sequences of a GPU in a forward pass; vocabulary and parameters in matrix products where they are not
# GPT-2's; FSDP. Models without `looked_up` have 12 L C^2 parameters in blocks. nanochat's windows are not modelled.
RUNS: dict[str, dict[str, Any]] = {
    "miniGPT": {"micro_batch_size": 16},
    "miniLLM": {"micro_batch_size": 64},
    "llm.c 124M A100": {"micro_batch_size": 64},
    "llm.c 124M H100": {"micro_batch_size": 64},
    "llm.c 350M H100": {"micro_batch_size": 64},
    "nanoGPT 124M 8xA100": {"micro_batch_size": 12},
    "nanoGPT 124M 1xA100": {"micro_batch_size": 12},
    "PyTorch GPT-2 1xH100 low": {"micro_batch_size": 64},
    "track 3 AdamW": {"micro_batch_size": 64},
    "track 3 Muon": {"micro_batch_size": 64},
    "modded 1.5B": {"micro_batch_size": 20},
    "nanochat d24": {"micro_batch_size": 32, "vocab_size": 32768},
    "nanochat d26 bf16": {"micro_batch_size": 32, "vocab_size": 32768},
    "TinyLlama": {"micro_batch_size": 8, "vocab_size": 32000, "looked_up": 32000 * 2048, "sharding": "full"},
    "torchtitan 8B": {"micro_batch_size": 2, "vocab_size": 128256, "looked_up": 128256 * 4096, "sharding": "full"},
    "torchtitan 8B compile": {
        "micro_batch_size": 2,
        "vocab_size": 128256,
        "looked_up": 128256 * 4096,
        "sharding": "full",
    },
}
_GPUS = {"A100 40GB": "a100-40gb", "A100 80GB": "a100-80gb", "H100 SXM": "h100-80gb"}


def work_of(row: Mapping[str, str]) -> Work:
    """The model and the division of a step."""
    facts = dict(RUNS[row["run"]])
    n_layer, n_embd, block_size, count = (int(row[key]) for key in ("n_layer", "n_embd", "seq_len", "gpus"))
    vocab_size = facts.pop("vocab_size", PADDED_VOCAB)
    looked_up = facts.pop("looked_up", None)
    matmul = int(row["parameters"]) - looked_up if looked_up else 12 * n_layer * n_embd**2 + vocab_size * n_embd
    micro_tokens = facts["micro_batch_size"] * block_size * count
    step = int(row["tokens_per_step"] or micro_tokens)
    return Work(
        n_layer=n_layer,
        n_embd=n_embd,
        block_size=block_size,
        vocab_size=vocab_size,
        parameters=int(row["parameters"] or matmul),
        matmul_parameters=matmul,
        grad_accum_steps=max(1, round(step / micro_tokens)),
        gpus=count,
        gather_bytes=2 if facts.get("sharding") else 4,
        **facts,
    )


def measured(row: Mapping[str, str]) -> tuple[float, str]:
    """Tokens per second of all GPUs, and what the run states."""
    if row["tokens_per_second"]:
        return float(row["tokens_per_second"]), "tokens/s"
    if row["step_ms"]:
        return float(row["tokens_per_step"]) / float(row["step_ms"]) * 1e3, f"{row['step_ms']} ms a step"
    return float(row["tokens"]) / float(row["hours"]) / 3600, f"{row['hours']} h in all"


def estimated(row: Mapping[str, str], table: Mapping[str, GPU]) -> float:
    """Tokens per second with stack factor 1."""
    return speed.tokens_per_second(work_of(row), gpus.find(_GPUS[row["gpu"]], table), Stack()).estimate


def ratio(row: Mapping[str, str], table: Mapping[str, GPU]) -> float:
    """Measured by estimated speed: the stack factor of the run."""
    return measured(row)[0] / estimated(row, table)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", type=Path)
    rows = list(csv.DictReader(parser.parse_args().table.open()))
    table: Mapping[str, GPU] = gpus.load()
    print("| run | GPUs | stated | tokens/s | estimated | measured / estimated | within |")
    print("|---|---|---|---:|---:|---:|---|")
    ratios = [ratio(row, table) for row in rows]
    for row, factor in zip(rows, ratios, strict=True):
        actual, stated = measured(row)
        print(
            f"| {row['run']} | {row['gpus']} x {row['gpu']} | {stated} | {actual:,.0f} | {estimated(row, table):,.0f} |"
            f" {factor:.2f} | {'yes' if 1 / FACTOR <= factor <= FACTOR else '**no**'} |"
        )
    within = sum(1 / FACTOR <= factor <= FACTOR for factor in ratios)
    print(f"\n{within} of {len(rows)} rows ({within / len(rows):.0%}) within a factor {FACTOR}.")
    for name, runs in (("A100", ("miniGPT", "miniLLM", "nanoGPT")), ("H100", ("PyTorch", "track 3", "modded"))):
        chosen = [factor for row, factor in zip(rows, ratios, strict=True) if row["run"].startswith(runs)]
        mean = math.exp(sum(map(math.log, chosen)) / len(chosen))
        print(f"Stack factor, {name}: geometric mean {mean:.3f} of {', '.join(f'{factor:.2f}' for factor in chosen)}.")


if __name__ == "__main__":
    main()

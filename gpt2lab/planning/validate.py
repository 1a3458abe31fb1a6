"""Compares the model of speed with a table of measured runs; the constants are those that are shipped."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpt2lab.config import GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.planning import memory, speed
from gpt2lab.planning.memory import GIB, Layout, Memory
from gpt2lab.planning.speed import SHIPPED, Constants, Sharding, Work
from gpt2lab.system import gpus
from gpt2lab.system.gpus import GPU

_VOCAB_SIZE = 50368  # of LLM Foundry's models; a column vocab_size replaces it
_SHARDING: dict[str, Sharding] = {"FULL_SHARD": "full", "SHARD_GRAD_OP": "gradients", "NO_SHARD": "none"}


class Row(NamedTuple):
    """A measured run."""

    gpu: GPU
    work: Work
    tokens_per_second: float


def read(file: str | Path, table: Mapping[str, GPU]) -> list[Row]:
    """Read a CSV file in the columns of LLM Foundry's tables.

    Needed are `parameters`, `n_layer`, `n_embd`, `seq_len`, `gpu`, `gpus`, `micro_batch_size`, `grad_accum`,
    `precision` (bf16, amp_bf16, …) and `tokens_per_second` (of all GPUs). `sharding` is FULL_SHARD, SHARD_GRAD_OP or
    NO_SHARD, `activation_checkpointing` True or False. `parameters` count a tied head once, and learned positions.

    Args:
        file: the table.
        table: the GPUs by name.

    Returns:
        Its rows.

    Raises:
        GPT2LabError: the file cannot be read, has no rows, or a value is missing or not valid.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise GPT2LabError(f"--validate {file}: cannot read it: {error}") from None
    rows = []
    header = text.partition("\n")[0]
    if "," not in header and (";" in header or "\t" in header):
        raise GPT2LabError(f"--validate {file}: its columns are not separated by commas; save it so")
    for number, row in enumerate(csv.DictReader(text.splitlines()), start=1):
        try:
            rows.append(_parse(row, table))
        except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            problem = f"no column {error}" if isinstance(error, KeyError) else str(error)
            raise GPT2LabError(f"--validate {file}: row {number}: {problem}") from None
    if not rows:
        raise GPT2LabError(f"--validate {file}: no rows")
    return rows


def _parse(row: Mapping[str, str], table: Mapping[str, GPU]) -> Row:
    n_embd, block_size = _number(row, "n_embd"), _number(row, "seq_len")
    parameters = _number(row, "parameters")
    work = Work(
        n_layer=_number(row, "n_layer"),
        n_embd=n_embd,
        block_size=block_size,
        vocab_size=_number(row, "vocab_size") if row.get("vocab_size") else _VOCAB_SIZE,
        parameters=parameters,
        matmul_parameters=parameters - block_size * n_embd,
        micro_batch_size=_number(row, "micro_batch_size"),
        grad_accum_steps=_number(row, "grad_accum"),
        gpus=_number(row, "gpus"),
        sharding=_SHARDING[row.get("sharding") or "FULL_SHARD"],
        gather_bytes=2,
        checkpointing=(row.get("activation_checkpointing") or "False").strip().lower() in ("true", "1", "yes"),
        precision=row["precision"].strip().lower().removeprefix("amp_"),
    )
    gpu = gpus.find(row["gpu"], table)
    gpu.peak_flops(work.precision)
    measured = float(row["tokens_per_second"])
    if not measured > 0:
        raise ValueError(f"tokens_per_second is {measured}")
    return Row(gpu, work, measured)


def _number(row: Mapping[str, str], column: str) -> int:
    value = float(row[column])
    if not value >= 1:
        raise ValueError(f"{column} is {row[column]}")
    return int(value)


def errors(rows: Sequence[Row], constants: Constants = SHIPPED) -> list[float]:
    """The errors of the estimates with stack factor 1.

    Args:
        rows: measured runs.
        constants: of the model.

    Returns:
        For each row `|estimated - measured| / measured`, of tokens per second.
    """
    stack = speed.Stack()
    return [
        abs(speed.tokens_per_second(row.work, row.gpu, stack, constants).estimate / row.tokens_per_second - 1)
        for row in rows
    ]


def summarize(values: Sequence[float]) -> dict[str, float | int]:
    """Median, 90th percentile (linearly interpolated) and number of errors, as `--validate --json` prints them.

    Args:
        values: as returned by `errors`, at least one.
    """
    p90 = statistics.quantiles(values, n=10, method="inclusive")[8] if len(values) > 1 else values[0]
    return {"median_error": statistics.median(values), "p90_error": p90, "rows": len(values)}


def peak_memory(row: Row) -> Memory:
    """Peak memory of a measured run, if its code were this one except that weights are cast a block at a time.

    Args:
        row: the run. Its heads have 64 channels, as the number is not known.
    """
    work = row.work
    model = GPT2Config(
        n_layer=work.n_layer,
        n_embd=work.n_embd,
        n_head=max(1, work.n_embd // 64),
        block_size=work.block_size,
        vocab_size=work.vocab_size,
    )
    layout = Layout(
        micro_batch_size=work.micro_batch_size,
        grad_accum_steps=work.grad_accum_steps,
        gpus=work.gpus,
        shard=work.sharding != "none",
        checkpointing=work.checkpointing,
        precision=work.precision,
        keeps_copies=False,
    )
    return memory.estimate(model, layout)


def count_too_big(rows: Sequence[Row]) -> int:
    """Count the runs whose estimated memory is more than their GPU has, although they ran.

    Args:
        rows: measured runs.
    """
    return sum(peak_memory(row).total > row.gpu.memory_gib * GIB for row in rows if row.gpu.memory_gib)

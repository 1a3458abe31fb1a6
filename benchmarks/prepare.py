"""The speed of `gpt2lab prepare`, against the usual recipe and against merely reading the text.

    python benchmarks/prepare.py --mirror ../shared/data        # the folder that holds fineweb_edu*/sample/10BT

Every figure is the time of a fresh process, from its start to its exit. Contenders take turns; rates are medians over
the rounds. On a machine that others use as well, compare the processor seconds: they measure the work, wall time also
depends on the other load. No text is read twice in a run: repeating it would only warm the tokenizer's cache.

- **prepare**: `gpt2lab prepare fineweb-edu`, with its check against tiktoken, hashes and fsync.
- **usual recipe**: tiktoken in a pool of processes, one document at a time, shards by numpy.save.
- **decode only**: the text column of every row group, read by as many threads, and nothing else.
- **prepare, processes**: the same encoding in a pool of processes rather than threads.
- **prepare, a tenth**: with `--val-tokens` left open, so that all is encoded before it is cut.
- **prepare, tiktoken**: without gigatoken.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from gpt2lab import logs
from gpt2lab.bench import measure

SHARD = 5_000_000
REPOSITORY = Path(__file__).parent.parent


class Seconds(NamedTuple):
    """Time of a process, its children included."""

    wall: float
    cpu: float


# -- contenders that run in this script, in a process of their own


def usual_recipe(root: Path, out: Path, workers: int) -> None:
    """Tokenize one document at a time in a pool of processes, into a buffer, into numpy.save."""
    import multiprocessing

    import numpy as np
    import pyarrow.parquet as pq

    def documents() -> Iterator[str]:
        for file in sorted(root.glob("*.parquet")):
            for batch in pq.ParquetFile(file).iter_batches(columns=["text"]):
                yield from batch.column(0).to_pylist()

    out.mkdir()
    buffer, filled, shard = np.empty(SHARD, dtype=np.uint16), 0, 0
    with multiprocessing.Pool(workers, initializer=_load_tiktoken) as pool:
        for tokens in pool.imap(_tokenize, documents(), chunksize=16):
            while len(tokens):
                head = tokens[: SHARD - filled]
                buffer[filled : filled + len(head)] = head
                filled, tokens = filled + len(head), tokens[len(head) :]
                if filled == SHARD:
                    np.save(out / f"train_{shard:06d}.npy", buffer)
                    filled, shard = 0, shard + 1
    np.save(out / f"train_{shard:06d}.npy", buffer[:filled])


_encoding: Any = None  # tiktoken's, of a worker of the usual recipe


def _load_tiktoken() -> None:
    global _encoding
    from gpt2lab.data.tokenizer import Tokenizer  # GPT-2's ranks without a download

    _encoding = Tokenizer()._encoding


def _tokenize(text: str) -> Any:
    import numpy as np

    return np.array([50256, *_encoding.encode_ordinary(text)], dtype=np.uint16)


def decode_only(root: Path, _: Path, workers: int) -> None:
    """Read the text column of every row group."""
    from concurrent.futures import ThreadPoolExecutor

    import pyarrow.parquet as pq

    def read(file: Path, number: int) -> None:
        pq.ParquetFile(file).read_row_group(number, columns=["text"], use_threads=False)

    files = sorted(root.glob("*.parquet"))
    with ThreadPoolExecutor(workers) as pool:
        groups = [(file, n) for file in files for n in range(pq.ParquetFile(file).num_row_groups)]
        list(pool.map(lambda group: read(*group), groups))


def prepare_in_processes(root: Path, out: Path, workers: int) -> None:
    """`prepare` with a pool of processes in place of its threads."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from gpt2lab.data import executors

    def pool(max_workers: int, **_: object) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(max_workers, mp_context=multiprocessing.get_context("forkserver"))

    executors.ThreadPoolExecutor = pool  # type: ignore[assignment, attr-defined]
    prepare(root, out, workers)


IN_THIS_SCRIPT: dict[str, Callable[[Path, Path, int], None]] = {
    "usual recipe": usual_recipe,
    "decode only": decode_only,
    "prepare, processes": prepare_in_processes,
}
OPTIONS = {
    "prepare": ["--val-tokens", str(SHARD)],
    "prepare, a tenth": ["--shard-size", "20M"],
    "prepare, tiktoken": ["--val-tokens", str(SHARD), "--tokenizer", "tiktoken"],
}
CONTENDERS = ("prepare", "usual recipe", "decode only", "prepare, processes", "prepare, a tenth", "prepare, tiktoken")


# -- measurements


def time_contender(name: str, root: Path, workers: int) -> Seconds:
    """Run a contender in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out")
        if name in IN_THIS_SCRIPT:
            command = [sys.executable, __file__, "--contender", name, "--root", str(root), "--out", out]
            command += ["--workers", str(workers)]
        else:
            command = prepare_command(root.parent.parent, out, workers, *OPTIONS[name])
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Seconds(time.perf_counter() - start, cpu)


def prepare_command(mirror: Path, out: str, workers: int, *options: str) -> list[str]:
    """The command line of `gpt2lab prepare`."""
    command = [sys.executable, "-m", "gpt2lab", "prepare", "fineweb-edu", "--mirror", str(mirror), "--out", out]
    return [*command, "--workers", str(workers), "--shard-size", str(SHARD), *options]


def prepare(root: Path, out: str | Path, workers: int) -> int:
    """Prepare in this process; returns the number of tokens, 50256 before each document included."""
    from gpt2lab.data import catalogue
    from gpt2lab.data.prepare import make
    from gpt2lab.options import PrepareOptions

    options = PrepareOptions("fineweb-edu", mirror=str(root.parent.parent), shard_size=SHARD, workers=workers)
    return make(catalogue.open_source(options), out, options).tokens


def peak_memory(root: Path, workers: int, copies: int) -> float:
    """Peak memory of `prepare` in MiB, with every file there `copies` times."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "sample" / "10BT"
        files.mkdir(parents=True)
        for copy in range(copies):
            for file in root.glob("*.parquet"):
                (files / f"{copy:03d}_{file.name}").symlink_to(file)
        # A process in between, whose only child is the one that is measured.
        code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True);"
        code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        command = [sys.executable, "-c", code, *prepare_command(Path(folder), f"{folder}/out", workers)]
        done = subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
        return int(done.stdout) / (1024 if sys.platform != "darwin" else 1024**2)


def loader_rate(root: Path, workers: int) -> float:
    """Tokens a second of the loader's batches on one core, the shards in the page cache."""
    from gpt2lab.data.loader import Loader
    from gpt2lab.data.shards import open_split

    with tempfile.TemporaryDirectory() as folder:
        prepare(root, folder, workers)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        stream = open_split(folder, "train")
        loader = Loader(stream, block_size=1024, sequences_per_step=64, vocab_size=50257, seed=1)
        rates = []
        for repeat in range(5):
            start = time.perf_counter()
            for step in range(repeat * 200, (repeat + 1) * 200):
                loader.batch(step)
            rates.append(200 * 64 * 1024 / (time.perf_counter() - start))
        return statistics.median(rates)


def print_results(seconds: dict[str, list[Seconds]], tokens: int) -> None:
    """A table of the contenders, and the ratios of their medians."""
    wall = {name: measure.Timing([turn.wall for turn in turns]) for name, turns in seconds.items()}
    cpu = {name: measure.Timing([turn.cpu for turn in turns]) for name, turns in seconds.items()}
    rows = [
        (
            name,
            f"{timing.median:.2f}",
            f"{min(timing.seconds):.2f} to {max(timing.seconds):.2f}",
            f"{timing.rate(tokens) / 1e6:.1f}",
            f"{cpu[name].median:.2f}",
        )
        for name, timing in wall.items()
    ]
    print(measure.markdown_table(("contender", "median s", "min to max s", "M tokens/s", "processor s"), rows) + "\n")
    if {"prepare", "usual recipe"} <= seconds.keys():
        for clock, timings in (("wall time", wall), ("processor time", cpu)):
            ratio = timings["usual recipe"].median / timings["prepare"].median
            print(f"against the usual recipe, by {clock}: {ratio:.1f} times as fast")
    if {"prepare", "decode only"} <= seconds.keys():
        print(f"share of decode-only, by wall time: {wall['decode only'].median / wall['prepare'].median:.0%}")


def main() -> None:
    """Time the selected contenders in turns, then memory and the loader."""
    parser = measure.argument_parser(__doc__, rounds=5)
    parser.add_argument("--mirror", default="../shared/data", type=Path, help="as for prepare")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    for internal in ("contender", "root", "out"):  # of the processes that this script starts
        parser.add_argument(f"--{internal}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        IN_THIS_SCRIPT[arguments.contender](Path(arguments.root), Path(arguments.out), arguments.workers)
        return

    import torch

    logs.configure(to_stderr=True)
    root = sorted(arguments.mirror.resolve().glob("fineweb_edu*/sample/10BT"))[0]
    environment = measure.environment(torch.device("cpu")) | {"load": round(os.getloadavg()[0], 1)}
    environment |= {package: version(package) for package in ("gigatoken", "tiktoken", "pyarrow")}
    print(measure.format_environment(environment), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tokens = prepare(root, folder, arguments.workers)
    print(f"{tokens:,} tokens, {arguments.workers} workers, {arguments.rounds} rounds\n")
    turns = {name: partial(time_contender, name, root, arguments.workers) for name in arguments.only}
    print_results(measure.take_turns(turns, arguments.rounds), tokens)
    for copies in (1, 6):
        size = peak_memory(root, arguments.workers, copies)
        print(f"peak memory, {copies * len(list(root.glob('*.parquet')))} files: {size:.0f} MiB", flush=True)
    print(f"loader, one core, warm: {loader_rate(root, arguments.workers) / 1e6:.0f}M tokens/s")


if __name__ == "__main__":
    main()

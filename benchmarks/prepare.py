"""How fast is `gpt2lab prepare`, against the usual recipe and against merely reading the text?

    python benchmarks/prepare.py --mirror ../shared/data        # the folder that holds fineweb_edu*/sample/10BT

Every figure is the wall time of a whole fresh process, from its start to its exit. The contestants take turns, so that
what else the machine does hits all of them; rates are medians over the rounds, and the ratio is one of medians. On a
machine that others use as well, look at the processor seconds: they say what the work costs, wall time also what was
left of the machine. No text is read twice in a run: repeating it would only warm the tokenizer's cache.

- **prepare**: `gpt2lab prepare fineweb-edu`, with its check against tiktoken, hashes and fsync.
- **usual recipe**: tiktoken in a pool of processes, one document at a time, shards by numpy.save.
- **decode only**: the text column of every row group, read by as many threads, and nothing else.
- **prepare, processes**: the same encoding in a pool of processes rather than threads.
- **prepare, a tenth**: with `--val-tokens` left open, so that all is encoded before it is cut.
- **prepare, tiktoken**: without gigatoken.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SHARD = 5_000_000
REPOSITORY = Path(__file__).parent.parent


def usual_recipe(root: Path, out: Path, workers: int) -> None:
    """As dozens of reproductions have it: one document at a time through a pool, into a buffer, into numpy.save."""
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
        for tokens in pool.imap(_tokenise, documents(), chunksize=16):
            while len(tokens):
                taken = tokens[: SHARD - filled]
                buffer[filled : filled + len(taken)] = taken
                filled, tokens = filled + len(taken), tokens[len(taken) :]
                if filled == SHARD:
                    np.save(out / f"train_{shard:06d}.npy", buffer)
                    filled, shard = 0, shard + 1
    np.save(out / f"train_{shard:06d}.npy", buffer[:filled])


def _load_tiktoken() -> None:
    global _tokenizer
    from gpt2lab.data.tokenizer import Tokenizer  # tiktoken with GPT-2's ranks, which needs no download

    _tokenizer = Tokenizer()._encoding


def _tokenise(text: str):
    import numpy as np

    return np.array([50256, *_tokenizer.encode_ordinary(text)], dtype=np.uint16)


def decode_only(root: Path, out: Path, workers: int) -> None:
    """Every row group's text column, and nothing made of it."""
    from concurrent.futures import ThreadPoolExecutor

    import pyarrow.parquet as pq

    def read(file: Path, number: int) -> None:
        pq.ParquetFile(file).read_row_group(number, columns=["text"], use_threads=False)

    files = sorted(root.glob("*.parquet"))
    with ThreadPoolExecutor(workers) as pool:
        groups = [(file, n) for file in files for n in range(pq.ParquetFile(file).num_row_groups)]
        list(pool.map(lambda group: read(*group), groups))


def in_processes(root: Path, out: Path, workers: int) -> None:
    """`prepare` with a pool of processes in place of its threads."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from gpt2lab.data import executors
    from gpt2lab.data.encoder import encode
    from gpt2lab.data.prepare import Options, make
    from gpt2lab.data.sources import fineweb_edu

    def pooled(chunks, options, workers):
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver")) as pool:
            submit = lambda chunk: pool.submit(encode, options, chunk).result  # noqa: E731
            yield from executors._in_order(chunks, 2 * workers, submit)

    executors._run_local = pooled
    make(fineweb_edu.source(mirror=root.parent.parent), out, Options(shard_tokens=SHARD, workers=workers))


BY_HAND = {"usual recipe": usual_recipe, "decode only": decode_only, "prepare, processes": in_processes}
OPTIONS = {
    "prepare": ["--val-tokens", str(SHARD)],
    "prepare, a tenth": ["--shard-size", "20M"],
    "prepare, tiktoken": ["--val-tokens", str(SHARD), "--tokenizer", "tiktoken"],
}
CONTESTANTS = ("prepare", "usual recipe", "decode only", "prepare, processes", "prepare, a tenth", "prepare, tiktoken")


def run(name: str, root: Path, workers: int) -> tuple[float, float]:
    """Wall and processor seconds of one contestant in a process of its own, its children included."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out")
        if name in BY_HAND:
            command = [sys.executable, __file__, "--contestant", name, "--root", str(root), "--out", out]
        else:
            mirror = str(root.parent.parent)
            command = [sys.executable, "-m", "gpt2lab", "prepare", "fineweb-edu", "--mirror", mirror, "--out", out]
            command += ["--shard-size", str(SHARD), *OPTIONS[name]]
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, "--workers", str(workers)], check=True, capture_output=True, cwd=REPOSITORY)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return time.perf_counter() - began, cpu


def peak_memory(root: Path, workers: int, copies: int) -> float:
    """MiB that `prepare` holds at most, with every file there `copies` times."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "sample" / "10BT"
        files.mkdir(parents=True)
        for copy in range(copies):
            for file in root.glob("*.parquet"):
                (files / f"{copy:03d}_{file.name}").symlink_to(file)
        command = [
            sys.executable,
            "-m",
            "gpt2lab",
            "prepare",
            "fineweb-edu",
            "--mirror",
            folder,
            "--workers",
            str(workers),
        ]
        command += ["--out", f"{folder}/out", "--shard-size", str(SHARD)]
        # A helper in between, whose only child is the process that is measured.
        code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True);"
        code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        helper = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, cwd=REPOSITORY)
        return int(helper.stdout) / (1024 if sys.platform != "darwin" else 1024**2)


def loader_rate(root: Path) -> float:
    """Tokens a second of the loader's batches on one core, the shards in the page cache."""
    from gpt2lab.data.loader import Loader
    from gpt2lab.data.prepare import Options, make
    from gpt2lab.data.shards import open_split
    from gpt2lab.data.sources import fineweb_edu

    with tempfile.TemporaryDirectory() as folder:
        make(fineweb_edu.source(mirror=root.parent.parent), folder, Options(shard_tokens=SHARD))
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        stream = open_split(folder, "train")
        loader = Loader(stream, block_size=1024, sequences_per_step=64, vocab_size=50257, seed=1)
        rates = []
        for repeat in range(5):
            steps = range(repeat * 200, (repeat + 1) * 200)
            began = time.perf_counter()
            for step in steps:
                loader.batch(step)
            rates.append(len(steps) * 64 * 1024 / (time.perf_counter() - began))
        return statistics.median(rates)


def hardware() -> str:
    """Processor, cores, memory, versions and commit."""
    from importlib.metadata import version

    import gigatoken
    import pyarrow

    assert gigatoken
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = next((int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=REPOSITORY)
    versions = f"Python {platform.python_version()}, gigatoken {version('gigatoken')}, tiktoken {version('tiktoken')}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{model}, {cores} cores, {memory:.0f} GiB; load {os.getloadavg()[0]:.1f}; {versions}, pyarrow "
        f"{pyarrow.__version__}; commit {git.stdout.strip()}"
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def count_tokens(root: Path, workers: int) -> int:
    """Tokens that come out, 50256 before each document included."""
    from gpt2lab.data.prepare import Options, make
    from gpt2lab.data.sources import fineweb_edu

    with tempfile.TemporaryDirectory() as folder:
        return make(fineweb_edu.source(mirror=root.parent.parent), folder, Options(workers=workers)).tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", default="../shared/data", help="as for prepare")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        BY_HAND[arguments.contestant](Path(arguments.root), Path(arguments.out), arguments.workers)
        return

    from gpt2lab.data.sources import fineweb_edu

    root = Path(fineweb_edu.source(mirror=arguments.mirror).files[0].path).parent  # type: ignore[attr-defined]
    print(hardware(), flush=True)
    tokens = count_tokens(root, arguments.workers)
    print(f"{tokens:,} tokens, {arguments.workers} workers, {arguments.rounds} rounds\n")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in arguments.only}
    for number in range(arguments.rounds):
        turn = number % len(arguments.only)
        for name in arguments.only[turn:] + arguments.only[:turn]:
            times[name].append(run(name, root, arguments.workers))
            print(f"round {number + 1}: {name} {times[name][-1][0]:.2f} s", file=sys.stderr, flush=True)
    wall = {name: statistics.median(each[0] for each in rounds) for name, rounds in times.items()}
    cpu = {name: statistics.median(each[1] for each in rounds) for name, rounds in times.items()}
    print("| contestant | median s | min to max s | M tokens/s | processor s |\n|---|---|---|---|---|")
    for name, rounds in times.items():
        spread = f"{min(rounds)[0]:.2f} to {max(rounds)[0]:.2f}"
        print(f"| {name} | {wall[name]:.2f} | {spread} | {tokens / wall[name] / 1e6:.1f} | {cpu[name]:.2f} |")
    print()
    if "prepare" in wall and "usual recipe" in wall:
        for measure, medians in (("wall time", wall), ("processor time", cpu)):
            ratio = medians["usual recipe"] / medians["prepare"]
            print(f"against the usual recipe, by {measure}: {ratio:.1f} times as fast")
    if "prepare" in wall and "decode only" in wall:
        print(f"share of decode-only, by wall time: {wall['decode only'] / wall['prepare']:.0%}")
    for copies in (1, 6):
        print(f"peak memory, {5 * copies} files: {peak_memory(root, arguments.workers, copies):.0f} MiB", flush=True)
    print(f"loader, one core, warm: {loader_rate(root) / 1e6:.0f}M tokens/s")


if __name__ == "__main__":
    main()

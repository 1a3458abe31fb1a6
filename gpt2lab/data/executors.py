"""Run the encoder in parallel: on threads of this process, or on a Ray cluster.

    chunks ──a limited number at a time──▶ workers ──in the original order──▶ shards

The number of chunks in flight is limited, so memory does not depend on the size of the corpus. Results are returned in
the order of the chunks, so the shards do not depend on the number of workers.

Threads are used rather than processes because encoding releases the interpreter lock and the tokens need not be copied.
`benchmarks/prepare.py` compares both.
"""

import functools
import importlib
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gpt2lab import packages
from gpt2lab.data.encoder import Encoded, OnBytes, encode
from gpt2lab.data.sources import Chunk, Position
from gpt2lab.errors import GPT2LabError
from gpt2lab.options import PrepareOptions

Chunks = Iterator[tuple[Position, Chunk]]
EncodedChunks = Generator[tuple[Position, Encoded], None, None]


def require_packages(options: PrepareOptions) -> None:
    """Check that the packages that the options name are installed.

    Args:
        options: the tokenizer and the executor.

    Raises:
        GPT2LabError: one is missing; the message has the command that installs it.
    """
    if options.tokenizer == "gigatoken":
        packages.require("gigatoken", "--tokenizer gigatoken", "data")
    if options.executor == "ray":
        packages.require("ray", "--executor ray", "ray")
    if options.executor == "slurm":
        packages.require("datatrove", "--executor slurm", "slurm")


class _StoppedError(Exception):
    """Nobody waits for this chunk any more."""


def run(options: PrepareOptions, chunks: Chunks, on_bytes: OnBytes | None = None) -> EncodedChunks:
    """Encode chunks in parallel and return them in their original order.

    Args:
        options: how to encode. With the executor `ray`, the Ray cluster at RAY_ADDRESS is used, or one that is started
            here; else threads. By default there are as many workers as cores.
        chunks: what to encode, with positions.
        on_bytes: called by the threads with the number of bytes that they have encoded, also within a chunk. Ray's
            workers do not call it.

    Raises:
        GPT2LabError: a chunk could not be encoded.
    """
    workers = options.workers
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if options.executor == "ray":
        return _run_ray(chunks, options, workers)
    return _run_local(chunks, options, workers, on_bytes)


def _run_local(chunks: Chunks, options: PrepareOptions, workers: int, on_bytes: OnBytes | None) -> EncodedChunks:
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="encode")
    stopped, lock = threading.Event(), threading.Lock()

    def count(text_bytes: int) -> None:
        if stopped.is_set():  # a document of gigabytes would take minutes after Ctrl-C
            raise _StoppedError
        if on_bytes is not None:
            with lock:
                on_bytes(text_bytes)

    try:
        yield from _in_order(chunks, 2 * workers, lambda chunk: pool.submit(encode, options, chunk, count).result)
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _run_ray(chunks: Chunks, options: PrepareOptions, workers: int) -> EncodedChunks:
    ray: Any = importlib.import_module("ray")
    if start_ray := not ray.is_initialized():
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if "RAY_ADDRESS" not in os.environ:
            settings |= {"include_dashboard": False, "num_cpus": workers, "object_store_memory": 256 << 20}
        ray.init(**settings)
    task = ray.remote(num_cpus=1, max_retries=3)(encode)
    try:
        limit = 2 * max(workers, int(ray.cluster_resources().get("CPU", workers)))
        yield from _in_order(chunks, limit, lambda chunk: functools.partial(ray.get, task.remote(options, chunk)))
    except ray.exceptions.RayError as error:
        if isinstance(cause := getattr(error, "cause", None), GPT2LabError):
            raise cause from None
        reason = str(error).strip().splitlines()[0]
        raise GPT2LabError(f"Ray failed ({reason}); run the same command again to continue") from error
    finally:
        if start_ray:
            ray.shutdown()


def _in_order(chunks: Chunks, limit: int, submit: Callable[[Chunk], Callable[[], Encoded]]) -> EncodedChunks:
    """Submit up to `limit` chunks ahead. `submit` starts encoding and returns a function that waits for the result."""
    pending: deque[tuple[Position, Callable[[], Encoded]]] = deque()
    for position, chunk in chunks:
        pending.append((position, submit(chunk)))
        if len(pending) >= limit:
            position, result = pending.popleft()
            yield position, result()
    while pending:
        position, result = pending.popleft()
        yield position, result()

"""Who encodes: threads of this process, or Ray's workers. Either way the units come back in the order they went out.

    jobs ──at most a few at a time──▶ workers ──▶ in order ──▶ whoever writes

What is in flight is bounded, so memory does not depend on the size of the corpus; and since the order is restored here,
nothing after this knows how many workers there were, or which.

Threads rather than processes: everything that takes time happens outside the interpreter's lock, and a thread hands
over megabytes of tokens for free. `benchmarks/prepare.py` has the comparison.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from gpt2lab.data.encoder import Encoded, Recipe, encode
from gpt2lab.data.jobs import Job
from gpt2lab.errors import GPT2LabError

Executor = Literal["local", "ray"]
Handle = TypeVar("Handle")


def run(
    executor: Executor, jobs: Iterator[Job], recipe: Recipe, workers: int
) -> Generator[tuple[Job, Encoded], None, None]:
    """Each job with its encoded unit, in the order of the jobs.

    Args:
        executor: `local`: threads; `ray`: tasks on the Ray cluster that RAY_ADDRESS names, or one started here.
        workers: units that are encoded at the same time.

    Raises:
        GPT2LabError: what encoding a unit raised, in its turn; or there is no Ray.
    """
    return (_local if executor == "local" else _ray)(jobs, recipe, workers)


def _local(jobs: Iterator[Job], recipe: Recipe, workers: int) -> Generator[tuple[Job, Encoded], None, None]:
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="encode")
    try:
        yield from _in_order(
            jobs, 2 * workers, lambda job: pool.submit(encode, recipe, job.unit), lambda future: future.result()
        )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ray(jobs: Iterator[Job], recipe: Recipe, workers: int) -> Generator[tuple[Job, Encoded], None, None]:
    try:
        import ray
    except ImportError:
        raise GPT2LabError("--executor ray needs Ray: pip install -e '.[ray]'") from None

    ours = not ray.is_initialized()
    if ours:
        _connect(ray, workers)
    task = ray.remote(num_cpus=1, max_retries=3)(_encode_or_error)
    try:
        in_flight = max(workers, int(_resources(ray).get("CPU", workers)))
        for job, outcome in _in_order(
            jobs, 2 * in_flight, lambda job: task.remote(recipe, job.unit), lambda reference: ray.get(reference)
        ):
            if isinstance(outcome, str):
                raise GPT2LabError(outcome)
            yield job, outcome
    except ray.exceptions.RayError as error:
        raise GPT2LabError(
            f"Ray gave up ({str(error).strip().splitlines()[0]}); the same command goes on where it stopped"
        ) from error
    finally:
        if ours:
            ray.shutdown()


def _resources(ray: Any) -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()
    return resources


def _connect(ray: Any, workers: int) -> None:
    """Join the cluster that RAY_ADDRESS names; without one, start Ray on this machine for as long as this lasts."""
    import os

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
    if "RAY_ADDRESS" in os.environ:
        options = {"log_to_driver": False, "logging_level": "error"}
    else:
        options |= {"num_cpus": workers, "object_store_memory": 256 << 20}
    ray.init(**options)


def _encode_or_error(recipe: Recipe, unit: Any) -> Encoded | str:
    """`encode` on a Ray worker; an error that the user can mend travels as its text."""
    try:
        return encode(recipe, unit)
    except GPT2LabError as error:
        return str(error)


def _in_order(
    jobs: Iterator[Job], limit: int, submit: Callable[[Job], Handle], result: Callable[[Handle], Any]
) -> Generator[tuple[Job, Any], None, None]:
    """At most `limit` jobs submitted and not yet passed on. The next are listed while the oldest is waited for."""
    waiting: deque[tuple[Job, Handle]] = deque()
    for job in jobs:
        waiting.append((job, submit(job)))
        if len(waiting) >= limit:
            first, handle = waiting.popleft()
            yield first, result(handle)
    while waiting:
        first, handle = waiting.popleft()
        yield first, result(handle)

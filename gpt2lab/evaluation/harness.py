"""Any task of lm-evaluation-harness on a gpt2lab model, through the harness's own code: prompts, metrics and all.

    harness ──requests as text──▶ adapter ──ids──▶ scoring, text ──▶ log-likelihoods, text ──▶ harness

The harness takes the adapter for one process. With several ranks each runs the harness, and `scoring` shares the work
among them below it, so all see the same figures. The package is the extra `[eval]`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from gpt2lab.data.tokenizer import EOT, Tokenizer
from gpt2lab.errors import GPT2LabError, did_you_mean
from gpt2lab.evaluation import scoring
from gpt2lab.evaluation.scoring import Request
from gpt2lab.generation import inference, text
from gpt2lab.generation.sampling import Sampling
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision

MAX_NEW_TOKENS = 256  # of a generated answer, where the task does not say


def check(names: Sequence[str], include: str | None = None) -> None:
    """See that the harness is installed and knows the tasks; `include` is a folder of further task files.

    Raises:
        GPT2LabError: it is not, or does not.
    """
    known = _task_manager(include).all_tasks
    for name in names:
        if name not in known:
            raise GPT2LabError(
                f"lm-evaluation-harness has no task {name!r}{did_you_mean(name, known)} "
                f"(it knows {len(known)}; to list them: lm_eval ls tasks)"
            )


def run(model: Any, names: Sequence[str], *, limit: int | None = None, include: str | None = None) -> dict[str, Any]:
    """Run tasks on an adapter: task → metric → value, as the harness reports them.

    Args:
        limit: the first so many items of each task (the harness's way; no random subset).

    Raises:
        GPT2LabError: a task cannot be had, for want of its data most likely.
    """
    from lm_eval import evaluator

    try:
        report = evaluator.simple_evaluate(
            model=model,
            tasks=list(names),
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
            task_manager=_task_manager(include),
        )
    except (OSError, ValueError) as error:  # the datasets library says in either that it found no data, no network
        raise GPT2LabError(
            f"lm-evaluation-harness cannot run {', '.join(names)}: {str(error).partition(chr(10))[0]}; it downloads "
            "data from the Hub: without a network fill its cache (HF_HOME) elsewhere, or use tasks without lm_eval:"
        ) from error
    return {name: _plain(values) for name, values in report["results"].items()}


def adapter(
    model: GPT2, tokenizer: Tokenizer, *, dist: DistContext, precision: Precision, batch_tokens: int | None = None
) -> Any:
    """An `lm_eval.api.model.LM` around a model in eval mode; give it to `run`, or to the harness itself.

    Raises:
        GPT2LabError: the harness is not installed.
    """
    _import()
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class Adapter(TemplateLM):  # type: ignore[misc]  # its base is untyped
        """The three questions that the harness asks a model."""

        max_length = model.config.block_size
        eot_token_id = EOT

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return tokenizer.encode(string)

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
        ) -> list[tuple[float, bool]]:
            scores = self._score([Request(context, continuation) for _, context, continuation in requests])
            return [(-loss, greedy) for loss, greedy in zip(scores.loss.tolist(), scores.greedy.tolist(), strict=True)]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            """Every token of a text once, in windows that overlap by one token, the first after <|endoftext|>."""
            owners, windows = [], []
            for number, request in enumerate(requests):
                ids = tokenizer.encode(request.args[0])
                for window in get_rolling_token_windows(ids, EOT, self.max_length, 1):
                    owners.append(number)
                    windows.append(Request(*make_disjoint_window(window)))
            totals = [0.0] * len(requests)
            for owner, loss in zip(owners, self._score(windows).loss.tolist(), strict=True):
                totals[owner] -= loss
            return totals

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            writer = inference.optimize_for_inference(model, precision.dtype)
            return [self._generate(writer, *request.args) for request in requests]

        def _score(self, requests: list[Request]) -> scoring.Scores:
            return scoring.score(
                model, requests, dist=dist, precision=precision, batch_tokens=batch_tokens, greedy=True
            )

        def _generate(self, writer: GPT2, context: str, settings: Mapping[str, Any]) -> str:
            until = settings.get("until") or []
            stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
            temperature = float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0
            count = int(settings.get("max_gen_toks", settings.get("max_new_tokens", MAX_NEW_TOKENS)))
            prompt = tokenizer.encode(context) or [EOT]
            sampling = Sampling(temperature)
            with precision.autocast():
                pieces = text.stream(
                    model, tokenizer, [prompt], count, sampling, stop=stops, seeds=[0]
                )  # on every rank
                return "".join(piece.text for piece in pieces)

    return Adapter()


def _import() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise GPT2LabError(
            f"lm_eval: tasks need lm-evaluation-harness ({error}): pip install -c constraints.txt -e '.[eval]'"
        ) from None


@functools.cache  # it reads the files of all tasks, which takes seconds
def _task_manager(include: str | None) -> Any:
    _import()
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics without the name of their filter where that is `none`, and without what is not a number."""
    plain = {key.removesuffix(",none"): value for key, value in values.items()}
    return {key: value for key, value in plain.items() if isinstance(value, int | float)}

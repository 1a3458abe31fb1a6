"""The names of the tasks. Knows no torch, so that a mistyped name is an error at once."""

from collections.abc import Sequence
from pathlib import Path

from gpt2lab.errors import GPT2LabError, did_you_mean

LM_EVAL = "lm_eval:"  # before the name of a task of lm-evaluation-harness
_LINES = (Path(__file__).parent / "tasks.sha256").read_text(encoding="utf-8").splitlines()
TASKS = {Path(path).stem: (path, digest) for digest, path in map(str.split, _LINES)}  # files of LLM Foundry
NAMES = ("hellaswag", *TASKS, "everyday", "core")


def check(names: Sequence[str]) -> None:
    """Check that tasks exist. Those of lm-evaluation-harness are not checked.

    Args:
        names: of tasks.

    Raises:
        GPT2LabError: a task is unknown; names the nearest one and all of them.
    """
    for name in names:
        if name not in NAMES and not name.startswith(LM_EVAL):
            raise GPT2LabError(
                f"unknown task {name!r}{did_you_mean(name, NAMES)} (known: {', '.join(NAMES)}; "
                f"or {LM_EVAL}NAME for any task of lm-evaluation-harness)"
            )

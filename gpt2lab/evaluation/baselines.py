"""Published accuracies on HellaSwag's 10,042 items and CORE scores, for tables and plots."""

from typing import NamedTuple

KARPATHY = "docstring of hellaswag.py in karpathy/build-nanogpt and llm.c"
NOTEBOOK = "play.ipynb of karpathy/build-nanogpt"
NANOCHAT = "dev/estimate_gpt3_core.ipynb of karpathy/nanochat, table of the GPT-2 family"
GPT3 = "GPT-3 paper (Brown et al. 2020), table H.1, zero-shot; its own prompts"


class Baseline(NamedTuple):
    """A published accuracy. `acc` is None where only acc_norm was published."""

    model: str
    convention: str  # completion, harness, or other, which is only roughly comparable
    acc: float | None
    acc_norm: float
    source: str


BASELINES = (
    Baseline("GPT-2 124M", "completion", 0.2859, 0.2955, KARPATHY),
    Baseline("GPT-2 355M", "completion", None, 0.3752, NOTEBOOK),
    Baseline("GPT-2 774M", "completion", None, 0.4320, NOTEBOOK),
    Baseline("GPT-2 1558M", "completion", 0.3842, 0.4893, KARPATHY),
    Baseline("GPT-2 124M", "harness", 0.2892, 0.3114, KARPATHY),
    Baseline("GPT-2 1558M", "harness", 0.4004, 0.5089, KARPATHY),
    Baseline("GPT-3 Small 125M", "other", None, 0.337, GPT3),
    Baseline("miniGPT, 10B tokens", "completion", None, 0.3042, "as reported by its author"),
    Baseline("miniLLM, 10B tokens", "completion", None, 0.2970, "its README: HellaSwag accuracy: 2982/10042=0.2970"),
    Baseline("other reproductions, 10B tokens", "completion", None, 0.31, "about; as reported by several authors"),
    Baseline("llm.c, 10B tokens", "completion", None, 0.299, "karpathy/llm.c discussion 481"),
)


class CoreBaseline(NamedTuple):
    """A published CORE score."""

    model: str
    core: float
    source: str


CORE_BASELINES = (
    CoreBaseline("GPT-2 124M", 0.1139, NANOCHAT),
    CoreBaseline("GPT-2 355M", 0.1849, NANOCHAT),
    CoreBaseline("GPT-2 774M", 0.2146, NANOCHAT),
    CoreBaseline("GPT-2 1558M", 0.2565, f"{NANOCHAT}; 0.256525 in dev/LEADERBOARD.md"),
)

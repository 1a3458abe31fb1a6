"""Options of the `scaling` command."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from gpt2lab.option_values import option, quantities, share
from gpt2lab.options import JSON_HELP, SettingsOptions


@dataclass(frozen=True, kw_only=True)  # an option without a default follows those of the base class
class ScalingOptions(SettingsOptions):
    """Plan small runs and train them, fit scaling laws to their losses, predict larger runs, and recommend a recipe.

    Points are a CSV, run directories, or a folder of runs. A recipe (--config, and settings) is what plan and recommend
    scale from (default: gpt2_124m), and what predict predicts.
    """

    RECIPE: ClassVar[str] = "gpt2_124m"
    EXAMPLES: ClassVar[str] = """\
gpt2lab scaling plan --config quickstart --flops 1e13:1e14 --runs 12 --out sweep.json
gpt2lab scaling run sweep.json                                          trains them in runs/sweep, as gpt2lab sweep does
gpt2lab scaling fit runs/sweep                                          forms, intervals, warnings
gpt2lab scaling fit points.csv --n size --d tokens --loss final_loss --json
gpt2lab scaling predict runs/sweep --config larger.yaml                 recorded in runs/sweep/predictions.jsonl
gpt2lab scaling predict points.csv --parameters 124M --tokens 10B
gpt2lab scaling recommend runs/sweep --flops 1e18 --out larger.yaml     a recipe for gpt2lab train
gpt2lab scaling recommend --gpu-hours 24 --gpu A100
"""

    action: Literal["plan", "run", "fit", "predict", "recommend"] = option("what to do", flag="action")
    sources: tuple[str, ...] = option(
        "a CSV, run directories, or a folder of runs; run: the file of a plan", (), flag="sources", nargs="*"
    )
    n: str = option("CSV: column of the parameters", "parameters")
    d: str = option("CSV: column of the tokens", "tokens")
    loss: str = option("CSV: column of the final loss", "loss")
    counted: Literal["blocks-and-head", "all", "blocks"] = option(
        "run directories and recipes: parameters that N counts", "blocks-and-head"
    )
    bootstraps: int = option("fits to resampled points, for the intervals; at least 40", 200, at_least=40)
    flops: tuple[float, ...] | None = option(
        "plan: range of the runs' FLOPs, 1e13:1e15; recommend: FLOPs of the run", None, parse=quantities
    )
    runs: int = option("plan: at most N runs; at least 9", 12, at_least=9)
    tokens_per_parameter: float = option("plan: expected optimum, without earlier runs", 20.0, at_least=0.001)
    speed: float | None = option(
        "plan: FLOP/s of training, for the time (default: of the runs given)", None, at_least=1
    )
    parameters: float | None = option("predict: parameters of the run, such as 124M", None, at_least=1)
    tokens: float | None = option("predict: tokens of the run, such as 10B", None, at_least=1)
    gpu_hours: float | None = option("recommend: hours of all GPUs together", None, at_least=0.01)
    gpu: str | None = option("recommend: name of the GPU, such as A100", None)
    mfu: float = option("recommend: share of the GPU's peak that training reaches, from 0 to 1", 0.4, parse=share)
    out: str | None = option("plan, recommend: file to write (JSON; a recipe)", None)
    only_print: bool = option("run: print the command of each run, and start nothing", False, flag="--print")
    as_json: bool = option(JSON_HELP, False, flag="--json")

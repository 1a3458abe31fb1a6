"""Options of the `sweep` command."""

from dataclasses import dataclass
from typing import ClassVar

from gpt2lab.option_values import option
from gpt2lab.options import SettingsOptions


@dataclass(frozen=True, kw_only=True)  # an option without a default follows those of the base class
class SweepOptions(SettingsOptions):
    """Train a grid of runs, one for each combination of the values of --over (default recipe: quickstart).

    The runs are ordinary ones, in runs/NAME_sweep (NAME of the recipe) or runs/NAME (--run.name): one a GPU side by
    side, else one after another. The same command resumes where it stopped. All other settings apply to every run.
    """

    RECIPE: ClassVar[str] = "quickstart"
    EXAMPLES: ClassVar[str] = """\
gpt2lab sweep --over optimizer.max_lr=1e-3,2e-3,4e-3 --over run.seed=1,2,3
gpt2lab sweep --config gpt2_124m --over model.size=124M,medium --train.max_steps 2000 --run.name sizes
gpt2lab sweep --over optimizer.name=adamw,muon --print      the commands, for a cluster's own queue
gpt2lab report runs/sizes                                   writes the page again
"""

    over: tuple[str, ...] = option("setting and its values, as optimizer.max_lr=1e-3,2e-3; repeatable", for_words=",")
    only_print: bool = option("print the command of each run, and start nothing", False, flag="--print")

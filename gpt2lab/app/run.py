"""`gpt2lab app`: load two models and serve the page, by default on this machine only.

--trained ─▶ model, its run ─┐
--untrained ─▶ model ────────┴─▶ page ─▶ http://127.0.0.1:7860, or the next free port; --host, --share: for others
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gpt2lab import config, logs, packages, progress
from gpt2lab.app import page as pages
from gpt2lab.app import record
from gpt2lab.app.compare import ComparedModel, compare
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.generation import inference
from gpt2lab.generation.options import GenerationOptions
from gpt2lab.model import pretrained, resolve
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.model.resolve import ResolvedCheckpoint
from gpt2lab.options import AppOptions
from gpt2lab.system import device as devices
from gpt2lab.system import precision as precisions

if TYPE_CHECKING:
    import gradio

logger = logging.getLogger(__name__)


def run(options: AppOptions) -> None:
    """Serve the page until Ctrl-C.

    Args:
        options: the models, and where to serve and compute.

    Raises:
        GPT2LabError: Gradio is not installed, there is no such model or no checkpoint yet, or the page cannot be served
            at this address.
    """
    devices.share_one_heap()  # requests are computed by different threads
    page = prepare(options)
    with progress.Phase("starting the page", announce=True):
        addresses = pages.serve(page, options.port, options.host, options.share)
    if pages.is_open(options.host, options.share):
        logger.warning(
            "the page is open to others: who can reach its address can use these models on this machine, without a "
            f"password; {pages.MAX_RUNNING} requests compute at a time, each for at most {pages.MAX_SECONDS} s, and "
            f"{pages.MAX_WAITING} may wait"
        )
    logs.print_result(f"{' and '.join(addresses)}  (Ctrl-C ends it)")
    page.block_thread()


def prepare(options: AppOptions) -> "gradio.Blocks":
    """Load both models and build the page.

    Args:
        options: the models, and where to compute.

    Returns:
        The page, not yet served.

    Raises:
        GPT2LabError: Gradio is not installed, or there is no such model or no checkpoint yet.
    """
    packages.require("gradio", "gpt2lab app", "app")
    devices.choose(options.device)  # an error about it comes before those about the models
    checkpoint = resolve.find_checkpoint(options.trained)
    folder = checkpoint.run
    effect = "the untrained model may have another seed than that of the run"
    settings = (folder and config.find_run_settings(folder, effect)) or config.Config()
    other = None if options.untrained == "random" else resolve.find_checkpoint(options.untrained)
    with progress.Phase("loading the models", announce=True):
        models = _load_models(options, checkpoint, other, settings.run.seed)
        tokenizer = Tokenizer()
        for _ in compare(models, tokenizer, "Once", GenerationOptions(max_new_tokens=2)):
            pass  # the first tokens are slow: allocations and caches
    examples = (settings.train.sample_prompt, *pages.EXAMPLES)
    max_seconds = pages.MAX_SECONDS if pages.is_open(options.host, options.share) else None
    with progress.Phase("building the page", announce=True):
        return pages.build(
            models, tokenizer, lambda: record.read(checkpoint.run, checkpoint.step), examples, max_seconds
        )


def _load_models(
    options: AppOptions, checkpoint: ResolvedCheckpoint, other: ResolvedCheckpoint | None, seed: int
) -> list[ComparedModel]:
    """Both models on the device. Without `other`, the second has the random weights of the seed."""
    device = devices.choose(options.device)
    dtype = precisions.choose(options.precision, device).dtype
    trained = pretrained.from_pretrained(checkpoint)
    if other is None:
        untrained = pretrained.build(trained.config, generator=torch.Generator().manual_seed(seed))
        names = ("Trained", "Untrained")
        note = f"the same architecture with the random weights of seed {seed}"
    else:
        untrained = pretrained.from_pretrained(other)
        names = (_name(options.trained, checkpoint), _name(options.untrained, other))
        note = _note(other, untrained)
    return [
        ComparedModel(name, note, inference.optimize_for_inference(model.to(device), dtype))
        for name, note, model in zip(names, (_note(checkpoint, trained), note), (trained, untrained), strict=True)
    ]


def _name(name: str, checkpoint: ResolvedCheckpoint) -> str:
    """The name of a model on the page, without the path of a folder or file of this machine."""
    return (checkpoint.run or Path(name)).resolve().name if checkpoint.run or Path(name).exists() else name


def _note(checkpoint: ResolvedCheckpoint, model: LanguageModel) -> str:
    size = f"{model.num_parameters() / 1e6:,.1f}M parameters"
    if checkpoint.run is None or checkpoint.step is None:
        return size
    return f"{checkpoint.run.resolve().name}, step {checkpoint.step:,} · {size}"

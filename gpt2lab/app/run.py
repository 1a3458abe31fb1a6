"""`gpt2lab app`: composes two models and the page, and serves it on this machine alone.

--trained ──▶ model, its run ──┐
--untrained ──▶ model ─────────┴──▶ page ──▶ http://127.0.0.1:7860, or the next free port
"""

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from gpt2lab import config
from gpt2lab.app import page as pages
from gpt2lab.app import record
from gpt2lab.app.compare import Request, Writer, compare
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation import inference
from gpt2lab.generation.sampling import Sampling
from gpt2lab.model import resolve
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.model.resolve import ResolvedCheckpoint
from gpt2lab.system import device as devices
from gpt2lab.system import precision as precisions

if TYPE_CHECKING:
    import gradio

RANDOM = "random"
PORTS = 100  # tried one after the other


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    trained: str
    untrained: str = RANDOM  # `random`: the weights that the trained one began with
    port: int = 7860
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"


def run(options: Options) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        GPT2LabError: Gradio is not installed, there is no such model or no checkpoint yet, or no port is free.
    """
    devices.share_one_heap()  # each request is worked at by another thread
    page = prepare(options)
    print(f"{serve(page, options.port)}  (Ctrl-C ends it)", flush=True)
    page.block_thread()


def prepare(options: Options) -> "gradio.Blocks":
    """The page, with both models loaded and warm.

    Raises:
        GPT2LabError: see `run`.
    """
    if importlib.util.find_spec("gradio") is None:
        raise GPT2LabError("the page needs gradio, which is not installed: pip install -e '.[app]'")
    device = devices.choose(options.device)
    dtype = precisions.choose(options.precision, device).dtype
    found = resolve.find_checkpoint(options.trained)
    settings = _settings(found)
    trained = GPT2.from_pretrained(found)
    if options.untrained == RANDOM:
        seed = settings.run.seed
        untrained = GPT2(trained.config, generator=torch.Generator().manual_seed(seed))
        other = ("Untrained", f"the same architecture with the random weights of seed {seed}")
    else:
        there = resolve.find_checkpoint(options.untrained)
        untrained = GPT2.from_pretrained(there)
        other = (_name(options.untrained, there), _note(there, untrained))
    mine = ("Trained" if options.untrained == RANDOM else _name(options.trained, found), _note(found, trained))
    writers = [
        Writer(name, note, inference.optimize_for_inference(model.to(device), dtype))
        for (name, note), model in ((mine, trained), (other, untrained))
    ]
    tokenizer = Tokenizer()
    for _ in compare(writers, tokenizer, Request("Once", 2, Sampling(), 0)):  # first calls set things up
        pass
    examples = (settings.train.sample_prompt, *pages.EXAMPLES)
    return pages.build(writers, tokenizer, lambda: record.read(found.run), examples)


def serve(page: "gradio.Blocks", port: int) -> str:
    """Serve on the port, or the next that is free; says which were taken. Returns the address.

    Raises:
        GPT2LabError: none of `PORTS` is free.
    """
    last = min(port + PORTS, 65536) - 1
    for candidate in range(port, last + 1):
        try:
            return pages.serve(page, candidate)
        except OSError:
            print(f"port {candidate} is taken", flush=True)
    raise GPT2LabError(f"no port from {port} to {last} is free; give another with --port")


def _settings(found: ResolvedCheckpoint) -> config.Config:
    path = found.run / "config.yaml" if found.run else None
    return config.load([path] if path is not None and path.is_file() else [])


def _name(name: str, found: ResolvedCheckpoint) -> str:
    return found.run.resolve().name if found.run else name


def _note(found: ResolvedCheckpoint, model: GPT2) -> str:
    size = f"{model.num_parameters() / 1e6:,.1f}M parameters"
    return f"{found.run.resolve().name}, step {found.step:,} · {size}" if found.run and found.step is not None else size

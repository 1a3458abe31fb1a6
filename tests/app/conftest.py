"""A tiny finished run, and its page in a server."""

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable

import pytest
import torch

from gpt2lab import GPT2, GPT2Config, Tokenizer, files
from gpt2lab.app import run as app_run
from gpt2lab.app.compare import ComparedModel
from gpt2lab.options import AppOptions

SEED = 7


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run directory with a checkpoint of a model other than the one that it began with."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    checkpoint = folder / "checkpoints" / "step_00000010"
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, block_size=32)
    GPT2(config, generator=torch.Generator().manual_seed(1)).save_pretrained(checkpoint)
    (checkpoint / "state.json").write_text('{"step": 10}')
    files.write_digests(checkpoint)
    (folder / "config.yaml").write_text(f"run:\n  seed: {SEED}\ntrain:\n  sample_prompt: Once upon\n")
    lines = [{"step": step, "train/loss": 10 - step / 10} for step in range(1, 11)]
    lines[-1] |= {"val/loss": 9.25, "hellaswag/acc_norm": 0.2612}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="session")
def models(run):
    trained = GPT2.from_pretrained(run)
    other = GPT2(trained.config, generator=torch.Generator().manual_seed(SEED))
    return [ComparedModel("Trained", "", trained), ComparedModel("Untrained", "", other)]


class StepCounter:
    """Counts the forward passes of a model, and can hold them back."""

    def __init__(self, model: GPT2):
        self.steps = 0
        self.waiting = 0  # threads that are held back
        self._limit: int | None = None
        self._changed = threading.Condition()
        model.transformer.register_forward_pre_hook(self._step)

    def _step(self, *_: object) -> None:
        with self._changed:
            self.waiting += 1
            self._changed.wait_for(lambda: self._limit is None or self.steps < self._limit)
            self.waiting -= 1
            self.steps += 1

    def allow(self, steps: int | None) -> None:
        """Hold back all but this many further steps; None: hold back none."""
        with self._changed:
            self._limit = None if steps is None else self.steps + steps
            self._changed.notify_all()

    def stops(self, within: int) -> bool:
        """Whether the model stops computing within so many steps, which are allowed one by one."""
        for _ in range(within):
            before = self.steps

            def has_stepped(before: int = before) -> bool:
                return self.steps > before

            self.allow(1)
            if not wait_until(has_stepped, timeout=3):
                return True
            time.sleep(0.3)  # for the server to notice
        return False


def wait_until(condition: Callable[[], bool], timeout: float = 60) -> bool:
    """Poll for a condition; returns whether it became true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="session")
def served(run):
    """(address, step counter of the trained model) of a page that this process serves."""
    models = []
    optimize = app_run.inference.optimize_for_inference

    def record_model(model, dtype):
        models.append(optimize(model, dtype))
        return models[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_run.inference, "optimize_for_inference", record_model)
        page = app_run.prepare(AppOptions(str(run), device="cpu", precision="fp32"))
    counter = StepCounter(models[0])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield app_run.pages.serve(page, port)[0], counter
    counter.allow(None)
    page.close(verbose=False)


def read(address):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=120) as answer:
        return answer.read().decode()

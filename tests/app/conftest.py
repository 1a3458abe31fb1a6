"""A tiny finished run, and its page being served."""

import json
import threading
import time

import pytest
import torch

from gpt2lab import GPT2, GPT2Config, files
from gpt2lab.app import run as app_run

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


class Counter:
    """Counts the steps of a model, each of which takes a moment, so that there is time to interrupt."""

    def __init__(self, model: GPT2):
        self.steps = 0
        self.pause = 0.0
        self._lock = threading.Lock()
        model.transformer.register_forward_pre_hook(self._step)

    def _step(self, *_: object) -> None:
        with self._lock:
            self.steps += 1
        time.sleep(self.pause)

    def stands_still(self, within: float = 5.0) -> bool:
        """Whether the model stops computing, and stays so."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            before = self.steps
            time.sleep(0.5)
            if self.steps == before:
                return True
        return False


@pytest.fixture(scope="session")
def served(run):
    """(address, counter of the trained model's steps) of a page that this process serves."""
    made = []
    prepare = app_run.inference.optimize_for_inference
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_run.decoding, "prepare", lambda model, dtype: made.append(prepare(model, dtype)) or made[-1])
        page = app_run.prepare(app_run.Options(str(run), device="cpu", precision="fp32"))
    counter = Counter(made[0])
    yield app_run.serve(page, 17860), counter
    page.close(verbose=False)

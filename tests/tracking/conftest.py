"""A generated run directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2lab.config import Config
from gpt2lab.tracking.metrics import JsonLines


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name, steps, settings={"train.max_steps": 5}, **values of every step)` → its folder."""

    def make(name: str = "a", steps: int = 30, settings: dict[str, Any] | None = None, **extra: float) -> Path:
        nested: dict[str, dict[str, Any]] = {"data": {"source": "stdlib"}, "train": {"total_batch_size": 8192}}
        for key, value in (settings or {}).items():
            section, _, leaf = key.partition(".")
            nested.setdefault(section, {})[leaf] = value
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(Config.model_validate(nested).to_yaml())
        facts = {"hardware": {"cpu": "Some <CPU>", "cores": 2}, "commit": "abc", "parameters": 124_439_808}
        (folder / "environment.json").write_text(json.dumps(facts))
        metrics, samples = JsonLines(folder / "metrics.jsonl"), JsonLines(folder / "samples.jsonl")
        for step in range(steps + 1):
            values: dict[str, float] = {}
            if step:
                values = {"train/loss": 10 - step * 0.1, "perf/step_ms": 1000.0, "perf/tokens_per_second": 8192.0}
            if step % 10 == 0:
                values |= {"val/loss": 10.0 - step * 0.05, "perf/eval_seconds": 2.0}
            metrics.log(step, values | extra)
            for seed in (1, 2):
                text = f"Once <b>upon</b> {name} {seed} at {step}"
                samples.write({"step": step, "prompt": "Once", "seed": seed, "text": text})
        metrics.close()
        samples.close()
        return folder

    return make

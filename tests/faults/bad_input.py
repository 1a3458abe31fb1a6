"""Bad input of every kind, as a table: each is answered by one line that names the file or the key, and nothing is lost.

A case changes a copy of something good (recipe, shards, a run with checkpoints), or gives bad arguments or environment
variables, and says what the line must contain. Most are run in this process, through the command line's `main`; those
in REAL are real commands.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2lab import cli, files
from tests.faults import runs
from tests.faults.kills import straight
from tests.faults.outcome import Outcome
from tests.faults.processes import REPOSITORY
from tests.faults.runs import EVERY, STEPS, Run

MORE = str(2 * STEPS)  # steps, so that a finished run has something left to do


class Place(NamedTuple):
    """What a case may damage: its own copies."""

    folder: Path
    data: Path
    run: Run

    def checkpoint(self, step: int = STEPS) -> Path:
        return self.run.checkpoints / f"step_{step:08d}"


class Case(NamedTuple):
    """What is bad, and what the line must say."""

    expected: str
    arguments: tuple[str, ...] = ()
    recipe: str | bytes | None = None  # put over the run's own
    damage: Callable[[Place], None] = lambda place: None
    variables: dict[str, str] = {}  # noqa: RUF012  # never changed
    command: tuple[str, ...] | None = None  # instead of train


# -- recipes

# Ten lists of ten of the list before: ten billion words, if anybody spelt them out.
LAUGHS = "[&x0 [ha], " + ", ".join(f"&x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 11)) + "]"

RECIPES = {
    "unknown section": ("trian: {max_steps: 3}", "trian"),
    "unknown key": ("train: {max_stps: 3}", "train.max_stps; did you mean train.max_steps?"),
    "text for a number": ("train: {max_steps: many}", "train.max_steps"),
    "fraction of a step": ("train: {max_steps: 1.5}", "train.max_steps"),
    "no steps": ("train: {max_steps: 0}", "train.max_steps"),
    "nothing for a number": ("train: {max_steps: null}", "train.max_steps"),
    "list for a number": ("model: {n_layer: [2]}", "model.n_layer"),
    "mapping for a number": ("model: {n_layer: {a: 2}}", "model.n_layer"),
    "true for a number": ("model: {n_layer: true}", "model.n_layer: takes a number"),
    "number for text": ("run: {out_dir: 3}", "run.out_dir"),
    "date for a number": ("train: {max_steps: 2024-01-01}", "train.max_steps"),
    "impossible date": ("train: {max_steps: 2024-99-99}", "recipe-more.yaml"),
    "five thousand digits": ("train: {max_steps: " + "9" * 5000 + "}", "recipe-more.yaml"),
    "infinity": ("optimizer: {max_lr: .inf}", "optimizer.max_lr"),
    "not a number": ("optimizer: {weight_decay: .nan}", "optimizer.weight_decay"),
    "section is a list": ("train: [1, 2]", "train must hold settings"),
    "file is a list": ("- train", "expected sections"),
    "file is text": ("hello", "expected sections"),
    "list for a key": ("? [a, b]\n: 3", "recipe-more.yaml"),
    "number for a key": ("train: {3: 4}", "train.3"),
    "tab for a space": ("train:\n\tmax_steps: 3", "line 2"),
    "bracket left open": ("train: {max_steps: 3", "not valid YAML"),
    "two documents": ("train: {}\n---\ntrain: {}", "recipe-more.yaml"),
    "key twice": ("train: {max_steps: 3, max_steps: 4}", "duplicate key"),
    "not text at all": (b"\xff\xfe\x00train", "not valid YAML"),
    "NUL": (b"train: {max_steps: 3\0}", "recipe-more.yaml"),
    "unknown anchor": ("train: *nothing", "recipe-more.yaml"),
    "alias of itself": ("train: &a {max_steps: *a}", "train.max_steps"),
    "billion laughs for a section": (f"train: {LAUGHS}", "train must hold settings"),
    "billion laughs for a number": (f"train: {{max_steps: {LAUGHS}}}", "train.max_steps"),
    "unknown tag": ("train: {max_steps: !steps 3}", "recipe-more.yaml"),
    "bad base64": ("train: {max_steps: !!binary '*'}", "recipe-more.yaml"),
    "YAML of the future": ("%YAML 9.0\n---\ntrain: {}", "recipe-more.yaml"),
    "merging a number": ("train: {<<: 3}", "recipe-more.yaml"),
    "heads do not divide": ("model: {n_head: 3}", "n_embd 16 is not divisible by n_head 3"),
    "rates in disorder": ("optimizer: {min_lr: 1}", "optimizer.min_lr 1 is above optimizer.max_lr 0.01"),
    "a step does not divide": ("train: {total_batch_size: 1000}", "train.total_batch_size 1000"),
    "name leads elsewhere": ("run: {name: ../elsewhere}", "run.name"),
    "vocabulary too large": ("model: {vocab_size: 100000}", "model.vocab_size"),
    "evaluation of nothing": ("train: {eval_every: 1, eval_tokens: 3}", "train.eval_tokens 3"),
    "prompt beyond the vocabulary": ("train: {sample_every: 1, sample_prompt: Hello}", "train.sample_prompt"),
    "window beyond the data": ("model: {block_size: 30000}\ntrain: {total_batch_size: 60000}", "too short"),
}

# -- command lines

LINES = {
    "unknown verb": (("trian",), "invalid choice: 'trian'"),
    "no verb": ((), "VERB"),
    "unknown option": (("train", "--train.max_stps", "3"), "train.max_stps"),
    "abbreviation": (("train", "--train.max_s", "3"), "train.max_s"),
    "value missing": (("train", "--train.max_steps"), "--train.max_steps"),
    "value empty": (("train", "--train.max_steps="), "--train.max_steps"),
    "stray word": (("train", "quickstart"), "quickstart"),
    "no such recipe": (("train", "--config", "nowhere.yaml"), "nowhere.yaml"),
    "recipe is a folder": (("train", "--config", "."), "--config ."),
    "unknown precision": (("train", "--system.precision", "fp7"), "--system.precision"),
    "no such device": (("train", "--system.device", "cuda"), "system.device cuda"),
    "sample of nothing": (("sample", "--model-checkpoint", "nowhere/at/all"), "nowhere/at/all"),
    "sample none": (("sample", "--model-checkpoint", "x", "--num-samples", "0"), "--num-samples"),
    "evaluate nothing": (("evaluate",), "--model-checkpoint"),
    "unknown task": (("evaluate", "--model-checkpoint", "x", "--tasks", "chess"), "chess"),
    "report of nothing": (("report", "nowhere"), "nowhere"),
    "verify nothing": (("data", "verify", "nowhere"), "nowhere"),
    "prepare nothing": (("prepare", "files", "--input", "*.nothing"), "*.nothing"),
}

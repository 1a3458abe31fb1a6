"""A tiny model with GPT-2's vocabulary, generated HellaSwag-like items, and a temporary cache folder."""

import json
import random
from pathlib import Path

import pytest
import torch

from gpt2lab.config import GPT2Config
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.system import precision
from gpt2lab.system.distributed import DistContext

CPU = torch.device("cpu")
WORDS = [
    "the",
    "a",
    "man",
    "woman",
    "dog",
    "river",
    "walks",
    "sings",
    "slowly",
    "then",
    "café",
    "opens",
    "door",
    "under",
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GPT2LAB_MIRROR", raising=False)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def make_model(block_size: int = 64, seed: int = 0) -> GPT2:
    """Larger weights than those of a new model, so that losses differ and choices are not ties."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT2(GPT2Config(n_layer=2, n_head=2, n_embd=16, block_size=block_size), generator=generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("bias") and ".ln_" not in name:
                parameter.mul_(12)
    return model.eval()


@pytest.fixture(scope="session")
def model() -> GPT2:
    return make_model()


@pytest.fixture(scope="session")
def alone() -> DistContext:
    return DistContext(rank=0, world_size=1, device=CPU)


@pytest.fixture(scope="session")
def fp32() -> precision.Precision:
    return precision.choose("fp32", CPU)


def sentence(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def official_items(count: int, seed: int = 0) -> list[dict]:
    """Items in the official schema; every second one is like those of WikiHow, with markup and without ctx_b."""
    rng = random.Random(seed)
    items = []
    for n in range(count):
        a, b = f"{sentence(rng, 3, 9).capitalize()}.", rng.choice(["he", "the man", "she"])
        if n % 2:
            a, b = f"[header] How to {sentence(rng, 2, 5)} [title] {sentence(rng, 2, 5)}. [step] {a}", ""
        items.append(
            {
                "ind": n,
                "activity_label": sentence(rng, 1, 3),
                "ctx_a": a,
                "ctx_b": b,
                "ctx": f"{a} {b}".strip(),
                "endings": [f"{sentence(rng, 2, 12)}." for _ in range(4)],
                "label": rng.randrange(4),
                "split": "val",
                "split_type": "indomain",
                "source_id": "wikihow~1",
            }
        )
    return items


def write_jsonl(path: Path, items: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path

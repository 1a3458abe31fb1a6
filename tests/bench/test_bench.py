"""The bench: everybody does the same work, in turn, and whoever cannot is left out by name."""

import itertools
import json

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from gpt2lab.bench import contenders, ladder, worker
from gpt2lab.bench.worker import flops_of_products, products
from gpt2lab.cli import main
from gpt2lab.config import GPT2Config

TINY = GPT2Config(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=50304)
SHAPE = contenders.Shape(TINY, B=2, accumulation=2, device="cpu")
SMALL = ["--model.n_layer", "1", "--model.n_head", "2", "--model.n_embd", "16", "--model.block_size", "16"]
SMALL += ["--train.micro_batch_size", "2", "--train.total_batch_size", "64", "--rounds", "1", "--steps", "1"]


class Enough(Exception):
    pass


def steps_of(contender, wanted, *arguments):
    """How many steps its optimizer took until it was stopped after so many turns."""
    turns, taken = itertools.count(), []

    def between():
        if next(turns) == wanted:
            raise Enough

    counter = register_optimizer_step_post_hook(lambda *_: taken.append(1))
    with pytest.raises(Enough):
        contender(between, *arguments)
    counter.remove()
    return len(taken)


def test_a_table_as_json_and_a_rival_that_cannot_run_is_left_out(capfd, tmp_path):
    arguments = ["bench", *SMALL, "--rivals", "transformers", "--nanogpt", str(tmp_path), "--json"]
    assert main([*arguments, "--chart", str(tmp_path / "chart.png")]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert [row["name"] for row in result["rows"]] == ["gpt2lab", "transformers"]
    for row in result["rows"]:
        assert row["tokens_per_second"] == pytest.approx(64 / row["ms_per_step"] * 1e3)
        assert row["share_of_limit"] > 0
    assert result["limits"]["flops_per_second"] > 0
    assert f"left out: nanogpt: {tmp_path}: no model.py there" in err
    assert (tmp_path / "chart.png").stat().st_size > 1000


def test_a_profile_is_a_trace_and_a_table(capfd, tmp_path):
    assert main(["bench", *SMALL, "--profile", str(tmp_path / "trace.json")]) == 0
    assert "aten::addmm" in capfd.readouterr().out
    names = {event.get("name", "") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert any("AdamW" in name for name in names)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rivals", "megatron"], "no rival megatron; there are transformers"),
        (["--train.micro_batch_size", "auto"], "train.micro_batch_size is auto"),
        (["--rounds", "0"], "argument --rounds"),
    ],
)
def test_bad_input_is_one_line(capfd, arguments, complaint):
    assert main(["bench", *SMALL, *arguments]) == 2
    out, err = capfd.readouterr()
    assert complaint in err
    assert (out, err.count("\n")) == ("", 1)


def test_everybody_sees_the_same_tokens_and_takes_a_step():
    first = next(contenders.batches(SHAPE))
    again = next(contenders.batches(SHAPE))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[0][:, 1:], first[1][:, :-1])
    assert SHAPE.tokens == 64
    for make in (contenders.transformers_plain, contenders.transformers_best):
        assert steps_of(make, 2, SHAPE) == 2


def test_the_loop_learns_what_it_is_shown():
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    losses = []

    def loss_of(x, y):
        loss = (model(x[:, :1].float() / 50000) - 1).square().mean()
        losses.append(float(loss.detach()))
        return loss

    steps_of(contenders.loop, 10, SHAPE, model, torch.optim.SGD(model.parameters(), lr=0.3), loss_of)
    assert losses[-1] < losses[0] / 4


def test_each_rung_has_one_thing_more_and_what_does_not_apply_is_named():
    rungs, left_out = ladder.rungs("cpu")
    assert [rung.name for rung in rungs] == ["fp32", "bf16", "compiled", "flash", "padded", "fused"]
    assert list(left_out) == ["tf32"]
    assert [sum(map(bool, rung[1:])) for rung in rungs] == list(range(6))
    assert len(ladder.rungs("cuda")[0]) == 7


@pytest.mark.parametrize(
    "rung", [ladder.Rung("fp32"), ladder.Rung("fused", bf16=True, flash=True, padded=True, fused=True)]
)
def test_the_rungs_take_steps(rung):
    assert steps_of(ladder.climb, 1, SHAPE, rung) == 1


def test_the_limits_products_are_those_of_the_model(monkeypatch):
    work = []
    monkeypatch.setattr(worker, "linear", lambda x, weight: work.append(2 * x.numel() * len(weight)))
    steps_of(products, 1, 8, 16, 100, "float32", "cpu")
    assert sum(work) == flops_of_products(8, 16, 100)
    assert flops_of_products(1, 1, 0) == 2 * 36

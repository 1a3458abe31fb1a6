"""`gpt2lab bench`: contenders do the same work in turns; one that cannot run is left out by name."""

import itertools
import json
import re
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from gpt2lab import config
from gpt2lab.bench import ladder, limits, measure, results, rivals, run
from gpt2lab.bench.checkouts import require
from gpt2lab.bench.limits import matmul_flops, run_matmuls
from gpt2lab.bench.process import StepTimer, StepTimes
from gpt2lab.cli import main
from gpt2lab.config import GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.options import BenchOptions
from gpt2lab.system import device as devices
from tests.terminal import COLUMNS

TINY = GPT2Config(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=50304)
SHAPE = rivals.Shape(TINY, B=2, accumulation=2, device="cpu")
SMALL = ["--model.n_layer", "1", "--model.n_head", "2", "--model.n_embd", "16", "--model.block_size", "16"]
SMALL += ["--train.micro_batch_size", "2", "--train.total_batch_size", "64", "--rounds", "1", "--steps", "1"]


# A checkout with the classes that the bench uses, and a script that must not be run.
BUILD_NANOGPT = """
import torch
from torch import nn


class GPTConfig:
    def __init__(self, **sizes):
        self.sizes = sizes


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.sizes["vocab_size"], config.sizes["n_embd"])

    def forward(self, x, y):
        logits = self.wte(x) @ self.wte.weight.T
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate)


raise SystemExit("this trains")
"""


class EndOfTrainingError(Exception):
    pass


def count_steps(train, turns, *arguments):
    """The steps of a contender's optimizer until `on_step` has been called `turns` times and once more."""
    calls, steps = itertools.count(), []

    def on_step():
        if next(calls) == turns:
            raise EndOfTrainingError

    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    with pytest.raises(EndOfTrainingError):
        train(on_step, *arguments)
    hook.remove()
    return len(steps)


@pytest.mark.slow
def test_json_has_a_row_per_contender_and_a_rival_that_cannot_run_is_left_out(capfd, tmp_path):
    (tmp_path / "model.py").write_text("import a_module_that_is_missing")
    (tmp_path / "train_gpt2.py").write_text(BUILD_NANOGPT)
    checkouts = ["--nanogpt", str(tmp_path), "--build-nanogpt", str(tmp_path)]
    arguments = ["bench", *SMALL, "--rivals", "none", *checkouts, "--json"]
    assert main([*arguments, "--chart", str(tmp_path / "chart.png")]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert [row["name"] for row in result["rows"]] == ["gpt2lab", "build-nanogpt"]
    for row in result["rows"]:
        assert row["tokens_per_second"] == pytest.approx(64 / row["ms_per_step"] * 1e3)
        assert row["share_of_limit"] > 0
    assert result["limits"]["flops_per_second"] > 0
    assert "nanogpt: ModuleNotFoundError: " in err
    assert (tmp_path / "chart.png").stat().st_size > 1000
    require(BenchOptions(chart=str(tmp_path / "chart.png")))  # it may be replaced


def test_a_profile_is_a_trace_and_a_table(capfd, tmp_path):
    assert main(["bench", *SMALL, "--profile", str(tmp_path / "trace.json")]) == 0
    assert "aten::" in capfd.readouterr().out
    names = {event.get("name", "") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert "aten::addmm" in names
    assert any("AdamW" in name for name in names)
    require(BenchOptions(profile=str(tmp_path / "trace.json")))  # it may be replaced


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--rivals", "megatron"], "megatron"),
        (["--rounds", "0"], "--rounds"),
        (["--nanogpt", "/nope"], "--nanogpt /nope: no such folder"),
        (["--build-nanogpt", "/"], "no train_gpt2.py there"),
        (["--rivals", "nanogpt"], "--nanogpt FOLDER"),
        (["--nanogpt", __file__], "test_bench.py is a file, not a folder"),
        (["--chart", "/nope/chart.png"], "--chart /nope/chart.png: /nope: no such folder"),
        (["--chart", f"{__file__}/chart.png"], "test_bench.py is a file, not a folder"),
        (["--profile", "/"], "--profile / is a folder"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(capfd, monkeypatch, arguments, key):
    monkeypatch.setattr(run, "_estimate_seconds", None)
    assert main(["bench", *SMALL, *arguments]) == 2
    out, err = capfd.readouterr()
    assert key in err
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(("option", "kind"), [("--chart", "a chart of gpt2lab"), ("--profile", "a Chrome trace")])
def test_a_file_of_another_kind_is_not_replaced(capfd, monkeypatch, tmp_path, option, kind):
    monkeypatch.setattr(run, "_estimate_seconds", None)
    monkeypatch.setattr(run, "profile_step", None)
    notes = tmp_path / "notes.json"
    notes.write_text('{"mine": 1}')
    assert main(["bench", *SMALL, option, str(notes)]) == 2
    assert f"{notes} exists and is not {kind}; give another {option}" in capfd.readouterr().err
    assert notes.read_text() == '{"mine": 1}'


def test_an_automatic_micro_batch_is_the_same_number_for_all(monkeypatch):
    shapes = []
    monkeypatch.setattr(run, "_estimate_seconds", lambda *_: 0)
    monkeypatch.setattr(run, "_time_contenders", lambda contenders, *_: shapes.append(contenders) or {})
    settings = config.load(["quickstart"])
    with pytest.raises(KeyError):  # nothing was measured
        run.run(settings, BenchOptions(rivals=("transformers",)))
    (contenders,) = shapes
    assert contenders["gpt2lab"][1][0].train.micro_batch_size == contenders["transformers"][1][0].B == 24


def test_contenders_get_the_same_tokens_and_take_a_step():
    first = next(rivals.random_batches(SHAPE))
    again = next(rivals.random_batches(SHAPE))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[0][:, 1:], first[1][:, :-1])
    assert SHAPE.tokens == 64
    for train in (rivals.transformers_default, rivals.transformers_best):
        assert count_steps(train, 2, SHAPE) == 2


def test_the_loop_reduces_the_loss():
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    losses = []

    def loss_of(x, y):
        loss = (model(x[:, :1].float() / 50000) - 1).square().mean()
        losses.append(float(loss.detach()))
        return loss

    def train(on_step):
        rivals.train_loop(model, torch.optim.SGD(model.parameters(), lr=0.3), loss_of, SHAPE, on_step)

    count_steps(train, 10)
    assert losses[-1] < losses[0] / 4


def test_each_stage_has_one_optimization_more_and_those_that_do_not_apply_are_named():
    stages, skipped = ladder.build_stages("cpu")
    assert [stage.name for stage in stages] == ["fp32", "bf16", "compiled", "flash", "padded", "fused"]
    assert list(skipped) == ["tf32"]
    assert [sum(map(bool, stage[1:])) for stage in stages] == list(range(6))
    assert len(ladder.build_stages("cuda")[0]) == 7


@pytest.mark.parametrize(
    "stage", [ladder.Stage("fp32"), ladder.Stage("fused", bf16=True, flash=True, padded=True, fused=True)]
)
def test_stages_take_steps(stage):
    assert count_steps(ladder.run_stage, 1, SHAPE, stage) == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_table_fits_on_a_terminal(device):
    figures = {"ms_per_step": 12345.6, "ms_fastest": 12000, "ms_slowest": 12999, "tokens_per_second": 1_234_567}
    figures |= {"mfu": 0.512, "share_of_limit": 0.75, "peak_memory_gib": 100.4}
    rows: list[dict[str, Any]] = [
        {"name": n, "measured": rivals.describe(n, device)} | figures for n in ("gpt2lab", *rivals.RIVALS)
    ]
    environment = measure.environment(torch.device("cpu")) | {"B": 16, "T": 1024, "compile": True}
    shown = results.format_table(rows, {"flops_per_second": 7e14, "matrix_products": "bfloat16"}, environment)
    assert max(map(len, shown.splitlines())) <= COLUMNS, shown
    assert shown.count("1,234,567") == len(rows)
    assert all(row["measured"] in shown for row in rows)


def test_the_flops_of_the_limit_are_those_of_its_products(monkeypatch):
    flops = []
    monkeypatch.setattr(limits, "linear", lambda x, weight: flops.append(2 * x.numel() * len(weight)))
    count_steps(run_matmuls, 1, SHAPE, torch.float32)
    assert sum(flops) == matmul_flops(SHAPE) == 2 * 2 * 16 * 32 * (3 * 12 * 32 + 50304)


def test_the_duration_is_said_before_the_first_contender_starts_and_rows_say_what_they_measured(
    capfd, monkeypatch, phases
):
    class Slow:
        def __init__(self, *_):
            raise GPT2LabError("not started")

    monkeypatch.setattr(run, "ContenderProcess", Slow)
    assert main(["bench", *SMALL, "--rounds", "4", "--rivals", "transformers-best"]) == 2
    first, second = capfd.readouterr().err.splitlines()
    assert re.match(r"3 contenders, 7 steps each: about \d+ (s|min)", first)
    assert "not started" in second
    assert phases.begun[-1].description.startswith("starting gpt2lab")
    assert rivals.describe("transformers-best", "cpu") == "transformers, bf16, fused AdamW"
    assert rivals.describe("transformers-best", "cuda") == "transformers, bf16, fused AdamW, compiled"
    assert all(rivals.describe(name, "cpu") != name for name in rivals.RIVALS)


class Pipe:
    """Asks a contender for so many steps in each turn, and notes what it sends and does."""

    def __init__(self, *requests):
        self.requests, self.events = iter(requests), []

    def send(self, message):
        self.events.append(message)

    def recv(self):
        return next(self.requests)


@pytest.mark.parametrize(("device", "unmeasured"), [("cpu", 0), ("cuda", 1)])
def test_a_contender_leaves_the_gpu_to_the_others_between_turns(monkeypatch, device, unmeasured):
    """Memory is released before the turn ends; the step that allocates it again is not measured."""
    pipe: Any = Pipe(3, 2)
    monkeypatch.setattr(devices, "synchronize", lambda device: None)
    monkeypatch.setattr(devices, "peak_memory_gib", lambda device: 1.0)
    monkeypatch.setattr(devices, "release_memory", lambda device: pipe.events.append("released"))
    on_step = StepTimer(pipe, torch.device(device))
    steps = 0
    with pytest.raises(StopIteration):
        while True:
            on_step()
            steps += 1
    assert steps == 3 + 2 + 2 * unmeasured
    assert pipe.events[0::2] == ["released"] * 3
    assert [len(times.seconds) for times in pipe.events[1::2]] == [0, 3, 2]


def test_a_contender_that_fails_in_a_later_round_is_left_out(monkeypatch, caplog):
    class Process:
        def __init__(self, name, *_):
            self.name, self.turns = name, 0

        def time_steps(self, count):
            self.turns += 1
            if self.name == "rival" and self.turns == 3:
                raise GPT2LabError("rival: its process died")
            return StepTimes([1.0] * count, 1.0)

        def close(self):
            pass

    monkeypatch.setattr(run, "ContenderProcess", Process)
    contenders = dict.fromkeys(("gpt2lab", "rival", "limit"), (print, ()))
    options = BenchOptions(rounds=3, steps=2)
    times = run._time_contenders(contenders, options, torch.device("cpu"))
    assert {name: len(steps.seconds) for name, steps in times.items()} == {"gpt2lab": 6, "limit": 6}
    assert "rival: its process died" in caplog.text

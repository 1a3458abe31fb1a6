"""The `plan` command: does it fit, how long, how much; tables, budgets, and what holds a run up."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2lab import cli, config
from gpt2lab.planning import loss, memory, plan
from gpt2lab.system import gpus
from tests.planning.helpers import plan_as_json
from tests.runs import STEPS

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "planning.md").read_text()
TINY = ("--model.n_layer", "2", "--model.n_embd", "128", "--model.n_head", "2", "--model.block_size", "64")


def run(capsys, *arguments: str) -> str:
    assert cli.main(["plan", *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_torch_is_not_imported(finished_run):
    arguments = ["plan", "--gpu", "h100", "--train.init_from", str(finished_run)]
    code = f"import sys; from gpt2lab import cli; assert cli.main({arguments}) == 0; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "scipy"} & set(done.stdout.splitlines()[-1].split())


def test_a_plan_says_memory_speed_time_and_cost(capsys):
    text = run(capsys, "--config", "minigpt", "--gpu", "a100-40gb", "--gpus", "6", "--price-per-hour", "7.80")
    for word in ("micro batch", "memory", "tokens/s", "MFU", "time", "$7.80 per hour", "bottleneck"):
        assert word in text


def test_an_automatic_micro_batch_has_at_most_the_tokens_that_training_allows():
    """More sequences fit on an H200."""
    each = plan.make(config.load(["gpt2_124m"]), gpus.load()["h200"])
    assert (each.micro_batch_size, each.largest_micro_batch_size) == (60, 240)
    assert each.micro_batch_size * 1024 <= memory.AUTO_TOKENS


def test_checkpoints_hold_a_run_up_only_if_it_waits_for_them_long(capsys):
    """The quickstart on an H100 waits for each write, but for a second in all."""
    assert "evaluation (0.3% of the time) or checkpoints" in run(capsys, "--config", "quickstart", "--gpu", "h100")
    text = run(
        capsys, "--config", "quickstart", "--gpu", "h100", "--train.max_steps", "60000", "--checkpoint.every", "1"
    )
    assert re.search(r"checkpoints: a write takes \d+ ms, one is due every \d+ ms", text)


def test_few_tokens_are_a_number_that_is_not_zero(capsys):
    few = ["--train.max_steps", "20", "--train.total_batch_size", "256"]
    assert "parameters, 5,120 tokens in 20 steps of 256" in run(capsys, "--gpu", "h200", *TINY, *few)


def test_one_of_something_is_singular(capsys):
    text = run(capsys, *TINY, "--gpu", "h100", "--train.max_steps", "1", "--train.total_batch_size", "64")
    assert " in 1 step of 64" in text
    assert "micro batch   1 sequence, 1 in a step" in text


def list_keys(value, prefix="") -> set[str]:
    if isinstance(value, list):
        return set().union(*(list_keys(each, prefix) for each in value))
    if not isinstance(value, dict):
        return {prefix}
    return set().union(*(list_keys(each, key) for key, each in value.items())) | {prefix}


def test_keys_of_the_json_are_documented(capsys):
    printed = plan_as_json(capsys, "--gpu", "a100,t4", "--budget", "10")
    assert not {key for key in list_keys(printed) - {""} if f"`{key}`" not in DOCUMENT}


def test_keys_are_the_same_where_the_recipe_does_not_fit(capsys):
    fits, does_not = plan_as_json(capsys, "--config", "gpt2_xl", "--gpu", "h200,t4")["plans"]
    assert fits["fits"]
    assert not does_not["fits"]
    assert list(fits) == list(does_not)
    assert does_not["hours"] is None
    assert does_not["memory_gib"]["total"] > does_not["memory_gib"]["available"]


def test_parts_add_up(capsys):
    (each,) = plan_as_json(capsys, "--config", "minillm", "--gpu", "h100", "--gpus", "8")["plans"]
    memory, hours = each["memory_gib"], each["hours"]
    assert memory["total"] == pytest.approx(sum(memory.values()) - memory["total"] - memory["available"])
    assert hours["estimate"] == pytest.approx(
        sum(hours[key] for key in ("training", "evaluation", "checkpoints", "start"))
    )
    assert each["cost"]["estimate"] == pytest.approx(hours["estimate"] * each["price_per_hour"])
    assert hours["low"] < hours["estimate"] < hours["high"]


def test_several_gpus_are_a_table_with_the_cheapest_first(capsys):
    lines = run(capsys, "--config", "minillm", "--gpu", "a100-80gb,t4,h100,h200", "--gpus", "8").splitlines()[2:]
    rows = [line for line in lines if " x " in line]
    assert len(rows) == 4
    assert "no price" in rows[-1]  # none is known for the T4
    costs = [float(re.search(r"\$([\d,.]+)", row)[1].replace(",", "")) for row in rows[:-1]]
    assert costs == sorted(costs)


def test_without_a_gpu_all_with_a_price_are_compared(capsys):
    text = run(capsys)
    assert all((f" {gpu.name} " in text) == bool(gpu.price_per_hour) for gpu in gpus.load().values())


def test_a_micro_batch_that_does_not_fit_is_lowered_as_training_does(capsys):
    arguments = ("--config", "minillm", "--gpus", "8", "--train.micro_batch_size", "64")
    large, small = plan_as_json(capsys, *arguments, "--gpu", "a100-80gb,rtx-4090")["plans"]
    assert large["micro_batch_size"] == 64
    assert small["micro_batch_size"] == 32 == small["largest_micro_batch_size"]
    assert small["micro_batch_size"] * small["grad_accum_steps"] == 64
    assert "training lowers it" in run(capsys, *arguments, "--gpu", "rtx-4090")


def test_a_micro_batch_that_does_not_divide_is_an_upper_limit_as_in_training(capsys):
    arguments = ("--config", "minigpt", "--gpu", "a100-40gb", "--gpus", "8", "--train.micro_batch_size", "16")
    (each,) = plan_as_json(capsys, *arguments)["plans"]
    assert (each["micro_batch_size"], each["grad_accum_steps"]) == (15, 4)
    assert "16 does not divide the 60 sequences of a GPU" in run(capsys, *arguments)


def test_a_gpu_without_bf16_is_planned_in_fp16(capsys):
    (each,) = plan_as_json(capsys, "--gpu", "t4")["plans"]
    assert each["precision"] == "fp16"


def test_settings_that_would_help_are_named_and_do_help(capsys):
    arguments = ("--config", "gpt2_xl", "--gpu", "rtx-4090", "--gpus", "2")
    advice = re.search(r"add (--system.*)", run(capsys, *arguments))[1].split()
    assert plan_as_json(capsys, *arguments, *advice)["plans"][0]["fits"]


def test_a_budget_buys_as_many_tokens_as_the_cost_says(capsys):
    arguments = ("--config", "minillm", "--gpu", "h100", "--gpus", "8")
    first = plan_as_json(capsys, *arguments)
    cost = first["plans"][0]["cost"]["estimate"]
    offers = plan_as_json(capsys, *arguments, "--budget", str(cost))["plans"][0]["budget"]
    assert offers[0]["size"] == "recipe"
    assert offers[0]["tokens"]["estimate"] == pytest.approx(first["tokens"], rel=0.01)
    assert [offer["size"] for offer in offers[1:]] == ["medium", "large", "xl"]
    tokens = [offer["tokens"]["estimate"] for offer in offers]
    assert tokens == sorted(tokens, reverse=True)


def test_the_price_is_the_option_or_the_setting_or_the_tables(capsys):
    def price(*arguments: str) -> float:
        return plan_as_json(capsys, "--gpu", "h100", "--gpus", "2", *arguments)["plans"][0]["price_per_hour"]

    assert price() == 2 * gpus.load()["h100"].price_per_hour
    assert price("--tracking.price_per_hour", "9") == 9
    assert price("--tracking.price_per_hour", "9", "--price-per-hour", "4") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "t4", "--budget", "5"), "--price-per-hour"),
        (("--gpu", "t4,l4", "--price-per-hour", "5"), "several GPUs"),
        (("--gpu", "h1000"), "did you mean"),
        (("--gpu", "h100", "--gpus", "7"), "total_batch_size"),
        (("--gpu", "t4", "--system.precision", "bf16"), "bf16"),
        (("--gpus", "0"), "gpus"),
        (("--gpu", "a100-40gb", "--budget", "0"), "--budget"),
        (("--gpus-file", "missing.yaml"), "missing.yaml"),
    ],
)
def test_impossible_requests_are_one_line(capsys, arguments, message):
    assert cli.main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_frequent_evaluation_and_slow_checkpoints_are_named(capsys):
    arguments = ("--config", "minillm", "--gpu", "h100", "--gpus", "8")
    quiet = plan_as_json(capsys, *arguments)["plans"][0]["limits"]
    assert "checkpoints" not in quiet["holds_up"]
    assert "data" not in quiet["holds_up"]
    often = plan_as_json(capsys, *arguments, "--train.hellaswag_every", "10", "--checkpoint.every", "5")["plans"][0]
    assert {"evaluation", "checkpoints"} <= set(often["limits"]["holds_up"])
    assert "evaluation, " in run(capsys, *arguments, "--train.hellaswag_every", "10")


def test_evaluations_cost_time_in_proportion_to_their_number(capsys):
    def evaluation(every: int) -> float:
        arguments = ("--gpu", "h100", "--train.eval_every", str(every), "--train.hellaswag_every", "0")
        settings = ("--train.sample_every", "0", "--train.max_steps", "1000")
        return plan_as_json(capsys, *arguments, *settings)["plans"][0]["hours"]["evaluation"]

    assert evaluation(0) == 0
    assert evaluation(100) == pytest.approx(11 / 6 * evaluation(200))  # also before the first step


def test_a_cpu_has_the_memory_of_this_machine_and_small_micro_batches(capsys):
    (each,) = plan_as_json(capsys, *TINY, "--gpu", "cpu", "--train.total_batch_size", "65536")["plans"]
    assert each["micro_batch_size"] * 64 <= 2048
    assert each["tokens_per_second"]["estimate"] > 0


def test_more_gpus_finish_earlier_but_cost_no_less():
    settings = config.load(["gpt2_124m"])
    gpu = gpus.load()["h100"]
    few, many = (plan.make(settings, gpu, count).outlook for count in (2, 8))
    assert few.duration.total.estimate > 3 * many.duration.total.estimate
    assert few.cost.estimate <= many.cost.estimate


def test_the_modern_architecture_and_muon_have_a_plan(capsys):
    arguments = ("--gpu", "h100", "--gpus", "6", "--train.micro_batch_size", "8")
    gpt2 = plan_as_json(capsys, *arguments)
    modern = plan_as_json(capsys, *arguments, "--model.architecture", "modern")
    muon = plan_as_json(capsys, *arguments, "--model.architecture", "modern", "--optimizer.name", "muon")
    assert modern["parameters"] > gpt2["parameters"]  # the head is a matrix of its own
    parts, with_adamw, with_muon = (each["plans"][0]["memory_gib"] for each in (gpt2, modern, muon))
    assert with_adamw["activations"] > parts["activations"]
    in_blocks = 4 * 12 * 12 * 768**2 / 2**30
    assert with_adamw["optimizer"] - with_muon["optimizer"] == pytest.approx(in_blocks)
    assert muon["plans"][0]["step_seconds"]["optimizer"] > modern["plans"][0]["step_seconds"]["optimizer"]


def test_the_expected_loss_is_stated_with_its_law_where_the_law_applies(capsys):
    expected = plan_as_json(capsys, "--config", "minillm", "--gpu", "h100", "--gpus", "8")["loss"]
    assert "Besiroglu" in expected["law"]
    for published in (3.04, 3.11, 3.27):  # GPT-2 124M with 10B tokens of FineWeb-Edu and FineWeb
        assert expected["low"] < published < expected["high"]
    text = run(capsys, "--config", "minillm", "--gpu", "h100", "--gpus", "8")
    assert "other data (MassiveText" in text
    longer = plan_as_json(capsys, "--gpu", "h100", "--train.max_steps", "40000")["loss"]
    assert longer["estimate"] < expected["estimate"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config", "quickstart"),
        ("--data.source", "tinyshakespeare"),
        ("--train.init_from", "gpt2"),
        ("--train.max_steps", "50"),
        ("--train.max_steps", "500000"),  # 25 epochs
    ],
)
def test_no_loss_is_expected_where_no_law_applies(capsys, arguments):
    assert plan_as_json(capsys, "--gpu", "h100", *arguments)["loss"] is None
    assert "expected loss" not in run(capsys, "--gpu", "h100", *arguments)


def test_the_law_is_not_asked_about_a_corpus_that_is_repeated():
    recipe = config.load(["gpt2_124m"])
    assert loss.expect(recipe, train_tokens=1e9) is None
    assert loss.expect(recipe, train_tokens=3e9) == loss.expect(recipe)


def test_muon_with_a_sharded_model_is_refused_as_in_training(capsys):
    assert cli.main(["plan", "--gpu", "h100", "--gpus", "8", "--optimizer.name", "muon", "--system.shard"]) == 2
    assert "system.shard" in capsys.readouterr().err


def test_every_recipe_has_a_plan(capsys):
    for name in config.recipes():
        assert plan_as_json(capsys, "--config", name, "--gpu", "h200")["plans"][0]["fits"], name


def test_a_run_from_weights_is_planned_with_their_architecture(finished_run, capsys, tmp_path, monkeypatch):
    folder = finished_run / "checkpoints" / f"step_{STEPS:08d}"
    parameters = json.loads((finished_run / "environment.json").read_text())["parameters"]
    for name in (finished_run, folder, folder.parent):
        planned = json.loads(run(capsys, "--gpu", "h200", "--json", "--train.init_from", str(name)))
        assert planned["parameters"] == parameters
    assert cli.main(["plan", "--train.init_from", str(folder), "--model.n_layer", "7"]) == 2
    assert "--model.n_layer 7" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "begun" / "checkpoints").mkdir(parents=True)
    for name, message in (
        ("runs/nope", "no such folder"),
        ("a.pt", "no such file"),
        ("runs/begun", "no checkpoint yet"),
        ("runs", "holds runs, not a model"),
    ):
        assert cli.main(["plan", "--train.init_from", name]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"gpt2lab: train.init_from: {name}")
        assert message in error
    assert cli.main(["plan", "--gpu", "h200", "--train.init_from", "gpt2-medium"]) == 0
    assert "train.init_from gpt2-medium is not downloaded" in capsys.readouterr().out

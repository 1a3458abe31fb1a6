"""The command line: what is printed where, and errors."""

import json
import shlex

import pytest

from gpt2lab import cli, config
from gpt2lab.model.flops import flops_per_token
from tests.scaling.synthetic import grid, write_csv, write_run, write_sweep

FEW = ["--bootstraps", "40"]


def scaling(*arguments) -> int:
    return cli.main(["scaling", *map(str, arguments)])


def test_fit_prints_one_json_object_and_warns_on_standard_error(tmp_path, capsys):
    path = write_csv(tmp_path / "a.csv", grid(noise=0.002), ("size", "tokens", "final_loss"))
    assert scaling("fit", "--n", "size", path, "--d", "tokens", "--loss", "final_loss", "--json", *FEW) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert result["points"] == 16
    assert result["approach2"] is None
    assert "learning rate" in shown.err


@pytest.mark.parametrize("arguments", [["fit"], ["predict", "--parameters", "1M", "--tokens", "20M"]])
def test_a_fit_shows_progress(arguments, tmp_path, phases):
    path = write_csv(tmp_path / "runs.csv", grid(noise=0.01))
    assert scaling(arguments[0], path, *arguments[1:], "--bootstraps", 40) == 0
    assert "fitting the forms" in [phase.description for phase in phases.begun if phase.announce]
    assert ("bootstrapping approach 3", 40) in [(phase.description, phase.total) for phase in phases.begun]


def test_nothing_that_can_be_fitted_is_an_error_and_one_form_is_none(tmp_path, capsys):
    path = tmp_path / "two.csv"
    path.write_text("parameters,tokens,loss\n1e6,1e7,4\n2e6,1e7,3.8\n")
    assert scaling("fit", path, *FEW) == 2
    error = capsys.readouterr().err
    assert "gpt2lab: no form can be fitted to 2 points: 2 sizes and 1 token count" in error
    assert "warning: two.csv does not say" in error
    assert scaling("fit", write_csv(tmp_path / "grid.csv", grid()), *FEW, "--json") == 0
    assert json.loads(capsys.readouterr().out)["approach2"] is None


def test_fit_prints_a_table(tmp_path, capsys):
    sweep = write_sweep(tmp_path / "sweep")
    assert scaling("fit", sweep, *FEW) == 0
    shown = capsys.readouterr().out
    assert all(
        word in shown
        for word in ("approach 3", "coupled", "cannot be fitted", "residuals", "tokens a parameter", "blocks-and-head")
    )


def test_predict_records_the_prediction_of_a_recipe_and_fit_holds_its_run_out(tmp_path, capsys):
    sweep = write_sweep(tmp_path / "sweep")
    larger = write_run(tmp_path / "larger", 160, 20000)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((larger / "config.yaml").read_text())
    assert scaling("predict", sweep, "--config", recipe, "--json", *FEW) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["run"] == "larger"
    assert result["recorded"] == str(sweep / "predictions.jsonl")
    loss = json.loads((larger / "metrics.jsonl").read_text().splitlines()[-1])["val/loss"]
    assert abs(result["loss"] / loss - 1) < 0.015
    larger.rename(sweep / "larger")
    assert scaling("fit", sweep, "--json", *FEW) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["points"] == 12
    assert "held out" in shown.err


def test_predict_from_a_csv_records_nothing(tmp_path, capsys):
    path = write_csv(tmp_path / "a.csv", grid(noise=0.002))
    assert scaling("predict", path, "--parameters", "2B", "--tokens", "4e10", *FEW) == 0
    assert "95% interval" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_plan_writes_its_runs(tmp_path, capsys):
    path = tmp_path / "plan.json"
    recipe = ["--config", "quickstart", "--model.vocab_size", "512"]
    assert scaling("plan", *recipe, "--flops", "1e13:1e15", "--runs", "12", "--speed", "1e11", "--out", path) == 0
    shown = capsys.readouterr().out
    plan = json.loads(path.read_text())
    assert len(plan["runs"]) == 12
    assert all(run["name"] in shown for run in plan["runs"])
    assert plan["config"] == ["quickstart"]
    assert plan["overrides"] == {"model.vocab_size": "512"}
    overrides = {**plan["runs"][0]["settings"], **plan["overrides"]}
    assert config.load(["quickstart"], overrides).train.max_steps == plan["runs"][0]["settings"]["train.max_steps"]


def test_recommend_writes_a_recipe_that_train_takes(tmp_path, capsys, monkeypatch):
    from gpt2lab.training import run as training_run

    seen = []
    monkeypatch.setattr(training_run, "run", lambda config, **_: seen.append(config))
    path = tmp_path / "larger.yaml"
    assert scaling("recommend", "--gpu-hours", "8", "--gpu", "A100", "--out", path) == 0
    train = shlex.split(capsys.readouterr().out.partition("start it with: ")[2])
    assert cli.main(train[1:]) == 0
    assert seen[0].run.name == "larger"
    assert flops_per_token(seen[0].model) * seen[0].train.max_steps * seen[0].train.total_batch_size == pytest.approx(
        8 * 3600 * 312e12 * 0.4, rel=0.01
    )


PLAN = ["plan", "--config", "quickstart", "--flops", "1e13:1e15"]
RECOMMEND = ["recommend", "--gpu-hours", "8", "--gpu", "A100"]


@pytest.mark.parametrize(("command", "kind"), [(PLAN, "a plan"), (RECOMMEND, "a recommended recipe")])
def test_out_replaces_only_what_the_same_command_has_written(command, kind, tmp_path, capsys, monkeypatch):
    path, other = tmp_path / "out", tmp_path / "other"
    path.touch()
    assert scaling(*command, "--out", path) == 0
    assert scaling(*command, "--out", path) == 0
    assert scaling(*(RECOMMEND if command is PLAN else PLAN), "--out", other) == 0
    capsys.readouterr()
    (tmp_path / "recipe.yaml").write_text("# mine\nmodel: {n_layer: 2}\n")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    monkeypatch.setattr("gpt2lab.scaling.run._load_recipe", None)  # it is refused before
    for precious in (other, tmp_path / "recipe.yaml", tmp_path / "deep.json"):
        before = precious.read_bytes()
        assert scaling(*command, "--out", precious) == 2
        assert capsys.readouterr().err == f"gpt2lab: {precious} exists and is not {kind}; give another --out\n"
        assert precious.read_bytes() == before
    assert scaling(*command, "--out", tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err


BAD = [
    ("fit", "give a CSV"),
    ("fit nowhere.csv", "nowhere.csv"),
    ("predict a.csv", "--parameters"),
    ("predict a.csv --parameters 1M", "--tokens"),
    ("predict a.csv --parameters 1M --tokens 1M --config quickstart", "--config"),
    ("plan", "--flops"),
    ("plan --flops 1e13", "--flops"),
    ("plan --flops many:more", "--flops"),
    ("plan --flops 1e13:1e15 --runs 4", "--runs"),
    ("plan --config quickstart --flops 1:10", "raise --flops"),
    ("plan --config quickstart --flops 1e13:1e15 --train.eval_every 0", "train.eval_every is 0"),
    ("run p.json --train.init_from gpt2", "train.init_from is set"),
    ("run p.json --train.eval_every 0", "train.eval_every is 0"),
    ("recommend", "--flops"),
    ("recommend --gpu-hours 4 --gpu A100 --mfu 40", "'40' is not a share from 0 to 1, such as 0.4"),
    ("recommend --gpu-hours 4 --gpu A100 --mfu 0", "share"),
    ("recommend --gpu-hours 4 --gpu A100 --mfu nan", "share"),
    ("recommend --flops 1e18 --gpu A100", "--gpu-hours"),
    ("recommend --gpu-hours 8", "--gpu-hours needs --gpu, such as --gpu-hours 8 --gpu A100"),
    ("recommend --gpu-hours 4 --gpu TPU", "--gpu TPU"),
    ("guess", "guess"),
    ("fit a.csv --nn 3", "nn"),
    ("fit semicolons.csv", "not separated by commas"),
    ("fit a.csv --n size", "size"),
]


@pytest.mark.parametrize(("arguments", "key"), BAD)
def test_bad_input_is_one_line_and_exit_status_2(arguments, key, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "a.csv", grid())
    (tmp_path / "semicolons.csv").write_text((tmp_path / "a.csv").read_text().replace(",", ";"))
    run = {"name": "a", "settings": {"train.max_steps": 5}}
    (tmp_path / "p.json").write_text(json.dumps({"config": ["quickstart"], "overrides": {}, "runs": [run]}))
    assert scaling(*shlex.split(arguments)) == 2
    error = capsys.readouterr().err
    assert key in error.splitlines()[-1]
    assert error.count("\n") == 1

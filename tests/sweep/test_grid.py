"""From options to runs: names, settings, and what is refused before anything is written."""

import shlex

import pytest

from gpt2lab import cli, config
from gpt2lab.sweep import grid


def sweep(*arguments) -> int:
    return cli.main(["sweep", *map(str, arguments)])


def test_the_printed_commands_train_every_combination(recipe, capsys, monkeypatch, tmp_path):
    from gpt2lab.training import run as training_run

    seen = []
    monkeypatch.setattr(training_run, "run", lambda config, **_: seen.append(config))
    over = ["--over", "optimizer.max_lr=1e-3,2e-3", "--over", "run.seed=1,2,3"]
    assert sweep("--config", recipe, *over, "--train.max_steps", 5, "--print") == 0
    lines = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "runs").exists()
    assert [cli.main(shlex.split(line)[1:]) for line in lines] == [0] * 6
    assert {(run.optimizer.max_lr, run.run.seed) for run in seen} == {
        (rate, seed) for rate in (1e-3, 2e-3) for seed in (1, 2, 3)
    }
    assert {run.train.max_steps for run in seen} == {5}
    assert {run.run.out_dir for run in seen} == {str(tmp_path / "runs" / "tiny_sweep")}
    assert seen[0].run.name == "max_lr-1e-3_seed-1"


def test_names_are_distinct_and_valid():
    axes = {"data.dir": ["a/b", "a-b"], "model.n_layer": ["1", "2"]}
    names = [*grid.list_combinations(axes)]
    assert len(set(names)) == 4
    long = [*grid.list_combinations({"data.dir": ["x" * 300, "x" * 301]})]
    assert len(set(long)) == 2
    for name in names + long:
        assert len(name) <= 120
        config.load([], {"run.name": name})
    same_last_part = grid.list_combinations({"data.dir": ["a"], "run.out_dir": ["a"]})
    assert len(same_last_part) == 1


BAD = [
    ("", "--over"),
    ("--over optimizer.max_lr", "optimizer.max_lr=1e-3,2e-3"),
    ("--over optimizer.max_lr=1e-3,", "optimizer.max_lr=1e-3,2e-3"),
    ("--over optimizer.maxlr=1,2", "did you mean optimizer.max_lr"),
    ("--over run.name=a,b", "run.name"),
    ("--over run.seed=1,2 --over run.seed=3", "twice"),
    ("--over run.seed=1,1", "twice"),
    ("--over optimizer.max_lr=2e-3,0.002", "same settings"),
    ("--over run.seed=1,2 --run.seed 3", "both given"),
    ("--over optimizer.max_lr=-1,2", "--optimizer.max_lr"),
    ("--over run.seed=1,2 --run.resume never", "run.resume"),
    ("--over run.seed=1,2 --data.dir nowhere", "nowhere"),
    ("--over run.seed=1,2 --dry-run", "--print"),
]


@pytest.mark.parametrize(("arguments", "key"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing_behind(arguments, key, recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sweep("--config", recipe, *shlex.split(arguments)) == 2
    error = capsys.readouterr().err
    assert key in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_a_run_directory_is_no_sweep(recipe, tmp_path, capsys):
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "config.yaml").write_text("{}")
    assert sweep("--config", recipe, "--over", "run.seed=1,2", "--run.name", "old") == 2
    assert "old is a run" in capsys.readouterr().err

"""The page of a scaling run, and the command that trains a plan."""

import json
import math
import re
import shlex

import pytest

from gpt2lab import cli, config
from gpt2lab.scaling import design, page, points
from tests.scaling.synthetic import SMALL_LAW, write_run

RECIPE = ["--config", "quickstart", "--model.vocab_size", "512"]


def scaling(*arguments) -> int:
    return cli.main(["scaling", *map(str, arguments)])


@pytest.fixture
def plan(tmp_path, capsys):
    path = tmp_path / "mine.json"
    assert scaling("plan", *RECIPE, "--flops", "1e13:1e15", "--runs", "12", "--out", path) == 0
    capsys.readouterr()
    return path


def write_isoflops(folder):
    """Sizes on both sides of the optimum of three computes."""
    for compute in (1e12, 4e12, 16e12):
        best = SMALL_LAW.optimum(compute)[0]
        for width in (16, 32, 64, 128, 256):
            layers = max(1, width // 32)
            n = 512 * width + layers * 12 * width**2
            if best / 8 < n < best * 8:
                tokens = compute / (6 * n + 12 * layers * width * 32)
                write_run(folder / f"c{compute / 1e12:.0f}_w{width}", width, round(tokens / 256), SMALL_LAW)
    return folder


def test_the_page_shows_the_law_and_what_a_predicted_run_reached(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page, "_DRAWS", 20)
    sweep = write_isoflops(tmp_path / "sweep")
    larger = write_run(tmp_path / "larger", 192, 40000, SMALL_LAW)
    (tmp_path / "larger.yaml").write_text((larger / "config.yaml").read_text())
    assert scaling("predict", sweep, "--config", tmp_path / "larger.yaml", "--bootstraps", "40") == 0
    assert cli.main(["report", str(sweep)]) == 0
    before = (sweep / "report.html").read_text()
    for text in ("IsoFLOP curves", "Frontier", "Optimal size N", "Optimal tokens D", "GPT-2 xl", "Approach 2"):
        assert text in before, text
    assert re.search(r"<td>-</td><td>-</td></tr>", before)  # the run has not begun
    metrics = larger / "metrics.jsonl"
    loss = json.loads(metrics.read_text().splitlines()[-1])["val/loss"]
    metrics.write_text(json.dumps({"step": 0, "val/loss": 6.2}) + "\n" + metrics.read_text())
    larger.rename(sweep / "larger")
    assert cli.main(["report", str(sweep)]) == 0
    after = (sweep / "report.html").read_text()
    assert re.search(rf"<td>{loss:.4f}, (inside|outside)</td>", after)
    assert "held-out run" in after
    assert "Predicted run larger" in after
    assert not re.search(r"(src|href)=\"(http|//)", after)
    capsys.readouterr()


def test_the_compute_of_a_held_out_run_is_that_of_its_settings(tmp_path):
    run = write_run(tmp_path / "sweep" / "larger", 64, 1000)
    settings = config.load_run(run)
    n = points.count_parameters(settings)["blocks-and-head"]
    line = {"run": "larger", "parameters": n, "tokens": 256_000, "interval95": [1, 2], "loss": 1.5}
    outcome = page._read_outcome(tmp_path / "sweep", line)
    assert outcome.flops == pytest.approx(points.read([str(run)], points.Columns(), "all").flops[0])
    assert outcome.loss is not None
    assert page._read_outcome(tmp_path / "sweep", line | {"run": None}).loss is None


def test_a_folder_with_few_runs_has_a_page_without_a_law(tmp_path, capsys):
    sweep = tmp_path / "sweep"
    write_run(sweep / "a", 32, 500)
    write_run(sweep / "b", 32, 1000)
    (sweep / "sweep.json").write_text(json.dumps({"plan": "mine.json", "runs": [{"name": "a"}, {"name": "later"}]}))
    assert cli.main(["report", str(sweep)]) == 0
    html = (sweep / "report.html").read_text()
    assert "no form can be fitted" in html
    assert re.findall(r'<tr><th scope="row">(?:<a [^>]*>)?(\w+)', html) == ["a", "later", "b"]
    capsys.readouterr()


def test_the_runs_of_a_plan_are_trained_with_its_settings(plan, tmp_path, capsys, monkeypatch):
    from gpt2lab.training import run as training_run

    monkeypatch.chdir(tmp_path)
    assert scaling("run", plan, "--print", "--system.device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    seen = []
    monkeypatch.setattr(training_run, "run", lambda config, **_: seen.append(config))
    assert len(lines) == 12
    assert [cli.main(shlex.split(line)[1:]) for line in lines[::4]] == [0] * 3
    content = json.loads(plan.read_text())
    for run, planned in zip(seen, content["runs"][::4], strict=True):
        assert (run.run.name, run.run.out_dir) == (planned["name"], "runs/mine")
        assert {key: value for key, value in run.flat().items() if key in planned["settings"]} == planned["settings"]
        assert (run.model.vocab_size, run.system.device) == (512, "cpu")
        assert math.isclose(planned["tokens"], run.train.max_steps * run.train.total_batch_size)


BAD = [
    ("run", "plan.json"),
    ("run nowhere.json", "nowhere.json"),
    ("run wrong.json", "no plan"),
    ("run mine.json --config quickstart", "which has the recipe"),
    ("run mine.json --train.max_steps 5", "train.max_steps"),
]


@pytest.mark.parametrize(("arguments", "key"), BAD)
def test_a_wrong_plan_is_one_line(arguments, key, plan, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.json").write_text('{"config": ["quickstart"], "overrides": {}, "runs": [{"name": 3}]}')
    assert scaling(*shlex.split(arguments)) == 2
    error = capsys.readouterr().err
    assert key in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert design.read("mine.json")["runs"]

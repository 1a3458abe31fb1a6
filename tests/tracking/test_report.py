"""The page and the picture of a run: from its files alone, whatever is there, needing nothing else."""

import json
import re

import pytest

from gpt2lab import cli
from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.tracking import plots, report
from gpt2lab.tracking.metrics import JsonLines


def make_run(folder, steps=30, source="stdlib", **extra):
    folder.mkdir(exist_ok=True)
    config = Config.model_validate({"data": {"source": source}, "train": {"total_batch_size": 1024 * 8}})
    (folder / "config.yaml").write_text(config.to_yaml())
    facts = {"hardware": {"cpu": "Some <CPU>"}, "commit": "abc", "parameters": 124_439_808}
    (folder / "environment.json").write_text(json.dumps(facts))
    metrics, samples = JsonLines(folder / "metrics.jsonl"), JsonLines(folder / "samples.jsonl")
    for step in range(steps + 1):
        values = (
            {"train/loss": 10 - step * 0.1, "perf/step_ms": 1000.0, "perf/tokens_per_second": 8192.0} if step else {}
        )
        metrics.log(step, values | ({"val/loss": 10.0 - step * 0.05} if step % 10 == 0 else {}) | extra)
        samples.write({"step": step, "prompt": "Once", "seed": 1, "text": f"Once <b>upon</b> step {step}"})
    return folder


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(tmp_path):
    page = report.write(make_run(tmp_path / "a")).read_text()
    assert not re.search(r'(src|href)="(?!#)', page.replace('xlink:href="#', ""))
    assert "<script" not in page
    assert "@import" not in page
    assert "Some &lt;CPU&gt;" in page
    assert "&lt;b&gt;upon&lt;/b&gt; step 30" in page
    assert (tmp_path / "a" / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_numbers_at_the_top(tmp_path):
    run = make_run(tmp_path / "a", **{"hellaswag/acc_norm": 0.29, "perf/mfu": 0.4})
    shown = dict(report.tiles(plots.read_metrics(run), 8192, price_per_hour=24.0))
    assert shown["validation loss"] == "10.00 → 8.500"
    assert shown["tokens"] == "246K"
    assert shown["training time"] == "0 min 30 s"
    assert shown["cost at 24 an hour"] == "0.2"
    assert (shown["MFU, median"], shown["HellaSwag"], shown["tokens/s, median"]) == ("40.0%", "0.2900", "8,192")
    assert "cost" not in " ".join(dict(report.tiles(plots.read_metrics(run), 8192, 0.0)))


def test_published_lines_stand_only_beside_what_they_compare_with(tmp_path):
    assert "GPT-2 124M on FineWeb-Edu" in report.render(make_run(tmp_path / "a", source="fineweb-edu"))
    assert "GPT-2 124M on FineWeb-Edu" not in report.render(make_run(tmp_path / "b"))
    assert "GPT-3 Small 125M: 0.337" in report.render(make_run(tmp_path / "c", **{"hellaswag/acc_norm": 0.29}))


@pytest.mark.parametrize("steps", [-1, 0, 1])
def test_a_run_that_has_hardly_begun_has_a_page_too(tmp_path, steps):
    assert "</html>" in report.render(make_run(tmp_path / "a", steps=steps))


def test_samples_are_spread_over_the_run(tmp_path):
    page = report.render(make_run(tmp_path / "a", steps=100))
    shown = [int(step) for step in re.findall(r"after step (\d+)", page)]
    assert len(shown) == report.MAX_SAMPLE_STEPS
    assert (shown[0], shown[-1]) == (0, 100)


def test_a_line_that_is_being_written_is_not_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "tra')
    assert plots.read_metrics(tmp_path) == [{"step": 0}]
    assert plots.read_metrics(tmp_path / "absent") == []


def test_the_verb(tmp_path, capsys):
    run = make_run(tmp_path / "a")
    assert cli.main(["report", str(run), "--price-per-hour", "2"]) == 0
    assert "cost at 2 an hour" in (run / "report.html").read_text()
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_a_damaged_file_is_named(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "environment.json").write_text("{")
    with pytest.raises(GPT2LabError, match="environment.json: not valid JSON"):
        report.render(run)

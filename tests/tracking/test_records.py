"""Reading run directories: damaged records are left out and counted."""

import re

import numpy as np
import pytest

from gpt2lab.errors import GPT2LabError
from gpt2lab.tracking import records


def append(path, text, encoding="utf-8"):
    with open(path, "ab") as file:
        file.write(text if isinstance(text, bytes) else text.encode(encoding))


def test_a_curve_has_the_steps_at_which_it_was_measured(make_run):
    run = records.read(make_run(steps=30))
    assert run.curve("val/loss").steps.tolist() == [0, 10, 20, 30]
    np.testing.assert_allclose(run.curve("val/loss").values, [10.0, 9.5, 9.0, 8.5])
    assert run.curve("train/loss").steps.tolist() == list(range(1, 31))
    assert len(run.curve("hellaswag/acc_norm").steps) == 0
    assert (run.name, run.last_step, run.source, run.warnings) == ("a", 30, "stdlib", [])


def test_damaged_lines_are_left_out_and_counted(make_run):
    folder = make_run(steps=3)
    damage = ["{", "[1, 2]", "null", "", '{"step": "4", "train/loss": 1}', '{"train/loss": 1}', "[" * 100_000]
    append(folder / "metrics.jsonl", "\n".join(damage) + "\n")
    append(folder / "metrics.jsonl", b"\xff\xfe\x00\n")
    append(folder / "metrics.jsonl", '{"step": 1%s, "train/loss": 1}\n' % ("0" * 400))
    append(folder / "metrics.jsonl", '{"step": 4, "train/loss": 1%s, "perf/mfu": "high"}\n' % ("0" * 400))
    append(folder / "samples.jsonl", '{"step": 4}\n{"step": 4, "prompt": 5, "text": []}\nnot json\n')
    run = records.read(folder)
    assert run.last_step == 3
    assert "perf/mfu" not in run.metrics
    assert {sample.step for sample in run.samples} == {0, 1, 2, 3}
    assert any("metrics.jsonl: 6 " in warning for warning in run.warnings)
    assert any("samples.jsonl: 1 " in warning for warning in run.warnings)


def test_values_that_are_not_finite_are_left_out_with_a_warning(make_run):
    folder = make_run(steps=3)
    for step, value in ((4, "NaN"), (5, "Infinity"), (6, "null"), (7, "7.5")):
        append(folder / "metrics.jsonl", f'{{"step": {step}, "train/loss": {value}}}\n')
    run = records.read(folder)
    assert run.curve("train/loss").steps.tolist() == [1, 2, 3, 7]
    (warning,) = run.warnings
    assert re.search(r"train/loss.* 3 steps.* step 4", warning)


def test_an_incomplete_last_line_is_not_read(make_run):
    folder = make_run(steps=3)
    append(folder / "metrics.jsonl", '{"step": 4, "train/loss": 1}')
    run = records.read(folder)
    assert run.last_step == 3
    assert not run.warnings


def test_only_the_settings_are_required(make_run, tmp_path):
    folder = make_run()
    for path in folder.glob("*.json*"):
        path.unlink()
    run = records.read(folder)
    assert (run.environment, run.metrics, run.samples, run.events) == ({}, {}, [], [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(GPT2LabError, match=r"config\.yaml"):
        records.read(tmp_path / "empty")
    with pytest.raises(GPT2LabError, match=rf"holds runs, not a run; give some of them, such as {folder}"):
        records.read(folder.parent)


def test_damaged_settings_and_environment_are_errors(make_run):
    folder = make_run()
    (folder / "environment.json").write_text("{")
    with pytest.raises(GPT2LabError, match="environment.json"):
        records.read(folder)
    (folder / "config.yaml").write_text("train: [")
    with pytest.raises(GPT2LabError, match="config.yaml: line 1"):
        records.read(folder)


def test_the_newest_evaluation_without_a_limit_is_read(make_run):
    folder = make_run()
    (folder / "evaluations").mkdir()
    for name, text in (
        ("step_00000010", '{"step": 10}'),
        ("step_00000020", '{"step": 20}'),
        ("step_00000030", "{"),
        ("step_00000030_limit_5", '{"step": 30}'),
    ):
        (folder / "evaluations" / f"{name}.json").write_text(text)
    assert records.read(folder).evaluation == {"step": 20}

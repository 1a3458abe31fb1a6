"""Logs of other projects: each format is recognized by its content, and drawn beside a run."""

import re

import pytest

from gpt2lab import cli
from gpt2lab.errors import GPT2LabError
from gpt2lab.tracking import foreign_logs, plots, records, report
from gpt2lab.tracking.foreign_logs import ForeignLog
from gpt2lab.tracking.records import Run

# The formats of the projects, with numbers of our own: text of a log, and what it holds by metric.
LOGS = {
    "build-nanogpt": (
        "0 val 10.9511\n0 hella 0.2480\n0 train 10.955010\n1 train 10.650012\n250 val 5.9326\n250 hella 0.2444\n",
        {
            "val/loss": {0: 10.9511, 250: 5.9326},
            "hellaswag/acc_norm": {0: 0.248, 250: 0.2444},
            "train/loss": {2: 10.650012},
        },
    ),
    "llm.c": (
        "s:0 tel:11.0092\ns:0 eval:0.2500\ns:0 trl:11.0091 lr:0.000001 norm:15.37\ns:1 trl:10.9598 lr:0.000002 "
        "norm:15.24\ns:250 tel:6.1710\n",
        {"val/loss": {0: 11.0092, 250: 6.171}, "hellaswag/acc_norm": {0: 0.25}, "train/loss": {1: 11.0091, 2: 10.9598}},
    ),
    "nanoGPT": (
        "tokens per iteration will be: 491,520\nnumber of parameters: 123.59M\nstep 0: train loss 10.9885, val loss "
        "10.9898\niter 0: loss 10.9897, time 41234.50ms, mfu -100.00%\n2026-03-22 09:31:16 iter 10: loss 9.1, time "
        "1099.34ms, mfu 15.34%\nsaving checkpoint to out\nstep 250: train loss 6.1000, val loss 6.2000\n",
        {"val/loss": {0: 10.9898, 250: 6.2}, "train/loss": {1: 10.9897, 11: 9.1}},
    ),
    "modded-nanogpt": (
        "import torch\nstep = 3 # s:4 trl:5\n" + "=" * 100 + "\nstep:0/3250 val_loss:10.8258 train_time:0ms "
        "step_avg:nanms\nstep:1/3250 train_loss:10.8000 train_time:29246ms step_avg:nanms\nstep:2/3250 "
        "train_time:29354ms step_avg:nanms\nstep:125/3250 val_loss:4.42350 train_time:17.298s step_avg:150.42ms\n",
        {"val/loss": {0: 10.8258, 125: 4.4235}, "train/loss": {1: 10.8}},
    ),
    "CSV": (
        "Iter,wall,train_loss,Val Loss\n0,0.1,,11.0\n1,0.2,10.9,\n250,0.3,6.0,6.2\n",
        {"val/loss": {0: 11.0, 250: 6.2}, "train/loss": {1: 10.9, 250: 6.0}},
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_a_format_is_recognized_by_its_content(name, tmp_path):
    text, expected = LOGS[name]
    path = tmp_path / "any-name"
    path.write_text(text)
    log = foreign_logs.read(path)
    assert log.format == name
    assert log.metrics.keys() == expected.keys()
    for key, points in expected.items():
        found = dict(zip(*log.curve(key), strict=True))
        assert points.items() <= found.items()
        assert sorted(found) == list(log.curve(key).steps)
    assert log.tokens_per_step == (491_520 if name == "nanoGPT" else None)
    assert foreign_logs.read(path, 1024).tokens_per_step == 1024


def test_a_restarted_log_counts_each_step_once_and_nan_is_left_out(tmp_path):
    path = tmp_path / "main.log"
    path.write_text("s:0 tel:11.0\ns:250 tel:9.9\ns:500 tel:9.0\ns:250 tel:6.1\ns:500 tel:nan\n")
    curve = foreign_logs.read(path).curve("val/loss")
    assert (list(curve.steps), list(curve.values)) == ([0, 250], [11.0, 6.1])


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("10 val 3.1234\n", "20 val 3"),
        ("10 val 10.1234\n", "20 val 9.1"),
        ("step 10: train loss 3.1, val loss 3.1234\n", ""),
    ],
)
def test_a_value_that_the_end_of_the_file_cuts_short_is_left_out(start, end, tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(start + (end or start.replace("10", "20", 1)[:-4]))
    assert list(foreign_logs.read(path).curve("val/loss").steps) == [10]
    path.write_text(start + start.replace("10", "20", 1).strip())  # complete, but for the end of the line
    assert list(foreign_logs.read(path).curve("val/loss").steps) == [10, 20]


def test_steps_below_zero_are_left_out(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n-5,3\n0,4\n7,3\n")
    assert list(foreign_logs.read(path).curve("train/loss").steps) == [0, 7]


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("step;tokens;val_loss\n10;5000;3.1\n20;10000;3.0\n", 500),
        ("step;tokens;val_loss\n10;5000;3,1\n20;10000;3,0\n", 500),
        ('"Step","run-1 - val/loss","run-1 - val/loss__MIN"\n10,3.1,2\n', None),
        ("\ufeffglobal_step\teval_loss\n10\t3.1\nbad\t\n", None),
    ],
)
def test_columns_of_a_csv_are_guessed_and_said(text, rate, tmp_path, caplog):
    path = tmp_path / "log.csv"
    path.write_text(text, encoding="utf-8")
    with caplog.at_level("INFO"):
        log = foreign_logs.read(path)
    assert log.curve("val/loss").values[0] == 3.1
    assert log.tokens_per_step == rate
    assert re.search("step from column '.*', .*val/loss from column '.*'", caplog.text)


@pytest.mark.parametrize("row", ["1,abc", "abc,1"])
def test_a_table_without_a_readable_row_names_the_cell(row, tmp_path, make_run, capsys):
    path = tmp_path / "log.csv"
    path.write_text(f"step,loss\n\n{row}\n2,def\n")
    assert cli.main(["report", str(make_run()), str(path)]) == 2
    assert capsys.readouterr().err == f"gpt2lab: {path}, line 3: 'abc' is not a number\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# A README\n\nstep 3 of 5\n",
        b"PK\x03\x04\0\0\n250 val 5.9326\n",
        b"step,color\n1,red\n",
        b"9" * 5000 + b" val 3.0\n",
    ],
)
def test_another_file_is_one_line_that_lists_the_formats(content, tmp_path, make_run, capsys):
    path = tmp_path / "some.txt"
    path.write_bytes(content)
    assert cli.main(["report", str(make_run()), str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error
    assert all(name in error for name in ("build-nanogpt", "llm.c", "nanoGPT", "modded-nanogpt", "CSV"))


def write_log(folder, name="log.txt", steps=30):
    path = folder / name
    path.write_text(
        "".join(f"{step} train {10 - step / 20:.6f}\n{step} val {9 - step / 20:.4f}\n" for step in range(steps))
    )
    return path


def test_a_log_is_drawn_beside_a_run(make_run, tmp_path, capsys):
    run, log = make_run(), write_log(tmp_path)
    assert cli.main(["report", str(run), str(log)]) == 0
    page = tmp_path / "compare_a_log.html"
    assert str(page) in capsys.readouterr().out
    html = page.read_text()
    assert "optimizer step" in html
    assert "log.txt (build-nanogpt): validation loss 7.550 at step 29" in html
    assert "--tokens-per-step" in html
    assert "<title>a · log.txt" in html
    loss = re.search(r"<svg.*?</svg>", html, re.DOTALL)
    assert loss
    assert {"var(--run0)", "var(--run1)"} <= set(re.findall(r"var\(--run\d\)", loss[0]))


def test_tokens_of_a_step_give_a_common_axis(make_run, tmp_path):
    run, logs = make_run(), [write_log(tmp_path), write_log(tmp_path, "main.txt")]
    sources: list[Run | ForeignLog] = [records.read(run), *(foreign_logs.read(log) for log in logs)]
    assert [line.scale for line in plots.build_lines(sources)] == [1, 1, 1]
    sources[1:] = [foreign_logs.read(log, 16384) for log in logs]
    assert [line.scale for line in plots.build_lines(sources)] == [8192, 16384, 16384]
    html = report.write(run, *logs, tokens_per_step=[16384])[0].read_text()
    assert "The x axis is in tokens" in html
    with pytest.raises(GPT2LabError, match="3 numbers for 2 logs"):
        report.write(run, *logs, tokens_per_step=[1, 2, 3])


def test_a_log_needs_a_run(tmp_path):
    log = write_log(tmp_path)
    with pytest.raises(GPT2LabError, match="name a run directory"):
        report.write(log)


def test_the_title_of_many_counts_the_logs(make_run, tmp_path):
    logs = [write_log(tmp_path, f"{name}.txt") for name in "abc"]
    assert "<title>4 runs" in report.write(make_run(), *logs)[0].read_text()

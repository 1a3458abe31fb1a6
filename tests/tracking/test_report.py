"""The report of one or several runs: self-contained, valid HTML, for any content of the run directory."""

import json
import os
import re
from html import unescape
from html.parser import HTMLParser

import pytest

from gpt2lab import cli
from gpt2lab.errors import GPT2LabError
from gpt2lab.tracking import records, report, summary


def text_of(page):
    """The visible text, without plots and style."""
    return unescape(" ".join(re.sub(r"<(style|svg).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL).split()))


class Tags(HTMLParser):
    """Checks that tags are closed in the order in which they were opened."""

    VOID = ("meta", "wbr", "path", "use", "rect")

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def assert_valid(page):
    tags = Tags()
    tags.feed(page.partition("<!doctype html>")[2])
    assert not tags.open
    assert page.endswith("</html>")


def test_the_page_is_self_contained_and_escapes_text(make_run):
    folder = make_run()
    page, picture = report.write(folder)
    html = page.read_text()
    assert_valid(html)
    assert not re.search(r'(src|href)="(?!#)', html.replace('xlink:href="#', ""))
    assert not re.search(r"<script|@import|url\((?!#)", html)
    assert "AMD" not in html
    assert "Some &lt;CPU&gt;" in html
    assert "&lt;b&gt;upon&lt;/b&gt; a 1 at 30" in html
    assert (page, picture) == (folder / "report.html", folder / "loss_curve.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_figures(make_run):
    folder = make_run(**{"hellaswag/acc_norm": 0.29, "perf/mfu": 0.4}, settings={"train.max_steps": 60})
    shown = summary.figures(records.read(folder), price_per_hour=360.0)
    assert shown["parameters"] == ("124M", "124,439,808")
    assert shown["validation loss"] == ("8.500", "from 10.00")
    assert (shown["steps"], shown["tokens"]) == (("30", "of 60"), ("246K", "8,192 per step"))
    assert shown["training time"] == ("30 s", "")
    assert shown["evaluation time"] == ("8 s", "21% of the total")
    assert shown["cost"] == ("3.80", "at 360 per hour")  # of 38 s, with evaluation
    assert (shown["MFU"].value, shown["HellaSwag"].value, shown["tokens/s"].value) == ("40.0%", "0.2900", "8,192")
    assert "cost" not in summary.figures(records.read(folder))


def test_published_values_are_shown_only_where_they_can_be_compared(make_run):
    on_fineweb, elsewhere = make_run("a", settings={"data.source": "fineweb-edu"}), make_run("b")
    assert "GPT-2 124M: 3.29<" in report.write(on_fineweb)[0].read_text()
    for folders in ([elsewhere], [on_fineweb, elsewhere]):
        text = report.write(*folders)[0].read_text()
        assert "GPT-2 124M: 3.29<" not in text
        assert "do not compare" in text
    page, *pictures = report.write(make_run("c", **{"hellaswag/acc_norm": 0.29}))
    html = page.read_text()
    for line in ("GPT-2 124M: 0.2955", "GPT-3 Small 125M: 0.337", "chance: 0.25"):
        assert line in html
    assert [picture.name for picture in pictures] == ["loss_curve.png", "hellaswag_curve.png"]


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("fineweb-edu", "GPT-2 124M: 3.29<"),
        ("fineweb", "speed records: 3.28<"),
        (None, None),
        ("pretokenized", None),
    ],
)
def test_published_losses_are_not_shown_beside_text_that_nobody_knows(make_run, source, shown):
    """The recipe says fineweb-edu; what the shards say counts."""
    folder = make_run(settings={"data.source": "fineweb-edu", "data.dir": "somewhere"})
    facts = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(facts | {"data": {"source": source}}))
    text = report.write(folder)[0].read_text()
    assert [line for line in ("GPT-2 124M: 3.29<", "speed records: 3.28<") if line in text] == [shown] * bool(shown)
    assert ("Trained on unknown text: do not compare" in text) == (shown is None)


def test_an_accuracy_on_a_subset_has_its_uncertainty(make_run):
    page = report.write(make_run(settings={"train.hellaswag_limit": 200}, **{"hellaswag/acc_norm": 0.29}))[0]
    assert "200 of 10,042 items, ±0.06" in page.read_text()


@pytest.mark.parametrize("steps", [-1, 0, 1, 2])
def test_a_run_of_few_steps_has_a_report(make_run, steps):
    page = report.write(make_run(steps=steps))[0].read_text()
    assert_valid(page)
    assert ("No measurements yet" in page) == (steps == -1)
    assert "Before and after" not in page or steps > 0


def test_before_and_after_have_the_same_prompt_and_seed(make_run):
    folder = make_run(steps=20)
    with open(folder / "samples.jsonl", "a") as file:
        file.write('{"step": 20, "prompt": "Another", "seed": 1, "text": "Another day"}\n')
    (table,) = summary.before_and_after(records.read(folder))
    assert table.prompt == "Once"
    assert [[sample.heading for _, sample in row] for row in table.rows] == [["before training", "after step 20"]] * 2
    texts = [[sample.text for _, sample in row] for row in table.rows]
    assert texts == [[f"<b>upon</b> a {seed} at {step}" for step in (0, 20)] for seed in (1, 2)]


def test_samples_through_training_are_evenly_spaced(make_run):
    page = text_of(report.write(make_run(steps=100))[0].read_text()).partition("Samples through training")[2]
    shown = [int(step) for step in re.findall(r"after step (\d+)", page)]
    assert "before training" in page
    assert len(shown) == summary.MAX_SAMPLE_STEPS - 1
    assert shown[-1] == 100


def test_several_runs_side_by_side(make_run, tmp_path, capsys):
    folders = [make_run("a"), make_run("b", settings={"train.total_batch_size": 16384, "run.name": "other"})]
    assert cli.main(["report", *map(str, folders), str(folders[0] / ".." / "a")]) == 0  # the first one again
    page = tmp_path / "compare_a_b.html"
    over_time = tmp_path / "compare_a_b_loss_over_time.png"
    saved = "a reaches the final validation loss of b, 8.500, with 2.0 times fewer tokens and in the same training time"
    written = f"{saved}.\nwrote {page}, {tmp_path / 'compare_a_b_loss_curve.png'}, {over_time}\n"
    assert capsys.readouterr().out == written
    html = page.read_text()
    assert_valid(html)
    text = text_of(html)
    differing = text.partition("Settings that differ")[2].partition("Learning")[0].strip()
    assert differing == "● a ■ b train. total_ batch_ size 8192 16384"
    assert "in tokens" in text
    assert "● a, after step 30 <b>upon</b> a 1 at 30 ■ b, after step 30 <b>upon</b> b 1 at 30" in text
    for chart in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert {"var(--run0)", "var(--run1)"} <= set(re.findall(r"var\(--run\d\)", chart))
        assert "var(--run2)" not in chart


def test_samples_of_different_prompts_are_not_compared(make_run):
    folders = [make_run("a"), make_run("b")]
    samples = folders[1] / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"prompt": "Once"', '"prompt": "\\n"'))
    tables = summary.side_by_side([records.read(folder) for folder in folders])
    assert [(table.prompt, {run for row in table.rows for run, _ in row}) for table in tables] == [
        ("Once", {0}),
        ("\n", {1}),
    ]


def test_special_characters_in_names_and_equal_names(make_run, tmp_path):
    odd = '<b>$x^2$ & "quotes" \'n _ 日本 {{ 7 * 7 }}'
    folders = [make_run(f"_{odd}"), make_run("one/x"), make_run("two/x"), make_run(os.fsdecode(b"not UTF-8: \xff"))]
    out = tmp_path / "new" / "all of them.html"
    page, picture, over_time = report.write(*folders, out=out)
    assert (page, picture) == (out, out.with_name("all of them_loss_curve.png"))
    assert over_time == out.with_name("all of them_loss_over_time.png")
    html = page.read_text()
    assert_valid(html)
    assert "<b>$x" not in html
    assert "&lt;b&gt;$x^2$ &amp; &#34;quotes&#34; &#39;n _ 日本 {{ 7 * 7 }}" in html
    assert "one/x" in html
    assert "two/x" in html
    assert "not UTF-8: \ufffd" in html
    assert report.write(*folders[1:3])[0].name == "compare_one-x_two-x.html"
    assert report.write(*[make_run(f"{'long' * 20}{n}") for n in range(3)])[0].name == "compare_3_runs.html"


def test_events_and_warnings_are_listed_up_to_a_limit(make_run):
    folder = make_run(**{"guard/skipped": 0.0})
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 31, "guard/skipped": 1, "train/loss": null}\n{"step": 32, "guard/skipped": 3}\nbroken\n')
    events = [
        {"step": 1200, "time": "2026-11-20T07:10:01Z", "event": "resume", "detail": "from <step>", "ranks": 2},
        {"time": 1795162201.5, "event": {"odd": []}, "step": None},
        {"event": "x" * 5000, "time": [], "step": "y"},
        {"event": "skipped", "why": "a spike", "sequences": list(range(512))},
        {},
        *({"step": n, "event": f"skip{n}"} for n in range(60)),
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + "[]\n")
    html = report.write(folder)[0].read_text()
    assert_valid(html)
    text = text_of(html).partition("Events")[2].partition("Hardware")[0]
    assert "step 1,200 resume from <step>, ranks 2 2026-11-20 07:10:01 UTC" in text
    assert "skipped why a spike, sequences 0, 1, 2, 3, 4, 5 … (512)" in text
    assert "skip59" in text
    assert f"{len(events) - summary.MAX_EVENTS} more between them" in text
    assert "guard/skipped: 3 by step 32, first at step 31" in text
    assert "train/loss was not a finite number at 1 step, first at step 31" in text
    assert "metrics.jsonl: 1 damaged line left out" in text
    assert "events.jsonl: 1 damaged line left out" in text
    assert len(text) < 10_000


def test_benchmarks_of_the_newest_evaluation(make_run):
    folder = make_run()
    (folder / "evaluations").mkdir()
    both = {
        style: {"acc": 0.28, "acc_norm": 0.297, "interval95": [0.2881, 0.306]} for style in ("completion", "harness")
    }
    tasks = {
        "hellaswag": both,
        "lambada_openai": {"acc": 0.3},
        "lm_eval:odd": {"bleu": 1.0},
        "core": {"core": 0.1139, "tasks": {"arc_easy": {"acc": 0.41}}, "total": 91_037, "sha256": {}},
        "damaged": 7,
        "b": {"acc": 1, "interval95": 7},
    }
    (folder / "evaluations" / "step_00000030.json").write_text(json.dumps({"tasks": tasks}))
    text = text_of(report.write(folder)[0].read_text())
    assert "hellaswag, completion 0.2970 (0.2881 to 0.3060) hellaswag, harness" in text
    assert "openai 0.3000" in text
    assert "CORE 0.1139" in text
    assert "bleu" not in text


def test_the_report_of_a_long_run_is_small(make_run):
    long = make_run(steps=1)
    with open(long / "metrics.jsonl", "a") as file:
        for step in range(2, 100_001):
            file.write(f'{{"step": {step}, "train/loss": {4 + step % 7 / 10}, "train/grad_norm": {step % 11}}}\n')
    with open(long / "samples.jsonl", "a") as file:
        file.writelines(f'{{"step": {n}, "prompt": "a", "seed": 1, "text": "{"a" * 20_000}"}}\n' for n in range(2, 99))
    page, _ = report.write(long)
    assert page.stat().st_size < 500_000
    assert "averaged over 500 steps" in page.read_text()


def test_text_that_utf_8_cannot_encode_is_replaced(make_run):
    folder = make_run(steps=1)
    with open(folder / "samples.jsonl", "a") as file:
        file.write('{"step": 9, "prompt": "\\ud800", "seed": 1, "text": "\\ud800 half of a pair, \\u0000 nothing"}\n')
    assert "half of a pair" in report.write(folder)[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["{tmp}"], "{tmp}"),
        (["{tmp}/a", "{tmp}/absent"], "{tmp}/absent"),
        (["{tmp}/a", "--out", "{tmp}"], "--out {tmp}"),
        (["{tmp}/a", "--out", "{tmp}/a/config.yaml/page.html"], "{tmp}/a/config.yaml/"),
        (["{tmp}/a", "--price-per-hour", "nan"], "--price-per-hour: must be a finite number, not nan"),
        (["{tmp}/a", "--price-per-hour", "-1"], "--price-per-hour: must be at least 0, not -1"),
        ([], "runs"),
    ],
)
def test_errors_are_one_line_and_name_the_path_or_option(make_run, tmp_path, capsys, arguments, named):
    make_run("a")
    assert cli.main(["report", *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert named.format(tmp=tmp_path) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a" / "report.html").exists()


@pytest.mark.parametrize("name", ["a/config.yaml", "a/metrics.jsonl", "notes.html", "b_loss_curve.png"])
def test_out_replaces_nothing_that_is_no_report(make_run, tmp_path, capsys, monkeypatch, name):
    folder, precious = make_run("a"), tmp_path / name
    if not precious.exists():
        precious.write_text("<!doctype html><title>Notes</title>")
    before = precious.read_bytes()
    out = tmp_path / "b.html" if precious.suffix == ".png" else precious
    monkeypatch.setattr(report, "_draw_charts", None)  # it is refused before
    assert cli.main(["report", str(folder), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"{precious} exists and is not a" in error
    assert error.count("\n") == 1
    assert precious.read_bytes() == before


def test_out_replaces_a_report_an_empty_file_and_the_picture_of_a_removed_report(make_run, tmp_path):
    folder, page = make_run("a"), tmp_path / "b.html"
    page.touch()
    report.write(folder, out=page)
    first = page.read_text()
    report.write(make_run("c"), out=page)
    assert page.read_text() != first
    page.unlink()
    _, picture = report.write(folder, out=page)
    assert picture == tmp_path / "b_loss_curve.png"


def test_the_command(make_run, capsys):
    folder = make_run()
    assert cli.main(["report", str(folder), "--price-per-hour", "3600"]) == 0
    assert "at 3600 per hour" in (folder / "report.html").read_text()
    assert capsys.readouterr().out == f"wrote {folder / 'report.html'}, {folder / 'loss_curve.png'}\n"


def test_a_glob_over_all_runs_leaves_out_pages_and_folders_without_a_run(make_run, caplog):
    caplog.set_level("INFO")
    folders = [make_run("a"), make_run("b")]
    runs = folders[0].parent
    refused = runs / "refused"
    refused.mkdir()
    (refused / ".lock").write_text("")
    page = report.write(*folders)[0]
    everything = sorted(runs.iterdir())
    assert {page, refused} < set(everything)
    assert report.write(*everything)[0] == page
    assert page.name in caplog.text
    assert "refused" in caplog.text
    (refused / "notes.txt").write_text("")
    for paths in ([page], [page, refused], [*folders, refused]):
        with pytest.raises(GPT2LabError, match="is not a run directory"):
            report.write(*paths)


def test_the_estimate_is_beside_what_was_measured(make_run):
    folder = make_run()
    file = folder / "environment.json"
    facts = json.loads(file.read_text())
    file.write_text(
        json.dumps(facts | {"estimate": {"tokens_per_second": {"estimate": 9000.0}, "hours": {"estimate": 2}}})
    )
    shown = summary.figures(records.read(folder))
    assert (shown["tokens/s"].value, shown["estimate"].value) == ("8,192", "9,000 tokens/s")
    assert shown["estimate"].note.startswith("2 h 0 min")
    for damaged in (3, {"hours": 1}, {"tokens_per_second": {"estimate": None}, "hours": {"estimate": 2}}):
        file.write_text(json.dumps(facts | {"estimate": damaged}))
        assert "estimate" not in summary.figures(records.read(folder))

"""The page of a run or of several: from their files alone, whatever is there, needing nothing else."""

import json
import os
import re
from html import unescape
from html.parser import HTMLParser

import pytest

from gpt2lab import cli
from gpt2lab.tracking import contents, records, report


def text_of(page):
    """The words a reader sees, without those of the charts and the style."""
    return unescape(" ".join(re.sub(r"<(style|svg).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL).split()))


class Tags(HTMLParser):
    """Refuses tags that close in another order than they opened."""

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


def assert_whole(page):
    tags = Tags()
    tags.feed(page.partition("<!doctype html>")[2])
    assert not tags.open
    assert page.endswith("</html>")


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(make_run):
    folder = make_run()
    page, picture = report.write(folder)
    html = page.read_text()
    assert_whole(html)
    assert not re.search(r'(src|href)="(?!#)', html.replace('xlink:href="#', ""))
    assert not re.search(r"<script|@import|url\((?!#)", html)
    assert "AMD" not in html
    assert "Some &lt;CPU&gt;" in html
    assert "&lt;b&gt;upon&lt;/b&gt; a 1 at 30" in html
    assert (page, picture) == (folder / "report.html", folder / "loss_curve.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_numbers_at_the_top(make_run):
    folder = make_run(**{"hellaswag/acc_norm": 0.29, "perf/mfu": 0.4}, settings={"train.max_steps": 60})
    shown = contents.figures(records.read(folder), price_per_hour=360.0)
    assert shown["parameters"] == ("124M", "124,439,808")
    assert shown["validation loss"] == ("8.500", "from 10.00")
    assert (shown["steps"], shown["tokens"]) == (("30", "of 60"), ("246K", "8,192 a step"))
    assert shown["training time"] == ("30 s", "")
    assert shown["evaluation time"] == ("8 s", "21% of all")
    assert shown["cost"] == ("3.80", "at 360 an hour")  # of 38 s: a machine costs as much while it evaluates
    assert (shown["MFU"].value, shown["HellaSwag"].value, shown["tokens/s"].value) == ("40.0%", "0.2900", "8,192")
    assert "cost" not in contents.figures(records.read(folder))


def test_published_lines_stand_only_beside_what_they_compare_with(make_run):
    on_fineweb, elsewhere = make_run("a", settings={"data.source": "fineweb-edu"}), make_run("b")
    assert "GPT-2 124M: 3.29<" in report.write(on_fineweb)[0].read_text()
    for folders in ([elsewhere], [on_fineweb, elsewhere]):
        page = report.write(*folders)[0].read_text()
        assert "GPT-2 124M: 3.29<" not in page
        assert "not compare" in page
    page, *pictures = report.write(make_run("c", **{"hellaswag/acc_norm": 0.29}))
    html = page.read_text()
    for line in ("GPT-2 124M: 0.2955", "GPT-3 Small 125M: 0.337", "chance: 0.25"):
        assert line in html
    assert [picture.name for picture in pictures] == ["loss_curve.png", "hellaswag_curve.png"]


def test_an_accuracy_over_some_items_says_how_sure_it_is(make_run):
    page = report.write(make_run(settings={"train.hellaswag_limit": 200}, **{"hellaswag/acc_norm": 0.29}))[0]
    assert "Over 200 of the 10,042 items, so give or take 0.06" in page.read_text()


@pytest.mark.parametrize("steps", [-1, 0, 1, 2])
def test_a_run_that_has_hardly_begun_has_a_page_too(make_run, steps):
    page = report.write(make_run(steps=steps))[0].read_text()
    assert_whole(page)
    assert ("Nothing was measured yet" in page) == (steps == -1)
    assert "Before and after" not in page or steps > 0


def test_before_and_after_are_of_the_same_prompt_and_seed(make_run):
    folder = make_run(steps=20)
    with open(folder / "samples.jsonl", "a") as file:
        file.write('{"step": 20, "prompt": "Another", "seed": 1, "text": "Another day"}\n')
    (panel,) = contents.before_and_after(records.read(folder))
    assert panel.prompt == "Once"
    assert [[card.heading for card in row] for row in panel.rows] == [["before training", "after step 20"]] * 2
    texts = [[card.text for card in row] for row in panel.rows]
    assert texts == [[f"<b>upon</b> a {seed} at {step}" for step in (0, 20)] for seed in (1, 2)]


def test_samples_are_spread_over_the_run(make_run):
    page = text_of(report.write(make_run(steps=100))[0].read_text()).partition("Samples through training")[2]
    shown = [int(step) for step in re.findall(r"after step (\d+)", page)]
    assert "before training" in page
    assert len(shown) == contents.MAX_SAMPLE_STEPS - 1
    assert shown[-1] == 100


def test_several_runs_beside_each_other(make_run, tmp_path, capsys):
    folders = [make_run("a"), make_run("b", settings={"train.total_batch_size": 16384, "run.name": "other"})]
    assert cli.main(["report", *map(str, folders), str(folders[0] / ".." / "a")]) == 0  # the first one again
    page = tmp_path / "compare_a_b.html"
    assert capsys.readouterr().out == f"wrote {page}, {tmp_path / 'compare_a_b_loss_curve.png'}\n"
    html = page.read_text()
    assert_whole(html)
    text = text_of(html)
    differing = text.partition("Settings that differ")[2].partition("Learning")[0].strip()
    assert differing == "● a ■ b train. total_ batch_ size 8192 16384"
    assert "Over tokens, as the runs' steps differ in size." in text
    assert "● a, after step 30 <b>upon</b> a 1 at 30 ■ b, after step 30 <b>upon</b> b 1 at 30" in text
    for chart in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert {"var(--run0)", "var(--run1)"} <= set(re.findall(r"var\(--run\d\)", chart))
        assert "var(--run2)" not in chart


def test_samples_of_different_prompts_are_not_beside_each_other(make_run):
    folders = [make_run("a"), make_run("b")]
    samples = folders[1] / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"prompt": "Once"', '"prompt": "\\n"'))
    panels = contents.side_by_side([records.read(folder) for folder in folders])
    assert [(panel.prompt, {card.run for row in panel.rows for card in row}) for panel in panels] == [
        ("Once", {0}),
        ("\n", {1}),
    ]


def test_names_with_odd_letters_and_runs_of_the_same_name(make_run, tmp_path):
    odd = '<b>$x^2$ & "quotes" \'n _ 日本 {{ 7 * 7 }}'
    folders = [make_run(f"_{odd}"), make_run("one/x"), make_run("two/x"), make_run(os.fsdecode(b"not UTF-8: \xff"))]
    out = tmp_path / "new" / "all of them.html"
    page, picture = report.write(*folders, out=out)
    assert (page, picture) == (out, out.with_name("all of them_loss_curve.png"))
    html = page.read_text()
    assert_whole(html)
    assert "<b>$x" not in html
    assert "&lt;b&gt;$x^2$ &amp; &#34;quotes&#34; &#39;n _ 日本 {{ 7 * 7 }}" in html
    assert "one/x" in html
    assert "two/x" in html
    assert "not UTF-8: \ufffd" in html
    assert report.write(*folders[1:3])[0].name == "compare_one-x_two-x.html"
    assert report.write(*[make_run(f"{'long' * 20}{n}") for n in range(3)])[0].name == "compare_3_runs.html"


def test_what_happened_is_told_in_full_or_counted(make_run):
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
    assert_whole(html)
    text = text_of(html).partition("What happened")[2].partition("Hardware")[0]
    assert "step 1,200 resume from <step>, ranks 2 2026-11-20 07:10:01 UTC" in text
    assert "2026-11-20 08:10:01 UTC" in text
    assert "skipped why a spike, sequences 0, 1, 2, 3, 4, 5 … (512)" in text
    assert "skip59" in text
    assert f"{len(events) - contents.MAX_EVENTS} more between them" in text
    assert "guard/skipped: 3 by step 32, first at step 31" in text
    assert "train/loss was not a finite number at 1 step, first at step 31" in text
    assert "metrics.jsonl: 1 damaged line left out" in text
    assert "events.jsonl: 1 damaged line left out" in text
    assert len(text) < 10_000


def test_benchmarks_are_shown_as_evaluate_left_them(make_run):
    folder = make_run()
    (folder / "evaluations").mkdir()
    both = {
        style: {"acc": 0.28, "acc_norm": 0.297, "interval95": [0.2881, 0.306]} for style in ("completion", "harness")
    }
    tasks = {
        "hellaswag": both,
        "lambada_openai": {"acc": 0.3},
        "lm_eval:odd": {"bleu": 1.0},
        "damaged": 7,
        "b": {"acc": 1, "interval95": 7},
    }
    (folder / "evaluations" / "step_00000030.json").write_text(json.dumps({"tasks": tasks}))
    text = text_of(report.write(folder)[0].read_text())
    assert "hellaswag, completion 0.2970 (0.2881 to 0.3060) hellaswag, harness" in text
    assert "openai 0.3000" in text
    assert "bleu" not in text


def test_a_long_run_makes_a_small_page(make_run):
    long = make_run(steps=1)
    with open(long / "metrics.jsonl", "a") as file:
        for step in range(2, 100_001):
            file.write(f'{{"step": {step}, "train/loss": {4 + step % 7 / 10}, "train/grad_norm": {step % 11}}}\n')
    with open(long / "samples.jsonl", "a") as file:
        file.writelines(f'{{"step": {n}, "prompt": "a", "seed": 1, "text": "{"a" * 20_000}"}}\n' for n in range(2, 99))
    page, _ = report.write(long)
    assert page.stat().st_size < 500_000
    assert "each point the mean of up to 500 steps" in page.read_text()


def test_text_that_is_no_text_does_not_stop_the_page(make_run):
    folder = make_run(steps=1)
    with open(folder / "samples.jsonl", "a") as file:
        file.write('{"step": 9, "prompt": "\\ud800", "seed": 1, "text": "\\ud800 half of a pair, \\u0000 nothing"}\n')
    assert "half of a pair" in report.write(folder)[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}"], "{tmp} is not a run directory: it has no config.yaml"),
        (["{tmp}/a", "{tmp}/absent"], "absent is not a run directory"),
        (["{tmp}/a", "--out", "{tmp}"], "--out {tmp} is a folder; name a file in it, such as {tmp}/report.html"),
        (["{tmp}/a", "--out", "{tmp}/a/config.yaml/page.html"], "cannot write {tmp}/a/config.yaml/page.html"),
        (["{tmp}/a", "--price-per-hour", "nan"], "'nan' is not a price such as 2.50"),
        (["{tmp}/a", "--price-per-hour", "-1"], "'-1' is not a price"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(make_run, tmp_path, capsys, arguments, said):
    make_run("a")
    assert cli.main(["report", *(one.format(tmp=tmp_path) for one in arguments)]) == 2
    error = capsys.readouterr().err
    assert said.format(tmp=tmp_path) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a" / "report.html").exists()


def test_the_verb(make_run, capsys):
    folder = make_run()
    assert cli.main(["report", str(folder), "--price-per-hour", "3600"]) == 0
    assert "at 3600 an hour" in (folder / "report.html").read_text()
    assert capsys.readouterr().out == f"wrote {folder / 'report.html'}, {folder / 'loss_curve.png'}\n"

"""Turns, medians and the lines that benchmark scripts print."""

import pytest
import torch

from gpt2lab.bench import measure
from gpt2lab.bench.measure import Check, Timing


def test_each_round_calls_every_contender_once_and_begins_with_another_one(phases):
    calls = []
    contenders = {name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}
    results = measure.take_turns(contenders, 3)
    assert calls == list("abcbcacab")
    assert results == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}
    (phase,) = phases.begun
    assert (phase.completed, phase.total, phase.note) == (9, 9, "round 3 of 3, b")


def test_rates_are_by_the_median():
    timing = Timing([4.0, 1.0, 2.0])
    assert timing.median == 2.0
    assert timing.rate(10) == 5.0
    assert timing.rate_range(8) == "2.0-8.0"


def test_time_turns_measures_every_round():
    timings = measure.time_turns({"a": lambda: None, "b": lambda: None}, 3, torch.device("cpu"))
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]
    assert all(second >= 0 for timing in timings.values() for second in timing.seconds)


def test_parts_print_a_line_per_check_with_its_verdict(capsys):
    parts = {
        "speed": lambda: [Check("a", "5x", True), Check("b", "1x", False), Check("c", "7")],
        "other": lambda: pytest.fail("not selected"),
    }
    measure.run_parts(parts, ["speed"])
    assert [line[:4].strip() for line in capsys.readouterr().out.splitlines()] == ["ok", "MISS", ""]


def test_the_parser_takes_the_names_of_parts(capsys):
    parser = measure.argument_parser("", ["speed", "memory"], rounds=5)
    assert parser.parse_args([]).only == ["speed", "memory"]
    assert parser.parse_args(["--only", "memory", "--rounds", "2"]).only == ["memory"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--only", "sped"])
    assert "sped" in capsys.readouterr().err


def test_a_table_in_markdown():
    assert measure.markdown_table(["a", "b"], [[1, "x"]]).splitlines() == ["| a | b |", "| --- | --- |", "| 1 | x |"]


def test_the_environment_names_commit_torch_and_hardware():
    values = measure.environment(torch.device("cpu"))
    assert {"commit", "torch", "device", "cpu", "cores"} <= values.keys()
    assert "commit unknown; cores 2" in measure.format_environment({"commit": None, "cores": 2})

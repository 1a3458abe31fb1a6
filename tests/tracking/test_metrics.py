"""metrics.jsonl, the record of a run."""

import json

from gpt2lab.tracking.metrics import JsonLines, describe_missing, set_aside_jsonl, truncate_jsonl


def test_truncation_removes_later_steps_and_an_incomplete_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path)
    for step in range(5):
        sink.log(step, {"train/loss": 1.0})
    sink.close()
    with open(path, "a") as file:
        file.write('{"step": 5, "train')
    truncate_jsonl(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]
    truncate_jsonl(path, -1)
    assert path.read_text() == ""
    truncate_jsonl(tmp_path / "absent.jsonl", 2)
    assert not (tmp_path / "absent.jsonl").exists()


def test_steps_that_a_record_lacks_are_named(tmp_path):
    def missing(*steps: float, last: int = 10) -> str:
        return describe_missing(tmp_path / "m", steps, last).removeprefix(f"{tmp_path / 'm'} has no records of ")

    assert missing(*range(11)) == missing(*range(1, 11)) == missing(last=0) == ""
    assert missing() == "steps 1 to 10: curves begin at step 11"
    assert missing(0, 11) == "steps 1 to 10: curves begin at step 11"
    assert missing(*range(2, 12)) == "step 1: curves begin at step 2"
    assert missing(1, 2, 2.0, 4) == "steps 3, 5 to 10: curves lack them"
    assert missing(*range(0, 11, 2)) == "steps 1, 3, 5 and 2 other gaps: curves begin at step 2"


def test_lines_that_are_set_aside_are_after_those_of_earlier_times(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for content in ('{"step": 1}\n{"st', "", '{"step": 3}\n'):
        path.write_text(content)
        assert set_aside_jsonl(path) == tmp_path / "metrics.jsonl.bak"
        assert not path.exists()
    assert (tmp_path / "metrics.jsonl.bak").read_text() == '{"step": 1}\n{"st\n{"step": 3}\n'

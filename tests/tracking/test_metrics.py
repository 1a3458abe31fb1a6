"""metrics.jsonl, the record of a run."""

import json

from gpt2lab.tracking.metrics import JsonLines, set_aside_jsonl, truncate_jsonl


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


def test_lines_that_are_set_aside_are_after_those_of_earlier_times(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for content in ('{"step": 1}\n{"st', "", '{"step": 3}\n'):
        path.write_text(content)
        assert set_aside_jsonl(path) == tmp_path / "metrics.jsonl.bak"
        assert not path.exists()
    assert (tmp_path / "metrics.jsonl.bak").read_text() == '{"step": 1}\n{"st\n{"step": 3}\n'

"""HellaSwag: both schemas, both conventions compared with values computed by hand, and invalid files."""

import json

import numpy as np
import pytest

from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation import hellaswag
from gpt2lab.evaluation.scoring import Scores
from tests.evaluation.conftest import official_items, write_jsonl

WIKIHOW = {
    "activity_label": "Personal Care",
    "ctx_a": "[header] How to bathe [title] Fill a tub. [step] Use warm water.",
    "ctx_b": "",
    "ctx": "[header] How to bathe [title] Fill a tub. [step] Use warm water.",
    "endings": ["[title] Get in. [step] Slowly.", "Get  out.", "Sing.", "Café."],
    "label": 0,
}
ACTIVITY = {
    "activity_label": "Roof removal",
    "ctx_a": "A man is on a roof.",
    "ctx_b": "the MAN",
    "ctx": "A man is on a roof. the MAN",
    "endings": ["sings.", "falls.", "sits.", "is tearing tiles off."],
    "label": "3",
}


def read(tmp_path, *items):
    return hellaswag.read(write_jsonl(tmp_path / "hellaswag.jsonl", list(items)))


def test_completion_questions(tmp_path):
    wikihow, activity = map(hellaswag.completion, read(tmp_path, WIKIHOW, ACTIVITY).items)
    assert wikihow.contexts == (WIKIHOW["ctx"],)
    assert wikihow.choices[0] == " [title] Get in. [step] Slowly."
    assert activity.contexts == ("A man is on a roof. the MAN",)
    assert activity.choices == (" sings.", " falls.", " sits.", " is tearing tiles off.")
    assert activity.gold == 3


def test_harness_questions_have_the_label_and_no_markup(tmp_path):
    wikihow, activity = map(hellaswag.harness, read(tmp_path, WIKIHOW, ACTIVITY).items)
    assert wikihow.contexts == ("Personal Care: How to bathe. Fill a tub. Use warm water.",)
    assert wikihow.choices == (
        "  Get in. Slowly.",
        " Get out.",
        " Sing.",
        " Café.",
    )  # the double space is what the harness produces
    assert activity.contexts == ("Roof removal: A man is on a roof. The man",)


def test_both_schemas_give_the_same_questions(tmp_path):
    mirrored = {key: value for key, value in ACTIVITY.items() if not key.startswith("ctx_")} | {"source_id": None}
    official, mirror = read(tmp_path, ACTIVITY), read(tmp_path, mirrored)
    assert (official.schema, mirror.schema) == ("official", "mirror")
    assert "10,042" in mirror.describe()  # this is not the complete set
    for style in (hellaswag.completion, hellaswag.harness):
        assert style(official.items[0]) == style(mirror.items[0])


@pytest.mark.parametrize(
    ("ctx", "parts"),
    [
        ("A man sits. he", ("A man sits.", "he")),
        ("A man sits. He sings.", ("A man sits. He sings.", "")),
        ('"Go!" she says. the dog, then', ('"Go!" she says.', "the dog, then")),
        ("no sentence ends here", ("no sentence ends here", "")),
        ("How to (quickly) do it. Do it.", ("How to (quickly) do it. Do it.", "")),
    ],
)
def test_splitting_an_unfinished_last_sentence(ctx, parts):
    assert hellaswag.split_context(ctx) == parts


def test_accuracies_of_both_conventions(tmp_path, tokenizer):
    task = hellaswag.Evaluation(tokenizer, read(tmp_path, WIKIHOW, ACTIVITY))
    sizes = [len(request.continuation) for request in task.requests]
    assert len(sizes) == 16
    # Completion: item 0 has sums 40 8 9 9, item 1 8 4 4 5. Harness: item 0 30 8 5 5.5, item 1 2 1 2 1.5.
    losses = np.array([40, 8, 9, 9, 8, 4, 4, 5, 30, 8, 5, 5.5, 2, 1, 2, 1.5])
    none = np.zeros(16, dtype=bool)
    figures = task.as_json(Scores(losses, np.array(sizes), none, none))
    completion, harness = figures["completion"], figures["harness"]
    assert completion["predictions"] == [1, 1]
    means = (losses[:8] / sizes[:8]).reshape(2, 4)
    assert completion["predictions_norm"] == means.argmin(axis=1).tolist()
    assert harness["predictions"] == [2, 1]
    characters = np.array([16, 8, 5, 5, 6, 6, 5, 21])
    octets = characters + np.array([0, 0, 0, 1, 0, 0, 0, 0])  # the é of Café has two bytes
    assert harness["predictions_norm"] == (losses[8:] / characters).reshape(2, 4).argmin(axis=1).tolist() == [1, 3]
    assert harness["predictions_bytes"] == (losses[8:] / octets).reshape(2, 4).argmin(axis=1).tolist() == [3, 3]
    assert (harness["correct_norm"], harness["acc_norm"], harness["total"]) == (1, 0.5, 2)


def test_the_result_line():
    figures = {
        "completion": {"correct_norm": 2982, "total": 10042, "acc_norm": 2982 / 10042, "interval95": [0.2881, 0.306]}
    }
    assert hellaswag.result_line(figures) == "HellaSwag accuracy: 2982/10042=0.2970 (95% interval 0.2881 to 0.3060)"


def without(*fields):
    return {key: value for key, value in ACTIVITY.items() if key not in fields}


BAD_LINES = {  # the line, and the field that the message must name
    "not JSON": ("{", ""),
    "not UTF-8": (b"\xff{}", ""),
    "not an object": ("[1]", ""),
    "no endings": (without("endings"), "endings"),
    "no label": (without("label"), "label"),
    "no ctx_b": (without("ctx_b"), "ctx_b"),
    "three endings": (ACTIVITY | {"endings": ["a", "b", "c"]}, "endings"),
    "empty ending": (ACTIVITY | {"endings": ["a", "b", " ", "d"]}, "endings: 2"),
    "a number for an ending": (ACTIVITY | {"endings": ["a", "b", 3, "d"]}, "endings: 2"),
    "label 4": (ACTIVITY | {"label": 4}, "label"),
    "label -1": (ACTIVITY | {"label": -1}, "label"),
    "label of the test set": (ACTIVITY | {"label": ""}, "label"),
    "label true": (ACTIVITY | {"label": True}, "label"),
    "empty context": (ACTIVITY | {"ctx": ""}, "ctx"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_the_error_names_file_line_and_field(tmp_path, case):
    bad, field = BAD_LINES[case]
    line = bad if isinstance(bad, bytes) else (bad if isinstance(bad, str) else json.dumps(bad)).encode()
    path = tmp_path / "bad.jsonl"
    path.write_bytes(json.dumps(ACTIVITY).encode() + b"\n" + line + b"\n")
    with pytest.raises(GPT2LabError) as error:
        hellaswag.read(path)
    assert f"{path}: line 2: {field}" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_empty_and_mixed_files_are_errors(tmp_path):
    with pytest.raises(GPT2LabError, match=r"nowhere\.jsonl"):
        hellaswag.find(file=tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(GPT2LabError, match=r"empty\.jsonl"):
        hellaswag.read(tmp_path / "empty.jsonl")
    with pytest.raises(GPT2LabError, match="ctx_a and ctx_b"):
        read(tmp_path, ACTIVITY, without("ctx_a", "ctx_b"))


def test_without_a_network_the_error_names_the_mirror_option(tmp_path, monkeypatch):
    monkeypatch.setattr(hellaswag, "URL", "http://127.0.0.1:9/hellaswag_val.jsonl")
    with pytest.raises(GPT2LabError, match=r"hellaswag_val\.jsonl.*--mirror"):
        hellaswag.find(mirror=tmp_path / "empty")


def test_an_invalid_download_is_removed_from_the_cache(tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text("<html>please log in</html>")
    monkeypatch.setattr(hellaswag, "URL", (tmp_path / "page.html").as_uri())
    with pytest.raises(GPT2LabError, match="line 1"):
        hellaswag.find()
    assert not (tmp_path / "cache" / hellaswag.NAME).exists()


def test_a_mirror_must_have_the_complete_set(tmp_path):
    write_jsonl(tmp_path / hellaswag.NAME, official_items(20))
    with pytest.raises(GPT2LabError, match="20 items"):
        hellaswag.find(mirror=tmp_path)


def test_the_published_file(shared_data):
    data = hellaswag.find(mirror=shared_data)
    assert (data.schema, len(data.items)) == ("mirror", 10_042)
    assert data.items[0].ctx_b == "he"
    unfinished = sum(bool(item.ctx_b) for item in data.items)
    assert 3000 < unfinished < 3600  # ActivityNet's share of the set

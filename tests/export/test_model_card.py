"""The model card has the recorded results of the exported step, and no others."""

import json
import shutil

import pytest
from ruamel.yaml import YAML

from gpt2lab.errors import GPT2LabError
from gpt2lab.export.run import export
from gpt2lab.training import run as training_run
from tests.runs import records, settings

TOKENS_PER_STEP = 128
SCORES = {"acc": 0.2859, "acc_norm": 0.2955, "interval95": [0.2866, 0.3045], "total": 10042}


@pytest.fixture(scope="module")
def trained(token_folder, hellaswag_mirror, tmp_path_factory):
    """A real run of 6 steps, evaluated at 0, 3 and 6, with a checkpoint every two. Do not write to it."""
    out = tmp_path_factory.mktemp("runs")
    training_run.run(settings(token_folder, out, model__vocab_size=50304, train__sample_every=0))
    return out / "tiny"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "runs" / "tiny")


def card(name, tmp_path) -> tuple[dict, dict[str, str], str]:
    """Front matter, rows of the tables, and the text."""
    text = (export(name, tmp_path / "out", "bf16") / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body.splitlines() if " | " in line]
    return YAML(typ="safe").load(front), {row[0]: row[1] for row in rows}, text


def evaluated(run, step: int, **more) -> None:
    tasks = {"hellaswag": {"completion": SCORES, "harness": SCORES | {"acc_norm": 0.3114}}}
    result = {"step": step, "tasks": tasks | more.pop("tasks", {}), "val_loss": None, "bits_per_byte": None, **more}
    (run / "evaluations").mkdir(exist_ok=True)
    (run / "evaluations" / f"step_{step:08d}.json").write_text(json.dumps(result))


def test_results_measured_in_training(run, tmp_path):
    front, rows, text = card(run, tmp_path)
    last, environment = records(run)[-1], json.loads((run / "environment.json").read_text())
    assert rows["validation loss, nats per token"] == f"{last['val/loss']:.4f}"
    assert rows["validation, bits per byte"] == f"{last['val/bits_per_byte']:.4f}"
    assert rows["tokens"].startswith(f"{6 * TOKENS_PER_STEP:,} (0.03 epochs")
    assert rows["steps"] == "6 of 128 tokens; 6 were planned"
    assert environment["hardware"]["cpu"] in rows["hardware, of the last start"]
    if environment["commit"]:
        assert environment["commit"] in rows["software"]
    assert "measured at step 6" in text.lower()
    assert "max_new_tokens=8," in text  # half of the context window, so that the prompt fits as well
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gpt2", "gpt2lab"],
    }


def test_missing_results_are_marked_as_not_measured(run, tmp_path):
    _, rows, text = card(run / "checkpoints" / "step_00000004", tmp_path)
    assert rows["validation loss, nats per token"] == "not measured"  # it was at steps 3 and 6
    assert rows["HellaSwag, completion style"] == rows["HellaSwag, harness style"] == "not measured"
    assert "bits per byte" not in text
    assert rows["data"].startswith("not recorded")  # these shards have no manifest
    assert rows["tokens"].startswith("512 ")


def test_results_of_an_evaluation_of_the_same_step(run, tmp_path):
    tasks = {"piqa": SCORES, "lm_eval:copa": {"acc": 0.61}, "core": {"core": 0.1139, "tasks": {}, "total": 91_037}}
    evaluated(run, 6, val_loss=3.05, bits_per_byte=1.01, tasks=tasks)
    evaluated(run, 4, val_loss=1.11)
    front, rows, _ = card(run, tmp_path)
    assert rows["validation loss, nats per token"] == "3.0500"
    expected = "acc 0.2859, acc_norm 0.2955, 95% interval 0.2866 to 0.3045, 10,042 items"
    assert rows["HellaSwag, completion style"] == rows["`piqa`"] == expected
    assert "acc_norm 0.3114" in rows["HellaSwag, harness style"]
    assert rows["`lm_eval:copa`"] == "acc 0.6100"
    assert rows["`core`"] == "core 0.1139, 91,037 items"
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"]["name"] == "HellaSwag"
    assert result["metrics"][0]["value"] == 0.2955


def test_a_subset_of_hellaswag_is_not_in_the_front_matter(run, tmp_path):
    evaluated(run, 6, tasks={"hellaswag": {"completion": SCORES | {"total": 24}, "harness": SCORES}})
    front, rows, _ = card(run, tmp_path)
    assert rows["HellaSwag, completion style"].endswith("24 items")
    assert "model-index" not in front


def test_hellaswag_measured_in_training(run, tmp_path):
    lines = records(run)
    lines[-1] |= {"hellaswag/acc_norm": 0.2701, "hellaswag/harness_acc_norm": 0.2802}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    front, rows, _ = card(run, tmp_path)
    assert rows["HellaSwag, completion style"] == "acc_norm 0.2701"
    assert rows["HellaSwag, harness style"] == "acc_norm 0.2802"
    assert "model-index" not in front  # an evaluation by the verb says how many items there were


def test_a_dataset_of_the_hub_is_in_the_front_matter(run, tmp_path):
    path = run / "environment.json"
    values = json.loads(path.read_text())
    values["data"]["source"] = "fineweb-edu"
    path.write_text(json.dumps(values))
    front, rows, _ = card(run, tmp_path)
    assert front["datasets"] == ["HuggingFaceFW/fineweb-edu"]
    assert front["language"] == "en"
    assert rows["data"].startswith("fineweb-edu")


def test_the_card_has_no_local_paths(run, tmp_path):
    _, _, text = card(run, tmp_path)
    assert str(tmp_path) not in text
    assert json.loads((run / "environment.json").read_text())["command"] not in text


def test_a_run_without_records(run, tmp_path):
    for name in ("environment.json", "metrics.jsonl"):
        (run / name).unlink()
    _, rows, _ = card(run, tmp_path)
    assert rows["steps"].startswith("6 of 128 tokens")
    assert not {"hardware, of the last start", "software"} & rows.keys()
    (run / "config.yaml").unlink()
    _, rows, text = card(run, tmp_path)
    assert "Nothing is recorded" in text
    assert "steps" not in rows


def test_a_damaged_evaluation_is_an_error(run, tmp_path):
    evaluated(run, 6)
    path = run / "evaluations" / "step_00000006.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(GPT2LabError, match=r"step_00000006\.json"):
        card(run, tmp_path)
    assert not (tmp_path / "out").exists()


def test_special_characters_in_a_name(run, tmp_path):
    special = run.rename(run.parent / """a"b: {c} <d> 'e' #f""")
    evaluated(special, 6)
    front, _, _ = card(special, tmp_path)
    assert front["model-index"][0]["name"] == special.name

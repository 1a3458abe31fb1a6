"""lm-evaluation-harness on a gpt2lab model: its hellaswag task agrees with gpt2lab's harness convention per item."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt2lab import evaluation
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation import harness, hellaswag
from gpt2lab.evaluation import run as evaluation_run
from gpt2lab.evaluation.scoring import score
from gpt2lab.options import EvaluateOptions
from tests.evaluation.conftest import make_model, official_items, write_jsonl

REPOSITORY = Path(__file__).parent.parent.parent
ITEMS = 30


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        yield


@pytest.fixture(scope="module")
def include(tmp_path_factory) -> Path:
    """The harness's hellaswag task with another name and local data."""
    import lm_eval

    folder = tmp_path_factory.mktemp("include")
    file = write_jsonl(folder / "data" / "items.jsonl", official_items(ITEMS))
    source = Path(lm_eval.__file__).parent / "tasks" / "hellaswag"
    shutil.copy(source / "utils.py", folder / "utils.py")
    task = (source / "hellaswag.yaml").read_text()
    for old, new in (
        ("task: hellaswag", "task: hellaswag_here"),
        (
            "dataset_path: Rowan/hellaswag",
            f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    validation: {file}",
        ),
        ("training_split: train\n", ""),
    ):
        assert old in task
        task = task.replace(old, new)
    (folder / "hellaswag_here.yaml").write_text(task)
    return folder


@pytest.mark.slow
def test_both_implementations_of_hellaswag_agree_on_every_item(include, model, tokenizer, alone, fp32):
    from lm_eval import evaluator

    report = evaluator.simple_evaluate(
        model=harness.Adapter(model, tokenizer, dist=alone, precision=fp32),
        tasks=["hellaswag_here"],
        bootstrap_iters=0,
        task_manager=harness._task_manager(str(include)),
    )
    task = hellaswag.Evaluation(tokenizer, hellaswag.read(include / "data" / "items.jsonl"))
    scores = score(model, task.requests, dist=alone, precision=fp32)
    figures = task.as_json(scores)["harness"]
    losses = scores.loss[4 * ITEMS :].reshape(ITEMS, 4)
    samples = sorted(report["samples"]["hellaswag_here"], key=lambda sample: sample["doc_id"])
    gold = [item["label"] for item in official_items(ITEMS)]
    for n, sample in enumerate(samples):
        assert [-loss for (loss, _) in sample["filtered_resps"]] == pytest.approx(losses[n].tolist(), abs=1e-4)
        assert sample["acc"] == (figures["predictions"][n] == gold[n])
        assert sample["acc_norm"] == (figures["predictions_norm"][n] == gold[n])
    assert report["results"]["hellaswag_here"]["acc_norm,none"] == figures["acc_norm"]
    values = harness.run(
        harness.Adapter(model, tokenizer, dist=alone, precision=fp32), ["hellaswag_here"], include=str(include)
    )
    assert values["hellaswag_here"]["acc_norm"] == figures["acc_norm"]


def request(*arguments):
    return SimpleNamespace(args=arguments)


def test_rolling_log_likelihood(model, tokenizer, alone, fp32):
    import torch

    adapter = harness.Adapter(model, tokenizer, dist=alone, precision=fp32)
    text = "the man opens the door and the dog walks under a tree. " * 12  # longer than the window
    ids = tokenizer.encode(text)
    size = model.config.block_size
    expected = 0.0
    with torch.no_grad():
        for start in range(0, len(ids), size):
            window = ids[max(0, min(start, len(ids) - size)) : start + size]
            new = min(size, len(ids) - start)
            before = (
                ids[len(ids) - size - 1] if start + size > len(ids) else (ids[start - 1] if start else tokenizer.eot)
            )
            logits = model(torch.tensor([[before, *window[:-1]]]))[0][0].log_softmax(-1)
            expected += float(logits[torch.arange(len(window)), window][-new:].sum())
    (rolled,) = adapter.loglikelihood_rolling([request(text)])
    assert rolled == pytest.approx(expected, rel=1e-4)


def test_generation_ends_before_a_stop_string(model, tokenizer, alone, fp32):
    adapter = harness.Adapter(model, tokenizer, dist=alone, precision=fp32)
    full = adapter.generate_until([request("the man", {"until": [], "max_gen_toks": 12})])[0]
    assert len(tokenizer.encode(full)) >= 1
    stop = full[5:7]
    cut = adapter.generate_until([request("the man", {"until": [stop], "max_gen_toks": 12})])[0]
    assert cut == full[: full.index(stop)]


def test_generation_uses_the_model_prepared_for_inference(model, tokenizer, alone, fp32, monkeypatch):
    requests = [request("the man", {"max_gen_toks": 8})]
    other = make_model(seed=1)
    expected = harness.Adapter(other, tokenizer, dist=alone, precision=fp32).generate_until(requests)
    monkeypatch.setattr(harness.inference, "optimize_for_inference", lambda *_: other)
    assert harness.Adapter(model, tokenizer, dist=alone, precision=fp32).generate_until(requests) == expected


@pytest.mark.slow
def test_unknown_tasks_and_missing_data_are_errors(include, model, tokenizer, alone, fp32):
    with pytest.raises(GPT2LabError, match=r"helaswag_here.*hellaswag_here"):
        harness.check(["helaswag_here"], str(include))
    harness.check(["hellaswag_here"], str(include))
    adapter = harness.Adapter(model, tokenizer, dist=alone, precision=fp32)
    with pytest.raises(GPT2LabError, match="copa"):
        harness.run(adapter, ["copa"], include=str(include))


def test_a_missing_package_names_the_extra(alone, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "gpt2lab.evaluation.harness")
    monkeypatch.delattr(evaluation, "harness")
    with pytest.raises(GPT2LabError, match=r"lm_eval.*\[eval\]"):
        evaluation_run.evaluate(EvaluateOptions("any", tasks=("lm_eval:copa",)), alone)


@pytest.mark.slow
def test_evaluate_py_does_not_hide_the_package_evaluate(include, tmp_path):
    """In the checkout, `import evaluate` finds evaluate.py first, but lm-eval needs the package of this name."""
    code = (
        "import evaluate, sys; from pathlib import Path;"
        "assert evaluate.load and Path(evaluate.__file__).parent.name == 'evaluate', evaluate;"
        "assert sys.path[0] == '' and Path('evaluate.py').exists()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
    make_model().save_pretrained(tmp_path / "m")
    words = ["--model-checkpoint", str(tmp_path / "m"), "--tasks", "lm_eval:hellaswag_here", "--include", str(include)]
    command = [sys.executable, "evaluate.py", *words, "--json", "--limit", "4", "--precision", "fp32"]
    environment = os.environ | {"GPT2LAB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert 0 <= json.loads(done.stdout)["tasks"]["lm_eval:hellaswag_here"]["acc_norm"] <= 1

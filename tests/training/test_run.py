"""A whole run, small: what it leaves, that it resumes exactly, and what it refuses."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import DirectoryLock
from gpt2lab.training import run as training_run
from gpt2lab.training.trainer import Trainer

REPOSITORY = Path(__file__).parent.parent.parent
STEPS = 6


def settings(token_folder: Path, out_dir: Path, **changes) -> Config:
    """A tiny run of STEPS steps, two micro-steps each, a checkpoint every two. Changes by dotted name, `.` as `__`."""
    values = {
        "run": {"name": "tiny", "out_dir": str(out_dir)},
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "vocab_size": 300},
        "data": {"dir": str(token_folder)},
        "train": {
            "max_steps": STEPS,
            "total_batch_size": 16 * 8,
            "micro_batch_size": 4,
            "eval_every": 3,
            "eval_tokens": 512,
            "sample_every": 3,
            "sample_prompt": "a b",
            "sample_count": 2,
            "sample_tokens": 4,
        },
        "optimizer": {"max_lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 2},
        "checkpoint": {"every": 2, "keep_last": 10},
        "system": {"device": "cpu", "precision": "fp32"},
    }
    for name, value in changes.items():
        section, key = name.split("__")
        values.setdefault(section, {})[key] = value
    return Config.model_validate(values)


def records(run: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def learned(run: Path) -> dict[int, dict[str, float]]:
    """The metrics that do not depend on the clock, by step; each step once."""
    lines = records(run)
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: {k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines}


def tensors(run: Path, step: int = STEPS) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step_{step:08d}"
    state = json.loads((folder / "state.json").read_text())
    return {
        "weights": (folder / "model.safetensors").read_bytes(),
        "optimizer": (folder / "optimizer.safetensors").read_bytes(),
        "rng": json.dumps(state["rng"]).encode(),
    }


@pytest.fixture(scope="module")
def straight(token_folder, tmp_path_factory) -> Path:
    """The run that nobody interrupted."""
    out = tmp_path_factory.mktemp("straight")
    training_run.run(settings(token_folder, out))
    return out / "tiny"


def test_a_run_leaves_what_the_plan_says(straight):
    assert {file.name for file in straight.iterdir()} == {
        ".lock",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "samples.jsonl",
        "loss_curve.png",
        "report.html",
        "checkpoints",
    }
    assert sorted(learned(straight)) == list(range(STEPS + 1))
    assert [step for step, line in learned(straight).items() if "val/loss" in line] == [0, 3, 6]
    assert {"train/loss", "train/lr", "train/grad_norm"} <= learned(straight)[1].keys()
    assert {"perf/tokens_per_second", "perf/step_ms", "perf/data_ms", "perf/peak_memory_gib"} <= records(straight)[
        1
    ].keys()
    assert [(one["step"], one["seed"]) for one in records(straight, "samples.jsonl")] == [
        (step, seed) for step in (0, 3, 6) for seed in (1337, 1338)
    ]
    assert all(one["text"].startswith("a b") for one in records(straight, "samples.jsonl"))
    assert (straight / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    environment = json.loads((straight / "environment.json").read_text())
    assert environment["versions"]["torch"]
    assert environment["hardware"]["cores"] >= 1
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert environment["commit"].removesuffix("-dirty") == head.stdout.strip()


def test_it_learns_and_starts_at_chance(straight):
    lines = learned(straight)
    assert lines[0]["val/loss"] == pytest.approx(np.log(300), abs=0.1)
    assert lines[STEPS]["val/loss"] < lines[0]["val/loss"] - 0.1


def test_a_checkpoint_opens_in_transformers_as_it_lies(straight):
    import torch
    import transformers

    from gpt2lab import GPT2

    folder = straight / "checkpoints" / f"step_{STEPS:08d}"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    idx = torch.randint(0, 300, (2, 16))
    with torch.no_grad():
        difference = theirs(idx).logits - GPT2.from_pretrained(folder)(idx)[0]
    assert difference.abs().max() < 1e-4


class Interruption(Exception):
    """Stands in for whatever ends a process between two steps."""


@contextlib.contextmanager
def interrupted_at(kill_at: int, monkeypatch: pytest.MonkeyPatch):
    """Whatever trains in here must come to step `kill_at` or beyond, and ends there."""
    train_step = Trainer._train_step

    def interrupted(self, step, batches):
        if step >= kill_at:
            raise Interruption
        return train_step(self, step, batches)

    with monkeypatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(Trainer, "_train_step", interrupted)
        yield


@pytest.mark.parametrize("kill_at", range(1, STEPS + 1))
def test_interrupted_at_any_step_and_resumed_is_uninterrupted(token_folder, tmp_path, straight, monkeypatch, kill_at):
    with interrupted_at(kill_at, monkeypatch):
        training_run.run(settings(token_folder, tmp_path))
    training_run.run(settings(token_folder, tmp_path))
    assert learned(tmp_path / "tiny") == learned(straight)
    assert tensors(tmp_path / "tiny") == tensors(straight)
    assert records(tmp_path / "tiny", "samples.jsonl") == records(straight, "samples.jsonl")


def command(config: Config, path: Path) -> list[str]:
    path.write_text(config.to_yaml())
    return [sys.executable, "-m", "gpt2lab", "train", "--config", str(path)]


def test_killed_process_resumed_by_the_same_command(token_folder, tmp_path):
    steps = 60
    changes = {"train__max_steps": steps, "checkpoint__every": 5, "train__sample_every": 0}
    reference = settings(token_folder, tmp_path / "reference", **changes)
    training_run.run(reference)
    killed = command(settings(token_folder, tmp_path / "killed", **changes), tmp_path / "killed.yaml")
    process = subprocess.Popen(killed, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "killed" / "tiny" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 20):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert metrics.read_bytes().count(b"\n") < steps
    with open(metrics, "a") as file:
        file.write('{"step": 21, "train/lo')  # a line cut off by the kill
    subprocess.run(killed, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    assert learned(tmp_path / "killed" / "tiny") == learned(tmp_path / "reference" / "tiny")
    assert tensors(tmp_path / "killed" / "tiny", steps) == tensors(tmp_path / "reference" / "tiny", steps)


def test_evaluation_and_samples_leave_the_weights_alone(token_folder, tmp_path, straight):
    training_run.run(settings(token_folder, tmp_path, train__eval_every=0, train__sample_every=0))
    assert tensors(tmp_path / "tiny") == tensors(straight)


def test_accumulation_does_not_change_the_step(token_folder, tmp_path, straight):
    training_run.run(settings(token_folder, tmp_path, train__micro_batch_size=1))
    ours, theirs = learned(tmp_path / "tiny"), learned(straight)
    for step in range(1, STEPS + 1):
        assert ours[step]["train/loss"] == pytest.approx(theirs[step]["train/loss"], abs=1e-4)


def test_two_processes_train_like_one(token_folder, tmp_path, straight):
    path = tmp_path / "two.yaml"
    path.write_text(settings(token_folder, tmp_path).to_yaml())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "--config", str(path)], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = learned(tmp_path / "tiny"), learned(straight)
    assert ours.keys() == theirs.keys()
    for step in range(1, STEPS + 1):
        assert ours[step]["train/loss"] == pytest.approx(theirs[step]["train/loss"], abs=1e-4)
    assert ours[STEPS]["val/loss"] == pytest.approx(theirs[STEPS]["val/loss"], abs=1e-4)
    assert done.stdout.count("step     1 | loss") == 1  # one rank speaks


def test_overfitting_one_batch_drives_the_loss_to_zero(token_folder, tmp_path):
    changes = {"train__overfit_batch": True, "train__max_steps": 150, "checkpoint__every": 0, "train__sample_every": 0}
    config = settings(token_folder, tmp_path, model__n_layer=4, model__n_embd=64, **changes)
    training_run.run(config)
    assert learned(tmp_path / "tiny")[150]["train/loss"] < 0.05


# -- going on


def run_again(straight: Path, tmp_path: Path, token_folder: Path, **changes) -> Path:
    """A copy of the finished run, started again with changed settings."""
    import shutil

    shutil.copytree(straight, tmp_path / "tiny")
    training_run.run(settings(token_folder, tmp_path, **changes))
    return tmp_path / "tiny"


def test_a_finished_run_says_so(straight, tmp_path, token_folder, capsys):
    before = (straight / "metrics.jsonl").read_bytes()
    run = run_again(straight, tmp_path, token_folder)
    assert "is finished: step 6 of 6" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before


def test_more_steps_go_on_with_a_notice(straight, tmp_path, token_folder, capsys):
    run = run_again(straight, tmp_path, token_folder, train__max_steps=8)
    assert "note: from step 6 on train.max_steps is 8, before 6; the learning rate" in capsys.readouterr().out
    (event,) = records(run, "events.jsonl")
    assert (event["event"], event["train.max_steps"][:11]) == ("resumed", "8, before 6")
    assert sorted(learned(run)) == list(range(9))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("model__n_layer", 3), ("model__n_embd", 32), ("run__seed", 1), ("train__total_batch_size", 256)],
)
def test_another_architecture_seed_or_batch_is_refused(straight, tmp_path, token_folder, setting, value):
    with pytest.raises(GPT2LabError, match=f"was trained with {setting.replace('__', '.')}"):
        run_again(straight, tmp_path, token_folder, train__max_steps=8, **{setting: value})


def test_other_data_is_refused(straight, tmp_path, token_folder):
    other = tmp_path / "other"
    other.mkdir()
    for file in token_folder.iterdir():
        np.save(other / file.name, np.load(file)[:-100])
    with pytest.raises(GPT2LabError, match="was trained on other data"):
        run_again(straight, tmp_path, token_folder, train__max_steps=8, data__dir=str(other))


def test_resume_never_refuses_an_existing_run(straight, tmp_path, token_folder):
    with pytest.raises(GPT2LabError, match=r"run\.resume is never"):
        run_again(straight, tmp_path, token_folder, run__resume="never")


def test_resume_from_another_run_branches_off(straight, tmp_path, token_folder):
    path = straight / "checkpoints" / "step_00000004"
    training_run.run(settings(token_folder, tmp_path, run__resume=str(path), run__name="branch"))
    assert learned(tmp_path / "branch") == learned(straight)
    assert tensors(tmp_path / "branch") == tensors(straight)


def test_resume_does_not_go_back_behind_what_a_run_has(straight, token_folder):
    path = straight / "checkpoints" / "step_00000002"
    with pytest.raises(GPT2LabError, match="has gone on to step 6"):
        training_run.run(settings(token_folder, straight.parent, run__resume=str(path), train__max_steps=8))


def test_a_damaged_newest_checkpoint_costs_its_steps_only(straight, tmp_path, token_folder, capsys):
    import shutil

    shutil.copytree(straight, tmp_path / "tiny")
    (tmp_path / "tiny" / "checkpoints" / f"step_{STEPS:08d}" / "optimizer.safetensors").write_bytes(b"")
    training_run.run(settings(token_folder, tmp_path))
    assert "trying the checkpoint before it" in capsys.readouterr().out
    assert tensors(tmp_path / "tiny") == tensors(straight)
    assert learned(tmp_path / "tiny") == learned(straight)


def test_a_run_directory_has_one_process(token_folder, tmp_path):
    with DirectoryLock(tmp_path / "tiny"), pytest.raises(GPT2LabError, match="in use by another process"):
        training_run.run(settings(token_folder, tmp_path))


def test_a_checkpoint_the_run_went_back_behind_never_costs_a_good_one(straight, tmp_path, token_folder, monkeypatch):
    import shutil

    shutil.copytree(straight, tmp_path / "tiny")
    checkpoints = tmp_path / "tiny" / "checkpoints"
    (checkpoints / f"step_{STEPS:08d}" / "model.safetensors").write_bytes(b"")
    with interrupted_at(STEPS, monkeypatch):
        training_run.run(settings(token_folder, tmp_path, checkpoint__keep_last=1, checkpoint__every=1))
    training_run.run(settings(token_folder, tmp_path))
    assert learned(tmp_path / "tiny") == learned(straight)


@pytest.mark.parametrize("kill_at", [1, 5, 6])
def test_a_branch_goes_on_with_the_same_command(straight, tmp_path, token_folder, monkeypatch, kill_at):
    """Its records are those of the run it left, then its own: whatever a first attempt had written."""
    changes = {"run__resume": str(straight / "checkpoints" / "step_00000002"), "run__name": "branch"}
    with interrupted_at(kill_at, monkeypatch):
        training_run.run(settings(token_folder, tmp_path, **changes))
    training_run.run(settings(token_folder, tmp_path, **changes))
    assert learned(tmp_path / "branch") == learned(straight)
    assert tensors(tmp_path / "branch") == tensors(straight)


def test_bf16_resumes_exactly_too(token_folder, tmp_path, straight):
    training_run.run(settings(token_folder, tmp_path / "whole", system__precision="bf16"))
    whole = tmp_path / "whole" / "tiny"
    checkpoint = str(whole / "checkpoints" / "step_00000002")
    training_run.run(settings(token_folder, tmp_path, system__precision="bf16", run__resume=checkpoint))
    assert tensors(tmp_path / "tiny") == tensors(whole)
    assert learned(tmp_path / "tiny") == learned(whole)
    assert tensors(whole) != tensors(straight)


def resign(folder: Path, change) -> None:
    """Change state.json and write digests that match, as somebody might by hand."""
    from gpt2lab import files

    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(change(state)))
    files.write_digests(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [],
        lambda state: {k: v for k, v in state.items() if k != "step"},
        lambda state: state | {"step": "six"},
        lambda state: state | {"fingerprint": 3},
        lambda state: {k: v for k, v in state.items() if k != "rng"},
        lambda state: state | {"rng": {"cpu": "AAAA"}},
        lambda state: state | {"rng": {"cpu": "!"}},
        lambda state: state | {"format": 99},
    ],
)
def test_a_state_changed_by_hand_is_one_line(straight, tmp_path, token_folder, change):
    import shutil

    shutil.copytree(straight, tmp_path / "tiny")
    folder = tmp_path / "tiny" / "checkpoints" / f"step_{STEPS:08d}"
    resign(folder, change)
    before = (tmp_path / "tiny" / "metrics.jsonl").read_bytes()
    with pytest.raises(GPT2LabError, match=r"state\.json"):
        training_run.run(settings(token_folder, tmp_path, run__resume=str(folder), train__max_steps=8))
    assert (tmp_path / "tiny" / "metrics.jsonl").read_bytes() == before


def test_other_validation_data_is_refused(straight, tmp_path, token_folder):
    other = tmp_path / "other"
    other.mkdir()
    for file in token_folder.iterdir():
        tokens = np.load(file)
        np.save(other / file.name, tokens[::-1] if file.name.startswith("val") else tokens)
    with pytest.raises(GPT2LabError, match="was trained on other data"):
        run_again(straight, tmp_path, token_folder, train__max_steps=8, data__dir=str(other))


# -- bad input, found before a run directory exists


def test_bad_data_is_found_before_anything_is_written(token_folder, tmp_path):
    def broken(name: str, change) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file in token_folder.iterdir():
            np.save(folder / file.name, np.load(file))
        change(folder)
        return str(folder)

    def truncate(folder):
        whole = (folder / "train_001.npy").read_bytes()
        (folder / "train_001.npy").write_bytes(whole[:-100])

    def too_large(folder):
        np.save(folder / "train_001.npy", np.full(10_000, 300, dtype=np.uint16))

    def short_val(folder):
        np.save(folder / "val_000.npy", np.zeros(16, dtype=np.uint16))

    cases = [
        (broken("truncated", truncate), "train_001.npy is truncated"),
        (broken("ids", too_large), r"train_001.npy: token 0 is 300, but model.vocab_size is 300"),
        (broken("val", short_val), "val split too short"),
        (
            broken("no_train", lambda folder: [f.unlink() for f in folder.glob("train*")]),
            "no shard of the split 'train'",
        ),
        (str(tmp_path / "absent"), "absent"),
    ]
    for folder, message in cases:
        with pytest.raises(GPT2LabError, match=message):
            training_run.run(settings(token_folder, tmp_path / "runs", data__dir=folder, data__source="fineweb-edu"))
    assert not (tmp_path / "runs").exists()


def test_a_model_too_large_for_the_machine_is_one_line(token_folder, tmp_path):
    with pytest.raises(GPT2LabError, match=r"cannot make the model: its weights alone take .* GiB"):
        training_run.run(settings(token_folder, tmp_path, model__n_embd=10_000_000))
    assert not (tmp_path / "tiny" / "config.yaml").exists()


def test_a_report_that_fails_does_not_end_the_run(token_folder, tmp_path, monkeypatch, capsys):
    from gpt2lab.tracking import report

    def broken(run):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(report, "write", broken)
    training_run.run(settings(token_folder, tmp_path))
    assert "warning: no report this time: no fonts" in capsys.readouterr().out
    assert sorted(learned(tmp_path / "tiny")) == list(range(STEPS + 1))


def test_a_prompt_outside_the_vocabulary_is_found_before_the_first_step(token_folder, tmp_path):
    with pytest.raises(GPT2LabError, match=r"train\.sample_prompt"):
        training_run.run(settings(token_folder, tmp_path, train__sample_prompt="Hello this is"))


def test_a_loss_that_is_not_finite_stops_with_the_last_weights_kept(token_folder, tmp_path):
    with pytest.raises(GPT2LabError, match=r"step \d+: loss .* not finite; too many steps in a row .* is kept"):
        training_run.run(
            settings(token_folder, tmp_path, optimizer__max_lr=1e30, optimizer__grad_clip=0, train__max_steps=30)
        )


def test_too_little_space_for_a_checkpoint_leaves_nothing_half_written(token_folder, tmp_path):
    """A limit on the size of files stands in for a full disk."""
    path = tmp_path / "recipe.yaml"
    path.write_text(settings(token_folder, tmp_path).to_yaml())
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from gpt2lab.cli import main; sys.exit(main(['train', '--config', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "tiny" / "checkpoints").iterdir()) == []


# -- HellaSwag while training


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    """A mirror whose HellaSwag has as many items as the real one, all of them short."""
    folder = tmp_path_factory.mktemp("mirror")
    (folder / "hellaswag").mkdir()
    with open(folder / "hellaswag" / "hellaswag_val.jsonl", "w") as file:
        for n in range(10_042):
            endings = [f"ends {n % m} times." for m in (7, 11, 13, 17)]
            item = {"activity_label": "Ends", "ctx": f"Item {n}. it", "endings": endings, "label": n % 4}
            file.write(json.dumps(item) + "\n")
    return folder


def with_hellaswag(token_folder: Path, out_dir: Path, mirror: Path, **changes) -> Config:
    changes = {"train__hellaswag_limit": 12, "data__mirror": str(mirror), "model__vocab_size": 50257} | changes
    return settings(token_folder, out_dir, train__sample_every=0, **changes)


def test_hellaswag_every_few_steps_leaves_the_weights_alone(token_folder, tmp_path, mirror, monkeypatch, capsys):
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "cache"))
    training_run.run(with_hellaswag(token_folder, tmp_path / "with", mirror, train__hellaswag_every=2))
    shown = capsys.readouterr().out
    training_run.run(with_hellaswag(token_folder, tmp_path / "without", mirror))
    assert tensors(tmp_path / "with" / "tiny") == tensors(tmp_path / "without" / "tiny")
    lines = {line["step"]: line for line in records(tmp_path / "with" / "tiny")}
    assert [step for step, line in lines.items() if "hellaswag/acc_norm" in line] == [0, 2, 4, 6]
    for step in (0, 6):
        assert 0 <= lines[step]["hellaswag/harness_acc_norm"] <= 1
        assert 0 < lines[step]["perf/hellaswag_seconds"] < lines[step]["perf/eval_seconds"]
        assert lines[step]["val/bits_per_byte"] > 0
    assert "mirror schema, 10,042 items" in shown
    assert shown.count("HellaSwag accuracy: ") == 4
    assert "/12=0." in shown
    assert (tmp_path / "with" / "tiny" / "hellaswag_curve.png").read_bytes().startswith(b"\x89PNG")


def test_hellaswag_on_two_ranks_is_the_same(token_folder, tmp_path, mirror):
    config = with_hellaswag(token_folder, tmp_path, mirror, train__hellaswag_every=6, train__eval_every=0)
    path = tmp_path / "two.yaml"
    path.write_text(config.to_yaml())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GPT2LAB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*torchrun, "--config", str(path)], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    both = records(tmp_path / "tiny")[0]
    training_run.run(
        with_hellaswag(token_folder, tmp_path / "one", mirror, train__hellaswag_every=6, train__max_steps=1)
    )
    alone = records(tmp_path / "one" / "tiny")[0]
    assert both["hellaswag/acc_norm"] == alone["hellaswag/acc_norm"]
    assert both["hellaswag/harness_acc_norm"] == alone["hellaswag/harness_acc_norm"]
    assert done.stdout.count("HellaSwag accuracy: ") == 2  # one rank speaks, at the beginning and the end


def test_missing_hellaswag_is_found_before_anything_is_written(token_folder, tmp_path, monkeypatch):
    from gpt2lab.evaluation import hellaswag

    monkeypatch.setattr(hellaswag, "URL", "http://127.0.0.1:9/hellaswag_val.jsonl")
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(GPT2LabError, match=r"HellaSwag: .*--data\.mirror"):
        training_run.run(with_hellaswag(token_folder, tmp_path / "runs", tmp_path, train__hellaswag_every=2))
    assert not (tmp_path / "runs").exists()


def test_hellaswag_needs_gpt2s_vocabulary(token_folder, tmp_path, mirror, monkeypatch):
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(GPT2LabError, match=r"train\.hellaswag_every needs GPT-2's vocabulary"):
        training_run.run(
            with_hellaswag(token_folder, tmp_path / "runs", mirror, train__hellaswag_every=2, model__vocab_size=300)
        )
    assert not (tmp_path / "runs").exists()

"""Runs that start from the weights of a model: `train.init_from`."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2lab.config import GPT2Config, load_run
from gpt2lab.errors import GPT2LabError
from gpt2lab.export import model_card
from gpt2lab.model import pretrained, resolve
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.tracking import records as run_records
from gpt2lab.tracking import report, summary
from gpt2lab.training import run as training_run
from tests.model import foreign_files
from tests.runs import STEPS, assert_same_losses, interrupted_at, learned, records, settings, tensors

SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 300}
QUIET = {"train__sample_every": 0, "train__max_steps": 2, "checkpoint__every": 0}


def make_model(architecture: str = "gpt2", block_size: int = 32, **more) -> LanguageModel:
    """A model that is far from its initial weights, so that its loss is its own."""
    config = GPT2Config(architecture=architecture, block_size=block_size, **(SHAPE | more))
    model = pretrained.build(config, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(".bias"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    """Reports take most of the time of so short a run."""
    monkeypatch.setattr("gpt2lab.training.live_report.LiveReport.finish", lambda _: None)


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """A model directory. The recipe of `settings` has another shape, and half its context window."""
    folder = tmp_path_factory.mktemp("models") / "origin"
    make_model().save_pretrained(folder)
    return folder


def own_loss(name: Path, token_folder: Path, block_size: int) -> float:
    """The loss of a model on the first 512 validation tokens, in sequences of `block_size`."""
    tokens = torch.from_numpy(np.load(token_folder / "val_000.npy")[:513].astype(np.int64))
    model = pretrained.from_pretrained(name)
    with torch.no_grad():
        return float(model(tokens[:-1].view(-1, block_size), tokens[1:].view(-1, block_size))[1])


def start(token_folder: Path, tmp_path: Path, name: Path | str, *given: str, **changes) -> Path:
    """Train from the weights of `name`; the settings `given`, such as model.n_layer, are those of the command line."""
    changes = QUIET | {"train__init_from": str(name)} | changes
    training_run.run(settings(token_folder, tmp_path, **changes), given=given)
    return tmp_path / "tiny"


FORMATS = {
    "a model directory": lambda model, path: (model.save_pretrained(path), path)[1],
    "nanoGPT": lambda model, path: (foreign_files.save_nanogpt(path, model), path)[1],
    "build-nanogpt": lambda model, path: (foreign_files.save_build_nanogpt(path, model, "module._orig_mod."), path)[1],
    "llm.c": lambda model, path: (foreign_files.save_llmc(path, model), path)[1],
    "a state dict": lambda model, path: (torch.save(foreign_files.conv1d_state(model), path), path)[1],
}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_first_loss_is_that_of_the_weights(kind, token_folder, tmp_path):
    model = make_model(n_embd=64, n_head=1)
    path = FORMATS[kind](model, tmp_path / ("model" if kind == "a model directory" else "model_19072.bin"))
    run = start(token_folder, tmp_path, path, model__block_size=32)
    assert learned(run)[0]["val/loss"] == pytest.approx(own_loss(path, token_folder, 32), abs=1e-4)
    assert load_run(run).model.n_embd == 64  # the recipe says 16
    assert learned(run)[2]["val/loss"] < learned(run)[0]["val/loss"]


def test_a_run_a_checkpoint_and_a_name_of_the_hub_in_a_mirror(finished_run, token_folder, tmp_path, origin):
    shutil.copytree(origin, tmp_path / "mirror" / "openai-community" / "gpt2-medium")
    cases = {
        str(finished_run): learned(finished_run)[STEPS]["val/loss"],
        str(finished_run / "checkpoints" / "step_00000002"): None,
        "gpt2-medium": own_loss(origin, token_folder, 16),
    }
    for number, (name, loss) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        run = start(token_folder, folder, name, data__mirror=str(tmp_path / "mirror"))
        assert learned(run)[0]["val/loss"] == pytest.approx(loss or own_loss(Path(name), token_folder, 16), abs=1e-4)
        assert learned(run)[1]["train/lr"] == pytest.approx(5e-3)  # the warm-up begins anew
    (event,) = records(tmp_path / "0" / "tiny", "events.jsonl")
    assert event["path"].endswith(f"step_{STEPS:08d}")  # the run may go on


def test_the_modern_architecture(token_folder, tmp_path):
    make_model("modern").save_pretrained(tmp_path / "origin")
    run = start(token_folder, tmp_path, tmp_path / "origin", optimizer__name="muon")
    assert load_run(run).model.architecture == "modern"
    assert learned(run)[0]["val/loss"] == pytest.approx(own_loss(tmp_path / "origin", token_folder, 16), abs=1e-4)


@pytest.mark.parametrize("kill_at", [1, 3, STEPS])
def test_it_resumes_exactly_and_without_the_origin(origin, token_folder, tmp_path, monkeypatch, kill_at):
    shutil.copytree(origin, tmp_path / "origin")
    changes = {"train__max_steps": STEPS, "checkpoint__every": 2, "train__sample_every": 3}
    start(token_folder, tmp_path / "whole", tmp_path / "origin", **changes)
    with interrupted_at(kill_at, monkeypatch):
        start(token_folder, tmp_path, tmp_path / "origin", **changes)
    if kill_at > 2:
        shutil.rmtree(tmp_path / "origin")
    start(token_folder, tmp_path, tmp_path / "origin", **changes)
    assert learned(tmp_path / "tiny") == learned(tmp_path / "whole" / "tiny")
    assert tensors(tmp_path / "tiny") == tensors(tmp_path / "whole" / "tiny")
    assert load_run(tmp_path / "tiny") == load_run(tmp_path / "whole" / "tiny").model_copy(
        update={"run": load_run(tmp_path / "tiny").run}
    )
    assert records(tmp_path / "tiny", "events.jsonl")[0]["event"] == "initialized"


def test_a_run_with_a_checkpoint_goes_on_with_its_own_weights(finished_run, origin, token_folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    shutil.copytree(finished_run, tmp_path / "tiny")
    more = {"train__max_steps": STEPS + 2, "train__sample_every": 3}
    run = start(token_folder, tmp_path, origin, **more)
    assert "not read: the run has gone on to step 6 from random weights" in caplog.text
    assert load_run(run).train.init_from is None
    training_run.run(settings(token_folder, tmp_path / "x", train__max_steps=STEPS + 2, run__resume=str(finished_run)))
    assert_same_losses(run, tmp_path / "x" / "tiny")
    # And one that began with weights, continued without naming them: its architecture is not the recipe's.
    begun = start(token_folder, tmp_path / "begun", origin)
    training_run.run(settings(token_folder, tmp_path / "begun", **(QUIET | {"train__max_steps": 3})))
    assert load_run(begun).train.init_from == str(origin)
    assert sorted(learned(begun)) == [0, 1, 2, 3]
    with pytest.raises(GPT2LabError, match=r"trained with model\.n_layer 1, this start says 2"):
        start(token_folder, tmp_path / "begun", origin, "model.n_layer", train__max_steps=4)
    branch = {"run__name": "branch", "run__resume": str(begun), "train__max_steps": 4}
    with pytest.raises(GPT2LabError, match=r"run\.resume .* train\.init_from .* give one"):
        start(token_folder, tmp_path, origin, "run.resume", "train.init_from", **branch)
    start(token_folder, tmp_path, origin, **branch)
    assert records(tmp_path / "branch", "events.jsonl")[0]["from"] == str(origin)


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        ("model.n_layer", {"model__n_layer": 3}, r"--model\.n_layer 3: .*origin has n_layer 1,"),
        ("model.architecture", {"model__architecture": "modern"}, r"--model\.architecture modern"),
        ("model.activation", {"model__activation": "gelu"}, r"--model\.activation gelu: .* has activation gelu_tanh"),
        ("model.tie_word_embeddings", {"model__tie_word_embeddings": False}, r"--model\.tie_word_embeddings false"),
        ("model.vocab_size", {"model__vocab_size": 200}, r"--model\.vocab_size 200 would cut tokens of .* has 300"),
        (
            "train.init_from",
            {"train__init_from": "nowhere/at/all"},
            r"train\.init_from: nowhere/at/all: no such folder",
        ),
        ("train.init_from", {"train__init_from": "model.pt"}, r"train\.init_from: model\.pt: no such file"),
    ],
)
def test_what_contradicts_the_weights_is_refused_by_name(origin, token_folder, tmp_path, given, changes, message):
    with pytest.raises(GPT2LabError, match=message):
        start(token_folder, tmp_path / "runs", origin, given, **changes)
    assert not (tmp_path / "runs").exists()


def test_a_published_size_that_is_not_that_of_the_weights(origin, token_folder, tmp_path):
    shape = {"model__size": "124M", "model__n_layer": None, "model__n_head": None, "model__n_embd": None}
    with pytest.raises(GPT2LabError, match=r"--model\.size 124m: .*origin has n_layer 1"):
        start(token_folder, tmp_path, origin, "model.size", **shape)


def test_context_windows_of_other_lengths(origin, token_folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    weights = GPT2.from_pretrained(origin).transformer.wpe.weight
    cut = start(token_folder, tmp_path / "cut", origin, optimizer__max_lr=1e-30, optimizer__min_lr=0)
    assert "model.block_size 16: shorter than the model's 32; the positions after it are cut" in caplog.text
    assert torch.equal(GPT2.from_pretrained(cut).transformer.wpe.weight, weights[:16])

    kept = start(token_folder, tmp_path / "kept", origin, model__block_size=64)
    assert "model.block_size 32: that of the model; the recipe's 64 is longer" in caplog.text
    assert load_run(kept).model.block_size == 32

    changes = {
        "model__block_size": 64,
        "train__micro_batch_size": 1,
        "optimizer__max_lr": 1e-30,
        "optimizer__min_lr": 0,
    }
    longer = start(token_folder, tmp_path / "longer", origin, "model.block_size", **changes)
    assert "longer than the model's 32; positions from 32 on start from random values" in caplog.text
    positions = GPT2.from_pretrained(longer).transformer.wpe.weight
    assert torch.equal(positions[:32], weights)
    assert 0 < positions[32:].std() < 0.1


def test_padding_of_the_vocabulary(token_folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    make_model(vocab_size=50257, n_embd=4).save_pretrained(tmp_path / "plain")
    recipes = start(token_folder, tmp_path / "a", tmp_path / "plain", model__vocab_size=50304)
    assert load_run(recipes).model.vocab_size == 50257  # that of the weights: exact
    given = {"model__vocab_size": 50304, "optimizer__max_lr": 1e-30, "optimizer__min_lr": 0}
    padded = start(token_folder, tmp_path / "b", tmp_path / "plain", "model.vocab_size", **given)
    assert "model.vocab_size 50304: padded from 50257" in caplog.text
    rise = learned(padded)[0]["val/loss"] - own_loss(tmp_path / "plain", token_folder, 16)
    assert 0 < rise <= np.log(50304 / 50257) + 1e-5
    back = start(token_folder, tmp_path / "c", padded, "model.vocab_size", **(given | {"model__vocab_size": 50257}))
    assert "model.vocab_size 50257: trimmed from 50304" in caplog.text
    assert learned(back)[0]["val/loss"] == pytest.approx(learned(recipes)[0]["val/loss"], abs=1e-4)


def test_the_origin_is_recorded(origin, token_folder, tmp_path):
    run = start(token_folder, tmp_path, origin)
    assert load_run(run).train.init_from == str(origin)
    (event,) = records(run, "events.jsonl")
    assert (event["step"], event["event"], event["from"]) == (0, "initialized", str(origin))
    assert "positions after it are cut" in event["block_size"]
    assert summary.figures(run_records.read(run))["initial weights"].value == str(origin)
    report.write(run)
    assert "initial weights" in (run / "report.html").read_text()
    checkpoint = resolve.find_checkpoint(run)
    card = model_card.render("x", checkpoint, GPT2Config(**SHAPE), "fp32")
    assert f"trained with gpt2lab from the weights of `{origin}`" in card
    assert "from scratch" not in card


def test_a_model_of_the_hub_is_the_base_model_of_the_card(origin, token_folder, tmp_path):
    shutil.copytree(origin, tmp_path / "mirror" / "gpt2")
    run = start(token_folder, tmp_path, "gpt2", data__mirror=str(tmp_path / "mirror"))
    card = model_card.render("x", resolve.find_checkpoint(run), GPT2Config(**SHAPE), "fp32")
    assert "base_model: openai-community/gpt2\n" in card


def test_gpt2_on_tiny_shakespeare(shared_data, tmp_path):
    """The recipe, with a model of GPT-2's vocabulary in place of OpenAI's weights."""
    from gpt2lab import cli

    make_model(vocab_size=50257, block_size=64, n_embd=16).save_pretrained(tmp_path / "gpt2")
    arguments = {
        "data.dir": tmp_path / "tokens",
        "data.source": "tinyshakespeare",
        "data.mirror": shared_data,
        "train.init_from": tmp_path / "gpt2",
        "train.total_batch_size": 512,
        "train.max_steps": 4,
        "train.eval_tokens": 4096,
        "train.sample_every": 0,
        "optimizer.max_lr": 3e-3,
        "optimizer.min_lr": 3e-3,
        "run.out_dir": tmp_path,
        "system.precision": "fp32",
        "system.device": "cpu",
    }
    words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    assert cli.main(["train", "--config", "finetune_shakespeare", *words]) == 0
    losses = learned(tmp_path / "finetune_shakespeare")
    tokens = np.load(tmp_path / "tokens" / "tinyshakespeare_val_000000.npy")[:4097].astype(np.int64)
    with torch.no_grad():
        x, y = (torch.from_numpy(part).view(-1, 64) for part in (tokens[:-1], tokens[1:]))
        own = float(GPT2.from_pretrained(tmp_path / "gpt2")(x, y)[1])
    assert losses[0]["val/loss"] == pytest.approx(own, abs=1e-4)
    assert losses[4]["val/loss"] < losses[0]["val/loss"] - 0.01


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_ranks_start_from_the_same_weights(origin, token_folder, tmp_path, shard):
    from tests.training.test_ranks import recipe, torchrun

    changes = {"train__init_from": str(origin), "train__max_steps": 4, "train__micro_batch_size": 2}
    (tmp_path / "alone").mkdir()
    training_run.run(settings(token_folder, tmp_path / "alone", **changes))
    process = torchrun("", recipe(token_folder, tmp_path, system__shard=shard, **changes))
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert_same_losses(tmp_path / "tiny", tmp_path / "alone" / "tiny", first_step=0)
    assert json.loads((tmp_path / "tiny" / "environment.json").read_text())["world_size"] == 2

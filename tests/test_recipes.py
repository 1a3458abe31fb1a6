"""Every recipe in config/: it loads, the numbers in its comments are right, and it trains."""

import re
from pathlib import Path

import pytest

from gpt2lab import cli, config
from gpt2lab.config import Config, DataConfig, GPT2Config, notes
from gpt2lab.data import run_data
from gpt2lab.data.loader import fixed_sequences
from gpt2lab.data.shards import open_split
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import flops
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.training import run as training_run

# recipe: parameters, sequences a step, tokens of the run; and of the original run GPUs, micro batch, micro-steps a step
ARITHMETIC = {
    "quickstart": (6_837_888, 24, 921_600, 1, 24, 1),
    "scaling_cpu": (3_320_640, 24, 1_536_000, 1, 24, 1),
    "quickstart_modern": (13_259_008, 24, 768_000, 1, 24, 1),
    "modern_124m": (162_201_600, 512, 1_703_936_000, 8, 64, 1),
    "modern_24gb": (162_201_600, 128, 1_179_648_000, 1, 16, 8),
    "shakespeare": (124_475_904, 16, 3_276_800, 1, 4, 4),
    "shakespeare_cpu": (6_837_888, 8, 1_228_800, 1, 8, 1),
    "finetune_shakespeare": (124_439_808, 32, 655_360, 1, 1, 32),
    "gpt2_124m": (124_439_808, 480, 9_374_760_960, 8, 4, 15),
    "minigpt": (124_475_904, 480, 9_374_760_960, 6, 4, 20),
    "minillm": (124_439_808, 512, 9_999_745_024, 8, 2, 32),
    "tinyrb": (124_475_904, 512, 9_999_745_024, 8, 64, 1),
    "gpt2_medium": (354_823_168, 512, 9_999_745_024, 8, 8, 8),
    "gpt2_large": (774_030_080, 512, 9_999_745_024, 8, 4, 16),
    "gpt2_xl": (1_557_611_200, 1024, 10_000_269_312, 8, 2, 64),
}
README = Path(__file__).parent.parent / "README.md"
MODERN = ("quickstart_modern", "modern_124m", "modern_24gb")
SMALL = (
    *MODERN,
    "quickstart",
    "scaling_cpu",
    "shakespeare_cpu",
    "finetune_shakespeare",
)  # gpt2lab's own: no original run
# Numbers of processes up to 8 that can share a step of each recipe.
WORLD_SIZES = {
    "quickstart": {1, 2, 3, 4, 6, 8},
    "quickstart_modern": {1, 2, 3, 4, 6, 8},
    "scaling_cpu": {1, 2, 3, 4, 6, 8},
    "gpt2_124m": {1, 2, 3, 4, 5, 6, 8},
    "minigpt": {1, 2, 3, 4, 5, 6, 8},
}
WORLD_SIZES |= {name: {1, 2, 4, 8} for name in ARITHMETIC.keys() - WORLD_SIZES.keys()}


def test_every_recipe_is_found():
    assert set(ARITHMETIC) <= set(config.recipes())  # config/ may contain other recipes


@pytest.mark.parametrize("name", ARITHMETIC)
def test_parameters_tokens_and_micro_steps(name):
    settings = config.load([config.find_recipe(name)])
    parameters, sequences, tokens, gpus, micro_batch, micro_steps = ARITHMETIC[name]
    original = config.load([config.find_recipe(name)], {"train.micro_batch_size": str(micro_batch)})
    plan = original.batch_plan(gpus, max_micro_tokens=0)
    total = settings.train.max_steps * settings.train.total_batch_size
    assert settings.run.name == name
    assert plan.sequences * settings.model.block_size == settings.train.total_batch_size
    assert (flops.parameters(settings.model), plan.sequences, total) == (parameters, sequences, tokens)
    assert (plan.micro_batch_size, plan.grad_accum_steps) == (micro_batch, micro_steps)
    comments = config.find_recipe(name).read_text()
    assert f"{flops.parameters(settings.model):,} parameters" in comments
    assert f"{settings.train.total_batch_size:,} tokens a step" in comments
    assert name in SMALL or f"micro batch {micro_batch}" in comments


@pytest.mark.parametrize("name", ARITHMETIC)
def test_the_micro_batch_is_chosen_by_the_hardware(name):
    assert config.load([config.find_recipe(name)]).train.micro_batch_size == "auto"


@pytest.mark.parametrize("micro_batch", ["auto", "3", "16", "64"])
@pytest.mark.parametrize("name", ARITHMETIC)
def test_any_number_of_processes_works_or_both_ways_out_are_named(name, micro_batch):
    settings = config.load([config.find_recipe(name)], {"train.micro_batch_size": micro_batch})
    for world_size in range(1, 9):
        if world_size in WORLD_SIZES[name]:
            plan = settings.batch_plan(world_size, max_micro_tokens=16384)
            assert plan.micro_batch_size * plan.grad_accum_steps * world_size == plan.sequences
            assert micro_batch == "auto" or plan.micro_batch_size <= int(micro_batch)
            continue
        with pytest.raises(GPT2LabError, match=f"^{world_size} processes cannot share") as error:
            settings.batch_plan(world_size, max_micro_tokens=16384)
        message = str(error.value)
        assert "\n" not in message
        counts = {int(count) for count in re.search(r"start (\d+) or (\d+) processes", message).groups()}
        smaller, larger = (max(n for n in WORLD_SIZES[name] if n < world_size), min(counts - {min(counts)}))
        assert counts == {smaller, larger}
        assert larger == min(n for n in range(world_size, plan.sequences + 1) if plan.sequences % n == 0)
        for tokens in re.search(r"or set train.total_batch_size (\d+) or (\d+)$", message).groups():
            train = settings.train.model_copy(update={"total_batch_size": int(tokens)})
            assert settings.model_copy(update={"train": train}).batch_plan(world_size, max_micro_tokens=16384)
            assert abs(int(tokens) - settings.train.total_batch_size) < world_size * settings.model.block_size


@pytest.mark.parametrize("name", ["minigpt", "minillm", "tinyrb"])
def test_the_checkpoints_of_the_originals_are_kept(name):
    checkpoint = config.load([config.find_recipe(name)]).checkpoint
    due = range(checkpoint.every, 19073, checkpoint.every)
    assert [step for step in due if step % checkpoint.keep_every == 0] == [5000, 10000, 15000]


@pytest.mark.parametrize("name", ARITHMETIC)
def test_recipes_need_no_note_or_warning(name):
    settings = config.load([config.find_recipe(name)])
    assert not notes.describe_defaults(settings)
    assert not list(notes.find_unusual(settings))


OTHER_OPTIMIZERS = (*SMALL, "finetune_shakespeare")


@pytest.mark.parametrize("name", [name for name in ARITHMETIC if name not in OTHER_OPTIMIZERS])
def test_optimizer_settings_of_the_papers(name):
    settings = config.load([config.find_recipe(name)])
    assert settings.optimizer.min_lr == pytest.approx(settings.optimizer.max_lr / 10)
    assert (settings.optimizer.beta1, settings.optimizer.eps, settings.optimizer.weight_decay) == (0.9, 1e-8, 0.1)
    assert settings.optimizer.beta2 == (0.96 if name == "gpt2_124m" else 0.95)
    assert settings.optimizer.grad_clip == 1.0


@pytest.mark.parametrize("name", ARITHMETIC)
def test_a_shrunk_model_trains_one_step(name, token_folder, hellaswag_mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2LAB_MIRROR", str(hellaswag_mirror))
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "cache"))
    settings = config.load([config.find_recipe(name)]).model_dump()
    settings["run"]["out_dir"] = str(tmp_path)
    settings["model"] |= {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8}
    settings["data"]["dir"] = str(token_folder)
    if settings["train"]["init_from"] is not None:
        GPT2(GPT2Config(**settings["model"])).save_pretrained(tmp_path / "gpt2")
        settings["train"]["init_from"] = str(tmp_path / "gpt2")
    settings["train"] |= {"max_steps": 1, "total_batch_size": 64, "micro_batch_size": 4, "eval_tokens": 64}
    settings["train"] |= {"sample_count": 1, "sample_tokens": 2, "hellaswag_limit": 2}
    settings["system"] |= {"device": "cpu", "compile": "off"}
    training_run.run(Config.model_validate(settings))
    assert (tmp_path / name / "checkpoints" / "step_00000001" / "model.safetensors").exists()


def _sequences(name, source, folder, mirror=None):
    """Sequences of a recipe's validation, and those of the whole split."""
    settings = config.load([config.find_recipe(name)])
    run_data.prepare(DataConfig(source=source, dir=str(folder), mirror=mirror))
    val, block_size = open_split(folder, "val"), settings.model.block_size
    return fixed_sequences(val, block_size, settings.train.eval_tokens), (len(val) - 1) // block_size


def test_the_quickstart_validates_on_the_whole_split(tmp_path):
    validated, whole = _sequences("quickstart", "stdlib", tmp_path)
    assert validated == whole


def test_shakespeare_cpu_validates_on_the_whole_split(shared_data, tmp_path):
    validated, whole = _sequences("shakespeare_cpu", "tinyshakespeare", tmp_path, str(shared_data))
    assert validated == whole


def test_a_recipe_is_found_by_name():
    assert config.find_recipe("minigpt") == config.recipes()["minigpt"]


def test_the_settings_reference_and_the_schema_are_current(capsys):
    """To renew: `gpt2lab settings > docs/settings.md` and `gpt2lab settings --schema > config/schema.json`."""
    folder = config.find_recipe("quickstart").parent
    assert cli.main(["settings"]) == 0
    assert capsys.readouterr().out == (folder.parent / "docs" / "settings.md").read_text()
    assert cli.main(["settings", "--schema"]) == 0
    assert capsys.readouterr().out == (folder / "schema.json").read_text()


def test_recipes_name_their_schema():
    for path in (config.find_recipe(name) for name in ARITHMETIC):
        assert re.match(r"# yaml-language-server: \$schema=schema.json\n", path.read_text())


def test_the_recipe_and_the_readme_give_the_same_time_for_the_quickstart():
    row = next(line for line in README.read_text().splitlines() if line.startswith("| `quickstart` |"))
    time = re.search(r"\w+ to \w+ minutes", row)
    comments = " ".join(re.findall(r"^# ?(.*)", config.recipes()["quickstart"].read_text(), re.MULTILINE))
    assert time is not None
    assert f"Training takes {time[0]}" in comments

"""Settings: one order, no surprises, and every mistake answered by a line that names the key."""

from pathlib import Path

import pytest

from gpt2lab import config
from gpt2lab.config import Config, GPT2Config, load
from gpt2lab.errors import GPT2LabError


@pytest.fixture
def yaml(tmp_path):
    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_defaults_then_files_then_overrides(yaml):
    first = yaml("train: {max_steps: 10, eval_every: 11}\noptimizer: {max_lr: 6e-4}", "a.yaml")
    second = yaml("train: {max_steps: 20}", "b.yaml")
    settings = load([first, second], {"train.eval_every": "33"})
    assert settings.train.max_steps == 20
    assert settings.train.eval_every == 33
    assert settings.optimizer.max_lr == 6e-4
    assert settings.optimizer.beta1 == Config().optimizer.beta1
    assert settings.run.name == "b"


def test_scientific_notation_is_a_number_and_on_is_text(yaml):
    settings = load([yaml("optimizer: {max_lr: 6e-4, eps: 1E-8}\nsystem: {compile: on}")])
    assert (settings.optimizer.max_lr, settings.optimizer.eps, settings.system.compile) == (6e-4, 1e-8, "on")


def test_text_from_the_command_line_is_converted():
    settings = load([], {"optimizer.max_lr": "6e-4", "train.overfit_batch": "true", "train.micro_batch_size": "8"})
    assert settings.optimizer.max_lr == 6e-4
    assert settings.train.overfit_batch is True
    assert settings.train.micro_batch_size == 8


def test_resolved_settings_read_back_equal(yaml):
    settings = load([yaml("model: {size: medium, n_layer: 3}\noptimizer: {eps: 1e-9}")], {"run.name": "x"})
    assert load([yaml(settings.to_yaml(), "again.yaml")]) == settings


@pytest.mark.parametrize(
    ("size", "shape"),
    [("124M", (12, 12, 768)), ("medium", (24, 16, 1024)), ("large", (36, 20, 1280)), ("xl", (48, 25, 1600))],
)
def test_sizes_by_name(size, shape):
    by_name = GPT2Config(size=size)
    assert (by_name.n_layer, by_name.n_head, by_name.n_embd) == shape
    assert GPT2Config.model_validate({"size": "gpt2-" + size}) == by_name


def test_explicit_number_beats_size():
    assert GPT2Config(size="xl", n_layer=2).n_layer == 2
    assert GPT2Config(size="xl", n_layer=2).n_embd == 1600
    assert GPT2Config.model_validate({"size": "xl", "n_layer": None}).n_layer == 48


BAD = {
    "misspelt key": ("train: {max_step: 3}", "train.max_step; did you mean train.max_steps?"),
    "misspelt section": ("trian: {max_steps: 3}", "trian; did you mean train?"),
    "right key in the wrong section": ("train: {max_lr: 1}", "did you mean optimizer.max_lr?"),
    "wrong type": ("train: {max_steps: soon}", "train.max_steps: should be a whole number"),
    "boolean for a number": ("train: {max_steps: true}", "max_steps: takes a number or text, not true"),
    "fraction for a whole number": ("train: {max_steps: 1.5}", "train.max_steps: should be a whole number"),
    "section without keys": ("train: 3", "train must hold settings, not 3"),
    "list instead of a mapping": ("[1, 2]", "expected sections"),
    "negative steps": ("train: {max_steps: -3}", "train.max_steps: should be greater than 0, not -3"),
    "infinite rate": ("optimizer: {max_lr: .inf}", "optimizer.max_lr: should be a finite number"),
    "beta of one": ("optimizer: {beta2: 1.0}", "optimizer.beta2: should be less than 1"),
    "min_lr above max_lr": ("optimizer: {max_lr: 1e-5}", "optimizer.min_lr 6e-05 is above optimizer.max_lr 1e-05"),
    "unknown size": ("model: {size: huge}", "model.size: should be '124M', 'medium', 'large' or 'xl', not 'huge'"),
    "heads that do not divide": ("model: {n_head: 5}", "n_embd 768 is not divisible by n_head 5"),
    "vocabulary beyond uint16": (
        "model: {vocab_size: 70000}",
        "model.vocab_size: should be less than or equal to 65536",
    ),
    "name that leaves the folder": ("run: {name: ../x}", "run.name"),
    "unknown precision": ("system: {precision: int4}", "system.precision: should be"),
    "duplicate key": ("train:\n  max_steps: 3\n  max_steps: 4", 'line 3: found duplicate key "max_steps"'),
    "duplicate section": ("train: {max_steps: 3}\ntrain: {max_steps: 3}", 'line 2: found duplicate key "train"'),
    "broken YAML": ("train: [1", "line 1: not valid YAML"),
    "python tag": ("train: {max_steps: !!python/object/apply:os.getpid []}", "not valid YAML"),
    "list for a size": ("model: {size: [1]}", "model.size: should be"),
    "NUL in a path": ('run: {out_dir: "a\\0b"}', "run.out_dir: holds a NUL character"),
    "seed beyond 64 bits": ("run: {seed: 99999999999999999999}", "run.seed: should be less than"),
    "impossible date": ("train: {max_steps: 2024-99-99}", "not valid YAML: month must be in 1..12"),
    "aliases without end": ("train: &a {max_steps: *a}", "train.max_steps: should be a whole number, not {"),
    "nested too deep": ("train: " + "[" * 800 + "]" * 800, "nested too deep"),
    "empty prompt": ("train: {sample_prompt: ''}", "train.sample_prompt"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_names_the_key(yaml, case):
    text, expected = BAD[case]
    with pytest.raises(GPT2LabError) as error:
        load([yaml(text)])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_size_given_later_means_its_numbers(yaml):
    first = yaml("model: {n_layer: 2, n_embd: 96, block_size: 64}", "a.yaml")
    assert load([first], {"model.size": "medium"}).model.n_layer == 24
    assert load([first], {"model.size": "medium"}).model.block_size == 64
    assert load([first], {"model.size": "medium", "model.n_layer": "3"}).model.n_layer == 3
    assert load([first, yaml("model: {size: xl, n_layer: 3}", "b.yaml")]).model.n_embd == 1600


def test_what_is_written_is_read_alike_by_older_yaml(yaml):
    import yaml as pyyaml  # comes with transformers; a reader of YAML 1.1

    settings = load([], {"optimizer.eps": "1e-8", "optimizer.min_lr": "6e-5"})
    assert pyyaml.safe_load(settings.to_yaml()) == settings.model_dump()


def test_odd_but_harmless_files(yaml):
    assert load([yaml("")]) == load([yaml("train:\n  # max_steps: 3\n")])
    assert load([yaml("", "my first recipe.yaml")]).run.name == "my-first-recipe"


def test_errors_name_the_file_or_the_option_they_come_from(yaml):
    with pytest.raises(GPT2LabError, match="recipe.yaml: train.max_steps"):
        load([yaml("train: {max_steps: 0}")])
    with pytest.raises(GPT2LabError, match="^--train.max_steps"):
        load([yaml("train: {max_steps: 5}")], {"train.max_steps": "0"})


def test_missing_recipe_names_the_nearest():
    with pytest.raises(GPT2LabError, match="did you mean quickstart"):
        config.find_recipe("config/quikstart.yaml")


def batches(total: int, world_size: int, micro: int | str = "auto", block: int = 128):
    settings = Config.model_validate(
        {"model": {"block_size": block}, "train": {"total_batch_size": total, "micro_batch_size": micro}}
    )
    return settings.batch_plan(world_size, max_micro_tokens=1024)


def test_accumulation_is_derived():
    assert batches(491_520, 8, micro=4, block=1024) == (480, 4, 15)
    assert batches(3072, 1) == (24, 8, 3)
    assert batches(3072, 2) == (24, 6, 2)
    assert batches(128 * 5, 1, block=128 * 5) == (1, 1, 1)  # one sequence is allowed beyond max_micro_tokens or not


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8])
def test_quickstart_divides_by_many_ranks(world_size):
    settings = load([config.find_recipe("quickstart")])
    plan = settings.batch_plan(world_size, max_micro_tokens=1024)
    assert plan.sequences == 24
    tokens = plan.grad_accum_steps * plan.micro_batch_size * world_size * settings.model.block_size
    assert tokens == settings.train.total_batch_size


def test_total_batch_size_that_does_not_divide_names_the_nearest_that_do():
    with pytest.raises(GPT2LabError, match="2944 or 3072") as error:
        batches(3000, 1)
    assert "train.total_batch_size 3000" in str(error.value)
    with pytest.raises(GPT2LabError, match="nearest that works: 1024$"):
        batches(100, 2, micro=4)

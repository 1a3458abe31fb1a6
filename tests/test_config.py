"""Settings: the order in which they are merged, and errors that name the key in one line."""

import re
from pathlib import Path

import pytest

from gpt2lab.config import Config, GPT2Config, find_recipe, load
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


def test_explicit_numbers_override_the_size():
    assert GPT2Config(size="xl", n_layer=2).n_layer == 2
    assert GPT2Config(size="xl", n_layer=2).n_embd == 1600
    assert GPT2Config.model_validate({"size": "xl", "n_layer": None}).n_layer == 48


# YAML, and the key that the message names.
BAD_INPUT = [
    ("train: {max_step: 3}", "did you mean train.max_steps?"),
    ("train.max_steps: 5", "train: and, indented below it, max_steps: 5"),
    ("trian: {max_steps: 3}", "did you mean train?"),
    ("train: {max_lr: 1}", "did you mean optimizer.max_lr?"),
    ("train: {max_steps: soon}", "train.max_steps"),
    ("train: {max_steps: true}", "train.max_steps"),
    ("train: {max_steps: 1.5}", "train.max_steps"),
    ("train: 3", "train"),
    ("[1, 2]", "recipe.yaml"),
    ("# nothing yet\n", "has no settings"),
    ("train: {max_steps: -3}", "train.max_steps"),
    ("optimizer: {max_lr: .inf}", "optimizer.max_lr"),
    ("optimizer: {beta2: 1.0}", "optimizer.beta2"),
    ("optimizer: {max_lr: 1e-5}", "set optimizer.min_lr to 1e-06"),
    ("optimizer: {min_lr: 1}", "set optimizer.min_lr to 6e-05"),
    ("model: {size: huge}", "model.size"),
    ("model: {n_head: 5}", "n_head 5"),
    ("model: {vocab_size: 70000}", "model.vocab_size"),  # beyond uint16
    ("run: {name: ../x}", "a name, not a path"),
    ("run: {name: ''}", "empty"),
    ("system: {precision: int4}", "system.precision"),
    ("train:\n  max_steps: 3\n  max_steps: 4", "line 3"),
    ("train: {max_steps: 3}\ntrain: {max_steps: 3}", "line 2"),
    ("train: [1", "line 1"),
    ("train: {max_steps: !!python/object/apply:os.getpid []}", "recipe.yaml"),
    ("model: {size: [1]}", "model.size"),
    ('run: {out_dir: "a\\0b"}', "run.out_dir"),
    ("run: {seed: 99999999999999999999}", "run.seed"),
    ("train: {max_steps: 2024-99-99}", "recipe.yaml"),
    ("train: &a {max_steps: *a}", "train.max_steps"),
    ("train: " + "[" * 800 + "]" * 800, "recipe.yaml"),
    ("train: {sample_prompt: ''}", "train.sample_prompt"),
    ("guard: {deviations: 3, spike_sigma: 3}", "guard.spike_sigma"),
]


@pytest.mark.parametrize(("text", "key"), BAD_INPUT)
def test_bad_input_is_one_line_that_names_the_key(yaml, text, key):
    with pytest.raises(GPT2LabError) as error:
        load([yaml(text)])
    assert key in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_an_old_name_is_accepted_with_one_line_that_names_the_new_one(yaml, caplog):
    old, new = yaml("guard: {deviations: 5}", "old.yaml"), yaml("guard: {spike_sigma: 7}", "new.yaml")
    with caplog.at_level("INFO"):
        assert load([old]).guard.spike_sigma == 5
    assert [record.message.count("\n") for record in caplog.records] == [0]
    assert "guard.spike_sigma" in caplog.text
    assert load([], {"guard.deviations": "4"}).guard.spike_sigma == 4
    assert load([old, new]).guard.spike_sigma == 7
    assert load([new], {"guard.deviations": "4"}).guard.spike_sigma == 4
    with pytest.raises(GPT2LabError, match="guard.spike_sigma"):
        load([], {"guard.deviations": "4", "guard.spike_sigma": "4"})


def test_a_size_given_later_replaces_earlier_numbers(yaml):
    first = yaml("model: {n_layer: 2, n_embd: 96, block_size: 64}", "a.yaml")
    assert load([first], {"model.size": "medium"}).model.n_layer == 24
    assert load([first], {"model.size": "medium"}).model.block_size == 64
    assert load([first], {"model.size": "medium", "model.n_layer": "3"}).model.n_layer == 3
    assert load([first, yaml("model: {size: xl, n_layer: 3}", "b.yaml")]).model.n_embd == 1600


def test_written_yaml_is_read_alike_by_yaml_1_1(yaml):
    import yaml as pyyaml  # comes with transformers; a reader of YAML 1.1

    settings = load([], {"optimizer.eps": "1e-8", "optimizer.min_lr": "6e-5"})
    assert pyyaml.safe_load(settings.to_yaml()) == settings.model_dump()


def test_empty_sections_and_unusual_names(yaml):
    assert load([yaml("run:\n")]) == load([yaml("train:\n  # max_steps: 3\n")])
    assert load([yaml("run:", "my first recipe.yaml")]).run.name == "my-first-recipe"


def test_errors_name_the_file_or_the_option_they_come_from(yaml):
    with pytest.raises(GPT2LabError, match="recipe.yaml: train.max_steps"):
        load([yaml("train: {max_steps: 0}")])
    with pytest.raises(GPT2LabError, match="^--train.max_steps"):
        load([yaml("train: {max_steps: 5}")], {"train.max_steps": "0"})


def test_a_recipe_in_another_encoding_is_said_to_be(tmp_path):
    (tmp_path / "wide.yaml").write_text("train: {max_steps: 3}", encoding="utf-16")
    with pytest.raises(GPT2LabError, match=r"wide\.yaml: not UTF-8 text \(byte 1\); save it as UTF-8"):
        load([tmp_path / "wide.yaml"])


def test_a_missing_recipe_names_the_closest_one():
    with pytest.raises(GPT2LabError, match="quickstart"):
        find_recipe("config/quikstart.yaml")


def test_a_folder_in_place_of_a_recipe_names_the_recipe_in_it(tmp_path):
    with pytest.raises(GPT2LabError, match="is a folder.*recipes"):
        find_recipe(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(GPT2LabError, match=f"is a folder.*{tmp_path}/config.yaml"):
        find_recipe(tmp_path)


def test_whole_numbers_may_have_an_exponent_or_a_letter(yaml):
    for text, number in (("1e9", 10**9), ("0.5M", 500_000), ("2k", 2000), ("007", 7)):
        assert load([], {"train.max_steps": text}).train.max_steps == number
        assert load([yaml(f"train: {{max_steps: {text}}}")]).train.max_steps == number
    assert load([], {"train.micro_batch_size": "1K"}).train.micro_batch_size == 1000
    assert load([], {"train.micro_batch_size": "auto"}).train.micro_batch_size == "auto"
    for text in ("1.5", "1e-3", "many", "-3", "1e999", "0.0001K"):
        with pytest.raises(GPT2LabError, match="^--train.max_steps: should be "):
            load([], {"train.max_steps": text})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("train.max_steps", "many", "a whole number such as"),
        ("train.max_steps", "-3", "more than 0"),
        ("train.micro_batch_size", "many", "a whole number such as .*'auto'"),
        ("optimizer.max_lr", "high", "a number such as"),
        ("optimizer.max_lr", "nan", "a finite number"),
        ("system.shard", "maybe", "true or false"),
        ("system.device", "tpu", "'cuda'"),
        ("run.name", "my run", "letters, digits"),
        ("run.name", "a" * 300, "at most 255 characters"),
        ("run.seed", "9" * 19, "less than"),
        ("train.sample_prompt", "", "not empty"),
    ],
)
def test_messages_say_in_plain_words_what_a_value_should_be(name, value, words):
    with pytest.raises(GPT2LabError, match=f"^--{name}: should be .*{words}.*, not '?{str(value)[:20]}") as error:
        load([], {name: value})
    assert not re.search("valid|Input|[Ss]tring|pattern|pars", str(error.value))


def test_a_number_out_of_range_is_written_in_one_form(yaml):
    for value in ("-5", "0"):
        message = f"train.max_steps: should be more than 0, not {value}$"
        for layers in (([], {"train.max_steps": value}), ([yaml(f"train: {{max_steps: {value}}}")],)):
            with pytest.raises(GPT2LabError, match=message):
                load(*layers)
    with pytest.raises(GPT2LabError, match="^--optimizer.max_lr: should be more than 0, not 0$"):
        load([], {"optimizer.max_lr": "0"})
    with pytest.raises(GPT2LabError, match="^--train.max_steps: should be a whole number .*, not 'many'$"):
        load([], {"train.max_steps": "many"})


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
    settings = load(["quickstart"])
    plan = settings.batch_plan(world_size, max_micro_tokens=1024)
    assert plan.sequences == 24
    tokens = plan.grad_accum_steps * plan.micro_batch_size * world_size * settings.model.block_size
    assert tokens == settings.train.total_batch_size


def test_total_batch_size_that_does_not_divide_names_the_nearest_that_do():
    with pytest.raises(GPT2LabError, match="2944 or 3072") as error:
        batches(3000, 1)
    assert "train.total_batch_size 3000" in str(error.value)
    with pytest.raises(GPT2LabError, match="2 processes can share equally: train.total_batch_size 256$"):
        batches(100, 2, micro=4)
    with pytest.raises(GPT2LabError, match="start 5 processes, or set train.total_batch_size 768$"):
        batches(5 * 128, 6)


def test_a_block_size_far_beyond_the_tokens_of_a_step_is_doubted_rather_than_the_step():
    with pytest.raises(GPT2LabError, match="^model.block_size 100000000 is far more .*; lower model.block_size"):
        batches(3072, 1, block=100_000_000)
    with pytest.raises(GPT2LabError, match="set train.total_batch_size 1024$|share equally: .* 1024$"):
        batches(128, 1, block=1024)


def test_a_number_for_the_micro_batch_is_an_upper_limit():
    assert batches(60 * 128, 1, micro=16) == (60, 15, 4)
    assert batches(60 * 128, 4, micro=16) == (60, 15, 1)
    assert batches(60 * 128, 4, micro=100) == (60, 15, 1)
    assert batches(7 * 128, 1, micro=6) == (7, 1, 7)

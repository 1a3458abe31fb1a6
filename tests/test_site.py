"""The site: every page is in its navigation, its links lead somewhere, and a broken one stops the build."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
ADDRESS = "https://example.org/owner/name"


@pytest.fixture(scope="module")
def conf() -> ModuleType:
    specification = importlib.util.spec_from_file_location("site_conf", DOCS / "conf.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_navigation_lists_every_page_once():
    trees = re.findall(r"```\{toctree\}\n(?::[^\n]*\n)*\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    listed = "\n".join(trees).split()
    pages = [path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")]
    assert sorted([*listed, "index"]) == sorted(pages)


@pytest.mark.parametrize(
    ("target", "source", "page", "expected"),
    [
        ("docs/data.md#output", "README.md", "index.md", "data.md#output"),
        ("docs/results/app.png", "README.md", "index.md", "results/app.png"),
        ("CONTRIBUTING.md#which-file-to-edit", "README.md", "index.md", "contributing.md#which-file-to-edit"),
        ("../README.md#recipes", "docs/data.md", "data.md", "index.md#recipes"),
        ("../data.md", "docs/results/app.md", "results/app.md", "../data.md"),
        ("#install", "README.md", "index.md", "#install"),
        ("https://example.com", "README.md", "index.md", "https://example.com"),
        ("../launch/slurm.sbatch", "docs/distributed.md", "distributed.md", f"{ADDRESS}/blob/abc/launch/slurm.sbatch"),
        ("config", "README.md", "index.md", f"{ADDRESS}/tree/abc/config"),
    ],
)
def test_links_are_rewritten(conf, monkeypatch, target, source, page, expected):
    monkeypatch.setattr(conf, "find_commit", lambda: "abc")
    assert conf.rewrite_link(target, REPOSITORY / source, DOCS / page, ADDRESS) == expected


def test_without_an_address_of_the_repository_the_text_of_a_link_remains(conf):
    text = "[`config/`](config), [data](docs/data.md)\n```\n[a](b)\n```\n[![x](docs/results/app.png)](LICENSE)"
    expected = "`config/`, [data](data.md)\n```\n[a](b)\n```\n![x](results/app.png)"
    assert conf.rewrite_links(text, REPOSITORY / "README.md", DOCS / "index.md", None) == expected


def test_the_address_is_that_of_the_project_or_of_the_repository_on_github(conf, tmp_path, monkeypatch):
    monkeypatch.setattr(conf, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.example")
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/fork")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    assert conf.find_repository() == "https://github.example/owner/fork"
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{ADDRESS}/"\n')
    assert conf.find_repository() == ADDRESS
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.delenv("GITHUB_REPOSITORY")
    assert conf.find_repository() is None


def build(folder: Path, link: str) -> subprocess.CompletedProcess[str]:
    """Build a site of four pages, the first of which contains a link."""
    (folder / "docs" / "_static").mkdir(parents=True)
    shutil.copy(DOCS / "conf.py", folder / "docs")
    (folder / "pyproject.toml").write_text("[project]\n")
    (folder / "README.md").write_text(f"# Project\n\n{link}\n\n## A section\n")
    for name in ("CONTRIBUTING", "CHANGELOG"):
        (folder / f"{name}.md").write_text(f"# {name}\n\n## A part of {name}\n")
        (folder / "docs" / f"{name.lower()}.md").touch()
    (folder / "docs" / "index.md").write_text("```{toctree}\n:hidden:\n\ncontributing\nchangelog\n```\n")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "docs", "site"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow  # starts Sphinx five times
@pytest.mark.parametrize(
    ("link", "error"),
    [
        ("[a](#a-section) [b](CHANGELOG.md#a-part-of-changelog)", None),
        ("[a](#another-section)", "another-section"),
        ("[a](CHANGELOG.md#a-part-of-contributing)", "a-part-of-contributing"),
        ("[a](docs/missing.md)", "docs/missing.md leads to no file"),
        ("![a](docs/missing.png)", "docs/missing.png leads to no file"),
    ],
)
def test_a_broken_link_stops_the_build(tmp_path, link, error):
    done = build(tmp_path, link)
    if error is None:
        assert done.returncode == 0, done.stderr
        assert 'href="changelog.html#a-part-of-changelog"' in (tmp_path / "site" / "index.html").read_text()
    else:
        assert done.returncode != 0
        assert error in done.stderr

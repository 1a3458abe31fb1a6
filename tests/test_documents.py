"""The documents name files and sections that exist, and docs/architecture.md names every module."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
CODE_FILE = re.compile(r"`([\w./-]+\.(?:py|yaml|sh|sbatch))`")


def list_files() -> set[str]:
    """Paths below the repository, with `/` before each, so that the end of a path can be compared."""
    folders = ("gpt2lab", "tests", "benchmarks", "launch", "config")
    return {f"/{path.relative_to(REPOSITORY)}" for name in folders for path in (REPOSITORY / name).rglob("*.*")}


def make_anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in map(make_anchor, headings), link


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/performance.md"])
def test_code_files_that_a_document_names_exist(name):
    files = list_files() | {f"/{path.name}" for path in REPOSITORY.glob("*.py")}
    for path in CODE_FILE.findall((REPOSITORY / name).read_text()):
        if "NAME" not in path:
            assert any(file.endswith(f"/{path}") for file in files), path


def test_the_architecture_names_every_module():
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    modules = [path for path in (REPOSITORY / "gpt2lab").rglob("*.py") if not path.name.startswith("__")]
    missing = [str(path) for path in modules if path.parent.name != "sources" and f"`{path.name}`" not in text]
    assert not missing

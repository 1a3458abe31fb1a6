"""Sphinx builds the site from this folder: `make docs`. Every warning is an error, broken links among them.

README.md, CONTRIBUTING.md and CHANGELOG.md are pages of the site. Links to other files outside docs/ lead to the
repository, whose address is `Repository` under `[project.urls]` in pyproject.toml or, on GitHub, that of the repository
that builds the site. Without an address, the text of such a link remains.
"""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from posixpath import relpath

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent
# Pages of the site whose text is outside docs/.
INCLUDED = {"index": "README.md", "contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
LINK = re.compile(r"(!?)\[((?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*)\]\(([^()\s]+)\)")
CODE_BLOCK = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)

project = "gpt2lab"
copyright = "the gpt2lab authors. Apache-2.0"
author = "the gpt2lab authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_*"]
myst_heading_anchors = 4
highlight_language = "none"

default_role = "code"  # docstrings mark code with one backtick, as Markdown does
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = "gpt2lab"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False


def find_repository() -> str | None:
    """The address that links to files of the repository begin with, such as `https://HOST/OWNER/NAME`."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    address = project.get("urls", {}).get("Repository")
    if not address and os.environ.get("GITHUB_REPOSITORY"):
        address = f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}"
    return address.rstrip("/") if address else None


def find_commit() -> str:
    """The commit that the site is built from, so that its links remain valid."""
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def rewrite_link(target: str, source: Path, page: Path, repository: str | None) -> str | None:
    """The target of a link on the site.

    Args:
        target: as written in `source`: a path relative to it, with or without an anchor.
        source: file that contains the link.
        page: path of its page in docs/.
        repository: address of the repository; None: unknown.

    Returns:
        A path relative to `page`, or a URL; None if the link leads to the repository and its address is unknown.

    Raises:
        FileNotFoundError: the file that the link names does not exist.
    """
    if target.startswith(("http:", "https:", "mailto:", "#")):
        return target
    name, hash_sign, anchor = target.partition("#")
    path = (source.parent / name).resolve()
    if not path.exists():
        raise FileNotFoundError(f"{source}: the link {target} leads to no file")
    inside = {REPOSITORY / file: DOCS / f"{page_name}.md" for page_name, file in INCLUDED.items()}
    path = inside.get(path, path)
    if path.is_relative_to(DOCS) and path.is_file():
        return relpath(path, page.parent) + hash_sign + anchor
    if repository is None:
        return None
    kind = "tree" if path.is_dir() else "blob"
    return f"{repository}/{kind}/{find_commit()}/{path.relative_to(REPOSITORY).as_posix()}{hash_sign}{anchor}"


def rewrite_links(text: str, source: Path, page: Path, repository: str | None) -> str:
    """Rewrite all links and images of a Markdown text, except in blocks of code."""

    def rewrite(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        label = LINK.sub(rewrite, label)
        new = rewrite_link(target, source, page, repository)
        return label if new is None else f"{image}[{label}]({new})"

    parts = CODE_BLOCK.split(text)  # every second part is a block of code
    return "".join(part if index % 2 else LINK.sub(rewrite, part) for index, part in enumerate(parts))


def insert_and_rewrite(app: Sphinx, name: str, content: list[str]) -> None:
    """Before a page is parsed: insert the file that it shows, if it has one, and rewrite links."""
    source = REPOSITORY / INCLUDED[name] if name in INCLUDED else Path(app.env.doc2path(name))
    text = source.read_text() + "\n" + content[0] if name in INCLUDED else content[0]
    content[0] = rewrite_links(text, source, DOCS / f"{name}.md", find_repository())


# Docstrings of attributes as they are written. Napoleon takes what is before their first colon for a type.
_attributes: dict[str, list[str]] = {}


def keep_attribute(_app: Sphinx, kind: str, name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Called before Napoleon."""
    if kind == "attribute":
        _attributes[name] = lines.copy()


def restore_attribute(_app: Sphinx, _kind: str, name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Called after Napoleon."""
    lines[:] = _attributes.pop(name, lines)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", insert_and_rewrite)
    app.connect("autodoc-process-docstring", keep_attribute, priority=400)
    app.connect("autodoc-process-docstring", restore_attribute, priority=600)

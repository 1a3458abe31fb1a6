"""A corpus that needs no download: the English prose in the running Python's standard library.

    pydoc_data/topics.py   the language reference that `help()` prints     one document for each topic
    all other modules      docstrings, in the order of the source          one document for each module

The documents are shuffled, so that val, the first tenth of the tokens, has some of both kinds.

Files are parsed with `ast` and never imported, because some modules open windows when they are imported. The same
Python version always gives the same documents. Other versions give slightly different ones, so the version is the
`revision`.
"""

import ast
import hashlib
import inspect
import platform
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from gpt2lab import progress
from gpt2lab.data.sources import Source, in_memory_file
from gpt2lab.errors import GPT2LabError

TOPICS = "pydoc_data/topics.py"
SHUFFLE_SEED = 1337

# No prose, not part of Python, or different in every installation.
_SKIPPED_FOLDERS = {"__pycache__", "_bundled", "dist-packages", "encodings", "idle_test", "lib2to3", "lib-dynload"}
_SKIPPED_FOLDERS |= {"pydoc_data", "site-packages", "test", "tests"}
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Document(NamedTuple):
    """A document with a unique id."""

    id: str
    text: str


def source(seed: int = SHUFFLE_SEED) -> Source:
    """Open the corpus.

    Args:
        seed: of the order of the documents.

    Raises:
        GPT2LabError: the source files of the standard library are not installed.
    """
    return shuffled_source("stdlib", documents(), seed)


def shuffled_source(name: str, documents: Iterable[Document], seed: int) -> Source:
    """Make a source of documents from the standard library. Its revision is the version of Python.

    Args:
        name: of the source.
        documents: with unique ids.
        seed: of their order.
    """
    # Sorting by a hash is a shuffle that does not depend on the version of a random number generator.
    shuffled = sorted(documents, key=lambda document: hashlib.blake2b(f"{seed}/{document.id}".encode()).digest())
    files = (in_memory_file(name, (document.text for document in shuffled)),)
    revision = f"{platform.python_implementation()} {platform.python_version()}"
    return Source(name, name, revision, files, shuffle_seed=seed)


def find_library() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def documents(folder: Path | None = None) -> Iterator[Document]:
    """Read topics, then modules, both sorted by name. A text that has occurred before is left out.

    Args:
        folder: root of a standard library; None for that of the running Python.

    Raises:
        GPT2LabError: the folder holds no source files (some installations have only compiled files).
    """
    root = folder or find_library()
    seen: set[str] = set()
    for document in (*_read_topics(root / TOPICS), *_read_modules(root, seen)):
        if document.text not in seen:
            seen.add(document.text)
            yield document
    if not seen:
        raise GPT2LabError(f"{root} holds no Python sources; use a Python that includes those of its standard library")


def _read_topics(path: Path) -> Iterator[Document]:
    """One document for each entry of the dict literal `topics`."""
    tree = _parse(path)
    for statement in tree.body if tree else ():
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            for name, text in sorted(topics.items()):
                yield Document(f"topic/{name}", text.strip() + "\n")


def _read_modules(root: Path, seen: set[str]) -> Iterator[Document]:
    """One document for each module with docstrings."""
    paths = list(find_modules(root))
    for path in progress.track(paths, "reading Python's documentation"):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        tree = _parse(path)
        sections = [] if tree is None else list(_read_docstrings(tree, name, "", seen))
        if sections:
            yield Document(f"module/{name}", "\n\n\n".join(sections) + "\n")


def find_modules(root: Path) -> Iterator[Path]:
    """List the source files of a standard library, sorted, without tests, tables and other packages.

    Args:
        root: its folder.

    Yields:
        The paths.
    """
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.is_symlink():
            # Folders such as `config-3.11-x86_64-linux-gnu` are not packages.
            if path.name not in _SKIPPED_FOLDERS and path.name.isidentifier():
                yield from find_modules(path)
        elif path.suffix == ".py" and not path.name.startswith("_sysconfigdata"):
            yield path


def _parse(path: Path) -> ast.Module | None:
    """The syntax tree of a file, or None if it is missing or not valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old modules have invalid escapes
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _read_docstrings(node: ast.AST, heading: str, prefix: str, seen: set[str]) -> Iterator[str]:
    """Heading, blank line and docstring: of the node, then of the classes and functions in it, depth first."""
    if isinstance(node, _WITH_DOCSTRING):
        text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").strip()
        if text and text not in seen:
            seen.add(text)
            yield f"{heading}\n\n{text}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _read_docstrings(child, f"{prefix}{child.name}", f"{prefix}{child.name}.", seen)
        elif isinstance(child, (ast.stmt, ast.excepthandler)):
            yield from _read_docstrings(child, "", prefix, seen)  # definitions inside `if` or `try`

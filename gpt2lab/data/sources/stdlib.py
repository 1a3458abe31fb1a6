"""The corpus that is always at hand: English prose carried by the running Python's own standard library.

    pydoc_data/topics.py   the language reference as `help()` prints it    one topic  ─▶ one document
    every other module     its docstrings, in the order of the source      one module ─▶ one document

Both kinds are shuffled together, so that val, the first tenth of the tokens, has some of each.

Files are parsed (`ast`), never imported: importing some of them opens browsers or windows. The same Python version
always gives the same documents; another version gives slightly other ones, so `revision` goes into the manifest.
"""

import ast
import hashlib
import inspect
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from gpt2lab.data.sources import Document, Gathered, Source
from gpt2lab.errors import GPT2LabError

TOPICS = "pydoc_data/topics.py"
SHUFFLE_SEED = 1337

# Not prose, not part of Python proper, or different from one installation to the next.
_SKIPPED_FOLDERS = {
    "__pycache__",
    "_bundled",
    "dist-packages",
    "encodings",
    "idle_test",
    "lib2to3",
    "lib-dynload",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}

_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def source(seed: int = SHUFFLE_SEED) -> Source:
    """The corpus, shuffled by `seed`.

    Raises:
        GPT2LabError: the standard library's source is not there to be read.
    """
    # Sorting by a hash is a shuffle, and no version of a random number generator can change it.
    shuffled = sorted(documents(), key=lambda document: hashlib.blake2b(f"{seed}/{document.id}".encode()).digest())
    return Source("stdlib", "stdlib", revision(), (Gathered("stdlib", tuple(shuffled)),), shuffle_seed=seed)


def revision() -> str:
    """What the texts depend on, such as `CPython 3.11.7`."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def documents(folder: Path | None = None) -> Iterator[Document]:
    """Topics, then modules, sorted by name; a text that was seen before is dropped.

    Args:
        folder: root of a standard library; the running Python's unless given.

    Raises:
        GPT2LabError: the folder holds no source to read (some installations ship only compiled files).
    """
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    for document in (*_topics(root / TOPICS), *_modules(root, seen)):
        if document.text not in seen:
            seen.add(document.text)
            yield document
    if not seen:
        raise GPT2LabError(f"{root} holds no Python sources to read; use a Python that ships its standard library's")


def _topics(path: Path) -> Iterator[Document]:
    """One document for each entry of the dict literal `topics`."""
    tree = _parse(path)
    for statement in tree.body if tree else ():
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            for name, text in sorted(topics.items()):
                yield Document(f"topic/{name}", text.strip() + "\n")


def _modules(root: Path, seen: set[str]) -> Iterator[Document]:
    """One document for each module that has a docstring somewhere."""
    for path in _sources(root):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        tree = _parse(path)
        sections = [] if tree is None else list(_sections(tree, name, "", seen))
        if sections:
            yield Document(f"module/{name}", "\n\n\n".join(sections) + "\n")


def _sources(root: Path) -> Iterator[Path]:
    """Python files below `root`, sorted, without the folders that hold no prose."""
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.is_symlink():
            # Folders whose names are no identifiers (`config-3.11-x86_64-linux-gnu`) are no packages.
            if path.name not in _SKIPPED_FOLDERS and path.name.isidentifier():
                yield from _sources(path)
        elif path.suffix == ".py" and not path.name.startswith("_sysconfigdata"):
            yield path


def _parse(path: Path) -> ast.Module | None:
    """The file's syntax tree, or None where it is missing or is not valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old modules have invalid escapes; not our concern
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _sections(node: ast.AST, heading: str, prefix: str, seen: set[str]) -> Iterator[str]:
    """`heading`, blank line, docstring: for the node, then for the classes and functions inside it, depth first."""
    if isinstance(node, (ast.Module, *_DOCUMENTED)):
        text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").strip()
        if text and text not in seen:
            seen.add(text)
            yield f"{heading}\n\n{text}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _DOCUMENTED):
            yield from _sections(child, f"{prefix}{child.name}", f"{prefix}{child.name}.", seen)
        elif isinstance(child, (ast.stmt, ast.excepthandler)):
            yield from _sections(child, "", prefix, seen)  # what stands under `if` or `try` is at this level too

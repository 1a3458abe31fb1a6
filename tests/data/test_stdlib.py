"""The embedded corpus: always the same, of the size expected, and made without importing anything."""

import ast
import hashlib
import subprocess
import sys

import pytest

from gpt2lab.data.sources import stdlib
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError


@pytest.fixture
def library(tmp_path):
    """Write a small standard library: path to contents."""

    def write(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [tuple(document) for document in stdlib.documents(tmp_path)]

    return write


def test_size_of_the_corpus(corpus):
    encode = Tokenizer().encode
    assert 300_000 < sum(len(encode(text)) for _, text in corpus) < 1_500_000


def test_ids_and_texts_are_unique_and_clean(corpus):
    assert len({document.id for document in corpus}) == len(corpus)
    assert len({document.text for document in corpus}) == len(corpus)
    for document in corpus:
        assert document.text.strip()
        assert document.text.endswith("\n")
    names = {document.id for document in corpus}
    assert {"topic/while", "module/heapq", "module/json.decoder", "module/asyncio"} <= names
    assert not [name for name in names if "site-packages" in name or ".test." in name or "lib2to3" in name]


@pytest.mark.slow
def test_another_process_reads_the_same_documents_and_imports_no_module(corpus):
    program = (
        "import hashlib, sys; from gpt2lab.data.sources import stdlib; before = set(sys.modules); "
        "digest = hashlib.sha256(repr(list(stdlib.documents())).encode()).hexdigest(); "
        "print(digest, sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    digest, imported = run.stdout.split(" ", 1)
    assert digest == hashlib.sha256(repr(corpus).encode()).hexdigest()
    # Codecs that files declare, and what `sysconfig` itself loads to know its paths.
    assert not [name for name in ast.literal_eval(imported) if not name.startswith(("encodings.", "_sysconfigdata"))]
    assert run.stderr == ""


def test_reading_shows_how_much_is_done(library, phases):
    library({"a.py": '"A."', "b.py": '"B."'})
    (phase,) = phases.begun
    assert (phase.completed, phase.total) == (2, 2)


def test_topics_and_modules(library):
    documents = library(
        {
            "pydoc_data/topics.py": "topics = {'b': 'Text of b.\\n', 'a': '\\nText of a.'}",
            "zoo.py": '''"""The zoo.

                Indented."""
                ''',
            "pack/__init__.py": "'A package.'",
            "pack/inner.py": (
                "if True:\n  class A:\n    'Class A.'\n    def f(self):\n      'Method.'\n      async def g():\n"
                "        'Deep.'\n"
                "try:\n  pass\nexcept ImportError:\n  def h():\n    'Spare.'\n"
            ),
            "silent.py": "x = 1",
        }
    )
    assert documents == [
        ("topic/a", "Text of a.\n"),
        ("topic/b", "Text of b.\n"),
        ("module/pack", "pack\n\nA package.\n"),
        ("module/pack.inner", "A\n\nClass A.\n\n\nA.f\n\nMethod.\n\n\nA.f.g\n\nDeep.\n\n\nh\n\nSpare.\n"),
        ("module/zoo", "zoo\n\nThe zoo.\n\nIndented.\n"),
    ]


def test_what_is_skipped(library):
    documents = library(
        {
            "good.py": "'''Good.'''\nraise SystemExit('imported!')",
            "copy.py": "'''Copied.'''",
            "copy_again.py": "'''Copied.'''",
            "broken.py": "'''Broken.''' (",
            "zero.py": b"'''Nul.'''\x00",
            "latin.py": "# -*- coding: latin-1 -*-\n'''Caf\u00e9.'''".encode("latin-1"),
            "escape.py": "'''Bad \\d escape.'''",
            "test/x.py": "'''no'''",
            "unittest/tests/x.py": "'''no'''",
            "site-packages/x.py": "'''no'''",
            "lib2to3/x.py": "'''no'''",
            "idlelib/idle_test/x.py": "'''no'''",
            "ensurepip/_bundled/x.py": "'''no'''",
            "config-3.11-x86/x.py": "'''no'''",
            "_sysconfigdata_linux.py": "'''no'''",
        }
    )
    assert [name for name, _ in documents] == ["module/copy", "module/escape", "module/good", "module/latin"]
    assert documents[3][1] == "latin\n\nCafé.\n"


def test_an_installation_without_sources_is_refused(library, tmp_path):
    with pytest.raises(GPT2LabError, match=str(tmp_path)):
        library({"only.pyc": b"\x00"})

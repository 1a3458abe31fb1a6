"""The embedded source code: complete, clean, of the size expected, and never imported."""

import pytest

from gpt2lab.data.sources import cpython, stdlib
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError


def test_documents_are_the_modules_without_tests(tmp_path):
    files = {
        "b.py": b"raise SystemExit('imported!')",
        "a/__init__.py": b"",
        "a/c.py": b"\n\nx = 1\r\ny = 2\n\n",
        "copy.py": b"x = 1\ny = 2\n",
        "latin.py": "# -*- coding: latin-1 -*-\n# Caf\u00e9\n".encode("latin-1"),
        "wrong.py": b"# \xff",
        "test/d.py": b"x = 1",
        "idlelib/idle_test/d.py": b"x = 2",
        "site-packages/d.py": b"x = 3",
        "encodings/d.py": b"x = 4",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert [tuple(document) for document in cpython.documents(tmp_path)] == [
        ("a.c", "x = 1\ny = 2\n"),
        ("b", "raise SystemExit('imported!')\n"),
        ("latin", "# -*- coding: latin-1 -*-\n# Café\n"),
    ]


def test_the_running_python_has_about_four_million_tokens():
    documents = [*cpython.documents()]
    assert {"heapq", "json.decoder", "asyncio.tasks"} <= {document.id for document in documents}
    characters = sum(len(document.text) for document in documents)
    sample = documents[::25]
    rate = sum(len(Tokenizer().encode(document.text)) for document in sample) / sum(len(d.text) for d in sample)
    assert 2.5e6 < characters * rate < 6e6


def test_an_installation_without_sources_is_refused(tmp_path):
    with pytest.raises(GPT2LabError, match=str(tmp_path)):
        list(cpython.documents(tmp_path))


def test_the_order_is_that_of_the_seed(monkeypatch):
    monkeypatch.setattr(cpython, "documents", lambda: [stdlib.Document(str(i), f"{i}\n") for i in range(9)])
    first, again, other = cpython.source(1), cpython.source(1), cpython.source(2)
    assert first.identity() == again.identity() != other.identity()
    assert (first.name, first.val) == ("cpython", "tenth")

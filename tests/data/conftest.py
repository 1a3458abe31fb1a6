"""Fixtures for the tests of data: small corpora and shards."""

import numpy as np
import pytest

from gpt2lab.data.shards import open_split
from gpt2lab.data.sources import stdlib
from tests.data import corpora


@pytest.fixture(scope="session")
def corpus():
    """The documents of the running Python's standard library, which take seconds to read."""
    return list(stdlib.documents())


@pytest.fixture(scope="session")
def mirror(tmp_path_factory):
    """1,200 documents in 3 parquet files with 24 row groups, about 35,000 tokens. Do not write to it."""
    return corpora.mirror(tmp_path_factory.mktemp("mirror"))


@pytest.fixture
def make_stream(tmp_path):
    """Return a function that writes tokens, split at the positions `cuts`, as `.npy` shards and opens them."""

    def make(tokens, cuts=(), split="train"):
        for number, piece in enumerate(np.split(np.asarray(tokens, dtype=np.uint16), list(cuts))):
            np.save(tmp_path / f"{split}_{number:03d}.npy", piece)
        if split == "train":  # otherwise the end of train would be held out
            np.save(tmp_path / "val_000.npy", np.zeros(1, dtype=np.uint16))
        return open_split(tmp_path, split)

    return make

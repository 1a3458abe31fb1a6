"""Shards made on the spot, so that no test needs data from elsewhere."""

import numpy as np
import pytest

from gpt2lab.data.shards import open_split


@pytest.fixture
def make_stream(tmp_path):
    """Return a function that writes tokens, split at the positions `cuts`, as `.npy` shards and opens them."""

    def make(tokens, cuts=(), split="train"):
        for number, piece in enumerate(np.split(np.asarray(tokens, dtype=np.uint16), list(cuts))):
            np.save(tmp_path / f"{split}_{number:03d}.npy", piece)
        return open_split(tmp_path, split)

    return make

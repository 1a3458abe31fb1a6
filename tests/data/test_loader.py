"""The loader: the batch of a step depends on the step alone, not on earlier calls."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.data.loader import Loader, fixed_sequences, prefetch, read_sequences
from gpt2lab.data.permutation import permute
from gpt2lab.data.shards import open_split
from gpt2lab.errors import GPT2LabError


def loader(stream, *, block_size=4, sequences=6, seed=0, vocab_size=50257, rank=0, world_size=1):
    return Loader(
        stream,
        block_size=block_size,
        sequences_per_step=sequences,
        vocab_size=vocab_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


@settings(max_examples=150, deadline=None)
@given(n=st.one_of(st.integers(1, 70), st.integers(1, 5000)), key=st.text(max_size=5))
def test_permutation_is_a_bijection(n, key):
    image = permute(np.arange(n), n, key)
    assert image.dtype == np.int64
    assert sorted(image.tolist()) == list(range(n))
    some = np.arange(n)[:: max(1, n // 7)]
    assert permute(some, n, key).tolist() == image[some].tolist()  # each place by itself


def test_a_large_permutation_stays_in_range():
    n = 10_000_000_000
    image = permute(np.arange(100_000) * 99_999, n, "key")
    assert len(set(image.tolist())) == 100_000
    assert image.min() >= 0
    assert image.max() < n


def test_permutations_look_random():
    """Over many keys every index is mapped to every other equally often, and neighbours are separated."""
    n, keys = 10, 4000
    images = np.array([permute(np.arange(n), n, str(key)) for key in range(keys)])
    for place in range(n):
        counts = np.bincount(images[:, place], minlength=n)
        assert abs(counts - keys / n).max() < 5 * (keys / n) ** 0.5
    image = permute(np.arange(100_000), 100_000, "key")
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02
    assert (np.diff(image) == 1).mean() < 0.001


def test_the_order_never_changes(make_stream):
    """A change of this order would make every run irreproducible; if it must change, say so in the changelog."""
    assert loader(make_stream(range(41)), seed=1337).sequence_ids(0).tolist() == [6, 8, 9, 7, 2, 5]


@settings(max_examples=60, deadline=None)
@given(size=st.integers(5, 200), block=st.integers(1, 4), per_step=st.integers(1, 40), seed=st.integers(0, 9))
def test_every_sequence_once_an_epoch(tmp_path_factory, size, block, per_step, seed):
    folder = tmp_path_factory.mktemp("epoch")
    np.save(folder / "train_0.npy", np.arange(size, dtype=np.uint16))
    loading = loader(open_split(folder, "train"), block_size=block, sequences=per_step, seed=seed)
    n = loading.sequences
    steps = -(-3 * n // per_step)
    ids = np.concatenate([loading.sequence_ids(step) for step in range(steps)])
    for epoch in range(3):
        assert sorted(ids[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))
    x, y = read_sequences(loading.stream, np.arange(n), block, 50257)
    assert (y - x == 1).all()
    assert set(y.ravel().tolist()) == set(range(1, size))  # every token but the first is a target
    assert set(x.ravel().tolist()) == set(range(size - 1))


def test_epochs_and_seeds_differ(make_stream):
    stream = make_stream(range(401))
    orders = [loader(stream, sequences=100, seed=seed).sequence_ids(step) for seed in range(3) for step in range(3)]
    assert len({tuple(order.tolist()) for order in orders}) == 9


def test_a_step_depends_on_the_step_alone(make_stream):
    stream = make_stream(range(100), [13, 14, 50])
    one, other = loader(stream), loader(stream)
    expected = [one.batch(step) for step in range(9)]
    for step in (8, 2, 2, 5):
        for left, right in zip(expected[step], other.batch(step), strict=True):
            np.testing.assert_array_equal(left, right)


def test_ranks_divide_the_same_step(make_stream):
    stream = make_stream(range(100))
    for step in (0, 1, 7):
        whole = loader(stream, sequences=12).batch(step)
        for world_size in (1, 2, 3, 4):
            shares = [
                loader(stream, sequences=12, rank=r, world_size=world_size).batch(step) for r in range(world_size)
            ]
            for part in (0, 1):
                np.testing.assert_array_equal(np.concatenate([share[part] for share in shares]), whole[part])


def test_batches_do_not_depend_on_shard_borders(make_stream, tmp_path_factory):
    tokens = np.random.default_rng(0).integers(0, 50257, 500).astype(np.uint16)
    folder = tmp_path_factory.mktemp("flat")
    np.save(folder / "train.npy", tokens)
    flat, cut = loader(open_split(folder, "train")), loader(make_stream(tokens, [1, 2, 9, 250, 251, 499]))
    for step in range(40):
        for left, right in zip(flat.batch(step), cut.batch(step), strict=True):
            np.testing.assert_array_equal(left, right)


def test_batches_are_int64_and_match_the_sequence_ids(make_stream):
    tokens = np.random.default_rng(0).integers(0, 50257, 90)
    loading = loader(make_stream(tokens))
    for step in range(10):
        x, y = loading.batch(step)
        assert x.dtype == y.dtype == np.int64
        assert x.flags.c_contiguous
        assert y.flags.c_contiguous
        for row, sequence in enumerate(loading.sequence_ids(step).tolist()):
            start = min(sequence * 4, 90 - 1 - 4)
            assert x[row].tolist() == tokens[start : start + 4].tolist()
            assert y[row].tolist() == tokens[start + 1 : start + 5].tolist()


def test_too_little_data(make_stream):
    with pytest.raises(GPT2LabError, match=r"model\.block_size") as caught:
        loader(make_stream(range(4)))
    assert str(make_stream(range(4)).folder) in str(caught.value)
    assert loader(make_stream(range(5)), sequences=3).batch(4)[0].tolist() == [[0, 1, 2, 3]] * 3


def test_ids_outside_the_vocabulary_are_found_on_construction(make_stream):
    tokens = np.arange(50)
    tokens[33] = 50257
    stream = make_stream(tokens, [20, 40])
    with pytest.raises(GPT2LabError, match=r"train_001\.npy: token 13 .*model\.vocab_size"):
        loader(stream)
    assert loader(stream, vocab_size=50304)


def test_ids_outside_the_vocabulary_are_found_in_a_batch(make_stream):
    tokens = np.zeros(70_000 + 30, dtype=np.uint16)
    tokens[70_010] = 60_000
    loading = loader(make_stream(tokens, [100]), block_size=1000, sequences=1)
    bad = next(step for step in range(loading.sequences) if loading.sequence_ids(step)[0] == 70)
    with pytest.raises(GPT2LabError, match=r"train_001\.npy: token 69910 "):
        loading.batch(bad)
    for step in range(loading.sequences):
        if loading.sequence_ids(step)[0] not in (69, 70):  # the last two overlap
            loading.batch(step)


def test_fixed_sequences(make_stream):
    stream = make_stream(range(42), split="val")
    assert fixed_sequences(stream, 4, 10_000_000) == 10
    assert fixed_sequences(stream, 4, 23) == 5
    assert fixed_sequences(stream, 41, 41) == 1
    x, y = read_sequences(stream, np.arange(5), 4, 50257)
    assert x.ravel().tolist() == list(range(20))
    assert y.ravel().tolist() == list(range(1, 21))
    with pytest.raises(GPT2LabError, match=r"model\.block_size"):
        fixed_sequences(stream, 42, 1000)
    with pytest.raises(GPT2LabError, match=r"train\.eval_tokens"):
        fixed_sequences(stream, 4, 3)


def prefetching():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetch_gives_the_same_batches(make_stream):
    loading = loader(make_stream(range(100)))
    got = list(prefetch(loading.batch, 3, 9))
    assert len(got) == 6
    for step, pair in zip(range(3, 9), got, strict=True):
        for left, right in zip(pair, loading.batch(step), strict=True):
            np.testing.assert_array_equal(left, right)
    assert list(prefetch(loading.batch, 5, 5)) == []
    assert not prefetching()


def test_prefetch_works_one_step_ahead():
    begun = []
    steps = prefetch(lambda step: begun.append(step) or step, 0, 100)
    assert next(steps) == 0
    deadline = time.monotonic() + 5
    while len(begun) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert begun == [0, 1]
    steps.close()
    assert not prefetching()


def test_prefetch_raises_at_the_step_that_failed():
    def batch(step):
        if step == 2:
            raise GPT2LabError("step 2 is bad")
        return step

    steps = prefetch(batch, 0, 5)
    assert [next(steps), next(steps)] == [0, 1]
    with pytest.raises(GPT2LabError, match="step 2 is bad"):
        next(steps)
    assert not prefetching()


def test_prefetch_ends_when_the_loop_breaks():
    def consume():
        for value in prefetch(lambda step: step, 0, 5):
            if value == 1:
                return

    consume()
    assert not prefetching()

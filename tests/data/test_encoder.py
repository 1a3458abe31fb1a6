"""gigatoken must give the same ids as tiktoken for every text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab import packages
from gpt2lab.data import encoder as encoder_module
from gpt2lab.data import unicode_differences
from gpt2lab.data.encoder import Encoder, encode
from gpt2lab.data.sources import Texts, in_memory_chunk
from gpt2lab.data.tokenizer import EOT, EOT_TEXT, Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.options import PrepareOptions

REFERENCE = Tokenizer()
FAST = Encoder("gigatoken")
SLOW = Encoder("tiktoken")

PIECES = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from(
        [" ", "\n", "\t", "\r\n", "'s", "'ll", "'LL", "'", EOT_TEXT, "<|", "|>", "the", "\u00a0", "\u3000"]
    ),
    st.sampled_from(
        ["\x1c", "\x85", "\u200b", "\ufeff", "e\u0301", "🙂", "👩‍👩‍👧", "Ⅷ", "²", "٣", "\u0627", "क्", "\U000e0041"]
    ),
    st.builds(lambda sign, count: sign * count, st.sampled_from(" \n\t0a!'é中\u00a0"), st.integers(1, 400)),
)
DOCUMENTS = st.lists(st.lists(PIECES, max_size=30).map("".join), max_size=8)


def expected(texts):
    return [token for text in texts for token in (EOT, *REFERENCE.encode(text))]


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS)
def test_equal_to_tiktoken(texts):
    for encoder in (FAST, SLOW):
        tokens, lengths = encoder.encode(Texts.join(texts))
        assert tokens.dtype == np.uint16
        assert tokens.tolist() == expected(texts)
        assert lengths.tolist() == [1 + len(REFERENCE.encode(text)) for text in texts]


@pytest.mark.slow
def test_every_unicode_character():
    """Each of the 1.1 million code points after a letter, between spaces, before a digit and before a contraction."""
    everything = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(everything), 1024):
        block = everything[start : start + 1024]
        texts = ["".join(f"a{c} {c}'s {c}{c}1  {c}\n" for c in block[k : k + 64]) for k in range(0, len(block), 64)]
        assert FAST.encode(Texts.join(texts))[0].tolist() == expected(texts)


@pytest.mark.parametrize(
    ("sign", "megabytes"),
    [
        (" ", 10),
        pytest.param("word ", 10, marks=pytest.mark.slow),
        pytest.param("a", 3, marks=pytest.mark.slow),
        ("7", 1),
        ("\n", 1),
        ("!", 1),
        ("中", 1),
        (" \t", 1),
        ("'s", 1),
    ],
)
def test_very_long_lines(sign, megabytes):
    text = sign * (megabytes * 1_000_000 // len(sign.encode())) + "x"
    assert FAST.encode(Texts.join([text, "y"]))[0].tolist() == expected([text, "y"])


def test_end_of_text_in_a_text_is_encoded_as_text():
    tokens, lengths = FAST.encode(Texts.join([EOT_TEXT, "", f"a{EOT_TEXT}"]))
    assert (tokens == EOT).sum() == 3
    assert lengths[1] == 1


def test_lone_surrogates_become_replacement_characters():
    assert FAST.encode(Texts.join(["a\ud800b\U0001f600"]))[0].tolist() == expected(["a\ufffdb\U0001f600"])


def test_no_documents():
    for encoder in (FAST, SLOW):
        tokens, lengths = encoder.encode(Texts.join([]))
        assert (len(tokens), len(lengths), tokens.dtype) == (0, 0, np.dtype(np.uint16))


def test_unicode_differences_are_encoded_by_tiktoken():
    texts = ["plain", "\U000323b0's", "", "x\u088f's 🙂 \U00033479\U00016ea0'll", "naïve 東京 ꟼ's", "\U0001e6c0's"]
    assert unicode_differences.find_documents(Texts.join(texts)) == [1, 3, 5]
    assert unicode_differences.find_documents(Texts.join([])) == []
    tokens, lengths = FAST.encode(Texts.join(texts))
    assert tokens.tolist() == expected(texts)
    assert lengths.sum() == len(tokens)
    characters = [chr(code) for first, last in unicode_differences.RANGES.tolist() for code in range(first, last + 1)]
    assert len(characters) == 4657
    assert unicode_differences.find_documents(Texts.join(characters)) == [*range(4657)]


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=60).map(" ".join))
def test_the_pieces_of_a_long_document_have_the_tokens_of_the_whole(text):
    counted = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "_PIECE", 7)
        tokens, _ = SLOW.encode(Texts.join([text]), on_bytes=counted.append)
    assert tokens.tolist() == expected([text])
    assert sum(counted) == len(text.encode())


def test_encoding_stops_if_nobody_waits():
    def stop(_):
        raise KeyboardInterrupt

    for engine in ("tiktoken", "gigatoken"):
        with pytest.raises(KeyboardInterrupt):
            Encoder(engine).encode(Texts.join(["a b " * 100]), on_bytes=stop)


def test_a_different_result_is_found_in_every_chunk(monkeypatch):
    """One document of each chunk is compared, so a tokenizer that is always wrong fails on every chunk."""

    class Wrong:
        def encode(self, text):
            return [0, *REFERENCE.encode(text)]

    wrong = Encoder("gigatoken")
    monkeypatch.setattr(wrong, "_tiktoken", Wrong())
    for name in ("a", "b", "c"):
        with pytest.raises(GPT2LabError, match=rf"{name}: .*--tokenizer tiktoken"):
            wrong.encode(Texts.join(["one", "two", "x" * 50_000]), name)
    for text in ("x y " * 10_000, "x" * 30_000 + " y" * 10_000):
        with pytest.raises(GPT2LabError):
            wrong.encode(Texts.join([text]), "the beginning of a long one")
    wrong.encode(Texts.join(["x" * 50_000]), "a long one without white space, for which tiktoken would take minutes")
    unchecked = Encoder("gigatoken", check=False)
    monkeypatch.setattr(unchecked, "_tiktoken", Wrong())
    assert unchecked.encode(Texts.join(["one"]))[0].tolist() == expected(["one"])


def test_without_gigatoken_there_is_tiktoken(monkeypatch):
    monkeypatch.setattr(packages, "is_installed", lambda name: False)
    assert Encoder().encode(Texts.join(["one two"]))[0].tolist() == expected(["one two"])
    with pytest.raises(GPT2LabError, match="--tokenizer"):
        Encoder("gigatoken")


def test_resetting_gigatoken_does_not_change_the_result(monkeypatch):
    monkeypatch.setattr(encoder_module, "_MIN_BYTES_BETWEEN_RESETS", 0)
    monkeypatch.setattr(encoder_module, "_resident_bytes", lambda: 1 << 40)
    encoder = Encoder("gigatoken")
    first = encoder._gigatoken
    assert encoder.encode(Texts.join(["one two"]))[0].tolist() == expected(["one two"])
    assert encoder._gigatoken is not first


def test_hashes_are_equal_where_documents_are():
    unit = in_memory_chunk("u", Texts.join(["same", "other", "same", ""]))
    hashes = encode(PrepareOptions("files"), unit).hashes
    assert hashes[0] == hashes[2]
    assert len(set(hashes.tolist())) == 3
    assert (encode(PrepareOptions("files", tokenizer="tiktoken"), unit).hashes == hashes).all()

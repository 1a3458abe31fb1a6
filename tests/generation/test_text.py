"""Streamed text: complete characters, stop strings, end of text; and prompts that cannot be continued."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.config import GPT2Config
from gpt2lab.data.tokenizer import EOT, Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation import text
from gpt2lab.generation.engine import Token
from gpt2lab.generation.sampling import Sampling
from gpt2lab.model.gpt2 import GPT2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


@pytest.fixture(scope="module")
def model() -> GPT2:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=50304)
    return GPT2(config, generator=torch.Generator().manual_seed(0))


def decode(tokenizer, ids, stop=(), limit=None):
    """The text deltas of a row whose sampled tokens are these ids."""
    decoder = text.RowDecoder(tokenizer, stop, limit or len(ids))
    deltas = []
    for token in ids[:limit]:
        deltas.append(decoder.decode(Token(0, token)))
        if deltas[-1].end:
            break
    return deltas


# Characters of one to four bytes, and sequences of several characters that are displayed as one.
texts = st.text(st.sampled_from("ab \néßжあ漢🙂👍🏽\u200d\u0301"), max_size=30)


@settings(max_examples=200, deadline=None)
@given(content=texts)
def test_deltas_are_complete_characters_and_make_up_the_text(tokenizer, content):
    ids = tokenizer.encode(content)
    deltas = decode(tokenizer, ids)
    assert "".join(delta.text for delta in deltas) == content
    assert [delta.token.id for delta in deltas] == ids
    assert all("\ufffd" not in delta.text for delta in deltas)


@settings(max_examples=100, deadline=None)
@given(content=texts.filter(bool), data=st.data())
def test_an_incomplete_character_at_the_end_is_dropped(tokenizer, content, data):
    ids = tokenizer.encode(content)
    limit = data.draw(st.integers(1, len(ids)))
    deltas = decode(tokenizer, ids, limit=limit)
    assert "".join(delta.text for delta in deltas) == tokenizer.decode_bytes(ids[:limit]).decode(errors="ignore")
    assert deltas[-1].end == "length"


def test_bytes_that_are_not_utf8_become_replacement_characters(tokenizer):
    letter = tokenizer.encode("a")
    first_byte = [next(n for n in range(256) if tokenizer.decode_bytes([n]) == b"\xe3")]
    assert (
        "".join(delta.text for delta in decode(tokenizer, first_byte + letter + first_byte + first_byte))
        == "\ufffda\ufffd"
    )


@settings(max_examples=200, deadline=None)
@given(
    content=st.text(st.sampled_from("ab🙂"), max_size=20),
    stop=st.lists(st.text(st.sampled_from("ab🙂"), min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop_string(tokenizer, content, stop):
    ids = [token for character in content for token in tokenizer.encode(character)]  # so that stop strings span tokens
    deltas = decode(tokenizer, ids, stop)
    matches = [(start + len(string), start) for string in stop if (start := content.find(string)) >= 0]
    end, start = min(matches, default=(None, None))  # the one that is complete first
    assert "".join(delta.text for delta in deltas) == content[:start]
    assert [delta.end for delta in deltas if delta.end] == (["stop"] if matches else ["length"] if content else [])
    expected = [token for character in content[:end] for token in tokenizer.encode(character)]
    assert [delta.token.id for delta in deltas] == expected


def test_the_end_of_text_token_ends_the_row_and_is_not_part_of_its_text(tokenizer):
    deltas = decode(tokenizer, [*tokenizer.encode("a b"), EOT, *tokenizer.encode("c")])
    assert "".join(delta.text for delta in deltas) == "a b"
    assert [delta.end for delta in deltas] == [None, None, "end_of_text"]


def test_text_held_back_for_a_stop_string_is_returned_at_the_end(tokenizer):
    ids = tokenizer.encode("one two")
    assert [delta.text for delta in decode(tokenizer, ids, ["two three"])] == ["one", " two"]
    assert [delta.text for delta in decode(tokenizer, [*ids, EOT], ["two three"])] == ["one", " ", "two"]


def test_complete_equals_generate(model, tokenizer):
    prompt = "Hello this is AI model,"
    ids = tokenizer.encode(prompt)
    rows = model.generate([ids], 30, top_k=50, temperature=0.8, seed=1)
    completed = model.complete(prompt, max_new_tokens=30, top_k=50, temperature=0.8, seed=1)
    assert completed == prompt + tokenizer.decode_bytes(rows[0][len(ids) :]).decode(errors="ignore")
    assert completed == model.complete(prompt, 30, top_k=50, temperature=0.8, seed=1, tokenizer=tokenizer)
    assert completed != model.complete(prompt, 30, top_k=50, temperature=0.8, seed=2)


def test_a_row_that_stopped_does_not_change_other_rows(model, tokenizer):
    prompts = ["Once upon a time", "One", "Return the number of"]
    full = text.complete(model, tokenizer, prompts, 24, seeds=[1, 2, 3])
    stop = full[1][5:9]
    assert stop not in full[0]
    assert stop not in full[2]
    stopped = text.complete(model, tokenizer, prompts, 24, seeds=[1, 2, 3], stop=[stop])
    assert stopped == [full[0], full[1][: full[1].index(stop)], full[2]]


def test_closing_the_stream_stops_the_computation(model, tokenizer):
    calls = []
    hook = model.transformer.register_forward_hook(lambda *arguments: calls.append(1))
    stream = text.stream(model, tokenizer, [[1], [2]], 50)
    for _ in range(3):  # two rows per step
        next(stream)
    stream.close()
    hook.remove()
    assert len(calls) == 3  # each prompt, then one token of both
    assert list(stream) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ("a\0b", "NUL \\(character 2\\)"),
        ("a\udcffb", "not valid UTF-8 \\(character 2\\)"),
    ],
)
def test_prompts_that_cannot_be_continued(model, tokenizer, prompt, message):
    with pytest.raises(GPT2LabError, match=message):
        model.complete(prompt, tokenizer=tokenizer)


def test_a_prompt_longer_than_the_window_keeps_its_last_tokens_with_a_note(model, tokenizer, caplog):
    ids = tokenizer.encode("word " * 17)
    greedy = {"temperature": 0, "max_new_tokens": 4, "tokenizer": tokenizer}
    long = model.complete(tokenizer.decode(ids), **greedy)
    assert f"{len(ids)} tokens" in caplog.text
    assert "last 16 (block_size)" in caplog.text
    caplog.clear()
    short = model.complete(tokenizer.decode(ids[-16:]), **greedy)
    assert long.removeprefix(tokenizer.decode(ids)) == short.removeprefix(tokenizer.decode(ids[-16:]))
    assert not caplog.text


def test_a_prompt_with_tokens_outside_the_vocabulary_is_rejected(tokenizer):
    small = GPT2(GPT2Config(n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=300))
    with pytest.raises(GPT2LabError, match="vocab_size is 300"):
        small.complete("Hello", tokenizer=tokenizer)


def test_an_empty_stop_string_is_rejected(model, tokenizer):
    with pytest.raises(GPT2LabError, match="stop string"):
        next(text.stream(model, tokenizer, [[1]], 3, Sampling(), stop=["a", ""]))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda model: model.generate("hello"), r"idx is text; .*int64 \(B, T\).* model\.complete"),
        (lambda model: model.generate(None, seed=1), "idx is NoneType None; it must be token ids"),
        (lambda model: model.generate([1, 2]), r"idx is list \[1, 2\]; .*lists of them such as \[\["),
        (lambda model: model.generate([[1.5]]), r"idx is list \[\[1\.5\]\]; it must be token ids"),
        (lambda model: model.generate([[1]], "5"), "max_new_tokens is '5'; it must be a whole number"),
        (lambda model: model.generate([[1]], 2, seed=1.5), r"seed is 1\.5; it must be a whole number"),
        (lambda model: model.generate([[1]], 2, temperature="hot"), "temperature is 'hot'; it must be a number"),
        (lambda model: model.generate([[1]], 2, top_k=2.5), "top_k is 2.5; it must be a whole number"),
        (lambda model: model.complete(5), r"the prompt is int 5; it must be text \(str\)"),
        (lambda model: model.complete("a", "b"), "max_new_tokens is 'b'; it must be a whole number"),
        (lambda model: model.complete("a", stop="\n\n"), "it must be a list of strings"),
        (lambda model: type(model).from_pretrained(""), "the model's name is empty; give a run directory"),
        (lambda model: type(model).from_pretrained(None), "the model's name is NoneType None; give a run directory"),
        (lambda model: type(model)({"n_layer": 2}), "the config is dict .*; it must be a GPT2Config"),
        (lambda model: Tokenizer().encode(model.config.n_layer), "the text to encode is int 1; it must be str"),
        (lambda model: Tokenizer().decode(model.architecture), "they must be whole numbers"),
    ],
)
def test_arguments_of_another_type_are_errors_that_say_what_is_expected(call, expected):
    with pytest.raises(GPT2LabError, match=expected):
        call(GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=8, block_size=16)))

"""Text as it comes: whole characters, stop strings, the end of a text; and prompts that cannot be continued."""

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


def pieces(tokenizer, ids, stop=(), limit=None):
    """What a row shows, had the model drawn these ids."""
    row = text._Row(tokenizer, stop, limit or len(ids))
    shown = []
    for token in ids[:limit]:
        shown.append(row.take(Token(0, token)))
        if shown[-1].end:
            break
    return shown


# Letters of one to four bytes, and sequences of several characters that look like one.
written = st.text(st.sampled_from("ab \néßжあ漢🙂👍🏽\u200d\u0301"), max_size=30)


@settings(max_examples=200, deadline=None)
@given(content=written)
def test_pieces_are_whole_characters_and_make_up_the_text(tokenizer, content):
    ids = tokenizer.encode(content)
    shown = pieces(tokenizer, ids)
    assert "".join(piece.text for piece in shown) == content
    assert [piece.token.id for piece in shown] == ids
    assert all("\ufffd" not in piece.text for piece in shown)


@settings(max_examples=100, deadline=None)
@given(content=written.filter(bool), data=st.data())
def test_what_ends_within_a_character_ends_before_it(tokenizer, content, data):
    ids = tokenizer.encode(content)
    limit = data.draw(st.integers(1, len(ids)))
    shown = pieces(tokenizer, ids, limit=limit)
    assert "".join(piece.text for piece in shown) == tokenizer.decode_bytes(ids[:limit]).decode(errors="ignore")
    assert shown[-1].end == "length"


def test_bytes_that_are_no_character_are_shown_as_such(tokenizer):
    letter = tokenizer.encode("a")
    lead = [next(n for n in range(256) if tokenizer.decode_bytes([n]) == b"\xe3")]
    assert "".join(piece.text for piece in pieces(tokenizer, lead + letter + lead + lead)) == "\ufffda\ufffd"


@settings(max_examples=200, deadline=None)
@given(
    content=st.text(st.sampled_from("ab🙂"), max_size=20),
    stop=st.lists(st.text(st.sampled_from("ab🙂"), min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop_string(tokenizer, content, stop):
    ids = [token for character in content for token in tokenizer.encode(character)]  # strings lie across tokens
    shown = pieces(tokenizer, ids, stop)
    found = [(place + len(string), place) for string in stop if (place := content.find(string)) >= 0]
    end, first = min(found, default=(None, None))  # the one that is complete first
    assert "".join(piece.text for piece in shown) == content[:first]
    assert [piece.end for piece in shown if piece.end] == (["stop"] if found else ["length"] if content else [])
    drawn = [token for character in content[:end] for token in tokenizer.encode(character)]
    assert [piece.token.id for piece in shown] == drawn  # and not one more


def test_end_of_text_ends_it_and_is_not_shown(tokenizer):
    shown = pieces(tokenizer, [*tokenizer.encode("a b"), EOT, *tokenizer.encode("c")])
    assert "".join(piece.text for piece in shown) == "a b"
    assert [piece.end for piece in shown] == [None, None, "end_of_text"]


def test_what_was_held_back_for_a_stop_string_comes_at_the_end(tokenizer):
    ids = tokenizer.encode("one two")
    assert [piece.text for piece in pieces(tokenizer, ids, ["two three"])] == ["one", " two"]
    assert [piece.text for piece in pieces(tokenizer, [*ids, EOT], ["two three"])] == ["one", " ", "two"]


def test_complete_is_generate_with_words(model, tokenizer):
    prompt = "Hello this is AI model,"
    ids = tokenizer.encode(prompt)
    rows = model.generate([ids], 30, top_k=50, temperature=0.8, seed=1)
    completed = model.complete(prompt, max_new_tokens=30, top_k=50, temperature=0.8, seed=1)
    assert completed == prompt + tokenizer.decode_bytes(rows[0][len(ids) :]).decode(errors="ignore")
    assert completed == model.complete(prompt, 30, top_k=50, temperature=0.8, seed=1, tokenizer=tokenizer)
    assert completed != model.complete(prompt, 30, top_k=50, temperature=0.8, seed=2)


def test_a_row_that_stopped_leaves_the_others_as_they_were(model, tokenizer):
    prompts = ["Once upon a time", "One", "Return the number of"]
    free = text.complete(model, prompts, 24, seeds=[1, 2, 3], tokenizer=tokenizer)
    stop = free[1][5:9]
    assert stop not in free[0]
    assert stop not in free[2]
    cut = text.complete(model, prompts, 24, seeds=[1, 2, 3], stop=[stop], tokenizer=tokenizer)
    assert cut == [free[0], free[1][: free[1].index(stop)], free[2]]


def test_closing_the_stream_stops_the_computation(model, tokenizer):
    calls = []
    hook = model.transformer.register_forward_hook(lambda *arguments: calls.append(1))
    stream = text.stream(model, tokenizer, [[1], [2]], 50)
    for _ in range(3):  # two rows a step
        next(stream)
    stream.close()
    hook.remove()
    assert len(calls) == 3  # each prompt, then a token of both
    assert list(stream) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ("a\0b", "NUL \\(character 2\\)"),
        ("a\udcffb", "not valid UTF-8 \\(character 2\\)"),
        ("word " * 17, "the prompt has 18 tokens, but the model's window \\(block_size\\) is 16"),
    ],
)
def test_prompts_that_cannot_be_continued(model, tokenizer, prompt, message):
    with pytest.raises(GPT2LabError, match=message):
        model.complete(prompt, tokenizer=tokenizer)


def test_a_vocabulary_too_small_for_the_prompt(tokenizer):
    small = GPT2(GPT2Config(n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=300))
    with pytest.raises(GPT2LabError, match="but the model's vocab_size is 300"):
        small.complete("Hello", tokenizer=tokenizer)


def test_an_empty_stop_string_is_refused(model, tokenizer):
    with pytest.raises(GPT2LabError, match="a stop string is empty"):
        text.stream(model, tokenizer, [[1]], 3, Sampling(), stop=["a", ""])

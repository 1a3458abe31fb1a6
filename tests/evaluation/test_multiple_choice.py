"""Multiple choice: counting answers and encoding texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.evaluation.multiple_choice import Question, count_correct, encode, encode_pair, interval95, subset
from gpt2lab.evaluation.scoring import Scores


def scores_of(losses: list[float], tokens: list[int]) -> Scores:
    none = np.zeros(len(losses), dtype=bool)
    return Scores(np.array(losses), np.array(tokens), none, none)


def test_accuracy_by_summed_and_by_mean_loss():
    questions = [Question(("c",), (" x", " yy"), 1), Question(("c",), (" x", " yy", " z"), 2)]
    scores = scores_of([3.0, 4.0, 9.0, 6.0, 4.0], [1, 2, 3, 3, 1])  # means 3 2 | 3 2 4
    values = count_correct(questions, scores, {"_norm": scores.tokens})
    assert (values["acc"], values["correct"], values["acc_norm"], values["correct_norm"]) == (0.5, 1, 0.5, 1)
    assert values["predictions"] == [0, 2]
    assert values["predictions_norm"] == [1, 1]
    assert values["total"] == 2


def test_the_first_of_equal_choices_is_predicted():
    questions = [Question(("c",), (" x", " y"), 0)]
    assert count_correct(questions, scores_of([2.0, 2.0], [1, 1]), {})["predictions"] == [0]


def test_the_interval_is_wilsons_score():
    low, high = interval95(2982, 10042)
    assert (round(low, 4), round(high, 4)) == (0.2881, 0.3060)
    assert interval95(0, 10)[0] == pytest.approx(0, abs=1e-9)
    assert interval95(10, 10)[1] == pytest.approx(1)


def test_a_subset_is_fixed_and_in_order():
    items = list(range(1000))
    chosen = subset(items, 50)
    assert chosen == subset(items, 50)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 50
    assert chosen != items[:50]
    assert subset(items, None) == subset(items, 0) == subset(items, 5000) == items


text = st.text(st.sampled_from("ab .'\n1é,日"), max_size=20)


@given(context=text, continuation=text.filter(lambda t: t.strip()))
def test_a_pair_has_the_ids_of_the_concatenated_text(tokenizer, context, continuation):
    """lm-evaluation-harness encodes the concatenated text and splits it after as many ids as the context has."""
    pair = encode_pair(tokenizer, context, f" {continuation}")
    expected = tokenizer.encode(f"{context} {continuation}")
    if context.strip():
        assert [*pair.context, *pair.continuation] == expected
    else:
        assert list(pair.context) == [tokenizer.eot]
        assert list(pair.continuation) == expected


def test_each_choice_follows_its_context(tokenizer):
    questions = [Question(("the man ",), (" sings", " walks"), 0), Question(("a b", "a c"), (" d", " d"), 1)]
    requests = encode(tokenizer, questions)
    assert [tokenizer.decode(request.context) for request in requests] == ["the man", "the man", "a b", "a c"]
    assert [tokenizer.decode(request.continuation) for request in requests] == ["  sings", "  walks", " d", " d"]

"""Sampling: against transformers, and the promises of the docstring."""

import copy

import pytest
import torch

from gpt2lab.config import GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model.generate import generate, sample
from gpt2lab.model.gpt2 import GPT2

PROMPT = torch.tensor([[5, 1, 4], [9, 9, 2]])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model() -> GPT2:
    """Tiny, and opinionated: with large weights the next token depends on the ones before."""
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=60, tie_word_embeddings=False)
    model = GPT2(config, generator=seeded(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


def test_greedy_equals_transformers(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    options = {"do_sample": False, "max_new_tokens": 13, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), **options)
    assert torch.equal(generate(model, PROMPT, 13, temperature=0), expected)
    assert len(set(expected[0, 3:].tolist())) > 1  # one token over and over would prove little


def test_greedy_is_the_argmax_of_the_cropped_window(model):
    out = generate(model, PROMPT, 30, temperature=0)
    assert out.shape == (2, 33)
    assert torch.equal(out[:, :3], PROMPT)
    for end in range(3, 33):
        logits, _ = model(out[:, max(0, end - 16) : end])
        assert torch.equal(out[:, end], logits[:, -1].argmax(-1))


def test_top_k_of_one_and_a_cold_temperature_are_greedy(model):
    greedy = generate(model, PROMPT, 10, temperature=0)
    assert torch.equal(generate(model, PROMPT, 10, top_k=1), greedy)
    for temperature in (1e-5, 1e-6, 1e-30, 1e-300):
        assert torch.equal(generate(model, PROMPT, 10, temperature=temperature), greedy)


def test_a_seed_gives_the_same_text(model):
    first = generate(model, PROMPT, 20, generator=seeded(1))
    assert torch.equal(first, generate(model, PROMPT, 20, generator=seeded(1)))
    assert not torch.equal(first, generate(model, PROMPT, 20, generator=seeded(2)))
    assert not torch.equal(generate(model, PROMPT, 20), generate(model, PROMPT, 20))


def test_global_random_state_is_untouched(model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    generate(model, PROMPT, 5, generator=seeded(1))
    generate(model, PROMPT, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_padding_of_the_vocabulary_is_never_drawn(model):
    loud = copy.deepcopy(model)
    with torch.no_grad():
        loud.lm_head.weight[40:] *= 20  # all the weight on the padding
    assert generate(loud, PROMPT, 50, generator=seeded(0))[:, 3:].max() >= 40
    for temperature in (0, 1, 100):
        new = generate(loud, PROMPT, 50, temperature=temperature, generator=seeded(0), vocab_limit=40)[:, 3:]
        assert new.max() < 40
    assert new.max() == 39  # at temperature 100 the last real one comes up


def test_sample_draws_from_the_distribution():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().repeat(20_000, 1)

    def shares(*arguments):
        return torch.bincount(sample(logits, *arguments, seeded(0)).flatten(), minlength=4) / 20_000

    assert torch.allclose(shares(1.0, None), torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.02)
    assert torch.allclose(shares(1.0, 2), torch.tensor([0, 0, 3 / 7, 4 / 7]), atol=0.02)
    assert torch.allclose(shares(0.5, None), torch.tensor([1, 4, 9, 16]) / 30, atol=0.02)
    assert torch.allclose(shares(1.0, 99), shares(1.0, None))


def test_top_k_keeps_k_even_where_logits_are_equal():
    drawn = sample(torch.zeros(500, 10), 1.0, 3, seeded(0))
    assert len(set(drawn.flatten().tolist())) == 3


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_and_nothing_is_recorded(model, training):
    model.train(training)
    recorded = []
    hook = model.lm_head.register_forward_hook(lambda *args: recorded.append((args[2].requires_grad, model.training)))
    generate(model, PROMPT, 2)
    hook.remove()
    assert recorded == [(False, False)] * 2
    assert torch.is_grad_enabled()
    assert model.training == training
    with pytest.raises(IndexError):
        generate(model, torch.tensor([[60]]), 2)
    assert model.training == training


def test_no_new_tokens_gives_the_prompt(model):
    assert torch.equal(generate(model, PROMPT, 0), PROMPT)


@pytest.mark.parametrize(
    ("idx", "count", "options", "message"),
    [
        (PROMPT, -1, {}, "max_new_tokens is -1"),
        (PROMPT[:, :0], 1, {}, "at least one token"),
        (PROMPT[0], 1, {}, "idx has shape"),
        (PROMPT, 1, {"top_k": 0}, "top_k is 0"),
        (PROMPT, 1, {"temperature": -0.5}, "temperature is -0.5"),
        (PROMPT, 1, {"temperature": float("nan")}, "temperature is nan"),
        (PROMPT, 1, {"temperature": float("inf")}, "temperature is inf"),
        (PROMPT, 1, {"vocab_limit": 0}, "vocab_limit is 0"),
    ],
)
def test_arguments_out_of_range_are_refused(model, idx, count, options, message):
    with pytest.raises(GPT2LabError, match=message):
        generate(model, idx, count, **options)

"""Generation: equal with and without cache, alone and in a batch, and to transformers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.config import GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation import engine
from gpt2lab.generation.cache import KVCache
from gpt2lab.generation.engine import decode, prefill, stream
from gpt2lab.generation.sampling import Sampling
from gpt2lab.model.gpt2 import GPT2

PROMPT = torch.tensor([[5, 1, 4], [9, 9, 2]])
GREEDY = Sampling(temperature=0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_with_large_weights(**numbers: int) -> GPT2:
    """Tiny, and with large weights, so that the next token depends on the tokens before and their positions."""
    config = GPT2Config(
        **({"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "vocab_size": 60} | numbers),
        tie_word_embeddings=False,
    )
    model = GPT2(config, generator=seeded(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


@pytest.fixture(scope="module")
def model() -> GPT2:
    return model_with_large_weights()


def without_cache(model: GPT2, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding by the rule of generation/engine.py, the whole window computed for each token."""
    text, start = list(prompt), max(0, len(prompt) - model.config.block_size)
    for _ in range(count):
        if len(text) - start > model.config.block_size:
            start = len(text) - max(1, model.config.block_size // 2)
        logits, _ = model(torch.tensor([text[start:]]))
        text.append(int(logits[0, -1].argmax()))
    return text


prompts_of_any_length = st.lists(st.lists(st.integers(0, 59), min_size=1, max_size=20), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(prompts=prompts_of_any_length, count=st.integers(0, 40))
def test_greedy_decoding_is_the_same_cached_uncached_alone_and_in_a_batch(model, prompts, count):
    batch = model.generate(prompts, count, temperature=0)
    assert batch == [without_cache(model, prompt, count) for prompt in prompts]
    assert batch == [model.generate([prompt], count, temperature=0)[0] for prompt in prompts]


@pytest.mark.parametrize("block_size", [1, 2, 3, 4])
def test_the_smallest_windows_move_on(block_size):
    model = model_with_large_weights(block_size=block_size)
    assert model.generate([[7], [3, 1]], 12, temperature=0) == [without_cache(model, p, 12) for p in ([7], [3, 1])]


@settings(max_examples=25, deadline=None)
@given(prompts=prompts_of_any_length.filter(lambda rows: max(map(len, rows)) <= 12), seed=st.integers(0, 99))
def test_cached_logits_equal_those_of_the_whole_text(prompts, seed):
    model = model_with_large_weights().double()  # with weights as large as these, float32 differs in the fourth digit
    cache = KVCache(len(prompts), 16)
    texts = [list(prompt) for prompt in prompts]
    logits = torch.cat([prefill(model, text, cache, row) for row, text in enumerate(texts)])
    for tokens in torch.randint(60, (4, len(texts)), generator=seeded(seed)).tolist():
        expected = torch.stack([model(torch.tensor([text]))[0][0, -1] for text in texts]).float()
        assert torch.allclose(logits, expected, rtol=0, atol=1e-5)
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
        logits = decode(model, tokens, cache)
    assert cache.lengths == [len(text) for text in texts]


# Layers and heads of the four published models; each head is narrower.
@pytest.mark.parametrize(
    ("n_layer", "n_head"),
    [(12, 12), *(pytest.param(*shape, marks=pytest.mark.slow) for shape in ((24, 16), (36, 20), (48, 25)))],
)
def test_greedy_equals_transformers_at_all_four_architectures(n_layer, n_head, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = GPT2Config(n_layer=n_layer, n_head=n_head, n_embd=4 * n_head, block_size=80, vocab_size=200)
    model = GPT2(config, generator=seeded(n_layer))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "wte" not in name:
                parameter.mul_(4)  # with the initial weights only the last token would matter
    model.save_pretrained(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompts = torch.randint(200, (50, 8), generator=seeded(1))
    options = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": None, "pad_token_id": 0}
    expected = reference.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
    generated = model.generate(prompts, max_new_tokens=64, temperature=0)
    assert torch.equal(generated, expected)
    assert len(set(map(tuple, generated[:, 8:].tolist()))) == 50
    assert torch.equal(model.generate(prompts[17:18], max_new_tokens=64, temperature=0), generated[17:18])
    assert without_cache(model, prompts[17].tolist(), 64) == generated[17].tolist()


# The same examples in each run: a batch rounds logits differently from a single row, so one draw in about 10 million
# falls between two tokens.
@settings(max_examples=25, deadline=None, derandomize=True)
@given(prompts=prompts_of_any_length, seed=st.integers(-5, 2**40), data=st.data())
def test_a_row_with_its_seed_is_the_same_alone_or_in_a_batch(model, prompts, seed, data):
    sampling = Sampling(
        temperature=data.draw(st.sampled_from([0.5, 1.0, 2.0])),
        top_k=data.draw(st.sampled_from([None, 5])),
        top_p=data.draw(st.sampled_from([1.0, 0.8])),
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.3])),
    )
    seeds = [seed + 7 * row for row in range(len(prompts))]
    batch = engine.generate(model, prompts, 24, sampling, seeds=seeds)
    alone = [engine.generate(model, [p], 24, sampling, seeds=[s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert batch == alone


def test_rows_of_one_prompt_differ_by_their_seeds(model):
    rows = model.generate([[5, 1, 4]] * 4, 20, seed=3)
    assert len(set(map(tuple, rows))) == 4
    assert rows == [model.generate([[5, 1, 4]], 20, seed=3 + row)[0] for row in range(4)]


def test_without_a_seed_texts_differ(model):
    assert not torch.equal(model.generate(PROMPT, 20), model.generate(PROMPT, 20))


def test_the_global_random_state_is_unchanged(model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model.generate(PROMPT, 5, seed=1)
    model.generate(PROMPT, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tensor_gives_a_tensor_that_training_can_use(model):
    out = model.generate(PROMPT, 6, seed=0)
    assert (out.shape, out.dtype) == ((2, 9), torch.int64)
    assert torch.equal(out[:, :3], PROMPT)
    model(out[:, :-1], out[:, 1:])[1].backward()  # impossible with inference tensors
    model.zero_grad()
    assert torch.equal(model.generate(PROMPT, 0), PROMPT)


def test_padding_of_the_vocabulary_is_never_sampled():
    model = GPT2(GPT2Config(n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=50304), generator=seeded(0))
    with torch.no_grad():
        model.lm_head.weight[50257:] = 0
        model.lm_head.weight[:50257] = -1e3 * model.transformer.ln_f.weight  # below the padding for all hidden states
        model.transformer.ln_f.bias[:] = 1
    logits = model(torch.tensor([[1]]))[0]
    assert int(logits[0, -1].argmax()) >= 50257
    for temperature in (0.0, 1.0, 1e4):
        assert model.generate(PROMPT, 10, temperature=temperature, seed=0).max() < 50257


def test_reported_probabilities_are_those_of_the_model(model):
    prompts = PROMPT.tolist()
    steps = stream(model, prompts, 5, Sampling(top_k=2, temperature=3), seeds=[0, 1], top=4)
    for tokens in steps:
        for token in tokens:
            expected = model(torch.tensor([prompts[token.row]]))[0][0, -1].softmax(-1)
            most_likely = expected.topk(4)
            assert token.probability == pytest.approx(expected[token.id].item(), abs=1e-5)
            assert [id for id, _ in token.top] == most_likely.indices.tolist()
            assert [p for _, p in token.top] == pytest.approx(most_likely.values.tolist(), abs=1e-5)
            prompts[token.row].append(token.id)
    assert all(token.probability is None and token.top == () for token in next(stream(model, prompts, 1)))


def record_calls(model: GPT2) -> list[int]:
    """The number of rows of each forward pass from now on."""
    calls: list[int] = []
    model.transformer.register_forward_hook(lambda module, arguments, output: calls.append(output.shape[0]))
    return calls


def test_closing_the_iterator_stops_the_computation():
    model = model_with_large_weights()
    calls = record_calls(model)
    steps = stream(model, [[1, 2], [3]], 50)
    assert calls == []
    next(steps)
    next(steps)
    assert calls == [1, 1, 2]  # each prompt, then one token of both
    steps.close()
    assert list(steps) == []
    assert calls == [1, 1, 2]


def test_finished_rows_are_not_computed_and_do_not_change_other_rows():
    model = model_with_large_weights()
    prompts = [[5, 1, 4], [9], [7, 7]]
    full = model.generate(prompts, 30, temperature=0)
    calls = record_calls(model)
    finished: set[int] = set()
    texts = [list(prompt) for prompt in prompts]
    for tokens in stream(model, prompts, 30, GREEDY, finished=finished):
        for token in tokens:
            texts[token.row].append(token.id)
        if len(texts[0]) == 6:
            finished.add(0)
        if len(texts[2]) == 12:
            finished.add(2)
    assert texts == [full[0][:6], full[1], full[2][:12]]
    decoding = [rows for rows in calls if rows > 1]
    assert decoding == [3] * 2 + [2] * 7


def test_equal_prompts_are_computed_once():
    model = model_with_large_weights()
    calls = record_calls(model)
    model.generate([[5, 1, 4]] * 4 + [[9]], 2, temperature=0)
    assert calls == [1, 1, 5]


def test_the_models_mode_and_gradient_mode_are_unchanged(model):
    for training in (True, False):
        model.train(training)
        steps = stream(model, [[1]], 3)
        next(steps)
        assert torch.is_grad_enabled()
        assert model.training == training
        assert not torch.is_inference_mode_enabled()
        steps.close()


def test_generation_under_autocast(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        generated = model.generate(PROMPT, 12, temperature=0)
    assert torch.equal(generated[:, :3], PROMPT)


@pytest.mark.parametrize(
    ("idx", "count", "options", "message"),
    [
        (PROMPT, -1, {}, "max_new_tokens is -1"),
        (PROMPT[:, :0], 1, {}, "at least one token"),
        (PROMPT[0], 1, {}, "idx is torch.int64"),
        (PROMPT / 2, 1, {}, "idx is torch.float32"),
        ([[1], []], 1, {}, "prompt 1 is empty"),
        ([[1], [2, 60]], 1, {}, "prompt 1 has token 60"),
        (-PROMPT, 1, {}, "prompt 0 has token -5"),
        (PROMPT, 1, {"top_k": 0}, "top_k is 0"),
        (PROMPT, 1, {"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_arguments_out_of_range_are_rejected(model, idx, count, options, message):
    with pytest.raises(GPT2LabError, match=message):
        model.generate(idx, count, **options)


def test_arguments_are_checked_before_the_first_step(model):
    with pytest.raises(GPT2LabError, match="2 seeds for 1 prompts"):
        next(stream(model, [[1]], 3, seeds=[1, 2]))
    with pytest.raises(GPT2LabError, match="top is -1"):
        next(stream(model, [[1]], 3, top=-1))


def test_an_unknown_sampling_setting_is_named(model):
    for generate in (model.generate, model.complete):
        with pytest.raises(TypeError, match="temprature"):
            generate(PROMPT, 3, temprature=1.0)

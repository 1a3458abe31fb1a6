"""Properties of the model: size, initial weights, causality, loss, gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.config import GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import huggingface
from gpt2lab.model.gpt2 import GPT2
from tests.model.helpers import TINY, random_tokens, seeded


@pytest.mark.parametrize(
    ("size", "count"),
    [("124M", 124_439_808), ("medium", 354_823_168), ("large", 774_030_080), ("xl", 1_557_611_200)],
)
def test_published_sizes_have_the_published_number_of_parameters(size, count):
    with torch.device("meta"):
        assert GPT2(GPT2Config(size=size)).num_parameters() == count


@pytest.mark.parametrize("tied", [True, False])
def test_names_shapes_and_order_of_parameters_are_gpt2s(tied):
    model = GPT2(TINY.model_copy(update={"tie_word_embeddings": tied}))
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == huggingface.shapes(TINY)
    assert list(model.state_dict()) == list(huggingface.shapes(TINY))
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in model.parameters())


def test_initial_weights_have_gpt2s_scale():
    config = GPT2Config(n_layer=3, n_head=4, n_embd=128, block_size=512, vocab_size=1000, tie_word_embeddings=False)
    for name, tensor in GPT2(config, generator=seeded(1)).state_dict().items():
        if name.endswith("bias"):
            assert torch.all(tensor == 0), name
        elif ".ln_" in name:
            assert torch.all(tensor == 1), name
        else:
            std = 0.02 / math.sqrt(2 * 3) if name.endswith("c_proj.weight") else 0.02
            assert tensor.std().item() == pytest.approx(std, rel=0.03), name
            assert abs(tensor.mean().item()) < 5 * std / math.sqrt(tensor.numel()), name


def test_initial_loss_is_that_of_a_uniform_distribution():
    _, loss = GPT2(TINY, generator=seeded(1))(random_tokens(8, 12), random_tokens(8, 12, seed=1))
    assert loss.item() == pytest.approx(math.log(50), abs=0.05)


def test_the_seed_determines_the_initial_weights():
    def weights(seed):
        return torch.cat([p.flatten() for p in GPT2(TINY, generator=seeded(seed)).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_without_a_generator_the_global_seed_determines_the_initial_weights():
    torch.manual_seed(3)
    first = GPT2(TINY)
    torch.manual_seed(3)
    assert torch.equal(first.lm_head.weight, GPT2(TINY).lm_head.weight)
    assert torch.equal(first.lm_head.weight, GPT2(TINY, generator=seeded(3)).lm_head.weight)


def test_forward_returns_logits_or_loss():
    model = GPT2(TINY)
    logits, loss = model(random_tokens(2, 5))
    assert logits.shape == (2, 5, 50)
    assert loss is None
    logits, loss = model(random_tokens(2, 5), random_tokens(2, 5))
    assert logits is None
    assert loss.shape == ()
    assert loss.dtype == torch.float32


def test_loss_is_the_mean_over_targets_that_count():
    model = GPT2(TINY, generator=seeded(1))
    x, y = random_tokens(3, 7), random_tokens(3, 7, seed=1)
    y[0, 2:] = -100
    y[2] = -100
    logits, _ = model(x)
    log_probabilities = logits.double().log_softmax(-1).gather(-1, y.clamp(min=0)[..., None])[..., 0]
    expected = -log_probabilities[y != -100].mean()
    assert model(x, y)[1].item() == pytest.approx(expected.item(), abs=1e-5)


def test_loss_is_float32_under_autocast():
    model = GPT2(TINY, generator=seeded(1))
    x, y = random_tokens(3, 7), random_tokens(3, 7, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x, y)[1]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(model(x, y)[1].item(), abs=0.02)


def test_more_tokens_than_block_size_are_rejected():
    model = GPT2(TINY)
    assert model(random_tokens(1, 12))[0].shape == (1, 12, 50)
    with pytest.raises(GPT2LabError, match="13 tokens do not fit into block_size 12"):
        model(random_tokens(1, 13))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), position=st.integers(1, 11))
def test_a_later_token_does_not_change_earlier_logits(seed, position):
    model = GPT2(TINY, generator=seeded(seed))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=seeded(seed)), alpha=0.3)  # so that attention matters
    x = random_tokens(1, 12, seed=seed)
    changed = x.clone()
    changed[0, position] = (x[0, position] + 1) % 50
    before, after = model(x)[0], model(changed)[0]
    assert torch.allclose(before[:, :position], after[:, :position], atol=1e-6)
    assert not torch.allclose(before[:, position:], after[:, position:], atol=1e-3)


def test_gradients_of_micro_batches_average_to_those_of_the_batch():
    model = GPT2(TINY, generator=seeded(1))
    x, y = random_tokens(16, 12), random_tokens(16, 12, seed=1)

    model(x, y)[1].backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for i in range(16):
        (model(x[i : i + 1], y[i : i + 1])[1] / 16).backward()

    for name, parameter in model.named_parameters():
        assert expected[name].abs().max() > 1e-8 or name.endswith("c_attn.bias"), f"{name} has no gradient"
        assert torch.allclose(parameter.grad, expected[name], rtol=0, atol=1e-6), name


def test_it_can_memorize_a_batch():
    model = GPT2(TINY, generator=seeded(1))
    x, y = random_tokens(4, 12), random_tokens(4, 12, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = model(x, y)[1]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1

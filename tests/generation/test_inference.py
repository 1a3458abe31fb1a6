"""Models optimized for inference: the same logits, shared memory, and an unchanged original."""

import pytest
import torch

from gpt2lab.config import GPT2Config
from gpt2lab.generation import engine, inference
from gpt2lab.model.gpt2 import GPT2

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=101)


@pytest.fixture
def model() -> GPT2:
    model = GPT2(CONFIG, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.2)
    return model


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(101, (rows, length), generator=torch.Generator().manual_seed(rows))


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2, 3, 100])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 5), (8, 1), (9, 1), (4, 50)])
def test_fp32_gives_the_same_logits(model, threads, shape, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    logits, expected = inference.optimize_for_inference(model)(tokens(*shape))[0], model(tokens(*shape))[0]
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_fp32_shares_all_weights_and_bf16_those_that_are_not_converted(model, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    addresses = {parameter.data_ptr() for parameter in model.parameters()}
    optimized = inference.optimize_for_inference(model)
    assert {parameter.data_ptr() for parameter in optimized.parameters()} <= addresses
    with torch.no_grad():
        before = optimized(tokens(1, 5))[0]
        model.transformer.h[0].mlp.c_fc.weight.mul_(2)
        assert torch.allclose(optimized(tokens(1, 5))[0], model(tokens(1, 5))[0], atol=1e-5)
        assert not torch.allclose(optimized(tokens(1, 5))[0], before, atol=1e-3)
    half = inference.optimize_for_inference(model, torch.bfloat16)
    assert {parameter.data_ptr() for parameter in half.parameters()} < addresses
    assert half.transformer.wte.weight.dtype == torch.float32


def test_the_original_model_is_not_changed(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    types = [type(module) for module in model.modules()]
    for dtype in (torch.float32, torch.bfloat16):
        inference.optimize_for_inference(model, dtype)
    assert [type(module) for module in model.modules()] == types
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.lm_head.weight is model.transformer.wte.weight
    assert all(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("packed", [True, False])
def test_bf16_is_within_its_rounding(model, packed, monkeypatch):
    if not packed:  # oneDNN is missing or fails
        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", None, raising=False)
        monkeypatch.setattr(inference, "PackedLinear", lambda weight, bias: (_ for _ in ()).throw(RuntimeError))
    half = inference.optimize_for_inference(model, torch.bfloat16)
    layer_class = inference.PackedLinear if packed else inference.CastLinear
    assert type(half.transformer.h[0].attn.c_attn) is layer_class
    for shape in ((1, 1), (3, 1), (2, 40)):
        logits, expected = half(tokens(*shape))[0], model(tokens(*shape))[0]
        assert logits.dtype == torch.float32
        assert (logits - expected).abs().max() < 0.03 * expected.abs().max()
        assert not torch.equal(logits, expected)


@torch.no_grad()
def test_fp16_is_more_accurate_than_bf16(model):
    half = inference.optimize_for_inference(model, torch.float16)
    logits, expected = half(tokens(2, 9))[0], model(tokens(2, 9))[0]
    assert (logits - expected).abs().max() < 0.004 * expected.abs().max()


def test_in_bf16_a_row_is_bitwise_equal_alone_and_in_a_batch(model):
    half = inference.optimize_for_inference(model, torch.bfloat16)
    prompts = [tokens(1, 1 + n % 7)[0].tolist() for n in range(12)]
    steps = list(engine.stream(half, prompts, 12, seeds=range(12), top=3))
    for row, prompt in enumerate(prompts):
        alone = engine.stream(half, [prompt], 12, seeds=[row], top=3)
        assert [step[row] for step in steps] == [step[0]._replace(row=row) for step in alone]


@torch.no_grad()
def test_logits_far_from_zero_keep_their_differences_in_bf16(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 3.0)  # a large mean row, as in GPT-2
    expected = model(tokens(1, 8))[0]
    assert expected.abs().mean() > 3 * expected.std(dim=-1).mean()
    half = inference.optimize_for_inference(model, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = model(tokens(1, 8))[0]

    def error(logits):
        return (logits.float().log_softmax(-1) - expected.log_softmax(-1)).abs().mean().item()

    assert error(half(tokens(1, 8))[0]) < 0.6 * error(plain)
    assert torch.allclose(half(tokens(1, 8))[0].mean(), expected.mean(), rtol=0.02)


@torch.no_grad()
def test_a_model_with_bf16_weights_is_optimized_in_bf16(model):
    expected = model(tokens(1, 8))[0]
    model.to(torch.bfloat16)
    optimized = inference.optimize_for_inference(model)
    assert type(optimized.lm_head) is inference.CenteredHead
    assert (optimized(tokens(1, 8))[0] - expected).abs().max() < 0.05 * expected.abs().max()
    assert len(model.generate([[1, 2], [3]], 5, temperature=0)[1]) == 6

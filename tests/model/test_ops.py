"""Attention, linear layers and cross-entropy: equal to torch's own functions, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from gpt2lab.model import ops
from tests.model.helpers import seeded

# --- Attention.


def random_qkv(length, dtype=torch.float64):
    generator = seeded(length)
    shape = (2, 3, length, 8)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(3)]


def torch_attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("length", [1, 4, 7, 12])
def test_blockwise_attention_equals_torchs(length, monkeypatch):
    monkeypatch.setattr(ops, "_QUERY_BLOCK", 4)
    qkv = random_qkv(length)
    assert torch.allclose(ops.blockwise_attention(*qkv), torch_attention(*qkv))
    assert torch.autograd.gradcheck(ops.blockwise_attention, qkv)


@pytest.mark.parametrize("length", [64, 300])
def test_blockwise_attention_in_bf16_is_as_accurate_as_torchs(length):
    exact = random_qkv(length)
    y = torch_attention(*exact)
    expected = y, *torch.autograd.grad(y, exact, y.detach())
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    errors = {}
    for attention in (ops.attention, torch_attention):
        y = attention(*rounded)
        actual = y, *torch.autograd.grad(y, rounded, y.detach())
        errors[attention] = [((a.double() - e).norm() / e.norm()).item() for a, e in zip(actual, expected, strict=True)]
    for blockwise, fused in zip(errors[ops.attention], errors[torch_attention], strict=True):
        assert blockwise < 0.01
        assert blockwise < 2 * fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_with_a_mask_equals_torchs(dtype):
    q, k, v = torch.randn(3, 2, 3, 37, 8, generator=seeded(0)).to(dtype)
    mask = (torch.rand(2, 1, 37, 37, generator=seeded(1)) < 0.5) | torch.eye(37, dtype=torch.bool)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    assert (ops.attention(q, k, v, mask) - expected).abs().max() < 0.03


@pytest.mark.parametrize(
    ("length", "dtype", "expected"),
    [(64, torch.bfloat16, True), (64, torch.float16, True), (64, torch.float32, False), (4096, torch.bfloat16, False)],
)
def test_blockwise_attention_is_used_in_16_bits_for_short_sequences(length, dtype, expected):
    assert ops.is_blockwise_faster_for(torch.empty(1, 1, length, 8, dtype=dtype)) == expected


# --- Linear layer.


@pytest.mark.parametrize("rows", [8, 16, 17, 40, 48])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_linear_by_convolution_equals_torchs(monkeypatch, rows, transposed, threads):
    monkeypatch.setattr(ops, "_is_mkl_slow", lambda: True)
    calls, conv2d = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *arguments: calls.append(1) or conv2d(*arguments))
    generator = seeded(0)
    x = torch.randn(24, rows, generator=generator).t() if transposed else torch.randn(rows, 24, generator=generator)
    inputs = [x, torch.randn(30, 24, generator=generator), torch.randn(30, generator=generator)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y, expected = ops.linear(*inputs), F.linear(*inputs)
        assert (y.shape, bool(calls)) == (expected.shape, rows >= 16)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        dy = torch.randn(y.shape, generator=generator)
        actual_gradients = torch.autograd.grad(y, inputs, dy)
        expected_gradients = torch.autograd.grad(expected, inputs, dy)
        torch.testing.assert_close(actual_gradients, expected_gradients, rtol=1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(threads_before)


# --- Cross-entropy.

N, C, V = 13, 6, 40


@pytest.fixture(params=[1000, 100], ids=["one chunk", "several chunks"])
def _chunks(request, monkeypatch):
    monkeypatch.setitem(ops._FLOAT32_CHUNKS, "cpu", request.param)
    monkeypatch.setattr(ops, "_WEIGHT_GRADIENT_COLUMNS", 16)


def random_inputs(scale=1.0):
    generator = seeded(0)
    hidden = torch.randn(N, C, generator=generator) * scale
    weight = torch.randn(V, C, generator=generator)
    targets = torch.randint(V, (N,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def with_gradients(loss, hidden, weight):
    return loss, *torch.autograd.grad(3 * loss, (hidden, weight))


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("ignored", [[], [0, 5, 6], list(range(1, N))])
def test_cross_entropy_equals_torchs(ignored):
    hidden, weight, targets = random_inputs()
    targets[ignored] = ops.IGNORE_INDEX
    actual = with_gradients(ops.cross_entropy(hidden, weight, targets), hidden, weight)
    expected = with_gradients(F.cross_entropy(hidden @ weight.t(), targets), hidden, weight)
    assert {tensor.dtype for tensor in actual} == {torch.float32}
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    batched = ops.cross_entropy(hidden.view(1, N, C), weight, targets.view(1, N))
    assert torch.equal(batched, actual[0])


def test_compiled_cross_entropy_is_torchs(monkeypatch):
    hidden, weight, targets = random_inputs()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(ops.cross_entropy(hidden, weight, targets), F.cross_entropy(F.linear(hidden, weight), targets))


def test_cross_entropy_without_targets_is_nan():
    hidden, weight, targets = random_inputs()
    assert ops.cross_entropy(hidden, weight, torch.full_like(targets, ops.IGNORE_INDEX)).isnan()


def test_a_target_whose_probability_underflows_has_a_finite_loss():
    hidden, weight, targets = random_inputs(scale=300)
    loss = ops.cross_entropy(hidden, weight, targets)
    assert loss > 200
    assert torch.allclose(loss, F.cross_entropy(hidden @ weight.t(), targets))


@pytest.mark.usefixtures("_chunks")
def test_under_autocast_only_the_products_are_bf16():
    hidden, weight, targets = random_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = with_gradients(ops.cross_entropy(hidden, weight, targets), hidden, weight)
        expected = with_gradients(F.cross_entropy(F.linear(hidden, weight).float(), targets), hidden, weight)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - e).norm() < 0.01 * e.norm()
    assert torch.allclose(actual[0], expected[0], atol=1e-5)  # the same logits, not rounded afterwards


def test_a_tied_matrix_gets_the_gradients_of_both_uses():
    _, weight, targets = random_inputs()

    def gradient(loss):
        return torch.autograd.grad(loss(F.embedding(targets.flip(0), weight)), weight)[0]

    actual = gradient(lambda x: ops.cross_entropy(x, weight, targets))
    assert torch.allclose(actual, gradient(lambda x: F.cross_entropy(x @ weight.t(), targets)), atol=1e-6)


def test_the_logits_are_kept_once():
    hidden, weight, targets = random_inputs()
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    saved_tensors_hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with saved_tensors_hooks, torch.autocast("cpu", dtype=torch.bfloat16):
        ops.cross_entropy(hidden, weight, targets)
    assert sum(sizes) < 2 * N * V + 2 * (N * C + V * C) + 8 * N  # logits and inputs in bf16, one weight per row

"""Attention by blocks: equal to torch's own, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from gpt2lab.model import cpu_attention


def inputs(length, kind):
    generator = torch.Generator().manual_seed(length)
    shape = (2, 3, length, 8)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(kind).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("length", [1, 4, 7, 12])
def test_it_is_torchs_attention(length, monkeypatch):
    monkeypatch.setattr(cpu_attention, "_BLOCK", 4)
    q, k, v = inputs(length, torch.float64)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(cpu_attention.attention(q, k, v), expected)
    assert torch.autograd.gradcheck(cpu_attention.attention, (q, k, v))


@pytest.mark.parametrize("length", [64, 300])
def test_bf16_is_as_close_to_the_truth_as_torchs_own(length):
    exact = inputs(length, torch.float64)
    truth = F.scaled_dot_product_attention(*exact, is_causal=True)
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    errors = {}
    for name, attention in (
        ("ours", cpu_attention.attention),
        ("torch's", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
    ):
        y = attention(*rounded)
        found = y, *torch.autograd.grad(y, rounded, y.detach())
        wanted = truth, *torch.autograd.grad(truth, exact, truth.detach(), retain_graph=True)
        errors[name] = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]
    for ours, theirs in zip(errors["ours"], errors["torch's"], strict=True):
        assert ours < 0.01
        assert ours < 2 * theirs


def test_a_mask_is_torchs_too():
    q, k, v = torch.randn(3, 2, 3, 37, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    mask = (torch.rand(2, 1, 37, 37, generator=torch.Generator().manual_seed(1)) < 0.5) | torch.eye(
        37, dtype=torch.bool
    )
    expected = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    assert (cpu_attention.masked(q, k, v, mask) - expected).abs().max() < 0.03

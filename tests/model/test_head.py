"""The loss in place of the logits: equal to torch's own in value and gradient, and frugal."""

import pytest
import torch
import torch.nn.functional as F

from gpt2lab.model import head

N, C, V = 13, 6, 40


@pytest.fixture(params=[1000, 100], ids=["one block", "several blocks"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(head, "_block", lambda device: request.param)
    monkeypatch.setattr(head, "_columns", lambda weight: 16)


def inputs(kind=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, C, generator=generator, dtype=torch.float64).to(kind) * scale
    weight = torch.randn(V, C, generator=generator, dtype=torch.float64).to(kind)
    targets = torch.randint(V, (N,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def with_gradients(loss, hidden, weight):
    return loss, *torch.autograd.grad(3 * loss, (hidden, weight))


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("ignored", [[], [0, 5, 6], list(range(1, N))])
def test_it_is_torchs_cross_entropy(ignored):
    hidden, weight, targets = inputs(torch.float32)
    targets[ignored] = head.IGNORED
    ours = with_gradients(head.mean_cross_entropy(hidden, weight, targets), hidden, weight)
    theirs = with_gradients(F.cross_entropy(hidden @ weight.t(), targets), hidden, weight)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one, other, atol=1e-6)


def test_no_target_that_counts_is_nan_as_in_torch():
    hidden, weight, targets = inputs(torch.float32)
    assert head.mean_cross_entropy(hidden, weight, torch.full_like(targets, head.IGNORED)).isnan()


def test_a_target_whose_probability_underflows_has_a_finite_loss():
    hidden, weight, targets = inputs(torch.float32, scale=300)
    ours = head.mean_cross_entropy(hidden, weight, targets)
    assert ours > 200
    assert torch.allclose(ours, F.cross_entropy(hidden @ weight.t(), targets))


@pytest.mark.usefixtures("_blocks")
def test_under_autocast_the_products_are_bf16_and_the_rest_is_not():
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = with_gradients(head.mean_cross_entropy(hidden, weight, targets), hidden, weight)
        theirs = with_gradients(F.cross_entropy(F.linear(hidden, weight).float(), targets), hidden, weight)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()
    assert torch.allclose(ours[0], theirs[0], atol=1e-5)  # the same logits, and no rounding after them


def test_a_matrix_that_is_looked_up_as_well_gets_both_gradients():
    _, weight, targets = inputs(torch.float32)

    def gradient(loss):
        return torch.autograd.grad(loss(F.embedding(targets.flip(0), weight)), weight)[0]

    ours = gradient(lambda x: head.mean_cross_entropy(x, weight, targets))
    assert torch.allclose(ours, gradient(lambda x: F.cross_entropy(x @ weight.t(), targets)), atol=1e-6)


def test_the_logits_are_kept_once():
    hidden, weight, targets = inputs(torch.float32)
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        head.mean_cross_entropy(hidden, weight, targets)
    assert sum(sizes) < 2 * N * V + 2 * (N * C + V * C) + 8 * N  # logits and inputs in bf16, a share a row

"""fp32 linear layers by way of a convolution: the same products, whatever the shape."""

import pytest
import torch
import torch.nn.functional as F

from gpt2lab.model import linear


@pytest.mark.parametrize("rows", [8, 16, 17, 40, 48])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_convolution_is_a_linear_layer(monkeypatch, rows, transposed, threads):
    monkeypatch.setattr(linear, "_mkl_is_slow", lambda: True)
    asked, convolve = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *arguments: asked.append(1) or convolve(*arguments))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, rows, generator=generator).t() if transposed else torch.randn(rows, 24, generator=generator)
    inputs = [x, torch.randn(30, 24, generator=generator), torch.randn(30, generator=generator)]
    inputs = [one.requires_grad_() for one in inputs]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y, expected = linear.linear(*inputs), F.linear(*inputs)
        assert (y.shape, bool(asked)) == (expected.shape, rows >= 16)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        upstream = torch.randn(y.shape, generator=generator)
        for ours, theirs in zip(
            torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(before)

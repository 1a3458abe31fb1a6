"""Attention kernels: measured, put in order, and still all there."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from gpt2lab.system import attention

CPU = torch.device("cpu")


def test_kernels_that_cannot_are_left_out_and_the_fastest_comes_first(monkeypatch):
    kernels = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)  # cuDNN's is for CUDA alone
    found = attention.measure((1, 2, 8, 4), torch.float32, CPU, kernels)
    assert found.keys() == {"FLASH_ATTENTION", "MATH"}
    assert list(found.values()) == sorted(found.values())

    ticks = iter(range(10**6))
    turn = {"FLASH_ATTENTION": 2.0, "MATH": 1.0}
    slow = attention.sdpa_kernel

    def noting(kernel):
        clock.speed = turn[kernel.name]
        return slow(kernel)

    def clock():
        return next(ticks) * clock.speed

    monkeypatch.setattr(attention, "sdpa_kernel", noting)
    monkeypatch.setattr(attention.time, "perf_counter", clock)
    assert list(attention.measure((1, 2, 8, 4), torch.float32, CPU, kernels[1:])) == ["MATH", "FLASH_ATTENTION"]


@pytest.mark.parametrize("masked", [False, True])
def test_in_the_preferred_order_every_case_still_has_a_kernel(masked):
    q, k, v = torch.randn(3, 1, 2, 8, 4).unbind()
    mask = torch.ones(8, 8, dtype=torch.bool).tril() if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=not masked)
    with attention.preferring(["CUDNN_ATTENTION", "FLASH_ATTENTION"]):
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=not masked)
    assert torch.allclose(found, expected, atol=1e-6)

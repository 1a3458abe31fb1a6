"""The model of speed: how the estimate reacts to each quantity. Its error on measured runs: test_validate.py."""

import dataclasses

import pytest

from gpt2lab.errors import GPT2LabError
from gpt2lab.planning import speed
from gpt2lab.planning.speed import Stack, step_time
from gpt2lab.system import gpus
from tests.planning.helpers import WORK, change

TABLE = gpus.load()
A100, H100 = TABLE["a100-80gb"], TABLE["h100-80gb"]


def seconds_per_token(work, gpu=A100):
    return step_time(work, gpu).seconds * work.gpus / work.step_tokens


def test_seconds_are_the_sum_of_the_parts():
    parts = dataclasses.asdict(step_time(WORK, A100))
    assert parts.pop("seconds") == pytest.approx(sum(parts.values()))
    assert min(parts.values()) >= 0


def test_a_token_costs_more_in_longer_sequences_by_attention_alone():
    short, long = step_time(WORK, A100), step_time(change(block_size=4096, micro_batch_size=4), A100)
    assert long.attention == pytest.approx(4 * short.attention)
    assert long.matmul == short.matmul


def test_activation_checkpointing_costs_at_most_a_third():
    ratio = seconds_per_token(change(checkpointing=True)) / seconds_per_token(WORK)
    assert 1.15 < ratio < 4 / 3


def test_narrow_models_reach_less_of_the_peak():
    def share_of_peak(n_embd):
        work = change(n_embd=n_embd, matmul_parameters=12 * 12 * n_embd**2 + 50304 * n_embd, gpus=1)
        return 6 * work.matmul_parameters * work.step_tokens / step_time(work, A100).seconds / A100.peak_flops("bf16")

    assert share_of_peak(512) < share_of_peak(1024) < share_of_peak(4096) < 1


def test_one_gpu_exchanges_nothing_and_more_exchange_more():
    assert step_time(change(gpus=1), A100).communication == 0
    sharded = [step_time(change(gpus=n, sharding="full"), A100).communication for n in (2, 8, 64)]
    assert 0 < sharded[0] < sharded[1] < sharded[2]


def test_ddp_hides_its_traffic_behind_a_long_micro_step_only():
    long = step_time(change(micro_batch_size=64), A100).communication
    short = step_time(change(micro_batch_size=1, gpus=16), TABLE["rtx-4090"]).communication
    everything = 8 * WORK.parameters * 15 / 16 / (TABLE["rtx-4090"].network * 1e9 * speed.SHIPPED.link)
    assert long < 1e-3
    assert 0.5 * everything < short < everything


def test_fsdp_gathers_in_each_micro_step():
    two, four = (step_time(change(grad_accum_steps=n, sharding="full"), A100).communication for n in (2, 4))
    assert four == pytest.approx(2 * two)
    assert step_time(change(sharding="gradients"), A100).communication == pytest.approx(four * 2 / 3)


def test_tiny_steps_are_limited_by_the_host():
    tiny = change(n_layer=4, n_embd=128, matmul_parameters=7_000_000, block_size=64, gpus=1, grad_accum_steps=1)
    assert step_time(tiny, H100).seconds > 4 * speed.LAUNCH_SECONDS


def test_faster_gpus_are_faster_and_32_bits_slower():
    assert seconds_per_token(WORK, H100) < seconds_per_token(WORK, A100) < seconds_per_token(WORK, TABLE["l4"])
    assert seconds_per_token(WORK, TABLE["h200"]) < seconds_per_token(WORK, H100)  # by its bandwidth
    assert seconds_per_token(change(precision="tf32")) > 1.5 * seconds_per_token(WORK)
    assert seconds_per_token(change(precision="fp8"), H100) < seconds_per_token(WORK, H100)


def test_a_measured_stack_factor_replaces_the_default():
    base = speed.tokens_per_second(WORK, A100, Stack())
    measured = speed.tokens_per_second(WORK, A100, Stack(1.3, 1.1, "measured"))
    assert base.low == base.estimate == base.high
    assert measured.estimate == pytest.approx(1.3 * base.estimate)
    assert measured.high / measured.low == pytest.approx(1.21)


@pytest.mark.parametrize("gpu", sorted(TABLE))
def test_every_gpu_of_the_table_has_a_plausible_speed(gpu):
    kind = TABLE[gpu]
    work = change(gpus=1, precision=kind.choose_precision("auto"))
    rate = speed.tokens_per_second(work, kind, speed.default_stack(kind))
    flops = 6 * WORK.matmul_parameters * rate.estimate / kind.peak_flops(work.precision)
    assert 0.1 < flops < 1
    assert rate.low < rate.estimate < rate.high


def test_a_precision_that_the_gpu_lacks_is_an_error():
    with pytest.raises(GPT2LabError, match="fp8"):
        step_time(change(precision="fp8"), A100)


def test_muon_costs_more_than_adamw_and_ranks_share_its_products():
    in_blocks = 12 * WORK.n_layer * WORK.n_embd**2

    def optimizer(gpus: int, **changes) -> float:
        return step_time(change(gpus=gpus, **changes), H100).optimizer

    adamw, alone, shared = (
        optimizer(1),
        optimizer(1, muon_parameters=in_blocks),
        optimizer(4, muon_parameters=in_blocks),
    )
    assert adamw < shared < alone
    products = speed.MUON_FLOPS * WORK.n_embd * in_blocks / H100.peak_flops("bf16")
    assert alone - shared > 3 / 4 * products
    assert optimizer(1, muon_parameters=in_blocks, precision="fp16") > alone  # in tf32
    assert optimizer(64, muon_parameters=in_blocks) == optimizer(
        12, muon_parameters=in_blocks
    )  # 12 matrices of a shape


def test_muon_gathers_its_updates():
    in_blocks = 12 * WORK.n_layer * WORK.n_embd**2
    adamw, muon = (
        step_time(change(micro_batch_size=64, muon_parameters=n), A100).communication for n in (0, in_blocks)
    )
    assert muon - adamw == pytest.approx(4 * in_blocks * 7 / 8 / (A100.link * 1e9 * speed.SHIPPED.link))


def test_newton_schulz_operations_are_those_of_the_matrices_of_a_block():
    C = 64
    block = [(C, C)] * 4 + [(C, 4 * C)] * 2
    operations = sum(5 * (2 * r * r * c + 2 * r**3 + 2 * r * r * c) for r, c in block)
    assert operations == speed.MUON_FLOPS * C * 12 * C**2

"""Device, precision and collectives."""

import os
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

import pytest
import torch

from gpt2lab.errors import GPT2LabError, LostRankError, RunStoppedError
from gpt2lab.system import device, distributed, precision

CPU = torch.device("cpu")


def test_a_device_that_does_not_exist_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GPT2LabError, match="system.device cuda"):
        device.choose("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(GPT2LabError, match="local rank 2"):
        device.choose("cuda", local_rank=2)
    assert device.choose("cpu") == CPU


@pytest.mark.parametrize(("flags", "expected"), [({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), ({"avx2"}, "fp32")])
def test_auto_is_bf16_where_the_cpu_has_instructions_for_it(monkeypatch, flags, expected):
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags))
    assert precision.choose("auto", CPU).name == expected
    assert precision.choose("fp32", CPU).name == "fp32"


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_auto_is_fp16_with_loss_scaling_on_gpus_before_ampere(monkeypatch, caplog, capability, expected):
    caplog.set_level("INFO")
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    chosen = precision.choose("auto", torch.device("cuda"))
    torch.set_float32_matmul_precision(before)
    assert chosen.name == expected
    assert ("fp16" in caplog.text and "Tesla T4" in caplog.text) == (expected == "fp16")


def test_bf16_multiplies_in_bf16_and_keeps_weights_in_fp32():
    layer = torch.nn.Linear(4, 4)
    with precision.choose("bf16", CPU).autocast():
        assert layer(torch.zeros(1, 4)).dtype == torch.bfloat16
    with precision.choose("fp32", CPU).autocast():
        assert layer(torch.zeros(1, 4)).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_memory_and_description_are_plausible():
    assert 0.01 < device.peak_memory_gib(CPU) < 1000
    described = device.describe(CPU)
    assert described["device"] == "cpu"
    assert described["cores"] >= 1


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12), ("Tesla T4", 65e12), ("Other", None)],
)
def test_peak_flops_are_those_of_the_table(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert device.peak_flops(torch.device("cuda")) == peak
    assert device.peak_flops(CPU) is None


def test_a_single_process_needs_no_communication(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.start("cpu") as dist:
        model = torch.nn.Linear(2, 2)
        assert (dist.rank, dist.world_size, dist.is_main) == (0, 1, True)
        assert dist.wrap(model) is model
        assert dist.mean(torch.tensor(3.0)) == 3.0
        assert dist.on_main(lambda: 5) == 5
        with pytest.raises(GPT2LabError, match="correct me"):
            dist.on_main(raise_user_error)


def raise_user_error() -> None:
    raise GPT2LabError("correct me")


def join(rank: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def start_two_ranks(target, *arguments) -> Sequence[BaseProcess]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [context.Process(target=target, args=(rank, port, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    return processes


def communicate(rank: int, port: int, results) -> None:
    join(rank, port)
    with distributed.start("cpu") as dist:
        mean = float(dist.mean(torch.tensor(float(rank))))
        result = dist.on_main(lambda: f"from rank {rank}")
        try:
            dist.on_main(raise_user_error)
            failed = False
        except GPT2LabError as error:
            failed = str(error) == "correct me"
    results.put((rank, mean, result, failed))


def test_two_ranks_get_the_same_means_results_and_errors():
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    for process in start_two_ranks(communicate, results):
        process.join(600)
        assert process.exitcode == 0
    assert sorted(results.get() for _ in range(2)) == [(rank, 0.5, "from rank 0", True) for rank in range(2)]


def wait_for_rank_1(rank: int, port: int) -> None:
    join(rank, port)
    try:
        with distributed.start("cpu", timeout=2) as dist:
            if rank == 1:
                time.sleep(600)
            dist.sum(torch.zeros(1))
    except LostRankError as error:
        sys.exit(error.status)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others_with_their_own_status():
    waiting, hanging = start_two_ranks(wait_for_rank_1)
    waiting.join(300)
    hanging.kill()
    hanging.join()
    assert waiting.exitcode == LostRankError.status


@pytest.mark.parametrize(
    ("device", "error", "destroyed", "status"),
    [
        ("cuda", None, True, None),
        ("cuda", RunStoppedError(15, "stopped"), True, None),
        ("cuda", LostRankError("rank 1"), False, 3),
        ("cuda", RuntimeError("NCCL error"), False, 1),
        ("cuda", KeyboardInterrupt(), False, 130),
        ("cpu", RuntimeError("gloo"), True, None),
    ],
)
def test_after_a_failure_on_gpus_the_process_exits_without_waiting_for_nccl(
    monkeypatch, device, error, destroyed, status
):
    calls, at_exit = [], []
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append(1))
    monkeypatch.setattr(distributed.atexit, "register", lambda function, status: at_exit.append(status))
    distributed._leave(torch.device(device), error)
    assert (bool(calls), at_exit) == (destroyed, [] if status is None else [status])

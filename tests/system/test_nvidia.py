"""An NVIDIA GPU that torch cannot use is not passed over: `auto` does not train on the CPU without a word."""

import pytest
import torch

from gpt2lab.errors import GPT2LabError
from gpt2lab.system import device, nvidia

CUDA_13, CUDA_12, CPU_BUILD = "13.0", "12.6", None


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Set the driver (None: no GPU) and what torch was built for; torch finds no CUDA device."""

    def set_up(driver: str | None, cuda: str | None, *, has_device: bool = True) -> None:
        version = tmp_path / "version"
        if driver is not None:
            version.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Tue Jan  1 2025\n")
        (tmp_path / "nvidiactl").touch()
        monkeypatch.setattr(nvidia, "DRIVER_VERSION", version)
        monkeypatch.setattr(nvidia, "CONTROL_DEVICE", tmp_path / ("nvidiactl" if has_device else "missing"))
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return set_up


@pytest.mark.parametrize(
    ("driver", "cuda", "words"),
    [
        ("535.183.01", CUDA_13, ["CUDA 13.0", "535.183.01", "580 or newer", nvidia.OLDER_WHEELS]),
        ("470.57.02", CUDA_12, ["CUDA 12.6", "470.57.02", "525 or newer", "install a newer driver;"]),
        ("535.183.01", CPU_BUILD, ["a CPU build", "535.183.01", nvidia.OLDER_WHEELS]),
        ("580.65", CPU_BUILD, ["a CPU build", "580.65", "pip install --force-reinstall torch;"]),
        ("580.65.06", CUDA_13, ["CUDA 13.0", "580.65.06", "nvidia-smi"]),
    ],
)
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_that_torch_cannot_use_is_refused_with_what_to_install(machine, name, driver, cuda, words):
    machine(driver, cuda)
    with pytest.raises(GPT2LabError) as error:
        device.choose(name)
    assert all(word in str(error.value) for word in [*words, "--system.device cpu"]), error.value


def test_the_cpu_can_be_insisted_on(machine):
    machine("535.183.01", CUDA_13)
    assert device.choose("cpu").type == "cpu"


def test_auto_is_the_cpu_where_no_gpu_can_be_opened_or_it_is_hidden(machine, monkeypatch):
    machine(None, CUDA_13)
    assert device.choose("auto").type == "cpu"
    machine("535.183.01", CUDA_13, has_device=False)  # a container without the GPU of its machine
    assert device.choose("auto").type == "cpu"
    machine("535.183.01", CUDA_13)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert device.choose("auto").type == "cpu"


@pytest.mark.parametrize(("capability", "refused"), [((7, 0), True), ((7, 5), False), ((12, 1), False)])
def test_a_gpu_that_is_older_than_those_of_the_build_is_refused(monkeypatch, capability, refused):
    monkeypatch.setattr(torch.version, "cuda", CUDA_13)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "sm_120", "compute_120"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    if refused:
        with pytest.raises(GPT2LabError, match="compute capability 7.0; it needs 7.5 or above") as error:
            device.choose("auto")
        assert nvidia.OLDER_WHEELS in str(error.value)
    else:
        assert device.choose("auto") == torch.device("cuda", 0)

"""The table of GPUs, and files that extend it."""

import pytest

from gpt2lab.errors import GPT2LabError
from gpt2lab.system import gpus

ENTRY = "{generation: ampere, memory_gib: 12, tflops: {bf16: 25}, bandwidth: 360, link: 12, network: 1}"


def test_names_may_be_written_in_several_ways():
    table = gpus.load()
    assert gpus.find("A100_40GB", table).name == gpus.find("a100 40gb", table).name == "a100-40gb"
    assert gpus.find("h100", table) == gpus.find("H100-SXM", table)


def test_an_unknown_name_is_an_error_with_the_closest_one():
    with pytest.raises(GPT2LabError, match="did you mean a100-40gb"):
        gpus.find("a100-40g", gpus.load())


def test_a_file_adds_and_replaces_entries(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"rtx-3060: {ENTRY}\nl4: {ENTRY}\n")
    table = gpus.load(file)
    assert gpus.find("rtx-3060", table).memory_gib == 12
    assert gpus.find("l4", table).bandwidth == 360
    assert gpus.find("h100", table) == gpus.find("h100", gpus.load())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: {generation: ampere}", "memory_gib"),
        (f"x: {ENTRY[:-1]}, colour: green}}", "colour"),
        (f"x: {ENTRY.replace('bf16', 'bf61')}", "tflops"),
        (f"x: {ENTRY.replace('360', '-1')}", "bandwidth"),
        ("x: 3", "x must hold"),
        ("x: [", "YAML"),
    ],
)
def test_an_invalid_file_is_an_error_that_names_the_key(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(GPT2LabError, match=message):
        gpus.load(file)


# Names as torch.cuda.get_device_name returns them.
REPORTED = {
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA A100 80GB PCIe": "a100-80gb",
    "NVIDIA H100 80GB HBM3": "h100-80gb",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA H200": "h200",
    "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA B200": "b200",
    "NVIDIA L4": "l4",
    "NVIDIA L40": "l40",
    "NVIDIA L40S": "l40s",
    "NVIDIA A10": "a10",
    "NVIDIA A10G": "a10g",
    "NVIDIA A30": "a30",
    "NVIDIA A40": "a40",
    "NVIDIA RTX A6000": "a6000",
    "RTX A6000": "a6000",
    "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada",
    "Quadro RTX 6000": "quadro-rtx-6000",
    "Quadro RTX 8000": "quadro-rtx-8000",
    "NVIDIA TITAN RTX": "titan-rtx",
    "TITAN RTX": "titan-rtx",
    "Tesla T4": "t4",
    "Tesla V100-SXM2-16GB": "v100-16gb",
    "Tesla V100-SXM2-32GB": "v100-32gb",
    "Tesla V100-DGXS-32GB": "v100-32gb",
    "Tesla V100-PCIE-16GB": "v100-pcie-16gb",
    "Tesla V100-PCIE-32GB": "v100-pcie-32gb",
    "AMD Instinct MI250X": "mi250x",
    "AMD Instinct MI250X/MI250": "mi250x",
    "AMD Instinct MI250": "mi250",
    "AMD Instinct MI300X": "mi300x",
    "GeForce RTX 2080 Ti": "rtx-2080-ti",
} | {
    f"NVIDIA GeForce RTX {name}": f"rtx-{name.lower().replace(' ', '-')}"
    for name in (
        *("2060", "2060 SUPER", "2070", "2070 SUPER", "2080", "2080 SUPER", "2080 Ti"),
        *("3060", "3060 Ti", "3070", "3070 Ti", "3080", "3080 Ti", "3090", "3090 Ti"),
        *("4060", "4060 Ti", "4070", "4070 SUPER", "4070 Ti", "4070 Ti SUPER", "4080", "4080 SUPER", "4090"),
        *("5060", "5060 Ti", "5070", "5070 Ti", "5080", "5090"),
    )
}
# Others with such a word in their names, which have other peaks.
OTHERS = (
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 3080 Laptop GPU",
    "NVIDIA GeForce RTX 2080 with Max-Q Design",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    "NVIDIA A10-24Q",
    "NVIDIA RTX 6000D",
    "NVIDIA GeForce GTX 1080 Ti",
    "NVIDIA H20",
    "NVIDIA A1000",
)


@pytest.mark.parametrize("name", REPORTED)
def test_a_gpu_is_recognized_by_the_name_that_torch_reports(name):
    assert gpus.recognize(name).name == REPORTED[name]


@pytest.mark.parametrize("name", OTHERS)
def test_another_variant_is_not_recognized(name):
    assert gpus.recognize(name) is None


def test_every_gpu_of_the_table_can_be_recognized_and_has_a_source():
    table = {gpu.name: gpu for gpu in gpus.load().values() if not gpu.is_cpu}
    assert set(REPORTED.values()) == table.keys()
    assert all(gpu.source for gpu in table.values())


def test_peaks_are_dense_and_in_the_ratios_of_their_generation():
    """A sparse peak is twice the dense one, so a mixed-up row would break the ratio to fp32 of its generation."""
    ratios = {"volta": (7.9, 8.1), "turing": (3.9, 8.1), "ampere": (1.9, 16.1), "ada": (1.9, 4.1)}
    ratios |= {"hopper": (13.8, 15.0), "blackwell": (1.9, 30.1), "cdna2": (3.9, 4.1), "cdna3": (7.9, 8.1)}
    for gpu in gpus.load().values():
        if gpu.is_cpu:
            continue
        half, single = gpu.mixed_precision_flops(), gpu.peak_flops("fp32")
        low, high = ratios[gpu.generation]
        assert low <= half / single <= high, gpu.name
        if "GeForce" in gpu.name or gpu.name.startswith(("rtx-2", "rtx-3", "rtx-4", "rtx-5")):
            assert half / single == pytest.approx(4 if gpu.generation == "turing" else 2, rel=0.01), gpu.name
        if "tf32" in gpu.tflops:
            assert half / gpu.peak_flops("tf32") == pytest.approx(2, rel=0.02), gpu.name
        if "fp8" in gpu.tflops:
            assert gpu.peak_flops("fp8") / half == pytest.approx(2, rel=0.01), gpu.name
    published = {"a100": 312, "h100": 989, "h200": 989, "b200": 2250, "l4": 121, "rtx-4090": 165.2, "mi300x": 1307.4}
    published |= {"t4": 65, "v100": 125, "a10": 125, "l40s": 362, "a6000": 154.8, "rtx-5090": 209.5}
    for name, peak in published.items():
        assert gpus.find(name, gpus.load()).mixed_precision_flops() == peak * 1e12


def test_each_price_has_a_date_and_a_source():
    for gpu in gpus.load().values():
        assert gpu.price_per_hour is None or (gpu.price_date and gpu.price_source), gpu.name


# Multiprocessors (compute units), boost clock in MHz, FLOP per cycle of each in bf16 or fp16 accumulated in fp32, and
# in fp32, dense. GeForce has half of the first rate of workstation and data center GPUs of the same generation.
UNITS = {
    "a100-40gb": (108, 1410, 2048, 128),
    "a100-80gb": (108, 1410, 2048, 128),
    "h100-80gb": (132, 1830, 4096, 256),
    "h100-pcie": (114, 1620, 4096, 256),
    "h100-nvl": (132, 1545, 4096, 256),
    "gh200": (132, 1830, 4096, 256),
    "h200": (132, 1830, 4096, 256),
    "h200-nvl": (132, 1545, 4096, 256),
    "b200": (148, 1860, 8192, 256),
    "l40s": (142, 2520, 1024, 256),
    "l40": (142, 2490, 512, 256),
    "l4": (58, 2040, 1024, 256),
    "a10": (72, 1695, 1024, 256),
    "a10g": (80, 1710, 512, 256),
    "a30": (56, 1440, 2048, 128),
    "a40": (84, 1740, 1024, 256),
    "a6000": (84, 1800, 1024, 256),
    "rtx-6000-ada": (142, 2505, 1024, 256),
    "v100-16gb": (80, 1530, 1024, 128),
    "v100-32gb": (80, 1530, 1024, 128),
    "v100-pcie-16gb": (80, 1380, 1024, 128),
    "v100-pcie-32gb": (80, 1380, 1024, 128),
    "t4": (40, 1590, 1024, 128),
    "titan-rtx": (72, 1770, 1024, 128),
    "quadro-rtx-6000": (72, 1770, 1024, 128),
    "quadro-rtx-8000": (72, 1770, 1024, 128),
    "rtx-2060": (30, 1680, 512, 128),
    "rtx-2060-super": (34, 1650, 512, 128),
    "rtx-2070": (36, 1620, 512, 128),
    "rtx-2070-super": (40, 1770, 512, 128),
    "rtx-2080": (46, 1710, 512, 128),
    "rtx-2080-super": (48, 1815, 512, 128),
    "rtx-2080-ti": (68, 1545, 512, 128),
    "rtx-3060": (28, 1777, 512, 256),
    "rtx-3060-ti": (38, 1665, 512, 256),
    "rtx-3070": (46, 1725, 512, 256),
    "rtx-3070-ti": (48, 1770, 512, 256),
    "rtx-3080": (68, 1710, 512, 256),
    "rtx-3080-ti": (80, 1665, 512, 256),
    "rtx-3090": (82, 1695, 512, 256),
    "rtx-3090-ti": (84, 1860, 512, 256),
    "rtx-4060": (24, 2460, 512, 256),
    "rtx-4060-ti": (34, 2535, 512, 256),
    "rtx-4070": (46, 2475, 512, 256),
    "rtx-4070-super": (56, 2475, 512, 256),
    "rtx-4070-ti": (60, 2610, 512, 256),
    "rtx-4070-ti-super": (66, 2610, 512, 256),
    "rtx-4080": (76, 2505, 512, 256),
    "rtx-4080-super": (80, 2550, 512, 256),
    "rtx-4090": (128, 2520, 512, 256),
    "rtx-5060": (30, 2497, 512, 256),
    "rtx-5060-ti": (36, 2572, 512, 256),
    "rtx-5070": (48, 2512, 512, 256),
    "rtx-5070-ti": (70, 2452, 512, 256),
    "rtx-5080": (84, 2617, 512, 256),
    "rtx-5090": (170, 2407, 512, 256),
    "mi250": (104, 1700, 1024, 256),
    "mi250x": (110, 1700, 1024, 256),
    "mi300x": (304, 2100, 2048, 256),
}
CLOCKS_OF_FP32 = {"h100-80gb": 1980, "gh200": 1980, "h200": 1980, "b200": 1980}  # above that of tensor cores
CLOCKS_OF_FP32 |= {"h100-pcie": 1755, "h100-nvl": 1785, "h200-nvl": 1785}


@pytest.mark.parametrize("name", UNITS)
def test_peaks_follow_from_units_and_clock(name):
    gpu = gpus.find(name, gpus.load())
    units, clock, half_rate, single_rate = UNITS[name]
    assert gpu.mixed_precision_flops() == pytest.approx(units * clock * 1e6 * half_rate, rel=0.02)
    single = units * CLOCKS_OF_FP32.get(name, clock) * 1e6 * single_rate
    assert gpu.peak_flops("fp32") == pytest.approx(single, rel=0.025)


def test_every_gpu_is_checked_by_its_units():
    assert UNITS.keys() == {gpu.name for gpu in gpus.load().values() if not gpu.is_cpu}

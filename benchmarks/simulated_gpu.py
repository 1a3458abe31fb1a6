"""What can be told of the training step on a GPU without one: its peak memory, and the bytes that it moves.

    python -m benchmarks.simulated_gpu memory                    # by micro batch, beside torch's MemTracker
    python -m benchmarks.simulated_gpu traffic --sequences 64    # of the compiled step, by Inductor's own count

Both run GPT-2 124M on fake CUDA tensors (tests/simulated_cuda), and need a C++ compiler. `traffic` also needs triton,
which a CPU build of torch does not install: `pip install --target FOLDER --no-deps triton==3.7.1`, PYTHONPATH=FOLDER.
Inductor generates code for sm_90 and states for each of its kernels the bytes that it reads and writes. Matrix
products, attention and the optimizer are not counted. Time cannot be told.
"""

import argparse
import collections
import os
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from tests.simulated_cuda import device_guard
from tests.simulated_cuda.simulation import GIB, SimulatedGPU, simulated

_LOADED = "GPT2LAB_SIMULATED_GPU"


def _always(value: object) -> mock.Mock:
    return mock.Mock(return_value=value)


def _no_padding(w: torch.Tensor) -> int:  # noqa: ARG001
    return 0


def measure_memory(sizes: list[int], n_layer: int) -> None:
    """Print the peak of a step in GiB, uncompiled in bf16, by our count and by torch's MemTracker."""
    from tests.simulated_cuda.test_step import count_and_track

    for size in sizes:
        counted, tracked = count_and_track(size, n_layer)
        print(f"{size:3} sequences: {counted:6.2f} GiB, by MemTracker {tracked:6.2f} GiB", flush=True)


def count_traffic(
    architecture: str, sequences: int, n_layer: int, show: int, inductor_pads: bool, default_options: bool
) -> None:
    """Print the GB that Inductor's kernels move in forward and backward pass of a micro-step, and the largest."""
    import torch._dynamo.device_interface as interfaces
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor
    import triton
    from torch._inductor import async_compile, graph
    from torch._inductor.fx_passes import pad_mm
    from triton.backends.compiler import GPUTarget

    from gpt2lab.config import GPT2Config
    from gpt2lab.model import ops, pretrained
    from gpt2lab.training import build

    if inductor_pads:
        ops._padding = _no_padding
        inductor.force_shape_pad = True
    torch.set_float32_matmul_precision("high")
    kernels: dict[str, float] = {}
    modules: list[str] = []

    def keep(_: Any, name: str, source: str, **__: Any) -> Any:
        size = re.search(r"'kernel_num_gb': ([\d.e-]+)", source)
        kernels[name] = float(size[1]) if size else 0.0
        return SimpleNamespace(run=_always(None))

    gpu = SimulatedGPU()
    properties = gpu.answers()["get_device_properties"]()
    vars(properties).update(
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32
    )
    vars(properties).update(shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472)
    vars(properties).update(L2_cache_size=50 << 20, gcnArchName="", total_memory=80 * GIB)
    driver = {
        "get_current_target": _always(GPUTarget("cuda", 90, 32)),
        "get_current_device": _always(0),
        "get_current_stream": _always(0),
        "get_active_torch_device": _always(torch.device("cuda", 0)),
        "get_device_capability": _always((9, 0)),
        "is_active": _always(True),
    }
    triton.runtime.driver.set_active(SimpleNamespace(**driver))
    answers = {
        "get_device_properties": _always(properties),
        "current_device": _always(0),
        "is_available": _always(True),
        "is_bf16_supported": _always(True),
        "get_compute_capability": _always(90),
        "get_raw_stream": _always(0),
    }
    for owner in (interfaces.CudaInterface, interfaces.CudaInterface.Worker):
        for name, function in answers.items():
            setattr(owner, name, staticmethod(function))
    torch._C._cuda_getCurrentRawStream = _always(0)
    torch.cuda._exchange_device, torch.cuda._maybe_exchange_device = _always(0), _always(0)
    inductor.compile_threads, inductor.joint_graph_constant_folding, inductor.benchmark_kernel = 1, False, True
    functorch.force_non_lazy_backward_lowering = True
    pad_mm._should_pad = _always(inductor_pads)  # it times products
    graph.GraphLowering.save_output_code = staticmethod(modules.append)
    with (
        simulated(gpu, fake=False),
        mock.patch.object(torch.cuda, "get_device_properties", _always(properties)),
        mock.patch.object(async_compile.AsyncCompile, "triton", keep),
    ):
        mode = torch._subclasses.FakeTensorMode()
        with mock.patch.object(torch._subclasses.FakeTensorMode, "avoid_device_init", True):
            device = torch.device("cuda", 0)
            with mode, device:
                shape = {"n_head": 6, "vocab_size": 50304} if architecture == "modern" else {}
                model = pretrained.build(GPT2Config(architecture=architecture, n_layer=n_layer, **shape))
                x, y = (torch.zeros(sequences, 1024, dtype=torch.int64) for _ in range(2))
            try:
                with torch.autocast("cuda", torch.bfloat16):
                    build.compile_step(model, {} if default_options else model.compile_options)(x, y)
            except Exception:  # the generated code cannot run here
                if len(modules) < 2:
                    raise
    if len(modules) != 2:
        raise SystemExit(f"{len(modules)} graphs in place of a forward and a backward one")
    total = 0.0
    for title, code in zip(("forward", "backward"), modules, strict=False):
        runs = collections.Counter(re.findall(r"(triton_\w+)\.run\(", code[code.rindex("def call") :]))
        moved = {name: kernels.get(name, 0.0) * count for name, count in runs.items()}
        total += sum(moved.values())
        print(f"{title}: {runs.total()} launches, {sum(moved.values()):.1f} GB")
        if uncounted := [name for name in runs if not kernels.get(name)]:
            print(f"  not counted: {', '.join(uncounted)}")
        for name in sorted(moved, key=lambda name: -moved[name])[:show]:
            print(f"  {moved[name]:6.2f} GB  {runs[name]} x {name[:90]}")
    print(f"total: {total:.1f} GB")


def main() -> None:
    """Run what the command line asks for, in a process with the device guard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "traffic"))
    parser.add_argument("--sequences", type=int, nargs="+", default=[8, 16, 32, 64], help="micro batches")
    parser.add_argument("--n-layer", type=int, default=12)
    parser.add_argument("--show", type=int, default=8, help="kernels that are listed")
    parser.add_argument("--architecture", default="gpt2", choices=("gpt2", "modern"), help="whose traffic is counted")
    parser.add_argument("--default-options", action="store_true", help="traffic with the compiler's default options")
    parser.add_argument("--inductor-pads", action="store_true", help="traffic as if the model did not pad its head")
    arguments = parser.parse_args()
    if _LOADED not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            library = str(device_guard.build(Path(folder)))
            cache = {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_FX_GRAPH_CACHE": "0"}
            environment = os.environ | cache | {"LD_PRELOAD": library, "OMP_NUM_THREADS": "1", _LOADED: "1"}
            environment["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"
            command = [sys.executable, "-m", "benchmarks.simulated_gpu", *sys.argv[1:]]
            sys.exit(os.spawnve(os.P_WAIT, sys.executable, command, environment))
    if arguments.what == "memory":
        measure_memory(arguments.sequences, arguments.n_layer)
    else:
        for sequences in arguments.sequences[-1:]:
            pads, default = arguments.inductor_pads, arguments.default_options
            count_traffic(arguments.architecture, sequences, arguments.n_layer, arguments.show, pads, default)


if __name__ == "__main__":
    main()

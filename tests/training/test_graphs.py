"""What `torch.compile` compiles: one graph for the trial of the micro batch and for training."""

import functools
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from gpt2lab.config import GPT2Config, SystemConfig
from gpt2lab.model import pretrained
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision
from gpt2lab.training import build, memory
from gpt2lab.training import run as training_run
from gpt2lab.training.guard import Guard
from gpt2lab.training.memory import TrainingModel
from gpt2lab.training.state import TrainState
from tests.runs import records, settings
from tests.training.test_optimizer import TINY


@pytest.fixture
def graphs(monkeypatch):
    """Counts the graphs that are compiled; nothing is generated from them."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    compile_graph = functools.partial(torch.compile, backend=counter)
    monkeypatch.setattr(torch, "compile", lambda module, dynamic, options: compile_graph(module, dynamic=dynamic))
    yield counter
    torch.compiler.reset()


def test_training_runs_the_graph_of_the_trial_and_a_smaller_micro_batch_has_one_more(
    token_folder, tmp_path, monkeypatch, graphs
):
    loss = TrainingModel.loss
    sizes: list[tuple[int, int]] = []

    def counting(self, idx, targets):
        if len(sizes) == 5 and len(idx) == 4:  # in the second step
            sizes.append((0, 0))
            raise torch.OutOfMemoryError("too much")
        result = loss(self, idx, targets)
        sizes.append((len(idx), graphs.frame_count))
        return result

    monkeypatch.setattr(TrainingModel, "loss", counting)
    training_run.run(settings(token_folder, tmp_path, system__compile="on", train__sample_every=0))
    assert [event["micro_batch_size"] for event in records(tmp_path / "tiny", "events.jsonl")] == [2]
    assert sizes[:5] == [(4, 1)] * 5  # the trial, and two micro-steps of each step
    assert sizes[6:] == [(2, 2)] * len(sizes[6:])
    assert not any(_is_dynamic(graph) for graph in graphs.graphs)


def _is_dynamic(graph: torch.fx.GraphModule) -> bool:
    values = (node.meta.get("example_value") for node in graph.graph.nodes)
    return any(isinstance(n, torch.SymInt) for value in values if isinstance(value, torch.Tensor) for n in value.shape)


def test_with_distributed_data_parallel_there_is_one_graph_too(graphs):
    """The trial does not exchange gradients, and only the last micro-step of a step does."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        module = build.compile_step(DistributedDataParallel(GPT2(TINY)), {})
        dist = DistContext(0, 1, torch.device("cpu"))
        model = TrainingModel(module, lambda: module, 2, TINY.block_size, False, dist, Precision("fp32", "cpu"))
        model.try_micro_step(2)
        for last in (False, True):
            x, y = torch.zeros(2, 2, TINY.block_size, dtype=torch.int64)
            with dist.gradient_sync(module, last=last):
                model.loss(x, y).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert graphs.frame_count == 1


@pytest.mark.parametrize(
    ("architecture", "options"), [("gpt2", {"loop_ordering_after_fusion": False}), ("modern", None)]
)
def test_the_step_is_compiled_with_the_options_of_its_architecture(monkeypatch, architecture, options):
    """Those of this version of torch: another one may not have an option."""
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda module, dynamic, options: compiled.append(options) or module)
    with torch.device("meta"):
        model = pretrained.build(GPT2Config(architecture=architecture, n_layer=1, n_head=2, n_embd=64))
    build.compile_step(model, {**model.compile_options, "unknown": True})
    assert compiled == [options]


@pytest.mark.parametrize(
    ("world_size", "shard", "bytes_per_parameter"), [(1, False, 8), (2, False, 12), (2, True, 4), (8, True, 1)]
)
def test_the_reserve_of_the_trial_is_what_a_rank_holds_of_the_optimizer(
    monkeypatch, world_size, shard, bytes_per_parameter
):
    reserves = []

    def find(model, size, sequences, reserve):
        reserves.append(reserve)
        return size

    monkeypatch.setattr(memory, "find_micro_batch_size", find)
    monkeypatch.setattr(DistContext, "wrap", lambda self, model: model)
    monkeypatch.setattr(build.devices, "reset_peak_memory", lambda device: None)
    model = GPT2(TINY)
    config = settings(Path(), Path(), train__micro_batch_size=1)
    dist = DistContext(0, world_size, torch.device("cuda", 0))
    state = TrainState(model, [], Guard(config.guard), torch.amp.GradScaler("cpu", enabled=False), shard)
    plan = config.batch_plan(world_size, 0)
    build.wrap_for_training(state, config.train, SystemConfig(compile="on"), plan, dist, Precision("fp32", "cuda"))
    expected = model.num_parameters() * bytes_per_parameter
    assert reserves == [pytest.approx(expected, abs=8)] * (1 if shard else 2)

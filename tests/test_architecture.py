"""The house: who may import whom. Downward only, no circles, nothing heavy at the door."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "gpt2lab"

# Module or room -> what it may import of gpt2lab, beside config, errors and the package itself (docs/architecture.md).
ALLOWED = {
    "cli": {"cli_parser", "logs", "options", "system.startup"},  # and the functions in VERBS, when a verb runs
    "cli_parser": {"config_errors", "config_files", "options"},
    "commands": {
        "bench.run",
        "config_reference",
        "data.catalogue",
        "data.index",
        "data.prepare",
        "data.slurm",
        "data.verify",
        "export.run",
        "options",
        "system.device",
        "tracking.report",
        "training.run",
    },
    "options": {"generation.options"},
    "generation.options": set(),
    "export": {"export", "model", "data.tokenizer", "data.huggingface_tokenizer", "tracking.records", "files"},
    "app.run": {"app", "model", "generation", "data.tokenizer", "options", "system"},
    "app": {"app", "model", "generation", "data.tokenizer", "tracking.records"},
    "sample": {"model", "generation", "data.tokenizer", "options", "system"},
    "training.run": {"training", "model.flops", "tracking.metrics", "system"},
    "training.build": {"training", "data", "model", "tracking", "system"},
    "training.evaluators": {
        "training.batches",
        "training.run_directory",
        "training.trainer",
        "data",
        "evaluation",
        "model",
        "tracking.metrics",
        "system",
    },
    "training.trainer": {"training", "model", "tracking.metrics", "system"},
    "training.memory": {"system", "training.run_directory"},
    "training.state": {"model", "system", "training.guard"},
    "training.batches": {"data"},
    "training.run_directory": {"files", "system", "tracking.metrics", "training.checkpoint"},
    "training.async_checkpointer": {
        "files",
        "training.checkpoint",
        "training.live_report",
        "training.run_directory",
        "training.state",
    },
    "training.summary": {
        "training.batches",
        "training.checkpoint",
        "training.memory",
        "training.run_directory",
        "training.state",
    },
    "training.live_report": {"tracking.report", "training.run_directory"},
    "training.checkpoint": {"disk", "files", "model", "system", "training.optimizer"},
    "training.optimizer": {"system"},
    "training": set(),  # schedule, guard
    "evaluation.run": {"options", "evaluation", "model", "generation", "data", "system", "files"},
    "evaluation.baselines": set(),
    "evaluation.jsonl": set(),
    "evaluation": {"evaluation", "model", "generation", "data.tokenizer", "system", "resources", "files"},
    "tracking": {"files", "tracking", "evaluation.baselines"},
    "bench.rivals": set(),
    "bench.ladder": {"bench.rivals", "model.gpt2"},
    "bench.measure": {"system.device", "training.run_directory"},
    "bench": {"options", "bench", "training.run", "training.run_directory", "model", "system", "files"},
    "data": {"resources", "files", "disk", "data"},
    "model.huggingface": {"files", "model.weight_files"},
    "model.resolve": {"files", "resources", "model.huggingface", "model.weight_files"},
    "model.gpt2": {"model", "generation", "data.tokenizer"},
    "generation": {"generation", "data.tokenizer", "model.ops"},
    "model": {"model"},
    "system": {"system"},
    "resources": {"files"},
    "files": set(),
    "logs": set(),
    "formatting": set(),
    "disk": set(),
    "config": {"config_errors", "config_files"},
    "config_errors": set(),
    "config_files": {"config_errors"},
    "config_reference": set(),
    "errors": set(),
    "__main__": {"cli"},
    "__init__": {"model.gpt2", "data.tokenizer"},
}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imports(path: Path) -> set[str]:
    """The gpt2lab modules a file imports, anywhere in it, without the `gpt2lab.`."""
    known = set(modules())
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.removeprefix("gpt2lab.") for name in found if name.startswith("gpt2lab.")}
    return {name if name in known else name.rpartition(".")[0] for name in inside} - {""}


def rule_for(module: str) -> set[str]:
    while module not in ALLOWED:
        assert "." in module, f"{module} has no rule: say in ALLOWED and docs/architecture.md what it may import"
        module = module.rpartition(".")[0]
    return ALLOWED[module]


def test_imports_go_downward():
    for module, path in modules().items():
        allowed = rule_for(module) | {"config", "errors", "formatting"}
        for name in imports(path):
            assert any(name == one or name.startswith(one + ".") for one in allowed), f"{module} may not import {name}"


def test_no_circles():
    graph = {module: imports(path) for module, path in modules().items() if module != "__init__"}
    while leaves := {module for module, needed in graph.items() if not needed & graph.keys()}:
        graph = {module: needed for module, needed in graph.items() if module not in leaves}
    assert not graph, f"circle among {sorted(graph)}"


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_nothing_heavy_at_import():
    heavy = {"torch", "numpy", "matplotlib", "rich", "tiktoken", "transformers", "pyarrow", "gradio", "lm_eval"}
    assert not heavy & loaded_after("import gpt2lab.cli, gpt2lab.config")
    optional = {"torch", "tiktoken", "pyarrow", "gigatoken", "awkward", "huggingface_hub", "ray", "datatrove"}
    data = "executors, index, loader, prepare, slurm, verify"
    assert not optional & loaded_after(f"from gpt2lab.data import {data}; from gpt2lab.data.sources import fineweb_edu")
    later = {"matplotlib", "rich", "transformers", "lm_eval", "huggingface_hub"}
    assert not later & loaded_after("import gpt2lab.training.run, gpt2lab.evaluation.run")
    assert not {"gradio", "pandas", "matplotlib"} & loaded_after("import gpt2lab.app.run")

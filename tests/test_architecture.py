"""The house: who may import whom. Downward only, no circles, nothing heavy at the door."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "gpt2lab"

# Module or room -> what it may import of gpt2lab, beside config, errors and the package itself (docs/architecture.md).
ALLOWED = {
    "cli": {
        "bench.run",
        "training.run",
        "evaluation.run",
        "data.prepare",
        "data.index",
        "data.verify",
        "data.slurm",
        "system.device",
        "system.startup",
        "logs",
        "sample",
        "generation.sampling",
        "tracking.report",
        "export.run",
        "app.run",
    },
    "export": {"export", "model", "data.tokenizer", "data.huggingface_tokenizer", "tracking.records", "files"},
    "app.run": {"app", "model", "generation", "data.tokenizer", "system"},
    "app": {"app", "model", "generation", "data.tokenizer", "tracking.records"},
    "sample": {"model", "generation", "data.tokenizer", "system"},
    "training.run": {"training", "data", "model", "generation", "evaluation", "tracking", "system", "files"},
    "training.run_directory": {"files", "system", "tracking.metrics", "training.checkpoint"},
    "training.saver": {
        "files",
        "model",
        "system",
        "tracking.report",
        "training.checkpoint",
        "training.run_directory",
    },
    "training.trainer": {"system", "tracking.metrics", "training.guard", "training.optimizer"},
    "training.memory": {"system", "training.trainer"},
    "training.checkpoint": {"disk", "files", "model", "system", "training.optimizer"},
    "training.optimizer": {"system"},
    "training": set(),  # schedule, guard
    "evaluation.run": {"evaluation", "model", "generation", "data", "system", "files"},
    "evaluation.baselines": set(),
    "evaluation.jsonl": set(),
    "evaluation": {"evaluation", "model", "generation", "data.tokenizer", "system", "resources", "files"},
    "tracking": {"files", "tracking", "evaluation.baselines"},
    "bench.rivals": set(),
    "bench.ladder": {"bench.rivals", "model.gpt2"},
    "bench.measure": {"system.device", "training.run_directory"},
    "bench": {"bench", "training.run", "training.run_directory", "model", "system", "files"},
    "data": {"resources", "files", "disk", "data"},
    "model.huggingface": {"files", "resources"},
    "model.resolve": {"files", "resources", "model.huggingface"},
    "model.gpt2": {"model", "generation", "data.tokenizer"},
    "generation": {"generation", "data.tokenizer", "model"},
    "model": {"model"},
    "system": {"system"},
    "resources": {"files"},
    "files": set(),
    "logs": set(),
    "formatting": set(),
    "disk": set(),
    "config": set(),
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

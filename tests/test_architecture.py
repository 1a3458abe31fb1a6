"""The structure of the package: which module may import which, what an import loads, and how long the code may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "gpt2lab"
MAX_FILE_LINES = 350  # with docstrings
MAX_FUNCTION_LINES = 60  # with docstrings

# Module or package -> the modules and packages that it may import (docs/architecture.md). The most specific entry
# counts. Every module may also import those in EVERYWHERE.
EVERYWHERE = {"config", "errors", "formatting", "logs", "packages", "progress"}
ALLOWED = {
    # and the functions in VERBS, when a verb runs
    "cli": {"cli_parser", "files", "options", "slow_imports", "scaling.options", "sweep.options", "system.startup"},
    "cli_parser": {"options"},
    "commands": {
        "app.run",
        "bench.checkouts",
        "bench.run",
        "data.catalogue",
        "data.index",
        "data.prepare",
        "data.run_data",
        "data.slurm",
        "data.verify",
        "evaluation.names",
        "evaluation.run",
        "export.push",
        "export.run",
        "generation.prompts",
        "model.names",
        "options",
        "packages",
        "planning.calibrate",
        "planning.run",
        "sample",
        "scaling.page",
        "sweep.page",
        "system.device",
        "tracking.report",
        "training.dry_run",
        "training.run",
    },
    "slow_imports": {"progress"},
    "options": {"generation.options", "option_values"},
    "option_values": set(),
    "generation.options": set(),
    "export": {"export", "model", "data.tokenizer", "data.huggingface_tokenizer", "tracking.records", "files"},
    "app.run": {"app", "model", "generation", "data.tokenizer", "options", "system"},
    "app": {"app", "model", "generation", "data.tokenizer", "tracking.plots", "tracking.records"},
    "scaling.options": {"option_values", "options"},
    "scaling.run": {"scaling", "sweep", "files", "outputs"},
    "scaling.page": {"scaling", "sweep.charts", "sweep.page", "sweep.record", "tracking.records", "model.flops"},
    "scaling.charts": {"scaling", "sweep.charts", "tracking.plots", "tracking.records"},
    "scaling.points": {"model.flops", "scaling.forms", "tracking.records"},
    "scaling.recommend": {"scaling", "model.flops", "system.gpus", "planning.loss"},
    "scaling.predict": {"files", "scaling", "tracking.metrics"},
    "scaling": {"scaling", "model.flops"},
    "sweep.run": {"sweep", "data.run_data", "tracking.records", "files"},
    "sweep.options": {"option_values", "options"},
    "sweep.processes": {"sweep", "system.signals"},
    "sweep": {"sweep", "tracking.plots", "tracking.records", "files"},
    "sample": {"model", "generation", "data.tokenizer", "options", "system"},
    "training.run": {"training", "tracking.metrics", "system"},
    "training.dry_run": {
        "training",
        "data",
        "logs",
        "model.init_from",
        "options",
        "planning.local",
        "planning.text",
        "system",
    },
    "training.estimate": {"planning", "training.memory"},
    "training.outlook": {"planning.speed"},
    "model.names": {"files"},
    "model.init_from": {"model.config_json", "model.names"},  # and no torch
    "training.build": {"training", "data", "model", "tracking", "system"},
    "training.evaluators": {
        "training.batches",
        "training.run_directory",
        "training.trainer",
        "data",
        "evaluation",
        "model",
        "tracking.console",
        "tracking.metrics",
        "system",
    },
    "training.trainer": {"training", "model", "planning.speed", "tracking.metrics", "system"},
    "training.memory": {"planning.memory", "system", "training.run_directory"},
    "training.state": {"model", "system", "training.guard"},
    "training.batches": {"data"},
    "training.run_directory": {
        "files",
        "model.flops",
        "model.huggingface",
        "model.names",
        "model.resolve",
        "system",
        "tracking.metrics",
        "tracking.records",
        "training.checkpoint",
        "training.environment",
        "training.resume",
    },
    "training.environment": {"system"},
    "training.resume": {"model.names", "training.checkpoint", "training.schedule"},
    "training.async_checkpointer": {
        "files",
        "training.checkpoint",
        "training.live_report",
        "training.run_directory",
        "training.state",
    },
    "training.messages": {
        "training.batches",
        "training.checkpoint",
        "training.disk_space",
        "training.memory",
        "training.profiling",
        "training.run_directory",
        "training.state",
    },
    "training.initial_weights": {"model", "system", "training.checkpoint"},
    "training.live_report": {"tracking.report", "training.run_directory"},
    "training.checkpoint": {"disk_space", "files", "model", "system", "training.optimizer", "training.state"},
    "training.muon": {"system.distributed"},
    "training.profiling": {"files"},
    "training.optimizer": {"model", "system", "training.muon"},
    "training.disk_space": {
        "disk_space",
        "files",
        "model.flops",
        "model.resolve",
        "training.checkpoint",
        "training.run_directory",
    },
    "training": set(),  # outlook, schedule, guard
    "evaluation.run": {"options", "evaluation", "model", "generation", "data", "system", "files"},
    "evaluation.loss": {"data.shards", "data.tokenizer", "model.language_model", "system"},
    "evaluation.baselines": set(),
    "evaluation.jsonl": set(),
    "evaluation": {"evaluation", "model", "generation", "data.tokenizer", "system", "resources", "files"},
    "tracking": {"files", "outputs", "tracking", "evaluation.baselines"},
    "planning.run": {"planning", "model.flops", "model.init_from", "logs", "options", "system.cpu", "system.gpus"},
    "planning.calibration": {"planning", "files", "resources", "system.gpus"},
    "planning.local": {"planning", "model.ops", "system.cpu", "system.gpus"},  # it and calibrate import torch
    "planning.calibrate": {"planning", "training", "model", "logs", "options", "system"},  # only commands imports it
    "planning": {"planning", "model.flops", "system.gpus"},  # and no torch
    "bench.checkouts": {"files", "options", "outputs"},
    "bench.rivals": {"bench.checkouts"},
    "bench.ladder": {"bench.rivals", "model.gpt2"},
    "bench.measure": {"system.device", "training.environment"},
    "bench": {"options", "bench", "training.run", "training.run_directory", "model", "system", "files", "outputs"},
    "data": {"resources", "disk_space", "files", "options", "data"},
    "model.config_json": {"model.gpt2_layout", "model.nanochat_layout"},  # and no torch
    "model.huggingface": {"files", "model.config_json", "model.weight_files"},
    "model.resolve": {"model.names", "files", "resources", "model.foreign", "model.huggingface", "model.weight_files"},
    "model.gpt2": {"model", "generation.cache"},
    "model.modern": {"model", "generation.cache"},
    "model.language_model": {"model", "generation", "data.tokenizer"},
    "generation": {"generation", "data.tokenizer", "model.ops"},
    "model.weight_files": {"model", "files"},
    "model": {"model"},
    "system.gpus": set(),  # and no torch
    "system": {"system"},
    "resources": {"files"},
    "files": set(),
    "disk_space": set(),
    "outputs": set(),
    "logs": set(),
    "progress": set(),
    "formatting": set(),
    "packages": set(),
    "config.architecture": set(),
    "config.settings": {"config.architecture", "config.yaml_format"},
    "config.loading": {"config.architecture", "config.messages", "config.settings", "config.yaml_format"},
    "config": {"config"},
    "errors": set(),
    "__main__": {"cli"},
    "__init__": {"model.gpt2", "model.pretrained", "data.tokenizer"},
}


def list_modules() -> dict[str, Path]:
    """The modules of the package by name, without the `gpt2lab.`."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def find_imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    modules = set(list_modules())
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    names = {name.removeprefix("gpt2lab.") for name in names if name.startswith("gpt2lab.")}
    return {name if name in modules else name.rpartition(".")[0] for name in names} - {""}


def find_rule(module: str) -> set[str]:
    while module not in ALLOWED:
        assert "." in module, (
            f"{module} has no entry in ALLOWED: add what it may import, here and in docs/architecture.md"
        )
        module = module.rpartition(".")[0]
    return ALLOWED[module]


def test_imports_go_downward():
    for module, path in list_modules().items():
        allowed = find_rule(module) | EVERYWHERE
        for name in find_imports(path):
            assert any(name == entry or name.startswith(entry + ".") for entry in allowed), (
                f"{module} may not import {name}"
            )


def test_every_rule_is_about_a_module():
    modules = set(list_modules())
    packages = {module.rpartition(".")[0] for module in modules}
    named = set(ALLOWED) | EVERYWHERE.union(*ALLOWED.values())
    assert not named - modules - packages


def test_no_circular_imports():
    graph = {module: find_imports(path) for module, path in list_modules().items() if module != "__init__"}
    while leaves := {module for module, imported in graph.items() if not imported & graph.keys()}:
        graph = {module: imported for module, imported in graph.items() if module not in leaves}
    assert not graph, f"circular imports among {sorted(graph)}"


def list_loaded_modules(statement: str) -> set[str]:
    """The modules that are loaded in a new process after a statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_optional_and_large_packages_are_imported_late():
    large = {
        "torch",
        "numpy",
        "scipy",
        "matplotlib",
        "rich",
        "tiktoken",
        "transformers",
        "pyarrow",
        "gradio",
        "lm_eval",
    }
    assert not large & list_loaded_modules("import gpt2lab.cli, gpt2lab.config")
    assert not large & list_loaded_modules("import gpt2lab.planning.run")
    optional = {"torch", "tiktoken", "pyarrow", "gigatoken", "awkward", "huggingface_hub", "ray", "datatrove"}
    data = "executors, index, loader, prepare, slurm, verify"
    statement = f"from gpt2lab.data import {data}; from gpt2lab.data.sources import fineweb"
    assert not optional & list_loaded_modules(statement)
    rare = {"matplotlib", "rich", "transformers", "lm_eval", "huggingface_hub", "sympy"}
    assert not rare & list_loaded_modules("import gpt2lab.training.run, gpt2lab.evaluation.run")
    assert not {"torch", "scipy", "matplotlib"} & list_loaded_modules("import gpt2lab.scaling.run")
    assert not {"gradio", "pandas", "matplotlib"} & list_loaded_modules("import gpt2lab.app.run")


def find_docstrings(tree: ast.Module) -> Iterator[ast.Expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first


def count_lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_files_are_short():
    lengths = {name: len(path.read_text().splitlines()) for name, path in list_modules().items()}
    assert not {name: length for name, length in lengths.items() if length > MAX_FILE_LINES}


def test_functions_are_short():
    lengths = {
        f"{module}.{node.name}, line {node.lineno}": count_lines(node)
        for module, path in list_modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}

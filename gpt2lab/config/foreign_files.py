"""Reads settings files of other projects: YAML, and Python files of assignments, whose code is never run."""

import ast
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpt2lab.config import yaml_format
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import replace_control_characters

MAX_SETTINGS, MAX_DEPTH, MAX_BYTES = 1000, 3, 1_000_000  # a YAML file with aliases can stand for a huge one
_LARGEST = 1e30

_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


class ForeignFile(NamedTuple):
    """A settings file of another project.

    Attributes:
        values: by name; nested names have dots.
        left_out: names whose values are not literals.
        has_code: it is a program, not only assignments.
    """

    values: dict[str, Any]
    left_out: list[str]
    has_code: bool


class _NotLiteralError(Exception):
    """An expression is more than arithmetic of literals."""


def read(file: Path) -> ForeignFile:
    """Read a settings file.

    Args:
        file: path of a Python file, or else of a YAML file.

    Returns:
        Its settings.

    Raises:
        GPT2LabError: the file cannot be read, or is not Python or YAML.
    """
    if file.suffix == ".py":
        return _read_python(file)
    return ForeignFile(dict(flatten(yaml_format.read(file))), [], False)


def flatten(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings with dotted names.

    Args:
        content: the mappings; below `MAX_DEPTH` they are values.

    Yields:
        Names and values, at most `MAX_SETTINGS`.
    """

    def walk(mapping: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
        for key, value in mapping.items():
            name = prefix + replace_control_characters(" ".join(str(key)[:100].split()))
            if isinstance(value, Mapping) and depth < MAX_DEPTH:
                yield from walk(value, f"{name}.", depth + 1)
            else:
                yield name, value

    return itertools.islice(walk(content, "", 1), MAX_SETTINGS)


def _read_python(file: Path) -> ForeignFile:
    """Read the assignments of a Python file whose values are literals, or arithmetic of literals and earlier values."""
    try:
        with open(file, encoding="utf-8") as source:
            text = source.read(MAX_BYTES + 1)
    except OSError as error:
        raise GPT2LabError(f"{file}: cannot read it: {error.strerror}") from None
    except ValueError as error:
        raise GPT2LabError(f"{file}: not a Python file: {error}") from None
    if len(text) > MAX_BYTES:
        raise GPT2LabError(f"{file}: too long for a file of settings")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        problem = "nested too deep"
        if isinstance(error, SyntaxError):
            problem = f"line {error.lineno}: {error.msg}" if error.lineno else error.msg
        raise GPT2LabError(f"{file}: not a Python file: {problem}") from None
    values: dict[str, Any] = {}
    left_out: list[str] = []
    has_code = any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.While) for node in tree.body)
    for node in tree.body:
        if not (has_code and isinstance(node, ast.If | ast.With | ast.Try)):
            _assign(node, values, left_out)
    return ForeignFile(values, left_out, has_code)


def _assign(node: ast.stmt, values: dict[str, Any], left_out: list[str]) -> None:
    """Enter what a statement assigns; names whose values depend on what code does are left out."""
    found: list[tuple[str, Any]] = []
    for name, expression in _assignments(node):
        try:
            found.append((name, _evaluate(expression, values)))
        except (_NotLiteralError, ArithmeticError, TypeError, RecursionError):
            values.pop(name, None)
            left_out.append(name)
    values.update(found)


def _assignments(node: ast.stmt) -> Iterator[tuple[str, ast.expr | None]]:
    """The names that a statement assigns, with their expressions; None for what is no plain assignment."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return  # names in it are its own
    pairs: list[tuple[ast.expr, ast.expr | None]] = []
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        pairs = [(node.target, ast.BinOp(ast.Name(node.target.id, ast.Load()), node.op, node.value))]
    elif isinstance(node, ast.Assign):
        pairs = [(target, node.value) for target in node.targets]
    elif isinstance(node, ast.AnnAssign):
        pairs = [(node.target, node.value)] if node.value else []
    else:
        pairs = [(name, None) for name in ast.walk(node) if isinstance(name, ast.expr)]
    sequence = ast.Tuple | ast.List
    for target, value in pairs:
        if isinstance(target, sequence) and isinstance(value, sequence) and len(target.elts) == len(value.elts):
            parts: Iterable[tuple[ast.expr, ast.expr | None]] = zip(target.elts, value.elts, strict=True)
        else:
            parts = [(target, value)]
        for part, expression in parts:
            for name in ast.walk(part):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                    yield name.id, expression if name is part else None


def _evaluate(node: ast.AST | None, values: Mapping[str, Any]) -> Any:
    """The value of an expression of literals, numbers and earlier names; nothing is called."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.Name) and node.id in values:
        return values[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_evaluate(element, values) for element in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _number(_evaluate(node.operand, values))
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = (_number(_evaluate(side, values)) for side in (node.left, node.right))
        if isinstance(node.op, ast.Pow) and (abs(right) > 64 or abs(left) > 1e6):
            raise _NotLiteralError
        return _number(_OPERATORS[type(node.op)](left, right))
    raise _NotLiteralError


def _number(value: Any) -> int | float:
    if isinstance(value, int | float) and abs(value) < _LARGEST:
        return float(f"{value:.12g}") if isinstance(value, float) else value  # 6e-5 for 6e-4 * 0.1
    raise _NotLiteralError

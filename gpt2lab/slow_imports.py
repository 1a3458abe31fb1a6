"""Shows the imports that take seconds, wherever in a verb they are: `loading torch` while torch is imported."""

import contextlib
import importlib.abc
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from gpt2lab import progress

_PACKAGES = ("torch", "scipy", "matplotlib", "gradio", "transformers", "datasets", "lm_eval", "ray")


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Show the imports of slow packages as phases, in the `with` block. A block inside another adds nothing."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):  # two would search each other without end
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what the other finders find, but a module of a slow package is executed in a phase.

    Modules that it imports in turn belong to the same phase. Other threads import without a phase. Where there is no
    terminal, a package is announced once, though it may import more of its modules later.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._is_loading = False
        self._announced: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = fullname.partition(".")[0]
        if package not in _PACKAGES or self._is_loading or threading.get_ident() != self._thread:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(fullname, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_in_phase(module: ModuleType) -> None:
            if self._is_loading:
                execute(module)
                return
            self._is_loading = True
            try:
                with progress.Phase(f"loading {package}", announce=package not in self._announced):
                    self._announced.add(package)
                    execute(module)
            finally:
                self._is_loading = False

        # On this instance alone, so that the loader keeps its type, which other code asks for.
        spec.loader.exec_module = execute_in_phase  # type: ignore[method-assign]
        return spec

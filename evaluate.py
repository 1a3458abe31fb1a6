"""`python evaluate.py …` and `torchrun … evaluate.py` are the same as `gpt2lab evaluate …`.

A package on PyPI is also called `evaluate`, and lm-evaluation-harness imports it. Where this file is found first,
importing it gives that package.
"""

import sys

if __name__ == "__main__":
    from gpt2lab.__main__ import main

    raise SystemExit(main(["evaluate", *sys.argv[1:]]))

from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

_other_paths = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
_spec = PathFinder.find_spec(__name__, _other_paths)
if _spec is None or _spec.loader is None:
    raise ModuleNotFoundError(f"No module named {__name__!r}: pip install -e '.[eval]'", name=__name__)
sys.modules[__name__] = module_from_spec(_spec)  # what `import` returns
_spec.loader.exec_module(sys.modules[__name__])

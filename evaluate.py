"""The door people already type: `python evaluate.py …` and `torchrun … evaluate.py` are `gpt2lab evaluate …`.

A package on PyPI has this file's name, and lm-evaluation-harness imports it. Whoever imports `evaluate` from a
directory where this file comes first is given that package.
"""

import sys

if __name__ == "__main__":
    from gpt2lab.cli import main

    raise SystemExit(main(["evaluate", *sys.argv[1:]]))

from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

_elsewhere = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
_spec = PathFinder.find_spec(__name__, _elsewhere)
if _spec is None or _spec.loader is None:
    raise ModuleNotFoundError(f"No module named {__name__!r}: pip install -e '.[eval]'", name=__name__)
sys.modules[__name__] = module_from_spec(_spec)  # `import` hands out what stands here when this file is done
_spec.loader.exec_module(sys.modules[__name__])

"""What the server of forks imports before the first one: all that a `gpt2lab train` does."""

import gc

import torch._dynamo  # noqa: F401  # the optimizers import it when they are first used

import gpt2lab.tracking.report
import gpt2lab.training.run  # noqa: F401
import tests.faults.harm  # noqa: F401

gc.freeze()  # else the collection before a run's first step walks through torch, and every fork copies its memory

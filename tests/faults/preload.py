"""Imported once by the fork server (`processes.Forked`): everything that `gpt2lab train` imports."""

import gc

import torch._dynamo  # noqa: F401  # the optimizers import it when they are first used

import gpt2lab.tracking.report
import gpt2lab.training.run  # noqa: F401
import tests.faults.injection  # noqa: F401

gc.freeze()  # otherwise the first garbage collection of a fork visits all objects of torch and copies their memory

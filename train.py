"""`python train.py …` and `torchrun … train.py` are the same as `gpt2lab train …`."""

import sys

from gpt2lab.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))

"""`python app.py --trained runs/x` is the same as `gpt2lab app --trained runs/x`."""

import sys

from gpt2lab.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main(["app", *sys.argv[1:]]))

"""The door people already type: `python app.py --trained runs/x` is `gpt2lab app …`."""

import sys

from gpt2lab.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["app", *sys.argv[1:]]))

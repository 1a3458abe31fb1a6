"""`python -m gpt2lab` is the `gpt2lab` command."""

from gpt2lab.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

"""The entry point of `gpt2lab`, `python -m gpt2lab` and the scripts.

It imports almost nothing before it catches Ctrl-C, which otherwise prints a traceback during the imports.
"""

import sys

TYPE_CHECKING = False  # what type checkers take for True; importing typing takes longer than everything else here
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows `gpt2lab`; None: those of the process.

    Returns:
        The exit status, see `gpt2lab.cli.main`.
    """
    try:
        import os
        import signal

        if "GPT2LAB_SWEEP" in os.environ:  # it has held Ctrl-C back until now
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        from gpt2lab import cli

        return cli.main(arguments)
    except KeyboardInterrupt:  # before or after those in which `cli.main` catches it
        if os.environ.get("RANK", "0") == "0" and sys.stderr is not None:
            print("gpt2lab: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())

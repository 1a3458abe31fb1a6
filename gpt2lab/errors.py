"""The one error type that users see, and the one way in which a run stops without being finished."""


class GPT2LabError(ValueError):
    """Something the user can mend: one line that names the file or the key, and what to do.

    The command line prints the message without a traceback and exits with status 2. A bug raises anything
    else, and keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))  # one line, whatever a library put into its own message


class Stopped(Exception):
    """A signal asked the run to stop, and it was saved. The command line exits with `status`, 128 + the signal."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.status = 128 + number

"""The one error type that users see."""


class GPT2LabError(ValueError):
    """Something the user can mend: one line that names the file or the key, and what to do.

    The command line prints the message without a traceback and exits with status 2. A bug raises anything
    else, and keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))  # one line, whatever a library put into its own message

"""Where texts come from: each module here yields the documents of one corpus, always in the same order."""

from typing import NamedTuple


class Document(NamedTuple):
    """One text. `id` is unique within its corpus; the shuffle of `prepare` is keyed by it."""

    id: str
    text: str

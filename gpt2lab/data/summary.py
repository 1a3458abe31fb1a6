"""What a preparation has made, in a line."""

from pathlib import Path
from typing import NamedTuple

from gpt2lab.data.shards import MANIFEST
from gpt2lab.formatting import plural


class Summary(NamedTuple):
    """What a folder holds, both splits together.

    Attributes:
        documents: number of documents.
        tokens: number of tokens.
        shards: number of shards.
        seconds: duration of this call, if it made the shards.
        text_bytes: bytes of text that were encoded.
        duplicates: documents that occurred before; they are in the shards unless they were dropped.
        dropped: whether they were.
        skipped: documents and chunks that could not be read.
        made: False if the folder was complete already.
        val_tokens: tokens of the validation split.
        divided: whether a document begins in val and ends in train.
    """

    documents: int
    tokens: int
    shards: int
    seconds: float = 0.0
    text_bytes: int = 0
    duplicates: int = 0
    dropped: bool = False
    skipped: int = 0
    made: bool = False
    val_tokens: int = 0
    divided: bool = False

    def line(self, folder: Path) -> str:
        """Return a one-line summary."""
        share = f"{100 * self.val_tokens / self.tokens:.2g}% val"
        share += ", the last document of val is continued in train" if self.divided else ""
        content = (
            f"{plural(self.documents, 'document')}, {self.tokens:,} tokens in {plural(self.shards, 'shard')} ({share})"
        )
        option = "gpt2lab prepare --drop-duplicates" + " --restart" * (not self.made)
        fate = "were left out" if self.dropped else f"are kept ({option} leaves them out)"
        notes = f"; {self.duplicates:,} exact duplicates {fate}" if self.duplicates else ""
        skipped = "line or file was" if self.skipped == 1 else "lines or files were"
        notes += f"; {self.skipped:,} unreadable {skipped} left out, see {MANIFEST}" if self.skipped else ""
        if not self.made:
            return f"{folder} is complete: {content}{notes}"
        rate = f", {self.text_bytes / self.seconds / 1e6:.3g} MB/s of text" if self.text_bytes else ""
        return f"prepared {folder}: {content} in {self.seconds:.1f} s{rate}{notes}"

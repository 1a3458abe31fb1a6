"""Convert an Arrow array of strings to `Texts` without a Python object for each string."""

from typing import Any

import numpy as np

from gpt2lab.data.sources import Report, Texts


def texts_from_arrow(column: Any, name: str, report: Report) -> Texts:
    """Convert a column of text. Nulls and strings that are not UTF-8 are reported and left out.

    Args:
        column: `pyarrow.StringArray` or `LargeStringArray`.
        name: name of the chunk, for messages.
        report: called for each row that cannot be used.

    Returns:
        The texts. They share memory with `column` if all rows can be used.
    """
    import pyarrow

    column = column.cast(pyarrow.large_string(), safe=False)
    try:
        column.validate(full=True)
        valid = not column.null_count
    except pyarrow.ArrowInvalid:
        valid = False
    if not valid:
        return Texts.join(_check_rows(column.cast(pyarrow.large_binary()).to_pylist(), name, report))
    _, offsets_buffer, data_buffer = column.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(data_buffer or b"", dtype=np.uint8)[offsets[0] : offsets[-1]]
    return Texts(data, offsets - offsets[0])


def _check_rows(rows: list[bytes | None], name: str, report: Report) -> list[bytes]:
    texts = []
    for row, text in enumerate(rows):
        try:
            if text is None:
                report(f"{name}: row {row} has no text")
            else:
                text.decode("utf-8")
                texts.append(text)
        except UnicodeDecodeError:
            report(f"{name}: row {row} is not UTF-8 text")
    return texts

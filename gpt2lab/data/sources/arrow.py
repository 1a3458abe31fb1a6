"""From an Arrow array of strings to `Texts`, without a Python object for any of them."""

from typing import Any

import numpy as np

from gpt2lab.data.sources import Report, Texts


def texts_of(column: Any, name: str, report: Report) -> Texts:
    """The text of an Arrow string array, not copied. A null, or what is not UTF-8, is reported.

    Args:
        column: `pyarrow.StringArray` or `LargeStringArray`.
        name: of the unit, for reports.
    """
    import pyarrow

    column = column.cast(pyarrow.large_string(), safe=False)
    try:
        column.validate(full=True)
        sound = not column.null_count
    except pyarrow.ArrowInvalid:
        sound = False
    if not sound:
        return Texts.of(_one_by_one(column.cast(pyarrow.large_binary()).to_pylist(), name, report))
    _, offsets_buffer, data_buffer = column.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(data_buffer or b"", dtype=np.uint8)[offsets[0] : offsets[-1]]
    return Texts(data, offsets - offsets[0])


def _one_by_one(values: list[bytes | None], name: str, report: Report) -> list[bytes]:
    texts = []
    for row, raw in enumerate(values):
        try:
            if raw is None:
                report(f"{name}: row {row} has no text")
            else:
                raw.decode("utf-8")
                texts.append(raw)
        except UnicodeDecodeError:
            report(f"{name}: row {row} is not UTF-8 text")
    return texts

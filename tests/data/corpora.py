"""Small corpora made on the spot, in every format that is read."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = "the cat sat on a mat, looked at the moon; rain fell".split()  # noqa: SIM905


def texts(count, start=0):
    """Distinct documents of different lengths."""
    return [
        " ".join(WORDS[(n * 7 + k * (n % 5 + 1)) % len(WORDS)] for k in range(n % 40 + 3)) + f" {n}."
        for n in range(start, start + count)
    ]


def parquet(path, documents, rows=50, column="text", **options):
    """A parquet file with a few other columns, as on the hub."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {"id": [f"u{n}" for n in range(len(documents))], column: documents, "score": [1.0] * len(documents)}
    )
    pq.write_table(table, path, row_group_size=rows, **({"compression": "zstd"} | options))
    return path


def mirror(root: Path, files=3, count=400, rows=50) -> Path:
    """A folder laid out like FineWeb-Edu; document n of file f is `texts(…)[n]`."""
    for number in range(files):
        parquet(root / "sample/10BT" / f"{number:03d}_00000.parquet", texts(count, number * count), rows)
    return root


def jsonl(path, documents, field="text"):
    """JSON lines, compressed as the name says."""
    data = b"".join(
        json.dumps({"n": n, field: text}, ensure_ascii=n % 2 == 0).encode() + b"\n" for n, text in enumerate(documents)
    )
    if path.suffix == ".gz":
        half = data.index(b"\n", len(data) // 2) + 1
        data = gzip.compress(data[:half]) + gzip.compress(data[half:])  # two members, as `cat a.gz b.gz` makes them
    elif path.suffix == ".zst":
        data = pa.compress(data, codec="zstd", asbytes=True)
    path.write_bytes(data)
    return path


def contents(folder):
    """Name and bytes of every file that is part of the result."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name[0] != "."}

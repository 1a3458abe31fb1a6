"""Encoded chunks on disk, for when everything must be encoded before the first shard can be written.

    Chunk ──encode──▶ .parts/00003-000017.npz ──in the order of the corpus, or shuffled──▶ shards

This is so if the validation split is a tenth of the corpus (its size is known only at the end), if the corpus is
shuffled, and if several machines encode. Files are written once, in any order, and survive an interruption.
`.parts/00003.json` records the number of chunks of file 3 when all of them are there.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt2lab import progress
from gpt2lab.data.duplicates import SeenHashes
from gpt2lab.data.encoder import Encoded, OnBytes
from gpt2lab.data.executors import Chunks, EncodedChunks
from gpt2lab.data.permutation import permute
from gpt2lab.data.sources import Position, Source
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import atomic_write

FOLDER = ".parts"
MIN_DIVISIBLE = 1280  # tokens of a corpus in which val may end inside a document: a smaller val may be of no use


class EncodedCache:
    """The encoded chunks of one output folder.

    Args:
        folder: the output folder.
        seed: of the order of chunks, and of documents within each; None for the order of the corpus.
    """

    def __init__(self, folder: Path, seed: int | None = None):
        self.folder, self.seed = folder / FOLDER, seed

    def fill(
        self,
        source: Source,
        encode_chunks: Callable[[Chunks, OnBytes], EncodedChunks],
        files: Iterable[int] | None = None,
    ) -> None:
        """Encode the chunks that are missing.

        Args:
            source: the corpus.
            encode_chunks: encodes chunks in parallel, and counts the bytes of text meanwhile.
            files: indices of the files to encode; None for all.

        Raises:
            GPT2LabError: something cannot be read or written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for file_of_earlier_version in self.folder.glob("*.part"):
            file_of_earlier_version.unlink()
        chunk_counts: dict[int, int] = {}

        def missing_chunks() -> Chunks:
            for file in range(len(source.files)) if files is None else files:
                if self._is_complete(file):
                    continue
                chunk_counts[file] = 0
                for position, chunk in source.chunks(files=[file]):
                    chunk_counts[file] += 1
                    if self.read(position) is None:
                        yield position, chunk

        encoded_bytes = text_bytes = tokens = 0

        def count_bytes(number: int) -> None:
            nonlocal encoded_bytes
            encoded_bytes += number
            show()

        def show() -> None:
            note = f"{tokens:,} tokens" if tokens else ""
            phase.update(min(max(encoded_bytes, text_bytes), source.text_bytes), note)

        with progress.Phase(f"encoding {source.name}", max(1, source.text_bytes), skip_first=True) as phase:
            for position, encoded in encode_chunks(missing_chunks(), count_bytes):
                self._write(position, encoded)
                text_bytes, tokens = text_bytes + encoded.text_bytes, tokens + len(encoded.tokens)
                show()
        for file, count in chunk_counts.items():
            with atomic_write(self._count_path(file)) as path:
                path.write_text(json.dumps({"units": count}) + "\n", encoding="utf-8")

    def read(self, position: Position) -> Encoded | None:
        """Read an encoded chunk; None if it is missing, or damaged, in which case it is deleted."""
        path = self._path(position)
        try:
            with np.load(path, allow_pickle=False) as arrays:  # checks the CRC of each array
                tokens, lengths, hashes = (arrays[name] for name in ("tokens", "lengths", "hashes"))
                return Encoded(tokens, lengths, hashes, int(arrays["text_bytes"]), tuple(arrays["problems"].tolist()))
        except FileNotFoundError:
            return None
        except Exception:  # numpy and zipfile raise exceptions of many types for a damaged file
            path.unlink()
            return None

    def positions(self, files: int) -> list[Position]:
        """List the chunks of a complete cache in the order in which they are written to shards.

        Args:
            files: number of files of the source.
        """
        ordered = [Position(file, chunk) for file in range(files) for chunk in range(self._chunk_count(file))]
        if self.seed is None:
            return ordered
        return [ordered[i] for i in permute(np.arange(len(ordered)), len(ordered), f"{self.seed}/units").tolist()]

    def read_from(self, positions: list[Position], start: Position | None) -> EncodedChunks:
        """Read the chunks at `positions`, from `start` on.

        Raises:
            GPT2LabError: a chunk has been damaged since it was encoded.
        """
        for position in positions[positions.index(start) if start else 0 :]:
            encoded = self.read(position)
            if encoded is None:
                raise GPT2LabError(f"{self._path(position)} is damaged; run the same command again to repair it")
            yield position, encoded

    def choose_val(self, positions: list[Position], drop_duplicates: bool) -> tuple[int, bool]:
        """Choose the size of a validation split of a tenth of all tokens.

        It ends with the first document that ends at or after a tenth. If this document is so large that the split would
        have more than 15%, the split ends before it, or, if it would then have less than 8%, inside it.

        Args:
            positions: the chunks, in order.
            drop_duplicates: whether documents that occurred before are left out.

        Returns:
            The number of tokens, and whether a document may be divided there.
        """
        counts = [int(lengths.sum()) for lengths in self._kept_lengths(positions, drop_duplicates)]
        ends = np.cumsum(counts)
        if not (total := sum(counts)):
            return 0, False
        chunk = int(np.searchsorted(10 * ends, total))
        lengths = next(itertools.islice(self._kept_lengths(positions, drop_duplicates), chunk, None))
        document_ends = int(ends[chunk]) - counts[chunk] + np.cumsum(lengths)
        document = int(np.searchsorted(10 * document_ends, total))
        end = int(document_ends[document])
        start = end - int(lengths[document])
        if end <= 0.15 * total:
            return end, False
        if start >= 0.08 * total:
            return start, False
        if total >= MIN_DIVISIBLE:
            return -(-total // 10), True
        return (start if start and total - 10 * start < 10 * end - total else end), False

    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.folder.glob("*.npz"))

    def remove(self) -> None:
        """Delete the cache."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, position: Position) -> Path:
        return self.folder / f"{position.file:05d}-{position.chunk:06d}.npz"

    def _count_path(self, file: int) -> Path:
        return self.folder / f"{file:05d}.json"

    def _kept_lengths(self, positions: list[Position], drop_duplicates: bool) -> Iterator[npt.NDArray[np.int64]]:
        """The number of tokens of each document that is not dropped, by chunk."""
        seen = SeenHashes()
        for position in positions:
            with np.load(self._path(position), allow_pickle=False) as arrays:
                lengths: npt.NDArray[np.int64] = arrays["lengths"]
                yield lengths[~seen.add(arrays["hashes"])] if drop_duplicates else lengths

    def _write(self, position: Position, encoded: Encoded) -> None:
        if self.seed is not None:
            encoded = _shuffle_documents(encoded, f"{self.seed}/{position.file}/{position.chunk}")
        with atomic_write(self._path(position)) as path, open(path, "wb") as file:
            np.savez(file, **encoded._asdict())

    def _chunk_count(self, file: int) -> int:
        count: int = json.loads(self._count_path(file).read_text(encoding="utf-8"))["units"]
        return count

    def _is_complete(self, file: int) -> bool:
        return self._count_path(file).exists() and all(
            self.read(Position(file, chunk)) is not None for chunk in range(self._chunk_count(file))
        )


def _shuffle_documents(encoded: Encoded, key: str) -> Encoded:
    count = len(encoded.lengths)
    if not count:
        return encoded
    order = permute(np.arange(count), count, key)
    documents = np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])
    return encoded._replace(
        tokens=np.concatenate([documents[row] for row in order]),
        lengths=encoded.lengths[order],
        hashes=encoded.hashes[order],
    )

"""Rows of a text file as they were checked, kept on disk as arrays so that they are parsed once.

One nameless temporary file holds the rows of all files of a log: it is gone with the last user of it, and after a kill.
A disk without room costs the second parse, not the run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator

import pyarrow as pa

#: A smaller file is as quickly parsed again.
LEAST_BYTES = 1 << 20


class SpoolFile:
    """A temporary file that record batches are appended to."""

    def __init__(self) -> None:
        self._stream = tempfile.TemporaryFile(prefix="anomaly-spool-")  # noqa: SIM115 - it lives as long as the log
        self._end = 0

    def append(self, batch: pa.RecordBatch) -> tuple[int, int]:
        """Write ``batch``; where it begins and its bytes. Raises OSError on a full disk."""
        message = batch.serialize()
        self._stream.seek(self._end)
        self._stream.write(message)
        self._stream.flush()
        begin, self._end = self._end, self._end + message.size
        return begin, message.size

    def read(self, begin: int, size: int) -> bytes:
        """The bytes that ``append`` wrote."""
        self._stream.seek(begin)
        return self._stream.read(size)

    @staticmethod
    def room_for(size: int) -> bool:
        """Whether the folder of temporary files has room for the rows of a text file of ``size`` bytes, and to spare."""
        try:
            return shutil.disk_usage(tempfile.gettempdir()).free > 2 * size
        except OSError:
            return False


class Spool:
    """The rows of one source: numbers as float32, times as UTC time stamps, the rest as texts.

    ``complete`` is False until ``close``, and stays so when the disk was full. ``numbers`` names the columns whose
    texts are lost.
    """

    def __init__(self, file: SpoolFile) -> None:
        self._file = file
        self._schema: pa.Schema | None = None
        self._at: list[tuple[int, int]] = []
        self._failed = self.complete = False
        self.numbers: frozenset[str] = frozenset()

    def add(self, columns: dict[str, pa.Array]) -> None:
        """Append a batch of rows."""
        if self._failed:
            return
        kept = {n: c.cast(pa.float32(), safe=False) if pa.types.is_floating(c.type) else c for n, c in columns.items()}
        batch = pa.RecordBatch.from_arrays(list(kept.values()), list(kept))
        if self._schema is None:
            self._schema = batch.schema
            self.numbers = frozenset(n for n, c in kept.items() if pa.types.is_floating(c.type))
        try:
            self._at.append(self._file.append(batch))
        except OSError:
            self._failed = True

    def close(self) -> None:
        """All rows are there."""
        self.complete = not self._failed

    def batches(self, wanted: Collection[str] | None) -> Iterator[dict[str, pa.Array]]:
        """The ``wanted`` columns (all if None), batch by batch."""
        for begin, size in self._at:
            batch = pa.ipc.read_record_batch(pa.py_buffer(self._file.read(begin, size)), self._schema)
            names = [n for n in batch.schema.names if wanted is None or n in wanted]
            yield {n: batch.column(n) for n in names}

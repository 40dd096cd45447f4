"""Batches of a checked log file as LogChunks, and chunks of one size from batches of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from anomaly.data.contract import EVENT, NORMAL, UNKNOWN, LogChunk, LogContract
from anomaly.data.reading.profile import FileProfile
from anomaly.data.reading.sources import RawBatch, Source
from anomaly.data.reading.times import TimeReading, read_times
from anomaly.data.reading.values import numbers, texts


@dataclass(frozen=True)
class Layout:
    """How a checked batch becomes a chunk. ``unlabelled`` is the label of rows in files without the label column."""

    contract: LogContract
    time: str
    times: TimeReading
    asset: str | None
    label: str | None
    unlabelled: int

    def wanted(self) -> set[str]:
        """The columns to read."""
        named = {self.time, *self.contract.tags, *self.contract.categories}
        return named | {c for c in (self.asset, self.label) if c is not None}

    def as_text(self) -> set[str]:
        """The columns whose cells are wanted as they are written."""
        return {c for c in (*self.contract.categories, self.asset) if c is not None}


@dataclass
class Part:
    """One file of the log in reading order; rows of an asset up to ``resume[asset]`` were in an earlier file."""

    profile: FileProfile
    resume: dict[str, int] = field(default_factory=dict)

    @property
    def source(self) -> Source:
        """The file."""
        return self.profile.source


def part_chunks(part: Part, layout: Layout, *, resumed: bool = True) -> Iterator[LogChunk]:
    """The chunks of one file; ``row`` counts the file's own rows. With ``resumed``, rows read before are left out."""
    part.source.check_unchanged()
    for batch in part.source.checked_batches(layout.wanted(), layout.as_text()):
        chunk = _chunk(batch, part, layout)
        if resumed and part.resume:
            chunk = chunk.take(_fresh(chunk, part.resume))
        yield chunk
    part.source.check_unchanged()


def rebatch(chunks: Iterable[LogChunk], rows: int) -> Iterator[LogChunk]:
    """The same rows in chunks of ``rows`` (the last one may be shorter), ``row`` counted through from 0."""
    held: list[LogChunk] = []
    first, size = 0, 0
    for chunk in chunks:
        start = 0
        while size + len(chunk) - start >= rows:
            end = start + rows - size
            yield _numbered([*held, chunk.take(slice(start, end))], first)
            held, size, start, first = [], 0, end, first + rows
        if start < len(chunk):
            held.append(chunk.take(slice(start, None)))
            size += len(chunk) - start
    if size:
        yield _numbered(held, first)


def _numbered(chunks: list[LogChunk], first: int) -> LogChunk:
    joined = chunks[0]
    if len(chunks) > 1:
        joined = LogChunk.join(chunks)
    return replace(joined, row=np.arange(first, first + len(joined), dtype=np.int64))


def _chunk(batch: RawBatch, part: Part, layout: Layout) -> LogChunk:
    n, contract = batch.rows, layout.contract
    values = np.empty((n, len(contract.tags)), np.float32)
    bad = np.zeros((n, len(contract.tags)), dtype=bool)
    for i, tag in enumerate(contract.tags):
        found = numbers(batch.columns[tag], decimal=part.source.decimal, nan_is_bad=part.source.nan_is_bad)
        values[:, i], bad[:, i] = found.values, found.bad
    categories = np.full((n, len(contract.categories)), "", dtype=object)
    for i, name in enumerate(contract.categories):
        categories[:, i] = texts(batch.columns[name])
    asset = np.full(n, part.profile.asset, dtype=object)
    if layout.asset is not None:
        asset = texts(batch.columns[layout.asset])
    time = read_times(batch.columns[layout.time], layout.times).us
    row = np.arange(batch.first, batch.first + n, dtype=np.int64)
    return LogChunk(row, time, asset, values, categories, _label(batch, part, layout), bad)


def _label(batch: RawBatch, part: Part, layout: Layout) -> NDArray[np.int8]:
    if layout.label is None or layout.label not in batch.columns:
        return np.full(batch.rows, layout.unlabelled, np.int8)
    values = numbers(batch.columns[layout.label], decimal=part.source.decimal).values
    return np.where(np.isnan(values), UNKNOWN, np.where(values == 0, NORMAL, EVENT)).astype(np.int8)


def _fresh(chunk: LogChunk, resume: dict[str, int]) -> NDArray[np.bool_]:
    """The rows of ``chunk`` that lie after what earlier files held of their asset."""
    fresh = np.ones(len(chunk), dtype=bool)
    for asset, end in resume.items():
        fresh &= (chunk.asset != asset) | (chunk.time > end)
    return fresh

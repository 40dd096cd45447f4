"""Stretches of a log, found chunk by chunk: runs of one value, clusters of noticed rows, correlation by blocks.

Each keeps a bounded state between chunks, and gives the same for any chunking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.data.contract import LogChunk

_KEPT = 256


class Runs(NamedTuple):
    """Runs of one value: first and last time ``(k,)`` in UTC microseconds, rows ``(k,)``, value ``(k,)``."""

    start_us: NDArray[np.int64]
    end_us: NDArray[np.int64]
    rows: NDArray[np.int64]
    value: NDArray[np.float32]

    def take(self, index: slice | NDArray[np.bool_]) -> Runs:
        """The runs at ``index``."""
        return Runs(self.start_us[index], self.end_us[index], self.rows[index], self.value[index])


_NONE = np.empty(0, np.int64)
_NO_RUNS = Runs(_NONE, _NONE, _NONE, np.empty(0, np.float32))


@dataclass
class RunFinder:
    """Runs of equal consecutive values of one series; the last run stays open until another value comes.

    >>> finder = RunFinder()
    >>> finder.update(np.float32([1, 1, 2]), np.array([10, 20, 30])).rows.tolist()
    [2]
    >>> finder.update(np.float32([2, 3]), np.array([40, 50])).start_us.tolist(), finder.close().rows.tolist()
    ([30], [1])
    """

    _open: Runs = _NO_RUNS

    def update(self, values: NDArray[np.float32], time: NDArray[np.int64]) -> Runs:
        """The runs that ended; ``values (n,)`` without NaN, ``time (n,)``."""
        if not len(values):
            return _NO_RUNS
        edges = np.flatnonzero(values[1:] != values[:-1]) + 1
        start, end = np.concatenate(([0], edges)), np.concatenate((edges, [len(values)]))
        runs = Runs(time[start].copy(), time[end - 1], end - start, values[start])
        if len(self._open.rows):
            runs = self._joined(runs)
        self._open = runs.take(slice(-1, None))
        return runs.take(slice(None, -1))

    @property
    def current(self) -> Runs:
        """The run still open, if any; it stays open."""
        return self._open

    def close(self) -> Runs:
        """End the run still open, if any."""
        last, self._open = self._open, _NO_RUNS
        return last

    def _joined(self, runs: Runs) -> Runs:
        if self._open.value[0] != runs.value[0]:
            return Runs(
                np.concatenate((self._open.start_us, runs.start_us)),
                np.concatenate((self._open.end_us, runs.end_us)),
                np.concatenate((self._open.rows, runs.rows)),
                np.concatenate((self._open.value, runs.value)),
            )
        runs.start_us[0] = self._open.start_us[0]
        runs.rows[0] += self._open.rows[0]
        return runs


@dataclass(frozen=True)
class Cluster:
    """Noticed rows that lie close together: first and last time, how many, over how many rows, the first values."""

    start_us: int
    end_us: int
    rows: int
    span: int
    values: NDArray[np.float32] = field(compare=False)


@dataclass
class ClusterFinder:
    """Joins noticed rows at most ``patience`` rows apart; a cluster ends when the next noticed row lies farther.

    >>> finder = ClusterFinder(patience=2)
    >>> at = np.array([0, 1, 3, 9])
    >>> [(c.rows, c.span) for c in finder.update(at, at * 10, np.float32([5, 5, 5, 5])) + finder.close()]
    [(3, 4), (1, 1)]
    """

    patience: int
    _open: Cluster | None = None
    _last: int = 0

    def update(self, at: NDArray[np.int64], time: NDArray[np.int64], values: NDArray[np.float32]) -> list[Cluster]:
        """The clusters that ended; noticed rows by position ``at (m,)``, ``time (m,)`` and ``values (m,)``."""
        ended: list[Cluster] = []
        if not len(at):
            return ended
        edges = np.flatnonzero(np.diff(at) > self.patience) + 1
        for piece in np.split(np.arange(len(at)), edges):
            first, last = int(at[piece[0]]), int(at[piece[-1]])
            if self._open is not None and first - self._last > self.patience:
                ended += self.close()
            self._extend(first, last, time[piece], values[piece])
        return ended

    def close(self) -> list[Cluster]:
        """The cluster still open, if any."""
        last, self._open = self._open, None
        return [] if last is None else [last]

    def _extend(self, first: int, last: int, time: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        start, rows, span, kept = int(time[0]), len(time), last - first + 1, values[:_KEPT].copy()
        if self._open is not None:
            start, rows = self._open.start_us, self._open.rows + rows
            span = self._open.span + last - self._last
            kept = np.concatenate((self._open.values, kept))[:_KEPT]
        self._open, self._last = Cluster(start, int(time[-1]), rows, span, kept), last


class Block(NamedTuple):
    """The correlation ``(C, C)`` of one block of rows, and the block's first and last time."""

    start_us: int
    end_us: int
    correlation: NDArray[np.float64]


@dataclass
class BlockCorrelation:
    """Correlation of the tags within blocks of ``rows`` rows: levels and slow changes between blocks do not enter."""

    rows: int = 256
    _values: list[NDArray[np.float32]] = field(default_factory=list)
    _time: list[NDArray[np.int64]] = field(default_factory=list)
    _held: int = 0

    def update(self, values: NDArray[np.float32], time: NDArray[np.int64]) -> list[Block]:
        """The blocks that became full; ``values (n, C)``, ``time (n,)``. Rows after the last full block are kept."""
        self._values.append(values)
        self._time.append(time)
        self._held += len(time)
        if self._held < self.rows:
            return []
        x, t = np.concatenate(self._values), np.concatenate(self._time)
        full = len(t) // self.rows * self.rows
        self._values, self._time, self._held = [x[full:].copy()], [t[full:].copy()], len(t) - full
        return [
            Block(int(t[i]), int(t[i + self.rows - 1]), correlation(x[i : i + self.rows]))
            for i in range(0, full, self.rows)
        ]


def correlation(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Pearson correlation ``(C, C)`` of ``values (n, C)``; a missing value counts as its column's mean.

    A column that does not move correlates 0 with every other.
    """
    present = ~np.isnan(values)
    x = np.where(present, values, 0).astype(np.float64)
    x = np.where(present, x - x.sum(axis=0) / np.maximum(present.sum(axis=0), 1), 0)
    size = np.sqrt((x * x).sum(axis=0))
    moves = size > 1e-6 * np.sqrt(len(x)) * np.abs(np.where(present, values, 0)).max(axis=0, initial=1e-12)
    unit = np.where(moves, x / np.where(moves, size, 1.0), 0)
    matrix = unit.T @ unit
    np.fill_diagonal(matrix, 1.0)
    return np.asarray(matrix)


def by_asset(chunk: LogChunk) -> Iterator[tuple[str, LogChunk]]:
    """The rows of each asset of ``chunk``, assets in order of appearance."""
    codes, names = pd.factorize(chunk.asset)
    if len(names) == 1:
        yield str(names[0]), chunk
        return
    for code, name in enumerate(names):
        yield str(name), chunk.take(codes == code)

"""What a window store hands out: blocks of rows, blocks of windows, and mixed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from anomaly.data.contract import EVENT, LEAD, UNKNOWN, Columns, LogChunk
from anomaly.data.windows import cut_windows

#: Held rows ``(n, C)``, their ages ``(n, C)`` and category codes ``(n, K)`` → prepared rows ``(n, F)`` float32, and
#: which of them may be learned from ``(n,)``. Rows are prepared before windows are cut: each once, not T times.
Preparation = Callable[
    [NDArray[np.float32], NDArray[np.uint8], NDArray[np.int32]], tuple[NDArray[np.float32], NDArray[np.bool_]]
]


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of one asset, from row ``start`` of its log on.

    ``time (n,)`` int64 UTC microseconds; ``values (n, C)`` float32 held values, NaN where the segment has not
    measured the tag yet; ``age (n, C)`` uint8 rows since the value was measured, 255 never or long ago; ``kind (n,)``
    int8 of data.contract; ``starts (n,)`` bool first rows of segments; ``since_start (n,)`` int64 rows since the
    first row of the segment; ``categories (n, K)`` int32 codes into ``vocabulary``.
    """

    asset: str
    start: int
    time: NDArray[np.int64]
    values: NDArray[np.float32]
    age: NDArray[np.uint8]
    kind: NDArray[np.int8]
    starts: NDArray[np.bool_]
    since_start: NDArray[np.int64]
    categories: NDArray[np.int32]
    vocabulary: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.time)

    def as_chunk(self) -> LogChunk:
        """The rows as they were logged: held values are missing again.

        ``row`` counts the asset's own rows. Lead rows have label UNKNOWN, so that what learns from normal rows keeps
        off them. Values of bad quality were stored as missing, so ``bad`` is false throughout.
        """
        n, asset = len(self), np.full(len(self.time), self.asset, dtype=object)
        values = np.where(self.age == 0, self.values, np.float32(np.nan))
        words = np.empty((n, len(self.vocabulary)), dtype=object)
        for k, known in enumerate(self.vocabulary):
            words[:, k] = np.array(known, dtype=object)[self.categories[:, k]]
        label = np.where(self.kind > EVENT, UNKNOWN, self.kind).astype(np.int8)
        row = np.arange(self.start, self.start + n, dtype=np.int64)
        return LogChunk(row, self.time, asset, values, words, label, np.zeros(values.shape, dtype=bool))


@dataclass(frozen=True)
class WindowBlock:
    """Complete windows of one asset, in time order.

    ``starts (B,)`` int64 first rows; ``kind (B,)`` int8 the worst kind in the window (EVENT, LEAD, UNKNOWN, NORMAL);
    ``values (B, T, C)`` float32 held values and ``age (B, T, C)`` uint8; where the rows were prepared, ``values
    (B, T, F)`` are the prepared rows and ``age (B, T, 0)`` is empty.
    """

    asset: str
    starts: NDArray[np.int64]
    kind: NDArray[np.int8]
    values: NDArray[np.float32]
    age: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, index: NDArray) -> WindowBlock:
        """The windows at ``index`` (mask or positions)."""
        return WindowBlock(self.asset, self.starts[index], self.kind[index], self.values[index], self.age[index])


@dataclass(frozen=True)
class WindowBatch(Columns):
    """Windows of any assets in mixed order: ``asset (B,)`` str objects, the rest as in WindowBlock."""

    asset: NDArray[np.object_]
    starts: NDArray[np.int64]
    values: NDArray[np.float32]
    age: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class WindowRun:
    """Neighbouring windows of one asset, not cut yet: a row that lies in T windows is held once.

    ``values (n, F)`` and ``age (n, ·)`` are rows from row ``first`` of its log on; ``starts (B,)`` the first rows of the
    windows, ``kind (B,)`` their kinds; ``lookback`` T.
    """

    asset: str
    lookback: int
    first: int
    starts: NDArray[np.int64]
    kind: NDArray[np.int8]
    values: NDArray[np.float32]
    age: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.starts)

    def windows(self) -> WindowBlock:
        """The windows, cut."""
        cut = (cut_windows(array, self.starts - self.first, self.lookback) for array in (self.values, self.age))
        return WindowBlock(self.asset, self.starts, self.kind, *cut)


@dataclass(frozen=True)
class RawBlock:
    """Consecutive windows of a store as they were logged: held, not prepared, not cut.

    ``first`` is the number of the first window in the store, ``place`` its number among those of its asset; ``starts
    (B,)`` int64 first rows in the asset's log (or window numbers, in a file of signals), ``kind (B,)`` int8; ``learn (B,)``
    bool windows that may be learned from: normal and in the train part. ``values (n, C)`` float32, ``age (n, C)`` uint8 or
    None where nothing was held (then NaN is missing), ``codes (n, K)`` int32 rows; ``at (B,)`` is where in them each window
    begins, ``lookback`` T how far it reaches. ``since (n,)`` counts rows since the segment's first row, None where every
    window is one; up to ``trail`` rows lie before the first window.
    """

    first: int
    place: int
    asset: str
    starts: NDArray[np.int64]
    kind: NDArray[np.int8]
    learn: NDArray[np.bool_]
    values: NDArray[np.float32]
    age: NDArray[np.uint8] | None
    codes: NDArray[np.int32]
    at: NDArray[np.int64]
    lookback: int
    since: NDArray[np.int64] | None = None
    trail: int = 0

    def __len__(self) -> int:
        return len(self.starts)

    def since_start(self) -> NDArray[np.int64]:
        """Rows since the first row of the segment, ``(n,)``; of the window, where windows do not follow each other."""
        if self.since is not None:
            return self.since
        number = np.arange(len(self.values))
        return number - self.at[np.maximum(np.searchsorted(self.at, number, side="right") - 1, 0)]

    def pieces(self, size: int) -> Iterator[RawBlock]:
        """The same windows, cut where their place in the asset is a multiple of ``size``: however blocks are cut, the
        pieces are the same."""
        low = 0
        while low < len(self):
            high = min(low + size - (self.place + low) % size, len(self))
            rows = slice(max(int(self.at[low]) - self.trail, 0), int(self.at[high - 1]) + self.lookback)
            yield RawBlock(
                self.first + low,
                self.place + low,
                self.asset,
                self.starts[low:high],
                self.kind[low:high],
                self.learn[low:high],
                self.values[rows],
                None if self.age is None else self.age[rows],
                self.codes[rows],
                self.at[low:high] - rows.start,
                self.lookback,
                None if self.since is None else self.since[rows],
                self.trail,
            )
            low = high

    def windows(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Windows ``(B, T, F)`` of ``rows (n, F)``, which stand for the block's own: a read-only view where the windows
        begin at equal distances, as they do inside a segment."""
        steps = np.diff(self.at)
        if len(steps) and (steps != steps[0]).any():
            return cut_windows(rows, self.at, self.lookback)
        rows = np.ascontiguousarray(rows)
        step, (down, across) = int(steps[0]) if len(steps) else 0, rows.strides
        shape = (len(self), self.lookback, rows.shape[1])
        if not rows.size:
            return np.empty(shape, rows.dtype)
        own = rows[int(self.at[0]) :]
        return as_strided(own, shape, (step * down, down, across), writeable=False)


def split_at_jumps(starts: NDArray[np.int64], furthest: int) -> list[slice]:
    """Runs of windows whose neighbours begin at most ``furthest`` rows apart: what lies between others is not read.

    >>> split_at_jumps(np.array([0, 1, 90, 91]), 10)
    [slice(0, 2, None), slice(2, 4, None)]
    """
    edges = [0, *(np.flatnonzero(np.diff(starts) > furthest) + 1).tolist(), len(starts)]
    return [slice(low, high) for low, high in pairwise(edges) if high > low]


def pooled(
    runs: Iterator[WindowRun], batch_size: int, pool_windows: int, rng: np.random.Generator
) -> Iterator[WindowBatch]:
    """Fill a pool of at most about ``pool_windows`` windows from ``runs``, shuffle it, hand it out in batches; repeat.

    What does not fill a batch is handed out with the next pool; only the last batch of all may be smaller.
    """
    pool: list[WindowRun] = []
    filled, left = 0, None
    for run in runs:
        pool.append(run)
        filled += len(run)
        if filled >= max(pool_windows, batch_size):
            for batch in _Pool(pool).batches(rng, batch_size, left):
                left = batch if len(batch) < batch_size else None
                if left is None:
                    yield batch
            pool, filled = [], 0
    last = _Pool(pool).batches(rng, batch_size, left) if pool else iter([left] if left else [])
    yield from last


class _Pool:
    """Runs laid end to end."""

    def __init__(self, runs: Sequence[WindowRun]) -> None:
        self.lookback = runs[0].lookback
        self.values, self.age = (np.concatenate([getattr(r, name) for r in runs]) for name in ("values", "age"))
        offsets = np.cumsum([0, *(len(r.values) for r in runs[:-1])])
        self.starts = np.concatenate([r.starts for r in runs])
        self.at = np.concatenate([r.starts - r.first + o for r, o in zip(runs, offsets, strict=True)])
        self.assets = np.array([r.asset for r in runs], dtype=object)
        self.owner = np.repeat(np.arange(len(runs)), [len(r) for r in runs])

    def batches(self, rng: np.random.Generator, size: int, left: WindowBatch | None) -> Iterator[WindowBatch]:
        """All windows in mixed order, after those that were ``left`` over from before; the last may be smaller."""
        order = rng.permutation(len(self.at))
        first = min(size - len(left), len(order)) if left else 0
        if left:
            yield WindowBatch.join([left, self.take(order[:first])])
        for low in range(first, len(order), size):
            yield self.take(order[low : low + size])

    def take(self, index: NDArray[np.int64]) -> WindowBatch:
        """Cut the windows at ``index`` of the pool."""
        at, own = self.at[index], self.assets[self.owner[index]]
        values, age = (cut_windows(array, at, self.lookback) for array in (self.values, self.age))
        return WindowBatch(own, self.starts[index], values, age)


def kind_table(kind: NDArray[np.int8]) -> dict[int, int]:
    """Rows per kind, all four always there.

    >>> kind_table(np.array([0, 0, 1], np.int8))
    {-1: 0, 0: 2, 1: 1, 2: 0}
    """
    counts = np.bincount(kind.astype(np.int64) + 1, minlength=LEAD + 2)
    return {code - 1: int(count) for code, count in enumerate(counts)}

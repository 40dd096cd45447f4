"""What a window store hands out: blocks of rows, blocks of windows, and mixed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.data.contract import EVENT, LEAD, UNKNOWN, Columns, LogChunk

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

    @staticmethod
    def of(block: WindowBlock) -> WindowBatch:
        """A block of one asset as a batch."""
        asset = np.full(len(block), block.asset, dtype=object)
        return WindowBatch(asset, block.starts, block.values, block.age)


def pooled(
    runs: Iterator[WindowBatch], batch_size: int, pool_windows: int, rng: np.random.Generator
) -> Iterator[WindowBatch]:
    """Fill a pool of at most about ``pool_windows`` windows from ``runs``, shuffle it, hand it out in batches; repeat.

    What does not fill a batch stays for the next pool; only the last batch of all may be smaller.
    """
    pool: list[WindowBatch] = []
    filled = 0
    for run in runs:
        pool.append(run)
        filled += len(run)
        if filled >= max(pool_windows, batch_size):
            joined, order = _drained(pool, rng)
            whole = len(order) - len(order) % batch_size
            yield from _batches(joined, order[:whole], batch_size)
            pool.append(joined.take(order[whole:]))
            filled = len(order) - whole
    if filled:
        yield from _batches(*_drained(pool, rng), batch_size)


def _drained(pool: list[WindowBatch], rng: np.random.Generator) -> tuple[WindowBatch, NDArray[np.int64]]:
    """Empty the pool into one batch and draw an order for it."""
    joined = WindowBatch.join(pool)
    pool.clear()
    return joined, rng.permutation(len(joined))


def _batches(joined: WindowBatch, order: NDArray[np.int64], size: int) -> Iterator[WindowBatch]:
    yield from (joined.take(order[i : i + size]) for i in range(0, len(order), size))


def kind_table(kind: NDArray[np.int8]) -> dict[int, int]:
    """Rows per kind, all four always there.

    >>> kind_table(np.array([0, 0, 1], np.int8))
    {-1: 0, 0: 2, 1: 1, 2: 0}
    """
    counts = np.bincount(kind.astype(np.int64) + 1, minlength=LEAD + 2)
    return {code - 1: int(count) for code, count in enumerate(counts)}

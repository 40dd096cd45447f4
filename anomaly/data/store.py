"""The HDF5 window store, read: series once, windows as an index, everything in blocks (METHODS S1).

``/series/<asset>/values (rows, C)`` float32 held values, ``age`` uint8, ``time`` int64 UTC microseconds, ``label``, ``kind``,
``categories``, ``segments``, ``event_rows``; ``/windows`` asset, start, label, split. Written by ``store_writer``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import h5py
import numpy as np
from numpy.typing import NDArray

from anomaly.config import WindowSettings
from anomaly.data.contract import NORMAL, LogChunk, LogContract
from anomaly.data.splits import PARTS, SplitPlan
from anomaly.data.store_integrity import check
from anomaly.data.store_writer import FORMAT, create_store
from anomaly.data.windows import cut_windows
from anomaly.errors import Fault, InputRefused
from anomaly.intervals import Intervals, contains

__all__ = ["RowBlock", "WindowBlock", "WindowStore", "create_store"]

_RUN = 1024  # windows read in one go when batches are mixed


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of one asset, from row ``start``: ``time (n,)``, held ``values (n, C)``, ``age (n, C)``,
    ``kind (n,)``, ``label (n,)``, ``starts (n,)`` where a segment begins, ``categories (n, K)`` words."""

    asset: str
    start: int
    time: NDArray[np.int64]
    values: NDArray[np.float32]
    age: NDArray[np.uint8]
    kind: NDArray[np.int8]
    label: NDArray[np.int8]
    starts: NDArray[np.bool_]
    categories: NDArray[np.object_]

    def as_chunk(self) -> LogChunk:
        """The rows as they were logged: a value that is only held is missing again."""
        n = len(self.time)
        values = np.where(self.age == 0, self.values, np.float32(np.nan))
        asset, rows = np.full(n, self.asset, dtype=object), np.arange(self.start, self.start + n)
        bad = np.zeros(values.shape, dtype=bool)
        return LogChunk(rows, self.time, asset, values, self.categories, self.label, bad)


@dataclass(frozen=True)
class WindowBlock:
    """Windows of one asset: first rows ``starts (B,)``, worst ``kind (B,)``, held ``values`` and ``age (B, T, C)``."""

    asset: str
    starts: NDArray[np.int64]
    kind: NDArray[np.int8]
    values: NDArray[np.float32]
    age: NDArray[np.uint8]


class WindowStore:
    """A window store opened for reading; use as a context manager."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        attributes = file.attrs
        self.contract = LogContract.from_dict(json.loads(attributes["contract"]))
        self.window = WindowSettings(**json.loads(attributes["window"]))
        self.split = SplitPlan.from_dict(json.loads(attributes["split"]))
        self.assets: list[str] = json.loads(attributes["assets"])
        self.lead_us = int(attributes["lead_us"])
        self.max_gap_us = round(self.window.max_gap * self.contract.period_us)
        self._words = [np.array(w, dtype=object) for w in json.loads(attributes["words"])]

    @classmethod
    def open(cls, path: Path, expect: LogContract | None = None, *, verify: bool = True) -> WindowStore:
        """Open a store; ``expect`` is the contract it must have, ``verify=False`` trusts bytes this process just wrote.

        Raises InputRefused: E3006 damaged, E3401 incomplete, E3402 another contract (the difference is shown), E3403
        links or external data, E3007 another kind of HDF5.
        """
        if verify:
            check(path)
        file = h5py.File(path, "r")
        try:
            if file.attrs.get("format") != FORMAT:
                raise InputRefused(
                    Fault("E3007", FORMAT, file.attrs.get("format", "another HDF5 file"), file=str(path))
                )
            if not file.attrs.get("complete", False):
                raise InputRefused(Fault("E3401", "a complete store", "one cut short", "ingest again", str(path)))
            store = cls(path, file)
            if expect is not None and (lines := expect.difference(store.contract)):
                raise InputRefused([Fault("E3402", "the model's contract", line, file=str(path)) for line in lines])
        except BaseException:
            file.close()
            raise
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def lookback(self) -> int:
        """Rows of one window."""
        return self.window.lookback

    @property
    def period_us(self) -> int:
        """Sampling period in microseconds."""
        return self.contract.period_us

    @property
    def n_windows(self) -> int:
        """Windows in the index, of every part and kind."""
        return int(self._file["windows/start"].shape[0])

    def _series(self, asset: str) -> h5py.Group:
        return self._file[f"series/{quote(asset, safe='')}"]

    def n_rows(self, asset: str) -> int:
        """Rows of ``asset``."""
        return int(self._series(asset)["time"].shape[0])

    def n_part_rows(self, part: str | None) -> int:
        """Rows of a part over all assets; of everything for None."""
        return sum(end - start for start, end in (self.part_rows(a, part) for a in self.assets))

    def part_rows(self, asset: str, part: str | None) -> tuple[int, int]:
        """Row interval of a part of ``asset``; all its rows for None."""
        return (0, self.n_rows(asset)) if part is None else self.split.rows(asset, part)

    def segments(self, asset: str) -> Intervals:
        """Row intervals between gaps."""
        return np.asarray(self._series(asset)["segments"][:])

    def event_rows(self, asset: str) -> Intervals:
        """Row intervals of the events."""
        return np.asarray(self._series(asset)["event_rows"][:])

    def events(self, asset: str, part: str | None = None) -> Intervals:
        """Events as time intervals [first row, last row + 1 µs), those that begin in ``part``."""
        rows, (first, end) = self.event_rows(asset), self.part_rows(asset, part)
        rows = rows[(rows[:, 0] >= first) & (rows[:, 0] < end)]
        time = self._series(asset)["time"]
        return np.array([(time[a], time[b - 1] + 1) for a, b in rows.tolist()], np.int64).reshape(-1, 2)

    def label_counts(self, part: str | None = None) -> dict[int, int]:
        """Rows by label (UNKNOWN, NORMAL, EVENT)."""
        counts: dict[int, int] = {}
        for block in self.row_blocks(part):
            for label, n in zip(*np.unique(block.label, return_counts=True), strict=True):
                counts[int(label)] = counts.get(int(label), 0) + int(n)
        return counts

    def rows(self, asset: str, start: int, stop: int) -> RowBlock:
        """Rows [start, stop) of ``asset``."""
        series, rows = self._series(asset), slice(start, stop)
        words = [known[series["categories"][rows, k]] for k, known in enumerate(self._words)]
        at = np.arange(start, stop)
        starts = np.isin(at, series["segments"][:, 0])
        return RowBlock(
            asset, start, series["time"][rows], series["values"][rows], series["age"][rows], series["kind"][rows],
            series["label"][rows], starts,
            np.stack(words, axis=1) if words else np.empty((len(at), 0), dtype=object),
        )  # fmt: skip

    def row_blocks(self, part: str | None = None, size: int = 65_536) -> Iterator[RowBlock]:
        """The rows of a part, asset by asset in time order, in blocks of at most ``size``."""
        for asset in self.assets:
            first, end = self.part_rows(asset, part)
            for start in range(first, end, size):
                yield self.rows(asset, start, min(start + size, end))

    def _index_runs(
        self, part: str | None, normal_only: bool, size: int
    ) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int8]]]:
        """Asset, window starts and kinds in index order, cut every ``size`` windows and at assets."""
        index, wanted = self._file["windows"], None if part is None else PARTS.index(part)
        for at in range(0, self.n_windows, size):
            piece = slice(at, min(at + size, self.n_windows))
            asset, start, kind = index["asset"][piece], index["start"][piece], index["label"][piece]
            use = np.ones(len(start), dtype=bool) if wanted is None else index["split"][piece] == wanted
            use &= (kind == NORMAL) | (not normal_only)
            for number in np.unique(asset[use]):
                mine = use & (asset == number)
                yield self.assets[number], start[mine], kind[mine]

    def _cut(self, asset: str, starts: NDArray[np.int64], kind: NDArray[np.int8]) -> WindowBlock:
        first, end = int(starts[0]), int(starts[-1]) + self.lookback
        series = self._series(asset)
        values = cut_windows(series["values"][first:end], starts - first, self.lookback)
        return WindowBlock(
            asset, starts, kind, values, cut_windows(series["age"][first:end], starts - first, self.lookback)
        )

    def window_blocks(
        self, part: str | None = None, size: int = 4096, *, normal_only: bool = False
    ) -> Iterator[WindowBlock]:
        """Whole windows of a part in time order, in blocks of at most ``size``; ``normal_only`` leaves out every window
        with a row that is not labelled normal."""
        for asset, starts, kind in self._index_runs(part, normal_only, size):
            yield self._cut(asset, starts, kind)

    def blocks(
        self, size: int = 4096, part: str | None = None, *, normal_only: bool = False
    ) -> Iterator[NDArray[np.float32]]:
        """Just the held values ``(B, T, C)`` of ``window_blocks``."""
        for block in self.window_blocks(part, size, normal_only=normal_only):
            yield block.values

    def shuffled_batches(
        self,
        batch_size: int,
        part: str = "train",
        *,
        seed: int = 0,
        epoch: int = 0,
        pool_bytes: int = 64 << 20,
        keep: Callable[[WindowBlock], NDArray[np.bool_]] | None = None,
    ) -> Iterator[NDArray[np.float32]]:
        """One epoch of the part's normal windows, mixed: batches ``(B, T, C)`` of held values, the last one smaller.

        Runs of neighbouring windows are read in random order into a pool of at most ``pool_bytes`` and drawn from it, so
        that memory stays flat and every window that ``keep`` lets through comes exactly once.
        """
        rng = np.random.default_rng((seed, epoch))
        runs = list(self._index_runs(part, True, _RUN))
        pool: list[NDArray[np.float32]] = []
        held = 0
        for number in rng.permutation(len(runs)):
            block = self._cut(*runs[number])
            kept = block.values if keep is None else block.values[keep(block)]
            pool.append(kept)
            held += kept.nbytes
            if held >= pool_bytes:
                mixed = np.concatenate(pool)
                order = rng.permutation(len(mixed))
                whole = len(mixed) // batch_size * batch_size
                for at in range(0, whole, batch_size):
                    yield mixed[order[at : at + batch_size]]
                pool = [mixed[order[whole:]]]
                held = pool[0].nbytes
        if held:
            mixed = np.concatenate(pool)
            order = rng.permutation(len(mixed))
            for at in range(0, len(mixed), batch_size):
                yield mixed[order[at : at + batch_size]]

    def rows_inside(self, asset: str, part: str, rows: Intervals) -> bool:
        """Whether every row of ``rows`` lies in the part."""
        first, end = self.part_rows(asset, part)
        return not len(rows) or bool(contains([[first, end]], np.concatenate((rows[:, 0], rows[:, 1] - 1))).all())

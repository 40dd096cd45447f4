"""The HDF5 window store: series once, windows as an index, read in blocks (DESIGN §7, METHODS S1).

Layout: ``/series/<asset>/`` time (n,), values (n, C) held, age (n, C), kind (n,), categories (n, K), segments (S, 2)
rows, events (E, 2) times; ``/windows/`` asset, start, kind, split (N,) and bounds; contract, window, split, assets and
vocabulary as JSON bytes; attributes lookback, stride, lead_us, period_us, max_gap_us, fingerprint, library, complete.
Every dataset carries checksums and the file a digest. ``SignalsStore`` is the plain ``signals (N, T, C)`` form.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from anomaly.config import WindowSettings
from anomaly.data.contract import LEAD, NORMAL, LogContract
from anomaly.data.departures import departures
from anomaly.data.splits import SplitPlan
from anomaly.data.store_blocks import (
    Preparation,
    RawBlock,
    RowBlock,
    WindowBatch,
    WindowBlock,
    WindowRun,
    kind_table,
    pooled,
    split_at_jumps,
)
from anomaly.data.store_files import damaged, get_json, open_file, recorded_digest
from anomaly.data.store_signals import SignalsStore, SignalsWriter, create_signals, write_signals
from anomaly.data.store_writer import FORMAT, FORMAT_VERSION, StoreWriter, create_store
from anomaly.errors import Fault, InputRefused
from anomaly.intervals import Intervals

__all__ = [
    "Preparation",
    "RawBlock",
    "RowBlock",
    "SignalsStore",
    "SignalsWriter",
    "StoreWriter",
    "WindowBatch",
    "WindowBlock",
    "WindowStore",
    "create_signals",
    "create_store",
    "write_signals",
]

#: Neighbouring windows that a shuffled epoch reads in one piece, at most; and in how many pieces a pool is filled at
#: least, so that the neighbours of a batch come from many places.
_RUN, _PIECES = 1024, 32
#: Windows further apart than so many of their lengths are read apart: what lies between them is not wanted.
_FAR = 64
#: Windows mixed with one another at most; more would only make the first batch of a pool late.
_POOL = 1 << 17


class WindowStore:
    """A finished window store, read lazily: opening it reads no series. Use ``WindowStore.open`` in a ``with``.

    ``path``; ``contract``; ``window``, the settings it was cut with; ``split``, which rows are in which part; ``assets``,
    sorted names; ``vocabulary``, the words of each category by code; ``lead_us``, ``period_us``, ``max_gap_us`` in microseconds.
    """

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.path = path
        self._file = file
        self.contract = LogContract.from_dict(get_json(file, "contract"))
        self.window = WindowSettings(**get_json(file, "window"))
        self.split = SplitPlan.from_dict(get_json(file, "split"))
        self._groups: dict[str, str] = get_json(file, "assets")
        self.assets = tuple(sorted(self._groups))
        self.vocabulary = tuple(tuple(words) for words in get_json(file, "vocabulary"))
        self._bounds = [int(b) for b in file["windows/bounds"][:]]
        self.lead_us, self.period_us, self.max_gap_us = (
            int(file.attrs[name]) for name in ("lead_us", "period_us", "max_gap_us")
        )
        self._segments: dict[str, Intervals] = {}
        self._datasets: dict[str, h5py.Dataset] = {}

    @classmethod
    def open(cls, path: Path, expect: LogContract | None = None, verify: bool = True) -> WindowStore:
        """Open a store for reading; ``verify=False`` skips its digest, for a file this process has just written.

        Raises InputRefused: E3001, E3002, E3006, E3007, E3403 as in ``store_files.open_file``; E3401 for a store
        that was not finished; E3402 where its contract differs from ``expect``.
        """
        path = Path(path)
        file = open_file(path, verify)
        try:
            _check_complete(file, path)
            store = cls(file, path)
            store._check_contract(expect)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            file.close()
            raise damaged(path, error) from error
        except InputRefused:
            file.close()
            raise
        return store

    def _check_contract(self, expect: LogContract | None) -> None:
        if expect is not None and (different := expect.difference(self.contract)):
            hint = "build the store again from its log, or use the model it was made for"
            raise InputRefused([Fault("E3402", "the same contract", line, hint, str(self.path)) for line in different])

    @property
    def digest(self) -> str:
        """Digest of the whole file, as its writer recorded it: equal for the same log and settings."""
        return recorded_digest(self.path)

    def close(self) -> None:
        """Release the file; what was handed out stays valid."""
        self._file.close()

    def __enter__(self) -> WindowStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def with_training_share(self, share: float) -> WindowStore:
        """A view of the same open file whose train part is the newest ``share`` of this one's; the rest is as it is."""
        view = copy(self)
        view.split = self.split.with_training_share(share)
        return view

    @property
    def lookback(self) -> int:
        """Rows of one window."""
        return self.window.lookback

    @property
    def stride(self) -> int:
        """Rows from one window's start to the next."""
        return self.window.stride

    @property
    def n_windows(self) -> int:
        """Complete windows of all assets, in any part or none."""
        return self._bounds[-1]

    def n_rows(self, asset: str) -> int:
        """Rows of ``asset``."""
        return len(self._group(asset)["time"])

    def n_part_rows(self, part: str | None) -> int:
        """Rows of ``part`` over all assets; of the whole store for None."""
        return sum(stop - start for start, stop in (self._rows_of(asset, part) for asset in self.assets))

    def part_rows(self, asset: str, part: str) -> tuple[int, int]:
        """Row interval [start, stop) of ``part`` in the log of ``asset``."""
        return self.split.part_rows(asset, part)

    def segments(self, asset: str) -> Intervals:
        """Segments of ``asset`` as row intervals ``(S, 2)``."""
        if asset not in self._segments:
            self._segments = {asset: self._read(self._group(asset)["segments"])}
        return self._segments[asset]

    def events(self, asset: str) -> Intervals:
        """Events of ``asset`` as time intervals ``(E, 2)`` in microseconds."""
        return self._read(self._group(asset)["events"])

    def kind_counts(self, part: str | None = None) -> dict[int, int]:
        """Rows of each kind in ``part``, or in the whole store."""
        total: Counter[int] = Counter()
        for asset in self.assets:
            start, stop = self._rows_of(asset, part)
            kind = self._group(asset)["kind"]
            for low in range(start, stop, 1 << 20):
                total.update(kind_table(self._read(kind, low, min(low + (1 << 20), stop))))
        return {code: total[code] for code in kind_table(np.empty(0, np.int8))}

    def label_counts(self) -> dict[int, int]:
        """Rows of each label: as ``kind_counts``, with lead rows counted as the normal rows they were labelled."""
        counts = self.kind_counts()
        counts[NORMAL] += counts.pop(LEAD)
        return counts

    def rows(self, asset: str, start: int, stop: int) -> RowBlock:
        """Rows [start, stop) of ``asset``; raises ValueError outside its log."""
        group, n = self._group(asset), self.n_rows(asset)
        if not 0 <= start <= stop <= n:
            raise ValueError(f"start, stop: expected rows inside 0 … {n} of {asset!r}, got {start} … {stop}")
        since = self._since_start(asset, start, stop)
        time, values, age, kind = (self._read(group[name], start, stop) for name in ("time", "values", "age", "kind"))
        none = np.empty((stop - start, 0), np.int32)
        words = self._read(group["categories"], start, stop) if self.vocabulary else none
        return RowBlock(asset, start, time, values, age, kind, since == 0, since, words, self.vocabulary)

    def _since_start(self, asset: str, start: int, stop: int) -> NDArray[np.int64]:
        """Rows since the first row of their segment, of rows [start, stop)."""
        number, first = np.arange(start, stop), self.segments(asset)[:, 0]
        return number - first[np.searchsorted(first, number, side="right") - 1] if len(first) else number

    def row_blocks(self, part: str | None = None, size: int = 65536) -> Iterator[RowBlock]:
        """Rows in asset and time order, at most ``size`` at a time; of one part, or all."""
        for asset in self.assets:
            start, stop = self._rows_of(asset, part)
            for low in range(start, stop, size):
                yield self.rows(asset, low, min(low + size, stop))

    def window_blocks(
        self,
        part: str | None = None,
        size: int = 4096,
        normal_only: bool = False,
        prepare: Preparation | None = None,
        trail: int = 0,
    ) -> Iterator[WindowBlock]:
        """Windows in asset and time order, at most ``size`` at a time; those wholly inside ``part``, or all.

        With ``prepare`` the rows are prepared first, and windows with a row that may not be learned from are left out;
        with ``trail`` the tags' departures from so many rows before stand beside what was prepared.
        """
        for number, asset in enumerate(self.assets):
            low, high = self._window_range(number, part)
            for first in range(low, high, size):
                for run in self._window_runs(asset, first, min(first + size, high), normal_only, prepare, trail):
                    yield run.windows()

    def blocks(
        self, size: int = 4096, part: str | None = None, normal_only: bool = False
    ) -> Iterator[NDArray[np.float32]]:
        """The values of ``window_blocks``: held windows ``(B, T, C)`` float32."""
        for block in self.window_blocks(part, size, normal_only):
            yield block.values

    def raw_blocks(self, size: int = 8192, start: int = 0, trail: int = 0) -> Iterator[RawBlock]:
        """All windows in asset and time order from number ``start`` on, at most ``size`` at a time, not cut yet.

        Blocks begin at multiples of ``size`` among the windows of their asset, and where the windows after a gap do;
        ``trail`` rows before the first window come with them where the log has them.
        """
        for number, asset in enumerate(self.assets):
            low, high = self._bounds[number], self._bounds[number + 1]
            train = self._window_range(number, "train")
            for first in range(low, high, size):
                last = min(first + size, high)
                if last > start:
                    yield from self._raw(asset, (low, max(first, start), last), train, trail)

    def window_spans(self, part: str | None = None) -> list[tuple[int, int, str]]:
        """Numbers [low, high) of the windows of each asset, or of those wholly inside ``part``, and its name."""
        return [(*self._window_range(number, part), asset) for number, asset in enumerate(self.assets)]

    def learnable(self, low: int, high: int) -> NDArray[np.bool_]:
        """Which of the windows [low, high), all of one asset, are normal and in the train part."""
        number = int(np.searchsorted(self._bounds, low, side="right")) - 1
        first, stop = self._window_range(number, "train")
        at = np.arange(low, high)
        return np.asarray(
            (self._read(self._dataset("windows/kind"), low, high) == NORMAL) & (at >= first) & (at < stop)
        )

    def end_times(self, asset: str, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """UTC microseconds of the last rows of windows that begin at ``starts``, ascending."""
        end = starts + self.lookback - 1
        time = self._dataset(f"{self._groups[asset]}/time")
        times: NDArray[np.int64] = self._read(time, int(end[0]), int(end[-1]) + 1)[end - end[0]]
        return times

    def _raw(self, asset: str, span: tuple[int, int, int], train: tuple[int, int], trail: int) -> Iterator[RawBlock]:
        """Windows [first, last) of the index, ``span`` being (the asset's first, first, last)."""
        low, first, last = span
        starts, kind = (self._read(self._dataset(f"windows/{name}"), first, last) for name in ("start", "kind"))
        number = np.arange(first, last)
        learn = (kind == NORMAL) & (number >= train[0]) & (number < train[1])
        group = self._groups[asset]
        for run in split_at_jumps(starts, _FAR * max(self.stride, self.lookback)):
            begin, end = max(int(starts[run.start]) - trail, 0), int(starts[run.stop - 1]) + self.lookback
            values, age = (self._read(self._dataset(f"{group}/{name}"), begin, end) for name in ("values", "age"))
            codes = np.empty((len(values), 0), np.int32)
            if self.vocabulary:
                codes = self._read(self._dataset(f"{group}/categories"), begin, end)
            own = starts[run]
            at, place = own - begin, first + run.start - low
            since = self._since_start(asset, begin, end)
            known = (own, kind[run], learn[run], values, age, codes, at, self.lookback, since, trail)
            yield RawBlock(first + run.start, place, asset, *known)

    def shuffled_batches(
        self,
        batch_size: int,
        part: str = "train",
        seed: int = 0,
        epoch: int = 0,
        pool_bytes: int = 16 << 20,
        prepare: Preparation | None = None,
        infinite: bool = False,
        trail: int = 0,
    ) -> Iterator[WindowBatch]:
        """Normal windows of ``part`` in mixed order, each once per epoch; ``prepare`` and ``trail`` as in ``window_blocks``.

        Runs of at most 1024 neighbouring windows are drawn in random order and mixed in a pool of rows of about ``pool_bytes``.
        The order depends on ``seed`` and ``epoch`` only. ``infinite`` goes on with the next epochs for ever, or ends
        when an epoch had no window.
        """
        pool = max(min(pool_bytes // (self.stride * len(self.contract.tags) * 10 + 64), _POOL), 1)
        run = min(max(pool // _PIECES, 1), _RUN)
        while True:
            rng = np.random.default_rng((seed, epoch))
            served = 0
            runs = self._random_runs(part, run, rng, prepare, trail)
            for batch in pooled(runs, batch_size, pool, rng):
                served += len(batch)
                yield batch
            if not infinite or not served:
                return
            epoch += 1

    def export_signals(self, path: Path, part: str | None = None) -> None:
        """Write the windows in the plain form: signals (N, T, C), labels (N,) kinds, metadata asset, start and time.

        ``time`` is that of a window's last row, in UTC microseconds; missing values are held as in ``blocks``.
        """
        tags = list(self.contract.tags)
        facts = {"tags": tags, "lookback": self.lookback, "stride": self.stride, "period_us": self.period_us}
        width = max((len(asset.encode()) for asset in self.assets), default=1)
        with create_signals(path, facts) as writer:
            for block in self.window_blocks(part):
                end = block.starts + self.lookback - 1
                time = self._group(block.asset)["time"]
                when = self._read(time, int(end[0]), int(end[-1]) + 1)[end - end[0]]
                asset = np.full(len(block), block.asset.encode(), dtype=f"S{width}")
                writer.append(block.values, block.kind, {"asset": asset, "start": block.starts, "time": when})

    def _random_runs(
        self, part: str, run: int, rng: np.random.Generator, prepare: Preparation | None, trail: int
    ) -> Iterator[WindowRun]:
        runs = [
            np.column_stack((np.full(len(firsts), number), firsts, np.minimum(firsts + run, high)))
            for number in range(len(self.assets))
            for low, high in [self._window_range(number, part)]
            for firsts in [np.arange(low, high, run)]
        ]
        table = np.concatenate(runs) if runs else np.empty((0, 3), np.int64)
        for number, low, high in table[rng.permutation(len(table))].tolist():
            yield from self._window_runs(self.assets[number], low, high, True, prepare, trail)

    def _window_runs(
        self, asset: str, low: int, high: int, normal_only: bool, prepare: Preparation | None, trail: int
    ) -> Iterator[WindowRun]:
        """Windows ``low`` … ``high`` of the index, in more than one run where rows without windows lie between."""
        starts, kind = (self._read(self._dataset(f"windows/{name}"), low, high) for name in ("start", "kind"))
        if normal_only:
            starts, kind = starts[kind == NORMAL], kind[kind == NORMAL]
        furthest = max(self.stride, self.lookback) * (high - low)
        while len(starts):
            near = int(np.searchsorted(starts, starts[0] + furthest))
            run = self._run(asset, starts[:near], kind[:near], normal_only, prepare, trail)
            if len(run):
                yield run
            starts, kind = starts[near:], kind[near:]

    def _run(
        self,
        asset: str,
        starts: NDArray[np.int64],
        kind: NDArray[np.int8],
        normal_only: bool,
        prepare: Preparation | None,
        trail: int,
    ) -> WindowRun:
        """The windows at ``starts`` of one asset with the rows they lie in, which are read in one piece."""
        group, first, stop = self._groups[asset], max(int(starts[0]) - trail, 0), int(starts[-1]) + self.lookback
        values, age = (self._read(self._dataset(f"{group}/{name}"), first, stop) for name in ("values", "age"))
        if prepare is not None:
            none = np.empty((len(values), 0), np.int32)
            codes = self._read(self._dataset(f"{group}/categories"), first, stop) if self.vocabulary else none
            values, usable = prepare(values, age, codes)
            if trail:
                levels, since = values[:, : len(self.contract.tags)], self._since_start(asset, first, stop)
                # A fit takes normal windows only: then no labelled row may move the mean they depart from (METHODS S56).
                quiet = self._read(self._dataset(f"{group}/kind"), first, stop) == NORMAL if normal_only else None
                values = np.column_stack((values, departures(levels, since, trail, counted=quiet)))
            bad = np.concatenate(([0], np.cumsum(~usable)))
            whole = bad[starts - first + self.lookback] == bad[starts - first]
            starts, kind, age = starts[whole], kind[whole], age[:, :0]
        return WindowRun(asset, self.lookback, first, starts, kind, values, age)

    def _window_range(self, number: int, part: str | None) -> tuple[int, int]:
        """Positions in the window index of asset ``number``: its windows, or those wholly inside ``part``."""
        low, high = self._bounds[number], self._bounds[number + 1]
        if part is None:
            return low, high
        first, stop = self.split.part_rows(self.assets[number], part)
        starts = self._file["windows/start"]
        begin = bisect_left(starts, first, low, high)
        return begin, max(begin, bisect_left(starts, stop - self.lookback + 1, low, high))

    def _rows_of(self, asset: str, part: str | None) -> tuple[int, int]:
        return (0, self.n_rows(asset)) if part is None else self.split.part_rows(asset, part)

    def _group(self, asset: str) -> h5py.Group:
        if asset not in self._groups:
            raise ValueError(f"asset: expected one of {', '.join(self.assets)}, got {asset!r}")
        return self._file[self._groups[asset]]

    def _dataset(self, name: str) -> h5py.Dataset:
        """A dataset by its path in the file, looked up once: h5py takes longer to find it than to read a run."""
        if name not in self._datasets:
            self._datasets[name] = self._file[name]
        return self._datasets[name]

    def _read(self, dataset: h5py.Dataset, start: int = 0, stop: int | None = None) -> Any:
        """Rows [start, stop) of a dataset; a failed checksum is a refusal, not a traceback."""
        try:
            return dataset[start:stop]
        except (OSError, RuntimeError) as error:
            raise damaged(self.path, error) from error


def _check_complete(file: h5py.File, path: Path) -> None:
    """Refuse what is not a window store (E3007) and one whose writing did not end (E3401)."""
    name = str(path)
    if file.attrs.get("format") != FORMAT and "series" not in file:
        raise InputRefused(
            Fault("E3007", "a window store", "another HDF5 file", "make one with `anomaly ingest`", name)
        )
    if not file.attrs.get("complete", False):
        hint = "make it again with `anomaly ingest`"
        raise InputRefused(Fault("E3401", "a store that was finished", "no mark of completion", hint, name))
    if (found := int(file.attrs["format_version"])) != FORMAT_VERSION:
        raise InputRefused(Fault("E3007", f"format version {FORMAT_VERSION}", found, "make it again", name))

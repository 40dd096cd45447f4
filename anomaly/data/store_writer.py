"""Writing a window store: rows go in as they come, then kinds, split and window index are made block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.config import SplitSettings, WindowSettings, parse_duration
from anomaly.data.contract import EVENT, LEAD, NORMAL, UNKNOWN, LogChunk, LogContract
from anomaly.data.labels import cut_runs, event_rows, lead_intervals, mark_leads, segments
from anomaly.data.scaling import LONG_AGO, HoldState, hold_last
from anomaly.data.splits import PARTS, SplitPlan, plan_split
from anomaly.data.store_files import chunk_rows, extend, growing, new_file, put_json
from anomaly.data.store_layout import filters
from anomaly.data.windows import window_counts, window_starts
from anomaly.errors import Fault, InputRefused
from anomaly.faults import killpoint
from anomaly.intervals import Intervals, as_intervals, from_flags

FORMAT, FORMAT_VERSION = "anomaly window store", 1

_BLOCK_ROWS = 65536
#: Blocks of times that are held while the split is planned: 1 MiB.
_HELD_BLOCKS, _HELD_ROWS = 16, 8192
#: Kinds from the least to the most telling: a window has the kind of its worst row.
_WORST_LAST = (UNKNOWN, LEAD, EVENT)


@contextmanager
def create_store(
    path: Path, contract: LogContract, window: WindowSettings, split: SplitSettings, compress: str = "none"
) -> Iterator[StoreWriter]:
    """Give a writer for the rows of a log; on a clean exit the finished store takes the place of ``path``.

    On an exception, or a kill, ``path`` is as it was. Memory does not grow with the log, only with its number of
    segments and events. Raises InputRefused: E3301 when no window is complete, E3205 when times go backwards, E3110
    for an infinite value; Unavailable E5002 for a full disk; UsageError E2001 where ``compress`` is none of
    none, gzip and zstd, or not installed.
    """
    options = filters(compress)
    with new_file(path) as file:
        writer = StoreWriter(file, Path(path), contract, window, split, options)
        yield writer
        writer._finish()


@dataclass
class _AssetRows:
    """What the next rows of one asset need to know of those before them; event and segment bounds are row numbers."""

    group: h5py.Group
    n: int = 0
    last_time: int | None = None
    hold: HoldState | None = None
    segment_starts: list[NDArray[np.int64]] = field(default_factory=list)
    events: list[list[int]] = field(default_factory=list)
    normal: list[list[int]] = field(default_factory=list)

    def segments(self) -> Intervals:
        first = np.concatenate(self.segment_starts) if self.segment_starts else np.empty(0, np.int64)
        return as_intervals(np.column_stack((first, np.append(first[1:], self.n)[: len(first)])))


class StoreWriter:
    """Appends checked chunks of a log to a store that is being made; comes from ``create_store``."""

    def __init__(
        self,
        file: h5py.File,
        path: Path,
        contract: LogContract,
        window: WindowSettings,
        split: SplitSettings,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._options = options or {}
        self._file, self._path, self._contract = file, path, contract
        self._window, self._split = window, split
        self._max_gap_us = round(window.max_gap * contract.period_us)
        self._lead_us = parse_duration(window.lead)
        self._assets: dict[str, _AssetRows] = {}
        self._codes: list[dict[str, int]] = [{"": 0} for _ in contract.categories]
        file.create_group("series")

    def append(self, chunk: LogChunk) -> None:
        """Add rows in time order per asset; a row that repeats the time of the one before it is left out."""
        for asset in pd.unique(chunk.asset):
            own = chunk.take(np.flatnonzero(chunk.asset == asset))
            rows = self._assets.get(str(asset)) or self._begin(str(asset))
            self._append_rows(rows, self._fresh(rows, own))
        killpoint("store.after_append")

    def _begin(self, asset: str) -> _AssetRows:
        # "." and ".." mean something to HDF5, "/" is quoted already.
        name = quote(asset, safe=" ").replace(".", "%2E")
        group = self._file["series"].create_group(name)
        tags, kinds = len(self._contract.tags), len(self._contract.categories)
        rows = chunk_rows(4 * tags)
        growing(group, "time", np.int64, rows=rows, **self._options)
        growing(group, "values", np.float32, (tags,), rows=rows, **self._options)
        growing(group, "age", np.uint8, (tags,), rows=rows, fillvalue=LONG_AGO, **self._options)
        # Kinds are written twice: compressed chunks that change their size would leave holes.
        growing(group, "kind", np.int8, rows=rows, fillvalue=UNKNOWN)
        if kinds:
            growing(group, "categories", np.int32, (kinds,), rows=rows, **self._options)
        return self._assets.setdefault(asset, _AssetRows(group))

    def _fresh(self, rows: _AssetRows, chunk: LogChunk) -> LogChunk:
        """The rows with a new time; refuses times that go backwards and infinite values."""
        first = chunk.time[0] - 1 if rows.last_time is None else rows.last_time
        step = np.diff(chunk.time, prepend=first)
        if (step < 0).any():
            at = int(np.argmax(step < 0))
            raise InputRefused(
                Fault(
                    "E3205", "times in order", int(chunk.time[at]), "sort the log by time", row=int(chunk.row[at]) + 1
                )
            )
        infinite = np.isinf(chunk.values)
        if infinite.any():
            at, tag = (int(i) for i in np.argwhere(infinite)[0])
            column, row = self._contract.tags[tag], int(chunk.row[at]) + 1
            raise InputRefused(Fault("E3110", "a finite number", chunk.values[at, tag], column=column, row=row))
        return chunk if (step > 0).all() else chunk.take(step > 0)

    def _append_rows(self, rows: _AssetRows, chunk: LogChunk) -> None:
        if not len(chunk):
            return
        starts = segments(chunk.time, self._max_gap_us, previous=rows.last_time)
        held, age, rows.hold = _held(chunk.values, starts, rows.hold)
        extend(rows.group["time"], chunk.time)
        extend(rows.group["values"], held)
        extend(rows.group["age"], age)
        extend(rows.group["kind"], chunk.label)
        if self._codes:
            extend(rows.group["categories"], self._encode(chunk.categories))
        rows.segment_starts.append(np.flatnonzero(starts) + rows.n)
        _join_runs(rows.events, event_rows(chunk.label, starts) + rows.n, bool(starts[0]))
        rows.n, rows.last_time = rows.n + len(chunk), int(chunk.time[-1])

    def _encode(self, categories: NDArray[np.object_]) -> NDArray[np.int32]:
        """Categories ``(n, K)`` as codes into vocabularies that grow as values are met."""
        coded = np.empty(categories.shape, dtype=np.int32)
        for k, known in enumerate(self._codes):
            codes, values = pd.factorize(categories[:, k])
            table = np.array([known.setdefault(str(v), len(known)) for v in values], dtype=np.int32)
            coded[:, k] = table[codes]
        return coded

    def _finish(self) -> None:
        self._refuse_without_window()
        put_json(self._file, "contract", self._contract.to_dict())
        put_json(self._file, "vocabulary", [list(known) for known in self._codes])
        put_json(self._file, "window", asdict(self._window))
        put_json(self._file, "assets", {asset: self._assets[asset].group.name for asset in sorted(self._assets)})
        for asset in sorted(self._assets):
            self._mark_kinds(self._assets[asset])
        plan = self._plan()
        put_json(self._file, "split", plan.to_dict())
        self._write_index(plan)
        self._file.attrs.update(self._attributes())
        self._file.flush()
        # Last of all: without it a reader refuses the file.
        self._file.attrs["complete"] = True

    def _refuse_without_window(self) -> None:
        lookback = self._window.lookback
        longest = [
            int((rows.segments()[:, 1] - rows.segments()[:, 0]).max()) for rows in self._assets.values() if rows.n
        ]
        if max(longest, default=0) < lookback:
            total = sum(rows.n for rows in self._assets.values())
            found = f"{total} rows, at most {max(longest, default=0)} of them without a gap"
            hint = f"give a longer log or a --lookback below {lookback}; a gap is a step over {self._window.max_gap:g} periods"
            raise InputRefused(Fault("E3301", f"at least {lookback} rows in a row (lookback {lookback})", found, hint))

    def _mark_kinds(self, rows: _AssetRows) -> None:
        """Turn labels into kinds: the lead before each event, in time and inside its segment."""
        time, kind, own = rows.group["time"], rows.group["kind"], rows.segments()
        extend(growing(rows.group, "segments", np.int64, (2,)), own)
        events = as_intervals(rows.events)
        extend(growing(rows.group, "events", np.int64, (2,)), _times(time, events))
        at = np.searchsorted(own[:, 0], events[:, 0], side="right") - 1
        leads = lead_intervals(_pick(time, events[:, 0]), _pick(time, own[at, 0]), self._lead_us)
        for start in range(0, rows.n, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, rows.n)
            marked = mark_leads(time[start:stop], kind[start:stop], leads)
            if len(events):
                kind[start:stop] = marked
            breaks = np.zeros(stop - start, dtype=bool)
            breaks[own[slice(*np.searchsorted(own[:, 0], (start, stop))), 0] - start] = True
            runs = cut_runs(from_flags(marked == NORMAL), np.flatnonzero(breaks)) + start
            _join_runs(rows.normal, runs, bool(breaks[0]))

    def _plan(self) -> SplitPlan:
        purge_us = self._window.lookback * self._contract.period_us + self._lead_us
        parts = {}
        for asset, rows in sorted(self._assets.items()):
            parts[asset] = plan_split(
                _LookedUp(rows.group["time"]),
                shares=self._split,
                purge_us=purge_us,
                events=self._whole_events(rows),
                normal=as_intervals(rows.normal),
                lookback=self._window.lookback,
            )
        lengths = {asset: rows.n for asset, rows in sorted(self._assets.items())}
        return SplitPlan(parts, lengths, purge_us, (self._split.train, self._split.validation, self._split.test))

    def _whole_events(self, rows: _AssetRows) -> Intervals:
        """Events with their lead as row intervals: what no cut may break."""
        events, own, time = as_intervals(rows.events), rows.segments(), rows.group["time"]
        if not len(events):
            return events
        segment = own[np.searchsorted(own[:, 0], events[:, 0], side="right") - 1, 0]
        # The lead holds at most the rows of its time span, so few rows are read for each event.
        first = [
            _first_at(time, int(low), int(high), self._lead_us) for low, high in zip(segment, events[:, 0], strict=True)
        ]
        return as_intervals(np.column_stack((first, events[:, 1])))

    def _write_index(self, plan: SplitPlan) -> None:
        """``/windows``: asset number, first row, kind and split code of every complete window, in asset and time order."""
        group = self._file.create_group("windows")
        columns = {"asset": np.int32, "start": np.int64, "kind": np.int8, "split": np.int8}
        made = {name: growing(group, name, dtype, **self._options) for name, dtype in columns.items()}
        bounds = [0]
        for number, (asset, rows) in enumerate(sorted(self._assets.items())):
            own, lookback, stride = rows.segments(), self._window.lookback, self._window.stride
            parts = [plan.parts[asset][part] for part in PARTS]
            total = int(window_counts(own, lookback, stride).sum())
            for first in range(0, total, _BLOCK_ROWS // 4):
                starts = window_starts(own, lookback, stride, first, first + _BLOCK_ROWS // 4)
                extend(made["asset"], np.full(len(starts), number, np.int32))
                extend(made["start"], starts)
                extend(made["kind"], self._window_kinds(rows.group["kind"], starts))
                extend(made["split"], _split_codes(starts, lookback, parts))
            bounds.append(bounds[-1] + total)
        extend(growing(group, "bounds", np.int64), np.array(bounds, np.int64))

    def _window_kinds(self, kind: h5py.Dataset, starts: NDArray[np.int64]) -> NDArray[np.int8]:
        worst = np.full(len(starts), NORMAL, dtype=np.int8)
        step = _BLOCK_ROWS * 16
        # Segments too short for a window may lie between two starts: read what lies near, not all from first to last.
        for low in range(int(starts[0]), int(starts[-1]) + 1, step):
            at = slice(*np.searchsorted(starts, (low, low + step)))
            if at.stop > at.start:
                own = kind[int(starts[at][0]) : int(starts[at.stop - 1]) + self._window.lookback]
                worst[at] = worst_kinds(own, starts[at] - starts[at][0], self._window.lookback)
        return worst

    def _attributes(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "lookback": self._window.lookback,
            "stride": self._window.stride,
            "lead_us": self._lead_us,
            "max_gap_us": self._max_gap_us,
            "period_us": self._contract.period_us,
            "fingerprint": self._contract.fingerprint(),
            "library": _library_version(),
        }


class _LookedUp(Sequence[int]):
    """Single values of a dataset ``(n,)``, read by the block; a search comes back to the same few blocks."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset, self._length = dataset, len(dataset)
        self._blocks: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at: Any) -> Any:
        number, inside = divmod(int(at) % max(self._length, 1), _HELD_ROWS)
        block = self._blocks.pop(number, None)
        if block is None:
            block = self._dataset[number * _HELD_ROWS : (number + 1) * _HELD_ROWS]
            if len(self._blocks) >= _HELD_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
        self._blocks[number] = block
        return block[inside]


def _held(
    values: NDArray[np.float32], starts: NDArray[np.bool_], state: HoldState | None
) -> tuple[NDArray[np.float32], NDArray[np.uint8], HoldState]:
    """As ``hold_last``; rows without a gap need no holding."""
    if np.isnan(values).any():
        return hold_last(values, starts, state)
    age = np.zeros(values.shape, np.uint8)
    return values, age, HoldState(values[-1].copy(), age[-1].copy())


def worst_kinds(kind: NDArray[np.int8], starts: NDArray[np.int64], lookback: int) -> NDArray[np.int8]:
    """The worst kind in each window of ``kind (n,)``: EVENT before LEAD before UNKNOWN before NORMAL.

    >>> worst_kinds(np.array([0, 0, -1, 2, 1], np.int8), np.arange(4), 2).tolist()
    [0, -1, 2, 1]
    """
    worst = np.full(len(starts), NORMAL, dtype=np.int8)
    for one in _WORST_LAST:
        seen = np.concatenate(([0], np.cumsum(kind == one)))
        worst[seen[starts + lookback] > seen[starts]] = one
    return worst


def _split_codes(starts: NDArray[np.int64], lookback: int, parts: list[tuple[int, int]]) -> NDArray[np.int8]:
    codes = np.full(len(starts), -1, dtype=np.int8)
    for code, (first, stop) in enumerate(parts):
        codes[(starts >= first) & (starts + lookback <= stop)] = code
    return codes


def _join_runs(runs: list[list[int]], new: Intervals, breaks: bool) -> None:
    """Append row runs of the next block; the first one continues the last run unless a segment starts there."""
    for start, stop in new.tolist():
        if runs and runs[-1][1] == start and not breaks:
            runs[-1][1] = stop
        else:
            runs.append([start, stop])
        # Only the seam between two blocks may join runs: those inside a block were cut on purpose.
        breaks = True


def _pick(time: h5py.Dataset, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """``time`` at ascending ``rows``, a block of the log at a time."""
    picked = np.empty(len(rows), dtype=np.int64)
    for low in range(0, len(time) if len(rows) else 0, _BLOCK_ROWS):
        at = slice(*np.searchsorted(rows, (low, low + _BLOCK_ROWS)))
        if at.stop > at.start:
            picked[at] = time[low : low + _BLOCK_ROWS][rows[at] - low]
    return picked


def _times(time: h5py.Dataset, rows: Intervals) -> Intervals:
    """Row intervals as time intervals [first row, last row + 1 µs)."""
    return as_intervals(np.column_stack((_pick(time, rows[:, 0]), _pick(time, rows[:, 1] - 1) + 1)))


def _first_at(time: h5py.Dataset, low: int, high: int, lead_us: int) -> int:
    """First row at or after ``low`` that lies at most ``lead_us`` before row ``high``; reads backwards in steps."""
    if not lead_us:
        return high
    wanted, stop = int(time[high]) - lead_us, high
    while stop > low:
        start = max(low, stop - 1024)
        block = time[start:stop]
        if block[0] < wanted:
            return start + int(np.searchsorted(block, wanted))
        stop = start
    return low


def _library_version() -> str:
    try:
        return version("plant-anomaly")
    except PackageNotFoundError:
        return "unknown"

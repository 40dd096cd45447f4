"""Write a window store: rows as they come, then segments, kinds, split and the window index, then one rename."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import h5py
import numpy as np
from numpy.typing import NDArray

from anomaly import __name__ as library
from anomaly.config import SplitSettings, WindowSettings, parse_duration
from anomaly.data.contract import EVENT, LEAD, NORMAL, UNKNOWN, LogChunk, LogContract
from anomaly.data.labels import lead_kinds_in, segments
from anomaly.data.scaling import HoldState, hold_last
from anomaly.data.splits import PARTS, SplitPlan, plan_split
from anomaly.data.store_integrity import USER_BLOCK, seal
from anomaly.errors import Fault, InputRefused
from anomaly.faults import killpoint
from anomaly.files import atomic_path
from anomaly.intervals import as_intervals, from_flags

FORMAT = "plant-anomaly window store 1"
BLOCK = 65_536
PURGED = -1
_CHUNK_BYTES = 1 << 20
#: Worst kind last: a window is as bad as its worst row.
SEVERITY = (NORMAL, UNKNOWN, LEAD, EVENT)


def dataset(group: h5py.Group, name: str, columns: int | None, dtype: str) -> h5py.Dataset:
    """An empty, growing dataset in row-aligned chunks of at most 1 MiB with a checksum on each.

    Never ``chunks=True``, which makes column chunks of a tall array and every small read a hundredfold one.
    """
    row = max(1, columns or 1) * np.dtype(dtype).itemsize
    rows = int(np.clip(_CHUNK_BYTES // row, 1, BLOCK))
    shape, largest = ((0,), (None,)) if columns is None else ((0, columns), (None, columns))
    chunks = (rows,) if columns is None else (rows, columns)
    fill = np.nan if np.dtype(dtype).kind == "f" else 0
    return group.create_dataset(name, shape, dtype, maxshape=largest, chunks=chunks, fletcher32=True, fillvalue=fill)


def extend(data: h5py.Dataset, rows: NDArray[np.generic]) -> None:
    """Append ``rows`` to a growing dataset."""
    if len(rows):
        start = data.shape[0]
        data.resize(start + len(rows), axis=0)
        data[start:] = rows


@dataclass
class _AssetWriter:
    """One asset's series, and what the next chunk needs from those before."""

    name: str
    group: h5py.Group
    rows: int = 0
    last_time: int | None = None
    hold: HoldState | None = None
    segment_starts: list[int] = field(default_factory=list)
    events: list[list[int]] = field(default_factory=list)  # first row, row after the last


class StoreWriter:
    """Takes checked chunks; made by ``create_store``."""

    def __init__(self, file: h5py.File, contract: LogContract, window: WindowSettings, split: SplitSettings) -> None:
        self._file, self._contract, self._window, self._split = file, contract, window, split
        self._max_gap_us = round(window.max_gap * contract.period_us)
        self._assets: dict[str, _AssetWriter] = {}
        self._words: list[dict[str, int]] = [{"": 0} for _ in contract.categories]

    def append(self, chunk: LogChunk) -> None:
        """Write the rows of a chunk to their assets; an exact duplicate of a row's time is not stored again."""
        for asset in dict.fromkeys(chunk.asset):
            self._append_asset(str(asset), chunk.take(chunk.asset == asset))
        killpoint("store.after_append")

    def _append_asset(self, asset: str, rows: LogChunk) -> None:
        own = self._assets.get(asset) or self._new_asset(asset)
        before = own.last_time if own.last_time is not None else rows.time[0] - 1
        rows = rows.take(rows.time != np.concatenate(([before], rows.time[:-1])))
        if not len(rows):
            return
        starts = segments(rows.time, self._max_gap_us, previous=own.last_time)
        held, age, own.hold = hold_last(rows.values, starts, own.hold)
        for name, data in (("time", rows.time), ("values", held), ("age", age), ("label", rows.label)):
            extend(own.group[name], data)
        if self._words:
            extend(own.group["categories"], self._codes(rows.categories))
        own.segment_starts += (np.flatnonzero(starts) + own.rows).tolist()
        self._follow_events(own, rows.label, starts)
        own.rows += len(rows)
        own.last_time = int(rows.time[-1])

    def _new_asset(self, asset: str) -> _AssetWriter:
        group = self._file.create_group(f"series/{quote(asset, safe='')}")
        group.attrs["asset"] = asset
        tags, categories = len(self._contract.tags), len(self._contract.categories)
        for name, columns, dtype in (
            ("values", tags, "f4"), ("age", tags, "u1"), ("time", None, "i8"), ("label", None, "i1"),
            ("kind", None, "i1"), ("categories", categories, "i2"),
        ):  # fmt: skip
            if columns != 0:
                dataset(group, name, columns, dtype)
        self._assets[asset] = _AssetWriter(asset, group)
        return self._assets[asset]

    def _codes(self, categories: NDArray[np.object_]) -> NDArray[np.int16]:
        """Category words as numbers; 0 is missing, a new word gets the next number."""
        codes = np.zeros(categories.shape, np.int16)
        for column, words in enumerate(self._words):
            for word in dict.fromkeys(categories[:, column]):
                codes[categories[:, column] == word, column] = words.setdefault(str(word), len(words))
        return codes

    def _follow_events(self, own: _AssetWriter, label: NDArray[np.int8], starts: NDArray[np.bool_]) -> None:
        """Runs of event rows, also across chunks; a segment's start ends a run."""
        run = np.cumsum(starts)
        for first, end in from_flags(label == EVENT).tolist():
            edges = [first, *(np.flatnonzero(np.diff(run[first:end])) + first + 1).tolist(), end]
            for a, b in pairwise(edges):
                if own.events and own.events[-1][1] == own.rows + a and not starts[a]:
                    own.events[-1][1] = own.rows + b
                else:
                    own.events.append([own.rows + a, own.rows + b])

    def finish(self) -> None:
        """Segments, events, kinds, split plan and window index; raises E3301 when no asset has one whole window."""
        lead_us, plans = parse_duration(self._window.lead), {}
        index = self._file.create_group("windows")
        for name, dtype in (("asset", "i4"), ("start", "i8"), ("label", "i1"), ("split", "i1")):
            dataset(index, name, None, dtype)
        for number, own in enumerate(self._assets.values()):
            self._finish_asset(own, lead_us)
            plans[own.name] = self._plan(own, lead_us)
            self._index_windows(number, own, plans[own.name])
        if not len(index["start"]):
            longest = max((own.rows for own in self._assets.values()), default=0)
            hint = "shorten --lookback, or give a longer log"
            expected = f"a stretch without gaps of at least {self._window.lookback} rows"
            raise InputRefused(Fault("E3301", expected, f"{longest} rows in the longest asset", hint))
        attributes = {
            "format": FORMAT, "library": library, "lookback": self._window.lookback, "stride": self._window.stride,
            "lead_us": lead_us, "tags": json.dumps(self._contract.tags), "fingerprint": self._contract.fingerprint(),
            "contract": json.dumps(self._contract.to_dict()), "window": json.dumps(asdict(self._window)),
            "split": json.dumps(SplitPlan(plans).to_dict()), "assets": json.dumps(list(self._assets)),
            "words": json.dumps([list(w) for w in self._words]),
        }  # fmt: skip
        self._file.attrs.update(attributes)
        self._file.attrs["complete"] = True

    def _finish_asset(self, own: _AssetWriter, lead_us: int) -> None:
        ends = [*own.segment_starts[1:], own.rows]
        rows = as_intervals(list(zip(own.segment_starts, ends, strict=True)))
        own.group["segments"], own.group["event_rows"] = rows, as_intervals(own.events)
        first = [a for a, _ in own.events]
        begins = own.group["time"][first] if first else np.empty(0, np.int64)
        begin_segment = np.searchsorted(own.segment_starts, first, side="right") - 1
        for at in range(0, own.rows, BLOCK):
            time, label = own.group["time"][at : at + BLOCK], own.group["label"][at : at + BLOCK]
            segment = np.searchsorted(own.segment_starts, np.arange(at, at + len(time)), side="right") - 1
            extend(own.group["kind"], lead_kinds_in(time, label, segment, begins, begin_segment, lead_us))

    def _plan(self, own: _AssetWriter, lead_us: int) -> dict[str, tuple[int, int]]:
        time = own.group["time"]
        events = as_intervals([(int(time[a]), int(time[b - 1]) + 1) for a, b in own.events])
        shares = (self._split.train, self._split.validation, self._split.test)
        purge_us = self._window.lookback * self._contract.period_us + lead_us
        return plan_split(time, events, shares, purge_us=purge_us, lead_us=lead_us)

    def _index_windows(self, number: int, own: _AssetWriter, plan: dict[str, tuple[int, int]]) -> None:
        index, lookback = self._file["windows"], self._window.lookback
        for start, end in own.group["segments"][:].tolist():
            for at in range(start, end - lookback + 1, BLOCK * self._window.stride):
                last = min(end - lookback + 1, at + BLOCK * self._window.stride)
                starts = np.arange(at, last, self._window.stride, dtype=np.int64)
                kind = own.group["kind"][at : int(starts[-1]) + lookback]
                extend(index["asset"], np.full(len(starts), number, np.int32))
                extend(index["start"], starts)
                extend(index["label"], worst_kinds(kind, starts - at, lookback))
                extend(index["split"], _parts(starts, lookback, plan))


def worst_kinds(kind: NDArray[np.int8], starts: NDArray[np.int64], lookback: int) -> NDArray[np.int8]:
    """The worst row kind of each window, EVENT > LEAD > UNKNOWN > NORMAL.

    >>> worst_kinds(np.array([0, 0, 2, 1], np.int8), np.array([0, 1, 2]), 2).tolist()
    [0, 2, 1]
    """
    out = np.full(len(starts), NORMAL, np.int8)
    for worse in SEVERITY[1:]:
        count = np.concatenate(([0], np.cumsum(kind == worse)))
        out[count[starts + lookback] > count[starts]] = worse
    return out


def _parts(starts: NDArray[np.int64], lookback: int, plan: dict[str, tuple[int, int]]) -> NDArray[np.int8]:
    out = np.full(len(starts), PURGED, np.int8)
    for number, part in enumerate(PARTS):
        first, end = plan[part]
        out[(starts >= first) & (starts + lookback <= end)] = number
    return out


@contextmanager
def create_store(
    path: Path, contract: LogContract, window: WindowSettings, split: SplitSettings
) -> Iterator[StoreWriter]:
    """A writer for a new window store at ``path``; on a clean exit the store is there whole, else not at all.

    Raises InputRefused E3301 at the end when the log is shorter than one window, Unavailable E5002 on a full disk.
    """
    with atomic_path(path) as temporary:
        with h5py.File(temporary, "x", userblock_size=USER_BLOCK) as file:
            writer = StoreWriter(file, contract, window, split)
            yield writer
            writer.finish()
            file.flush()
        seal(temporary)

"""Files of one asset that overlap in time: equal rows are read once, different ones are refused.

Only the rows inside an overlap are held, as a time, a 64-bit digest and a label each.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.data.contract import UNKNOWN, LogChunk
from anomaly.data.reading.chunking import Layout, Part, part_chunks
from anomaly.data.reading.profile import SHOWN, shown_time
from anomaly.errors import Fault


@dataclass(frozen=True)
class _Rows:
    """Rows of one asset in a stretch of time, sorted by time: all ``(m,)``; ``row`` counts the file's rows."""

    time: NDArray[np.int64]
    digest: NDArray[np.uint64]
    label: NDArray[np.int8]
    row: NDArray[np.int64]


def settle(parts: list[Part], layout: Layout) -> tuple[list[Fault], dict[int, int]]:
    """Set ``resume`` of the parts that begin before an earlier part ends.

    Gives the faults (E3206 other values at a time of an earlier file, E3205 a time that the earlier file passed over)
    and the labels of the rows left out, with their counts.
    """
    faults: list[Fault] = []
    dropped: dict[int, int] = {}
    for asset in sorted({a for p in parts for a in p.profile.order.spans}):
        holders = [p for p in parts if asset in p.profile.order.spans]
        end: int | None = None
        for i, part in enumerate(holders):
            first, last = part.profile.order.spans[asset]
            if end is not None and first <= end:
                again = _rows(part, layout, asset, first, end)
                known = _earlier(holders[:i], layout, asset, first, min(end, last))
                faults += _compare(known, again, part, layout.time)
                for kind, count in zip(*np.unique(again.label, return_counts=True), strict=True):
                    dropped[int(kind)] = dropped.get(int(kind), 0) + int(count)
                part.resume[asset] = end
            end = last if end is None else max(end, last)
    return faults, dropped


def _earlier(parts: list[Part], layout: Layout, asset: str, first: int, last: int) -> _Rows:
    found = [
        _rows(p, layout, asset, first, last)
        for p in parts
        if p.profile.order.spans[asset][0] <= last and p.profile.order.spans[asset][1] >= first
    ]
    joined = _joined(found)
    sort = np.argsort(joined.time, kind="stable")
    return _Rows(joined.time[sort], joined.digest[sort], joined.label[sort], joined.row[sort])


def _rows(part: Part, layout: Layout, asset: str, first: int, last: int) -> _Rows:
    """The rows of ``asset`` from ``first`` to ``last``, both included, whether or not they were read before."""
    found = []
    for chunk in part_chunks(part, layout, resumed=False):
        inside = chunk.take((chunk.asset == asset) & (chunk.time >= first) & (chunk.time <= last))
        found.append(_Rows(inside.time, _digests(inside), inside.label, inside.row))
    return _joined(found)


def _joined(found: list[_Rows]) -> _Rows:
    empty = _Rows(np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.int8), np.empty(0, np.int64))
    every = [empty, *found]
    return _Rows(*(np.concatenate([getattr(r, f) for r in every]) for f in ("time", "digest", "label", "row")))


def _digests(chunk: LogChunk) -> NDArray[np.uint64]:
    """A digest of each row's values and categories; NaN equals NaN, and -0 equals 0."""
    values = np.where(np.isnan(chunk.values), np.float32(np.nan), chunk.values + np.float32(0))
    digests = [
        hashlib.blake2b(v.tobytes() + "\x1f".join(c).encode(), digest_size=8).digest()
        for v, c in zip(values, chunk.categories, strict=True)
    ]
    return np.frombuffer(b"".join(digests), np.uint64)


def _compare(known: _Rows, again: _Rows, part: Part, column: str) -> list[Fault]:
    at = np.searchsorted(known.time, again.time)
    there = at < len(known.time)
    there[there] = known.time[at[there]] == again.time[there]
    differs = np.zeros(len(there), dtype=bool)
    before, now = at[there], np.flatnonzero(there)
    both = (known.label[before] != UNKNOWN) & (again.label[now] != UNKNOWN)
    differs[now] = known.digest[before] != again.digest[now]
    differs[now] |= both & (known.label[before] != again.label[now])
    file, faults = part.source.name, []
    for i in np.flatnonzero(differs)[:SHOWN]:
        expected = f"the values that an earlier file has at {shown_time(int(again.time[i]))}"
        row = part.source.data_row(int(again.row[i]))
        faults.append(Fault("E3206", expected, "other values", "keep one of the files", file, column, row))
    for i in np.flatnonzero(~there)[:SHOWN]:
        row, found = part.source.data_row(int(again.row[i])), shown_time(int(again.time[i]))
        hint = "an earlier file covers this time without having this row; join the files in time order"
        faults.append(Fault("E3205", "a time after the end of the earlier file", found, hint, file, column, row))
    return faults

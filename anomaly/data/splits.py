"""Train, validation and test in time order, whole events on one side, a purge gap between (METHODS S59)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.config import SplitSettings
from anomaly.data.windows import window_counts
from anomaly.intervals import Intervals, as_intervals, merge

#: The parts in time order; a window's split code is the position here, -1 for none.
PARTS = ("train", "validation", "test")

#: Evenly spaced places tried for a cut, besides the wanted place and the edges of events.
_GRID = 100
_NEAREST_EVENTS = 64

# What a cut may cost, in shares of the log by which it moves away from where it was wanted.
_NO_NORMAL_WINDOW, _NO_TEST_WINDOW, _EVENT_LOST, _THIN, _NO_EVENT = 100.0, 10.0, 3.0, 2.0, 0.15


@dataclass(frozen=True)
class SplitPlan:
    """Which rows of which asset belong to which part.

    ``parts[asset][part]`` is a row interval [start, stop); rows between the parts belong to none of them, they are
    purged. ``purge_us`` is the time held free between parts, ``rows[asset]`` the length of the log.
    """

    parts: dict[str, dict[str, tuple[int, int]]]
    rows: dict[str, int]
    purge_us: int
    shares: tuple[float, float, float]

    def part_rows(self, asset: str, part: str) -> tuple[int, int]:
        """Row interval of ``part``; raises ValueError for another name."""
        if part not in PARTS:
            raise ValueError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
        return self.parts[asset][part]

    def with_training_share(self, share: float) -> SplitPlan:
        """The same plan with only the newest ``share`` of every train part; raises ValueError outside 0 < share <= 1."""
        if not 0 < share <= 1:
            raise ValueError(f"share: expected more than 0 and at most 1, got {share}")
        parts = {}
        for asset, own in self.parts.items():
            first, stop = own["train"]
            parts[asset] = own | {"train": (stop - round((stop - first) * share), stop)}
        return replace(self, parts=parts)

    def purged(self, asset: str) -> Intervals:
        """Rows of no part, as merged intervals."""
        edges = [0] + [edge for part in PARTS for edge in self.parts[asset][part]] + [self.rows[asset]]
        between = as_intervals(edges)
        return merge(between[between[:, 1] > between[:, 0]])

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        parts = {a: {p: list(rows) for p, rows in own.items()} for a, own in self.parts.items()}
        return {"parts": parts, "rows": dict(self.rows), "purge_us": self.purge_us, "shares": list(self.shares)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SplitPlan:
        """The plan from ``to_dict`` values."""
        parts = {
            asset: {part: (int(rows[0]), int(rows[1])) for part, rows in own.items()}
            for asset, own in values["parts"].items()
        }
        train, validation, test = values["shares"]
        return cls(parts, dict(values["rows"]), int(values["purge_us"]), (train, validation, test))


def plan_split(
    time: Sequence[int] | NDArray[np.int64],
    *,
    shares: SplitSettings,
    purge_us: int,
    events: Intervals,
    normal: Intervals,
    lookback: int = 1,
) -> dict[str, tuple[int, int]]:
    """Cut the log of one asset into parts by rows, in time order; returns part → row interval [start, stop).

    ``time`` is strictly increasing and only looked up, never read whole, so a dataset on disk will do. ``events``
    are the row intervals that must stay whole (events with their lead), ``normal`` the runs of normal rows inside
    segments; window counts follow from them and ``lookback``.

    Promises: a part starts at least ``purge_us`` after the last row of the part before it; no event has rows on two
    sides. A cut that would break an event moves to the nearest place that keeps events whole. It moves further where
    the train or validation part would be left without its normal windows, and up to 15 % of the log to give
    validation or test an event. Only where no such place exists is an event purged, whole.
    """
    n, whole = len(time), merge(events)
    if not n:
        return dict.fromkeys(PARTS, (0, 0))
    wanted = (round(n * shares.train), round(n * (shares.train + shares.validation)) if shares.test > 0 else n)
    first = _Cuts.at(_candidates(time, wanted[0], whole, purge_us), time, whole, purge_us)
    second_rows = np.array([n]) if shares.test <= 0 else _candidates(time, wanted[1], whole, purge_us)
    second = _Cuts.at(second_rows, time, whole, purge_us)
    count = _NormalWindows(normal, lookback)
    cost = _cost(first, second, wanted, n, shares, count, lookback) + _without_events(first, second, n, whole)
    i, j = np.unravel_index(int(np.argmin(cost)), cost.shape)
    start = int(first.start[i])
    # A log too short for three parts leaves the later ones empty.
    stop = max(int(second.stop[j]), start)
    return {
        "train": (0, int(first.stop[i])),
        "validation": (start, stop),
        "test": (min(max(int(second.start[j]), stop), n), n),
    }


@dataclass(frozen=True)
class _Cuts:
    """Candidate cuts ``(k,)``: where one is wanted, where the earlier part stops, where the later starts, events lost."""

    row: NDArray[np.int64]
    stop: NDArray[np.int64]
    start: NDArray[np.int64]
    lost: NDArray[np.int64]

    @classmethod
    def at(cls, rows: NDArray[np.int64], time: Any, whole: Intervals, purge_us: int) -> _Cuts:
        """Cuts at ``rows`` with the purge gap after them; an event that the gap touches falls into it whole."""
        n = len(time)
        start = np.array(
            [max(r, bisect_left(time, int(time[r - 1]) + purge_us)) if 0 < r < n else r for r in rows.tolist()]
        )
        if not len(whole):
            return cls(rows, rows, start, np.zeros(len(rows), dtype=np.int64))
        # Events are disjoint and sorted: those that reach beyond the cut and begin before the later part.
        low = np.searchsorted(whole[:, 1], rows, side="right")
        high = np.searchsorted(whole[:, 0], start, side="left")
        hit = (high > low) & (rows > 0) & (rows < n)
        stop = np.where(hit, np.minimum(rows, whole[np.minimum(low, len(whole) - 1), 0]), rows)
        start = np.where(hit, np.maximum(start, whole[np.maximum(high - 1, 0), 1]), start)
        return cls(rows, stop, start, np.where(hit, high - low, 0))


def _candidates(time: Any, wanted: int, whole: Intervals, purge_us: int) -> NDArray[np.int64]:
    """Rows worth cutting at: the wanted one, a grid, and places that just clear the events nearest to it."""
    n = len(time)
    grid = np.linspace(0, n, _GRID + 1).round().astype(np.int64)
    near = whole[np.argsort(np.abs(whole[:, 0] - wanted), kind="stable")[:_NEAREST_EVENTS]]
    before = [bisect_right(time, int(time[int(a)]) - purge_us) for a in near[:, 0].tolist()]
    return np.unique(np.concatenate(([wanted], grid, near[:, 1], before))).astype(np.int64)


class _NormalWindows:
    """Counts complete normal windows of ``lookback`` rows inside [a, b) without listing them."""

    def __init__(self, normal: Intervals, lookback: int) -> None:
        counts = window_counts(normal, lookback, 1)
        self._first, self._counts, self._lookback = normal[:, 0], counts, lookback
        self._before = np.concatenate(([0], np.cumsum(counts)))

    def inside(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
        """Windows that start at or after ``a`` and end by ``b``."""
        return np.maximum(self._starting_before(b - self._lookback + 1) - self._starting_before(a), 0)

    def _starting_before(self, row: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(self._first):
            return np.zeros(np.shape(row), dtype=np.int64)
        at = np.searchsorted(self._first, row, side="right") - 1
        inside = np.clip(row - self._first[at], 0, self._counts[at])
        return np.where(at >= 0, self._before[at] + inside, 0)


def _cost(
    first: _Cuts,
    second: _Cuts,
    wanted: tuple[int, int],
    n: int,
    shares: SplitSettings,
    count: _NormalWindows,
    lookback: int,
) -> NDArray[np.float64]:
    """How bad each pair of cuts is, ``(k1, k2)``: distance from the wanted places plus what the parts would lack."""
    moved = (np.abs(first.row - wanted[0])[:, None] + np.abs(second.row - wanted[1])[None, :]) / n
    cost = moved + _EVENT_LOST * (first.lost[:, None] + second.lost[None, :])
    total = max(int(count.inside(np.array(0), np.array(n))), 1)
    validation = count.inside(first.start[:, None], second.stop[None, :])
    train = np.broadcast_to(count.inside(np.zeros_like(first.stop), first.stop)[:, None], validation.shape)
    for windows, share in ((train, shares.train), (validation, shares.validation)):
        cost += _NO_NORMAL_WINDOW * (windows == 0)
        # Below half of its share a part is called thin: it would calibrate or teach little.
        cost += _THIN * np.maximum(0.5 - windows / max(share * total, 1.0), 0)
    if shares.test > 0:
        cost += _NO_TEST_WINDOW * (n - second.start < lookback)[None, :]
    return cost + 10 * _NO_NORMAL_WINDOW * (second.row[None, :] < first.row[:, None])


def _without_events(first: _Cuts, second: _Cuts, n: int, whole: Intervals) -> NDArray[np.float64]:
    """What it costs, ``(k1, k2)``, that validation or test holds no event: no threshold or no figure can be had there."""

    def none(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
        ended = np.searchsorted(whole[:, 1], b, side="right")
        return ended <= np.searchsorted(whole[:, 0], a, side="left")

    validation = none(first.start[:, None], second.stop[None, :])
    test = none(second.start, np.full_like(second.start, n))[None, :]
    return _NO_EVENT * (validation.astype(np.float64) + test)


def random_split(n: int, seed: int = 123, test: float = 0.2, validation: float = 0.2) -> dict[str, NDArray[np.int64]]:
    """Row numbers of the parts as seed 004 draws them: two random splits in a row, each ``(k,)``, in drawn order.

    Only for reproducing published tables. Neighbouring rows of a log resemble each other, so a random split shows
    the model nearly every test row in training and its figures are too good.
    """
    from sklearn.model_selection import train_test_split

    rest, held_out = train_test_split(np.arange(n), test_size=test, random_state=seed)
    train, valid = train_test_split(rest, test_size=validation, random_state=seed)
    return {"train": train, "validation": valid, "test": held_out}

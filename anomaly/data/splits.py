"""Train, validation and test in time order, a purge gap between, whole events on one side (METHODS S59)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.intervals import Intervals

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitPlan:
    """Row interval [start, end) of each part, per asset; rows in none of them are purged."""

    parts: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)

    def rows(self, asset: str, part: str) -> tuple[int, int]:
        """The part's rows of ``asset``; (0, 0) where it has none."""
        return self.parts.get(asset, {}).get(part, (0, 0))

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {asset: {p: list(r) for p, r in parts.items()} for asset, parts in self.parts.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SplitPlan:
        """The plan from ``to_dict`` values."""
        return cls({a: {p: (int(r[0]), int(r[1])) for p, r in parts.items()} for a, parts in values.items()})


def plan_split(
    time: Sequence[int],
    events: Intervals,
    shares: tuple[float, float, float],
    *,
    purge_us: int,
    lead_us: int = 0,
) -> dict[str, tuple[int, int]]:
    """Cut one asset's rows ``time (n,)`` by ``shares`` of rows, in time order; ``time`` may lie on disk, few rows are read.

    A cut that would fall into an event, its lead or its purge gap moves to just after the event's last row, or to just
    before its lead where that leaves the later part empty. Each later part begins more than ``purge_us`` after the last
    row of the part before.
    """
    n = len(time)
    cuts = [0]
    for share in np.cumsum(shares)[:-1]:
        cuts.append(_whole_events(time, events, max(round(float(share) * n), cuts[-1]), cuts[-1], lead_us))
    cuts.append(n)
    parts: dict[str, tuple[int, int]] = {}
    previous_end = None
    for part, start, end in zip(PARTS, cuts[:-1], cuts[1:], strict=True):
        first = start
        if previous_end is not None and previous_end > 0:
            first = max(start, bisect_right(time, int(time[previous_end - 1]) + purge_us))
            first = _after_started_event(time, events, first, start, lead_us)
        parts[part] = (first, max(first, end)) if first < end else (end, end)
        previous_end = end if first < end else previous_end
    return parts


def _whole_events(time: Sequence[int], events: Intervals, cut: int, floor: int, lead_us: int) -> int:
    """Move ``cut`` out of any event with its lead."""
    for start, end in events.tolist():
        first = bisect_left(time, start - lead_us)
        after = bisect_left(time, end)
        if first < cut < after:
            cut = after if after < len(time) else max(first, floor)
    return cut


def _after_started_event(time: Sequence[int], events: Intervals, first: int, start: int, lead_us: int) -> int:
    """A part that begins inside an event, because its first rows were purged, begins after that event instead."""
    for begin, end in events.tolist():
        opening = bisect_left(time, begin - lead_us)
        after = bisect_left(time, end)
        if start <= opening < first < after:
            first = after
    return first


def random_split(
    n: int, *, seed: int = 123, test: float = 0.2, validation: float = 0.2
) -> dict[str, NDArray[np.int64]]:
    """The published random-row split: test rows drawn first, then validation rows from the rest, with one seed.

    Only to reproduce published tables. Neighbouring rows of one event fall on both sides, so its figures are inflated; a
    report that uses it must call it a random split.
    """
    from sklearn.model_selection import train_test_split

    rest, tested = train_test_split(np.arange(n), test_size=test, random_state=seed)
    trained, validated = train_test_split(rest, test_size=validation, random_state=seed)
    return {"train": np.sort(trained), "validation": np.sort(validated), "test": np.sort(tested)}

"""Which rows a fitted part saw, kept as intervals, so that "normal training rows only" can be proved (METHODS S56)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anomaly.intervals import Intervals, as_intervals, duration, from_flags, merge


@dataclass
class RowAudit:
    """Row intervals per asset.

    >>> audit = RowAudit()
    >>> audit.add("pump", 100, [True, True, False, True])
    >>> audit.seen("pump").tolist(), audit.rows
    ([[100, 102], [103, 104]], 3)
    """

    _intervals: dict[str, list[list[int]]] = field(default_factory=dict)

    def add(self, asset: str, start: int, mask: ArrayLike) -> None:
        """Rows ``start + i`` of ``asset`` were seen where ``mask (n,)`` is true."""
        new = (from_flags(mask) + start).tolist()
        known = self._intervals.setdefault(asset, [])
        for first, end in new:
            if known and first == known[-1][1]:
                known[-1][1] = end
            else:
                known.append([first, end])

    def seen(self, asset: str) -> Intervals:
        """Merged row intervals of ``asset``."""
        return merge(self._intervals.get(asset, []))

    @property
    def assets(self) -> list[str]:
        """Assets with at least one row seen."""
        return [a for a, rows in self._intervals.items() if rows]

    @property
    def rows(self) -> int:
        """How many rows were seen, each counted once."""
        return sum(duration(rows) for rows in self._intervals.values())

    def overlap(self, asset: str, intervals: ArrayLike) -> int:
        """How many rows of ``intervals`` were seen."""
        mine, theirs = self.seen(asset), merge(intervals)
        joined = duration(np.concatenate((mine, theirs)))
        return duration(mine) + duration(theirs) - joined

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {asset: self.seen(asset).tolist() for asset in self._intervals}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RowAudit:
        """The audit from ``to_dict`` values; raises ValueError where an interval ends before it starts."""
        return cls({asset: as_intervals(rows).tolist() for asset, rows in values.items()})

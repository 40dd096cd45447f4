"""Which rows a fitted part has seen, so that "normal training rows only" can be proved (METHODS S56)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.intervals import Intervals, as_intervals, duration, from_flags, merge

_PENDING = 256


class RowAudit:
    """Rows seen, per asset, as merged row intervals; memory grows with the number of stretches, not of rows.

    >>> audit = RowAudit()
    >>> audit.add("a", 10, np.array([True, True, False, True]))
    >>> audit.add("a", 20, 5)
    >>> audit.rows, audit.overlap("a", [[11, 21]]), audit.overlap("b", [[0, 99]])
    (8, 3, 0)
    """

    def __init__(self) -> None:
        self._merged: dict[str, Intervals] = {}
        self._pending: dict[str, list[Intervals]] = {}

    def add(self, asset: str, start_row: int, seen: NDArray[np.bool_] | int) -> None:
        """Rows of ``asset`` from ``start_row`` on: those where the mask ``seen (n,)`` is true, or so many of them."""
        rows = from_flags(seen) if isinstance(seen, np.ndarray) else as_intervals([[0, int(seen)]])
        rows = rows[rows[:, 1] > rows[:, 0]] + start_row
        if len(rows):
            pending = self._pending.setdefault(asset, [])
            pending.append(rows)
            if len(pending) >= _PENDING:
                self._settle(asset)

    def merge(self, other: RowAudit) -> RowAudit:
        """Rows seen by either, as a new audit."""
        joined = RowAudit()
        for audit in (self, other):
            for asset in audit.assets:
                joined._pending.setdefault(asset, []).append(audit.intervals(asset))
        return joined

    @property
    def assets(self) -> tuple[str, ...]:
        """Assets with at least one row seen, sorted."""
        return tuple(sorted(self._merged.keys() | self._pending.keys()))

    @property
    def rows(self) -> int:
        """How many rows were seen; a row seen twice counts once."""
        return sum(duration(self.intervals(asset)) for asset in self.assets)

    def intervals(self, asset: str) -> Intervals:
        """Rows of ``asset`` as merged intervals ``(k, 2)``."""
        return self._settle(asset)

    def overlap(self, asset: str, intervals: Intervals | list[list[int]]) -> int:
        """How many of the rows in ``intervals`` were seen."""
        mine, others = self.intervals(asset), merge(intervals)
        return duration(mine) + duration(others) - duration(np.concatenate((mine, others)))

    def _settle(self, asset: str) -> Intervals:
        settled = self._merged.get(asset, as_intervals([]))
        if pending := self._pending.pop(asset, None):
            settled = merge(np.concatenate((settled, *pending)))
            self._merged[asset] = settled
        return settled

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {asset: self.intervals(asset).tolist() for asset in self.assets}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RowAudit:
        """The audit from ``to_dict`` values."""
        audit = cls()
        audit._merged = {asset: as_intervals(rows) for asset, rows in values.items()}
        return audit

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowAudit) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

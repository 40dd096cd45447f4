"""Order of a log's rows in time, asset by asset: steps back, equal times, and the usual step."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly.data.reading.values import Numbers, texts

_MOST_STEPS = 65_536


@dataclass
class StepCounter:
    """Counts of positive steps in time, in bounded memory; the median step is a log's sampling period.

    Up to 65,536 different steps are counted exactly; beyond that steps are kept to four digits.
    """

    counts: dict[int, int] = field(default_factory=dict)
    digits: int | None = None

    def add(self, steps: NDArray[np.int64]) -> None:
        """Count ``steps (n,)`` in microseconds; those not above zero are passed over."""
        for step, count in zip(*np.unique(steps[steps > 0], return_counts=True), strict=True):
            key = self._key(int(step))
            self.counts[key] = self.counts.get(key, 0) + int(count)
        if self.digits is None and len(self.counts) > _MOST_STEPS:
            self.digits = 4
            self._recount(self.counts)

    def merge(self, other: StepCounter) -> None:
        """Add another counter's counts."""
        self.digits = self.digits or other.digits
        self._recount({k: self.counts.get(k, 0) + other.counts.get(k, 0) for k in {*self.counts, *other.counts}})

    def median(self) -> int | None:
        """The (lower) median step in microseconds, None if there was no step.

        >>> counter = StepCounter(); counter.add(np.array([1, 1, 1, 9, 9])); counter.median()
        1
        """
        if not self.counts:
            return None
        steps = np.array(sorted(self.counts))
        seen = np.cumsum([self.counts[int(s)] for s in steps])
        return int(steps[np.searchsorted(seen, (seen[-1] + 1) // 2)])

    def total(self) -> int:
        """How many steps were counted."""
        return sum(self.counts.values())

    def _key(self, step: int) -> int:
        return step if self.digits is None else int(float(f"{step:.{self.digits - 1}e}"))

    def _recount(self, counts: dict[int, int]) -> None:
        self.counts = {}
        for step, count in counts.items():
            key = self._key(step)
            self.counts[key] = self.counts.get(key, 0) + count


@dataclass(frozen=True)
class Column:
    """One column of a batch, as number cells and as it was read."""

    numbers: Numbers
    raw: pa.Array


@dataclass(frozen=True)
class OrderFindings:
    """Row indices of a batch: ``backwards`` steps back in time; ``differing`` (row, column) at an equal time.

    ``repeated`` counts the rows whose asset and time are those of the row before.
    """

    backwards: tuple[int, ...]
    differing: tuple[tuple[int, str], ...]
    repeated: int


_Row = dict[str, tuple[float, str | None]]


@dataclass
class RowOrder:
    """Follows a file batch by batch; ``spans`` holds each asset's first and last time, in microseconds."""

    steps: StepCounter = field(default_factory=StepCounter)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    _last: dict[str, tuple[int, _Row]] = field(default_factory=dict)

    def update(
        self,
        us: NDArray[np.int64],
        valid: NDArray[np.bool_],
        assets: NDArray[np.object_] | str,
        columns: dict[str, Column],
    ) -> OrderFindings:
        """Take the next batch: ``us (n,)`` times, ``valid (n,)`` where they could be read, ``assets (n,)`` or one."""
        order, names, codes = _by_asset(np.flatnonzero(valid), assets)
        if not len(order):
            return OrderFindings((), (), 0)
        times = us[order]
        same, step = codes[1:] == codes[:-1], np.diff(times)
        self.steps.add(step[same])
        backwards = order[1:][same & (step < 0)].tolist()
        tied = same & (step == 0)
        differing = _differing(order[:-1][tied], order[1:][tied], columns)
        repeated = int(tied.sum())
        heads = np.flatnonzero(np.r_[True, ~same])
        tails = np.r_[heads[1:] - 1, len(order) - 1]
        for name, head, tail in zip(names, heads, tails, strict=True):
            joined = self._join(name, int(times[head]), int(order[head]), columns)
            backwards += joined.backwards
            differing += joined.differing
            repeated += joined.repeated
            self._last[name] = (int(times[tail]), _row(int(order[tail]), columns))
            low, high = int(times[head : tail + 1].min()), int(times[head : tail + 1].max())
            known = self.spans.get(name, (low, high))
            self.spans[name] = (min(low, known[0]), max(high, known[1]))
        return OrderFindings(tuple(sorted(backwards)), tuple(sorted(differing)), repeated)

    def _join(self, asset: str, time: int, row: int, columns: dict[str, Column]) -> OrderFindings:
        """Findings between an asset's last row of the batches before and its first row of this one."""
        if asset not in self._last:
            return OrderFindings((), (), 0)
        before, values = self._last[asset]
        self.steps.add(np.array([time - before]))
        if time != before:
            return OrderFindings((row,) if time < before else (), (), 0)
        now = _row(row, columns)
        differing = [(row, c) for c, cell in now.items() if c in values and not _equal(values[c], cell)]
        return OrderFindings((), tuple(differing), 1)


def _by_asset(
    rows: NDArray[np.int64], assets: NDArray[np.object_] | str
) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
    """``rows`` sorted by asset and kept in order within each; the assets' names; each row's number of its name."""
    if isinstance(assets, str):
        return rows, [assets], np.zeros(len(rows), np.int64)
    encoded = pa.array(assets[rows], pa.string()).dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    sort = np.argsort(codes, kind="stable")
    return rows[sort], encoded.dictionary.to_pylist(), codes[sort]


def _differing(
    before: NDArray[np.int64], after: NDArray[np.int64], columns: dict[str, Column]
) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    if not len(before):
        return found
    for name, column in columns.items():
        x, y = column.numbers.values[before], column.numbers.values[after]
        differs = (x != y) & ~(np.isnan(x) & np.isnan(y))
        text = column.numbers.text[before] | column.numbers.text[after]
        if text.any():
            at = np.flatnonzero(text)
            differs[at] = texts(column.raw.take(before[at])) != texts(column.raw.take(after[at]))
        found += [(int(r), name) for r in after[differs]]
    return found


def _row(row: int, columns: dict[str, Column]) -> _Row:
    return {
        name: (float(c.numbers.values[row]), str(c.raw[row].as_py()).strip() if c.numbers.text[row] else None)
        for name, c in columns.items()
    }


def _equal(a: tuple[float, str | None], b: tuple[float, str | None]) -> bool:
    return a[1] == b[1] and (a[0] == b[0] or (a[0] != a[0] and b[0] != b[0]))

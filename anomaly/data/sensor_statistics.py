"""What a sensor's values look like: a grade before training, and the profile that later logs are held against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.contract import NORMAL, LogChunk, LogContract
from anomaly.data.stretches import BlockCorrelation, RunFinder, Runs, by_asset

#: Distinct values are counted up to here.
MOST_DISTINCT = 1000

_SAMPLED = 8192
_LONGEST = 5
_FEWEST_BLOCKS = 3
_MOST_TAGS_CORRELATED = 200


@dataclass(frozen=True)
class SensorGrade:
    """How fit a tag is for learning. ``distinct`` stops at 1000; ``reasons`` say why the grade is not high."""

    tag: str
    grade: str
    missing_share: float
    distinct: int
    longest_flat_rows: int
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class TagProfile:
    """A tag's usual values: quantiles (0.1, 25, 50, 75, 99.9 %), its longest usual runs in rows, whether it moves."""

    tag: str
    low: float
    q25: float
    median: float
    q75: float
    high: float
    flat_rows: int
    missing_rows: int
    moves: bool

    @property
    def reach(self) -> float:
        """The width of the usual range, ``high - low``."""
        return self.high - self.low


@dataclass(frozen=True, eq=False)
class QualityProfile:
    """What normal training rows looked like, tag by tag; ``correlation (C, C)`` is within blocks, None if unknown."""

    tags: tuple[TagProfile, ...]
    rows: int
    correlation: NDArray[np.float64] | None = None

    @classmethod
    def fit(cls, chunks: Iterable[LogChunk], contract: LogContract) -> QualityProfile:
        """The profile of the NORMAL rows of ``chunks``, in one pass and bounded memory."""
        statistics = SensorStatistics(contract)
        for chunk in chunks:
            statistics.update(chunk.take(chunk.label == NORMAL))
        return statistics.profile()

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values; a quantile that is not known is None."""
        tags = [{k: _known(v) for k, v in asdict(t).items()} for t in self.tags]
        matrix = None if self.correlation is None else np.round(self.correlation, 4).tolist()
        return {"tags": tags, "rows": self.rows, "correlation": matrix}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> QualityProfile:
        """The profile from ``to_dict`` values."""
        known: list[dict[str, Any]] = [{k: np.nan if v is None else v for k, v in t.items()} for t in values["tags"]]
        tags = tuple(TagProfile(**t) for t in known)
        matrix = values["correlation"]
        return cls(tags, int(values["rows"]), None if matrix is None else np.array(matrix, np.float64))


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value


class RowSample:
    """At most about ``size`` rows picked by a hash of their position: the same rows for any chunking.

    >>> sample = RowSample(100)
    >>> sample.update(np.arange(1000, dtype=np.float32)[:, None])
    >>> 30 < len(sample.values) <= 100
    True
    """

    def __init__(self, size: int) -> None:
        self._size, self._rows, self._halvings = size, 0, 0
        self._hash: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._kept: NDArray[np.float32] | None = None

    @property
    def values(self) -> NDArray[np.float32]:
        """The rows kept ``(m, C)``."""
        return np.empty((0, 0), np.float32) if self._kept is None else self._kept

    def update(self, values: NDArray[np.float32]) -> None:
        """Take the next rows ``(n, C)``."""
        marks = mixed(np.arange(self._rows, self._rows + len(values), dtype=np.uint64))
        self._rows += len(values)
        chosen = self._chosen(marks)
        kept = values[:0] if self._kept is None else self._kept
        self._kept = np.concatenate((kept, values[chosen]))
        self._hash = np.concatenate((self._hash, marks[chosen]))
        while len(self._hash) > self._size:
            self._halvings += 1
            chosen = self._chosen(self._hash)
            self._kept, self._hash = self._kept[chosen], self._hash[chosen]

    def _chosen(self, marks: NDArray[np.uint64]) -> NDArray[np.bool_]:
        return np.asarray(marks < np.uint64(2 ** (63 - self._halvings)))


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """63 well-mixed bits of each number (SplitMix64, Steele and others 2014)."""
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((x ^ (x >> np.uint64(31))) >> np.uint64(1))


def longest_usual(longest: Sequence[int]) -> int:
    """From the longest runs, longest first: the longest with another at least a third as long beside it.

    A single far longer run was a fault of the training data, not its habit.

    >>> longest_usual([200, 5, 4, 4, 3]), longest_usual([200, 150, 4]), longest_usual([])
    (5, 200, 0)
    """
    for length, following in pairwise(longest):
        if 3 * following >= length:
            return length
    return longest[-1] if len(longest) else 0


class _TagCounts:
    """Counts of one tag, over all assets."""

    def __init__(self) -> None:
        self.values = self.bad = 0
        self.low, self.high = np.inf, -np.inf
        self.distinct: NDArray[np.float32] = np.empty(0, np.float32)
        self.flat: list[int] = []
        self.missing: list[int] = []

    def update(self, values: NDArray[np.float32], bad: NDArray[np.bool_]) -> None:
        """Take the tag's measured values ``(m,)`` and which of the chunk's values were bad."""
        self.bad += int(bad.sum())
        if not len(values):
            return
        self.values += len(values)
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        if len(self.distinct) < MOST_DISTINCT:
            self.distinct = np.union1d(self.distinct, values)[:MOST_DISTINCT]

    def note(self, flat: Runs, missing: Runs) -> None:
        """Take runs that ended; of each kind the longest five are kept."""
        self.flat = _longest(self.flat, flat.rows)
        self.missing = _longest(self.missing, missing.rows[missing.value > 0])


def _longest(known: list[int], rows: NDArray[np.int64]) -> list[int]:
    if not len(rows) or (len(known) == _LONGEST and rows.max() <= known[-1]):
        return known
    return np.sort(np.concatenate((known, rows)))[::-1][:_LONGEST].astype(int).tolist()


class _AssetRuns:
    """The open runs of one asset's tags: of one value among measured rows, of missing among all rows."""

    def __init__(self, tags: int) -> None:
        self.flat = [RunFinder() for _ in range(tags)]
        self.missing = [RunFinder() for _ in range(tags)]
        self.blocks = BlockCorrelation()


class SensorStatistics:
    """What each tag's values look like, in one pass over a log and bounded memory; equal for any chunking.

    Grades do not need ``correlate``; a profile without it knows no correlation.
    """

    def __init__(self, contract: LogContract, *, correlate: bool = True) -> None:
        self._correlate = correlate and len(contract.tags) <= _MOST_TAGS_CORRELATED
        self._tags = contract.tags
        self._counts = [_TagCounts() for _ in contract.tags]
        self._assets: dict[str, _AssetRuns] = {}
        self._sample = RowSample(_SAMPLED)
        self._rows = 0
        self._correlation, self._blocks = np.zeros((len(self._tags),) * 2), 0

    def update(self, chunk: LogChunk) -> None:
        """Take the next rows of the log."""
        self._rows += len(chunk)
        self._sample.update(chunk.values)
        absent = np.isnan(chunk.values)
        for c, counts in enumerate(self._counts):
            counts.update(chunk.values[~absent[:, c], c], chunk.bad[:, c])
        for asset, part in by_asset(chunk) if len(chunk) else ():
            self._update_runs(self._assets.setdefault(asset, _AssetRuns(len(self._tags))), part)

    def grades(self) -> list[SensorGrade]:
        """The grade of every tag, in contract order.

        Low: no value, one value only, more than half missing, or one value for more than half of the log. Medium:
        more than 5 % missing, 1 % of bad quality, one value for more than a tenth of the log, or values far beyond
        the rest (more than 20 times the usual width away).
        """
        quantiles = self._quantiles()
        return [self._grade(c, quantiles[:, c]) for c in range(len(self._tags))]

    def profile(self) -> QualityProfile:
        """The profile of the rows taken so far."""
        quantiles, tags = self._quantiles(), []
        for c, tag in enumerate(self._tags):
            counts, flat, missing = self._counts[c], *self._runs(c)
            usual = longest_usual(flat)
            moves = len(counts.distinct) > 1 and 2 * usual < counts.values
            low, q25, median, q75, high = quantiles[:, c].tolist()
            tags.append(TagProfile(tag, low, q25, median, q75, high, usual, longest_usual(missing), moves))
        known = self._blocks >= _FEWEST_BLOCKS
        return QualityProfile(tuple(tags), self._rows, self._correlation / self._blocks if known else None)

    def _update_runs(self, runs: _AssetRuns, part: LogChunk) -> None:
        absent = np.isnan(part.values)
        for c, counts in enumerate(self._counts):
            here = ~absent[:, c]
            flat = runs.flat[c].update(part.values[here, c], part.time[here])
            counts.note(flat, runs.missing[c].update(absent[:, c].astype(np.float32), part.time))
        if self._correlate:
            for block in runs.blocks.update(part.values, part.time):
                self._correlation += block.correlation
                self._blocks += 1

    def _runs(self, c: int) -> tuple[list[int], list[int]]:
        """The longest flat and missing runs of tag ``c``, those still open included."""
        flat, missing = self._counts[c].flat, self._counts[c].missing
        for asset in self._assets.values():
            flat = _longest(flat, asset.flat[c].current.rows)
            last = asset.missing[c].current
            missing = _longest(missing, last.rows[last.value > 0])
        return flat, missing

    def _quantiles(self) -> NDArray[np.float64]:
        """Quantiles ``(5, C)`` of the sampled rows: 0.1, 25, 50, 75 and 99.9 %; NaN for a tag without a value."""
        found = np.full((5, len(self._tags)), np.nan)
        sample = self._sample.values
        for c in range(len(self._tags) if len(sample) else 0):
            column = sample[:, c]
            column = column[~np.isnan(column)]
            if len(column):
                found[:, c] = np.quantile(column.astype(np.float64), [0.001, 0.25, 0.5, 0.75, 0.999])
        return found

    def _grade(self, c: int, quantiles: NDArray[np.float64]) -> SensorGrade:
        counts, flat = self._counts[c], self._runs(c)[0]
        rows, distinct, longest = self._rows, len(counts.distinct), max(flat, default=0)
        share = 1 - counts.values / rows if rows else 1.0
        low, medium = _low(counts.values, share, distinct, longest), _medium(share, counts.bad, rows, longest)
        if counts.values:
            medium += _far_values(counts.low, counts.high, quantiles)
        grade = "low" if low else "medium" if medium else "high"
        return SensorGrade(self._tags[c], grade, share, distinct, longest, tuple(low or medium))


def _low(values: int, share: float, distinct: int, longest: int) -> list[str]:
    if not values:
        return ["no value"]
    reasons = [f"{share:.1%} missing"] if share > 0.5 else []
    if distinct == 1:
        return [*reasons, "always the same value"]
    return reasons + ([f"one value for {longest} rows, over half of the log"] if 2 * longest > values else [])


def _medium(share: float, bad: int, rows: int, longest: int) -> list[str]:
    reasons = [f"{share:.1%} missing"] if share > 0.05 else []
    reasons += [f"{bad / rows:.1%} of bad quality"] if bad > 0.01 * rows else []
    return reasons + ([f"one value for {longest} rows"] if longest > max(0.1 * rows, 20) else [])


def _far_values(low: float, high: float, quantiles: NDArray[np.float64]) -> list[str]:
    width = quantiles[4] - quantiles[0]
    if width > 0 and max(quantiles[0] - low, high - quantiles[4]) > 20 * width:
        return [f"values from {low:g} to {high:g}, usually {quantiles[0]:g} to {quantiles[4]:g}"]
    return []

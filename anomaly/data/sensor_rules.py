"""The rules of the quality watch, one class each: rows of one asset in, findings out, any chunking the same.

``update(part, at)`` takes the asset's next rows (``at (n,)`` counts the asset's rows from 0) and gives what ended in
them; ``finish()`` ends what is still open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from anomaly.data.contract import LogChunk
from anomaly.data.sensor_statistics import QualityProfile, TagProfile
from anomaly.data.stretches import Block, BlockCorrelation, Cluster, ClusterFinder, RunFinder, Runs

#: Every kind of finding.
KINDS = ("flat_line", "gap", "out_of_range", "unit_jump", "swapped_pair", "missing")

#: Unit changes by name: new value = factor × old value + offset.
UNIT_CHANGES: dict[str, tuple[float, float]] = {
    "×10": (10.0, 0.0), "×100": (100.0, 0.0), "×1000": (1000.0, 0.0),
    "÷10": (0.1, 0.0), "÷100": (0.01, 0.0), "÷1000": (0.001, 0.0),
    "°C → °F": (1.8, 32.0), "°F → °C": (1 / 1.8, -32 / 1.8), "°C → K": (1.0, 273.15), "K → °C": (1.0, -273.15),
}  # fmt: skip

_FEWEST_RUN = 20  # rows
_TIMES_USUAL = 5
_FAR = 3.0  # ranges beyond the usual range
_FEWEST_FAR = 3  # rows
_ODD = 0.25  # ranges beyond the usual range: where a unit change or a swap is looked for
_FEWEST_ODD = 20  # rows
_MOST_ODD_TAGS = 40  # more tags out of place at once are a plant upset, not swapped wires
_OPPOSED = -0.6
_FEWEST_BLOCKS = 3
_BLOCK_PATIENCE = 3  # blocks between two that count as one stretch


@dataclass(frozen=True)
class Finding:
    """What a rule found: ``start_us`` to ``end_us`` are the first and the last row concerned, UTC microseconds.

    ``kind`` is one of KINDS; ``tag`` is "" for a gap (start and end are the rows around it, ``rows`` those missing).
    ``other`` names the second tag of a swapped pair.
    """

    kind: str
    asset: str
    tag: str
    start_us: int
    end_us: int
    rows: int
    detail: str
    other: str = ""


def unit_change(values: NDArray[np.float32], usual: TagProfile) -> str | None:
    """The unit change that explains ``values (n,)`` of a tag that usually looks like ``usual``; None if none does.

    It must bring the median of the values within half a usual range and within 25 % of the usual median, and their
    quartile width within a factor 4 above and 20 below (a short stretch moves less than the whole training log).
    """
    median, width = float(np.median(values)), float(np.subtract(*np.quantile(values, [0.75, 0.25])))
    spread = usual.q75 - usual.q25
    best, least = None, np.inf
    for name, (factor, offset) in UNIT_CHANGES.items():
        expected = factor * usual.median + offset
        error = abs(median - expected) / (factor * usual.reach)
        moves = 0.05 * factor * spread <= width <= 4 * factor * spread and width > 0
        if moves and error <= min(0.5, least) and abs(median - expected) <= 0.25 * abs(expected):
            best, least = name, error
    return best


def opposed_pairs(block: NDArray[np.float64], usual: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of tags that in ``block (C, C)`` correlate with the others as the respective other tag usually does.

    For tags i and j let d be row i minus row j of ``usual``, and b the same of ``block``, both without columns i and j.
    A pair is opposed where cos(d, b) < -0.6 and both are large enough to tell (|d|² ≥ 0.5, |b|² ≥ |d|² / 4), and where
    neither tag has a more opposed partner.
    """
    d = _pair_products(usual, usual)
    cross, b = _pair_products(block, usual), _pair_products(block, block)
    telling = (d >= 0.5) & (b >= 0.25 * d)
    cosine = np.where(telling, cross / np.sqrt(np.where(telling, d * b, 1.0)), 1.0)
    best = cosine.argmin(axis=1)
    return [(i, int(j)) for i, j in enumerate(best) if i < j and best[j] == i and cosine[i, j] < _OPPOSED]


def _pair_products(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(C, C)``: sum over k other than i, j of ``(a[i,k] - a[j,k]) (b[i,k] - b[j,k])``, for symmetric a and b."""
    m = a @ b.T
    own = np.diag(m)
    # columns i and j contribute (1 - a_ij)(1 - b_ij) each
    return np.asarray(own[:, None] + own[None, :] - m - m.T - 2 * (1 - a) * (1 - b))


class Rule(Protocol):
    """What every rule below does."""

    def update(self, part: LogChunk, at: NDArray[np.int64]) -> Iterator[Finding]:
        """Findings that ended within ``part``."""

    def finish(self) -> Iterator[Finding]:
        """Findings still open."""


class GapRule:
    """gap: a step in time of more than ``max_gap`` periods."""

    def __init__(self, asset: str, period_us: int, max_gap: float) -> None:
        self._asset, self._period, self._longest = asset, period_us, max_gap * period_us
        self._last: int | None = None

    def update(self, part: LogChunk, at: NDArray[np.int64]) -> Iterator[Finding]:
        """Steps of ``part``, the one from the rows before included."""
        first = part.time[0] if self._last is None else self._last
        time = np.concatenate(([first], part.time))
        self._last = int(time[-1])
        step = np.diff(time)
        for i in np.flatnonzero(step > self._longest):
            lost = max(round(int(step[i]) / self._period) - 1, 1)
            detail = f"no row for {step[i] / self._period:g} periods"
            yield Finding("gap", self._asset, "", int(time[i]), int(time[i + 1]), lost, detail)

    def finish(self) -> Iterator[Finding]:
        """Nothing stays open."""
        return iter(())


class RunRule:
    """flat_line and missing of one tag: runs far longer than the longest usual one."""

    def __init__(self, asset: str, column: int, usual: TagProfile) -> None:
        self._asset, self._column, self._usual = asset, column, usual
        self._flat, self._absent = RunFinder(), RunFinder()
        self._flat_limit = max(_FEWEST_RUN, _TIMES_USUAL * usual.flat_rows)
        self._absent_limit = max(_FEWEST_RUN, _TIMES_USUAL * usual.missing_rows)

    def update(self, part: LogChunk, at: NDArray[np.int64]) -> Iterator[Finding]:
        """Runs that ended in ``part``; a missing value neither ends nor lengthens a run of one value."""
        values = part.values[:, self._column]
        absent = np.isnan(values)
        yield from self._flat_lines(self._flat.update(values[~absent], part.time[~absent]))
        yield from self._missing(self._absent.update(absent.astype(np.float32), part.time))

    def finish(self) -> Iterator[Finding]:
        """The runs still open."""
        yield from self._flat_lines(self._flat.close())
        yield from self._missing(self._absent.close())

    def _flat_lines(self, runs: Runs) -> Iterator[Finding]:
        if self._usual.moves:
            long = runs.take(runs.rows >= self._flat_limit)
            for start, end, rows, value in zip(*long, strict=True):
                detail = f"{value:g} for {rows} rows, usually at most {self._usual.flat_rows}"
                yield self._finding("flat_line", start, end, rows, detail)

    def _missing(self, runs: Runs) -> Iterator[Finding]:
        long = runs.take((runs.value > 0) & (runs.rows >= self._absent_limit))
        for start, end, rows, _ in zip(*long, strict=True):
            detail = f"no value for {rows} rows, usually at most {self._usual.missing_rows}"
            yield self._finding("missing", start, end, rows, detail)

    def _finding(self, kind: str, start: int, end: int, rows: int, detail: str) -> Finding:
        return Finding(kind, self._asset, self._usual.tag, int(start), int(end), int(rows), detail)


class RangeRule:
    """out_of_range and unit_jump of one tag: rows beyond its usual range."""

    def __init__(self, asset: str, column: int, usual: TagProfile) -> None:
        self._asset, self._column, self._usual = asset, column, usual
        self._far, self._odd = ClusterFinder(patience=_FEWEST_FAR), ClusterFinder(patience=_FEWEST_ODD)

    def update(self, part: LogChunk, at: NDArray[np.int64]) -> Iterator[Finding]:
        """Stretches that ended in ``part``."""
        if self._usual.reach > 0:  # a tag that never moved, or was never there, has no scale to judge by
            values = part.values[:, self._column]
            far = np.flatnonzero(_beyond(values, self._usual, _FAR))
            odd = np.flatnonzero(_beyond(values, self._usual, _ODD))
            yield from self._out_of_range(self._far.update(at[far], part.time[far], values[far]))
            yield from self._unit_jumps(self._odd.update(at[odd], part.time[odd], values[odd]))

    def finish(self) -> Iterator[Finding]:
        """The stretches still open."""
        yield from self._out_of_range(self._far.close())
        yield from self._unit_jumps(self._odd.close())

    def _out_of_range(self, clusters: list[Cluster]) -> Iterator[Finding]:
        for cluster in clusters:
            if _sustained(cluster, _FEWEST_FAR):
                yield self._finding("out_of_range", cluster, "")

    def _unit_jumps(self, clusters: list[Cluster]) -> Iterator[Finding]:
        for cluster in clusters:
            change = unit_change(cluster.values, self._usual) if _sustained(cluster, _FEWEST_ODD) else None
            if change is not None:
                yield self._finding("unit_jump", cluster, f"as if {change}: ")

    def _finding(self, kind: str, cluster: Cluster, why: str) -> Finding:
        detail = f"{why}about {np.median(cluster.values):g}, usually {self._usual.low:g} to {self._usual.high:g}"
        return Finding(kind, self._asset, self._usual.tag, cluster.start_us, cluster.end_us, cluster.rows, detail)


class LevelSwapRule:
    """swapped_pair by level: rows where two tags lie in each other's usual range, and neither in its own.

    Only tags whose usual ranges lie apart are judged: of nested ranges (two loads in percent) a busy hour of one looks
    like the other.
    """

    def __init__(self, asset: str, tags: tuple[TagProfile, ...]) -> None:
        self._asset, self._tags = asset, tags
        self._open: dict[tuple[int, int], ClusterFinder] = {}

    def update(self, part: LogChunk, at: NDArray[np.int64]) -> Iterator[Finding]:
        """Stretches that ended in ``part``."""
        odd = np.stack([_beyond(part.values[:, c], t, _ODD) for c, t in enumerate(self._tags)], axis=1)
        odd &= (odd.sum(axis=1) <= _MOST_ODD_TAGS)[:, None]
        columns = np.flatnonzero(odd.any(axis=0))
        together = odd[:, columns].astype(np.float32)
        for a, b in np.argwhere(np.triu(together.T @ together, 1) > 0):
            i, j = int(columns[a]), int(columns[b])
            if _apart(self._tags[i], self._tags[j]):
                yield from self._update_pair(i, j, part, at, np.flatnonzero(odd[:, i] & odd[:, j]))

    def _update_pair(
        self, i: int, j: int, part: LogChunk, at: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> Iterator[Finding]:
        x, y = part.values[rows, i], part.values[rows, j]
        rows = rows[_within(x, self._tags[j]) & _within(y, self._tags[i])]
        if len(rows):
            finder = self._open.setdefault((i, j), ClusterFinder(patience=_FEWEST_ODD))
            yield from self._findings(i, j, finder.update(at[rows], part.time[rows], part.values[rows, i]))

    def finish(self) -> Iterator[Finding]:
        """The stretches still open."""
        for (i, j), finder in self._open.items():
            yield from self._findings(i, j, finder.close())

    def _findings(self, i: int, j: int, clusters: list[Cluster]) -> Iterator[Finding]:
        one, other = self._tags[i].tag, self._tags[j].tag
        for c in clusters:
            if _sustained(c, _FEWEST_ODD):
                detail = f"{one} and {other} hold each other's levels"
                yield Finding("swapped_pair", self._asset, one, c.start_us, c.end_us, c.rows, detail, other)


class _Opposed(NamedTuple):
    """Blocks in which a pair was opposed: first and last time, how many, the numbers of the first and the last."""

    start_us: int
    end_us: int
    blocks: int
    first: int
    last: int


class CorrelationSwapRule:
    """swapped_pair by correlation: for tags of equal level, which the level cannot tell apart."""

    def __init__(self, asset: str, profile: QualityProfile) -> None:
        self._asset, self._profile, self._blocks, self._seen = asset, profile, BlockCorrelation(), 0
        self._open: dict[tuple[int, int], _Opposed] = {}

    def update(self, part: LogChunk, at: NDArray[np.int64]) -> Iterator[Finding]:
        """Stretches that ended with a block in ``part``."""
        if self._profile.correlation is not None:
            for block in self._blocks.update(part.values, part.time):
                self._take(block, opposed_pairs(block.correlation, self._profile.correlation))
                yield from self._ended(self._seen - _BLOCK_PATIENCE)
                self._seen += 1

    def finish(self) -> Iterator[Finding]:
        """The stretches still open."""
        yield from self._ended(self._seen)

    def _take(self, block: Block, pairs: list[tuple[int, int]]) -> None:
        for pair in pairs:
            known = self._open.get(pair, _Opposed(block.start_us, 0, 0, self._seen, 0))
            self._open[pair] = _Opposed(known.start_us, block.end_us, known.blocks + 1, known.first, self._seen)

    def _ended(self, before: int) -> Iterator[Finding]:
        """End the stretches whose last block has a number below ``before``."""
        for pair in [p for p, known in self._open.items() if known.last < before]:
            known = self._open.pop(pair)
            one, other = (self._profile.tags[c].tag for c in pair)
            if known.blocks >= _FEWEST_BLOCKS and 2 * known.blocks > known.last - known.first:
                rows = known.blocks * self._blocks.rows
                detail = f"{one} and {other} move with each other's neighbours"
                yield Finding("swapped_pair", self._asset, one, known.start_us, known.end_us, rows, detail, other)


def _beyond(values: NDArray[np.float32], usual: TagProfile, ranges: float) -> NDArray[np.bool_]:
    """Which values lie more than ``ranges`` usual ranges outside the usual range; never so where it has no width."""
    if not usual.reach > 0:
        return np.zeros(values.shape, dtype=bool)
    margin = ranges * usual.reach
    return np.asarray((values < usual.low - margin) | (values > usual.high + margin))


def _within(values: NDArray[np.float32], usual: TagProfile) -> NDArray[np.bool_]:
    margin = _ODD * usual.reach
    return np.asarray((values >= usual.low - margin) & (values <= usual.high + margin))


def _apart(one: TagProfile, other: TagProfile) -> bool:
    low, high = sorted((one, other), key=lambda t: t.low)
    return high.low - low.high > _ODD * (high.reach + low.reach)


def _sustained(cluster: Cluster, rows: int) -> bool:
    return cluster.rows >= rows and 2 * cluster.rows >= cluster.span

"""Missing values carried forward, and rows scaled by what normal training rows looked like (METHODS S57)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.audit import RowAudit
from anomaly.data.reservoir import Reservoir
from anomaly.errors import Fault, InputRefused

#: Age of a value that was never measured in its segment, or 255 or more rows ago.
LONG_AGO = 255

#: Share of a tag's silences in training that ``hold`` covers.
_COVERED = 0.95
_LINEAR = 4.0
#: Rows that quartiles are taken from, and what draws them.
_QUANTILE_ROWS, _QUANTILE_SEED = 20_000, 7
_QUARTILES_OF_NORMAL = 1.349
#: Values of one row that a loop should have, and of a piece that stays in the cache.
_LONG_ROW, _PIECE = 256, 1 << 14


@dataclass(frozen=True)
class HoldState:
    """The last row of a chunk after holding: ``values (C,)`` float32, ``age (C,)`` uint8."""

    values: NDArray[np.float32]
    age: NDArray[np.uint8]


def hold_last(
    values: NDArray[np.float32], starts: NDArray[np.bool_], state: HoldState | None = None
) -> tuple[NDArray[np.float32], NDArray[np.uint8], HoldState]:
    """Carry each tag's last value forward inside its segment.

    ``values (n, C)`` with NaN where missing, ``starts (n,)`` the first rows of segments, ``state`` from the chunk
    before. Returns held values ``(n, C)`` (NaN only where the segment has not measured the tag yet), their age in
    rows ``(n, C)`` uint8 (0 measured now, 255 never or long ago), and the state. Any chunking gives the same.

    >>> held, age, _ = hold_last(np.array([[1], [np.nan], [np.nan]], np.float32), np.array([True, False, True]))
    >>> held[:, 0].tolist(), age[:, 0].tolist()
    ([1.0, 1.0, nan], [0, 1, 255])
    """
    n, tags = values.shape
    if state is None:
        state = HoldState(np.full(tags, np.nan, np.float32), np.full(tags, LONG_AGO, np.uint8))
    if not n:
        return values.copy(), np.empty((0, tags), np.uint8), state
    row = np.arange(n, dtype=np.int64)
    last = np.maximum.accumulate(np.where(np.isnan(values), -1, row[:, None]), axis=0)
    first = np.maximum.accumulate(np.where(starts, row, -1))[:, None]
    known = last >= np.maximum(first, 0)
    held = np.where(known, np.take_along_axis(values, np.maximum(last, 0), axis=0), np.float32(np.nan))
    age = np.where(known, row[:, None] - last, LONG_AGO)
    carried = (first < 0) & ~known
    held = np.where(carried, state.values, held)
    # A tag that was never measured stays at 255, and so does one that was long ago.
    age = np.where(carried, state.age + row[:, None] + 1, age)
    age = np.minimum(age, LONG_AGO).astype(np.uint8)
    return held, age, HoldState(held[-1].copy(), age[-1].copy())


def compressed(z: NDArray[Any]) -> NDArray[Any]:
    """Deviations as they are up to 4, logarithmic beyond: a broken sensor stays visible without drowning the rest.

    >>> compressed(np.array([-2.0, 4.0, 5.0])).round(3).tolist()
    [-2.0, 4.0, 4.693]
    """
    size = np.abs(z)
    return np.where(size <= _LINEAR, z, np.sign(z) * (_LINEAR + np.log1p(np.maximum(size - _LINEAR, 0))))


def usual_silence(age_counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The 95 % quantile of the lengths of missing runs, per tag ``(C,)``, from how often each age was seen ``(C, 256)``.

    A missing run of L rows shows each of the ages 1 … L once, so ``age_counts[:, k]`` is the number of runs of at
    least k rows: the runs need not be followed from chunk to chunk. At most 254; 0 for a tag that was always there.
    """
    # Age 255 stands for every later row as well, so its count says nothing about runs.
    at_least = age_counts[:, 1:LONG_AGO]
    runs = at_least.max(axis=1, initial=0)
    longer = at_least > (1 - _COVERED) * runs[:, None]
    longest = at_least.shape[1] - np.argmax(longer[:, ::-1], axis=1)
    return np.where(runs > 0, longest, 0).astype(np.uint8)


def robust_scale(
    rows: NDArray[np.float32], center: NDArray[np.float64], scale: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median, and the larger of the quartiles' distance / 1.349 and half of ``scale (C,)``, of ``rows (n, C)``, ``(C,)`` each.

    NaN was not measured; a tag without a value keeps ``center`` and ``scale``. A tag that stands still most of the time has
    quartiles that agree: half the deviation is then its scale.

    >>> rows = np.array([[-1], [0], [1], [100]], np.float32)
    >>> [a.round(3).tolist() for a in robust_scale(rows, np.array([25.0]), np.array([43.0]))]
    [[0.5], [21.5]]
    """
    known = ~np.isnan(rows).all(axis=0)
    center, scale = center.copy(), scale.copy()
    low, middle, high = np.nanquantile(rows[:, known].astype(np.float64), [0.25, 0.5, 0.75], axis=0)
    center[known] = middle
    scale[known] = np.maximum((high - low) / _QUARTILES_OF_NORMAL, scale[known] / 2)
    return center, scale


class RowPreparer:
    """Scales rows to the mean and deviation of normal training rows, and says which values are too old to use.

    Fitted block by block; the statistics count measured values only and equal scikit-learn's StandardScaler. A tag
    that never moved keeps scale 1. ``hold_ (C,)`` is the age in rows up to which a missing value is usual for the
    tag. ``audit_`` names the rows that were used (METHODS S56). ``compress=False`` leaves large deviations linear.
    ``robust`` takes the median instead, and the larger of the quartiles' distance / 1.349 and half the deviation, from a
    sample of 20 000 rows: a few hours at standstill among the normal rows would widen the deviation for all others.

    After ``finish``: ``center_ (C,)``, ``scale_ (C,)`` float64, ``hold_ (C,)`` uint8, ``n_rows_``, ``audit_``.
    """

    def __init__(self, compress: bool = True, robust: bool = False) -> None:
        self.compress, self.robust = compress, robust
        self.audit_ = RowAudit()
        self.n_rows_ = 0
        self.center_, self.scale_ = np.empty(0), np.empty(0)
        self.hold_ = np.empty(0, np.uint8)
        self._finished = False
        self._moments: _Moments | None = None
        self._sample = Reservoir(_QUANTILE_ROWS, _QUANTILE_SEED)

    def partial_fit(
        self,
        held: NDArray[np.float32],
        age: NDArray[np.uint8],
        use: NDArray[np.bool_],
        asset: str,
        start_row: int,
    ) -> RowPreparer:
        """Learn from the rows ``use (n,)`` of ``held (n, C)`` and ``age (n, C)``, rows of ``asset`` from ``start_row``."""
        if held.shape != age.shape or len(use) != len(held):
            raise ValueError(
                f"held, age, use: expected equal rows and tags, got {held.shape}, {age.shape}, {use.shape}"
            )
        if self._moments is None:
            self._moments = _Moments(held.shape[1])
        use = np.asarray(use, dtype=bool)
        self._moments.update(held[use], age[use])
        if self.robust:
            self._sample.add(np.where(age[use] == 0, held[use], np.float32(np.nan)))
        self.n_rows_ += int(use.sum())
        self.audit_.add(asset, start_row, use)
        return self

    def finish(self) -> RowPreparer:
        """Turn what was gathered into center, scale and hold; raises InputRefused E3302 when no row was used."""
        if self._moments is None or not self.n_rows_:
            raise InputRefused(Fault("E3302", "normal rows to scale by", "none", "check the label column"))
        self.center_, self.scale_ = self._moments.center_and_scale()
        if self.robust:
            self.center_, self.scale_ = robust_scale(self._sample.columns[0], self.center_, self.scale_)
            self._sample = Reservoir(_QUANTILE_ROWS, _QUANTILE_SEED)
        self.hold_ = usual_silence(self._moments.ages)
        self._finished = True
        return self

    def transform(self, held: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scaled rows ``(n, C)`` float32, always finite: a value that is not there becomes the mean, 0."""
        center, scale, _ = self._fitted()
        # Few tags would make the loops of an addition as short; several rows laid side by side are one long row.
        beside = max(_LONG_ROW // max(len(center), 1), 1)
        whole = len(held) - len(held) % beside
        scaled = np.empty(held.shape, np.float32)
        centers, scales = np.tile(center, beside), np.tile(scale, beside)
        long = (-1, beside * len(center)) if len(center) else (0, 0)
        self._scale_into(scaled[:whole].reshape(long), held[:whole].reshape(long), centers, scales)
        self._scale_into(scaled[whole:], held[whole:], center, scale)
        return scaled

    def _scale_into(
        self,
        scaled: NDArray[np.float32],
        held: NDArray[np.float32],
        center: NDArray[np.float64],
        scale: NDArray[np.float64],
    ) -> None:
        """Fill ``scaled`` in pieces that stay in the cache, in double precision."""
        piece = max(_PIECE // max(held.shape[1], 1), 1)
        for low in range(0, len(held), piece):
            z = held[low : low + piece].astype(np.float64)
            z -= center
            z /= scale
            # Most pieces hold nothing missing and nothing far; a comparison with NaN is false.
            if not (z.max(initial=0) <= _LINEAR and z.min(initial=0) >= -_LINEAR):
                far = np.flatnonzero(~(np.abs(z) <= _LINEAR))
                own = z.ravel()[far]
                own = compressed(own) if self.compress else own
                limit = float(np.finfo(np.float32).max)
                z.reshape(-1)[far] = np.nan_to_num(np.clip(own, -limit, limit), nan=0.0)
            scaled[low : low + piece] = z

    def inverse(self, scaled: NDArray[np.floating]) -> NDArray[np.float64]:
        """Scaled values ``(…, C)`` in the tags' own units again."""
        center, scale, _ = self._fitted()
        z = np.asarray(scaled, dtype=np.float64)
        if self.compress:
            beyond = np.maximum(np.abs(z) - _LINEAR, 0)
            z = np.where(beyond > 0, np.sign(z) * (_LINEAR + np.expm1(beyond)), z)
        return center + scale * z

    def absent(self, age: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which values are older than is usual for their tag; ``age`` has the tags last, any shape before."""
        return age > self._fitted()[2]

    def _fitted(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]]:
        if not self._finished:
            raise RuntimeError("RowPreparer: expected finish() before use, found it still learning")
        return self.center_, self.scale_, self.hold_

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready values and arrays of a finished preparer."""
        center, scale, hold = self._fitted()
        plain = {"compress": self.compress, "n_rows": self.n_rows_, "audit": self.audit_.to_dict()}
        return plain, {"center": center, "scale": scale, "hold": hold}

    @classmethod
    def from_state(cls, values: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> RowPreparer:
        """The preparer from what ``to_state`` gave."""
        made = cls(compress=bool(values["compress"]))
        made.n_rows_, made.audit_ = int(values["n_rows"]), RowAudit.from_dict(values["audit"])
        made.center_, made.scale_ = arrays["center"].astype(np.float64), arrays["scale"].astype(np.float64)
        made.hold_ = arrays["hold"].astype(np.uint8)
        made._finished = True
        return made


class _Moments:
    """Count, mean, squared deviations, range and ages per tag, merged block by block (Chan, Golub and LeVeque 1979)."""

    def __init__(self, tags: int) -> None:
        self.count = np.zeros(tags, dtype=np.int64)
        self.mean, self.squares = np.zeros(tags), np.zeros(tags)
        self.low, self.high = np.full(tags, np.inf), np.full(tags, -np.inf)
        self.ages = np.zeros((tags, LONG_AGO + 1), dtype=np.int64)

    def update(self, held: NDArray[np.float32], age: NDArray[np.uint8]) -> None:
        """Add a block of used rows ``(n, C)``."""
        measured = (age == 0) & np.isfinite(held)
        x = held.astype(np.float64)
        count = measured.sum(axis=0)
        some = np.maximum(count, 1)
        # A mean of deviations from a first guess keeps its digits for sensors with a large offset.
        guess = np.where(measured, x, 0.0).sum(axis=0) / some
        mean = guess + np.where(measured, x - guess, 0.0).sum(axis=0) / some
        squares = (np.where(measured, x - mean, 0.0) ** 2).sum(axis=0)
        total = np.maximum(self.count + count, 1)
        step = np.where(count > 0, mean - self.mean, 0.0)
        self.squares += np.where(count > 0, squares + step**2 * self.count * count / total, 0.0)
        self.mean += step * count / total
        self.count += count
        self.low = np.minimum(self.low, np.where(measured, x, np.inf).min(axis=0, initial=np.inf))
        self.high = np.maximum(self.high, np.where(measured, x, -np.inf).max(axis=0, initial=-np.inf))
        self._count_ages(held, age)

    def _count_ages(self, held: NDArray[np.float32], age: NDArray[np.uint8]) -> None:
        # What a segment has not measured yet is no silence of known length: no hold could bridge it.
        row, tag = np.nonzero((age > 0) & np.isfinite(held))
        np.add.at(self.ages, (tag, age[row, tag]), 1)

    def center_and_scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and population deviation, ``(C,)`` each; 1 for a tag that never moved."""
        scale = np.sqrt(self.squares / np.maximum(self.count, 1))
        return self.mean.copy(), np.where((self.high > self.low) & (scale > 0), scale, 1.0)

"""Rows made ready for an encoder: last values held, then scaled by what normal training rows looked like (METHODS S57)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.audit import RowAudit

#: Age of a value that was never measured in its segment; ages stop here.
NEVER = 255
_LINEAR = 4.0


@dataclass(frozen=True)
class HoldState:
    """The last value and its age per tag, carried from chunk to chunk: both ``(C,)``."""

    values: NDArray[np.float32]
    age: NDArray[np.uint8]


def hold_last(
    values: NDArray[np.float32], starts: NDArray[np.bool_], state: HoldState | None = None
) -> tuple[NDArray[np.float32], NDArray[np.uint8], HoldState]:
    """Carry each tag's last value forward inside its segment.

    ``values (n, C)`` with NaN where missing, ``starts (n,)`` where a segment begins. Returns held values ``(n, C)``, NaN
    only where nothing was measured yet in the segment; ages ``(n, C)`` in rows, 0 = measured now, 255 = never or longer
    ago; and the state for the next chunk.

    >>> held, age, _ = hold_last(np.array([[1.0], [np.nan], [np.nan]], np.float32), np.array([True, False, True]))
    >>> held[:, 0].tolist(), age[:, 0].tolist()
    ([1.0, 1.0, nan], [0, 1, 255])
    """
    n, tags = values.shape
    if state is None:
        state = HoldState(np.full(tags, np.nan, np.float32), np.full(tags, NEVER, np.uint8))
    if not n:
        return values.copy(), np.empty((0, tags), np.uint8), state
    rows = np.arange(n)[:, None]
    measured_at = np.maximum.accumulate(np.where(np.isnan(values), -1, rows), axis=0)
    segment_at = np.maximum.accumulate(np.where(starts, np.arange(n), -1))[:, None]
    here = (measured_at >= segment_at) & (measured_at >= 0)
    carried = (segment_at < 0) & ~here
    held = np.take_along_axis(values, np.maximum(measured_at, 0), axis=0)
    held = np.where(here, held, np.where(carried, state.values, np.float32(np.nan)))
    since = np.where(here, rows - measured_at, np.where(carried, state.age.astype(np.int64) + rows + 1, NEVER))
    never_carried = carried & (state.age == NEVER) & np.isnan(state.values)
    age = np.where(never_carried, NEVER, np.minimum(since, NEVER)).astype(np.uint8)
    return held.astype(np.float32), age, HoldState(held[-1].astype(np.float32), age[-1])


class RowPreparer:
    """Centres and scales rows by the normal training rows, streamed; knows how long each tag may stay silent.

    Fitted: ``center_``, ``scale_ (C,)`` mean and standard deviation, 1 for a tag that never moved; ``hold_ (C,)`` rows a
    value may be old, the 95 % quantile of the tag's silences in the rows seen, 0 if it was never silent; ``audit_`` the
    rows seen.
    """

    def __init__(self, *, compress: bool = True) -> None:
        self.compress = compress
        self.audit_ = RowAudit()
        self.center_ = self.scale_ = np.empty(0)
        self.hold_ = np.empty(0, np.uint8)
        self._count = self._mean = self._m2 = self._low = self._high = np.empty(0)
        self._silences = np.empty((0, NEVER + 1), np.int64)

    def partial_fit(
        self,
        held: NDArray[np.float32],
        age: NDArray[np.uint8],
        use: NDArray[np.bool_],
        asset: str,
        start: int,
    ) -> None:
        """Learn from rows ``start …`` of ``asset`` where ``use (n,)``: only values measured there, not held ones."""
        tags = held.shape[1]
        if not len(self._count):
            self._count, self._mean, self._m2 = (np.zeros(tags) for _ in range(3))
            self._low, self._high = np.full(tags, np.inf), np.full(tags, -np.inf)
            self._silences = np.zeros((tags, NEVER + 1), np.int64)
        self.audit_.add(asset, start, use)
        measured = (age == 0) & use[:, None] & np.isfinite(held)
        self._merge(np.where(measured, held, 0).astype(np.float64), measured)
        self._count_silences(age, use)

    def _merge(self, x: NDArray[np.float64], measured: NDArray[np.bool_]) -> None:
        """Mean and squared deviations of the block joined with those so far (Chan, Golub & LeVeque 1983)."""
        n = measured.sum(axis=0).astype(np.float64)
        some = n > 0
        mean = np.divide(x.sum(axis=0), n, out=np.zeros_like(n), where=some)
        m2 = (np.where(measured, x - mean, 0) ** 2).sum(axis=0)
        total = self._count + n
        delta = mean - self._mean
        weight = np.divide(n, total, out=np.zeros_like(n), where=total > 0)
        self._m2 += np.where(some, m2 + delta**2 * self._count * weight, 0)
        self._mean += np.where(some, delta * weight, 0)
        self._count = total
        self._low = np.minimum(self._low, np.where(measured, x, np.inf).min(axis=0, initial=np.inf))
        self._high = np.maximum(self._high, np.where(measured, x, -np.inf).max(axis=0, initial=-np.inf))

    def _count_silences(self, age: NDArray[np.uint8], use: NDArray[np.bool_]) -> None:
        """A silence ends where the age falls or the rows end; its length is the age there. Never-measured does not count."""
        following = np.vstack((age[1:], np.zeros((1, age.shape[1]), np.uint8)))
        ends = (age > 0) & (age < NEVER) & (following <= age) & use[:, None]
        for tag in np.flatnonzero(ends.any(axis=0)):
            self._silences[tag] += np.bincount(age[ends[:, tag], tag], minlength=NEVER + 1)

    def finish(self) -> None:
        """Turn what was gathered into ``center_``, ``scale_`` and ``hold_``."""
        self.center_ = self._mean
        deviation = np.sqrt(np.divide(self._m2, self._count, out=np.zeros_like(self._m2), where=self._count > 0))
        self.scale_ = np.where(self._high > self._low, np.where(deviation > 0, deviation, 1.0), 1.0)
        total = self._silences.cumsum(axis=1)
        some = total[:, -1] > 0
        self.hold_ = np.where(some, (total >= 0.95 * total[:, -1:]).argmax(axis=1), 0).astype(np.uint8)

    @property
    def fitted_tags(self) -> NDArray[np.bool_]:
        """Which tags had a measured value in the rows seen."""
        return np.asarray(self._count > 0)

    def transform(self, held: NDArray[np.float32]) -> NDArray[np.float32]:
        """Held rows ``(n, C)`` scaled, linear to 4 deviations and logarithmic beyond; a missing value becomes the mean.

        Hard clipping would make every large deviation look alike; none at all lets one tag drown the others.
        """
        z = (held.astype(np.float64) - self.center_) / self.scale_
        z = np.where(np.isnan(z), 0.0, z)
        if self.compress:
            size = np.abs(z)
            z = np.where(size > _LINEAR, np.sign(z) * (_LINEAR + np.log1p(np.maximum(size - _LINEAR, 0))), z)
        return z.astype(np.float32)

    def absent(self, age: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which values are older than their tag's silences ever were in the training rows."""
        return np.asarray(age > self.hold_)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""
        arrays = {"center": self.center_, "scale": self.scale_, "hold": self.hold_}
        return {"compress": self.compress, "audit": self.audit_.to_dict()}, arrays

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> RowPreparer:
        """The preparer from ``to_state``."""
        preparer = cls(compress=bool(settings["compress"]))
        preparer.audit_ = RowAudit.from_dict(settings["audit"])
        preparer.center_, preparer.scale_, preparer.hold_ = arrays["center"], arrays["scale"], arrays["hold"]
        return preparer

"""Scores of windows that say which are worth a person's look: stability, novelty, energy and their sum (METHODS S15 to S18)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: The scores of a window, in the order of a composite's columns, and the weights that seed 000 prints for them.
SCORES = ("stability", "novelty", "energy")
WEIGHTS = (0.5, 1.0, 0.8)
#: Correlation below which two scores with weights of the same sign take each other away.
_CANCEL = -0.9
#: A radius below this share of the largest is rounding, not an extent.
_NO_EXTENT = 1e-6


def centre_cosine(points: NDArray[np.floating], centres: NDArray[np.floating], ids: NDArray[np.integer]) -> Floats:
    """Cosine of ``points (n, d)`` to the centres ``(K, d)`` of their own clusters ``ids (n,)``, ``(n,)`` (METHODS S15).

    The seed prints this as "stability"; it says nothing about time, for which there is ``recent_share``. A point or centre
    at the origin has no direction and gets 0. Raises ValueError where shapes do not fit or a value is not finite.

    >>> centre_cosine(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[1.0, 0.0]]), np.array([0, 0])).tolist()
    [0.6, 0.0]
    """
    if points.ndim != 2 or centres.ndim != 2 or points.shape[1] != centres.shape[1] or len(ids) != len(points):
        raise ValueError(
            f"points, centres, ids: expected (n, d), (K, d), (n,), got {points.shape}, {centres.shape}, {ids.shape}"
        )
    own = _directions(centres, "centres")[ids]
    return np.clip((_directions(points, "points") * own).sum(axis=1), -1, 1)


def _directions(given: NDArray[np.floating], name: str) -> Floats:
    """Rows at length 1, those at the origin as they are; scaled first, so that no square overflows."""
    if not np.isfinite(given).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    vectors = given.astype(np.float64)
    vectors /= _one_where_zero(np.abs(vectors).max(axis=1, initial=0))[:, None]
    return vectors / _one_where_zero(np.linalg.norm(vectors, axis=1))[:, None]


def _one_where_zero(values: Floats) -> Floats:
    return np.where(values > 0, values, 1.0)


def recent_share(ids: NDArray[np.integer], asset_starts: NDArray[np.bool_], window: int) -> Floats:
    """Share of the last ``window`` windows, this one included, that are in the same cluster, ``(n,)`` (METHODS S15).

    ``ids (n,)`` in time order; ``asset_starts (n,)`` marks the first window of each asset, before which nothing counts. Near
    a start the share is of the windows there are. Only earlier windows are looked at. Raises ValueError for a window below 1.

    >>> recent_share(np.array([0, 0, 1, 1]), np.array([True, False, False, False]), 3).round(2).tolist()
    [1.0, 1.0, 0.33, 0.67]
    """
    if window < 1:
        raise ValueError(f"window: expected at least 1, got {window}")
    if len(asset_starts) != len(ids):
        raise ValueError(f"asset_starts: expected one flag for each of {len(ids)} windows, got {len(asset_starts)}")
    number = np.arange(len(ids))
    since = number - np.maximum.accumulate(np.where(asset_starts, number, 0)) if len(ids) else number
    same = np.ones(len(ids))
    for back in range(1, min(window, len(ids))):
        same[back:] += (ids[back:] == ids[:-back]) & (since[back:] >= back)
    return same / np.minimum(since + 1, window)


class ModeStability:
    """``recent_share`` over a stream: blocks of one asset after another, cut anywhere (METHODS S15).

    >>> stability = ModeStability(3)
    >>> stability.add("P-1", np.array([0, 0])).tolist(), stability.add("P-1", np.array([1])).round(2).tolist()
    ([1.0, 1.0], [0.33])
    """

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"window: expected at least 1, got {window}")
        self.window = window
        self.asset: str | None = None
        self.before = np.empty(0, np.int64)

    def add(self, asset: str, ids: NDArray[np.integer]) -> Floats:
        """The shares of the next windows of ``asset`` with clusters ``ids (n,)``, ``(n,)``."""
        before = self.before if asset == self.asset else self.before[:0]
        joined = np.concatenate((before, np.asarray(ids, np.int64)))
        share = recent_share(joined, np.arange(len(joined)) == 0, self.window)[len(before) :]
        self.asset, self.before = asset, joined[max(len(joined) - self.window + 1, 0) :]
        return share


def filled_radius(radius: NDArray[np.floating]) -> Floats:
    """Cluster radii ``(K,)`` with the median of the others where a cluster has no extent; 1 where none has.

    >>> filled_radius(np.array([2.0, 0.0, 4.0])).tolist()
    [2.0, 3.0, 4.0]
    """
    radius = np.asarray(radius, np.float64)
    if not np.isfinite(radius).all() or (radius < 0).any():
        raise ValueError("radius: expected finite values of at least 0, got another")
    wide = radius > _NO_EXTENT * radius.max(initial=0)
    return np.where(wide, radius, np.median(radius[wide]) if wide.any() else 1.0)


def novelty(distance: NDArray[np.floating], radius: NDArray[np.floating] | float) -> Floats:
    """Distance to the own centre ``(n,)`` over the radius of that cluster ``(n,)`` (METHODS S16).

    A radius of 1 gives the norm that the seed prints; dividing keeps tight clusters from being ignored. A radius of 0
    leaves the distance as it is; ``filled_radius`` gives such a cluster a usual one. Raises ValueError below 0.

    >>> novelty(np.array([2.0, 2.0, 2.0]), np.array([1.0, 0.5, 0.0])).tolist()
    [2.0, 4.0, 2.0]
    """
    far, extent = np.asarray(distance).astype(np.float64), np.asarray(radius).astype(np.float64)
    for name, values in (("distance", far), ("radius", extent)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"{name}: expected finite values of at least 0, got another")
    return far / _one_where_zero(extent)


def energy(windows: NDArray[np.floating], weights: NDArray[np.floating] | None = None) -> Floats:
    """Root of the mean square of windows ``(B, T, C)`` in the tags' own units, ``(B,)`` (METHODS S17).

    ``weights (C,)`` say how much each tag's mean square counts; None counts all alike. Missing values (NaN) are left out,
    and a window with nothing measured has energy 0. Raises ValueError for infinite values, and for weights that are
    negative, not finite or all 0.

    >>> energy(np.array([[[3.0, 4.0]], [[0.0, 0.0]]])).round(3).tolist()
    [3.536, 0.0]
    >>> energy(np.array([[[3.0, 4.0]]]), np.array([0.0, 2.0])).tolist()
    [4.0]
    """
    windows = np.asarray(windows, np.float64)
    if windows.ndim != 3:
        raise ValueError(f"windows: expected (B, T, C), got {windows.shape}")
    if np.isinf(windows).any():
        raise ValueError("windows: expected finite values or NaN, got infinity")
    share = np.ones(windows.shape[2]) if weights is None else np.asarray(weights, np.float64)
    if share.shape != windows.shape[2:] or not np.isfinite(share).all() or (share < 0).any() or not share.any():
        raise ValueError(f"weights: expected {windows.shape[2]} of at least 0 and one above it, got {weights}")
    share = share / share.max()  # so that no product overflows
    measured = ~np.isnan(windows) & (share > 0)
    values = np.where(measured, windows, 0.0)
    largest = _one_where_zero(np.abs(values).max(axis=(1, 2), initial=0))
    squares = ((values / largest[:, None, None]) ** 2).sum(axis=1) @ share
    return largest * np.sqrt(squares / _one_where_zero(measured.sum(axis=1) @ share))


def row_energy(rows: NDArray[np.floating], weights: NDArray[np.float64]) -> tuple[Floats, Floats]:
    """Of rows ``(n, C)``: weighted sums of squares and of the weights that were measured, ``(n,)`` each.

    The root of the ratio of their sums over a window is its ``energy``. Squares of float32 values cannot overflow here.

    >>> squares, measured = row_energy(np.array([[3.0, 4.0], [np.nan, 2.0]]), np.array([1.0, 1.0]))
    >>> squares.tolist(), measured.tolist()
    ([25.0, 4.0], [2.0, 1.0])
    """
    share = weights / weights.max()
    exact = rows.astype(np.float64)
    exact *= exact
    squares = exact @ share
    if np.isfinite(squares).all():
        return squares, np.full(len(rows), share.sum())
    there = np.isfinite(exact)
    return np.where(there, exact, 0.0) @ share, there @ share


class Limits:
    """Smallest and largest of each score, kept, so that batches scaled by them are comparable (METHODS S18).

    ``low (S,)`` and ``high (S,)`` after ``fit``. Values beyond the limits are scaled beyond 0 and 1, not cut off.

    >>> limits = Limits().fit([np.array([[0.0, 5.0]]), np.array([[4.0, 5.0]])])
    >>> limits.scale(np.array([[1.0, 5.0], [8.0, 6.0]])).tolist()
    [[0.25, 0.0], [2.0, 0.0]]
    """

    def __init__(self) -> None:
        self.low, self.high = np.empty(0), np.empty(0)

    def fit(self, blocks: Iterable[NDArray[np.floating]]) -> Self:
        """Learn from streamed scores ``(B, S)``; raises ValueError without a row or with a value that is not finite."""
        self.low, self.high = np.empty(0), np.empty(0)
        for block in blocks:
            if not np.isfinite(block).all():
                raise ValueError("blocks: expected finite scores, got NaN or infinity")
            if not len(block):
                continue
            scores = np.asarray(block, np.float64)
            low, high = scores.min(axis=0), scores.max(axis=0)
            self.low = np.minimum(self.low, low) if len(self.low) else low
            self.high = np.maximum(self.high, high) if len(self.high) else high
        if not len(self.low):
            raise ValueError("blocks: expected scores to learn limits from, got none")
        return self

    def scale(self, scores: NDArray[np.floating]) -> Floats:
        """Scores ``(n, S)`` with the limits at 0 and 1; a score that was constant says nothing and becomes 0."""
        if not len(self.low):
            raise RuntimeError("Limits: expected fit() before use, found none")
        if scores.ndim != 2 or scores.shape[1] != len(self.low):
            raise ValueError(f"scores: expected {len(self.low)} columns, got {scores.shape}")
        moved = self.high > self.low
        # Halves, because the range of two finite numbers may be too large for one.
        width = np.where(moved, self.high / 2 - self.low / 2, 1.0)
        width = np.where(width > 0, width, 1.0)
        return np.where(moved, (np.asarray(scores, np.float64) / 2 - self.low / 2) / width, 0.0)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""
        return {}, {"low": self.low, "high": self.high}

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Limits:
        """The limits from ``to_state``; raises ValueError where they are no pairs of finite numbers in order."""
        made = cls()
        made.low, made.high = (np.array(arrays[name], dtype=np.float64) for name in ("low", "high"))
        if made.low.shape != made.high.shape or not np.isfinite([made.low, made.high]).all():
            raise ValueError("arrays: expected finite low and high of equal length, got others")
        if (made.low > made.high).any():
            raise ValueError("arrays: expected low at or below high, got one above")
        return made


@dataclass(frozen=True)
class Composite:
    """The weighted sum of scaled scores ``score (n,)``, and what to know about it in words ("" for nothing)."""

    score: Floats
    warning: str = ""


def composite(scaled: NDArray[np.floating], weights: Sequence[float] = WEIGHTS) -> Composite:
    """Stability, novelty and energy, scaled, ``(n, 3)``, as one number by their weights (METHODS S18).

    Warns where stability and novelty correlate below -0.9 under weights of the same sign: what one says the other takes
    away. Raises ValueError for weights that are not three, not finite or all 0, and for scores that are not finite.

    >>> composite(np.array([[1.0, 0.5, 1.0]])).score.round(6).tolist()
    [1.8]
    """
    exact, share = np.asarray(scaled).astype(np.float64), np.asarray(weights, np.float64)
    if share.shape != (len(SCORES),) or not np.isfinite(share).all() or not share.any():
        expected = f"one for each of {', '.join(SCORES)}, not all 0"
        raise ValueError(f"weights: expected {expected}, got {tuple(weights)}")
    if exact.ndim != 2 or exact.shape[1] != len(SCORES) or not np.isfinite(exact).all():
        raise ValueError(f"scaled: expected finite scores (n, {len(SCORES)}), got {exact.shape} or NaN or infinity")
    return Composite(exact @ share, _cancelling(exact, share))


def _cancelling(scaled: Floats, share: Floats) -> str:
    """A warning where stability and novelty nearly cancel."""
    first, second = scaled[:, 0], scaled[:, 1]
    if share[0] * share[1] <= 0 or len(scaled) < 3 or not (np.ptp(first) > 0 and np.ptp(second) > 0):
        return ""
    correlation = float(np.corrcoef(first, second)[0, 1])
    if not correlation < _CANCEL:
        return ""
    return (
        f"stability and novelty nearly cancel: their correlation is {correlation:.2f} and their weights "
        f"{share[0]:g} and {share[1]:g} have the same sign; give one of them 0 or the opposite sign"
    )

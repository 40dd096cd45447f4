"""Raw scores become ``-log10`` tail probabilities under held-back normal rows: 3.0 = one normal row in a thousand.

Inside the data the probability is empirical; over the last rows (5 % of them, at most 200) a generalised Pareto tail
carries on (peaks over threshold, Pickands 1975), because a threshold for one alert a week lies beyond any held-back
part. Neighbouring rows share most of their window, so ``n`` rows say less than ``n`` independent draws: rates hold on
average, and the spread around them is wider than that of ``n`` draws.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import TooFewWindows

#: No calibrated score is above this: beyond 1 in 10^30 a number says nothing more. From the second on scores approach it
#: ever more slowly instead of ending there, so that rows keep their order where a sensor is far out in all of them.
CAP, _BENDS = 30.0, 20.0
_TAIL_SHARE = 0.05
#: Where the data reach further the empirical curve is nearer the truth than a tail of three numbers.
_TAIL_ROWS = 200
_KNOTS = 2000
_FEW = 20
_SHAPE = (0.0, 0.5)
_STILL = 1e-3


def pareto_tail(excess: NDArray[np.float64]) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto distribution by probability-weighted moments (Hosking & Wallis 1987).

    ``excess (n,)`` are the amounts by which scores pass the tail's start. The shape is kept between 0 (exponential) and
    0.5 (heavy, finite mean): a bounded tail would call anything beyond the data impossible.
    """
    x = np.sort(excess)
    n = len(x)
    mean = float(x.mean())
    weighted = float(np.mean(x * (n - 1 - np.arange(n)) / max(n - 1, 1)))
    if mean <= 0 or mean <= 2 * weighted:
        return _SHAPE[1], max(mean, 0.0) / 2
    shape = float(np.clip(2 - mean / (mean - 2 * weighted), *_SHAPE))
    return shape, mean * (1 - shape)


def _tail(x: NDArray[np.float64], start: float) -> tuple[float, float]:
    """Shape and scale beyond ``start`` of sorted scores ``x (n,)``; the scale is never zero.

    With hardly a row beyond ``start`` a shape cannot be told: the tail is then exponential and as wide as the upper half
    of the scores, which errs towards small scores. Scores that never differed count a change by their own size.
    """
    excess = x[x > start] - start
    upper = x - np.median(x)
    if len(x) >= _FEW and len(excess):
        shape, scale = pareto_tail(excess)
    else:
        shape, scale = _SHAPE[0], float(upper[upper >= 0].mean())
    if scale <= 0:
        scale = abs(start) * _STILL or 1.0
    return shape, max(scale, float(np.finfo(np.float64).tiny))


def _bent(decades: NDArray[np.float64]) -> NDArray[np.float64]:
    """As they are up to 20, then with a falling slope, begun at 1, towards 30.

    >>> _bent(np.array([3.0, 20.0, 30.0, 1000.0, np.inf])).round(2).tolist()
    [3.0, 20.0, 25.0, 29.9, 30.0]
    """
    room = CAP - _BENDS
    return np.minimum(decades, CAP - room * room / (np.maximum(decades - _BENDS, 0) + room))


class TailCalibrator:
    """Monotone map from raw scores to ``-log10`` tail probabilities; a bounded table and three tail numbers.

    >>> calibrator = TailCalibrator().fit(np.arange(1000.0))
    >>> calibrator.transform(np.array([500.0, 900.0])).round(2).tolist()
    [0.3, 1.0]
    """

    def __init__(self) -> None:
        self.n_ = 0
        self._scores = np.empty(0)
        self._log_p = np.empty(0)
        self._tail = (0.0, 0.0, 0.0)  # start, shape, scale

    def fit(self, scores: NDArray[np.float64]) -> Self:
        """Learn from raw scores ``(n,)`` of held-back normal rows; raises ValueError without a finite one."""
        x = np.sort(np.asarray(scores, dtype=np.float64)[np.isfinite(scores)])
        if not len(x):
            raise TooFewWindows("scores: expected at least one finite score of a held-back normal row, got none")
        self.n_ = n = len(x)
        values, first = np.unique(x, return_index=True)
        log_p = -np.log10((n - first + 1) / (n + 1))  # n - first rows are at or above each value
        # The tail starts above rows that pile up on one value (a pegged sensor): they are not part of it.
        tail_rows = min(int(n * _TAIL_SHARE), _TAIL_ROWS) if n >= _FEW else 1
        few_above = n - first <= tail_rows
        last = int(few_above.argmax()) if few_above.any() else len(values) - 1
        self._scores, self._log_p = _thinned(values[: last + 1], log_p[: last + 1])
        self._tail = (float(values[last]), *_tail(x, float(values[last])))
        return self

    def transform(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raw scores ``(n,)`` → ``-log10`` tail probability, from 20 on bent towards 30; NaN stays NaN, +inf is 30."""
        if not self.n_:
            raise ValueError("calibrator: expected a fitted one, got a new one; call fit first")
        raw = np.asarray(scores, dtype=np.float64)
        start, shape, scale = self._tail
        inside = np.interp(raw, self._scores, self._log_p)
        with np.errstate(over="ignore"):  # an overflow is a score beyond any tail: the cap
            z = np.maximum(raw - start, 0) / scale
            decades = (np.log1p(shape * z) / shape if shape > 1e-9 else z) / np.log(10)
        return np.where(np.isnan(raw), np.nan, _bent(inside + decades))

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""
        return {"n": self.n_, "tail": list(self._tail)}, {"scores": self._scores, "log_p": self._log_p}

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> TailCalibrator:
        """The calibrator from ``to_state``."""
        calibrator = cls()
        calibrator.n_ = int(settings["n"])
        start, shape, scale = settings["tail"]
        calibrator._tail = (float(start), float(shape), float(scale))
        calibrator._scores, calibrator._log_p = arrays["scores"], arrays["log_p"]
        return calibrator


def _thinned(
    values: NDArray[np.float64], log_p: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most ``_KNOTS`` points of the curve, both ends kept."""
    if len(values) <= _KNOTS:
        return values, log_p
    kept = np.unique(np.linspace(0, len(values) - 1, _KNOTS).round().astype(int))
    return values[kept], log_p[kept]

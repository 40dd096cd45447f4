"""The numbers behind threshold rules: points of a precision–recall curve, quantiles of normal rows, and their intervals.

Pure functions; ``anomaly.scores.thresholds`` makes thresholds with a past of them (METHODS S61, S63).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from anomaly.intervals import from_flags

#: Fewer events than this give no interval, and a note.
FEW_EVENTS = 3
_DRAWS = 200
#: Shares are quotients of counts: one that equals the floor may miss it by its rounding.
_ROUNDING = 1e-12

#: Of scores sorted from high to low, which are positive, and how often each counts, the score to alert from.
Pick = Callable[[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]], float]


def above_all(scores: NDArray[np.float64]) -> float:
    """The next float32 above every score: scores are written as float32, and none may seem to reach it."""
    return float(np.nextafter(np.float32(scores.max()), np.float32(np.inf)))


def point_counts(
    falling: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Each distinct score that counts, of a falling series, with the hits and the rows flagged from it up, ``(k,)`` each.

    >>> point_counts(np.array([2.0, 1.0, 1.0]), np.array([True, False, True]), np.ones(3))[1:]
    (array([1., 2.]), array([1., 3.]))
    """
    hits, flagged = np.cumsum(weight * positive), np.cumsum(weight)
    ends = np.append(falling[1:] < falling[:-1], True)  # rows of equal score are flagged together
    values, hits, flagged = falling[ends], hits[ends], flagged[ends]
    counts = np.diff(flagged, prepend=0) > 0  # rows that were not drawn are no points
    return values[counts], hits[counts], flagged[counts]


def at_f_beta(beta: float) -> Pick:
    """Picks the score of the largest F-beta, of equals the highest.

    With TP hits among A flagged rows and P positives in all, F-beta is (1 + beta²) TP / (beta² P + A).
    """

    def pick(falling: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
        values, hits, flagged = point_counts(falling, positive, weight)
        return float(values[((1 + beta**2) * hits / (beta**2 * hits[-1] + flagged)).argmax()])

    return pick


def at_precision(floor: float) -> Pick:
    """Picks the lowest score whose precision is at least ``floor``; where none is, a number above every score."""

    def pick(falling: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
        values, hits, flagged = point_counts(falling, positive, weight)
        good = hits >= (floor - _ROUNDING) * flagged
        return float(values[good][-1]) if good.any() else above_all(falling)

    return pick


def at_recall(floor: float) -> Pick:
    """Picks the highest score whose recall is at least ``floor``; the lowest score of all has recall 1."""

    def pick(falling: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
        values, hits, _ = point_counts(falling, positive, weight)
        return float(values[(hits >= (floor - _ROUNDING) * hits[-1]).argmax()])

    return pick


def picked(scores: NDArray[np.float64], positive: NDArray[np.bool_], pick: Pick) -> float:
    """What ``pick`` takes of scores ``(n,)`` in any order, each row counting once."""
    order = np.argsort(-scores, kind="stable")
    return pick(scores[order], positive[order], np.ones(len(scores)))


def best_precision(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The largest precision that any threshold reaches on scores ``(n,)``.

    >>> best_precision(np.array([0.9, 0.5, 0.1]), np.array([False, True, False]))
    0.5
    """
    order = np.argsort(-scores, kind="stable")
    _, hits, flagged = point_counts(scores[order], positive[order], np.ones(len(scores)))
    return float((hits / flagged).max())


def event_interval(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], pick: Pick, seed: int
) -> tuple[float | None, float | None]:
    """2.5 % and 97.5 % of what ``pick`` takes when whole events, and the normal rows after each, are drawn again.

    ``scores (n,)`` and ``positive (n,)`` in time order. With fewer than 3 events there is no interval: None, None.
    """
    runs = from_flags(positive)
    if len(runs) < FEW_EVENTS:
        return None, None
    # one group per event, up to the next event's first row: an event brings its quiet time with it
    group = np.searchsorted(runs[1:, 0], np.arange(len(scores)), side="right")
    order = np.argsort(-scores, kind="stable")
    falling, hit, group = scores[order], positive[order], group[order]
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(_DRAWS):
        times_drawn = np.bincount(rng.integers(0, len(runs), len(runs)), minlength=len(runs)).astype(np.float64)
        drawn.append(pick(falling, hit, times_drawn[group]))
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def normal_quantile(scores: NDArray[np.float64], rate: float) -> float:
    """The lowest score that at most a share ``rate`` of normal rows ``(n,)`` reach; above them all where rows pile up.

    The k-th largest of n scores is reached by k in n + 1 fresh rows on average, so k is the whole part of
    rate * (n + 1). Raises ValueError where that is 0: n rows cannot show so rare a score.

    >>> normal_quantile(np.arange(99.0), 0.1)
    89.0
    """
    allowed = _allowed(len(scores), rate)
    if allowed < 1:
        raise ValueError(f"rate: expected at least 1 in {len(scores) + 1} for {len(scores)} rows, got {rate:g}")
    falling = np.sort(scores)[::-1]
    values, _, flagged = point_counts(falling, np.zeros(len(scores), dtype=bool), np.ones(len(scores)))
    within = np.flatnonzero(flagged <= allowed)
    return float(values[within[-1]]) if len(within) else above_all(scores)


def holds_rate(n: int, rate: float) -> bool:
    """Whether ``n`` rows are enough for the quantile of ``rate``."""
    return _allowed(n, rate) >= 1


def _allowed(n: int, rate: float) -> int:
    return int(np.floor(rate * (n + 1) + _ROUNDING * n))


def quantile_interval(scores: NDArray[np.float64], rate: float) -> tuple[float, float | None]:
    """95 % interval of the score that a share ``rate`` of normal rows pass, from two of the ``(n,)`` scores themselves.

    How many of n rows lie above the true quantile is a binomial count, whatever the scores' distribution; rows count as
    independent draws, so for neighbours that share most of their window the interval is too narrow. None where the
    upper end lies beyond all rows.
    """
    fewest, most = (int(binom.ppf(share, len(scores), rate)) for share in (0.025, 0.975))
    falling = np.sort(scores)[::-1]
    return float(falling[min(most, len(scores) - 1)]), float(falling[fewest - 1]) if fewest else None

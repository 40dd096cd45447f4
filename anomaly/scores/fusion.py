"""Several calibrated scores become one. Each is ``-log10`` of a tail probability, so 2.0 means the same in all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RULES = ("mean", "max", "fisher", "weighted")
#: The rule of a labelled head, which joins by itself; not to be chosen.
RAISED = "raised"


def fuse(scores: NDArray[np.float64], rule: str = "mean", weights: Sequence[float] = ()) -> NDArray[np.float64]:
    """Tail scores ``(n, D)`` of D detectors → one ``(n,)``; NaN where any is NaN.

    ``mean``: of the log probabilities, the geometric mean of the probabilities. ``max``: the most alarmed detector.
    ``fisher``: the joint tail probability if detectors were independent (Fisher 1925); they are not, so its numbers are
    bold until they are calibrated again. ``weighted``: a mean by stated ``weights (D,)``. ``raised``: the mean of all but the
    last, which with its weight may raise it where it is higher, and never lowers it: it has learned from some events, and
    what it has not seen is none of its business.
    Raises ValueError for an unknown rule, and weights that are negative, all zero or of another number.

    >>> fuse(np.array([[1.0, 3.0]]), "mean").tolist(), fuse(np.array([[1.0, 3.0]]), "max").tolist()
    ([2.0], [3.0])
    >>> fuse(np.array([[2.0, 4.0], [2.0, 0.0]]), "raised", (0.5, 0.5)).tolist()
    [3.0, 2.0]
    """
    return np.asarray(contributions(scores, rule, weights).sum(axis=1))


def contributions(
    scores: NDArray[np.float64], rule: str = "mean", weights: Sequence[float] = ()
) -> NDArray[np.float64]:
    """Each detector's part of the fused score, ``(n, D)``; rows add up to ``fuse``.

    >>> contributions(np.array([[1.0, 3.0]]), "weighted", (3, 1)).tolist()
    [[0.75, 0.75]]
    """
    given = np.asarray(scores, dtype=np.float64)
    count = given.shape[1]
    if rule == "mean":
        return given / count
    if rule == "weighted":
        return given * checked_weights(weights, count)
    if rule == RAISED:
        own = float(checked_weights(weights, count)[-1])
        others = given[:, :-1] / (count - 1)
        used = np.where(given[:, -1] > others.sum(axis=1), own, 0.0)
        return np.column_stack((others * (1 - used)[:, None], given[:, -1] * used + 0 * others.sum(axis=1)))
    if rule == "max":
        # NaN counts as the highest, so that it stays.
        highest = np.where(np.isnan(given), np.inf, given).argmax(axis=1)
        return np.where(np.arange(count) == highest[:, None], given, 0.0)
    if rule == "fisher":
        total = given.sum(axis=1)
        # Tail of chi-squared with 2 D degrees of freedom in closed form: the probability itself ends at 10^-308.
        half = np.log(10) * total
        terms = np.cumprod([np.ones_like(half), *(half / j for j in range(1, count))], axis=0)
        fused = total - np.log10(terms.sum(axis=0))
        return given * np.divide(fused, total, out=np.zeros_like(total), where=total > 0)[:, None] + 0 * total[:, None]
    raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}")


def checked_weights(weights: Sequence[float], count: int) -> NDArray[np.float64]:
    """``weights`` scaled to a sum of 1, ``(count,)``; refuses what ``fuse`` says."""
    own = np.asarray(weights, dtype=np.float64)
    if own.shape != (count,):
        raise ValueError(f"weights: expected one for each of {count} detectors, got {own.size}")
    if not np.isfinite(own).all() or (own < 0).any() or own.sum() <= 0:
        raise ValueError(f"weights: expected numbers of at least 0 that are not all 0, got {own.tolist()}")
    return np.asarray(own / own.sum())

"""Mean, covariance and scale of normal embeddings, safe where a dimension never moves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Smallest eigenvalue of a shrunk covariance, as a share of their mean.
_LEAST_EIGENVALUE = 1e-6


def safe_scale(deviation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Deviations ``(d,)`` to divide by: a dimension that never moved takes the largest, 1 where none moved.

    It would turn rounding into distance.

    >>> safe_scale(np.array([2.0, 0.0])).tolist(), safe_scale(np.zeros(1)).tolist()
    ([2.0, 2.0], [1.0])
    """
    largest = deviation.max(initial=0) or 1.0
    return np.where(deviation > 1e-6 * largest, deviation, largest)


class Moments:
    """Mean ``(d,)`` and covariance ``(d, d)`` of rows in one pass, divided by the number of rows.

    >>> moments = Moments()
    >>> moments.add(np.array([[1.0], [2.0]])); moments.add(np.array([[6.0]]))
    >>> moments.count, moments.mean.tolist(), moments.covariance.round(3).tolist()
    (3, [3.0], [[4.667]])
    """

    def __init__(self) -> None:
        self.count = 0
        self._guess, self._total, self._products = np.zeros(0), np.zeros(0), np.zeros((0, 0))

    def add(self, rows: NDArray[np.floating]) -> None:
        """Take part in the sums: ``(n, d)``."""
        if not len(rows):
            return
        exact = rows.astype(np.float64)
        if not self.count:
            # Sums of deviations from a first guess keep their digits where a level is far from zero.
            self._guess, self._total = exact.mean(axis=0), np.zeros(exact.shape[1])
            self._products = np.zeros((exact.shape[1],) * 2)
        exact -= self._guess
        self.count += len(rows)
        self._total += exact.sum(axis=0)
        self._products += exact.T @ exact

    @property
    def mean(self) -> NDArray[np.float64]:
        return np.asarray(self._guess + self._total / self.count)

    @property
    def covariance(self) -> NDArray[np.float64]:
        shift = self._total / self.count
        return np.asarray(self._products / self.count - np.outer(shift, shift))


def shrunk(covariance: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """``covariance (d, d)`` of ``count`` rows drawn towards the mean variance in every direction (Chen et al. 2010, OAS).

    The fewer rows for its dimensions, the nearer to that ball; never outside of the two. Needs no further pass.

    >>> shrunk(np.diag([2.0, 0.0]), 1).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    d = len(covariance)
    level = np.trace(covariance) / d
    alpha = np.mean(covariance**2)
    most = (count + 1) * (alpha - level**2 / d)
    share = min((alpha + level**2) / most, 1.0) if most > 0 else 1.0
    return np.asarray((1 - share) * covariance + share * level * np.eye(d))


def whitening(covariance: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``scale (d,)`` and ``matrix (d, d)``: the length of ``((x − mean) / scale) @ matrix`` is Mahalanobis' distance.

    Dimensions are brought to one size, their correlations shrunk (``shrunk``), and no eigenvalue left below a millionth of
    their mean. A dimension that never moved counts as one that moves as the largest does, on its own.
    """
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    scale = safe_scale(deviation)
    relative = covariance / np.outer(scale, scale)
    np.fill_diagonal(relative, 1.0)
    values, vectors = np.linalg.eigh(shrunk(relative, count))
    return scale, vectors / np.sqrt(np.maximum(values, _LEAST_EIGENVALUE * values.mean()))

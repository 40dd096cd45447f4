"""Scores without a model of ours, to print beside every figure (DESIGN promise 7; energy: DETECTION section 5).

Arrays in, arrays out: ``train (n, C)`` prepared normal rows, ``rows (m, C)`` prepared rows → ``(m,)`` float64, higher is
more anomalous, NaN where a row holds a non-finite value. Nothing is fitted on anything but ``train``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

Rows = NDArray[np.floating]

#: Rows compared with the bank at once; bounds the memory of the distances.
_CHUNK = 2048


def energy_scores(rows: Rows) -> NDArray[np.float64]:
    """Mean squared standardised value of each row.

    >>> energy_scores(np.array([[3.0, 4.0], [0.0, np.nan]])).tolist()
    [12.5, nan]
    """
    return _where_finite(rows, lambda usable: np.square(usable).mean(axis=1))


def pca_scores(train: Rows, rows: Rows, variance: float = 0.9) -> NDArray[np.float64]:
    """Squared distance to the principal subspace that holds ``variance`` of the training rows, per tag.

    At least one direction is left outside the subspace: with all of them inside every residual would be zero.
    """
    if not 0 < variance <= 1:
        raise ValueError(f"variance: expected above 0 and at most 1, got {variance}")
    known = _training_rows(train)
    mean = known.mean(axis=0)
    centred = known - mean
    sizes, axes = np.linalg.eigh(centred.T @ centred)
    sizes, axes = np.clip(sizes[::-1], 0, None), axes[:, ::-1]
    total = sizes.sum()
    inside = int(np.searchsorted(np.cumsum(sizes), variance * total * (1 - 1e-12))) + 1 if total > 0 else 0
    outside = axes[:, min(inside, known.shape[1] - 1) :]
    return _where_finite(rows, lambda usable: np.square((usable - mean) @ outside).sum(axis=1) / known.shape[1])


def knn_scores(train: Rows, rows: Rows, k: int = 5, bank: int = 5000, seed: int = 0) -> NDArray[np.float64]:
    """Mean distance to the ``k`` nearest of at most ``bank`` training rows, drawn by ``seed``."""
    known = _training_rows(train)
    if k < 1 or bank < 1:
        raise ValueError(f"k, bank: expected at least 1, got {k} and {bank}")
    if len(known) > bank:
        known = known[np.sort(np.random.default_rng(seed).choice(len(known), bank, replace=False))]
    nearest = NearestNeighbors(n_neighbors=min(k, len(known)), algorithm="brute").fit(known)

    def distances(usable: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = [nearest.kneighbors(usable[i : i + _CHUNK])[0].mean(axis=1) for i in range(0, len(usable), _CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0)

    return _where_finite(rows, distances)


def random_flags(n: int, rate: float, seed: int = 0) -> NDArray[np.bool_]:
    """Flags ``(n,)`` on exactly ``round(n * rate)`` rows drawn by lot.

    >>> int(random_flags(10, 0.3).sum())
    3
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: expected between 0 and 1, got {rate}")
    flags = np.zeros(n, dtype=bool)
    flags[np.random.default_rng(seed).choice(n, round(n * rate), replace=False)] = True
    return flags


def _training_rows(train: Rows) -> NDArray[np.float64]:
    """The finite rows of ``train`` in double precision; raises ValueError where there is none."""
    known = np.asarray(train, dtype=np.float64)
    known = known[np.isfinite(known).all(axis=1)]
    if not len(known):
        raise ValueError("train: expected at least one row without missing values, got none")
    return known


def _where_finite(rows: Rows, rule: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
    values = np.asarray(rows, dtype=np.float64)
    usable = np.isfinite(values).all(axis=1)
    scores = np.full(len(values), np.nan)
    scores[usable] = rule(values[usable])
    return scores

"""Which rows stand for all: a memory bank smaller than the normal windows it remembers (METHODS S52)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.neighbours import nearest_in_bank

_ROUNDS = 10


def _checked(points: NDArray[np.floating], k: int) -> None:
    if points.ndim != 2 or not len(points):
        raise ValueError(f"points: expected rows (n, d), got shape {points.shape}")
    if k < 1:
        raise ValueError(f"k: expected at least 1 row to keep, got {k}")


def random_coreset(points: NDArray[np.floating], k: int, seed: int) -> NDArray[np.int64]:
    """``min(k, n)`` positions of ``points (n, d)``, every row as likely as any other, ascending.

    >>> random_coreset(np.zeros((3, 1)), 5, seed=0).tolist()
    [0, 1, 2]
    """
    _checked(points, k)
    return np.sort(np.random.default_rng(seed).choice(len(points), min(k, len(points)), replace=False))


def k_centre_greedy(points: NDArray[np.floating], k: int, seed: int) -> NDArray[np.int64]:
    """``min(k, n)`` positions of ``points (n, d)``, each the farthest from those before it; in the order chosen.

    No row is farther from the chosen than twice what the best choice of k rows reaches (Gonzalez 1985). O(n k d) time,
    memory of a copy of the points. Rows are never chosen twice: with fewer distinct rows than k, duplicates follow.
    Raises ValueError for k below 1 or no points. (METHODS S52)

    >>> k_centre_greedy(np.array([[0.0], [0.1], [9.0]]), 2, seed=0)[1].item() in (0, 2)
    True
    """
    _checked(points, k)
    if k >= len(points):
        return np.arange(len(points))
    # Products of rows far from zero would lose the digits in which they differ.
    rows = np.asarray(points - points.mean(axis=0), dtype=points.dtype)
    norms = np.einsum("nd,nd->n", rows, rows)
    chosen = np.empty(k, np.int64)
    chosen[0] = np.random.default_rng(seed).integers(len(rows))
    gap = np.full(len(rows), np.inf, rows.dtype)
    for number in range(1, k):
        last = chosen[number - 1]
        np.minimum(gap, np.maximum(norms + norms[last] - 2 * (rows @ rows[last]), 0), out=gap)
        gap[last] = -1
        chosen[number] = gap.argmax()
    return chosen


def kmeans_coreset(points: NDArray[np.floating], k: int, seed: int) -> NDArray[np.int64]:
    """``min(k, n)`` positions of ``points (n, d)``: the row nearest to each centre of k-means, ascending.

    Ten rounds from rows drawn at random. Centres that share a nearest row leave places, which rows drawn at random take.
    Memory is bounded by tiles. Raises ValueError for k below 1 or no points. (METHODS S52)

    >>> kmeans_coreset(np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]]), 2, seed=1).tolist()
    [1, 4]
    """
    _checked(points, k)
    if k >= len(points):
        return np.arange(len(points))
    rng = np.random.default_rng(seed)
    rows = np.asarray(points, dtype=np.float32)
    centres = rows[rng.choice(len(rows), k, replace=False)]
    for _ in range(_ROUNDS):
        owner = nearest_in_bank(rows, centres, 1)[1][:, 0]
        counts = np.bincount(owner, minlength=k)
        order = np.argsort(owner, kind="stable")
        held = np.flatnonzero(counts)
        starts = (np.cumsum(counts) - counts)[held]
        sums = np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)
        centres[held] = sums / counts[held, None]
    chosen = np.unique(nearest_in_bank(centres, rows, 1)[1])
    rest = np.setdiff1d(np.arange(len(rows)), chosen)
    return np.sort(np.concatenate((chosen, rng.choice(rest, k - len(chosen), replace=False))))


#: Every rule that chooses rows, by name: points ``(n, d)``, rows to keep and a seed in, positions out.
CORESETS: dict[str, Callable[[NDArray[np.floating], int, int], NDArray[np.int64]]] = {
    "random": random_coreset,
    "greedy": k_centre_greedy,
    "kmeans": kmeans_coreset,
}

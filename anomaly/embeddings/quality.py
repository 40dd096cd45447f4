"""How good clusters and a space are: inertia, silhouette with its interval, retrieval, stability (METHODS S9, S12, S14)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.embeddings.blocks import checked, streamed
from anomaly.embeddings.clusters import nearest_centres

_Z95 = 1.959963984540054
_AT_ONCE = 256
_FEWEST = 2


@dataclass(frozen=True)
class Silhouette:
    """A mean silhouette, -1 to 1, from ``rows`` sampled rows, with its 95 % interval; ``None`` and a ``reason`` without one."""

    value: float | None
    low: float | None
    high: float | None
    rows: int
    reason: str = ""

    def row(self) -> dict[str, Any]:
        """As plain values, for a report."""
        return asdict(self)


def streamed_inertia(blocks: Iterable[NDArray[np.float32]], centres: NDArray[np.float32]) -> float:
    """Sum of squared distances of all rows ``(B, d)`` to the nearest of ``centres (k, d)``, in one pass (METHODS S12).

    Raises ValueError for another width and non-finite rows.

    >>> streamed_inertia([np.array([[0.0], [5.0]], np.float32)], np.array([[1.0], [3.0]], np.float32))
    5.0
    """
    total = 0.0
    for block in streamed(blocks, centres.shape[1]):
        gap = block.astype(np.float64) - centres[nearest_centres(block, centres)[0]]
        total += float((gap**2).sum())
    return total


def silhouette(
    points: NDArray[np.float32], ids: NDArray[np.integer[Any]], sample: int = 1000, seed: int = 7
) -> Silhouette:
    """Mean silhouette (Rousseeuw 1987) of ``points (n, d)`` in clusters ``ids (n,)`` from ``sample`` drawn rows (METHODS S12).

    Each drawn row is compared with all ``n`` rows, so its own value is exact and the mean has no bias; the interval is
    the normal one for a draw without replacement, and closes on the value when every row is drawn. Rows alone in their
    cluster count 0. One cluster, or as many as rows, gives a reason and no number. Raises ValueError for unequal lengths.
    """
    rows = checked(points, "points")
    if len(ids) != len(rows):
        raise ValueError(f"ids: expected one for each of {len(rows)} points, got {len(ids)}")
    if sample < _FEWEST:
        raise ValueError(f"sample: expected at least {_FEWEST} rows, got {sample}")
    names, place = np.unique(ids, return_inverse=True)
    if len(names) < _FEWEST:
        return Silhouette(None, None, None, 0, f"{len(names)} cluster: there is no other to compare with")
    if len(names) == len(rows):
        return Silhouette(None, None, None, 0, "every row is a cluster of its own")
    drawn = np.random.default_rng(seed).choice(len(rows), min(sample, len(rows)), replace=False)
    values = silhouette_of(rows, place, np.sort(drawn))
    mean, left = float(values.mean()), 1 - len(drawn) / len(rows)
    half = _Z95 * float(values.std(ddof=1)) * np.sqrt(left / len(drawn))
    return Silhouette(mean, float(max(mean - half, -1)), float(min(mean + half, 1)), len(drawn))


def silhouette_of(
    points: NDArray[np.float32], place: NDArray[np.int64], chosen: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Silhouettes ``(m,)`` of the rows ``chosen (m,)`` among all ``points (n, d)``; ``place (n,)`` counts clusters from 0."""
    exact = points.astype(np.float64)
    exact -= exact.mean(axis=0)
    squares, counts = (exact**2).sum(axis=1), np.bincount(place)
    member = np.zeros((len(place), len(counts)))
    member[np.arange(len(place)), place] = 1
    values = np.empty(len(chosen))
    for at in range(0, len(chosen), _AT_ONCE):
        part = chosen[at : at + _AT_ONCE]
        own, every = place[part], np.arange(len(part))
        apart = squares[part, None] + squares - 2 * (exact[part] @ exact.T)
        apart[every, part] = 0
        sums = np.sqrt(np.maximum(apart, 0)) @ member
        inside = sums[every, own] / np.maximum(counts[own] - 1, 1)
        sums /= counts
        sums[every, own] = np.inf
        outside = sums.min(axis=1)
        largest = np.maximum(inside, outside)
        found = np.divide(outside - inside, largest, out=np.zeros(len(part)), where=largest > 0)
        values[at : at + _AT_ONCE] = np.where(counts[own] > 1, found, 0)
    return values


def retrieval(
    points: NDArray[np.float32],
    labels: NDArray[Any],
    neighbours: int = 10,
    sample: int = 500,
    seed: int = 7,
) -> float:
    """Share of a row's nearest rows (itself left out) that have its label, a mean over ``sample`` drawn rows (METHODS S9).

    ``points (n, d)``, ``labels (n,)``; with fewer than ``neighbours`` other rows, all of them count. Raises ValueError
    for unequal lengths and fewer than two rows.
    """
    rows = checked(points, "points")
    if len(labels) != len(rows) or len(rows) < _FEWEST:
        raise ValueError(f"labels: expected one for each of at least 2 points, got {len(labels)} for {len(rows)}")
    drawn = np.random.default_rng(seed).choice(len(rows), min(sample, len(rows)), replace=False)
    exact = rows - rows.mean(axis=0, dtype=np.float64)
    squares, wanted, hits = (exact**2).sum(axis=1), min(neighbours, len(rows) - 1), 0.0
    for at in range(0, len(drawn), _AT_ONCE):
        part = drawn[at : at + _AT_ONCE]
        apart = squares - 2 * (exact[part] @ exact.T)
        apart[np.arange(len(part)), part] = np.inf
        near = np.argpartition(apart, wanted - 1, axis=1)[:, :wanted]
        hits += float((labels[near] == labels[part, None]).mean(axis=1).sum())
    return hits / len(drawn)


def cosine_to_centre(
    points: NDArray[np.float32],
    centres: NDArray[np.float32],
    ids: NDArray[np.integer[Any]],
    radius: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Cosine ``(n,)`` of each of ``points (n, d)`` to the centre of its cluster, -1 to 1; 0 where one has no direction.

    A centre that lies at the origin up to rounding, measured by its cluster's ``radius (k,)``, has no direction.

    The "stability" of METHODS S15 as printed: how typical a row is of its mode, not whether it stays there over time.

    >>> rows, centre = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32), np.array([[2.0, 0.0]], np.float32)
    >>> cosine_to_centre(rows, centre, np.array([0, 0])).round(2).tolist() == [np.float32(0.6), 0.0]
    True
    """
    length = np.sqrt(np.einsum("nd,nd->n", points, points, dtype=np.float64))
    reach = np.sqrt(np.einsum("kd,kd->k", centres, centres, dtype=np.float64))
    if radius is not None:
        reach[reach <= 1e-5 * radius] = 0
    product = np.einsum("nd,nd->n", points, centres[ids], dtype=np.float64)
    whole = length * reach[ids]
    cosine = np.divide(product, whole, out=np.zeros(len(points)), where=whole > 0)
    return np.clip(cosine, -1, 1).astype(np.float32)


def label_stability(points: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.float32]:
    """Cosine ``(n,)`` of ``points (n, d)`` to the centre of all rows with the same label, seen from the mean of all labels'
    centres: high for rows that can stand for their mode, low for suspect labels (METHODS S14).

    With one label there is no other to be confused with: rows are then seen from the origin. Raises ValueError for
    unequal lengths.
    """
    rows = checked(points, "points")
    if len(labels) != len(rows) or not len(rows):
        raise ValueError(f"labels: expected one for each of at least 1 point, got {len(labels)} for {len(rows)}")
    names, place = np.unique(labels, return_inverse=True)
    centres = np.stack([rows[place == i].mean(axis=0, dtype=np.float64) for i in range(len(names))])
    middle = centres.mean(axis=0) if len(names) > 1 else np.zeros(rows.shape[1])
    seen, apart = (rows - middle).astype(np.float32), (centres - middle).astype(np.float32)
    return cosine_to_centre(seen, apart, place)


def stability_tail(stability: NDArray[np.floating[Any]], share: float = 0.05) -> NDArray[np.int64]:
    """Numbers of the least stable rows, lowest first: ``share`` of them, rounded up (METHODS S14: suspect labels).

    The other end, ``stability_tail(-stability, share)``, is a reference regime. Raises ValueError for a share outside 0 to 1.

    >>> stability_tail(np.array([0.9, -0.2, 0.5, 0.1]), 0.5).tolist()
    [1, 3]
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected above 0 and at most 1, got {share}")
    return np.argsort(stability, kind="stable")[: int(np.ceil(share * len(stability)))]

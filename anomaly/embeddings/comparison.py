"""The full space beside reduced ones: does a reduction keep modes apart and neighbours together (METHODS S9)?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.embeddings.blocks import checked
from anomaly.embeddings.quality import retrieval, silhouette
from anomaly.embeddings.space import fit_space_once


def compare_spaces(
    points: NDArray[np.float32],
    labels: NDArray[Any],
    reductions: Sequence[int] = (0, 64, 32),
    clusters: int | None = None,
    seed: int = 7,
) -> list[dict[str, Any]]:
    """One row per reduction (0 = full space) of ``points (n, d)`` with known ``labels (n,)`` (METHODS S9).

    Each row: ``dimensions``, ``variance_kept``, ``clusters``, ``inertia``, ``silhouette`` with ``silhouette_low`` and
    ``silhouette_high`` (None and a ``reason`` for a single cluster), and ``retrieval``, the share of a row's 10 nearest
    rows that have its label. Errors as ``Space.fit`` and ``retrieval``.

    >>> rows = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    >>> rows[:100] += 9
    >>> [(row["dimensions"], row["clusters"], row["retrieval"]) for row in compare_spaces(rows, np.arange(200) < 100, (0, 2))]
    [(8, 2, 1.0), (2, 2, 1.0)]
    """
    rows = checked(points, "points")
    blocks = [rows[at : at + 8192] for at in range(0, len(rows), 8192)]
    found = []
    for reduce in reductions:
        space, ids, _ = fit_space_once(blocks, clusters, reduce, seed)
        reduced = space.reduced(rows)
        measured = silhouette(reduced, ids, seed=seed)
        found.append(
            {
                "dimensions": reduced.shape[1],
                "variance_kept": 1.0 if space.pca is None else space.pca.variance_kept,
                "clusters": space.clusters,
                "inertia": space.kmeans.inertia_,
                "silhouette": measured.value,
                "silhouette_low": measured.low,
                "silhouette_high": measured.high,
                "reason": measured.reason,
                "retrieval": retrieval(reduced, labels, seed=seed),
            }
        )
    return found

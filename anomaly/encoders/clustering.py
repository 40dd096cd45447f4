"""The mathematics of deep embedded clustering (METHODS S41, S42): soft memberships, sharpened target, loss, start, stop.

After Xie, Girshick and Farhadi, Unsupervised deep embedding for clustering analysis (2016): memberships by a Student-t
kernel of the Euclidean distance to trained centres are pulled towards a sharper version of themselves.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

Features = NDArray[np.float32]
Labels = NDArray[np.intp]

#: Keeps the share of a cluster that nobody belongs to, and the logarithm of a membership that underflows, finite.
_LEAST_SHARE = 1e-7


def student_t_memberships(
    features: keras.KerasTensor, centres: keras.KerasTensor, alpha: float = 1.0
) -> keras.KerasTensor:
    """How far each of ``features (B, d)`` belongs to each of ``centres (K, d)``: ``(B, K)``, rows sum to 1.

    ``q_ij ∝ (1 + |r_i − u_j|² / alpha) ^ −(alpha + 1) / 2``, with ``alpha`` degrees of freedom.

    >>> q = student_t_memberships(np.float32([[0.0], [1.0]]), np.float32([[0.0], [1.0]]))
    >>> np.asarray(q).round(3).tolist()
    [[0.6669999957084656, 0.3330000042915344], [0.3330000042915344, 0.6669999957084656]]
    """
    # The differences themselves: |r|² − 2 r·u + |u|² loses every digit where features are large and near a centre.
    squared = ops.sum(ops.square(features[:, None, :] - centres[None, :, :]), axis=-1)
    # Normalised through logarithms, so that far features, whose kernel underflows for large alpha, keep their memberships.
    return ops.softmax(-0.5 * (alpha + 1.0) * ops.log1p(squared / alpha), axis=-1)


def sharpened_target(memberships: keras.KerasTensor, frequencies: keras.KerasTensor) -> keras.KerasTensor:
    """The target ``p_ij ∝ q_ij² / f_j`` of ``memberships (B, K)``: rows sum to 1.

    The square trusts what is near a centre; dividing by the clusters' soft sizes ``frequencies (K,)`` or ``(B, K)``, in
    any unit, keeps one large cluster from swallowing the rest.

    >>> p = sharpened_target(np.float32([[0.8, 0.2]]), np.float32([0.5, 0.5]))
    >>> np.asarray(p).round(2).tolist() == np.float32([[0.94, 0.06]]).tolist()
    True
    """
    weighted = ops.square(memberships) / ops.maximum(frequencies, _LEAST_SHARE)
    return weighted / ops.sum(weighted, axis=-1, keepdims=True)


def cluster_loss(target: keras.KerasTensor, memberships: keras.KerasTensor) -> keras.KerasTensor:
    """``KL(P ‖ Q)`` of each row: target and memberships ``(B, K)`` → ``(B,)``, at least 0 and 0 where they agree."""
    p, q = ops.maximum(target, _LEAST_SHARE), ops.maximum(memberships, _LEAST_SHARE)
    return ops.sum(target * (ops.log(p) - ops.log(q)), axis=-1)


def start_centres(features: Features, clusters: int, seed: int) -> Features:
    """K-means centres ``(clusters, d)`` of ``features (n, d)``: the best of ten k-means++ starts.

    Where ``features`` hold fewer different points than ``clusters``, the centres left over go to the farthest points.
    Raises ValueError where there are fewer features than clusters.
    """
    from sklearn.cluster import KMeans

    if len(features) < clusters:
        raise ValueError(f"features: expected at least one per cluster ({clusters}), got {len(features)}")
    # In float64: how the threads of K-means split its sums then does not show in the centres' float32.
    points = features.astype(np.float64)
    distinct = min(clusters, len(np.unique(points, axis=0)))
    found = KMeans(distinct, n_init=10, random_state=seed).fit(points).cluster_centers_
    left_over = np.repeat(found[:1], clusters - distinct, axis=0)
    return reseeded(np.concatenate((found, left_over)), points).astype(np.float32)


def nearest(features: NDArray[np.floating], centres: NDArray[np.floating]) -> tuple[Labels, NDArray[np.float64]]:
    """The nearest of ``centres (K, d)`` to each of ``features (n, d)``, and its squared distance, both ``(n,)``.

    >>> labels, squared = nearest(np.array([[0.0], [5.0]]), np.array([[1.0], [4.0], [9.0]]))
    >>> labels.tolist(), squared.tolist()
    ([0, 1], [1.0, 1.0])
    """
    squared = np.stack([((features - centre) ** 2).sum(axis=1, dtype=np.float64) for centre in centres], axis=1)
    labels = squared.argmin(axis=1)
    return labels, squared[np.arange(len(features)), labels]


def reseeded(centres: NDArray[np.float64], features: NDArray[np.float64]) -> NDArray[np.float64]:
    """``centres (K, d)`` where each that no feature is nearest to has moved to the feature farthest from its own centre.

    >>> reseeded(np.array([[0.0], [-9.0]]), np.array([[0.0], [1.0], [7.0]])).tolist()
    [[0.0], [7.0]]
    """
    moved = centres.copy()
    labels, squared = nearest(features, centres)
    for empty in np.setdiff1d(np.arange(len(centres)), labels):
        farthest = int(squared.argmax())
        moved[empty] = features[farthest]
        squared = np.minimum(squared, ((features - moved[empty]) ** 2).sum(axis=1))
    return moved


def moved_share(before: Labels, after: Labels) -> float:
    """Share of labels ``(n,)`` that changed; 0 where there are none.

    >>> moved_share(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
    0.25
    """
    return float(np.mean(before != after)) if len(before) else 0.0

"""Has an encoder collapsed: does it answer every window with the same vector, or along one line only (METHODS S34)?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.data.reservoir import Reservoir
from anomaly.encoders.base import WindowBatches
from anomaly.errors import Fault, InputRefused

_LEAST_SPREAD = 1e-3
_LEAST_RANK = 1.01
_SAMPLE = 512


@dataclass(frozen=True)
class Spread:
    """How far a set of vectors is from being one point (``spread`` 0 … 1) or one line (``rank`` 1 … d)."""

    rank: float
    spread: float


def spread_of(vectors: NDArray[np.float32]) -> Spread:
    """Spread and effective rank of ``(n, d)`` vectors.

    ``spread``: root mean squared distance to their mean over their root mean squared length. ``rank``: the exponential
    of the entropy of their centred singular values (Roy and Vetterli 2007); 0 where nothing varies.

    >>> spread_of(np.eye(4, dtype=np.float32)).rank.__round__(3)
    3.0
    """
    flat = vectors.reshape(len(vectors), -1).astype(np.float64)
    centred = flat - flat.mean(axis=0)
    length, distance = np.sqrt((flat**2).sum(axis=1).mean()), np.sqrt((centred**2).sum(axis=1).mean())
    if length == 0 or distance <= 1e-12 * length:
        return Spread(0.0, 0.0)
    sizes = np.linalg.svd(centred, compute_uv=False)
    share = sizes[sizes > sizes[0] * 1e-12] / sizes[sizes > sizes[0] * 1e-12].sum()
    return Spread(float(np.exp(-(share * np.log(share)).sum())), float(distance / length))


def sample_windows(batches: WindowBatches, seed: int, size: int = _SAMPLE) -> NDArray[np.float32]:
    """At most ``size`` windows of one pass, every window as likely as any other."""
    sample = Reservoir(size, seed)
    for batch in batches(0):
        sample.add(batch.windows)
    return sample.columns[0] if sample.columns else np.empty((0, 1, 1), np.float32)


def refuse_collapse(windows: NDArray[np.float32], embedding: NDArray[np.float32]) -> None:
    """Raise InputRefused E3305 where the windows vary and their embeddings do not; steady windows may embed alike."""
    if len(windows) < 8:
        return
    seen, found = spread_of(windows), spread_of(embedding)
    pointlike = seen.spread > 10 * _LEAST_SPREAD and found.spread < _LEAST_SPREAD
    linelike = seen.rank > 2 and embedding.shape[1] >= 4 and found.rank < _LEAST_RANK
    if pointlike or linelike:
        hint = "lower training.learning_rate, raise training.batch_size, or choose weaker augmentations"
        what = f"spread {found.spread:.1e}, effective rank {found.rank:.2f} of {embedding.shape[1]}"
        expected = f"embeddings that differ where windows do (windows: spread {seen.spread:.2f}, rank {seen.rank:.1f})"
        raise InputRefused(Fault("E3305", expected, what, hint))

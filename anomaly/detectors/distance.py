"""Distance to a memory bank of normal embeddings (METHODS S14 in its simplest form: a uniform sample, exact search)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.data.reservoir import Reservoir
from anomaly.detectors.base import Detector, Encoded, shared_out

#: Bytes of the bank's windows at most: they say which sensors differ, and travel with the model.
_MOST_WINDOW_BYTES = 16 << 20
_LEAST_BANK = 64


def squared_distances(points: NDArray[np.float32], bank: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared Euclidean distances of ``(n, d)`` to ``(m, d)``, ``(n, m)``; never negative.

    >>> squared_distances(np.array([[3.0, 4.0]], np.float32), np.zeros((1, 2), np.float32)).tolist()
    [[25.0]]
    """
    cross = points @ bank.T
    total = (points**2).sum(axis=1)[:, None] + (bank**2).sum(axis=1)[None] - 2 * cross
    return np.maximum(total, 0)


def nearest(distances: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Positions of the ``k`` smallest of each row of ``(n, m)``, nearest first, ``(n, k)``."""
    some = np.argpartition(distances, k - 1, axis=1)[:, :k] if k < distances.shape[1] else None
    some = np.tile(np.arange(distances.shape[1]), (len(distances), 1)) if some is None else some
    order = np.argsort(np.take_along_axis(distances, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)


class KnnDetector(Detector):
    """Mean distance to the ``k`` nearest embeddings of a bank, each dimension scaled by its normal deviation.

    The bank is a uniform sample of at most ``bank`` normal windows (fewer where windows are large), drawn in one pass.
    A window's score is shared out by where it differs from the normal windows that it embeds closest to.
    """

    name: ClassVar[str] = "knn"
    summary: ClassVar[str] = "mean distance to the nearest of a bank of normal embeddings (S52)"
    needs: ClassVar[str] = "embedding"

    def __init__(self, k: int = 3, bank: int = 2500, seed: int = 7) -> None:
        if k < 1 or bank < k:
            raise ValueError(f"k, bank: expected at least 1 neighbour and a bank that holds them, got {k}, {bank}")
        self.k, self.bank, self.seed = k, bank, seed
        self.embeddings_ = np.empty((0, 0), np.float32)
        self.windows_ = np.empty((0, 0, 0), np.float32)
        self.scale_ = np.empty(0, np.float32)

    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """Remember a uniform sample of the windows; raises ValueError where there is none."""
        sample, total, squares = Reservoir(self.bank, self.seed), np.zeros(1), np.zeros(1)
        for block in blocks:
            exact = self._needed(block).astype(np.float64)
            total, squares = total + exact.sum(axis=0), squares + (exact**2).sum(axis=0)
            if len(block):
                sample.size = min(self.bank, max(_MOST_WINDOW_BYTES // block.windows[0].nbytes, _LEAST_BANK))
            sample.add(self._needed(block), block.windows)
        if not len(sample):
            raise ValueError("blocks: expected normal windows to remember, got none")
        deviation = np.sqrt(np.maximum(squares / sample.seen - (total / sample.seen) ** 2, 0))
        # A dimension that never moved would turn rounding into distance.
        largest = deviation.max(initial=0) or 1.0
        self.scale_ = np.where(deviation > 1e-6 * largest, deviation, largest).astype(np.float32)
        embeddings, self.windows_ = sample.columns
        self.embeddings_ = (embeddings / self.scale_).astype(np.float32)
        return self

    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """Mean distance to the nearest of the bank."""
        return self._found(block)[0]

    def shares(self, block: Encoded) -> NDArray[np.float64]:
        """The mean distance, shared out by the squared differences to the nearest windows."""
        score, near = self._found(block)
        apart = np.zeros((len(block), block.windows.shape[2]))
        for neighbour in near.T:
            gap = block.windows - self.windows_[neighbour]
            apart += np.einsum("btc,btc->bc", gap, gap, dtype=np.float64)
        return shared_out(score, apart)

    def _found(self, block: Encoded) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Scores, and positions of the nearest in the bank ``(n, k)``."""
        points = (self._needed(block) / self.scale_).astype(np.float32)
        distances = squared_distances(points, self.embeddings_)
        near = nearest(distances, min(self.k, len(self.embeddings_)))
        return np.sqrt(np.take_along_axis(distances, near, axis=1).astype(np.float64)).mean(axis=1), near

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        arrays = {"embeddings": self.embeddings_, "windows": self.windows_, "scale": self.scale_}
        return {"k": self.k, "bank": self.bank, "seed": self.seed}, arrays

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> KnnDetector:
        made = cls(**settings)
        made.embeddings_, made.windows_, made.scale_ = (arrays[n] for n in ("embeddings", "windows", "scale"))
        return made

"""Detectors of the windows themselves, without an encoder: the gate that an encoder has to pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.base import Detector, Encoded
from anomaly.detectors.distance import KnnDetector
from anomaly.detectors.reconstruction import recency_weights, sensor_shares
from anomaly.errors import TooFewWindows

#: Widest window, rows × tags, whose covariance is kept: its decomposition takes a second, and eight times that for twice.
_WIDEST = 1024


class WindowKnnDetector(KnnDetector):
    """As ``KnnDetector``, on the windows' own values ``(T × C)``: no encoder can lose what it looks at.

    ``half_life``: rows after which a difference counts half, None for all alike; see ``ReconstructionDetector``. Values
    keep the scale in which they were prepared.
    """

    name: ClassVar[str] = "window_knn"
    summary: ClassVar[str] = "mean distance to the nearest of a bank of normal windows, as they are (S52)"
    needs: ClassVar[str] = "windows"

    def __init__(self, k: int = 3, bank: int = 2500, half_life: float | None = 2.0, seed: int = 7) -> None:
        super().__init__(k=k, bank=bank, seed=seed)
        self.half_life = half_life

    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """As ``KnnDetector.fit``; each dimension keeps its own size."""
        super().fit(blocks)
        self.embeddings_, self.scale_ = self.embeddings_ * self.scale_, np.ones_like(self.scale_)
        return self

    def _needed(self, block: Encoded) -> NDArray[np.float32]:
        windows = super()._needed(block)
        weights = recency_weights(windows.shape[1], self.half_life) * windows.shape[1]
        return (windows * np.sqrt(weights, dtype=np.float32)[:, None]).reshape(len(block), -1)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        settings, arrays = super().to_state()
        return settings | {"half_life": self.half_life}, arrays


class SubspaceDetector(Detector):
    """Squared distance from the plane of the largest principal components of normal windows, per value.

    Exact covariance in one streamed pass. ``variance`` is the share of it that the plane keeps. Windows of more than
    1024 values are thinned in time, every so many rows, until they fit. ``half_life``: rows after which a residual counts
    half, None for all alike; see ``ReconstructionDetector``.
    """

    name: ClassVar[str] = "subspace"
    summary: ClassVar[str] = "distance of a window from the principal components of normal windows (S8)"
    needs: ClassVar[str] = "windows"

    def __init__(self, variance: float = 0.9, half_life: float | None = 2.0) -> None:
        if not 0 < variance < 1:
            raise ValueError(f"variance: expected a share between 0 and 1, got {variance}")
        self.variance, self.half_life = variance, half_life
        self.mean_, self.components_ = np.empty(0, np.float32), np.empty((0, 0), np.float32)

    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """Mean and components of normal windows; raises ValueError with fewer than two."""
        count, total, products = 0, np.zeros(0), np.zeros((0, 0))
        guess = np.zeros(0)
        for block in blocks:
            rows = self._rows(block).astype(np.float64)
            if not count and len(rows):
                # Sums of deviations from a first guess keep their digits where a level is far from zero.
                guess, total, products = rows.mean(axis=0), np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
            if len(rows):
                rows -= guess
                count, total = count + len(rows), total + rows.sum(axis=0)
                products += rows.T @ rows
        if count < 2:
            raise TooFewWindows(f"blocks: expected at least 2 normal windows, got {count}; give a longer log")
        shift = total / count
        values, vectors = np.linalg.eigh(products / count - np.outer(shift, shift))
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        kept = np.cumsum(values) / (values.sum() or 1.0)
        width = min(int(np.searchsorted(kept, self.variance)) + 1, max(len(values) - 1, 0))
        self.mean_ = (guess + shift).astype(np.float32)
        self.components_ = np.ascontiguousarray(vectors[:, :width].T, dtype=np.float32)
        return self

    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """Weighted mean squared residual of each window."""
        return np.asarray(self.shares(block).sum(axis=1))

    def shares(self, block: Encoded) -> NDArray[np.float64]:
        """The weighted residual of each tag, per value."""
        # In double precision: what is left of a projection is small beside what is taken away, and a product of few rows
        # is summed in another order than one of many.
        rows = self._rows(block).astype(np.float64) - self.mean_
        components = self.components_.astype(np.float64)
        left = (rows - (rows @ components.T) @ components).astype(np.float32)
        residual = left.reshape(len(block), -1, block.windows.shape[2])
        weights = recency_weights(block.windows.shape[1], self.half_life)[::-1][:: self._step(block.windows)]
        return sensor_shares(residual, weights / weights.sum())

    def _rows(self, block: Encoded) -> NDArray[np.float32]:
        windows = self._needed(block)
        # From the end, so that the row that is judged always takes part.
        return np.ascontiguousarray(windows[:, ::-1][:, :: self._step(windows)]).reshape(len(windows), -1)

    @staticmethod
    def _step(windows: NDArray[np.float32]) -> int:
        return -(-windows.shape[1] * windows.shape[2] // _WIDEST)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {"variance": self.variance, "half_life": self.half_life}, {
            "mean": self.mean_,
            "components": self.components_,
        }

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> SubspaceDetector:
        made = cls(**settings)
        made.mean_, made.components_ = arrays["mean"], arrays["components"]
        return made

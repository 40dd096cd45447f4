"""Detectors of the windows themselves, without an encoder: the gate that an encoder has to pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.base import Detector, Encoded
from anomaly.detectors.distance import KnnDetector

#: Widest window, rows × tags, whose covariance is kept: 8 bytes × its square.
_WIDEST = 4096


class WindowKnnDetector(KnnDetector):
    """As ``KnnDetector``, on the windows' own values ``(T × C)``: no encoder can lose what it looks at."""

    name: ClassVar[str] = "window_knn"
    summary: ClassVar[str] = "mean distance to the nearest of a bank of normal windows, as they are (S52)"
    needs: ClassVar[str] = "windows"

    def _needed(self, block: Encoded) -> NDArray[np.float32]:
        return super()._needed(block).reshape(len(block), -1)


class SubspaceDetector(Detector):
    """Squared distance from the plane of the largest principal components of normal windows, per value.

    Exact covariance in one streamed pass. ``variance`` is the share of it that the plane keeps. Windows of more than
    4096 values are thinned in time, every so many rows, until they fit.
    """

    name: ClassVar[str] = "subspace"
    summary: ClassVar[str] = "distance of a window from the principal components of normal windows (S8)"
    needs: ClassVar[str] = "windows"

    def __init__(self, variance: float = 0.9) -> None:
        if not 0 < variance < 1:
            raise ValueError(f"variance: expected a share between 0 and 1, got {variance}")
        self.variance = variance
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
            raise ValueError(f"blocks: expected at least 2 normal windows, got {count}; give a longer log")
        shift = total / count
        values, vectors = np.linalg.eigh(products / count - np.outer(shift, shift))
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        kept = np.cumsum(values) / (values.sum() or 1.0)
        width = min(int(np.searchsorted(kept, self.variance)) + 1, max(len(values) - 1, 0))
        self.mean_ = (guess + shift).astype(np.float32)
        self.components_ = np.ascontiguousarray(vectors[:, :width].T, dtype=np.float32)
        return self

    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """Mean squared residual of each window."""
        return np.asarray(self.shares(block).sum(axis=1))

    def shares(self, block: Encoded) -> NDArray[np.float64]:
        """The residual of each tag, summed over the window's rows, per value."""
        rows = self._rows(block) - self.mean_
        rows = rows - (rows @ self.components_.T) @ self.components_
        residual = rows.reshape(len(block), -1, block.windows.shape[2])
        return np.asarray(np.einsum("btc,btc->bc", residual, residual, dtype=np.float64) / rows.shape[1])

    def _rows(self, block: Encoded) -> NDArray[np.float32]:
        windows = self._needed(block)
        step = -(-windows.shape[1] * windows.shape[2] // _WIDEST)
        # From the end, so that the row that is judged always takes part.
        return np.ascontiguousarray(windows[:, ::-1][:, ::step]).reshape(len(windows), -1)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {"variance": self.variance}, {"mean": self.mean_, "components": self.components_}

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> SubspaceDetector:
        made = cls(**settings)
        made.mean_, made.components_ = arrays["mean"], arrays["components"]
        return made

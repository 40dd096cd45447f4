"""Reconstruction error: how badly a window is drawn again by a model of normal operation (METHODS S55)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.base import Detector


def sensor_shares(residual: NDArray[np.float32]) -> NDArray[np.float64]:
    """Each sensor's part of the mean squared residual ``(B, T, C)`` → ``(B, C)``.

    >>> sensor_shares(np.array([[[1.0, 3.0]]])).tolist()
    [[0.5, 4.5]]
    """
    squared = np.einsum("btc,btc->bc", residual, residual, dtype=np.float64)
    return squared / (residual.shape[1] * residual.shape[2])


def reconstruction_error(residual: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean squared residual of each window, ``(B, T, C)`` → ``(B,)``: the sum of its sensors' shares.

    >>> reconstruction_error(np.array([[[1.0, 3.0]]])).tolist()
    [5.0]
    """
    return np.asarray(sensor_shares(residual).sum(axis=1))


class ReconstructionDetector(Detector):
    """Scores residuals (window − reconstruction); there is nothing to fit."""

    name: ClassVar[str] = "reconstruction"

    def fit(self, blocks: Iterable[NDArray[np.float32]]) -> Self:
        return self

    def anomaly_score(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        return reconstruction_error(_finite(block))

    def shares(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        return sensor_shares(_finite(block))

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {}, {}

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ReconstructionDetector:
        return cls()


def _finite(block: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(block).all():
        bad = int(np.flatnonzero(~np.isfinite(block).reshape(len(block), -1).all(axis=1))[0])
        raise ValueError(f"block: expected finite residuals, got NaN or infinity in window {bad}")
    return block

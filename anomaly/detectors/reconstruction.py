"""Reconstruction error: how badly a window is drawn again by a model of normal operation (METHODS S55)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.base import Detector, Encoded


def recency_weights(lookback: int, half_life: float | None) -> NDArray[np.float64]:
    """Weights ``(T,)`` that add up to 1; each row counts half as much as the row ``half_life`` rows later.

    None gives every row of the window the same weight.

    >>> recency_weights(3, 1).round(3).tolist()
    [0.143, 0.286, 0.571]
    """
    if half_life is None:
        return np.full(lookback, 1 / lookback)
    weights = 0.5 ** (np.arange(lookback - 1, -1, -1) / half_life)
    return np.asarray(weights / weights.sum())


def sensor_shares(residual: NDArray[np.float32], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Each sensor's part of the weighted mean squared residual ``(B, T, C)`` → ``(B, C)``.

    >>> sensor_shares(np.array([[[1.0, 3.0]]])).tolist()
    [[0.5, 4.5]]
    """
    if weights is None:
        weights = recency_weights(residual.shape[1], None)
    return np.asarray(np.einsum("btc,btc,t->bc", residual, residual, weights, dtype=np.float64) / residual.shape[2])


def reconstruction_error(
    residual: NDArray[np.float32], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Weighted mean squared residual of each window, ``(B, T, C)`` → ``(B,)``: the sum of its sensors' shares.

    >>> reconstruction_error(np.array([[[1.0, 3.0]]])).tolist()
    [5.0]
    """
    return np.asarray(sensor_shares(residual, weights).sum(axis=1))


class ReconstructionDetector(Detector):
    """Scores residuals (window − reconstruction); there is nothing to fit.

    ``half_life``: rows after which a residual counts half. A short precursor would drown in the mean of a long window,
    and go on ringing until it has left it; None gives that plain mean.
    """

    name: ClassVar[str] = "reconstruction"
    summary: ClassVar[str] = "how badly a window is drawn again, recent rows counting most (S55)"
    needs: ClassVar[str] = "residual"

    def __init__(self, half_life: float | None = 2.0) -> None:
        if half_life is not None and not half_life > 0:
            raise ValueError(f"half_life: expected rows above 0, or None for the plain mean, got {half_life}")
        self.half_life = half_life

    def fit(self, blocks: Iterable[Encoded]) -> Self:
        return self

    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """Weighted mean squared residual."""
        return np.asarray(self.shares(block).sum(axis=1))

    def shares(self, block: Encoded) -> NDArray[np.float64]:
        residual = self._needed(block)
        return sensor_shares(residual, recency_weights(residual.shape[1], self.half_life))

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {"half_life": self.half_life}, {}

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ReconstructionDetector:
        return cls(**settings)

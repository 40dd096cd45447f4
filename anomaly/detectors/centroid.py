"""Distance to the centre of normal embeddings (METHODS S51)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.base import Detector, Encoded, shared_out
from anomaly.detectors.moments import Moments, whitening
from anomaly.errors import TooFewWindows

METRICS = ("euclidean", "cosine", "mahalanobis")


def cosine_distance(points: NDArray[np.floating], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 − cosine between the rows of ``(n, d)`` and ``centre (d,)``, ``(n,)`` from 0 to 2; 1 where a length is zero.

    >>> cosine_distance(np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]]), np.array([3.0, 0.0])).tolist()
    [0.0, 1.0, 2.0, 1.0]
    """
    exact = points.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(centre)
    cosine = np.divide(exact @ centre, lengths, out=np.zeros(len(exact)), where=lengths > 0)
    return np.asarray(1 - np.clip(cosine, -1, 1))


class CentroidDetector(Detector):
    """Distance of an embedding to the mean of the normal ones, learned in one pass.

    ``metric``: "euclidean"; "cosine", 1 − cosine, for embeddings whose direction tells (about a centre near zero it says
    nothing); "mahalanobis", in normal deviations, with a shrunk covariance (``whitening``). A window's score is shared
    out by where it differs from the mean normal window.
    """

    name: ClassVar[str] = "centroid"
    summary: ClassVar[str] = "distance to the centre of normal embeddings: Euclid, cosine or Mahalanobis (S51)"
    needs: ClassVar[str] = "embedding"

    def __init__(self, metric: str = "euclidean") -> None:
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
        self.metric = metric
        self.mean_, self.scale_, self.whitening_ = np.empty(0), np.empty(0), np.empty((0, 0))
        self.window_ = np.empty((0, 0))

    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """Learn mean and covariance; raises ValueError without a window, and for "mahalanobis" with fewer than two."""
        moments, total = Moments(), np.zeros(())
        for block in blocks:
            moments.add(self._needed(block))
            total = total + block.windows.sum(axis=0, dtype=np.float64)
        least = 2 if self.metric == "mahalanobis" else 1
        if moments.count < least:
            raise TooFewWindows(
                f"blocks: expected at least {least} normal windows, got {moments.count}; give a longer log"
            )
        self.mean_, self.window_ = moments.mean, total / moments.count
        self.scale_, self.whitening_ = np.ones_like(self.mean_), np.empty((0, 0))
        if self.metric == "mahalanobis":
            self.scale_, self.whitening_ = whitening(moments.covariance, moments.count)
        return self

    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """Distance of each embedding to the centre."""
        points = self._needed(block)
        if self.metric == "cosine":
            return cosine_distance(points, self.mean_)
        apart = (points - self.mean_) / self.scale_
        if self.metric == "mahalanobis":
            apart = apart @ self.whitening_
        return np.sqrt(np.einsum("nd,nd->n", apart, apart))

    def shares(self, block: Encoded) -> NDArray[np.float64]:
        """The distance, shared out by the squared differences to the mean normal window."""
        gap = block.windows - self.window_
        return shared_out(self.anomaly_score(block), np.einsum("btc,btc->bc", gap, gap))

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        arrays = {"mean": self.mean_, "scale": self.scale_, "whitening": self.whitening_, "window": self.window_}
        return {"metric": self.metric}, arrays

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> CentroidDetector:
        made = cls(**settings)
        made.mean_, made.scale_, made.whitening_, made.window_ = (
            arrays[name] for name in ("mean", "scale", "whitening", "window")
        )
        return made

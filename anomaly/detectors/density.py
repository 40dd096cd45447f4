"""Density of normal embeddings: Gaussian mixture and kernel density, −log density as score (METHODS S53)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from anomaly.data.reservoir import Reservoir
from anomaly.detectors.base import Detector, Encoded, occlusion_shares
from anomaly.detectors.moments import safe_scale
from anomaly.detectors.neighbours import squared_distances
from anomaly.errors import TooFewWindows

#: Embeddings that a mixture is fitted on.
_MOST_ROWS = 20_000
#: Added to each variance, in squared normal deviations: nothing counts as narrower than 3 % of its dimension.
_FLOOR = 1e-3
_TILE_BYTES = 16 << 20


def scaled_sample(
    blocks: Iterable[NDArray[np.float32]], size: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """A uniform sample ``(n, d)`` of at most ``size`` rows, about its mean ``(d,)`` in safe deviations ``(d,)``.

    Raises ValueError where there is no row.
    """
    sample = Reservoir(size, seed)
    for rows in blocks:
        sample.add(rows)
    if not len(sample):
        raise TooFewWindows("blocks: expected normal windows to learn from, got none; give a longer log")
    rows = sample.columns[0].astype(np.float64)
    mean, scale = rows.mean(axis=0), safe_scale(rows.std(axis=0))
    return (rows - mean) / scale, mean, scale


class GmmDetector(Detector):
    """−log density of an embedding under a mixture of ``components`` Gaussians with full covariances.

    Fitted on a uniform sample of at most 20 000 normal embeddings, each dimension in its normal deviations; variances get
    a floor there, so that constant or dependent dimensions are safe. Fewer distinct rows than components make as many
    components as there are distinct rows.
    """

    name: ClassVar[str] = "gmm"
    summary: ClassVar[str] = "-log density of the embedding under a Gaussian mixture of normal ones (S53)"
    needs: ClassVar[str] = "embedding"
    dear: ClassVar[bool] = True

    def __init__(self, components: int = 4, seed: int = 7) -> None:
        if components < 1:
            raise ValueError(f"components: expected at least 1, got {components}")
        self.components, self.seed = components, seed
        self.mean_, self.scale_, self.weights_ = np.empty(0), np.empty(0), np.empty(0)
        self.centres_, self.precisions_ = np.empty((0, 0)), np.empty((0, 0, 0))

    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """Learn the mixture; raises ValueError with fewer rows than components, or with one row."""
        from sklearn.mixture import GaussianMixture

        rows, self.mean_, self.scale_ = scaled_sample((self._needed(b) for b in blocks), _MOST_ROWS, self.seed)
        if len(rows) < max(self.components, 2):
            raise TooFewWindows(
                f"components: expected at most the number of normal windows, and 2 of those, got {self.components} "
                f"for {len(rows)}; give a longer log or fewer components"
            )
        distinct = len(np.unique(rows, axis=0))
        made = GaussianMixture(
            min(self.components, distinct), reg_covar=_FLOOR, random_state=self.seed, max_iter=300
        ).fit(rows)
        self.weights_, self.centres_, self.precisions_ = made.weights_, made.means_, made.precisions_cholesky_
        return self

    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """−log density, natural logarithm, in the units of the embedding."""
        rows = (self._needed(block) - self.mean_) / self.scale_
        parts = np.empty((len(rows), len(self.weights_)))
        for number, (centre, precision) in enumerate(zip(self.centres_, self.precisions_, strict=True)):
            apart = rows @ precision - centre @ precision
            parts[:, number] = np.log(np.diag(precision)).sum() - np.einsum("nd,nd->n", apart, apart) / 2
        density = logsumexp(parts, axis=1, b=self.weights_) - rows.shape[1] * np.log(2 * np.pi) / 2
        return np.asarray(np.log(self.scale_).sum() - density)

    def shares(self, block: Encoded) -> NDArray[np.float64]:
        """The score, shared out by how far it falls without each tag."""
        return occlusion_shares(self, block)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""
        return {"components": self.components, "seed": self.seed}, {
            "mean": self.mean_,
            "scale": self.scale_,
            "weights": self.weights_,
            "centres": self.centres_,
            "precisions": self.precisions_,
        }

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> GmmDetector:
        made = cls(**settings)
        made.mean_, made.scale_, made.weights_ = arrays["mean"], arrays["scale"], arrays["weights"]
        made.centres_, made.precisions_ = arrays["centres"], arrays["precisions"]
        return made


class KdeDetector(Detector):
    """−log density of an embedding under Gaussian kernels on a uniform sample of at most ``bank`` normal embeddings.

    ``bandwidth``: a kernel's deviation, in normal deviations of each dimension; "scott" is n^(−1 / (d + 4)).
    """

    name: ClassVar[str] = "kde"
    summary: ClassVar[str] = "-log density of the embedding by kernels on normal ones (S53)"
    needs: ClassVar[str] = "embedding"
    dear: ClassVar[bool] = True

    def __init__(self, bank: int = 2000, bandwidth: float | str = "scott", seed: int = 7) -> None:
        if bank < 1:
            raise ValueError(f"bank: expected at least 1 row, got {bank}")
        if bandwidth != "scott" and not (isinstance(bandwidth, int | float) and 0 < bandwidth < np.inf):
            raise ValueError(f'bandwidth: expected "scott" or a number above 0, got {bandwidth!r}')
        self.bank, self.bandwidth, self.seed = bank, bandwidth, seed
        self.mean_, self.scale_, self.rows_ = np.empty(0), np.empty(0), np.empty((0, 0))

    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """Remember normal embeddings; raises ValueError where there is none."""
        self.rows_, self.mean_, self.scale_ = scaled_sample((self._needed(b) for b in blocks), self.bank, self.seed)
        return self

    @property
    def width(self) -> float:
        """The bandwidth as a number."""
        n, d = self.rows_.shape
        return float(n ** (-1 / (d + 4))) if self.bandwidth == "scott" else float(self.bandwidth)

    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """−log density, natural logarithm, in the units of the embedding."""
        points = (self._needed(block) - self.mean_) / self.scale_
        (n, d), width = self.rows_.shape, self.width
        level = np.log(n) + d * (np.log(width) + np.log(2 * np.pi) / 2) + np.log(self.scale_).sum()
        score, tile = np.empty(len(points)), max(_TILE_BYTES // (8 * n), 1)
        for low in range(0, len(points), tile):
            apart = squared_distances(points[low : low + tile], self.rows_)
            score[low : low + tile] = level - logsumexp(apart / (-2 * width**2), axis=1)
        return score

    def shares(self, block: Encoded) -> NDArray[np.float64]:
        """The score, shared out by how far it falls without each tag."""
        return occlusion_shares(self, block)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""
        settings = {"bank": self.bank, "bandwidth": self.bandwidth, "seed": self.seed}
        return settings, {"mean": self.mean_, "scale": self.scale_, "rows": self.rows_}

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> KdeDetector:
        made = cls(**settings)
        made.mean_, made.scale_, made.rows_ = arrays["mean"], arrays["scale"], arrays["rows"]
        return made

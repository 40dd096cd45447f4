"""Boundaries around normal embeddings: isolation forest and one-class support vector machine (METHODS S54)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.compiled import walking
from anomaly.data.reservoir import Reservoir
from anomaly.detectors.base import Detector, Encoded, occlusion_shares
from anomaly.detectors.density import scaled_sample
from anomaly.detectors.neighbours import squared_distances
from anomaly.errors import TooFewWindows

#: Embeddings that a forest is fitted on, and that an approximate machine is.
_FOREST_ROWS, _MACHINE_ROWS = 50_000, 20_000
#: Largest ``sample`` of a tree: trees are stored complete, twice as many places as rows.
_MOST_SAMPLE = 4096
#: Rows that all trees are walked with at once: their positions stay in the cache.
_WALKED = 256
_LANDMARKS = 300
_TILE_BYTES = 16 << 20


def mean_path(rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean depth at which a random tree isolates one of so many rows (Liu et al. 2008), 0 for one row.

    >>> mean_path(np.array([1, 2, 256])).round(2).tolist()
    [0.0, 1.0, 10.24]
    """
    n = np.maximum(rows.astype(np.float64), 2)
    depth = 2 * (np.log(n - 1) + np.euler_gamma) - 2 * (n - 1) / n
    return np.where(rows <= 1, 0.0, np.where(rows == 2, 1.0, depth))


def complete_tree(tree: Any, depth: int) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float64]]:
    """A scikit-learn tree laid out complete: features and thresholds ``(2^depth − 1,)``, path lengths ``(2^depth,)``.

    From place i a row goes to 2i + 1, and one further where its feature is above the threshold. Below an early leaf every
    row goes left. Thresholds are rounded down to float32, which no float32 row can tell from the float64 ones.
    """
    inner = 2**depth - 1
    feature, limit = np.zeros(inner, np.int32), np.full(inner, np.finfo(np.float32).max, np.float32)
    length = np.zeros(inner + 1)
    rounded = tree.threshold.astype(np.float32)
    down = np.where(rounded > tree.threshold, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    paths = mean_path(tree.n_node_samples)
    left_to_do = [(0, 0, 0)]
    while left_to_do:
        node, place, level = left_to_do.pop()
        if tree.children_left[node] < 0:
            # Always left from a place p, d times: (p + 1) 2^d − 1.
            length[(place + 1) * 2 ** (depth - level) - 1 - inner] = level + paths[node]
            continue
        feature[place], limit[place] = tree.feature[node], down[node]
        left_to_do.append((tree.children_left[node], 2 * place + 1, level + 1))
        left_to_do.append((tree.children_right[node], 2 * place + 2, level + 1))
    return feature, limit, length


def path_lengths(
    points: NDArray[np.float32],
    features: NDArray[np.int32],
    limits: NDArray[np.float32],
    lengths: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Sum over trees of the path lengths of ``points (n, d)``, ``(n,)``; trees as ``complete_tree`` lays them out.

    ``features`` and ``limits`` are ``(trees, 2^depth − 1)``, ``lengths (trees, 2^depth)``. All trees are walked at once,
    level by level, with as many rows as stay in the cache.
    """
    trees, places = features.shape
    total = np.empty(len(points))
    walk = walking()
    if walk is not None and points.dtype == np.float32:
        walk(np.ascontiguousarray(points), features, limits, lengths, (places + 1).bit_length() - 1, total)
        return total
    first, first_leaf = np.arange(trees) * places, np.arange(trees) * (places + 1) - places
    flat_features, flat_limits, flat_lengths = features.ravel().astype(np.int64), limits.ravel(), lengths.ravel()
    for low in range(0, len(points), _WALKED):
        part = np.ascontiguousarray(points[low : low + _WALKED])
        values, base = part.ravel(), (np.arange(len(part)) * part.shape[1])[:, None]
        place = np.zeros((len(part), trees), np.int64)
        at, feature = np.empty_like(place), np.empty_like(place)
        value, limit = np.empty(place.shape, np.float32), np.empty(place.shape, np.float32)
        for _ in range((places + 1).bit_length() - 1):
            # No place is out of range, and "wrap" spares the check that the default makes first.
            np.add(place, first, out=at)
            flat_features.take(at, out=feature, mode="wrap")
            feature += base
            values.take(feature, out=value, mode="wrap")
            flat_limits.take(at, out=limit, mode="wrap")
            place *= 2
            place += 1
            place += value > limit
        total[low : low + _WALKED] = flat_lengths.take(place + first_leaf).sum(axis=1)
    return total


class IsolationForestDetector(Detector):
    """How few random cuts set an embedding apart, from 0 to 1; 0.5 where trees say nothing (Liu et al. 2008).

    ``trees`` trees of ``sample`` rows each (at most 4096), fitted on a uniform sample of at most 50 000 normal embeddings.
    The same seed and rows make the same trees. Cuts end where normal rows end, so the score does not grow with distance
    beyond them, and the lone rows at the rim of few normal windows score as high as a fault does. Scores are
    scikit-learn's ``-score_samples``.
    """

    name: ClassVar[str] = "iforest"
    summary: ClassVar[str] = "how few random cuts isolate the embedding among normal ones (S54)"
    needs: ClassVar[str] = "embedding"
    dear: ClassVar[bool] = True

    def __init__(self, trees: int = 100, sample: int = 256, seed: int = 7) -> None:
        if trees < 1:
            raise ValueError(f"trees: expected at least 1, got {trees}")
        if not 2 <= sample <= _MOST_SAMPLE:
            raise ValueError(f"sample: expected 2 to {_MOST_SAMPLE} rows of a tree, got {sample}")
        self.trees, self.sample, self.seed = trees, sample, seed
        self.features_, self.limits_ = np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
        self.lengths_, self.expected_ = np.empty((0, 0)), np.empty(0)

    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """Grow the trees; raises ValueError with fewer than two windows."""
        from sklearn.ensemble import IsolationForest

        kept = Reservoir(_FOREST_ROWS, self.seed)
        for block in blocks:
            kept.add(self._needed(block))
        if len(kept) < 2:
            raise TooFewWindows(f"blocks: expected at least 2 normal windows, got {len(kept)}; give a longer log")
        rows, sample = kept.columns[0], min(self.sample, len(kept))
        forest = IsolationForest(n_estimators=self.trees, max_samples=sample, random_state=self.seed).fit(rows)
        depth = max(int(np.ceil(np.log2(sample))), 1)
        laid = [complete_tree(one.tree_, depth) for one in forest.estimators_]
        self.features_, self.limits_, self.lengths_ = (np.stack(column) for column in zip(*laid, strict=True))
        self.expected_ = self.trees * mean_path(np.array([sample]))
        return self

    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """2 to the power of −(mean path length ÷ the length expected)."""
        total = path_lengths(self._needed(block), self.features_, self.limits_, self.lengths_)
        return np.asarray(2 ** (-total / self.expected_))

    def shares(self, block: Encoded) -> NDArray[np.float64]:
        """The score, shared out by how far it falls without each tag."""
        return occlusion_shares(self, block)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""
        return {"trees": self.trees, "sample": self.sample, "seed": self.seed}, {
            "features": self.features_,
            "limits": self.limits_,
            "lengths": self.lengths_,
            "expected": self.expected_,
        }

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> IsolationForestDetector:
        made = cls(**settings)
        made.features_, made.limits_ = arrays["features"], arrays["limits"]
        made.lengths_, made.expected_ = arrays["lengths"], arrays["expected"]
        return made


class OneClassSvmDetector(Detector):
    """Signed distance to a boundary that leaves about ``nu`` of the normal embeddings outside, positive outside.

    Gaussian kernel of width √(d/2) normal deviations (gamma 1/d). Up to ``exact_limit`` rows every row takes part
    (METHODS S54's row limit: time grows with its square); above, 300 landmarks (Nyström) and stochastic descent on a
    uniform sample of at most 20 000. Far from all normal rows the score levels off: it tells that, not how far.
    """

    name: ClassVar[str] = "ocsvm"
    summary: ClassVar[str] = "distance outside of a kernel boundary around normal embeddings (S54)"
    needs: ClassVar[str] = "embedding"
    dear: ClassVar[bool] = True

    def __init__(self, nu: float = 0.05, exact_limit: int = 5000, seed: int = 7) -> None:
        if not 0 < nu < 1:
            raise ValueError(f"nu: expected a share between 0 and 1, got {nu}")
        if not 0 <= exact_limit <= _MACHINE_ROWS:
            raise ValueError(f"exact_limit: expected 0 to {_MACHINE_ROWS} rows, got {exact_limit}")
        self.nu, self.exact_limit, self.seed = nu, exact_limit, seed
        self.mean_, self.scale_ = np.empty(0), np.empty(0)
        self.support_, self.weights_, self.offset_ = np.empty((0, 0)), np.empty(0), np.empty(0)

    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """Draw the boundary; raises ValueError with fewer than two windows."""
        rows, self.mean_, self.scale_ = scaled_sample((self._needed(b) for b in blocks), _MACHINE_ROWS, self.seed)
        if len(rows) < 2:
            raise TooFewWindows(f"blocks: expected at least 2 normal windows, got {len(rows)}; give a longer log")
        made = self._exact(rows) if len(rows) <= self.exact_limit else self._approximate(rows)
        self.support_, self.weights_, self.offset_ = made
        return self

    def _exact(self, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        from sklearn.svm import OneClassSVM

        made = OneClassSVM(kernel="rbf", gamma=1 / rows.shape[1], nu=self.nu, tol=1e-5).fit(rows)
        return made.support_vectors_, made.dual_coef_[0], np.atleast_1d(made.offset_)

    def _approximate(self, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        from sklearn.kernel_approximation import Nystroem
        from sklearn.linear_model import SGDOneClassSVM

        landmarks = min(_LANDMARKS, len(rows))
        kernel = Nystroem(gamma=1 / rows.shape[1], n_components=landmarks, random_state=self.seed)
        made = SGDOneClassSVM(nu=self.nu, random_state=self.seed).fit(kernel.fit_transform(rows))
        # A weight per landmark takes the place of the map and its weights.
        return kernel.components_, kernel.normalization_.T @ made.coef_, np.atleast_1d(made.offset_)

    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """scikit-learn's ``-decision_function``."""
        points = (self._needed(block) - self.mean_) / self.scale_
        score, tile = np.empty(len(points)), max(_TILE_BYTES // (8 * len(self.support_)), 1)
        for low in range(0, len(points), tile):
            apart = squared_distances(points[low : low + tile], self.support_)
            kernel = np.exp(apart / -points.shape[1])
            score[low : low + tile] = self.offset_ - kernel @ self.weights_
        return score

    def shares(self, block: Encoded) -> NDArray[np.float64]:
        """The score, shared out by how far it falls without each tag."""
        return occlusion_shares(self, block)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""
        return {"nu": self.nu, "exact_limit": self.exact_limit, "seed": self.seed}, {
            "mean": self.mean_,
            "scale": self.scale_,
            "support": self.support_,
            "weights": self.weights_,
            "offset": self.offset_,
        }

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> OneClassSvmDetector:
        made = cls(**settings)
        made.mean_, made.scale_, made.support_ = arrays["mean"], arrays["scale"], arrays["support"]
        made.weights_, made.offset_ = arrays["weights"], arrays["offset"]
        return made

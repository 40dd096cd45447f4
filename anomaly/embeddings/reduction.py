"""Fewer dimensions for embeddings: principal components of a stream in one pass (METHODS S8).

Two ways. ``covariance`` adds up the exact mean and covariance in float64 and solves once: ``d² · 8`` bytes, no matter how
many rows, and the answer is that of a PCA over all rows in memory. ``incremental`` is scikit-learn's IncrementalPCA, which
keeps ``components`` directions and forgets the rest of each block: for embeddings too wide for a covariance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.embeddings.blocks import checked, streamed

Method = Literal["covariance", "incremental"]
_FIELDS = ("mean_", "components_", "explained_variance_", "explained_variance_ratio_")


class Moments:
    """Mean ``(d,)`` and sum of centred products ``(d, d)`` of a stream, in float64.

    Each block is centred on its own mean and the parts are merged (Chan, Golub & LeVeque 1979): a large common offset
    costs no digits.

    >>> moments = Moments(1); moments.add(np.array([[1.0], [3.0]])); moments.add(np.array([[5.0]]))
    >>> moments.mean.tolist(), moments.covariance().tolist()
    ([3.0], [[4.0]])
    """

    def __init__(self, width: int) -> None:
        self.rows, self.mean, self._products = 0, np.zeros(width), np.zeros((width, width))

    def add(self, block: NDArray[Any]) -> None:
        """Take in ``block (B, d)``, at least one row."""
        exact = block.astype(np.float64)
        mean = exact.mean(axis=0)
        exact -= mean
        gap, total = mean - self.mean, self.rows + len(block)
        self._products += exact.T @ exact
        self._products += np.outer(gap, gap) * (self.rows * len(block) / total)
        self.mean += gap * (len(block) / total)
        self.rows = total

    def merge(self, other: Moments) -> None:
        """Take in the rows of ``other``, which may have been added up on another thread."""
        if not other.rows:
            return
        gap, total = other.mean - self.mean, self.rows + other.rows
        self._products += other._products
        self._products += np.outer(gap, gap) * (self.rows * other.rows / total)
        self.mean += gap * (other.rows / total)
        self.rows = total

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """What was added up, as arrays; ``from_arrays`` goes on from there."""
        return {"rows": np.array(self.rows), "mean": self.mean, "products": self._products}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Moments:
        """The moments from ``to_arrays``."""
        made = cls(len(arrays["mean"]))
        made.rows, made.mean, made._products = int(arrays["rows"]), arrays["mean"].copy(), arrays["products"].copy()
        return made

    def covariance(self) -> NDArray[np.float64]:
        """The covariance ``(d, d)`` over ``rows - 1``."""
        return self._products / (self.rows - 1)


class StreamedPCA:
    """Principal components of embeddings ``(B, d)`` that stream by once; attributes as in scikit-learn (METHODS S8).

    ``mean_ (d,)``, ``components_ (m, d)`` with orthonormal rows, largest variance first and each row's largest entry
    positive; ``explained_variance_ (m,)`` over ``n - 1`` rows, ``explained_variance_ratio_ (m,)``, ``n_samples_seen_``.

    >>> pca = StreamedPCA(1).fit([np.array([[0, 1], [2, 1]], np.float32), np.array([[4, 1]], np.float32)])
    >>> pca.components_.tolist(), pca.variance_kept, pca.transform(np.array([[5, 1]])).tolist()
    ([[1.0, 0.0]], 1.0, [[3.0]])
    """

    def __init__(self, components: int, method: Method = "covariance") -> None:
        if components < 1:
            raise ValueError(f"components: expected at least 1, got {components}")
        if method not in ("covariance", "incremental"):
            raise ValueError(f"method: expected covariance or incremental, got {method!r}")
        self.components, self.method = components, method
        self.n_samples_seen_ = 0
        self.mean_ = self.explained_variance_ = self.explained_variance_ratio_ = np.empty(0)
        self.components_ = np.empty((0, 0))

    def fit(self, blocks: Iterable[NDArray[np.float32]]) -> Self:
        """Learn from blocks ``(B, d)``, read once.

        Raises ValueError for non-finite values, more components than ``d``, and fewer rows than components (or than 2).
        """
        source = self._all_wide_enough(streamed(blocks))
        return self._by_covariance(source) if self.method == "covariance" else self._incrementally(source)

    def _all_wide_enough(self, blocks: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        for block in blocks:
            self.wide_enough(block.shape[1])
            yield block

    def wide_enough(self, width: int) -> None:
        """Raises ValueError where embeddings of ``width`` dimensions have fewer of them than components are asked for."""
        if width < self.components:
            raise ValueError(
                f"components: expected at most the embedding's {width}, got {self.components}; ask for fewer"
            )

    def _enough_rows(self, rows: int) -> None:
        least = max(2, self.components)
        if rows < least:
            raise ValueError(
                f"blocks: expected at least {least} rows for {self.components} components, got {rows}; "
                "give more rows or ask for fewer components"
            )

    def _by_covariance(self, blocks: Iterator[NDArray[np.float32]]) -> Self:
        moments: Moments | None = None
        for block in blocks:
            moments = moments or Moments(block.shape[1])
            moments.add(block)
        if moments is None:
            self._enough_rows(0)
            return self
        return self.solve(moments)

    def solve(self, moments: Moments) -> Self:
        """The components of moments that were added up elsewhere, in a pass shared with other work; errors as ``fit``."""
        from scipy.linalg import eigh

        self._enough_rows(moments.rows)
        covariance = moments.covariance()
        last, total = len(covariance) - 1, float(np.trace(covariance))
        values, vectors = eigh(covariance, subset_by_index=[last - self.components + 1, last])
        variance = np.maximum(values[::-1], 0)  # rounding can put a zero below 0
        ratio = variance / total if total > 0 else np.zeros_like(variance)
        return self._keep(moments.mean, vectors.T[::-1], variance, ratio, moments.rows)

    def _incrementally(self, blocks: Iterator[NDArray[np.float32]]) -> Self:
        from sklearn.decomposition import IncrementalPCA

        inner, rows = IncrementalPCA(self.components), 0
        for joined in _joined(blocks, self.components):
            rows += len(joined)
            self._enough_rows(rows)
            with np.errstate(invalid="ignore", divide="ignore"):  # constant embeddings: 0 of 0 variance
                inner.partial_fit(joined.astype(np.float64))
        self._enough_rows(rows)
        ratio = np.nan_to_num(inner.explained_variance_ratio_, nan=0.0)
        return self._keep(inner.mean_, inner.components_, inner.explained_variance_, ratio, rows)

    def _keep(
        self,
        mean: NDArray[np.float64],
        components: NDArray[np.float64],
        variance: NDArray[np.float64],
        ratio: NDArray[np.float64],
        rows: int,
    ) -> Self:
        largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
        self.mean_, self.components_ = mean.copy(), components * np.where(largest < 0, -1.0, 1.0)
        self.explained_variance_, self.explained_variance_ratio_, self.n_samples_seen_ = variance, ratio, rows
        return self

    @property
    def variance_kept(self) -> float:
        """Share of the variance that the components keep, 0 to 1; 1 where nothing varies, as nothing is lost."""
        self._fitted()
        return min(float(self.explained_variance_ratio_.sum()), 1.0) if self.explained_variance_.any() else 1.0

    def transform(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(n, d)`` → ``(n, m)`` float32; raises ValueError for another width, non-finite rows and before a fit."""
        self._fitted()
        rows = checked(points, "points", len(self.mean_))
        near, turn = self.mean_.astype(np.float32), np.ascontiguousarray(self.components_.T, dtype=np.float32)
        # The mean's float32 rounding is put back after the product, where it is small and costs no digits.
        rest = ((self.mean_ - near) @ self.components_.T).astype(np.float32)
        reduced = np.matmul(rows - near, turn, dtype=np.float32)
        np.subtract(reduced, rest, out=reduced)
        return reduced

    def _fitted(self) -> None:
        if not self.n_samples_seen_:
            raise ValueError("pca: expected a fitted one, got a new one; call fit first")

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""
        settings = {"components": self.components, "method": self.method, "rows": self.n_samples_seen_}
        return settings, {name.rstrip("_"): getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> StreamedPCA:
        """The reduction from ``to_state``."""
        made = cls(int(settings["components"]), settings["method"])
        made.n_samples_seen_ = int(settings["rows"])
        for name in _FIELDS:
            setattr(made, name, arrays[name.rstrip("_")])
        return made


def _joined(blocks: Iterator[NDArray[np.float32]], least: int) -> Iterator[NDArray[np.float32]]:
    """The same rows in blocks of at least ``least`` rows, where there are as many: a small last one joins the one before."""
    held: NDArray[np.float32] | None = None
    small: list[NDArray[np.float32]] = []
    for block in blocks:
        small.append(block)
        if sum(map(len, small)) >= least:
            if held is not None:
                yield held
            held, small = np.concatenate(small), []
    rest = ([] if held is None else [held]) + small
    if rest:
        yield np.concatenate(rest)


def subspace_angle(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Largest principal angle in radians between the spaces spanned by the rows of ``a (m, d)`` and ``b (m, d)``.

    0 = the same space, π/2 = some direction of one is missing from the other (METHODS S8).

    >>> subspace_angle(np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0]]))
    0.0
    """
    from scipy.linalg import subspace_angles

    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a, b: expected components of equal width (m, d), got {a.shape} and {b.shape}")
    return float(subspace_angles(a.T.astype(np.float64), b.T.astype(np.float64)).max())

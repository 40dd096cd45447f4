"""The space of embeddings: an optional reduction, then operating modes; fitted in few streamed passes (METHODS S8 to S14)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.reservoir import Reservoir
from anomaly.embeddings.blocks import checked, streamed
from anomaly.embeddings.clusters import Prototypes, StreamedKMeans, nearest_centres, start_centres
from anomaly.embeddings.quality import cosine_to_centre, silhouette
from anomaly.embeddings.reduction import Moments, StreamedPCA
from anomaly.parallel import one_blas_thread

#: Rows that centres start from and that the number of clusters is chosen on; a uniform sample of the whole stream.
SAMPLE_ROWS = 4096
MOST_CLUSTERS = 8
#: Below this mean silhouette a split says nothing: the rows are one mode.
LEAST_SILHOUETTE = 0.1
_SILHOUETTE_ROWS = 500


@dataclass(frozen=True)
class Placed:
    """Where ``n`` rows lie: ``reduced (n, m)``, cluster ``ids (n,)``, ``distance (n,)`` and ``cosine (n,)`` to the centre.

    The cosine is taken in the space the clusters live in (after a reduction: seen from the mean of the training rows);
    0 where the centre has no direction, as that of a single cluster of reduced rows.
    """

    reduced: NDArray[np.float32]
    ids: NDArray[np.int32]
    distance: NDArray[np.float32]
    cosine: NDArray[np.float32]


class _Reduced:
    """Blocks in the reduced space; can be read as often as the blocks themselves."""

    def __init__(self, blocks: Iterable[NDArray[np.float32]], pca: StreamedPCA | None) -> None:
        self._blocks, self._pca = blocks, pca

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (block if self._pca is None else self._pca.transform(block) for block in self._blocks)


class Space:
    """Reduction and modes together; made by ``Space.fit`` or ``fit_space_once``, then never changed (METHODS S13).

    ``pca`` is None in full space. ``tried`` holds one row per number of clusters that was tried, for a report.

    >>> rows = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    >>> rows[:150, 0] += 20
    >>> space = Space.fit([rows])
    >>> space.clusters, np.bincount(space.place(rows).ids).tolist()
    (2, [150, 150])
    """

    def __init__(self, pca: StreamedPCA | None, kmeans: StreamedKMeans, tried: list[dict[str, Any]]) -> None:
        self.pca, self.kmeans, self.tried = pca, kmeans, tried

    @classmethod
    def fit(
        cls,
        blocks: Iterable[NDArray[np.float32]],
        clusters: int | None = None,
        reduce: int = 0,
        seed: int = 7,
        passes: int = 2,
    ) -> Space:
        """Learn from blocks ``(B, d)`` that can be read again; ``reduce`` 0 stays in full space.

        Without ``clusters`` the number from 2 to 8 with the best silhouette on a sample is taken, or one cluster where
        none is above 0.1. Reads the blocks ``passes + 2`` times. Raises ValueError for fewer rows than clusters or
        components, more components than ``d``, non-finite rows, and blocks that can be read only once.
        """
        return _fitted(blocks, clusters, reduce, seed, passes)

    @property
    def clusters(self) -> int:
        """How many clusters there are."""
        return self.kmeans.clusters

    def reduced(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(n, d)`` → ``(n, m)``, the space of the clusters."""
        return checked(points, "points") if self.pca is None else self.pca.transform(points)

    def place(self, points: NDArray[np.float32]) -> Placed:
        """Where ``points (n, d)`` lie; raises ValueError for another width and non-finite rows. Changes nothing."""
        reduced = self.reduced(points)
        ids, distance = self.kmeans.assign(reduced)
        cosine = cosine_to_centre(reduced, self.kmeans.centers_, ids, self.kmeans.radius_)
        return Placed(reduced, ids, distance, cosine)

    def prototypes(self, blocks: Iterable[NDArray[np.float32]], per_cluster: int = 1) -> Prototypes:
        """The real rows nearest to each centre; ``embeddings`` are those of the reduced space (METHODS S11)."""
        return self.kmeans.prototypes(_Reduced(blocks, self.pca), per_cluster)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""
        settings: dict[str, Any] = {"pca": None, "tried": self.tried}
        settings["kmeans"], parts = self.kmeans.to_state()
        arrays = {f"kmeans_{name}": array for name, array in parts.items()}
        if self.pca is not None:
            settings["pca"], parts = self.pca.to_state()
            arrays |= {f"pca_{name}": array for name, array in parts.items()}
        return settings, arrays

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Space:
        """The space from ``to_state``."""

        def part(prefix: str) -> dict[str, NDArray[Any]]:
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

        pca = None if settings["pca"] is None else StreamedPCA.from_state(settings["pca"], part("pca_"))
        return cls(pca, StreamedKMeans.from_state(settings["kmeans"], part("kmeans_")), list(settings["tried"]))

    def digest(self) -> str:
        """SHA-256 over settings and arrays, in hexadecimal: the same before and after scoring (METHODS S13)."""
        settings, arrays = self.to_state()
        hashed = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            hashed.update(f"{name} {array.dtype.str} {array.shape}".encode())
            hashed.update(array.tobytes())
        return hashed.hexdigest()


def fit_space_once(
    blocks: Iterable[NDArray[np.float32]],
    clusters: int | None = None,
    reduce: int = 0,
    seed: int = 7,
    passes: int = 2,
) -> tuple[Space, NDArray[np.int32], NDArray[np.float32]]:
    """``Space.fit`` with the ids ``(n,)`` and distances ``(n,)`` of all rows, at no pass of their own.

    Arguments and errors are those of ``Space.fit``. The first pass serves both the covariance and the sample that
    centres start from; the last one both the exact inertia and the ids. Keeps 8 bytes a row.
    """
    ids: list[NDArray[np.int32]] = []
    distances: list[NDArray[np.float32]] = []

    def each(some: NDArray[np.int32], distance: NDArray[np.float32]) -> None:
        ids.append(some)
        distances.append(distance)

    space = _fitted(blocks, clusters, reduce, seed, passes, each)
    return space, np.concatenate(ids), np.concatenate(distances)


def _fitted(
    blocks: Iterable[NDArray[np.float32]],
    clusters: int | None,
    reduce: int,
    seed: int,
    passes: int,
    each: Callable[[NDArray[np.int32], NDArray[np.float32]], object] | None = None,
) -> Space:
    if reduce < 0:
        raise ValueError(f"reduce: expected 0 for the full space or a number of components, got {reduce}")
    with one_blas_thread():  # products with a handful of centres are many times slower on several
        pca, sample = _first_pass(blocks, reduce, max(SAMPLE_ROWS, 10 * (clusters or 1)), seed)
        if pca is not None:
            sample = pca.transform(sample)
        tried = [] if clusters is not None else tried_clusters(sample, seed)
        kmeans = StreamedKMeans(chosen_clusters(tried) if clusters is None else clusters, seed, passes)
        kmeans.fit(_Reduced(blocks, pca), sample, each)
    return Space(pca, kmeans, tried)


def _first_pass(
    blocks: Iterable[NDArray[np.float32]], reduce: int, size: int, seed: int
) -> tuple[StreamedPCA | None, NDArray[np.float32]]:
    """The reduction and a uniform sample ``(s, d)``, in one pass."""
    pca, sample, moments = StreamedPCA(reduce) if reduce else None, Reservoir(size, seed), None
    for block in streamed(blocks):
        if pca is not None:
            moments = moments or Moments(block.shape[1])
            pca.wide_enough(block.shape[1])
            moments.add(block)
        sample.add(block)
    if not len(sample):
        raise ValueError("blocks: expected rows to learn a space from, got none")
    if pca is not None and moments is not None:
        pca.solve(moments)
    rows: NDArray[np.float32] = sample.columns[0]
    return pca, rows


def tried_clusters(sample: NDArray[np.float32], seed: int) -> list[dict[str, Any]]:
    """One row per number of clusters from 2 to 8 with the silhouette on ``sample (s, m)`` and its interval.

    Numbers that leave fewer than two rows for a cluster on average are not tried.
    """
    found = []
    for clusters in range(2, min(MOST_CLUSTERS, len(sample) // 2) + 1):
        centres = start_centres(sample, clusters, seed).astype(np.float32)
        measured = silhouette(sample, nearest_centres(sample, centres)[0], _SILHOUETTE_ROWS, seed)
        found.append({"clusters": clusters} | measured.row())
    return found


def chosen_clusters(tried: list[dict[str, Any]]) -> int:
    """The number with the best silhouette above 0.1, the smallest of equals; 1 without one.

    >>> chosen_clusters([{"clusters": 2, "value": 0.3}, {"clusters": 3, "value": 0.6}, {"clusters": 4, "value": None}])
    3
    """
    good = [row for row in tried if row["value"] is not None and row["value"] > LEAST_SILHOUETTE]
    return int(max(good, key=lambda row: row["value"])["clusters"]) if good else 1

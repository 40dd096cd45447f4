"""Operating modes: k-means over embeddings that stream by (METHODS S10, S11, S14).

A first pass moves each centre as the average of the rows it won so far (MacQueen 1967, block by block: Sculley 2010). It
forgets where the centres were when a row was counted, so later passes hold the centres still, count every row once, and
move them at the pass' end: such a pass never raises the inertia. A last pass measures what the final centres hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.embeddings.blocks import checked, streamed

_START_ROWS = 4096
_START_TRIES = 5
_START_STEPS = 20
_RADIUS_FLOOR = 0.01


def nearest_centres(
    points: NDArray[np.float32], centres: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Id and Euclidean distance of the nearest of ``centres (k, d)`` for ``points (n, d)``; ties go to the lowest id.

    Exact (METHODS S11): rows whose two nearest centres differ by less than float32 can tell are settled in float64.

    >>> nearest_centres(np.array([[0.0], [2.0], [9.0]], np.float32), np.array([[1.0], [3.0]], np.float32))[0].tolist()
    [0, 0, 1]
    """
    ids, close = _fast_nearest(points, centres)
    if len(close):
        exact = points[close].astype(np.float64)
        every = np.stack([((exact - centre) ** 2).sum(axis=1) for centre in centres])
        ids[close] = every.argmin(axis=0)
    gap = points - centres[ids]
    return ids, np.sqrt(np.einsum("nd,nd->n", gap, gap))


def _fast_nearest(
    points: NDArray[np.float32], centres: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Ids by one matrix product, and the rows where its rounding could have chosen another."""
    if len(centres) == 1:
        return np.zeros(len(points), np.int32), np.empty(0, np.int64)
    origin = centres.mean(axis=0)  # without a common offset the product loses no digits to it
    moved, held = points - origin, centres - origin
    squares = np.einsum("kd,kd->k", held, held)
    scores = moved @ (-2 * held.T)
    scores += squares
    ids = scores.argmin(axis=1).astype(np.int32)
    best = np.take_along_axis(scores, ids[:, None], axis=1)
    length = np.sqrt(np.einsum("nd,nd->n", moved, moved) * squares.max())
    doubt = 2 * points.shape[1] * np.finfo(np.float32).eps * (2 * length + squares.max())
    # The shift to the origin rounds too, by the size of the numbers as they came.
    doubt += 4 * np.finfo(np.float32).eps * float(np.abs(origin).max()) * np.sqrt(squares.max() * points.shape[1])
    return ids, np.flatnonzero((scores <= best + doubt[:, None]).sum(axis=1) > 1)


def _totals(
    points: NDArray[np.float32], ids: NDArray[np.int32], clusters: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums ``(k, d)`` and counts ``(k,)`` of the rows of each cluster."""
    from scipy.sparse import csr_array

    place = (np.ones(len(ids)), (ids, np.arange(len(ids))))
    sums = csr_array(place, shape=(clusters, len(ids))) @ points.astype(np.float64)
    return sums, np.bincount(ids, minlength=clusters)


class _Farthest:
    """Rows of a pass that lie far from their centres and from each other: where empty clusters start again."""

    def __init__(self, width: int) -> None:
        self.distance, self.rows = np.empty(0, np.float32), np.empty((0, width), np.float32)

    def add(self, rows: NDArray[np.float32], distance: NDArray[np.float32], counts: NDArray[np.int64]) -> None:
        """Offer a block after its rows were counted; while a cluster is empty, as many rows stay as there are clusters."""
        if (counts == 0).any():
            every, places = np.concatenate((self.distance, distance)), np.concatenate((self.rows, rows))
            chosen = _spread_out(places, every, len(counts))
            self.distance, self.rows = every[chosen], places[chosen]

    def refill(self, centres: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        """Move the centres that have no row, one by one, to the row that is now farthest from all centres."""
        empty = np.flatnonzero(counts == 0)
        if len(empty) and len(self.rows):
            _, apart = nearest_centres(self.rows, centres[counts > 0].astype(np.float32))
            chosen = _spread_out(self.rows, apart, len(empty))
            centres[empty[: len(chosen)]] = self.rows[chosen]


def _spread_out(rows: NDArray[np.float32], distance: NDArray[np.float32], most: int) -> list[int]:
    """At most ``most`` row numbers, each the farthest from all centres and from those chosen before it; none at 0.

    The farthest rows alone would often be neighbours: one group that no centre serves.
    """
    apart, chosen = distance.copy(), list[int]()
    while len(chosen) < most and apart.any():
        chosen.append(int(apart.argmax()))
        gap = rows - rows[chosen[-1]]
        apart = np.minimum(apart, np.sqrt(np.einsum("nd,nd->n", gap, gap)))
    return chosen


def start_centres(points: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.float64]:
    """Centres ``(k, d)`` from a buffer: k-means++ (Arthur & Vassilvitskii 2007), a few full steps, the best of five tries.

    Raises ValueError for fewer rows than clusters.
    """
    from sklearn.cluster import kmeans_plusplus

    if len(points) < clusters:
        raise ValueError(
            f"clusters: expected at most as many as there are rows ({len(points)}), got {clusters}; "
            "ask for fewer clusters or give more rows"
        )
    rng = np.random.default_rng(seed)
    origin = points.mean(axis=0, dtype=np.float64).astype(np.float32)
    moved, best, least = points - origin, np.empty(0), np.inf
    for _ in range(_START_TRIES if clusters > 1 else 1):
        centres = kmeans_plusplus(moved, clusters, random_state=int(rng.integers(2**31)))[0].astype(np.float64)
        inertia = np.inf
        for _ in range(_START_STEPS):
            before = inertia
            inertia = _full_step(moved, centres)
            if inertia >= before * (1 - 1e-4):
                break
        if inertia < least:
            best, least = centres, inertia
    return best + origin


def _full_step(points: NDArray[np.float32], centres: NDArray[np.float64]) -> float:
    """Move ``centres`` in place to the means of their rows; the inertia before the move."""
    ids, distance = nearest_centres(points, centres.astype(np.float32))
    sums, counts = _totals(points, ids, len(centres))
    held = counts > 0
    centres[held] = sums[held] / counts[held, None]
    if not held.all():
        farthest = _Farthest(points.shape[1])
        farthest.add(points, distance, counts)
        farthest.refill(centres, counts)
    return float(np.einsum("n,n->", distance, distance, dtype=np.float64))


@dataclass(frozen=True)
class Prototypes:
    """Real rows nearest to their centres, by cluster and then by distance; a cluster with fewer rows gives fewer.

    ``ids (q,)`` the cluster, ``rows (q,)`` row number in the stream from 0, ``distance (q,)`` and ``embeddings (q, d)``.
    """

    ids: NDArray[np.int32]
    rows: NDArray[np.int64]
    distance: NDArray[np.float32]
    embeddings: NDArray[np.float32]

    def best(self, most: int) -> Prototypes:
        """At most ``most`` of each cluster; equal distances in the order of the stream."""
        order = np.lexsort((self.rows, self.distance, self.ids))
        ids = self.ids[order]
        rank = np.arange(len(ids)) - np.searchsorted(ids, ids)
        keep = order[rank < most]
        return Prototypes(self.ids[keep], self.rows[keep], self.distance[keep], self.embeddings[keep])


class StreamedKMeans:
    """K-means over blocks ``(B, d)`` that can be read again; the same blocks and seed give the same centres (METHODS S10).

    ``fit`` reads the blocks ``passes + 1`` times. No pass counts a row twice: the rows that the start is made from are
    the first block of pass one. ``centers_ (k, d)`` float32, ``counts_ (k,)`` rows, ``radius_ (k,)`` root mean square
    distance to the centre (a cluster of fewer than two rows takes that of all rows; never below a hundredth of it),
    ``inertia_`` the exact sum of squared distances, ``rows_`` the rows of one pass.

    >>> blocks = [np.array([[0.0], [10.0]], np.float32), np.array([[2.0], [12.0]], np.float32)]
    >>> modes = StreamedKMeans(2, seed=0).fit(blocks)
    >>> sorted(modes.centers_.ravel().tolist()), modes.inertia_
    ([1.0, 11.0], 4.0)
    """

    def __init__(self, clusters: int, seed: int = 7, passes: int = 3) -> None:
        if clusters < 1 or passes < 1:
            raise ValueError(f"clusters, passes: expected at least 1 of each, got {clusters} and {passes}")
        self.clusters, self.seed, self.passes = clusters, seed, passes
        self.centers_ = np.empty((0, 0), np.float32)
        self.counts_, self.radius_ = np.empty(0, np.int64), np.empty(0, np.float32)
        self.inertia_, self.rows_ = 0.0, 0

    def fit(
        self,
        blocks: Iterable[NDArray[np.float32]],
        start: NDArray[np.float32] | None = None,
        each: Callable[[NDArray[np.int32], NDArray[np.float32]], object] | None = None,
    ) -> Self:
        """Find the centres. ``start (s, d)``: a sample of all rows, which is better than the first blocks of a stream that
        is sorted by mode; no average then moves before it saw every row. ``each`` gets ids and distances of the last pass.

        Raises ValueError for fewer rows than clusters, non-finite rows, and blocks that can be read only once.
        """
        self.rows_ = 0
        if start is None:
            centres, passes = self._first_pass(streamed(blocks)), self.passes - 1
        else:
            centres, passes = start_centres(checked(start, "start"), self.clusters, self.seed), self.passes
        for _ in range(passes):
            centres = self._full_pass(blocks, centres)
        self.centers_ = centres.astype(np.float32)
        return self.finish(blocks, each)

    def _first_pass(self, source: Iterator[NDArray[np.float32]]) -> NDArray[np.float64]:
        gathered: list[NDArray[np.float32]] = []
        for block in source:
            gathered.append(block)
            if sum(map(len, gathered)) >= max(_START_ROWS, 10 * self.clusters):
                break
        if not gathered:
            raise ValueError("blocks: expected rows to cluster, got none")
        buffer = np.concatenate(gathered)
        centres = start_centres(buffer, self.clusters, self.seed)
        counts, farthest = np.zeros(self.clusters, np.int64), _Farthest(buffer.shape[1])
        for block in chain([buffer], source):
            ids, distance = nearest_centres(block, centres.astype(np.float32))
            sums, won = _totals(block, ids, self.clusters)
            counts += won
            moved = won > 0
            step = (sums[moved] - won[moved, None] * centres[moved]) / counts[moved, None]
            centres[moved] += step
            farthest.add(block, distance, counts)
        farthest.refill(centres, counts)
        self.rows_ = int(counts.sum())
        return centres

    def _full_pass(self, blocks: Iterable[NDArray[np.float32]], centres: NDArray[np.float64]) -> NDArray[np.float64]:
        held, gaps = centres.astype(np.float32), np.zeros_like(centres)
        counts, farthest = np.zeros(len(centres), np.int64), _Farthest(centres.shape[1])
        for block in streamed(blocks, centres.shape[1]):
            ids, distance = nearest_centres(block, held)
            sums, won = _totals(block, ids, len(centres))
            gaps += sums - won[:, None] * held.astype(np.float64)
            counts += won
            farthest.add(block, distance, counts)
        self._all_again(int(counts.sum()))
        moved = held + gaps / np.maximum(counts, 1)[:, None]
        farthest.refill(moved, counts)
        return moved

    def _all_again(self, rows: int) -> None:
        """Every pass sees the same rows, or the blocks were a stream that cannot be read again."""
        self.rows_ = self.rows_ or rows
        if rows != self.rows_ or not rows:
            raise ValueError(
                f"blocks: expected the same {self.rows_} rows in every pass, got {rows}; give a list, or an object "
                "whose __iter__ starts anew"
            )

    def finish(
        self,
        blocks: Iterable[NDArray[np.float32]],
        each: Callable[[NDArray[np.int32], NDArray[np.float32]], object] | None = None,
    ) -> Self:
        """One pass for the exact inertia, counts and radii of ``centers_``; ``each`` gets every block's ids and distances."""
        squares, counts = np.zeros(self.clusters), np.zeros(self.clusters, np.int64)
        for block in streamed(blocks, self.centers_.shape[1]):
            ids, distance = nearest_centres(block, self.centers_)
            squares += np.bincount(ids, distance.astype(np.float64) ** 2, minlength=self.clusters)
            counts += np.bincount(ids, minlength=self.clusters)
            if each is not None:
                each(ids, distance)
        self._all_again(int(counts.sum()))
        self.counts_, self.inertia_ = counts, float(squares.sum())
        overall = np.sqrt(self.inertia_ / self.rows_) or 1e-6 * max(1.0, float(np.abs(self.centers_).max()))
        radius = np.where(counts > 1, np.sqrt(squares / np.maximum(counts, 1)), overall)
        self.radius_ = np.maximum(radius, _RADIUS_FLOOR * overall).astype(np.float32)
        return self

    def assign(self, points: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Cluster ids ``(n,)`` and distances ``(n,)`` to their centres; ties go to the lowest id (METHODS S11).

        Raises ValueError for another width, non-finite rows and before a fit. Changes nothing (METHODS S13).
        """
        self._fitted()
        return nearest_centres(checked(points, "points", self.centers_.shape[1]), self.centers_)

    def prototypes(self, blocks: Iterable[NDArray[np.float32]], per_cluster: int = 1) -> Prototypes:
        """The ``per_cluster`` real rows nearest to each centre, in one pass (METHODS S11)."""
        self._fitted()
        if per_cluster < 1:
            raise ValueError(f"per_cluster: expected at least 1, got {per_cluster}")
        found, seen = _none(self.centers_.shape[1]), 0
        for block in streamed(blocks, self.centers_.shape[1]):
            ids, distance = nearest_centres(block, self.centers_)
            rows = np.arange(seen, seen + len(block))
            near = Prototypes(ids, rows, distance, block).best(per_cluster)
            pairs = zip(vars(found).values(), vars(near).values(), strict=True)
            found, seen = Prototypes(*map(np.concatenate, pairs)).best(per_cluster), seen + len(block)
        return found

    def _fitted(self) -> None:
        if not len(self.centers_):
            raise ValueError("clusters: expected fitted ones, got new ones; call fit first")

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""
        settings: dict[str, Any] = {"clusters": self.clusters, "seed": self.seed, "passes": self.passes}
        settings |= {"inertia": self.inertia_, "rows": self.rows_}
        return settings, {"centers": self.centers_, "counts": self.counts_, "radius": self.radius_}

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> StreamedKMeans:
        """The clusters from ``to_state``."""
        made = cls(int(settings["clusters"]), int(settings["seed"]), int(settings["passes"]))
        made.inertia_, made.rows_ = float(settings["inertia"]), int(settings["rows"])
        made.centers_, made.counts_, made.radius_ = (arrays[name] for name in ("centers", "counts", "radius"))
        return made


def _none(width: int) -> Prototypes:
    empty = np.empty(0, np.float32)
    return Prototypes(np.empty(0, np.int32), np.empty(0, np.int64), empty, np.empty((0, width), np.float32))

"""Nearest rows of a bank, exact, in tiles that stay in the processor's cache (METHODS S52)."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.compiled import GROUP, ranking
from anomaly.detectors.bounds import Bounds, bounds_of, nearest_within
from anomaly.parallel import at_once, cores

#: Bytes of one tile of products: near to a cache, far below what a machine could hold.
_TILE_BYTES = 8 << 20
#: Bytes of products that stay in a core's own cache, and rows below which a product is slow.
_CACHE_BYTES, _CACHE_ROWS = 1 << 20, 256
#: Rows below which a share is not worth handing to another core.
_LEAST_SHARE = 64
#: Candidates beyond k whose distances are made exactly: float32 products may swap rows that are all but equally near.
_SPARE = 1


def squared_distances(points: NDArray[np.floating], bank: NDArray[np.floating]) -> NDArray[np.floating]:
    """Squared Euclidean distances of ``(n, d)`` to ``(m, d)``, ``(n, m)``; never negative.

    >>> squared_distances(np.array([[3.0, 4.0]], np.float32), np.zeros((1, 2), np.float32)).tolist()
    [[25.0]]
    """
    cross = points @ bank.T
    cross *= -2
    cross += np.einsum("nd,nd->n", points, points)[:, None]
    cross += np.einsum("md,md->m", bank, bank)
    return np.maximum(cross, 0, out=cross)


def smallest(values: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Positions of the ``k`` smallest of each row of ``(n, m)``, in any order, ``(n, k)``; all where k is at least m.

    A row's k smallest lie in the k groups of columns with the smallest minima, and a minimum is cheaper than a partition.

    >>> np.sort(smallest(np.array([[5.0, 1.0, 4.0, 0.0]]), 2)).tolist()
    [[1, 3]]
    """
    n, m = values.shape
    if k >= m:
        return np.tile(np.arange(m), (n, 1))
    # As many groups as candidates in those that are opened: both are searched.
    group = min(1 << max(round(float(np.log2(m / k)) / 2), 0), GROUP)
    groups = m // group
    if groups <= 2 * k:
        return _partitioned(values, k)
    whole = groups * group
    # Group j holds the columns j, j + groups, j + 2 groups ...: its minimum is taken over long contiguous rows.
    chosen = _partitioned(values[:, :whole].reshape(n, group, groups).min(axis=1), k)
    columns = (chosen[:, :, None] + groups * np.arange(group)).reshape(n, -1)
    if whole < m:
        columns = np.concatenate((columns, np.broadcast_to(np.arange(whole, m), (n, m - whole))), axis=1)
    # Positions in the flat array, because take is twice as fast there as along an axis.
    picked = values.ravel().take(columns + (m * np.arange(n))[:, None])
    some = _partitioned(picked, k)
    return columns.ravel().take(some + (columns.shape[1] * np.arange(n))[:, None])


def _partitioned(values: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """As ``smallest``, by comparing with the k-th value: a partition of values is several times faster than of positions."""
    limit = np.partition(values, k - 1, axis=1)[:, k - 1 : k]
    found = np.flatnonzero(values <= limit)
    if len(found) != len(values) * k:  # ties at the limit
        return np.argpartition(values, k - 1, axis=1)[:, :k]
    return found.reshape(-1, k) % values.shape[1]


class RankedBank(NamedTuple):
    """What ranks a bank ``(m, d)`` by one product: its ``centre (d,)`` and a table ``(d + 1, m')``, m' whole groups.

    Columns beyond m are infinitely far. ``bounds`` spare most of that product, where the bank's rows lie near a plane.
    """

    centre: NDArray[np.float32]
    table: NDArray[np.float32]
    bounds: Bounds | None = None


def ranked_bank(bank: NDArray[np.float32], bounded: bool = True) -> RankedBank:
    """|b|² − 2 p·b ranks the rows b of a bank as their distances to p do; rows are taken about their centre.

    ``bounded``: look for bounds too, which costs as much as a search of some hundred rows.
    """
    centre = bank.mean(axis=0, dtype=np.float64).astype(bank.dtype)
    near = bank - centre
    table = np.zeros((bank.shape[1] + 1, -(-len(bank) // GROUP) * GROUP), bank.dtype)
    table[:-1, : len(bank)] = -2 * near.T
    table[-1] = np.inf
    table[-1, : len(bank)] = np.einsum("md,md->m", near, near)
    return RankedBank(centre, table, bounds_of(bank, table.shape[1]) if bounded else None)


def nearest_in_bank(
    points: NDArray[np.float32],
    bank: NDArray[np.float32],
    k: int,
    leave_out_self: bool = False,
    ranked: RankedBank | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distances to the ``k`` nearest rows of ``bank (m, d)``, nearest first, and their positions, both ``(n, min(k, m))``.

    ``leave_out_self``: the points are the bank's own rows in its order, and row i does not match position i; a duplicate
    of it elsewhere does. ``ranked``: the bank's ``ranked_bank``, where it is searched again and again. Memory is bounded
    by the tile, whatever n and m. Raises ValueError for k below 1, for an empty bank, and where leaving a row out leaves
    none. (METHODS S52)

    >>> bank = np.array([[0.0], [1.0], [5.0]], np.float32)
    >>> nearest_in_bank(bank, bank, 1, leave_out_self=True)[0].ravel().tolist()
    [1.0, 1.0, 4.0]
    """
    least = 2 if leave_out_self else 1
    if k < 1 or len(bank) < least:
        raise ValueError(f"k, bank: expected at least 1 neighbour and {least} rows, got {k} and {len(bank)} rows")
    if leave_out_self and len(points) != len(bank):
        raise ValueError(f"points: expected the {len(bank)} rows of the bank to leave out self, got {len(points)}")
    kept = min(k, len(bank) - leave_out_self)
    nothing = np.empty((len(points), kept)), np.empty((len(points), kept), np.int64)
    search = _Search(points, bank, ranked or ranked_bank(bank, bounded=False), leave_out_self, *nothing)
    at_once(search.share, search.slices(0, len(points), max(-(-len(points) // cores()), _LEAST_SHARE)))
    return search.distances, search.positions


class _Search(NamedTuple):
    """One search; each core fills its share of the rows of ``distances (n, k)`` and ``positions (n, k)``."""

    points: NDArray[np.float32]
    bank: NDArray[np.float32]
    ranked: RankedBank
    leave_out_self: bool
    distances: NDArray[np.float64]
    positions: NDArray[np.int64]

    def share(self, rows: slice) -> None:
        """Fill the rows of one share, tile by tile."""
        row_bytes = 4 * max(len(self.bank), self._searched() * self.bank.shape[1])
        fitting = max(min(_TILE_BYTES // row_bytes, max(_CACHE_BYTES // row_bytes, _CACHE_ROWS)), 1)
        for tile in self.slices(rows.start, rows.stop, fitting):
            self._tile(tile)

    @staticmethod
    def slices(low: int, high: int, size: int) -> list[slice]:
        """Rows ``low`` … ``high`` in pieces of ``size``."""
        return [slice(start, min(start + size, high)) for start in range(low, high, size)]

    def _searched(self) -> int:
        """Candidates of a row whose distances are made exactly."""
        return min(self.distances.shape[1] + self.leave_out_self + _SPARE, len(self.bank))

    def _tile(self, part: slice) -> None:
        bounds = self.ranked.bounds
        if bounds is None or self.leave_out_self or self.points.dtype != np.float32:
            self._every(part)
            return
        own, table = self.points[part], bounds.table
        products = _scratch(len(own), table.shape[1], own.dtype)
        left = nearest_within(bounds, own, self.bank, products, self.distances[part], self.positions[part])
        if len(left):
            rest = self._replace(
                points=own[left], distances=self.distances[part][left], positions=self.positions[part][left]
            )
            rest._every(slice(0, len(left)))
            self.distances[part][left], self.positions[part][left] = rest.distances, rest.positions

    def _every(self, part: slice) -> None:
        own, bank = self.points[part], self.bank
        rows = np.concatenate((own - self.ranked.centre, np.ones((len(own), 1), own.dtype)), axis=1)
        table = self.ranked.table
        products = np.matmul(rows, table, out=_scratch(len(own), table.shape[1], rows.dtype))
        rank = ranking()
        if rank is not None and bank.dtype == own.dtype == np.float32:
            first = part.start if self.leave_out_self else -1
            rank(products, own, bank, self._searched(), first, self.distances[part], self.positions[part])
            return
        found = smallest(products, self._searched())
        apart = own[:, None] - bank[found]
        exact = np.einsum("nkd,nkd->nk", apart, apart, dtype=np.float64)
        if self.leave_out_self:
            exact[found == np.arange(part.start, part.stop)[:, None]] = np.inf
        order = np.lexsort((found, exact))[:, : self.distances.shape[1]]
        self.distances[part] = np.sqrt(np.take_along_axis(exact, order, axis=1))
        self.positions[part] = np.take_along_axis(found, order, axis=1)


_own = threading.local()


def _scratch(rows: int, columns: int, dtype: np.dtype) -> NDArray[Any]:
    """A tile of products, one per thread and kept: fresh memory of this size is faulted in again each time."""
    held = getattr(_own, "tile", None)
    if held is None or held.dtype != dtype or held.size < rows * columns:
        held = _own.tile = np.empty(rows * columns, dtype)
    tile: NDArray[Any] = held[: rows * columns].reshape(rows, columns)
    return tile

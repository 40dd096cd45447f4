"""Nearest rows of a bank, exact, in tiles that stay in the processor's cache (METHODS S52)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Bytes of one tile of products: near to a cache, far below what a machine could hold.
_TILE_BYTES = 16 << 20
#: Columns that are searched by their groups' minima; a smaller bank is partitioned as it is.
_GROUP = 32
#: Candidates beyond k whose distances are made exactly: float32 products may swap rows that are all but equally near.
_SPARE = 3


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
    groups = m // _GROUP
    if groups <= 2 * k:
        return _partitioned(values, k)
    whole = groups * _GROUP
    # Group j holds the columns j, j + groups, j + 2 groups ...: its minimum is taken over long contiguous rows.
    chosen = _partitioned(values[:, :whole].reshape(n, _GROUP, groups).min(axis=1), k)
    columns = (chosen[:, :, None] + groups * np.arange(_GROUP)).reshape(n, -1)
    if whole < m:
        columns = np.concatenate((columns, np.broadcast_to(np.arange(whole, m), (n, m - whole))), axis=1)
    some = _partitioned(np.take_along_axis(values, columns, axis=1), k)
    return np.take_along_axis(columns, some, axis=1)


def _partitioned(values: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """As ``smallest``, by comparing with the k-th value: a partition of values is several times faster than of positions."""
    limit = np.partition(values, k - 1, axis=1)[:, k - 1 : k]
    found = np.flatnonzero(values <= limit)
    if len(found) != len(values) * k:  # ties at the limit
        return np.argpartition(values, k - 1, axis=1)[:, :k]
    return found.reshape(-1, k) % values.shape[1]


class RankedBank(NamedTuple):
    """What ranks a bank ``(m, d)`` by one product: its ``centre (d,)`` and a table ``(d + 1, m)``."""

    centre: NDArray[np.float32]
    table: NDArray[np.float32]


def ranked_bank(bank: NDArray[np.float32]) -> RankedBank:
    """|b|² − 2 p·b ranks the rows b of a bank as their distances to p do; rows are taken about their centre."""
    centre = bank.mean(axis=0, dtype=np.float64).astype(bank.dtype)
    near = bank - centre
    rows = np.concatenate((-2 * near, np.einsum("md,md->m", near, near)[:, None]), axis=1)
    return RankedBank(centre, np.ascontiguousarray(rows.T))


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
    ranked = ranked or ranked_bank(bank)
    distances, positions = np.empty((len(points), kept)), np.empty((len(points), kept), np.int64)
    searched = kept + leave_out_self + _SPARE
    tile = max(_TILE_BYTES // (4 * max(len(bank), searched * bank.shape[1])), 1)
    # One scratch for all tiles: fresh memory of this size is given back to the system and faulted in again each time.
    scratch = np.empty((min(tile, len(points)), len(bank)), np.result_type(points, ranked.table))
    for low in range(0, len(points), tile):
        part = points[low : low + tile]
        ones = np.ones((len(part), 1), part.dtype)
        rows = np.concatenate((part - ranked.centre, ones), axis=1)
        found = smallest(np.matmul(rows, ranked.table, out=scratch[: len(part)]), searched)
        apart = part[:, None] - bank[found]
        exact = np.einsum("nkd,nkd->nk", apart, apart, dtype=np.float64)
        if leave_out_self:
            exact[found == np.arange(low, low + len(part))[:, None]] = np.inf
        order = np.lexsort((found, exact))[:, :kept]
        distances[low : low + tile] = np.sqrt(np.take_along_axis(exact, order, axis=1))
        positions[low : low + tile] = np.take_along_axis(found, order, axis=1)
    return distances, positions

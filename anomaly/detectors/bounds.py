"""Which rows of a bank can be nearest at all, told from a few directions: the others need no exact distance (METHODS S52).

Of orthonormal directions and what is left beside them, the lengths differ by no more than the rows do: in the few coordinates
(p·v₁ … p·vᵣ, length of the rest) two rows are never farther apart than in all. Windows of neighbouring rows lie near a plane of
few directions, so a product of those leaves a few dozen candidates of a bank of thousands. Any directions give exact results.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly import compiled

#: Numbers of directions to choose from, and rows of the bank that they are taken from and tried on.
_WIDTHS, _LEARNED, _TRIED, _SEED = (16, 32, 64, 128), 512, 128, 7
#: Banks narrower or shorter than this are searched as fast by one product.
_NARROW, _SHORT = 64, 1024
#: What a candidate's exact distance costs beside a column of the product, and the share of the whole product to get below.
_DEARER, _WORTH = 12.0, 0.7
#: Candidates of a row beyond which the whole product is cheaper.
_MOST = 64
#: Rounding of the bounds, as a share of squared lengths; the rest of a row, summed in single precision, is the largest part.
_ROUNDING = 2e-5

Floats = NDArray[np.float32]


class Bounds(NamedTuple):
    """Directions ``(r, d)`` about a ``centre (d,)``; ``table (r + 2, m')`` whose product with a row's coordinates, less a
    constant, is below the squared distances, infinite beyond m; ``farthest``: the largest squared length in the bank."""

    centre: Floats
    directions: Floats
    table: Floats
    farthest: float

    def coordinates(self, points: Floats) -> tuple[Floats, NDArray[np.float64]]:
        """Coordinates ``(n, r + 2)`` of ``points (n, d)``, the last one 1, and squared lengths ``(n,)``."""
        near = points - self.centre
        found = np.ones((len(points), len(self.directions) + 2), np.float32)
        head = found[:, :-2]
        np.matmul(near, self.directions.T, out=head)
        rest = near - head @ self.directions
        found[:, -2] = np.sqrt(np.einsum("nd,nd->n", rest, rest))
        return found, np.einsum("nd,nd->n", near, near).astype(np.float64)


def bounds_of(bank: Floats, table_columns: int) -> Bounds | None:
    """The bounds of ``bank (m, d)`` with the cheapest number of directions; None where none is worth it, and without numba.

    ``table_columns``: m', at least m.
    """
    if pruning() is None or bank.dtype != np.float32 or bank.shape[1] < _NARROW or len(bank) < _SHORT:
        return None
    rng = np.random.default_rng(_SEED)
    centre = bank.mean(axis=0, dtype=np.float64)
    learned = bank[rng.choice(len(bank), min(_LEARNED, len(bank)), replace=False)] - centre
    basis = np.linalg.svd(learned, full_matrices=False)[2].astype(np.float32)
    tried = rng.choice(len(bank), _TRIED, replace=False)
    exact = _apart(bank[tried], bank)
    exact[np.arange(_TRIED), tried] = np.inf
    best, least = None, _WORTH * len(bank) * bank.shape[1]
    for width in (w for w in _WIDTHS if 2 * w < bank.shape[1]):
        made = _bounds(bank, centre.astype(np.float32), basis[:width], table_columns)
        cost = _cost(made, bank, tried, exact)
        if cost < least:
            best, least = made, cost
    return best


def _bounds(bank: Floats, centre: Floats, directions: Floats, columns: int) -> Bounds:
    table = np.zeros((len(directions) + 2, columns), np.float32)
    table[-1] = np.inf
    bare = Bounds(centre, directions, table, 0.0)
    coordinates, squares = bare.coordinates(bank)
    table[:-1, : len(bank)] = -2 * coordinates[:, :-1].T
    table[-1, : len(bank)] = squares
    return bare._replace(farthest=float(squares.max()))


def _apart(points: Floats, bank: Floats) -> NDArray[np.float64]:
    one, other = points.astype(np.float64), bank.astype(np.float64)
    return np.maximum((one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T, 0)


def _cost(made: Bounds, bank: Floats, tried: NDArray[np.int64], exact: NDArray[np.float64]) -> float:
    """What a row costs on average, in columns of products times their length; tried on rows of the bank, without themselves."""
    coordinates, squares = made.coordinates(bank[tried])
    below = (coordinates @ made.table[:, : len(bank)]).astype(np.float64) + squares[:, None]
    below[np.arange(len(tried)), tried] = np.inf
    first = np.argpartition(below, 8, axis=1)[:, :8]
    limit = np.sort(np.take_along_axis(exact, first, axis=1), axis=1)[:, 2]
    open_ = (below < limit[:, None] + _ROUNDING * (squares[:, None] + made.farthest)).sum(axis=1)
    each = np.where(open_ <= _MOST, _DEARER * open_, len(bank)) * bank.shape[1]
    return float(len(bank) * len(made.table) + len(made.directions) * bank.shape[1] * 2 + each.mean())


def nearest_within(
    made: Bounds, points: Floats, bank: Floats, products: Floats, distances: Any, positions: Any
) -> NDArray[np.int64]:
    """Fill ``distances (n, k)`` and ``positions (n, k)`` of ``points (n, d)``; ``products (n, m')`` is room to work in.

    Gives the rows, by position, that have too many candidates: what is in them is not the nearest. Only where ``bounds_of``
    gave bounds.
    """
    kernels = pruning()
    if kernels is None:
        raise ValueError("made: expected bounds on a machine with numba, got them without")
    guess, finish = kernels
    coordinates, squares = made.coordinates(points)
    np.matmul(coordinates, made.table, out=products)
    left = ~np.isfinite(squares)
    # What a bound in the table lacks, less what rounding may have added to it.
    lacking = squares * (1 - _ROUNDING) - _ROUNDING * made.farthest
    guess(products, points, bank, min(2 * distances.shape[1] + 2, len(bank)), distances, positions)
    finish(products, lacking, points, bank, _MOST, distances, positions, left)
    np.sqrt(distances, out=distances)
    return np.flatnonzero(left)


@cache
def pruning() -> tuple[Callable[..., None], Callable[..., None]] | None:
    """``_guess`` and ``_finish``, compiled; None without numba."""
    if not compiled.available():
        return None
    try:
        import numba

        # Sums may be taken in any order: that is what makes vector instructions of them.
        make = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
        return make(_guess), make(_finish)
    except Exception:  # noqa: BLE001  a broken or foreign numba must not stop a job that can do without
        compiled.log.debug("numba could not be used", exc_info=True)
        return None


def _guess(
    products: Any, points: Any, bank: Any, searched: int, distances: Any, positions: Any
) -> None:  # pragma: no cover - runs compiled
    """Squared distances and positions of the k nearest of those ``searched`` rows whose bounds are least."""
    n, m = products.shape
    kept, width = distances.shape[1], points.shape[1]
    best, where = np.empty(searched, np.float32), np.empty(searched, np.int64)
    for i in range(n):
        row = products[i]
        best[:] = np.inf
        where[:] = 0
        worst = np.float32(np.inf)
        for begin in range(0, m, 32):
            matter = np.int32(0)
            for j in range(32):  # counted over a fixed number of values, which becomes vector instructions
                matter += np.int32(row[begin + j] < worst)
            if matter == 0:
                continue
            for j in range(begin, begin + 32):
                value = row[j]
                if value < worst:
                    place = searched - 1
                    while place > 0 and best[place - 1] > value:
                        best[place], where[place] = best[place - 1], where[place - 1]
                        place -= 1
                    best[place], where[place] = value, j
                    worst = best[searched - 1]
        distances[i, :] = np.inf
        for c in range(searched):
            total, j = 0.0, where[c]
            for f in range(width):
                apart = np.float64(points[i, f] - bank[j, f])
                total += apart * apart
            last = distances[i, kept - 1]
            if total > last or (total == last and j > positions[i, kept - 1]):
                continue
            place = kept - 1
            while place > 0 and (
                distances[i, place - 1] > total or (distances[i, place - 1] == total and positions[i, place - 1] > j)
            ):
                distances[i, place], positions[i, place] = distances[i, place - 1], positions[i, place - 1]
                place -= 1
            distances[i, place], positions[i, place] = total, j


def _finish(  # noqa: PLR0912  one loop, compiled as it stands
    products: Any, lacking: Any, points: Any, bank: Any, most: int, distances: Any, positions: Any, left: Any
) -> None:  # pragma: no cover - runs compiled
    """Every other row whose bound is below the k-th distance so far; ``left`` where there are more than ``most``."""
    n, m = products.shape
    kept, width = distances.shape[1], points.shape[1]
    for i in range(n):
        row = products[i]
        cut = np.float32(distances[i, kept - 1] - lacking[i])
        matter = np.int32(0)
        for j in range(m):
            matter += np.int32(row[j] <= cut)
        if left[i] or matter > most:
            left[i] = True
            continue
        for begin in range(0, m, 32):
            matter = np.int32(0)
            for j in range(32):
                matter += np.int32(row[begin + j] <= cut)
            if matter == 0:
                continue
            for j in range(begin, begin + 32):
                if row[j] > cut:
                    continue
                known = False
                for c in range(kept):
                    known = known or positions[i, c] == j
                if known:
                    continue
                total, last = 0.0, distances[i, kept - 1]
                for f in range(width):
                    apart = np.float64(points[i, f] - bank[j, f])
                    total += apart * apart
                if total > last or (total == last and j > positions[i, kept - 1]):
                    continue
                place = kept - 1
                while place > 0 and (
                    distances[i, place - 1] > total
                    or (distances[i, place - 1] == total and positions[i, place - 1] > j)
                ):
                    distances[i, place], positions[i, place] = distances[i, place - 1], positions[i, place - 1]
                    place -= 1
                distances[i, place], positions[i, place] = total, j
                cut = np.float32(distances[i, kept - 1] - lacking[i])

"""Two inner loops that array calls do slowly, compiled where numba is installed (the extra ``fast``); None otherwise.

Whoever calls them has the same thing in numpy. Results agree to rounding: sums are taken in another order. The compiled
code is kept beside this file, or where numba keeps what it may not put there.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

#: Columns that are searched by their minimum, and the largest number that is not infinite.
GROUP, LARGEST = 32, np.float32(np.finfo(np.float32).max)


def available() -> bool:
    """Whether numba is installed, and not switched off by ``ANOMALY_COMPILED=0``."""
    return os.environ.get("ANOMALY_COMPILED", "1") != "0" and importlib.util.find_spec("numba") is not None


@cache
def ranking() -> Callable[..., None] | None:
    """``rank(products (n, m'), points (n, d), bank (m, d), searched, own, distances (n, k), positions (n, k))``.

    ``products`` rank the bank's rows; the ``searched`` smallest of each row, and whatever is as small, get exact distances, of
    which the k least, nearest first and ties by position, fill the last two. m' is a multiple of ``GROUP``, of which the
    columns beyond m are infinite. Row i does not match position ``own + i`` where ``own`` is at least 0.
    """
    return _compiled(_rank) if available() else None


@cache
def walking() -> Callable[..., None] | None:
    """``walk(points (n, d), features (trees, places), limits, lengths (trees, places + 1), depth, total (n,))``: sums of path
    lengths over complete trees, as ``detectors.boundary.path_lengths``."""
    return _compiled(_walk) if available() else None


def _compiled(function: Callable[..., None]) -> Callable[..., None] | None:
    try:
        import numba

        # Sums may be taken in any order: that is what makes vector instructions of them.
        return numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})(function)
    except Exception:  # a broken or foreign numba must not stop a job that can do without
        log.debug("numba could not be used", exc_info=True)
        return None


def _rank(  # noqa: PLR0912  one loop, compiled as it stands
    products: Any, points: Any, bank: Any, searched: int, own: int, distances: Any, positions: Any
) -> None:  # pragma: no cover - runs compiled
    n, m = products.shape
    kept, width = distances.shape[1], points.shape[1]
    groups = m // GROUP
    least, low = np.empty(groups, np.float32), np.empty(searched, np.float32)
    exact, where = np.empty(m), np.zeros(m, np.int64)
    for i in range(n):
        row = products[i]
        # Group g holds the columns g, g + groups, ...: minima over contiguous rows, without a branch to guess wrong.
        least[:] = row[:groups]
        for part in range(1, GROUP):
            cut = row[part * groups : (part + 1) * groups]
            for g in range(groups):
                least[g] = cut[g] if cut[g] < least[g] else least[g]
        # As many rows as are searched lie at or below this limit, so the nearest do.
        low[:] = LARGEST
        for g in range(groups):
            if least[g] < low[searched - 1]:
                at = searched - 1
                while at > 0 and low[at - 1] > least[g]:
                    low[at] = low[at - 1]
                    at -= 1
                low[at] = least[g]
        limit = low[searched - 1]
        count: Any = 0
        for g in range(groups):
            if least[g] <= limit:
                for j in range(g, m, groups):
                    where[count] = j
                    count += np.int64(row[j] <= limit)
        if count < kept:  # no product is a number
            count = len(bank)
            where[:count] = np.arange(count)
        for c in range(count):
            total, place = 0.0, where[c]
            for f in range(width):
                apart = np.float64(points[i, f] - bank[place, f])
                total += apart * apart
            exact[c] = np.inf if own >= 0 and place == own + i else total
        for c in range(kept):
            first: Any = c
            for other in range(c + 1, count):
                nearer = exact[other] < exact[first] or (exact[other] == exact[first] and where[other] < where[first])
                if nearer:
                    first = other
            exact[c], exact[first] = exact[first], exact[c]
            where[c], where[first] = where[first], where[c]
            distances[i, c], positions[i, c] = np.sqrt(exact[c]), where[c]


def _walk(
    points: Any, features: Any, limits: Any, lengths: Any, depth: int, total: Any
) -> None:  # pragma: no cover - runs compiled
    trees, places = features.shape
    n, one, leaf = points.shape[0], np.uint64(1), np.uint64(places)
    for low in range(0, n, 64):
        high = min(low + 64, n)
        total[low:high] = 0.0
        for t in range(trees):
            feature, limit, length = features[t], limits[t], lengths[t]
            i = low
            # Each step waits for the one before it, so eight rows walk side by side; unsigned, a place needs no check.
            while i + 8 <= high:
                a = b = c = d = e = f = g = h = np.uint64(0)
                p, q, r, s = points[i], points[i + 1], points[i + 2], points[i + 3]
                u, v, w, x = points[i + 4], points[i + 5], points[i + 6], points[i + 7]
                for _ in range(depth):
                    a = a + a + one + np.uint64(p[feature[a]] > limit[a])
                    b = b + b + one + np.uint64(q[feature[b]] > limit[b])
                    c = c + c + one + np.uint64(r[feature[c]] > limit[c])
                    d = d + d + one + np.uint64(s[feature[d]] > limit[d])
                    e = e + e + one + np.uint64(u[feature[e]] > limit[e])
                    f = f + f + one + np.uint64(v[feature[f]] > limit[f])
                    g = g + g + one + np.uint64(w[feature[g]] > limit[g])
                    h = h + h + one + np.uint64(x[feature[h]] > limit[h])
                total[i] += length[a - leaf]
                total[i + 1] += length[b - leaf]
                total[i + 2] += length[c - leaf]
                total[i + 3] += length[d - leaf]
                total[i + 4] += length[e - leaf]
                total[i + 5] += length[f - leaf]
                total[i + 6] += length[g - leaf]
                total[i + 7] += length[h - leaf]
                i += 8
            while i < high:
                a = np.uint64(0)
                for _ in range(depth):
                    a = a + a + one + np.uint64(points[i][feature[a]] > limit[a])
                total[i] += length[a - leaf]
                i += 1

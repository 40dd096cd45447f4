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


def available() -> bool:
    """Whether numba is installed, and not switched off by ``ANOMALY_COMPILED=0``."""
    return os.environ.get("ANOMALY_COMPILED", "1") != "0" and importlib.util.find_spec("numba") is not None


@cache
def ranking() -> Callable[..., None] | None:
    """``rank(products (n, m'), points (n, d), bank (m, d), searched, own, distances (n, k), positions (n, k))``.

    ``products`` rank the bank's rows; the ``searched`` smallest of each row get exact distances, of which the k least, nearest
    first and ties by position, fill the last two. Row i does not match position ``own + i`` where ``own`` is at least 0.
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

        return numba.njit(cache=True, nogil=True)(function)
    except Exception:  # a broken or foreign numba must not stop a job that can do without
        log.debug("numba could not be used", exc_info=True)
        return None


def _rank(
    products: Any, points: Any, bank: Any, searched: int, own: int, distances: Any, positions: Any
) -> None:  # pragma: no cover - runs compiled
    n, m = products.shape
    kept = distances.shape[1]
    best, where = np.empty(searched, np.float32), np.empty(searched, np.int64)
    exact = np.empty(searched, np.float64)
    for i in range(n):
        row = products[i]
        best[:] = np.inf
        where[:] = 0
        worst = np.float32(np.inf)
        for part in range((m + 127) // 128):
            low = part * 128
            high = min(low + 128, m)
            if high - low == 128:
                # How many matter is counted over a fixed number of values: the only form that becomes vector instructions.
                matter = np.int32(0)
                for j in range(128):
                    matter += np.int32(row[low + j] < worst)
                if matter == 0:
                    continue
            for j in range(low, high):
                value = row[j]
                if value < worst:
                    at = searched - 1
                    while at > 0 and best[at - 1] > value:
                        best[at], where[at] = best[at - 1], where[at - 1]
                        at -= 1
                    best[at], where[at] = value, j
                    worst = best[searched - 1]
        for c in range(searched):
            total, place = 0.0, where[c]
            for f in range(points.shape[1]):
                apart = np.float64(points[i, f] - bank[place, f])
                total += apart * apart
            total = np.inf if own >= 0 and place == own + i else total
            at = c
            while at > 0 and (exact[at - 1] > total or (exact[at - 1] == total and where[at - 1] > place)):
                exact[at], where[at] = exact[at - 1], where[at - 1]
                at -= 1
            exact[at], where[at] = total, place
        for c in range(kept):
            distances[i, c] = np.sqrt(exact[c])
            positions[i, c] = where[c]


def _walk(
    points: Any, features: Any, limits: Any, lengths: Any, depth: int, total: Any
) -> None:  # pragma: no cover - runs compiled
    trees, places = features.shape
    n = points.shape[0]
    for low in range(0, n, 64):
        high = min(low + 64, n)
        for i in range(low, high):
            total[i] = 0.0
        for t in range(trees):
            feature, limit, length = features[t], limits[t], lengths[t]
            i = low
            # Each step waits for the one before it, so four rows walk side by side.
            while i + 4 <= high:
                a, b, c, d = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
                first, second, third, fourth = points[i], points[i + 1], points[i + 2], points[i + 3]
                for _ in range(depth):
                    a = 2 * a + 1 + np.int64(first[feature[a]] > limit[a])
                    b = 2 * b + 1 + np.int64(second[feature[b]] > limit[b])
                    c = 2 * c + 1 + np.int64(third[feature[c]] > limit[c])
                    d = 2 * d + 1 + np.int64(fourth[feature[d]] > limit[d])
                total[i] += length[a - places]
                total[i + 1] += length[b - places]
                total[i + 2] += length[c - places]
                total[i + 3] += length[d - places]
                i += 4
            while i < high:
                a = np.int64(0)
                for _ in range(depth):
                    a = 2 * a + 1 + np.int64(points[i][feature[a]] > limit[a])
                total[i] += length[a - places]
                i += 1

"""Draw windows for people to label: by weight, at a temperature, without replacement, from every cluster (METHODS S19, S20).

A softmax draw without replacement is a top-k of weights with Gumbel noise added (Gumbel-top-k: Yellott 1977; Kool, van
Hoof and Welling 2019): no row is drawn twice, no sum over all rows is needed, and blocks can be merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def gumbel_top_k(
    weights: NDArray[np.floating], k: int, temperature: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """``min(k, n)`` positions of ``weights (n,)`` in the order drawn, softmax(weights / temperature), none twice (METHODS S19).

    Towards temperature 0 these are the largest, ties in an order that ``rng`` decides; at infinity every row is as likely.
    Raises ValueError for a temperature at or below 0, k below 0, or weights that are not finite.

    >>> gumbel_top_k(np.array([0.0, 5.0, 9.0]), 2, 1e-6, np.random.default_rng(0)).tolist()
    [2, 1]
    """
    exact = np.asarray(weights).astype(np.float64)
    _check_draw(exact, k, temperature)
    noise = rng.gumbel(size=len(exact))
    return _best(_keys(exact, noise, temperature), noise, np.arange(len(exact)), k)


def _check_draw(weights: Floats, k: int, temperature: float) -> None:
    if not temperature > 0:
        cure = "take a small one such as 0.01 for the largest weights only"
        raise ValueError(f"temperature: expected above 0 ({cure}), got {temperature}")
    if k < 0:
        raise ValueError(f"k: expected at least 0, got {k}")
    if weights.ndim != 1 or not np.isfinite(weights).all():
        raise ValueError(f"weights: expected finite ones (n,), got {weights.shape} or NaN or infinity")


def _keys(weights: Floats, noise: Floats, temperature: float) -> Floats:
    """Weights with noise, ``(n,)``: in the order of weights / temperature + noise, whatever the temperature.

    Below 1 the noise is made smaller instead of the weights larger, which would overflow.
    """
    return weights / temperature + noise if temperature >= 1 else weights + temperature * noise


def _best(keys: Floats, noise: Floats, rows: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Positions of the ``k`` largest keys, largest first; where rounding made keys equal the noise decides."""
    if k < len(keys):  # only those at or above the k-th largest need sorting
        chosen = (
            np.flatnonzero(keys >= np.partition(keys, len(keys) - k)[len(keys) - k]) if k else np.empty(0, np.int64)
        )
    else:
        chosen = np.arange(len(keys))
    return chosen[np.lexsort((rows[chosen], -noise[chosen], -keys[chosen]))][:k]


def row_noise(rows: NDArray[np.integer], seed: int) -> Floats:
    """Standard Gumbel noise that depends on ``seed`` and on each row's number alone, ``(n,)``.

    The generator is SplitMix64 (Steele, Lea and Flood 2014) read at position ``row`` of the stream of ``seed``: it counts,
    so no state runs along, and a row has the same noise however the rows are cut into blocks.

    >>> whole = row_noise(np.arange(4), seed=7)
    >>> bool((whole[2:] == row_noise(np.array([2, 3]), seed=7)).all())
    True
    """
    start = _mixed(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) ^ np.uint64(0xD1B54A32D192ED03))
    bits = _mixed(start + (np.asarray(rows).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52  # never 0 and never 1
    return -np.log(-np.log(uniform))


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finishing steps of SplitMix64: every bit of the input changes about half of the output."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@dataclass(frozen=True)
class Drawn:
    """Drawn rows, clusters in order and each cluster's rows in the order drawn.

    ``rows (m,)`` global row numbers, unique; ``ids (m,)`` clusters; ``order (m,)`` 1 for the row that its cluster gave
    first; ``weights (m,)``; ``columns``, whatever came along with the rows, ``(m, …)`` each.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    order: NDArray[np.int64]
    weights: Floats
    columns: tuple[NDArray[Any], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class _Kept:
    """The best rows of one cluster so far."""

    keys: Floats
    noise: Floats
    rows: NDArray[np.int64]
    weights: Floats
    columns: tuple[NDArray[Any], ...]

    def joined(self, other: _Kept) -> _Kept:
        return _Kept(
            np.concatenate((self.keys, other.keys)),
            np.concatenate((self.noise, other.noise)),
            np.concatenate((self.rows, other.rows)),
            np.concatenate((self.weights, other.weights)),
            _joined_columns([self.columns, other.columns]),
        )

    def best(self, k: int) -> _Kept:
        at = _best(self.keys, self.noise, self.rows, k)
        columns = tuple(column[at] for column in self.columns)
        return _Kept(self.keys[at], self.noise[at], self.rows[at], self.weights[at], columns)


class StratifiedSample:
    """A Gumbel-top-k of each cluster over streamed blocks; holds ``k`` rows per cluster and no more (METHODS S20).

    The noise of a row comes from ``row_noise``, so neither the cuts between blocks nor their order changes what is drawn.

    >>> sample = StratifiedSample(k=2, temperature=1.0, seed=7)
    >>> sample.add(np.array([0, 0, 0, 4]), np.zeros(4), np.arange(4))
    >>> drawn = sample.drawn()
    >>> drawn.ids.tolist(), drawn.order.tolist(), len(set(drawn.rows.tolist()))
    ([0, 0, 4], [1, 2, 1], 3)
    """

    def __init__(self, k: int, temperature: float, seed: int) -> None:
        if k < 1:
            raise ValueError(f"k: expected at least 1 row per cluster, got {k}")
        _check_draw(np.empty(0), k, temperature)
        self.k, self.temperature, self.seed = k, float(temperature), int(seed)
        self._kept: dict[int, _Kept] = {}

    def add(
        self,
        ids: NDArray[np.integer],
        weights: NDArray[np.floating],
        rows: NDArray[np.integer],
        *columns: NDArray[Any],
    ) -> None:
        """Offer rows with global numbers ``rows (n,)``, clusters ``ids (n,)``, ``weights (n,)``, and columns to keep along.

        Every row may be offered once. Raises ValueError for unequal lengths, weights that are not finite, negative row
        numbers, and a row number that comes twice in a block or among the rows kept.
        """
        exact, number = np.asarray(weights).astype(np.float64), np.asarray(rows).astype(np.int64)
        _check_draw(exact, self.k, self.temperature)
        lengths = [len(part) for part in (ids, weights, rows, *columns)]
        if len(set(lengths)) > 1:
            raise ValueError(f"ids, weights, rows, columns: expected equal lengths, got {lengths}")
        if len(number) and (number.min() < 0 or len(np.unique(number)) < len(number)):
            raise ValueError("rows: expected row numbers of at least 0, each once, got a negative or repeated one")
        noise = row_noise(number, self.seed)
        keys = _keys(exact, noise, self.temperature)
        for cluster in np.unique(ids).tolist():
            own = np.flatnonzero(ids == cluster)
            mine = tuple(column[own] for column in columns)
            self._keep(cluster, _Kept(keys[own], noise[own], number[own], exact[own], mine))

    def _keep(self, cluster: int, offered: _Kept) -> None:
        kept = self._kept.get(cluster)
        if kept is not None:
            if len(again := np.intersect1d(kept.rows, offered.rows)):
                raise ValueError(f"rows: expected every row once, got row {again[0]} again")
            offered = kept.joined(offered)
        self._kept[cluster] = offered.best(self.k)

    def drawn(self) -> Drawn:
        """What is drawn so far: ``min(k, rows)`` of every cluster that had a row."""
        clusters = sorted(self._kept)
        if not clusters:
            none = np.empty(0, np.int64)
            return Drawn(none, none, none, np.empty(0))
        kept = [self._kept[cluster] for cluster in clusters]
        sizes = [len(part.rows) for part in kept]
        return Drawn(
            np.concatenate([part.rows for part in kept]),
            np.repeat(np.array(clusters, np.int64), sizes),
            np.concatenate([np.arange(1, size + 1) for size in sizes]),
            np.concatenate([part.weights for part in kept]),
            _joined_columns([part.columns for part in kept]),
        )


def _joined_columns(parts: Sequence[tuple[NDArray[Any], ...]]) -> tuple[NDArray[Any], ...]:
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

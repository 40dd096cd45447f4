"""Which tags move together, and which follows the other (METHODS S49)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from anomaly.encoders.handmade.series import Series, demeaned, first_largest, time_first, windows_first

NAMES = ("correlation", "lag", "flat")

#: Share of the window by which one tag may follow the other.
_LONGEST_LAG = 1 / 4
#: A piece with less than this share of its window's energy is flat: its correlation would be one of rounding.
_LEAST_ENERGY = 1e-6


@dataclass(frozen=True)
class Pairs:
    """Pairs of tags that are watched: ``tags (P, 2)`` int64, and whether the two move alike (1) or opposite (−1),
    ``signs (P,)``: the lag of an opposite pair is that of the second tag turned over."""

    tags: NDArray[np.int64]
    signs: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.tags)


def most_correlated(windows: NDArray[np.floating], most: int) -> Pairs:
    """The at most ``most`` pairs of tags with the steadiest correlation inside the windows ``(B, T, C)``.

    Steady: the mean correlation of the windows, far from 0 either way; a pair that correlates now so and now otherwise
    tells nothing when it changes. In the order of the tags; ties go to the earlier tags.

    >>> rows = np.random.default_rng(0).normal(size=(50, 16, 1))
    >>> wave = np.sin(np.arange(16))[None, :, None] + 0 * rows
    >>> found = most_correlated(np.concatenate((rows, wave, -wave + rows / 9), axis=2), 1)
    >>> found.tags.tolist(), found.signs.tolist()
    ([[1, 2]], [-1.0])
    """
    unit = _unit(time_first(windows))[0]
    rows = unit.transpose(1, 0, 2).reshape(unit.shape[1], -1)
    mean = (rows @ rows.T) / max(windows.shape[0], 1)
    first, second = np.triu_indices(len(mean), k=1)
    steadiness = mean[first, second]
    chosen = np.sort(np.argsort(-np.abs(steadiness).round(6), kind="stable")[:most])
    tags = np.stack((first[chosen], second[chosen]), axis=1).astype(np.int64)
    return Pairs(tags, np.where(steadiness[chosen].round(6) < 0, -1.0, 1.0))


def relation_features(windows: NDArray[np.floating], pairs: Pairs) -> NDArray[np.float32]:
    """Windows ``(B, T, C)`` → ``(B, P, 3)`` in the order of ``NAMES``.

    Correlation: Pearson's, −1 … 1. Lag: rows by which the second tag follows the first (negative: leads it) where the
    two correlate most within a quarter of the window, each lag judged on the rows that overlap. Flat: 1 where a tag of
    the pair does not move; the other two are 0 then.

    >>> t = np.arange(32)
    >>> both = np.stack((np.sin(t * t / 60), np.sin((t - 3) ** 2 / 60)), axis=1)[None]
    >>> pair = Pairs(np.array([[0, 1]]), np.ones(1))
    >>> relation_features(both, pair)[0, 0, 1:].tolist()
    [3.0, 0.0]
    """
    unit, flat = _unit(time_first(windows))
    if not len(pairs):
        return np.empty((windows.shape[0], 0, len(NAMES)), np.float32)
    first, second = pairs.tags.T
    still = flat[first] | flat[second]
    correlation = np.einsum("tpb,tpb->pb", unit[:, first], unit[:, second])
    lag = phase_lag(unit, pairs)
    return windows_first(
        [
            np.where(still, 0.0, np.clip(correlation, -1.0, 1.0)),
            np.where(still, 0.0, lag),
            still.astype(np.float64),
        ]
    )


def phase_lag(series: Series, pairs: Pairs) -> Series:
    """Lag in rows ``(P, B)`` at which each pair of ``series (T, C, B)`` correlates most, up to T // 4 either way."""
    lags = np.array(sorted(range(-_longest(len(series)), _longest(len(series)) + 1), key=abs))
    if len(lags) == 1:
        return np.zeros((len(pairs), series.shape[2]))
    values = lagged_correlation(series, pairs, lags)
    return lags[first_largest(values)].astype(np.float64)


def lagged_correlation(series: Series, pairs: Pairs, lags: NDArray[np.int64]) -> Series:
    """Pearson's correlation of each pair at each lag, on the rows that overlap, ``(lags, P, B)``; 0 where one is flat.

    ``series (T, C, B)`` without mean; ``lags`` below T. At lag l the second tag's row t + l meets the first's row t. The
    products of all lags come from one Fourier transform per tag and one back per pair; sums come from running sums.
    """
    rows, longest = len(series), int(np.abs(lags).max())
    first, second = pairs.tags.T
    size = fft.next_fast_len(rows + longest, real=True)
    spectrum = fft.rfft(series, size, axis=0)
    product = fft.irfft(np.conj(spectrum[:, first]) * spectrum[:, second], size, axis=0)[lags % size]
    # A positive lag drops the first tag's last rows and the second's first; a negative one the other way round.
    early, late = np.maximum(lags, 0), np.maximum(-lags, 0)
    sums, energies = _overlap_sums(series, longest), _overlap_sums(series**2, longest)
    count = (rows - np.abs(lags))[:, None, None]
    sum_a, sum_b = _picked(sums, early, late, first), _picked(sums, late, early, second)
    energy_a = _picked(energies, early, late, first) - sum_a**2 / count
    energy_b = _picked(energies, late, early, second) - sum_b**2 / count
    whole = (series**2).sum(axis=0)
    moves = (energy_a > _LEAST_ENERGY * whole[first]) & (energy_b > _LEAST_ENERGY * whole[second])
    size_ab = np.sqrt(np.where(moves, energy_a, 1.0)) * np.sqrt(np.where(moves, energy_b, 1.0))
    return np.where(moves, pairs.signs[:, None] * (product - sum_a * sum_b / count) / size_ab, 0.0)


def _longest(rows: int) -> int:
    # Two rows always correlate fully: fewer than three in common say nothing.
    return max(0, min(int(rows * _LONGEST_LAG), rows - 3))


def _unit(series: Series) -> tuple[Series, NDArray[np.bool_]]:
    """The series without mean, of energy 1, ``(T, C, B)``, and which are flat ``(C, B)``; those become 0."""
    moved, flat = demeaned(series)
    size = np.sqrt((moved**2).sum(axis=0))
    return np.where(flat, 0.0, moved / np.where(flat, 1.0, size)), flat


def _overlap_sums(series: Series, longest: int) -> tuple[Series, Series]:
    """Sums of each series without its last k rows, and without its first k, k = 0 … longest, ``(longest + 1, C, B)``."""
    rows = len(series)
    running = np.concatenate((np.zeros_like(series[:1]), np.cumsum(series, axis=0)))
    return running[rows - np.arange(longest + 1)], running[rows] - running[: longest + 1]


def _picked(
    sums: tuple[Series, Series],
    without_last: NDArray[np.int64],
    without_first: NDArray[np.int64],
    tags: NDArray[np.int64],
) -> Series:
    """Per lag and pair the sum without so many last, or so many first rows (one of the two is 0), ``(lags, P, B)``."""
    heads, tails = sums
    shortened = np.where((without_first > 0)[:, None, None], tails[without_first], heads[without_last])
    return shortened[:, tags]

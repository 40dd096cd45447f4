"""What the groups of features share: series with time first, and when a series counts as flat.

Inside, a block of windows ``(B, T, C)`` is held as ``(T, C, B)``: a sum over time then adds long rows of windows, which
is several times faster than many sums over 32 neighbours, and a shift in time is a plain slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]

#: Movement below this share of a normal deviation (1 in prepared units), or of the series' own size, is rounding.
LEAST_MOVEMENT = 1e-6
#: Two candidates for a largest value closer than this are a tie: the first wins, whatever the rounding.
_TIE = 1e-9


def time_first(windows: NDArray[np.floating]) -> Series:
    """Windows ``(B, T, C)`` → series ``(T, C, B)`` float64; raises ValueError for any other rank, or no row at all."""
    if windows.ndim != 3 or not windows.shape[1]:
        raise ValueError(f"windows: expected (B, T, C) with at least one row, got {windows.shape}")
    return np.ascontiguousarray(windows.transpose(1, 2, 0), dtype=np.float64)


def windows_first(features: Sequence[Series]) -> NDArray[np.float32]:
    """Features, each ``(C, B)``, → ``(B, C, features)`` float32, clipped to what float32 can hold."""
    limit = float(np.finfo(np.float32).max)
    return np.clip(np.stack(features, axis=-1).swapaxes(0, 1), -limit, limit).astype(np.float32)


def demeaned(series: Series) -> tuple[Series, NDArray[np.bool_]]:
    """The series ``(T, …)`` without their means, and which of them are flat, ``(…)``.

    >>> demeaned(np.array([[1.0, 5.0], [3.0, 5.0]]))[1].tolist()
    [False, True]
    """
    moved = series - series.mean(axis=0)
    size = np.sqrt((series**2).mean(axis=0))
    return moved, np.sqrt((moved**2).mean(axis=0)) <= LEAST_MOVEMENT * np.maximum(size, 1.0)


def first_largest(values: Series) -> NDArray[np.int64]:
    """Position along axis 0 of the largest value; of values that differ by rounding only, the first.

    >>> int(first_largest(np.array([0.0, 2.0, 2.0 + 1e-12])))
    1
    """
    largest = values.max(axis=0)
    return np.argmax(values >= largest - _TIE * np.abs(largest), axis=0)

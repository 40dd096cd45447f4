"""Level, spread and slope of each tag in its window (METHODS S46)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.encoders.handmade.series import Series, time_first, windows_first

NAMES = ("mean", "deviation", "peak", "peak to peak", "rms", "slope")


def time_features(windows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Windows ``(B, T, C)`` → ``(B, C, 6)`` in the order of ``NAMES``, in the tag's units; the slope in units per row.

    The deviation is the population's; the peak is the largest distance from the mean.

    >>> ramp = np.array([1.0, 3.0, 5.0])
    >>> [round(float(x), 2) for x in time_features(ramp[None, :, None]).ravel()]
    [3.0, 1.63, 2.0, 4.0, 3.42, 2.0]
    """
    series = time_first(windows)
    mean, high, low = series.mean(axis=0), series.max(axis=0), series.min(axis=0)
    moved = series - mean
    return windows_first(
        [
            mean,
            np.sqrt((moved**2).mean(axis=0)),
            np.maximum(high - mean, mean - low),
            high - low,
            np.sqrt((series**2).mean(axis=0)),
            slope(moved),
        ]
    )


def slope(series: Series) -> Series:
    """Slope per row of the least-squares line through each series ``(T, …)``, ``(…)``; 0 for a single row.

    >>> float(slope(np.array([0.0, 0.5, 1.0])))
    0.5
    """
    at = np.arange(len(series)) - (len(series) - 1) / 2
    return np.tensordot(at, series, axes=1) / max(float((at**2).sum()), 1.0)

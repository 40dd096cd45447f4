"""What oscillates in a window, and how purely (METHODS S47).

The spectrum is that of the window without its mean under a Hann taper. The taper keeps a trend in the lowest two bins,
and a tone between two bins from smearing over all of them. The trend itself is left in: taking the line out would take
three fifths of a slow sine with it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from anomaly.encoders.handmade.series import Series, demeaned, first_largest, time_first, windows_first

NAMES = ("main bin", "energy concentration", "spectral entropy")


def frequency_features(windows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Windows ``(B, T, C)`` → ``(B, C, 3)`` in the order of ``NAMES``.

    Main bin: cycles per window of the strongest bin, 1 … T/2. Energy concentration: its share of all energy (2/3 for a
    pure tone on a bin, by the taper). Spectral entropy: 0 one bin … 1 all alike. All 0 for a flat tag, or a single row.

    >>> tone = np.sin(2 * np.pi * 5 * np.arange(32) / 32)
    >>> [round(float(x), 2) for x in frequency_features(tone[None, :, None]).ravel()]
    [5.0, 0.67, 0.31]
    """
    moved, flat = demeaned(time_first(windows))
    if len(moved) < 2:
        nothing = np.zeros(moved.shape[1:])
        return windows_first([nothing] * len(NAMES))
    power = power_spectrum(moved)
    features = (first_largest(power) + 1.0, energy_concentration(power), spectral_entropy(power))
    return windows_first([np.where(flat, 0.0, feature) for feature in features])


def power_spectrum(series: Series) -> Series:
    """Energy of the bins 1 … T // 2 of each Hann-tapered series ``(T, …)``, ``(T // 2, …)``: bin 0 is left out.

    Each bin stands for its frequency and the negative one; the last of an even T is both at once, so it counts half.
    """
    rows = len(series)
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(rows) / rows)
    spectrum = fft.rfft(series * taper.reshape(-1, *[1] * (series.ndim - 1)), axis=0)[1:]
    power = spectrum.real**2 + spectrum.imag**2
    if rows % 2 == 0:
        power[-1] /= 2
    return power


def energy_concentration(power: Series) -> Series:
    """Share of the largest bin of spectra ``(F, …)``, ``(…)``; 0 where there is no energy.

    >>> float(energy_concentration(np.array([1.0, 3.0])))
    0.75
    """
    total = power.sum(axis=0)
    return power.max(axis=0) / np.where(total > 0, total, 1.0)


def spectral_entropy(power: Series) -> Series:
    """Shannon entropy of spectra ``(F, …)`` as shares, over its largest value log F: 0 … 1, ``(…)``; 0 without energy.

    The entropy of one window of white noise lies below 1, at about 1 − 0.42 / log F, because a single periodogram is
    ragged; that of a mean spectrum of many goes to 1.

    >>> float(spectral_entropy(np.array([2.0, 2.0, 2.0, 2.0]))), float(spectral_entropy(np.array([0.0, 1.0])))
    (1.0, 0.0)
    """
    if len(power) < 2:
        return np.zeros(power.shape[1:])
    total = power.sum(axis=0)
    share = power / np.where(total > 0, total, 1.0)
    entropy = (share * np.log(1.0 / np.where(share > 0, share, 1.0))).sum(axis=0)
    return np.minimum(entropy / np.log(len(power)), 1.0)

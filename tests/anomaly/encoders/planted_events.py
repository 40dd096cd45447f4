"""A planted plant with drift, whose events announce themselves in one direction of what the normal plant does anyway.

Four hidden movements, each a smooth curve over the window with its own share in every tag, make up a window; every tag
adds noise of its own. Before an event the first movement grows. No value is unusual by itself, so a model without labels
ranks such windows like any other, and whoever finds the four movements needs few labels.
"""

from __future__ import annotations

import numpy as np

from anomaly.encoders.fine_tuning import LabelledWindows

ROWS, TAGS, MOVEMENTS = 16, 8, 4
#: Windows from one event to the next; the last ones, PRECURSOR of them, are positive.
PERIOD, PRECURSOR = 44, 4


def _movements() -> np.ndarray:
    """``(MOVEMENTS, ROWS, TAGS)``, without level, of mean square 1."""
    rng = np.random.default_rng(99)
    angle = np.arange(ROWS)[None, :] / ROWS * np.pi * np.arange(1, MOVEMENTS + 1)[:, None]
    curves = np.sin(angle + rng.uniform(0, 2 * np.pi, (MOVEMENTS, 1)))
    curves = curves[:, :, None] * rng.normal(size=(MOVEMENTS, 1, TAGS))
    curves -= curves.mean(axis=1, keepdims=True)
    return curves / np.sqrt((curves**2).mean(axis=(1, 2), keepdims=True))


def planted(
    events: int, seed: int, *, drift: tuple[float, float] = (0.0, 0.0), noise: float = 3.0, size: float = 3.0
) -> LabelledWindows:
    """``events`` periods in time order; the levels of the tags drift apart from ``drift[0]`` to ``drift[1]``, the
    precursor grows from window to window up to ``size`` deviations of the first movement."""
    rng = np.random.default_rng(seed)
    n, place = PERIOD * events, np.tile(np.arange(PERIOD), events)
    amount = rng.normal(size=(n, MOVEMENTS))
    amount[:, 0] += size * np.clip((place - (PERIOD - PRECURSOR - 1)) / PRECURSOR, 0, 1)
    windows = np.einsum("nk,ktc->ntc", amount, _movements()) + noise * rng.normal(size=(n, ROWS, TAGS))
    windows += np.linspace(*drift, n)[:, None, None] * np.linspace(-1, 1, TAGS)
    positive = place >= PERIOD - PRECURSOR
    return LabelledWindows(windows.astype(np.float32), positive, np.arange(n) // PERIOD)

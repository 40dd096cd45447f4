"""Views of a window for contrastive learning: pure functions of a generator, windows and a strength (METHODS S26).

Each takes tags ``(B, T, C)`` and gives a new array of that shape; strength 0 gives the same values. A view must still be
normal operation: level shifts, spikes and broken couplings are what the detector looks for, so none of them is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Windows = NDArray[np.float32]
#: Knots of the smooth random curves that warp size and time.
_KNOTS = 4


def jitter(rng: np.random.Generator, windows: Windows, strength: float) -> Windows:
    """White noise of ``strength`` deviations on every value."""
    return windows + np.float32(strength) * rng.standard_normal(windows.shape, dtype=np.float32)


def scale(rng: np.random.Generator, windows: Windows, strength: float) -> Windows:
    """Each tag of each window times a factor 1 ± ``strength``."""
    factor = 1 + np.float32(strength) * rng.standard_normal((len(windows), 1, windows.shape[2]), dtype=np.float32)
    return windows * factor


def time_mask(rng: np.random.Generator, windows: Windows, strength: float) -> Windows:
    """A stretch of the share ``strength`` of the rows held at each tag's mean over the window."""
    rows = windows.shape[1]
    length = round(strength * rows)
    first = rng.integers(0, rows - length + 1, size=len(windows))
    at = np.arange(rows)
    hidden = (at >= first[:, None]) & (at < first[:, None] + length)
    return np.where(hidden[..., None], windows.mean(axis=1, keepdims=True), windows).astype(np.float32)


def sensor_dropout(rng: np.random.Generator, windows: Windows, strength: float) -> Windows:
    """Each tag, with probability ``strength``, held at its mean over the window; one tag always stays."""
    tags = windows.shape[2]
    drawn = rng.random((len(windows), tags))
    silent = drawn < strength
    silent[np.arange(len(windows)), drawn.argmax(axis=1)] = False
    return np.where(silent[:, None], windows.mean(axis=1, keepdims=True), windows).astype(np.float32)


def magnitude_warp(rng: np.random.Generator, windows: Windows, strength: float) -> Windows:
    """Times a smooth curve around 1 that wanders by about ``strength``, one per tag."""
    curve = 1 + np.float32(strength) * _smooth(rng, windows.shape)
    return (windows * curve).astype(np.float32)


def time_warp(rng: np.random.Generator, windows: Windows, strength: float) -> Windows:
    """Rows read at a pace that wanders by about ``strength``; first and last row stay, order never turns."""
    pace = np.exp(np.float32(strength) * _smooth(rng, (len(windows), windows.shape[1], 1)))[..., 0]
    return at_rows(windows, _paced(pace))


def crop_and_resize(rng: np.random.Generator, windows: Windows, strength: float) -> Windows:
    """A stretch of the share 1 − ``strength`` … 1 of the rows, drawn out to the whole length."""
    return at_rows(windows, crop_rows(rng, windows, strength))


def crop_rows(rng: np.random.Generator, windows: Windows, strength: float) -> NDArray[np.float64]:
    """Where a crop reads its rows ``(B, T)``, as numbers between 0 and T − 1."""
    rows = np.arange(windows.shape[1])
    kept = 1 - strength * rng.random(len(windows))
    first = rng.random(len(windows)) * (1 - kept) * rows[-1]
    return first[:, None] + kept[:, None] * rows


def at_rows(windows: Windows, rows: NDArray[np.floating]) -> Windows:
    """Windows read at fractional ``rows (B, T')``, linear in between."""
    low = np.clip(np.floor(rows).astype(np.int64), 0, windows.shape[1] - 1)
    high = np.minimum(low + 1, windows.shape[1] - 1)
    part = (rows - low)[..., None].astype(np.float32)
    before, after = (np.take_along_axis(windows, at[..., None], axis=1) for at in (low, high))
    return np.where(part == 0, before, before + part * (after - before)).astype(np.float32)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> Windows:
    """Random curves ``(B, T, C)`` through a few knots, of deviation about 1."""
    knots = rng.standard_normal((shape[0], _KNOTS, shape[2]), dtype=np.float32)
    places = np.broadcast_to(np.linspace(0, _KNOTS - 1, shape[1]), (shape[0], shape[1]))
    return at_rows(knots, places)


def _paced(pace: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows ``(B, T)`` reached at a pace ``(B, T)``, from 0 to T − 1."""
    way = np.cumsum(pace[:, :-1] + pace[:, 1:], axis=1, dtype=np.float64)
    way = np.concatenate((np.zeros((len(pace), 1)), way), axis=1)
    return way * ((pace.shape[1] - 1) / np.maximum(way[:, -1:], 1e-12))


#: Every augmentation by its option's name, in the order in which a view applies them.
AUGMENTATIONS: dict[str, Callable[[np.random.Generator, Windows, float], Windows]] = {
    "crop": crop_and_resize,
    "time_warp": time_warp,
    "scale": scale,
    "magnitude_warp": magnitude_warp,
    "time_mask": time_mask,
    "sensor_dropout": sensor_dropout,
    "jitter": jitter,
}
#: Those that move rows in time: categories move along.
_IN_TIME = ("crop", "time_warp")


def view(rng: np.random.Generator, windows: Windows, tags: int, strengths: Mapping[str, float]) -> Windows:
    """One view of windows ``(B, T, channels)``: each augmentation with a strength above 0, tags only.

    Category codes, the channels behind the tags, are never changed in value; where rows move in time they are read at
    the nearest row.
    """
    untouched, codes = windows[..., :tags], windows[..., tags:]
    values = untouched
    rows: NDArray[np.floating] = np.broadcast_to(np.arange(windows.shape[1], dtype=np.float64), windows.shape[:2])
    for name, augment in AUGMENTATIONS.items():
        strength = strengths.get(name, 0.0)
        if not strength or (name in _IN_TIME and windows.shape[1] < 2):
            continue
        if codes.shape[-1] and name in _IN_TIME:
            values, rows = _moved(rng, values, rows, name, strength)
        else:
            values = augment(rng, values, strength)
    if not codes.shape[-1]:
        return values.copy() if values is untouched else values
    nearest = np.clip(np.rint(rows), 0, windows.shape[1] - 1).astype(np.int64)
    return np.concatenate((values, np.take_along_axis(codes, nearest[..., None], axis=1)), axis=2)


def _moved(
    rng: np.random.Generator, values: Windows, rows: NDArray[np.floating], name: str, strength: float
) -> tuple[Windows, NDArray[np.floating]]:
    """The augmentation of tags together with where each row came from: the row numbers are moved as one more tag."""
    numbered = np.concatenate((values, rows[..., None].astype(np.float32)), axis=2)
    moved = AUGMENTATIONS[name](rng, numbered, strength)
    return moved[..., :-1], moved[..., -1].astype(np.float64)

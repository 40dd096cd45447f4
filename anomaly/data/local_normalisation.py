"""Local normalisation: what a window says apart from the level it sits on (METHODS S36).

Plants drift: the level of a sensor next month is not that of the training month, its movement inside a window still is.
Each front turns prepared windows ``(B, T, C)`` into windows of ``(B, T, C')`` and can put what an encoder expected
there back into the window's own units. A front looks at the window alone, so a stream needs no further state.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import Fault, UsageError

Windows = NDArray[np.float32]

#: Steps in rows of the multi-scale differences.
SCALES = (1, 4, 16)
#: A spread below this share of a normal row's is kept as it is: dividing by it would blow up a quiet tag.
LEAST_SPREAD = 0.1


@dataclass(frozen=True)
class Front:
    """One local normalisation. ``apply``: ``(B, T, C)`` → ``(B, T, C')``. ``undo(expected, windows)``: what was expected
    behind the front ``(B, T, C')``, in the units of ``windows (B, T, C)``. ``multiple``: C' over C."""

    name: str
    apply: Callable[[Windows], Windows]
    undo: Callable[[Windows, Windows], Windows]
    multiple: int = 1

    def channels(self, tags: int) -> int:
        """Channels behind the front."""
        return tags * self.multiple


def line(windows: Windows) -> Windows:
    """Each tag's least-squares line over its window, ``(B, T, C)``.

    >>> line(np.array([[[0.0], [1.0], [2.0]]], np.float32)).ravel().tolist()
    [0.0, 1.0, 2.0]
    """
    rows = windows.shape[1]
    at = np.arange(rows, dtype=np.float64) - (rows - 1) / 2
    values = windows.astype(np.float64)
    slope = np.einsum("t,btc->bc", at, values) / max(float((at**2).sum()), 1.0)
    return np.asarray(values.mean(axis=1, keepdims=True) + slope[:, None] * at[:, None], dtype=np.float32)


def level(windows: Windows) -> Windows:
    """Each tag's mean over its window, ``(B, 1, C)``."""
    return np.asarray(windows.mean(axis=1, keepdims=True, dtype=np.float64), dtype=np.float32)


def spread(windows: Windows) -> Windows:
    """Each tag's deviation in its window ``(B, 1, C)``, at least ``LEAST_SPREAD``: a constant channel stays finite."""
    deviation = windows.std(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(np.maximum(deviation, LEAST_SPREAD), dtype=np.float32)


def trailing_mean(windows: Windows) -> Windows:
    """The mean of the rows before each row of its window, ``(B, T, C)``; the first row is its own."""
    total = np.cumsum(windows, axis=1, dtype=np.float64)
    before = total[:, :-1] / np.arange(1, windows.shape[1])[:, None]
    return np.concatenate((windows[:, :1], before), axis=1).astype(np.float32)


def differences(windows: Windows) -> Windows:
    """The window without its mean, then its changes over ``SCALES`` rows, ``(B, T, C · 4)``; no change before row 0."""
    rows = windows.shape[1]
    parts = [windows - level(windows)]
    for step in SCALES:
        earlier = windows[:, np.maximum(np.arange(rows) - step, 0)]
        parts.append(windows - earlier)
    return np.concatenate(parts, axis=2)


def _first_group(expected: Windows, windows: Windows) -> Windows:
    return np.asarray(expected[..., : windows.shape[-1]] + level(windows))


FRONTS: dict[str, Front] = {
    front.name: front
    for front in (
        Front("none", lambda windows: windows, lambda expected, windows: expected),
        Front("demean", lambda w: w - level(w), lambda expected, w: expected + level(w)),
        Front("detrend", lambda w: w - line(w), lambda expected, w: expected + line(w)),
        Front(
            "normalise",
            lambda w: (w - level(w)) / spread(w),
            lambda expected, w: expected * spread(w) + level(w),
        ),
        Front("trailing", lambda w: w - trailing_mean(w), lambda expected, w: expected + trailing_mean(w)),
        Front("differences", differences, _first_group, multiple=1 + len(SCALES)),
    )
}


def local_normalisation(name: str) -> Front:
    """The front called ``name``; raises UsageError E2002 for an unknown one, with the nearest name."""
    if name not in FRONTS:
        near = difflib.get_close_matches(name, FRONTS, n=1) or list(FRONTS)
        raise UsageError(Fault("E2002", f"encoder.front: {', '.join(FRONTS)}", name, f"did you mean {near[0]}?"))
    return FRONTS[name]

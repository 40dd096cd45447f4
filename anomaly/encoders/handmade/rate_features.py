"""How fast each tag moves in its window, and how far it shoots beyond where it ends (METHODS S48)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.encoders.handmade.series import LEAST_MOVEMENT, Series, time_first, windows_first

NAMES = ("max difference", "rise time", "overshoot")

#: Share of a window's rows that give its start level, and its end level.
_ENDS = 1 / 8
#: A step smaller than this share of the window's range is no step: the ends differ by what the tag does anyway.
LEAST_STEP = 0.1


def rate_features(windows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Windows ``(B, T, C)`` → ``(B, C, 3)`` in the order of ``NAMES``.

    Max difference: largest change from row to row, in the tag's units. Rise time: rows from 10 % to 90 % of the step
    between start and end level, up or down; 0 where there is no step. Overshoot: how far beyond the end level, in steps.
    Levels are means of the first and the last eighth of the rows.

    >>> response = np.array([0.0, 0.5, 1.0, 1.5, 1.0])
    >>> [round(float(x), 2) for x in rate_features(response[None, :, None]).ravel()]
    [0.5, 1.6, 0.5]
    """
    series = time_first(windows)
    start, step, span = step_between_ends(series)
    return windows_first(
        [max_difference(series), rise_time(series, start, step, span), overshoot(series, start, step, span)]
    )


def max_difference(series: Series) -> Series:
    """Largest change between neighbour rows of each series ``(T, …)``, ``(…)``; 0 for a single row."""
    return np.abs(np.diff(series, axis=0)).max(axis=0, initial=0.0)


def step_between_ends(series: Series) -> tuple[Series, Series, Series]:
    """Start level, step to the end level, and range of each series ``(T, …)``, ``(…)`` each.

    >>> [float(x) for x in step_between_ends(np.array([2.0, 9.0, 5.0]))]
    [2.0, 3.0, 7.0]
    """
    rows = max(1, int(len(series) * _ENDS))
    start = series[:rows].mean(axis=0)
    return start, series[-rows:].mean(axis=0) - start, series.max(axis=0) - series.min(axis=0)


def rise_time(series: Series, start: Series, step: Series, span: Series) -> Series:
    """Rows between the first passing of 10 % and of 90 % of the step, interpolated between rows; 0 without a step."""
    is_step = np.abs(step) > _least_step(span, start)
    progress = (series - start) / np.where(is_step, step, 1.0)
    passed = [_first_passing(progress, level) for level in (0.1, 0.9)]
    return np.where(is_step, np.maximum(passed[1] - passed[0], 0.0), 0.0)


def overshoot(series: Series, start: Series, step: Series, span: Series) -> Series:
    """The largest excursion beyond the end level, on the far side of the step, over the step.

    A step too small to be one is taken for ``LEAST_STEP`` of the range, so that what a level tag does by chance is at
    most 10 and not any number.
    """
    least = _least_step(span, start)
    turned = np.where(step < 0, -1.0, 1.0)
    beyond = ((series - (start + step)) * turned).max(axis=0)
    moves = span > LEAST_MOVEMENT * np.maximum(np.abs(start), 1.0)
    return np.where(moves, np.maximum(beyond, 0.0) / np.maximum(np.abs(step), least), 0.0)


def _least_step(span: Series, start: Series) -> Series:
    return np.maximum(LEAST_STEP * span, LEAST_MOVEMENT * np.maximum(np.abs(start), 1.0))


def _first_passing(progress: Series, level: float) -> Series:
    """The time in rows at which ``progress (T, …)`` first reaches ``level``; the last row where it never does."""
    reached = progress >= level
    at = np.where(reached.any(axis=0), np.argmax(reached, axis=0), len(progress) - 1)[None]
    here = np.take_along_axis(progress, at, axis=0)[0]
    before = np.take_along_axis(progress, np.maximum(at - 1, 0), axis=0)[0]
    rise = here - before
    share = (level - before) / np.where(rise > 0, rise, 1.0)
    return at[0] - 1 + np.where((at[0] > 0) & (rise > 0), np.clip(share, 0.0, 1.0), 1.0)

"""What another threshold would have given: alerts in vain against events found, one row per threshold (METHODS S61).

Counts are of labelled rows, so of the validation part: reading the test part this way would be choosing on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from anomaly.intervals import Intervals, as_intervals, contains
from anomaly.scores.thresholds import episodes_at

_WEEK_US = 7 * 86_400_000_000
_STEPS = 4


@dataclass(frozen=True)
class WhatIfRow:
    """What one threshold gives on a part.

    ``false_episodes`` of normal rows in ``weeks`` weeks of normal operation of all assets together; ``per_week`` is
    their number per asset and week with its 95 % Poisson interval ``low`` to ``high``. ``found`` of ``events`` events
    have a flagged row in their lead window or before their end; ``median_lead_s`` over those, None where there is none,
    negative is late. ``flagged`` is the share of normal rows at or above the threshold.
    """

    threshold: float
    chosen: bool
    false_episodes: int
    weeks: float
    per_week: float
    low: float
    high: float
    found: int
    events: int
    median_lead_s: float | None
    flagged: float


def what_if(
    scores: NDArray[np.float64],
    *,
    time: NDArray[np.int64],
    asset: NDArray[np.object_],
    events: Mapping[str, Intervals],
    chosen: float,
    period_us: int,
    merge_gap_us: int,
    lead_us: int = 0,
    normal: NDArray[np.bool_] | None = None,
    thresholds: Sequence[float] | None = None,
) -> list[WhatIfRow]:
    """A row for each threshold of a grid around ``chosen``, lowest first.

    ``scores (n,)``, NaN where unscorable; ``time (n,)`` UTC microseconds in order within each ``asset (n,)``;
    ``events`` half-open intervals per asset; ``normal (n,)`` which rows are known to be normal, by default all outside
    events and their lead windows. ``thresholds`` replaces the grid; ``chosen`` is always among them. Raises ValueError
    when lengths differ or no normal row was scored.
    """
    if not len(scores) == len(time) == len(asset):
        raise ValueError(f"scores: expected one per time and asset, got {len(scores)}, {len(time)} and {len(asset)}")
    windows = {name: _windows(own, lead_us) for name, own in events.items()}
    rows = _by_asset(asset)
    if normal is None:
        normal = np.ones(len(scores), dtype=bool)
        for name, at in rows.items():
            zones = [(opens, end) for opens, _, end in windows.get(name, [])]
            normal[at] = ~contains(as_intervals(zones), time[at])
    judged = normal & np.isfinite(scores)
    if not judged.any():
        raise ValueError("normal: expected at least one scored normal row, got none")
    grid = sorted({*(grid_around(chosen) if thresholds is None else thresholds), chosen})
    weeks = int(judged.sum()) * period_us / _WEEK_US
    quiet = [at[judged[at]] for at in rows.values()]
    made = []
    for value in grid:
        count = sum(episodes_at(scores[at], time[at], value, merge_gap_us) for at in quiet)
        low, high = poisson_range(count)
        leads = _leads(scores, time, rows, windows, value)
        made.append(
            WhatIfRow(
                threshold=float(value),
                chosen=value == chosen,
                false_episodes=count,
                weeks=weeks,
                per_week=count / weeks,
                low=low / weeks,
                high=high / weeks,
                found=len(leads),
                events=sum(len(own) for own in windows.values()),
                median_lead_s=float(np.median(leads)) if leads else None,
                flagged=float(np.mean(scores[judged] >= value)),
            )
        )
    return made


def grid_around(chosen: float) -> list[float]:
    """Nine thresholds: the chosen one, four above it up to ten times as rare, four below it down to ten times as common.

    Scores are decades of rarity and begin at 0, so below a low threshold the steps are smaller.

    >>> grid_around(2.0)
    [1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0]
    """
    down = min(1.0, max(chosen, 0.0) * 0.8) / _STEPS
    below = [round(chosen - k * down, 12) for k in range(_STEPS, 0, -1)] if down else []
    return [*below, chosen, *(round(chosen + k / _STEPS, 12) for k in range(1, _STEPS + 1))]


def poisson_range(count: int) -> tuple[float, float]:
    """Exact 95 % interval of the mean behind a Poisson count (Garwood 1936).

    >>> [round(end, 2) for end in poisson_range(0)]
    [0.0, 3.69]
    """
    low = float(chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
    return low, float(chi2.ppf(0.975, 2 * count + 2)) / 2


def _by_asset(asset: NDArray[np.object_]) -> dict[str, NDArray[np.intp]]:
    """Rows of each asset, in order."""
    names, codes = np.unique(asset.astype(str), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))[:-1]
    return {str(name): at for name, at in zip(names, np.split(order, ends), strict=True)}


def _windows(events: Intervals, lead_us: int) -> list[tuple[int, int, int]]:
    """(opening of the lead window, start, end) of each event; the lead is cut where the event before it ends."""
    found, previous_end = [], -(2**62)
    ordered = as_intervals(events)
    for start, end in ordered[np.argsort(ordered[:, 0], kind="stable")].tolist():
        found.append((min(max(start - lead_us, previous_end), start), start, end))
        previous_end = end
    return found


def _leads(
    scores: NDArray[np.float64],
    time: NDArray[np.int64],
    rows: Mapping[str, NDArray[np.intp]],
    windows: Mapping[str, list[tuple[int, int, int]]],
    threshold: float,
) -> list[float]:
    """Seconds from the first flagged row to the start, of each event that has one in ``[opening, end)``."""
    leads = []
    for name, own in windows.items():
        at = rows.get(name, np.empty(0, dtype=np.intp))
        flagged = time[at][scores[at] >= threshold]
        for opens, start, end in own:
            first = int(np.searchsorted(flagged, opens))
            if first < len(flagged) and flagged[first] < end:
                leads.append((start - int(flagged[first])) / 1e6)
    return leads

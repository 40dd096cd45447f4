"""A threshold moved with the score level of normal rows: proposed to a person, never applied by itself.

A threshold that was picked at fit time does not hold where a plant drifts: the scores of normal rows rise as a whole, and
one row in a thousand becomes one in twenty. The score stays as it is stored; what moves is where an alert begins.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.scores.calibration import CAP
from anomaly.scores.thresholds import episodes_at
from anomaly.scores.what_if import poisson_range

#: Quantiles that tell level and spread of the scores: events are rare enough to leave them alone.
_LEVELS = (0.5, 0.7, 0.8, 0.9)
#: What a score means on the rows it was calibrated on: -log10 of the share of rows at or above it.
_NOMINAL = tuple(float(-np.log10(1 - q)) for q in _LEVELS)
#: A proposal needs so many rows, forty of them beyond the last level.
LEAST_ROWS = 400
#: Moves smaller than this share of the threshold are not worth a person's time.
_WORTH = 0.1
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Proposal:
    """What became of the score level, and the threshold that would follow it.

    ``level`` and ``spread``: scores of recent normal rows are about ``level + spread × score at calibration``; 0 and 1 say
    that nothing moved. ``before`` and ``after`` are episodes of the recent rows at either threshold, in ``days`` days of
    operation, ``after_low`` to ``after_high`` the 95 % Poisson interval of the latter per day. ``needed``: whether the move
    is large enough to be proposed; ``words`` says all of it in a line.
    """

    current: float
    proposed: float
    level: float
    spread: float
    rows: int
    days: float
    before: int
    after: int
    after_low: float
    after_high: float
    budget: float
    needed: bool
    words: str

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return asdict(self)


def moved_level(scores: NDArray[np.float64]) -> tuple[float, float]:
    """Level and spread of finite ``scores (n,)`` of mostly normal rows against what calibrated scores are.

    A line through the quantiles at 50 to 90 %: events in one row of fifty hardly move them.

    >>> level, spread = moved_level(-np.log10(np.linspace(1, 0.0005, 2000)))
    >>> abs(level) < 0.01, abs(spread - 1) < 0.01
    (True, True)
    """
    spread, level = np.polyfit(_NOMINAL, np.quantile(scores, _LEVELS), 1)
    return float(level), float(max(spread, 0.0))


def propose(
    scores: NDArray[np.float64],
    *,
    time: NDArray[np.int64],
    asset: NDArray[np.object_],
    current: float,
    period_us: int,
    merge_gap_us: int,
    budget: float,
    known: NDArray[np.bool_] | None = None,
) -> Proposal:
    """The threshold that keeps its rarity on recent rows.

    ``scores (n,)`` calibrated, NaN where unscorable; ``time (n,)`` UTC microseconds in order within each ``asset (n,)``;
    ``known (n,)`` rows of events that people confirmed, which take no part; ``budget`` false episodes per asset and day.
    Raises ValueError with fewer than 400 scored rows.
    """
    use = np.isfinite(scores) if known is None else np.isfinite(scores) & ~known
    own = scores[use].astype(np.float64)
    if len(own) < LEAST_ROWS:
        raise ValueError(f"scores: expected at least {LEAST_ROWS} scored rows of recent operation, got {len(own)}")
    level, spread = moved_level(own)
    proposed = float(np.clip(level + spread * current, 0.0, CAP))
    days = len(own) * period_us / _DAY_US
    before, after = (_episodes(own, time[use], asset[use], value, merge_gap_us) for value in (current, proposed))
    low, high = (bound / days for bound in poisson_range(after))
    needed = abs(proposed - current) > _WORTH * max(current, 1.0)
    words = _words(current, proposed, before, after, days, budget, needed)
    return Proposal(
        current, proposed, level, spread, len(own), days, before, after, low, high, budget, needed, words
    )  # fmt: skip


def _episodes(
    scores: NDArray[np.float64], time: NDArray[np.int64], asset: NDArray[np.object_], value: float, merge_gap_us: int
) -> int:
    return sum(
        episodes_at(scores[asset == name], time[asset == name], value, merge_gap_us) for name in np.unique(asset)
    )


def _words(
    current: float, proposed: float, before: int, after: int, days: float, budget: float, needed: bool
) -> str:  # fmt: skip
    told = f"{before} episodes in {days:.1f} days of operation at threshold {current:.2f}"
    if not needed:
        return f"{told}; the score level is where it was, the threshold can stay"
    way = "risen" if proposed > current else "fallen"
    kept = f"{after} of them would stay" if proposed > current else f"it would be {after} episodes"
    return f"{told}; the score level has {way}: at {proposed:.2f} {kept} (the budget is {budget * days:.1f})"

"""Where an alert begins: an object with a past. Picked on the validation part, never on test rows (METHODS S61, S63).

Scores are calibrated (``-log10`` tail probability), an alert is ``score >= threshold.value``.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from anomaly.config import ThresholdSettings
from anomaly.errors import Fault, UsageError
from anomaly.intervals import from_flags

_DAY_US = 86_400_000_000
_DRAWS = 200
_FEW_EVENTS = 3
#: At most this share of normal rows may be above a threshold: merged runs could swallow the part into one episode.
_EXCEPTION = 0.05
#: How many decades beyond the held-back rows a threshold may be extrapolated.
_REACH = 1.0


@dataclass(frozen=True)
class Threshold:
    """A threshold and where it came from.

    ``rows`` and ``events`` counted in ``part``; ``source`` is a digest of exactly those rows; ``low`` and ``high`` are
    a 95 % interval where one could be made; ``fallback`` names the rule that was wanted and could not be used.
    """

    value: float
    rule: str
    part: str
    rows: int = 0
    events: int = 0
    low: float | None = None
    high: float | None = None
    fallback: str = ""
    note: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if not np.isfinite(self.value):
            raise ValueError(f"value: expected a finite score, got {self.value}")
        if self.part == "test":
            raise UsageError(Fault("E2001", "a threshold from validation rows", "test rows", "test rows only judge it"))

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Threshold:
        """The threshold from ``to_dict`` values."""
        return cls(**values)


def fixed_threshold(value: float) -> Threshold:
    """The score that a person chose."""
    return Threshold(value, "fixed", "none", note="set by hand")


def best_f_beta(scores: NDArray[np.float64], positive: NDArray[np.bool_], beta: float = 1.0) -> float:
    """The score of the precision–recall curve with the largest F-beta; of equals the highest.

    >>> best_f_beta(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    0.8
    """
    order = np.argsort(-scores, kind="stable")
    return _best_point(scores[order], positive[order], np.ones(len(scores)), beta)


def _best_point(
    falling: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64], beta: float
) -> float:
    """``best_f_beta`` of scores sorted from high to low, rows counting by ``weight``.

    With TP hits among A flagged rows and P positives in all, F-beta is (1 + beta²) TP / (beta² P + A).
    """
    hits, flagged = np.cumsum(weight * positive), np.cumsum(weight)
    ends = np.append(falling[1:] < falling[:-1], True)  # rows of equal score are flagged together
    f = (1 + beta**2) * hits[ends] / (beta**2 * hits[-1] + flagged[ends])
    return float(falling[ends][f.argmax()])


def pr_curve_threshold(
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    *,
    time: NDArray[np.int64],
    beta: float = 1.0,
    part: str = "validation",
    seed: int = 0,
) -> Threshold:
    """Best F-beta on the precision–recall curve of a part (METHODS S61), with an interval over resampled events.

    ``scores (n,)`` finite, ``positive (n,)``, ``time (n,)`` in order. Raises ValueError without a positive row.
    """
    if not positive.any():
        raise ValueError("positive: expected at least one positive row, got none; use budget_threshold")
    value, runs = best_f_beta(scores, positive, beta), from_flags(positive)
    low, high = _event_interval(scores, positive, beta, seed)
    named = "1 event" if len(runs) == 1 else f"{len(runs)} events"
    few = f"only {named} in the {part} part: the threshold is uncertain" if len(runs) < _FEW_EVENTS else ""
    return Threshold(
        value, "pr_curve", part, len(scores), len(runs), low, high, note=few, source=rows_digest(time, scores)
    )


def _event_interval(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], beta: float, seed: int
) -> tuple[float | None, float | None]:
    """2.5 % and 97.5 % of the threshold when whole events, and blocks of normal rows, are drawn again."""
    runs = from_flags(positive)
    if len(runs) < _FEW_EVENTS:
        return None, None
    # one group per event, up to the next event's first row: an event brings its quiet time with it
    group = np.searchsorted(runs[1:, 0], np.arange(len(scores)), side="right")
    order = np.argsort(-scores, kind="stable")
    falling, hit, group = scores[order], positive[order], group[order]
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(_DRAWS):
        times_drawn = np.bincount(rng.integers(0, len(runs), len(runs)), minlength=len(runs)).astype(np.float64)
        drawn.append(_best_point(falling, hit, times_drawn[group], beta))
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def episodes_at(scores: NDArray[np.float64], time: NDArray[np.int64], threshold: float, merge_gap_us: int) -> int:
    """Runs of rows at or above ``threshold``; runs at most ``merge_gap_us`` apart count once."""
    above = time[scores >= threshold]
    return int(len(above) > 0) + int((np.diff(above) > merge_gap_us).sum())


def budget_threshold(
    scores: NDArray[np.float64],
    *,
    time: NDArray[np.int64],
    asset: NDArray[np.object_],
    period_us: int,
    budget: float,
    merge_gap_us: int,
    part: str = "validation",
) -> Threshold:
    """The lowest threshold at which held-back normal rows give at most ``budget`` episodes per asset and day (S63).

    Where the part is too short to hold even one such episode the calibrated tail is followed instead: a score of s is
    passed by one normal row in 10^s. It is followed at most one decade beyond what the rows can support, and the note
    says so; the interval is that of a Poisson count.
    """
    if not len(scores):
        raise ValueError("scores: expected at least one scored normal row, got none")
    days = len(scores) * period_us / _DAY_US
    allowed = int(np.floor(budget * days))
    supported = np.log10(len(scores) + 1)
    digest = rows_digest(time, scores)
    if allowed >= 1:
        levels = (allowed, *_poisson_range(allowed))
        value, low, high = lowest_within(scores, time, asset, merge_gap_us, levels)
        note = f"{allowed} episodes in {days:.3g} days of normal operation"
        return Threshold(value, "budget", part, len(scores), 0, min(low, value), max(high, value), "", note, digest)
    wanted = np.log10(_DAY_US / period_us / budget)
    value = float(min(wanted, supported + _REACH))
    reached = f"; {budget:g} a day would need {wanted:.1f}, beyond their reach: expect more false episodes"
    reached = reached if value < wanted else ""
    held = f"{days:.3g} days" if days >= 0.1 else f"{days * 24 * 60:.3g} minutes"
    note = f"{len(scores)} normal rows ({held}) cannot hold one episode of the budget: tail followed{reached}"
    return Threshold(
        value, "budget", part, len(scores), 0, float(min(supported, value)), float(wanted), "", note, digest
    )


def lowest_within(
    scores: NDArray[np.float64], time: NDArray[np.int64], asset: NDArray[np.object_], gap: int, allowed: Sequence[int]
) -> list[float]:
    """For each number of ``allowed`` episodes the lowest score from which upward every threshold keeps to it.

    A lower threshold may join two episodes into one, so the count is not monotone: the search comes from above and ends
    at the first score that breaks the number, or where alerts stop being the exception.
    """
    # a float32 above them all: scores are written as float32, and none may seem to reach the threshold
    above_all = float(np.nextafter(np.float32(scores.max()), np.float32(np.inf)))
    found, most = [above_all] * len(allowed), 0
    order = np.argsort(-scores, kind="stable")[: int(len(scores) * _EXCEPTION) + 1]
    falling = scores[order]
    counts = _episode_counts(time[order], asset[order], gap)
    for i, episodes in enumerate(counts):
        if i == len(order) - 1:  # the row beyond the exception, or the last of all
            break
        if falling[i + 1] < falling[i]:  # rows of equal score are flagged together
            most = max(most, episodes)
            found = [float(falling[i]) if most <= n else f for f, n in zip(found, allowed, strict=True)]
            if most > max(allowed):
                break
    return found


def _episode_counts(time: NDArray[np.int64], asset: NDArray[np.object_], gap: int) -> Iterator[int]:
    """Episodes after each row was flagged, one more at a time; runs at most ``gap`` apart are one."""
    flagged: defaultdict[object, list[int]] = defaultdict(list)
    episodes = 0
    for t, name in zip(time.tolist(), asset.tolist(), strict=True):
        times = flagged[name]
        at = bisect_left(times, t)
        before = at > 0 and t - times[at - 1] <= gap
        after = at < len(times) and times[at] - t <= gap
        were_one = 0 < at < len(times) and times[at] - times[at - 1] <= gap
        episodes += 1 - before - after + were_one
        insort(times, t)
        yield episodes


def _poisson_range(count: int) -> tuple[int, int]:
    """95 % range of the rate behind a Poisson count: more episodes allow a lower threshold."""
    return int(np.ceil(chi2.ppf(0.975, 2 * count + 2) / 2)), int(np.floor(chi2.ppf(0.025, 2 * count) / 2))


def choose_threshold(
    settings: ThresholdSettings,
    *,
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    time: NDArray[np.int64],
    asset: NDArray[np.object_],
    period_us: int,
    merge_gap_us: int,
    part: str = "validation",
    seed: int = 0,
) -> Threshold:
    """The threshold that the settings ask for; without an event to learn from, the alert budget, and it says so.

    Rows of NaN score (unscorable) take no part. Raises ValueError when no scored row is left.
    """
    if settings.rule == "fixed" and settings.value is not None:
        return fixed_threshold(settings.value)
    scored = np.isfinite(scores)
    scores, positive, time, asset = scores[scored], positive[scored], time[scored], asset[scored]
    if settings.rule == "pr_curve" and positive.any():
        return pr_curve_threshold(scores, positive, time=time, beta=settings.beta, part=part, seed=seed)
    normal = ~positive
    chosen = budget_threshold(
        scores[normal],
        time=time[normal],
        asset=asset[normal],
        period_us=period_us,
        budget=settings.budget,
        merge_gap_us=merge_gap_us,
        part=part,
    )
    fallback = f"pr_curve: no event in the {part} part" if settings.rule == "pr_curve" else ""
    return Threshold(**{**chosen.to_dict(), "fallback": fallback})


def rows_digest(time: NDArray[np.int64], scores: NDArray[np.float64]) -> str:
    """A digest of exactly the rows that made a threshold."""
    return hashlib.sha256(np.ascontiguousarray(time).tobytes() + np.ascontiguousarray(scores).tobytes()).hexdigest()[
        :16
    ]

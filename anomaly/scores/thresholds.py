"""Where an alert begins: an object with a past. Picked on the validation part, never on test rows (METHODS S61, S63).

Scores are calibrated (``-log10`` tail probability), an alert is ``score >= threshold.value``.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from anomaly.config import ThresholdSettings
from anomaly.errors import Fault, UsageError
from anomaly.intervals import from_flags
from anomaly.scores.threshold_rules import (
    FEW_EVENTS,
    Pick,
    above_all,
    at_f_beta,
    at_precision,
    at_recall,
    best_precision,
    event_interval,
    holds_rate,
    normal_quantile,
    picked,
    quantile_interval,
)

_DAY_US = 86_400_000_000
#: Rules that need labelled events; without one the budget takes their place.
BY_EVENTS = ("pr_curve", "precision", "recall")
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
    return picked(scores, positive, at_f_beta(beta))


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
    _needs_positive(positive)
    return _event_threshold("pr_curve", at_f_beta(beta), scores, positive, time, part, seed)


def precision_threshold(
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    *,
    time: NDArray[np.int64],
    floor: float = 0.5,
    part: str = "validation",
    seed: int = 0,
) -> Threshold:
    """The lowest threshold whose precision on a part is at least ``floor``, so with the most recall (METHODS S61).

    ``scores (n,)`` finite, ``positive (n,)``, ``time (n,)`` in order. Where no threshold is that precise the one of the
    best F1 is taken, and fallback and note say so. Raises ValueError without a positive row.
    """
    _needs_positive(positive)
    reached = best_precision(scores, positive)
    if reached >= floor:
        return _event_threshold("precision", at_precision(floor), scores, positive, time, part, seed)
    chosen = pr_curve_threshold(scores, positive, time=time, part=part, seed=seed)
    said = f"the best precision that any threshold reaches is {reached:.3g}"
    return replace(
        chosen,
        fallback=f"precision: no threshold has a precision of {floor:g} on the {part} part",
        note="; ".join(filter(None, (said, chosen.note))),
    )


def recall_threshold(
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    *,
    time: NDArray[np.int64],
    floor: float = 0.5,
    part: str = "validation",
    seed: int = 0,
) -> Threshold:
    """The highest threshold whose recall on a part is at least ``floor``, so with the fewest rows flagged (METHODS S61).

    ``scores (n,)`` finite, ``positive (n,)``, ``time (n,)`` in order. Raises ValueError without a positive row.
    """
    _needs_positive(positive)
    return _event_threshold("recall", at_recall(floor), scores, positive, time, part, seed)


def _needs_positive(positive: NDArray[np.bool_]) -> None:
    if not positive.any():
        raise ValueError("positive: expected at least one positive row, got none; use budget_threshold")


def _event_threshold(
    rule: str,
    pick: Pick,
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    time: NDArray[np.int64],
    part: str,
    seed: int,
) -> Threshold:
    """What ``pick`` takes on the part's precision–recall curve, with an interval over resampled events."""
    events = len(from_flags(positive))
    value, (low, high) = picked(scores, positive, pick), event_interval(scores, positive, pick, seed)
    named = "1 event" if events == 1 else f"{events} events"
    few = f"only {named} in the {part} part: the threshold is uncertain" if events < FEW_EVENTS else ""
    return Threshold(value, rule, part, len(scores), events, low, high, note=few, source=rows_digest(time, scores))


def quantile_threshold(
    scores: NDArray[np.float64], *, time: NDArray[np.int64], rate: float, part: str = "validation"
) -> Threshold:
    """The score that a share ``rate`` of held-back normal rows ``(n,)`` pass, counted (METHODS S63).

    The interval is that of an order statistic. Fewer than about 1 / rate rows cannot show so rare a score: then the
    calibrated tail is followed, and the fallback says so. Raises ValueError without a row.
    """
    _needs_rows(scores)
    n = len(scores)
    if not holds_rate(n, rate):
        followed = tail_threshold(scores, time=time, rate=rate, part=part)
        return replace(followed, fallback=f"quantile: {n} normal rows cannot show 1 row in {1 / rate:.3g}")
    value, (low, high) = normal_quantile(scores, rate), quantile_interval(scores, rate)
    high = None if high is None else max(high, value)
    reach = int((scores >= value).sum())
    note = f"reached by {reach} of {n} normal rows, {rate:.3g} allowed"
    return Threshold(value, "quantile", part, n, 0, min(low, value), high, "", note, rows_digest(time, scores))


def tail_threshold(
    scores: NDArray[np.float64], *, time: NDArray[np.int64], rate: float, part: str = "validation"
) -> Threshold:
    """The score that one normal row in 1 / ``rate`` passes by the fitted tail: scores are ``-log10`` of it (METHODS S63).

    ``scores (n,)`` of held-back normal rows bound how far the tail is followed, one decade beyond what they can show;
    the note says so. The interval is that of an order statistic, beyond the rows the one between what they can show and
    what was asked for. Raises ValueError without a row.
    """
    _needs_rows(scores)
    n, wanted = len(scores), -float(np.log10(rate))
    supported = float(np.log10(n + 1))
    value = min(wanted, supported + _REACH)
    if wanted <= supported:
        low, high = quantile_interval(scores, rate)
        low, high = min(low, value), None if high is None else max(high, value)
        note = f"{n} normal rows carry the tail this far"
    else:
        low, high = min(supported, value), wanted
        beyond = f"; {rate:g} would need {wanted:.1f}, beyond their reach: expect more false alerts"
        note = f"{n} normal rows cannot show 1 row in {1 / rate:.3g}: tail followed{beyond if value < wanted else ''}"
    return Threshold(value, "tail", part, n, 0, low, high, "", note, rows_digest(time, scores))


def _needs_rows(scores: NDArray[np.float64]) -> None:
    if not len(scores):
        raise ValueError("scores: expected at least one scored normal row, got none")


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
    _needs_rows(scores)
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
    found, most = [above_all(scores)] * len(allowed), 0
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
    if settings.rule in BY_EVENTS and positive.any():
        return _by_events(settings, scores, positive, time, part, seed)
    normal = ~positive
    scores, time, asset = scores[normal], time[normal], asset[normal]
    if settings.rule == "quantile":
        return quantile_threshold(scores, time=time, rate=settings.rate, part=part)
    if settings.rule == "tail":
        return tail_threshold(scores, time=time, rate=settings.rate, part=part)
    chosen = budget_threshold(
        scores,
        time=time,
        asset=asset,
        period_us=period_us,
        budget=settings.budget,
        merge_gap_us=merge_gap_us,
        part=part,
    )
    fallback = f"{settings.rule}: no event in the {part} part" if settings.rule in BY_EVENTS else ""
    return replace(chosen, fallback=fallback)


def _by_events(
    settings: ThresholdSettings,
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    time: NDArray[np.int64],
    part: str,
    seed: int,
) -> Threshold:
    """The rules that learn from labelled rows."""
    if settings.rule == "pr_curve":
        return pr_curve_threshold(scores, positive, time=time, beta=settings.beta, part=part, seed=seed)
    rule = precision_threshold if settings.rule == "precision" else recall_threshold
    return rule(scores, positive, time=time, floor=settings.floor, part=part, seed=seed)


def rows_digest(time: NDArray[np.int64], scores: NDArray[np.float64]) -> str:
    """A digest of exactly the rows that made a threshold."""
    return hashlib.sha256(np.ascontiguousarray(time).tobytes() + np.ascontiguousarray(scores).tobytes()).hexdigest()[
        :16
    ]

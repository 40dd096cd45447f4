"""Scores → figures, the same code for every method of the detection benchmark.

Rows are judged where the case knows their label. A row that a method could not score ranks below all others and raises no
alert. Episodes are flagged rows at most ten rows apart; one is false where it touches no event row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.intervals import Intervals, from_flags, merge
from anomaly.metrics import average_precision, event_outcomes, false_episodes, roc_auc
from anomaly.scores.calibration import TailCalibrator
from anomaly.scores.threshold_rules import above_all
from anomaly.scores.thresholds import episodes_at, lowest_within
from benchmarks.detection_cases import Trial, event_rows
from benchmarks.vus import vus_pr

Scores = NDArray[np.float64]

#: False episodes per normal row that every method may raise.
BUDGET = 2 / 1000
MERGE_GAP = 10
LEAD_ROWS = 16
_EDGE = 0.95
_HALVINGS = 200


@dataclass(frozen=True)
class Level:
    """A threshold, the held-back normal rows it was set on, and whether their tail had to be followed beyond them."""

    value: float
    rows: int
    followed: bool


def held_level(score: Scores, normal: NDArray[np.bool_], budget: float = BUDGET) -> Level:
    """The threshold at which held-back normal rows keep the budget; no other row is looked at (METHODS S63).

    ``score (n,)`` of consecutive rows, ``normal (n,)``. The lowest threshold with at most as many episodes as the budget
    allows; where the rows cannot hold one such episode, the tail of their scores is followed to the row probability
    that one episode in ``1 / budget`` rows stands for. Scores that never differ get a threshold above them.
    """
    rows = np.flatnonzero(normal & np.isfinite(score))
    own = score[rows]
    if not len(own):
        return Level(math.inf, 0, False)
    if own.min() == own.max():
        return Level(above_all(own), len(own), False)
    allowed = int(budget * len(own))
    if allowed >= 1:
        return Level(_lowest(own, rows, allowed), len(own), False)
    edge = float(np.quantile(own, _EDGE))
    per_episode = (own >= edge).sum() / max(episodes_at(own, rows, edge, MERGE_GAP), 1)
    return Level(_at_probability(own, min(budget * per_episode, 1.0)), len(own), True)


def _lowest(own: Scores, rows: NDArray[np.int64], allowed: int) -> float:
    one = np.zeros(len(own), dtype=object)
    return float(lowest_within(own, rows.astype(np.int64), one, MERGE_GAP, (allowed,))[0])


def _at_probability(own: Scores, probability: float) -> float:
    """The score that a normal row passes with ``probability``, by the calibrated tail."""
    calibrator, wanted = TailCalibrator().fit(own), -math.log10(probability)
    low, high = float(own.min()), float(own.max()) + 1e6 * float(np.ptp(own))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if calibrator.transform(np.array([middle]))[0] >= wanted else (middle, high)
    return high


def figures(trial: Trial, score: Scores, held: Scores, fixed: float | None = None) -> dict[str, Any]:
    """Figures of one method on one trial, JSON-ready; NaN where one is not defined.

    ``score (n,)`` of the test log, ``held (m,)`` of the held-back rows; ``fixed`` is a threshold that needs no rows.
    Raises ValueError where a length does not fit.
    """
    normal = trial.held_normal()
    if len(score) != len(trial.test) or len(held) != len(normal):
        raise ValueError(
            f"score, held: expected {len(trial.test)} and {len(normal)} rows, got {len(score)} and {len(held)}"
        )
    ranked, positive = _ranked(score, trial.judged), trial.positive[trial.judged]
    level = Level(fixed, 0, False) if fixed is not None else held_level(held, normal)
    return {
        "vus_pr": vus_pr(ranked, positive, trial.case.vus_window),
        "ap": average_precision(ranked, positive),
        "auc": roc_auc(ranked, positive),
        **_alerts(trial, score, level),
        "recall_oracle": _recall_oracle(trial, score, fixed),
        "events": len(event_rows(trial)),
        "unscorable": int((~np.isfinite(score[trial.judged])).sum()),
    }


def _ranked(score: Scores, judged: NDArray[np.bool_]) -> Scores:
    own = score[judged]
    finite = np.isfinite(own)
    lowest = own[finite].min() - 1 if finite.any() else 0.0
    return np.where(finite, own, lowest)


def _alerts(trial: Trial, score: Scores, level: Level) -> dict[str, Any]:
    """What the threshold makes of the test log: event recall, false episodes against the budget, lead time."""
    period = trial.period_us
    events = {"": event_rows(trial) * period}
    flagged = np.isfinite(score) & (score >= level.value) & trial.judged
    episodes: Intervals = merge(from_flags(flagged), MERGE_GAP)
    alarms, flags = {"": episodes * period}, {"": from_flags(flagged) * period}
    found = event_outcomes(flags, events, 0)
    early = [o.lead_s for o in event_outcomes(flags, events, LEAD_ROWS * period) if o.lead_s is not None]
    false = len(false_episodes(alarms, events, 0)[""])
    nominal = BUDGET * int((trial.judged & ~trial.positive).sum())
    return {
        "recall": sum(o.detected for o in found) / len(found) if found else math.nan,
        "false_episodes": false,
        "nominal": nominal,
        "ratio": false / nominal if nominal else math.nan,
        "flagged_normal": float(flagged[trial.judged & ~trial.positive].mean()) if nominal else math.nan,
        "lead_s": float(np.median(early)) if early else math.nan,
        "lead_rows": float(np.median(early)) * 1e6 / period if early else math.nan,
        "held_rows": level.rows,
        "tail_followed": level.followed,
    }


def _recall_oracle(trial: Trial, score: Scores, fixed: float | None) -> float:
    """Event recall at no more than 2 false episodes per 1000 normal test rows, the threshold read off the test log."""
    events = event_rows(trial)
    if not len(events):
        return math.nan
    if fixed is not None:
        return math.nan
    rows = np.flatnonzero(trial.judged & ~trial.positive & np.isfinite(score))
    tops = np.array([np.nanmax(np.append(score[start:stop], -np.inf)) for start, stop in events.tolist()])
    if not len(rows):
        return math.nan
    own = score[rows]
    allowed = int(BUDGET * len(rows))
    level = _lowest(own, rows, allowed) if allowed else above_all(own)
    # Any score above the next lower normal one keeps the budget: an event need not score as high as a false episode.
    lower = own[own < level]
    return float((tops > lower.max()).mean()) if len(lower) else 1.0

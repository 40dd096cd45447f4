"""A challenger against the champion on the same rows: paired differences with intervals, and the gates they open or close.

Both models answered the same rows of the same log. What is compared is the difference on the same draws, so that a hard week
in the log weighs on both alike: average precision over blocks of time, event recall over whole events, the latter when both
raise equally many alerts on normal rows (METHODS S61, S62).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.data.contract import EVENT, LEAD, NORMAL
from anomaly.metrics import (
    Evaluation,
    ScoredPart,
    average_precision,
    event_outcomes,
    flag_intervals,
    poisson_interval,
    time_blocks,
)
from anomaly.metrics.figures import MIN_GROUPS, number, proportion_interval
from anomaly.metrics.rows import ranking_counts, ranking_problem, ranking_statistics

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_DRAWS = 1000
#: Where the champion flags hardly any normal row, both may flag so large a share of them.
_LEAST_RATE = 0.001


@dataclass(frozen=True)
class GateRules:
    """What a challenger must show. Shares but for ``events`` (a count) and ``slowest`` (a share of the sampling period).

    ``margin``: how far below zero the upper end of a paired difference may lie. ``floor``: least event recall at the model's
    own threshold. ``budget``: false episodes per asset and day, the model's own setting if None.
    """

    margin: float = 0.0
    floor: float = 0.5
    events: int = 5
    budget: float | None = None
    slowest: float = 0.5

    def __post_init__(self) -> None:
        for name, low, high in (("margin", 0, 1), ("floor", 0, 1), ("slowest", 0, math.inf), ("events", 0, math.inf)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected {low} to {high}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Gate:
    """One condition of a promotion: the figure, its 95 % interval, the limit, and the verdict in words.

    ``waived`` holds a person's reason where the condition could not be judged and the person took it on.
    """

    name: str
    passed: bool
    words: str
    figure: float = math.nan
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    waived: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values: NaN and infinity become None."""
        return {**self.__dict__, **{k: number(getattr(self, k)) for k in ("figure", "low", "high", "limit")}}


@dataclass(frozen=True)
class Difference:
    """Challenger minus champion on the same draws. ``low`` to ``high`` holds 95 % of them, None where they tell nothing."""

    what: str
    challenger: float
    champion: float
    low: float | None
    high: float | None
    groups: str

    @property
    def value(self) -> float:
        """Challenger minus champion on the rows as they are."""
        return self.challenger - self.champion

    def words(self) -> str:
        """The difference as an engineer reads it.

        >>> Difference("average precision", 0.2, 0.5, -0.4, -0.1, "40 blocks").words()
        'average precision 0.200 against 0.500 of the champion: 0.300 lower, between 0.400 lower and 0.100 lower (40 blocks)'
        """
        said = f"{self.what} {self.challenger:.3f} against {self.champion:.3f} of the champion: {_signed(self.value)}"
        if self.low is None or self.high is None:
            return f"{said}, no interval ({self.groups})"
        return f"{said}, between {_signed(self.low)} and {_signed(self.high)} ({self.groups})"


def _signed(value: float) -> str:
    if not math.isfinite(value):
        return "undefined"
    return "equal" if abs(value) < 5e-4 else f"{abs(value):.3f} {'higher' if value > 0 else 'lower'}"


@dataclass(frozen=True)
class Pair:
    """Both answers to the same rows; raises ValueError where assets, times, kinds or events differ."""

    challenger: ScoredPart
    champion: ScoredPart
    challenger_threshold: float
    champion_threshold: float

    def __post_init__(self) -> None:
        a, b = self.challenger, self.champion
        for name in ("asset", "time", "kind"):
            if not np.array_equal(getattr(a, name), getattr(b, name)):
                raise ValueError(f"champion: expected the same {name} in every row as the challenger, got another")
        if list(a.events) != list(b.events) or any(not np.array_equal(a.events[k], b.events[k]) for k in a.events):
            raise ValueError("champion: expected the same events as the challenger, got others")


def average_precision_difference(pair: Pair, seed: int = 0) -> Difference:
    """Paired block bootstrap of average precision (METHODS S61): both models see the same drawn blocks of time.

    A row that one model could not score ranks below all of its scores. Blocks are contiguous; an event stays whole in one.
    """
    rows, _ = pair.challenger.in_order()
    other, _ = pair.champion.in_order()
    wanted = LEAD if rows.lead_us else EVENT
    counted = np.isin(rows.kind, (NORMAL, wanted))
    positive = rows.kind[counted] == wanted
    block = time_blocks(pd.factorize(rows.asset)[0][counted], positive)
    n = int(block[-1]) + 1 if len(block) else 0
    scores = [_filled(own.score)[counted] for own in (rows, other)]
    what, held = "average precision", len(np.unique(block[positive]))
    if any(ranking_problem(s, positive) for s in scores):
        return Difference(what, math.nan, math.nan, None, None, f"{int(positive.sum())} positive rows")
    counts = [ranking_counts(s, positive, block, n) for s in scores]

    def difference(drawn: Floats) -> Floats:
        own = [ranking_statistics(drawn @ p, drawn @ q)["average_precision"] for p, q in counts]
        return np.asarray(own[0] - own[1])

    ours, theirs = (average_precision(s, positive) for s in scores)
    low, high = _interval(difference, n, held, seed)
    return Difference(what, ours, theirs, low, high, f"{held} of {n} blocks of time hold events")


def event_recall_difference(pair: Pair, seed: int = 0) -> Difference:
    """Paired bootstrap over whole events of event recall, both models flagging equally many normal rows (METHODS S62).

    The number is what the champion flags at its own threshold, at least one normal row in 1000; it is what the plant puts up
    with today. An event is found by a flagged row in its lead or before its end.
    """
    what = "event recall at equal alert budget"
    found = [_found(part, threshold) for part, threshold in equal_budget(pair)]
    if not len(found[0]):
        return Difference(what, math.nan, math.nan, None, None, "no event")
    apart = found[0].astype(np.float64) - found[1]
    low, high = _interval(lambda drawn: np.asarray(drawn @ apart / len(apart)), len(apart), len(apart), seed)
    ours, theirs = (float(f.mean()) for f in found)
    return Difference(what, ours, theirs, low, high, f"{len(apart)} events")


def equal_budget(pair: Pair) -> list[tuple[ScoredPart, float]]:
    """Challenger and champion, each with the score above which it flags as many normal rows as the other."""
    normal = pair.champion.kind == NORMAL
    flagged = int((normal & (_filled(pair.champion.score) >= pair.champion_threshold)).sum())
    k = max(flagged, math.ceil(_LEAST_RATE * int(normal.sum())))
    made = []
    for part in (pair.challenger, pair.champion):
        ordered = np.sort(_filled(part.score)[normal])[::-1]
        made.append((part, float(ordered[k]) if k < len(ordered) else -math.inf))
    return made


def _found(part: ScoredPart, above: float) -> Flags:
    """Which events a flag on every row with a score over ``above`` finds."""
    flags = np.isfinite(part.score) & (part.score > above)
    outcomes = event_outcomes(flag_intervals(part.asset, part.time, flags), part.events, part.lead_us)
    return np.array([o.detected for o in outcomes], dtype=bool)


def _filled(score: NDArray[Any]) -> Floats:
    """Scores with those that are missing below all others."""
    values = np.asarray(score, dtype=np.float64)
    known = np.isfinite(values)
    return np.where(known, values, (values[known].min() if known.any() else 0.0) - 1.0)


def _interval(
    statistic: Callable[[Floats], Floats], groups: int, held: int, seed: int
) -> tuple[float | None, float | None]:
    """95 % of the paired differences. Unlike a figure's, an interval of width zero is told: both models may agree everywhere."""
    if held < MIN_GROUPS:
        return None, None
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=_DRAWS).astype(np.float64)
    values = statistic(drawn)
    values = values[np.isfinite(values)]
    if len(values) < _DRAWS / 2:
        return None, None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


# Gates --------------------------------------------------------------------------------------------------------------


def gates_of(
    challenger: Evaluation,
    pair: Pair | None,
    budget: float,
    assets: int,
    rules: GateRules,
    accepted: str = "",
    seed: int = 0,
) -> list[Gate]:
    """The gates that the evaluation rows decide; without ``pair`` (no champion) the two paired ones are left out.

    ``budget`` is in false episodes per asset and day; ``accepted`` is a person's reason to go on where events are too few to
    judge, which then also stands for what is undefined without events. Names: events, average_precision, event_recall,
    recall_floor, alert_budget.
    """
    gates = [_events(challenger.events, rules, accepted)]
    if pair is not None:
        gates.append(_not_worse("average_precision", average_precision_difference(pair, seed), rules, accepted))
        gates.append(_not_worse("event_recall", event_recall_difference(pair, seed), rules, accepted))
    limit = budget if rules.budget is None else rules.budget
    return [
        *gates,
        _floor(challenger, rules, accepted),
        alert_budget(challenger.false_episodes, challenger.days, limit, assets),
    ]


def _events(events: int, rules: GateRules, accepted: str) -> Gate:
    enough = events >= rules.events
    words = f"{events} events in the evaluation rows, {rules.events} wanted"
    if not enough:
        words += (
            f"; accepted by a person: {accepted}" if accepted else "; too few to tell a good model from a lucky one"
        )
    waived = accepted if not enough else ""
    return Gate("events", enough or bool(accepted), words, float(events), limit=float(rules.events), waived=waived)


def _not_worse(name: str, found: Difference, rules: GateRules, accepted: str) -> Gate:
    """Refused where even the upper end of the difference lies below zero by more than the margin."""
    if not math.isfinite(found.value):
        words = f"{found.what} cannot be compared: {found.groups}"
        return Gate(name, bool(accepted), words, limit=-rules.margin, waived=accepted)
    reach = found.value if found.high is None else found.high
    passed = reach >= -rules.margin
    verdict = "not shown to be worse" if passed else "worse than the champion"
    margin = f" (margin {rules.margin:g})" if rules.margin else ""
    words = f"{verdict}{margin}: {found.words()}"
    return Gate(name, passed, words, found.value, found.low, found.high, -rules.margin)


def _floor(found: Evaluation, rules: GateRules, accepted: str) -> Gate:
    hits = sum(o.detected for o in found.outcomes)
    total = len(found.outcomes)
    if not total:
        words = "event recall at the model's own threshold cannot be told: no event"
        return Gate("recall_floor", bool(accepted), words, limit=rules.floor, waived=accepted)
    value, interval = hits / total, proportion_interval(hits, total)
    words = (
        f"{hits} of {total} events found at the model's own threshold, {value:.0%}; at least {rules.floor:.0%} wanted"
    )
    return Gate("recall_floor", value >= rules.floor, words, value, interval.low, interval.high, rules.floor)


def alert_budget(count: int, days: float, budget: float, assets: int) -> Gate:
    """False episodes on normal rows against ``budget`` per asset and day; refused where the exact Poisson interval of the rate
    lies above it. ``days`` of normal operation add up over assets, ``assets`` is only said."""
    if not days > 0:
        return Gate(
            "alert_budget",
            False,
            "no normal operation in the evaluation rows: the alert rate cannot be told",
            limit=budget,
        )
    interval = poisson_interval(count, days)
    rate, low = count / days, float(interval.low or 0.0)
    words = (
        f"{count} false episodes in {days:.3g} days of normal operation of {assets} assets: {rate:.3g} per asset and day"
        f" (95 % interval {low:.3g} to {interval.high:.3g}), budget {budget:.3g}"
    )
    return Gate("alert_budget", low <= budget, words, rate, interval.low, interval.high, budget)


def schema_gate(differences: list[str]) -> Gate:
    """Passed where both models need the same columns; ``differences`` are those of their contracts, in words."""
    words = (
        f"other columns than the champion: {'; '.join(differences)}" if differences else "the columns of the champion"
    )
    return Gate("schema", not differences, words, float(len(differences)), limit=0.0)


def latency_gate(seconds: list[float], period_us: int, rules: GateRules) -> Gate:
    """One row scored by itself must take at most ``rules.slowest`` of the sampling period, 95 times in 100."""
    value, limit = float(np.quantile(seconds, 0.95)), rules.slowest * period_us / 1e6
    words = f"a row scored by itself takes {value * 1e3:.3g} ms (95 of 100), {limit * 1e3:.3g} ms allowed"
    return Gate("latency", value <= limit, words, value, min(seconds), max(seconds), limit)


def parity_gate(here: NDArray[Any], fresh: NDArray[Any] | None, problem: str = "", tolerance: float = 1e-5) -> Gate:
    """Passed where a process of its own, which loaded the model anew, gives the same scores ``(n,)`` as this one."""
    if fresh is None or len(fresh) != len(here):
        return Gate(
            "parity", False, f"the model could not be reloaded in a process of its own: {problem or 'other rows'}"
        )
    apart = np.where(np.isnan(here) & np.isnan(fresh), 0.0, np.abs(np.asarray(here, np.float64) - fresh))
    worst = float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0))
    close = np.allclose(here, fresh, rtol=tolerance, atol=tolerance, equal_nan=True)
    words = f"{len(here)} rows scored anew in a process of their own, largest difference {worst:.2g}"
    return Gate("parity", bool(close), words, worst, limit=tolerance)

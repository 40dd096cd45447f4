"""One part of a log, judged: figures of the model and of the baselines beside it, all counted on the same rows.

Positive rows: with a lead, the rows before an event, and the event's own rows are left out (METHODS S58); without a lead,
the event's rows. Rows of unknown label are never counted. Unscorable rows stand apart: recall counts them as missed,
precision ignores them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.data.contract import EVENT, LEAD, NORMAL, UNKNOWN
from anomaly.intervals import Intervals, as_intervals
from anomaly.metrics import events as ev
from anomaly.metrics.figures import Figure, Interval, bootstrap_interval, figure, number, undefined
from anomaly.metrics.rows import (
    COMPARED_FPR,
    Confusion,
    average_precision,
    confusion,
    ranking_counts,
    ranking_problem,
    ranking_statistics,
    recall_at_fpr,
    roc_auc,
    time_blocks,
)

_RANDOM_DRAWS = 20
_RANKING = ("average_precision", "roc_auc", "recall_at_fpr")
#: From this share of positive rows on, an alarm that is always on looks good, and the notes say so.
_HIGH_PREVALENCE = 0.1
_MUCH_FLAGGED = 0.1
_FEW = 5

Figures = dict[str, Figure]


@dataclass(frozen=True)
class ScoredPart:
    """The scored rows of one part of a log.

    ``asset (n,)`` str; ``time (n,)`` int64 UTC microseconds; ``score (n,)`` float, NaN where unscorable; ``outcome (n,)``
    "normal", "anomalous" or "unscorable"; ``kind (n,)`` int8 of UNKNOWN, NORMAL, EVENT, LEAD; ``events`` per asset,
    ``(k, 2)`` microseconds. Raises ValueError where lengths differ or a score that counts as scored is NaN.
    """

    asset: NDArray[np.object_]
    time: NDArray[np.int64]
    score: NDArray[np.floating]
    outcome: NDArray[np.object_]
    kind: NDArray[np.int8]
    events: Mapping[str, Intervals]
    period_us: int
    lead_us: int
    max_gap_us: int
    part: str = "test"

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("asset", "time", "score", "outcome", "kind")}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"rows: expected equally long arrays, got {lengths}")
        loose = int((~np.isfinite(self.score) & (self.outcome != "unscorable")).sum())
        if loose:
            raise ValueError(f"score: expected a finite score wherever outcome is not unscorable, got {loose} without")

    def in_order(self, *more: NDArray[Any]) -> tuple[ScoredPart, list[NDArray[Any]]]:
        """The same rows sorted by asset and time, and ``more`` arrays ``(n,)`` with them."""
        order = np.lexsort((self.time, pd.factorize(self.asset, sort=True)[0]))
        names = ("asset", "time", "score", "outcome", "kind")
        return replace(self, **{k: getattr(self, k)[order] for k in names}), [array[order] for array in more]


@dataclass(frozen=True)
class Evaluation:
    """How good a model was on one part, beside the baselines. ``rows`` are the counted ones: label known, not left out.

    ``rows_id`` is a digest of exactly the rows that were judged; ``false_episodes`` touch no event.
    """

    part: str
    rows: int
    positives: int
    events: int
    prevalence: float
    figures: Figures
    confusion: Confusion
    baselines: dict[str, Figures]
    threshold: float
    flagged: int
    unscorable: int
    unknown: int
    episodes: int
    false_episodes: int
    days: float
    lead_us: int
    outcomes: tuple[ev.EventOutcome, ...] = ()
    random_split: bool = False
    notes: tuple[str, ...] = ()
    rows_id: str = ""
    detectors: dict[str, Figures] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values: NaN becomes None."""
        plain = dict(self.__dict__)
        for name in ("prevalence", "threshold", "days"):
            plain[name] = number(plain[name])
        plain["figures"] = _plain(self.figures)
        for name in ("baselines", "detectors"):
            plain[name] = {who: _plain(own) for who, own in plain[name].items()}
        plain["confusion"] = dict(self.confusion.__dict__)
        plain["outcomes"] = [dict(o.__dict__) for o in self.outcomes]
        plain["notes"] = list(self.notes)
        return plain


def _plain(figures: Figures) -> dict[str, Any]:
    return {name: own.to_dict() for name, own in figures.items()}


def evaluate(
    rows: ScoredPart,
    threshold: float,
    *,
    episodes: ev.PerAsset | None = None,
    baseline_scores: Mapping[str, NDArray[np.floating]] | None = None,
    detector_scores: Mapping[str, NDArray[np.floating]] | None = None,
    merge_gap_us: int = 0,
    grace_us: int = 0,
    random_split: bool = False,
    notes: Sequence[str] = (),
    seed: int = 0,
) -> Evaluation:
    """Judge ``rows`` at ``threshold``; an alert is ``score >= threshold``.

    ``episodes`` ``{asset: (k, 2)}`` half-open microseconds are what the alert rules made of the scores; without them, and
    for the baselines, episodes are runs of flagged rows joined over ``merge_gap_us``. ``baseline_scores`` ``{name: (n,)}``
    are ranked as they are, and flag as many rows as the model flagged on the same rows; so do ``detector_scores``, what
    each detector of the model says by itself. ``grace_us``: an episode that
    begins so soon after an event is not a false one.
    """
    given, alone = dict(baseline_scores or {}), dict(detector_scores or {})
    rows, ordered = rows.in_order(*given.values(), *alone.values())
    given, alone = dict(zip(given, ordered, strict=False)), dict(zip(alone, ordered[len(given) :], strict=True))
    judge = _Judge(rows, merge_gap_us, grace_us, seed)
    flags = judge.scored & (rows.score >= threshold)
    found = judge.intervals(flags) if episodes is None else dict(episodes)
    figures = judge.figures(rows.score, flags, found)
    baselines = _baselines(judge, int(flags.sum()), given)
    matrix = judge.confusion(flags)
    result = Evaluation(
        part=rows.part,
        rows=matrix.rows,
        positives=matrix.positives,
        events=sum(len(e) for e in rows.events.values()),
        prevalence=matrix.positives / matrix.rows if matrix.rows else math.nan,
        figures=figures,
        confusion=matrix,
        baselines=baselines,
        threshold=float(threshold),
        flagged=int(flags.sum()),
        unscorable=int((~judge.scored).sum()),
        unknown=int((rows.kind == UNKNOWN).sum()),
        episodes=sum(len(as_intervals(e)) for e in found.values()),
        false_episodes=judge.false_count(found),
        days=judge.days,
        lead_us=rows.lead_us,
        outcomes=tuple(judge.outcomes(found)),
        random_split=random_split,
        rows_id=_rows_id(rows),
        detectors=_at_equal_rate(judge, int(flags.sum()), alone),
    )
    return replace(result, notes=(*notes, *_notes(result)))


class _Judge:
    """The rows that count, cut into blocks, and the figures of any score on them."""

    def __init__(self, rows: ScoredPart, merge_gap_us: int, grace_us: int, seed: int) -> None:
        self.rows, self.merge_gap_us, self.grace_us, self.seed = rows, merge_gap_us, grace_us, seed
        self.scored = np.isfinite(rows.score) & (rows.outcome != "unscorable")
        wanted = LEAD if rows.lead_us else EVENT
        self.counted = np.isin(rows.kind, (NORMAL, wanted))
        self.positive = rows.kind[self.counted] == wanted
        codes = pd.factorize(rows.asset)[0]
        self.block = time_blocks(codes[self.counted], self.positive)
        self.n_blocks = int(self.block[-1]) + 1 if len(self.block) else 0
        self.starts, self.normal, self.days = {}, {}, 0.0
        for asset in dict.fromkeys(rows.asset.tolist()):
            own = rows.asset == asset
            time = rows.time[own]
            self.starts[asset] = time[np.concatenate(([True], np.diff(time) > rows.max_gap_us))]
            self.normal[asset] = time[rows.kind[own] == NORMAL]
            self.days += ev.operating_days(self.normal[asset], rows.period_us, rows.max_gap_us)

    def intervals(self, flags: NDArray[np.bool_]) -> dict[str, Intervals]:
        """Flagged rows as simple episodes."""
        return ev.flag_intervals(self.rows.asset, self.rows.time, flags, self.merge_gap_us)

    def outcomes(self, found: ev.PerAsset) -> list[ev.EventOutcome]:
        """What became of each event."""
        return ev.event_outcomes(found, self.rows.events, self.rows.lead_us, self.starts)

    def false_count(self, found: ev.PerAsset) -> int:
        """Episodes that touch no event and hold at least one row known to be normal."""
        false = ev.false_episodes(found, self.rows.events, self.rows.lead_us, self.grace_us, self.starts)
        count = 0
        for asset, own in false.items():
            normal = self.normal.get(asset, np.empty(0, np.int64))
            count += int((np.searchsorted(normal, own[:, 1]) > np.searchsorted(normal, own[:, 0])).sum())
        return count

    def confusion(self, flags: NDArray[np.bool_]) -> Confusion:
        """Counted rows at the given flags ``(n,)``."""
        said = np.where(self.scored, flags.astype(np.float64), np.nan)
        return confusion(said[self.counted], self.positive, 0.5)

    def figures(self, score: NDArray[np.floating], flags: NDArray[np.bool_], found: ev.PerAsset) -> Figures:
        """Every figure of a score ``(n,)``, its flags ``(n,)`` and its episodes."""
        made = [*self.ranking(score), *self.rates(flags), *self.of_events(found)]
        return {own.name: own for own in made}

    def ranking(self, score: NDArray[np.floating]) -> list[Figure]:
        """Average precision, ROC AUC and recall at a fixed false positive rate, with a block bootstrap."""
        values = np.where(self.scored, score, np.nan)[self.counted]
        finite = np.isfinite(values)
        s, p, block = values[finite], self.positive[finite], self.block[finite]
        count = f"{int(p.sum())} positive of {len(p)} scored rows"
        if problem := ranking_problem(s, p):
            return [undefined(name, problem, count, len(p)) for name in _RANKING]
        counts = ranking_counts(s, p, block, self.n_blocks)
        notes = {"recall_at_fpr": f"at a false positive rate of {COMPARED_FPR:.1%}"}
        exact = dict(zip(_RANKING, (average_precision(s, p), roc_auc(s, p), recall_at_fpr(s, p)), strict=True))
        made = []
        for name in _RANKING:
            interval = bootstrap_interval(
                lambda drawn, name=name: ranking_statistics(drawn @ counts[0], drawn @ counts[1])[name],  # type: ignore[misc]
                self.n_blocks,
                holding=len(np.unique(block[p])),
                seed=self.seed,
            )
            made.append(figure(name, exact[name], interval, count, len(p), notes.get(name, "")))
        return made

    def rates(self, flags: NDArray[np.bool_]) -> list[Figure]:
        """Precision, recall and false positive rate at the threshold, with a block bootstrap."""
        matrix, scored, flagged = self.confusion(flags), self.scored[self.counted], flags[self.counted]
        p = self.positive
        return [
            self._rate("precision", flagged & p, flagged, matrix.precision, "flagged rows were positive"),
            self._rate("recall", flagged & p, p, matrix.recall, "positive rows flagged"),
            self._rate(
                "false_positive_rate", flagged & ~p, scored & ~p, matrix.false_positive_rate, "normal rows flagged"
            ),
        ]

    def _rate(self, name: str, hit: NDArray[np.bool_], among: NDArray[np.bool_], value: float, what: str) -> Figure:
        total = int(among.sum())
        count = f"{int(hit.sum())} of {total} {what}"
        if not total:
            return undefined(name, f"nothing to divide by: {count}", count)
        above, below = (np.bincount(self.block[m], minlength=self.n_blocks).astype(float) for m in (hit, among))

        def resampled(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
            under = drawn @ below
            return np.divide(drawn @ above, under, out=np.full(len(drawn), np.nan), where=under > 0)

        interval = bootstrap_interval(resampled, self.n_blocks, holding=int((below > 0).sum()), seed=self.seed)
        return figure(name, value, interval, count, total)

    def of_events(self, found: ev.PerAsset) -> list[Figure]:
        """Event recall, early recall, median lead and false episodes per day."""
        outcomes = self.outcomes(found)
        return [
            ev.event_recall(outcomes),
            ev.early_recall(outcomes),
            ev.median_lead(outcomes, seed=self.seed),
            ev.false_episodes_per_day(self.false_count(found), self.days),
        ]

    def highest(self, score: NDArray[np.floating], k: int) -> NDArray[np.bool_]:
        """Flags ``(n,)`` on the ``k`` highest scores among the rows that the model scored; ties by time."""
        flags = np.zeros(len(score), dtype=bool)
        usable = np.where(self.scored & np.isfinite(score), score, -np.inf)
        order = np.argsort(-usable, kind="stable")[:k]
        flags[order[np.isfinite(usable[order])]] = True
        return flags


def _baselines(judge: _Judge, k: int, scores: Mapping[str, NDArray[np.floating]]) -> dict[str, Figures]:
    """The same figures for always, never, random at the same rate, and each given score at the same rate."""
    made = {
        "always": _constant(judge, judge.scored),
        "never": _constant(judge, np.zeros_like(judge.scored)),
        "random": _random(judge, k),
    }
    return made | _at_equal_rate(judge, k, scores)


def _at_equal_rate(judge: _Judge, k: int, scores: Mapping[str, NDArray[np.floating]]) -> dict[str, Figures]:
    """The figures of each score when it flags its ``k`` highest rows."""
    made = {}
    for name, score in scores.items():
        flags = judge.highest(score, k)
        made[name] = judge.figures(score, flags, judge.intervals(flags))
    return made


def _constant(judge: _Judge, flags: NDArray[np.bool_]) -> Figures:
    """An alarm that never changes; what its constant score ranks follows from the prevalence."""
    made = judge.figures(np.zeros(len(flags)), flags, judge.intervals(flags))
    scored = judge.scored[judge.counted]
    positives = int(judge.positive[scored].sum())
    if 0 < positives < int(scored.sum()):
        values = (positives / int(scored.sum()), 0.5, 0.0)
        for name, value in zip(_RANKING, values, strict=True):
            made[name] = replace(made[name], value=value, method="by definition", note="of a constant score")
    if flags.any():
        reason = "an alarm that never ends cannot be counted in episodes; see its false positive rate"
        made["false_episodes_per_day"] = undefined("false_episodes_per_day", reason)
    return made


def _random(judge: _Judge, k: int) -> Figures:
    """Rows flagged by lot, as many as the model flagged: mean of 20 seeded draws, and their 95 % range."""
    rng = np.random.default_rng(judge.seed)
    drawn: dict[str, list[float]] = {}
    rows, positive = judge.counted & judge.scored, judge.positive[judge.scored[judge.counted]]
    rankable = bool(positive.any() and not positive.all())
    for _ in range(_RANDOM_DRAWS):
        score = rng.random(len(judge.scored))
        flags = judge.highest(score, k)
        values = {own.name: own.value for own in judge.of_events(judge.intervals(flags))}
        matrix = judge.confusion(flags)
        if rankable:
            counts = ranking_counts(score[rows], positive, np.zeros(len(positive), np.int64), 1)
            values |= {name: float(own[0]) for name, own in ranking_statistics(*counts).items()}
        else:
            values |= dict.fromkeys(_RANKING, math.nan)
        values |= {"precision": matrix.precision, "recall": matrix.recall}
        values["false_positive_rate"] = matrix.false_positive_rate
        for name, value in values.items():
            drawn.setdefault(name, []).append(value)
    return {name: _mean_of_draws(name, np.asarray(values)) for name, values in drawn.items()}


def _mean_of_draws(name: str, values: NDArray[np.float64]) -> Figure:
    values = values[np.isfinite(values)]
    count = f"mean of {len(values)} draws"
    if not len(values):
        return undefined(name, "not defined in any draw", count)
    low, high = np.quantile(values, [0.025, 0.975])
    interval = Interval(float(low), float(high), len(values), f"95 % range of {len(values)} draws")
    return figure(name, float(values.mean()), interval, count, len(values))


def counted(n: int, what: str) -> str:
    """A count with its noun in the right number.

    >>> counted(1, "row"), counted(2, "row")
    ('1 row', '2 rows')
    """
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _notes(e: Evaluation) -> list[str]:
    """What a reader must know before trusting the figures."""
    said = []
    if e.random_split:
        said.append(
            "random split: neighbouring rows of one event lie on both sides, so these figures are inflated; they only"
            " compare with published tables of the same kind"
        )
    if e.lead_us:
        said.append(
            f"positive rows are those up to {e.lead_us / 60e6:g} min before an event; its own rows are left out"
        )
    if not e.events:
        said.append(f"no event in the {e.part} part: recall and ranking cannot be judged")
    elif e.events < _FEW:
        said.append(f"only {counted(e.events, 'event')} in the {e.part} part: every figure about events is uncertain")
    if e.prevalence > _HIGH_PREVALENCE:
        said.append(
            f"{e.prevalence:.0%} of the rows are positive: an alarm that is always on has that precision already"
        )
    if e.confusion.false_positive_rate > _MUCH_FLAGGED:
        said.append(
            f"{e.confusion.false_positive_rate:.0%} of the normal rows are flagged: normal operation differs from what"
            " the model learned, or the threshold rests on too few rows"
        )
    if e.unscorable:
        missed = e.confusion.unscorable_positive
        said.append(f"{counted(e.unscorable, 'row')} could not be scored; {missed} positive, counted as missed")
    if e.unknown:
        said.append(f"{counted(e.unknown, 'row')} of unknown label not counted")
    if set(e.baselines) - {"always", "never", "random"}:
        said.append("each baseline with a score flags as many rows as the model does on the same rows")
    return said + _better(e)


def _better(e: Evaluation) -> list[str]:
    """Baselines that rank rows at least as well as the model."""
    ours = e.figures["average_precision"].value
    return [
        f"{name} ranks rows better than the model: average precision {theirs.value:.3g} against {ours:.3g}"
        for name, figures in e.baselines.items()
        if (theirs := figures["average_precision"]).value > ours
    ]


def _rows_id(rows: ScoredPart) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(rows.time).tobytes())
    digest.update("\0".join(map(str, rows.asset.tolist())).encode())
    digest.update(np.ascontiguousarray(rows.score, dtype=np.float64).tobytes())
    return digest.hexdigest()[:16]

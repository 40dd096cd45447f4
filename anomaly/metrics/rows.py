"""Row figures: how well a score ranks rows, and what a threshold makes of them.

Arrays are ``score (n,)`` float, higher is more anomalous, NaN where unscorable, and ``positive (n,)`` bool. Ranking
figures look at finite scores only; a confusion counts unscorable rows apart, never as normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

Scores = NDArray[np.floating]
Flags = NDArray[np.bool_]

#: False positive rate at which published sheet-break results are compared.
COMPARED_FPR = 0.063
_BINS = 2048


@dataclass(frozen=True)
class Confusion:
    """Rows by what they were and what was said; unscorable rows stand apart.

    >>> c = Confusion(tp=3, fp=1, fn=1, tn=5, unscorable_positive=2)
    >>> c.rows, c.precision, c.recall
    (12, 0.75, 0.5)
    """

    tp: int
    fp: int
    fn: int
    tn: int
    unscorable_positive: int = 0
    unscorable_negative: int = 0

    @property
    def positives(self) -> int:
        """All positive rows, scored or not."""
        return self.tp + self.fn + self.unscorable_positive

    @property
    def negatives(self) -> int:
        """All normal rows, scored or not."""
        return self.fp + self.tn + self.unscorable_negative

    @property
    def flagged(self) -> int:
        """Rows at or above the threshold."""
        return self.tp + self.fp

    @property
    def rows(self) -> int:
        """Everything that was counted."""
        return self.positives + self.negatives

    @property
    def precision(self) -> float:
        """Share of flagged rows that were positive; NaN where none was flagged."""
        return self.tp / self.flagged if self.flagged else math.nan

    @property
    def recall(self) -> float:
        """Share of positive rows that were flagged; an unscorable positive row is a missed one."""
        return self.tp / self.positives if self.positives else math.nan

    @property
    def false_positive_rate(self) -> float:
        """Share of scored normal rows that were flagged."""
        return self.fp / (self.fp + self.tn) if self.fp + self.tn else math.nan


def confusion(score: ArrayLike, positive: ArrayLike, threshold: float) -> Confusion:
    """Counts at ``score >= threshold``.

    >>> confusion([0.1, 0.9, np.nan, 0.8], [False, True, True, False], 0.5)
    Confusion(tp=1, fp=1, fn=0, tn=1, unscorable_positive=1, unscorable_negative=0)
    """
    s, p = _arrays(score, positive)
    scored, flagged = ~np.isnan(s), s >= threshold
    parts = (flagged & p, flagged & ~p, scored & ~flagged & p, scored & ~flagged & ~p, ~scored & p, ~scored & ~p)
    return Confusion(*(int(part.sum()) for part in parts))


def ranking_problem(score: ArrayLike, positive: ArrayLike) -> str:
    """Why ranking figures are not defined here, or ""."""
    s, p = _finite(score, positive)
    if not len(s):
        return "no scored row"
    if not p.any():
        return "no positive row among the scored rows"
    if p.all():
        return "no normal row among the scored rows"
    return "the score is the same for every row" if s.min() == s.max() else ""


def average_precision(score: ArrayLike, positive: ArrayLike) -> float:
    """Average precision; NaN where ``ranking_problem`` names a reason."""
    return _ranked(sk.average_precision_score, score, positive)


def roc_auc(score: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve; NaN where ``ranking_problem`` names a reason."""
    return _ranked(sk.roc_auc_score, score, positive)


def recall_at_fpr(score: ArrayLike, positive: ArrayLike, fpr: float = COMPARED_FPR) -> float:
    """The largest recall of a threshold that flags at most ``fpr`` of the normal rows; NaN as above.

    >>> recall_at_fpr([4, 3, 2, 1], [True, False, True, False], fpr=0.1)
    0.5
    """

    def best(p: Flags, s: Scores) -> float:
        rates, recalls, _ = sk.roc_curve(p, s, drop_intermediate=False)
        return float(recalls[rates <= fpr].max())

    return _ranked(best, score, positive)


def pr_curve(score: ArrayLike, positive: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], Scores]:
    """Precision, recall and threshold ``(m,)`` of each distinct score, thresholds rising; empty where undefined."""
    if ranking_problem(score, positive):
        return np.empty(0), np.empty(0), np.empty(0)
    s, p = _finite(score, positive)
    precision, recall, thresholds = sk.precision_recall_curve(p, s)
    return precision[:-1], recall[:-1], thresholds


def roc_curve(score: ArrayLike, positive: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False positive rate and recall ``(m,)`` from (0, 0) to (1, 1); empty where undefined."""
    if ranking_problem(score, positive):
        return np.empty(0), np.empty(0)
    s, p = _finite(score, positive)
    rates, recalls, _ = sk.roc_curve(p, s)
    return rates, recalls


def time_blocks(asset: NDArray[np.int64], whole: Flags, n_blocks: int = 40) -> NDArray[np.int64]:
    """Cut rows, sorted by asset and time, into contiguous blocks; an event stays whole in one, with its surroundings.

    ``asset (n,)`` codes, ``whole (n,)`` marks the rows of events and their leads. Gives block numbers ``(n,)`` from 0. The
    blocks are what a bootstrap draws: neighbouring rows are alike and must not pass for independent ones.

    >>> time_blocks(np.zeros(6, int), np.array([0, 1, 1, 0, 0, 0], bool), n_blocks=3).tolist()
    [0, 0, 0, 0, 1, 1]
    """
    n = len(asset)
    if not n:
        return np.zeros(0, np.int64)
    size = max(1, math.ceil(n / n_blocks))
    new_asset = np.concatenate(([True], asset[1:] != asset[:-1]))
    first = np.maximum.accumulate(np.where(new_asset, np.arange(n), 0))
    inside = np.concatenate(([False], whole[1:] & whole[:-1]))
    edge = new_asset | (((np.arange(n) - first) % size == 0) & ~inside)
    return np.cumsum(edge) - 1


def ranking_counts(
    score: Scores, positive: Flags, group: NDArray[np.int64], n_groups: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positive and normal rows ``(n_groups, B)`` per group and score bin, highest score first.

    Bins are the distinct scores; where there are more than 2048, bins grow with the rank from the top, so that the few
    highest scores, on which average precision depends, keep a bin each.
    """
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, len(ordered))
    if len(ends) > _BINS:
        at = np.searchsorted(ends, np.geomspace(1, len(ordered), _BINS))
        ends = ends[np.unique(np.minimum(at, len(ends) - 1))]
    bins = np.searchsorted(ends, np.arange(len(ordered)), side="right")
    cell = group[order] * len(ends) + bins
    shape, cells = (n_groups, len(ends)), n_groups * len(ends)
    p = positive[order]
    return (
        np.bincount(cell[p], minlength=cells).reshape(shape).astype(np.float64),
        np.bincount(cell[~p], minlength=cells).reshape(shape).astype(np.float64),
    )


def ranking_statistics(
    positives: NDArray[np.float64], normals: NDArray[np.float64], fpr: float = COMPARED_FPR
) -> dict[str, NDArray[np.float64]]:
    """Average precision, ROC AUC and recall at ``fpr``, each ``(draws,)``, of counts ``(draws, B)`` highest score first."""
    tp, fp = np.cumsum(positives, axis=1), np.cumsum(normals, axis=1)
    n_positive, n_normal = tp[:, -1:], fp[:, -1:]
    recall = _divided(tp, n_positive)
    precision, rate = _divided(tp, tp + fp), _divided(fp, n_normal)
    start = np.zeros((len(tp), 1))
    step = np.diff(recall, prepend=start, axis=1)
    middle = (recall + np.concatenate((start, recall[:, :-1]), axis=1)) / 2
    defined = (n_positive > 0)[:, 0] & (n_normal > 0)[:, 0]
    found = {
        "average_precision": np.where(step > 0, step * precision, 0).sum(axis=1),
        "roc_auc": (np.diff(rate, prepend=start, axis=1) * middle).sum(axis=1),
        "recall_at_fpr": np.where(rate <= fpr, recall, 0).max(axis=1),
    }
    return {name: np.where(defined, values, np.nan) for name, values in found.items()}


def _divided(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    below = np.broadcast_to(below, above.shape)
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 0)


def _arrays(score: ArrayLike, positive: ArrayLike) -> tuple[Scores, Flags]:
    s, p = np.asarray(score, dtype=np.float64), np.asarray(positive, dtype=bool)
    if s.shape != p.shape or s.ndim != 1:
        raise ValueError(f"score, positive: expected one-dimensional and equally long, got {s.shape} and {p.shape}")
    return s, p


def _finite(score: ArrayLike, positive: ArrayLike) -> tuple[Scores, Flags]:
    s, p = _arrays(score, positive)
    scored = np.isfinite(s)
    return s[scored], p[scored]


def _ranked(rule: Callable[[Flags, Scores], float], score: ArrayLike, positive: ArrayLike) -> float:
    if ranking_problem(score, positive):
        return math.nan
    s, p = _finite(score, positive)
    return float(rule(p, s))

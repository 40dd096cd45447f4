"""How much of the labels a representation gives away: probes and clustering figures (METHODS S43, S44; seed 002).

Arrays in, figures out: a representation is ``(n, d)``, one row per window, in time order. Three classifiers are trained
on it, linear, k-nearest-neighbour and SVM, and judged on rows that they have not seen. Every representation is judged on
the same folds; otherwise a difference between two of them could be a difference between their folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

PROBES = ("linear", "knn", "svm")
#: Metric → how the table prints it. The two ranking metrics are for two classes, of which the second is the rare one.
METRICS = {"balanced_accuracy": "balanced accuracy", "average_precision": "average precision", "roc_auc": "AUC"}

_DRAWS = 200
_LEAST_GROUPS = 3
_NEIGHBOURS = 5

#: Positions of the rows to learn from, and of those to judge on.
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
Floats = NDArray[np.float64]


def contingency(labels: ArrayLike, clusters: ArrayLike) -> Floats:
    """How often each label met each cluster, ``(labels, clusters)``; raises ValueError where lengths differ or are 0.

    >>> contingency(["a", "a", "b"], [1, 1, 0]).tolist()
    [[0.0, 2.0], [1.0, 0.0]]
    """
    own, found = np.asarray(labels), np.asarray(clusters)
    if own.ndim != 1 or own.shape != found.shape or not len(own):
        raise ValueError(
            f"labels, clusters: expected one-dimensional, equally long, not empty, got {own.shape}, {found.shape}"
        )
    i, j = (np.unique(values, return_inverse=True)[1] for values in (own, found))
    counts = np.zeros((i.max() + 1, j.max() + 1))
    np.add.at(counts, (i, j), 1)
    return counts


def nmi(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Normalised mutual information: 2·I(labels; clusters) / (H(labels) + H(clusters)), from 0 to 1.

    >>> nmi([0, 0, 1, 1], ["x", "x", "y", "y"])
    1.0
    """
    joint = contingency(labels, clusters)
    if joint.shape == (1, 1):
        return 1.0
    joint /= joint.sum()
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    met = joint > 0
    shared = float((joint[met] * np.log(joint[met] / np.outer(rows, columns)[met])).sum())
    entropy = -float((rows * np.log(rows)).sum() + (columns * np.log(columns)).sum())
    return min(max(2 * shared / entropy, 0.0), 1.0)


def matched_accuracy(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Share of rows that are right when each cluster is named after one label, in the best way (Kuhn 1955).

    >>> matched_accuracy([0, 0, 1, 1], [7, 7, 7, 3])
    0.75
    """
    counts = contingency(labels, clusters)
    i, j = linear_sum_assignment(counts, maximize=True)
    return float(counts[i, j].sum() / counts.sum())


def spectrum_components(windows: ArrayLike, k: int = 16, fit_on: ArrayLike | None = None) -> Floats:
    """Principal components of the windows' amplitude spectra, ``(n, T, C)`` → ``(n, k)``, the largest first.

    The axes are those of ``fit_on (m, T, C)``, or of the windows themselves. Fewer than ``k`` come back where the
    spectra have fewer dimensions.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1 component, got {k}")
    spectra = _spectra(windows)
    known = spectra if fit_on is None else _spectra(fit_on)
    mean = known.mean(axis=0)
    axes = np.linalg.svd(known - mean, full_matrices=False)[2][:k]
    # An axis may point either way; its largest part is made positive, so that the same windows give the same numbers.
    sign = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    return np.asarray((spectra - mean) @ (axes * sign[:, None]).T)


def _spectra(windows: ArrayLike) -> Floats:
    values = np.asarray(windows, dtype=np.float64)
    if values.ndim != 3 or not values.size:
        raise ValueError(f"windows: expected (n, T, C), none of them 0, got {values.shape}")
    return np.abs(np.fft.rfft(values, axis=1)).reshape(len(values), -1)


def compared_representations(windows: ArrayLike, embedding: ArrayLike, components: int = 16) -> dict[str, Floats]:
    """What seed 002 compares: the embedding, the raw windows and their spectra's principal components."""
    raw = np.asarray(windows, dtype=np.float64)
    return {
        "embedding": np.asarray(embedding, dtype=np.float64),
        "raw windows": raw.reshape(len(raw), -1),
        "spectrum components": spectrum_components(raw, components),
    }


def grouped_folds(labels: ArrayLike, groups: ArrayLike, k: int = 5, purge: int = 0, seed: int = 0) -> list[Fold]:
    """``k`` folds in which a group (an event with its surroundings, an asset, a day) is wholly learned from or judged.

    ``purge``: rows nearer than so many places to a judged one are not learned from; windows that overlap need it.
    """
    own, of = np.asarray(labels), np.asarray(groups)
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    folds = []
    for train, test in splitter.split(np.zeros((len(own), 1)), own, of):
        near = np.zeros(len(own) + 1)
        np.add.at(near, np.maximum(test - purge, 0), 1)
        np.add.at(near, np.minimum(test + purge + 1, len(own)), -1)
        folds.append((train[np.cumsum(near)[train] == 0], test))
    return folds


def chronological_folds(n: int, k: int = 5, purge: int = 0) -> list[Fold]:
    """``k`` folds of ``n`` rows in time order: each is judged by what came before it, less ``purge`` rows between.

    >>> [(len(train), test.tolist()) for train, test in chronological_folds(6, k=2, purge=1)]
    [(1, [2, 3]), (3, [4, 5])]
    """
    if k < 1 or n < k + 1:
        raise ValueError(f"n, k: expected at least 1 fold and {k + 1} rows, got {n} and {k}")
    edges = np.linspace(0, n, k + 2).round().astype(int)
    pairs = zip(edges[1:-1].tolist(), edges[2:].tolist(), strict=True)
    return [(np.arange(max(first - purge, 0)), np.arange(first, stop)) for first, stop in pairs]


@dataclass(frozen=True)
class ProbeScore:
    """One probe on one representation; ``low`` and ``high`` bound a 95 % interval, None where groups are too few."""

    representation: str
    probe: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ProbeTable:
    """Every probe on every representation, all judged on the same ``rows`` rows in ``folds`` folds.

    ``left_out``: folds that could not be used because a class was missing. ``groups``: what the intervals drew from.
    """

    metric: str
    scores: tuple[ProbeScore, ...]
    rows: int
    folds: int
    left_out: int
    groups: int

    def value(self, representation: str, probe: str) -> float:
        """One figure of the table; raises ValueError for a pair that is not in it."""
        for score in self.scores:
            if (score.representation, score.probe) == (representation, probe):
                return score.value
        raise ValueError(f"representation, probe: expected a pair of the table, got {representation!r}, {probe!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {**self.__dict__, "scores": [dict(score.__dict__) for score in self.scores]}

    def to_text(self) -> str:
        """One line per representation, one column per probe, each figure with its interval."""
        names, probes = (list(dict.fromkeys(getattr(s, of) for s in self.scores)) for of in ("representation", "probe"))
        cells = {(s.representation, s.probe): _cell(s) for s in self.scores}
        wide = max(len(name) for name in [METRICS[self.metric], *names])
        lines = [f"{METRICS[self.metric]:<{wide}}" + "".join(f"  {probe:<19}" for probe in probes)]
        lines += [f"{name:<{wide}}" + "".join(f"  {cells[name, probe]:<19}" for probe in probes) for name in names]
        said = (
            f"{self.rows} rows judged in {self.folds} folds, the same for all; 95 % intervals over {self.groups} groups"
        )
        said += f"; {self.left_out} folds left out, a class was missing" if self.left_out else ""
        return "\n".join([*(line.rstrip() for line in lines), said])


def _cell(score: ProbeScore) -> str:
    own = f"{score.value:.3f}"
    return own if score.low is None or score.high is None else f"{own} ({score.low:.2f}–{score.high:.2f})"


def probe_table(
    representations: Mapping[str, ArrayLike],
    labels: ArrayLike,
    folds: Sequence[Fold],
    *,
    groups: ArrayLike | None = None,
    metric: str = "balanced_accuracy",
    probes: Sequence[str] = PROBES,
    seed: int = 0,
) -> ProbeTable:
    """Train every probe on every representation ``(n, d)`` and judge it on the same held-back rows.

    ``groups (n,)`` are what the intervals draw again: rows of one group are not independent (default: every row its
    own). A fold whose rows to learn from are of one class is left out, for all alike; with a ranking metric also one
    judged on one class. Features are standardised on the rows that are learned from, classes are balanced.
    Raises ValueError for lengths that differ, numbers that are not finite, and where no fold can be used.
    """
    own, given = np.asarray(labels), {name: _checked(name, values, labels) for name, values in representations.items()}
    _check_metric(metric, own, given)
    usable = [fold for fold in folds if _usable(own, fold, metric)]
    if not usable:
        raise ValueError(f"folds: expected one with all classes to learn from, got {len(folds)} folds without")
    classes, codes = np.unique(own, return_inverse=True)
    of = np.arange(len(own)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    judged = np.concatenate([test for _, test in usable])
    drawn = _drawn_weights(of[judged], seed)
    scores = []
    for name, values in given.items():
        for probe in probes:
            answers = [_answer(probe, values, codes, fold, metric) for fold in usable]
            figures = _figures(metric, answers, [codes[test] for _, test in usable], len(classes), drawn)
            low, high = _interval(figures[1:])
            scores.append(ProbeScore(name, probe, float(figures[0]), low, high))
    n_groups = len(np.unique(of[judged]))
    return ProbeTable(metric, tuple(scores), len(judged), len(usable), len(folds) - len(usable), n_groups)


def _checked(name: str, values: ArrayLike, labels: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    n = len(np.asarray(labels))
    if array.ndim != 2 or len(array) != n:
        raise ValueError(f"representations: expected ({n}, d) for {name!r}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"representations: expected finite numbers, got NaN or infinity in {name!r}")
    return array


def _check_metric(metric: str, labels: NDArray[Any], given: Mapping[str, Floats]) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    if not given:
        raise ValueError("representations: expected at least one, got none")
    classes = len(np.unique(labels))
    if classes < 2 or (metric != "balanced_accuracy" and classes != 2):
        wanted = "two or more classes" if metric == "balanced_accuracy" else f"two classes for {metric}"
        raise ValueError(f"labels: expected {wanted}, got {classes}")


def _usable(labels: NDArray[Any], fold: Fold, metric: str) -> bool:
    train, test = fold
    judged_on = len(np.unique(labels[test]))
    return len(np.unique(labels[train])) > 1 and judged_on >= (1 if metric == "balanced_accuracy" else 2)


def _probe(name: str, train_rows: int, seed: int = 0) -> Pipeline:
    """The classifier behind a standardising step; raises ValueError for an unknown name."""
    if name == "linear":
        model = LogisticRegression(class_weight="balanced", max_iter=2000)
    elif name == "knn":
        model = KNeighborsClassifier(min(_NEIGHBOURS, train_rows), weights="distance")
    elif name == "svm":
        model = SVC(class_weight="balanced", random_state=seed)
    else:
        raise ValueError(f"probes: expected names of {', '.join(PROBES)}, got {name!r}")
    return make_pipeline(StandardScaler(), model)


def _answer(probe: str, values: Floats, codes: NDArray[np.int64], fold: Fold, metric: str) -> Floats:
    """What the probe says of the judged rows: class codes, or how strongly it takes them for the second class."""
    train, test = fold
    model = _probe(probe, len(train)).fit(values[train], codes[train])
    if metric == "balanced_accuracy":
        return np.asarray(model.predict(values[test]), dtype=np.float64)
    ranked = model.predict_proba(values[test])[:, 1] if probe == "knn" else model.decision_function(values[test])
    return np.asarray(ranked, dtype=np.float64)


def _drawn_weights(group: NDArray[np.int64], seed: int) -> Floats:
    """How often each judged row counts: once in the first line, then as its group was drawn, ``(1 + draws, m)``."""
    names, own = np.unique(group, return_inverse=True)
    once = np.ones((1, len(group)))
    if len(names) < _LEAST_GROUPS:
        return once
    share = np.full(len(names), 1 / len(names))
    times = np.random.default_rng(seed).multinomial(len(names), share, size=_DRAWS)
    return np.concatenate((once, times[:, own].astype(np.float64)))


def _figures(
    metric: str, answers: list[Floats], truth: list[NDArray[np.int64]], n_classes: int, weights: Floats
) -> Floats:
    """The metric under each line of weights. Classes said are pooled over the folds; scores of two folds do not
    compare, so ranking figures are means over folds."""
    if metric == "balanced_accuracy":
        return balanced_accuracy(np.concatenate(answers), np.concatenate(truth), n_classes, weights)
    edges = np.cumsum([0] + [len(t) for t in truth])
    each = [
        ranking_figure(metric, answer, own == 1, weights[:, low:high])
        for answer, own, low, high in zip(answers, truth, edges[:-1], edges[1:], strict=True)
    ]
    return _mean_where_finite(np.stack(each, axis=1))


def balanced_accuracy(said: Floats, truth: NDArray[np.int64], n_classes: int, weights: Floats) -> Floats:
    """Mean recall over the classes that have weight; ``weights (D, m)`` → ``(D,)``."""
    member = truth[:, None] == np.arange(n_classes)
    total = weights @ member
    right = weights @ (member & (said == truth)[:, None])
    return _mean_where_finite(np.divide(right, total, out=np.full(total.shape, np.nan), where=total > 0))


def ranking_figure(metric: str, score: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Average precision or AUC of weighted rows, ``weights (D, m)`` → ``(D,)``; NaN where a class has no weight."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.cumsum(weights[:, order] * positive[order], axis=1)[:, ends]
    misses = np.cumsum(weights[:, order] * ~positive[order], axis=1)[:, ends]
    defined = (hits[:, -1] > 0) & (misses[:, -1] > 0)
    recall = hits / np.where(defined, hits[:, -1], 1)[:, None]
    step = np.diff(recall, prepend=0, axis=1)
    if metric == "average_precision":
        seen = hits + misses
        figure = (step * np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)).sum(axis=1)
    else:
        rate = misses / np.where(defined, misses[:, -1], 1)[:, None]
        figure = (np.diff(rate, prepend=0, axis=1) * (recall - step / 2)).sum(axis=1)
    return np.where(defined, figure, np.nan)


def _mean_where_finite(values: Floats) -> Floats:
    """Mean of each line's finite numbers, ``(D, m)`` → ``(D,)``; NaN where it has none."""
    finite = np.isfinite(values)
    count = finite.sum(axis=1)
    total = np.where(finite, values, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _interval(drawn: Floats) -> tuple[float | None, float | None]:
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < _DRAWS / 2:
        return None, None
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)

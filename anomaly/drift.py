"""Has the plant left what the model learned? Drift of the inputs, of how they go together, of the scores, of the alert rate.

All of it in operating time: rows where the plant is off or could not be scored take no part, and the caller says which they
are. Neighbouring rows of a log are alike, so a thousand rows are not a thousand independent ones. Two devices allow for that:

- The p-value of a sensor (two-sample Kolmogorov-Smirnov) counts ``rows / tau`` rows, where tau is the integrated
  autocorrelation time of the sensor, the largest over indicators of its quartiles (Sokal's window).
- Intervals come from drawing whole blocks of neighbouring rows again, each at least two tau long.

A change is called drift when it is both sure (p after Holm's correction over the sensors, or an interval that leaves out no
change) and large enough to matter. Sizes of inputs are in training deviations, so that sensors compare. Fewer than twenty
independent rows are too few to tell. The kinds are told apart: ``input`` is one sensor's values, ``level`` the plant as a whole
within the relations it learned (another product, another load), ``relations`` sensors that no longer go together as they did
(a sensor that drifts), ``score`` the calibration, ``alert rate`` the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, kstwobign, wasserstein_distance

from anomaly.metrics.figures import number, poisson_interval
from anomaly.scores.calibration_check import clustering, share_interval

Kind = Literal["input", "level", "relations", "score", "alert rate"]
Verdict = Literal["drift", "no drift", "too few to tell"]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_ALPHA = 0.01
#: Smaller changes than these do not matter: training deviations, and a factor of a rate.
_LEAST_SHIFT, _LEAST_FACTOR = 0.3, 2.0
_LEAST_INDEPENDENT = 20.0
_LEAST_REFERENCE = 30
_DRAWS = 200
#: Values at which two distributions are compared while blocks are drawn.
_STEPS = 201
_QUARTILES = (0.25, 0.5, 0.75)
#: Share of the variance that the principal directions explain: what lies within them is the plant's level.
_EXPLAINED = 0.9
_NOTHING = 1e-9
#: Sokal's rule: the sum of autocorrelations ends where the lag passes this many tau.
_SOKAL = 6.0
#: Rows of one sensor that are compared at most; the others add nothing that the blocks do not hold.
_MOST_ROWS = 200_000


@dataclass(frozen=True)
class Drift:
    """One comparison with what the model learned.

    ``size``: training deviations (input, level, relations), decades between observed and nominal share (score), the rate over
    the budget (alert rate); NaN where nothing can be told. ``low`` to ``high`` is its 95 % interval, None where there is none.
    ``p`` is the p-value before correction (input only). ``rows`` were compared, worth ``independent`` independent ones.
    """

    kind: Kind
    tag: str
    size: float
    low: float | None
    high: float | None
    verdict: Verdict
    words: str
    p: float | None = None
    rows: int = 0
    independent: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values: NaN and infinity become None."""
        return {**self.__dict__, **{k: number(getattr(self, k)) for k in ("size", "low", "high", "p", "independent")}}


def autocorrelation_time(x: NDArray[Any]) -> float:
    """How many rows of ``x (n,)`` are worth one independent row: 1 + 2 Σ ρ(k), at least 1, by Sokal's window.

    >>> round(autocorrelation_time(np.random.default_rng(0).normal(size=4000)))
    1
    """
    values = np.asarray(x, dtype=np.float64)
    n, values = len(values), values - (values.mean() if len(values) else 0.0)
    if n < 4 or not np.any(np.abs(values) > _NOTHING):
        return 1.0
    spectrum = np.abs(np.fft.rfft(values, 2 * n)) ** 2
    covariance = np.fft.irfft(spectrum)[: n // 2]
    summed = 2 * np.cumsum(covariance / covariance[0]) - 1
    ended = np.flatnonzero(np.arange(len(summed)) >= _SOKAL * summed)
    # Where the window never closes the rows move together from end to end: nothing shorter is independent.
    if not len(ended):
        return float(n)
    lag = int(ended[0])
    # The mean taken off is the sample's own, which hides some of what neighbours share (Wolff, 2004).
    return float(np.clip(summed[lag] * (1 + (2 * lag + 1) / n), 1.0, n))


def block_ids(n: int, tau: float) -> NDArray[np.int64]:
    """Ids ``(n,)`` of blocks of neighbouring rows, each at least two ``tau`` long, at most fifty of them."""
    size = max(math.ceil(2 * tau), math.ceil(n / 50), 1)
    return np.minimum(np.arange(n) // size, max(n // size - 1, 0))


def input_drift(
    reference: NDArray[Any],
    current: NDArray[Any],
    tags: Sequence[str],
    *,
    operating: Flags | None = None,
    alpha: float = _ALPHA,
    least: float = _LEAST_SHIFT,
    seed: int = 0,
) -> list[Drift]:
    """Each sensor against held normal training rows, in the order of ``tags``.

    ``reference (m, C)`` and ``current (n, C)``, prepared alike, the latter in time order; NaN takes no part; ``operating (n,)``
    marks rows that are in operation (default all). ``size`` is the Wasserstein distance in training deviations; a sensor that
    was constant in training is compared with its own constant. Drift: Holm-corrected p below ``alpha`` and ``size`` at least
    ``least``. Raises ValueError where shapes do not fit.
    """
    held, rows = _checked(reference, current, tags, operating)
    found = [_one_sensor(tag, held[:, c], rows[:, c], least, seed) for c, tag in enumerate(tags)]
    return [_decided(d, passed, least) for d, passed in zip(found, _holm([d.p for d in found], alpha), strict=True)]


def _one_sensor(tag: str, held: Floats, now: Floats, least: float, seed: int) -> Drift:
    """One sensor before the verdict over all sensors; its words say what moved."""
    a, b = held[np.isfinite(held)], now[np.isfinite(now)][-_MOST_ROWS:]
    if len(a) < _LEAST_REFERENCE or len(b) < _LEAST_INDEPENDENT:
        return _untold(
            "input", tag, f"{tag}: {len(b)} rows in operation, {len(a)} training rows: too few to tell", len(b)
        )
    deviation, middle = float(a.std()), float(a.mean())
    if deviation < _NOTHING:
        return _constant_sensor(tag, middle, b)
    a, b = (a - middle) / deviation, (b - middle) / deviation
    cuts = np.unique(np.concatenate((np.quantile(a, _QUARTILES), np.quantile(b, _QUARTILES))))
    tau = max(autocorrelation_time(b), *(autocorrelation_time(b <= cut) for cut in cuts))
    if not b.std() > _NOTHING:
        tau = 1.0  # a stuck sensor: its rows say the same, however many are taken for independent
    independent = len(b) / tau
    size = float(wasserstein_distance(a, b))
    if independent < _LEAST_INDEPENDENT:
        words = f"{tag}: {len(b)} rows move together so much that they are worth {independent:.1f} independent ones: too few"
        return _untold("input", tag, words, len(b), independent)
    gap = _largest_gap(a, b)
    p = float(kstwobign.sf(gap * math.sqrt(len(a) * independent / (len(a) + independent))))
    low, high = _distance_interval(a, b, block_ids(len(b), tau), seed)
    words = f"{tag}: {size:.2f} training deviations away; mean {b.mean():+.2f}, spread times {b.std():.2f}"
    return Drift("input", tag, size, low, high, "no drift", words, p, len(b), independent)


def _constant_sensor(tag: str, value: float, now: Floats) -> Drift:
    """A sensor without spread in training: any other value is drift, in units of nothing to compare with."""
    moved = float(np.mean(np.abs(now - value) > _NOTHING * max(1.0, abs(value))))
    words = f"{tag}: constant in training, {moved:.0%} of the rows differ from it now"
    size = math.inf if moved else 0.0
    return Drift("input", tag, size, None, None, "no drift", words, 0.0 if moved > 0.01 else 1.0, len(now), len(now))


def _largest_gap(a: Floats, b: Floats) -> float:
    """The Kolmogorov-Smirnov statistic of two samples."""
    both, a, b = np.concatenate((a, b)), np.sort(a), np.sort(b)
    apart = np.searchsorted(a, both, side="right") / len(a) - np.searchsorted(b, both, side="right") / len(b)
    return float(np.abs(apart).max())


def _holm(p: Sequence[float | None], alpha: float) -> list[bool]:
    """Which hypotheses fall at family-wise level ``alpha`` (Holm, 1979); None never does.

    >>> _holm([0.001, 0.2, None, 0.02], 0.05)
    [True, False, False, True]
    """
    told = sorted((value, i) for i, value in enumerate(p) if value is not None)
    fallen = [False] * len(p)
    for rank, (value, i) in enumerate(told):
        if value > alpha / (len(told) - rank):
            break
        fallen[i] = True
    return fallen


def _decided(found: Drift, sure: bool, least: float) -> Drift:
    if found.verdict == "too few to tell":
        return found
    if sure and found.size >= least:
        verdict: Verdict = "drift"
        said = f"{found.words}: drift"
    else:
        verdict = "no drift"
        said = f"{found.words}: {'a change too small to matter' if sure else 'no drift'}"
    return Drift(**{**found.__dict__, "verdict": verdict, "words": said})


# All sensors together -----------------------------------------------------------------------------------------------


def multivariate_drift(
    reference: NDArray[Any],
    current: NDArray[Any],
    *,
    operating: Flags | None = None,
    least: float = _LEAST_SHIFT,
    seed: int = 0,
) -> list[Drift]:
    """How all sensors move together, against training rows: ``level`` and, with more than one direction, ``relations``.

    One half of ``reference (m, C)`` gives means, deviations and principal directions, the other half says how far training
    rows lie from them. ``level`` is the mean squared distance within the directions that hold nine tenths of the variance,
    ``relations`` the one outside of them, both on a log scale, in deviations of the held half. ``current (n, C)`` in time
    order; rows with a NaN, and those not ``operating``, take no part. Intervals draw blocks of current rows and held rows
    again; drift is an interval (98 %) beyond ``least`` of no change on either side. Raises ValueError where shapes do not fit.
    """
    held, rows = _checked(reference, current, None, operating)
    held, rows = held[np.isfinite(held).all(axis=1)], rows[np.isfinite(rows).all(axis=1)][-_MOST_ROWS:]
    moving = held.std(axis=0) > _NOTHING if len(held) else np.zeros(held.shape[1], bool)
    if len(held) < 2 * _LEAST_REFERENCE or len(rows) < _LEAST_INDEPENDENT or not moving.any():
        words = f"all sensors: {len(rows)} whole rows in operation, {len(held)} training rows: too few to tell"
        return [_untold("level", "", words, len(rows)), _untold("relations", "", words, len(rows))]
    order = np.random.default_rng(seed).permutation(len(held))
    fit, other = held[order[::2]][:, moving], held[order[1::2]][:, moving]
    names: tuple[Kind, ...] = ("level", "relations")
    energies = zip(names, _energies(fit, other), _energies(fit, rows[:, moving]), strict=True)
    return [_one_energy(name, then, now, least, seed) for name, then, now in energies if then.size]


def _energies(fit: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """Log mean squared distances ``(n,)`` within and outside the principal directions of ``fit``; empty without any."""
    middle, deviation = fit.mean(axis=0), np.maximum(fit.std(axis=0), _NOTHING)
    _, values, directions = np.linalg.svd((fit - middle) / deviation, full_matrices=False)
    explained = np.cumsum(values**2) / np.sum(values**2)
    kept = int(np.searchsorted(explained, _EXPLAINED)) + 1
    scale = np.maximum(values / math.sqrt(len(fit)), 1e-3 * values[0] / math.sqrt(len(fit)))
    z = ((rows - middle) / deviation) @ directions.T / scale
    parts = (z[:, :kept], z[:, kept:])
    own = [np.log(np.mean(p**2, axis=1) + 1e-3) if p.shape[1] else np.empty(0) for p in parts]
    return own[0], own[1]


def _one_energy(kind: Kind, then: Floats, now: Floats, least: float, seed: int) -> Drift:
    what = {"level": "the plant as a whole", "relations": "how the sensors go together"}[kind]
    tau = autocorrelation_time(now)
    independent = len(now) / tau
    if independent < _LEAST_INDEPENDENT:
        words = f"{what}: {len(now)} rows are worth {independent:.1f} independent ones: too few to tell"
        return _untold(kind, "", words, len(now), independent)
    middle, deviation = float(then.mean()), max(float(then.std()), _NOTHING)
    x = (now - middle) / deviation
    rng, size = np.random.default_rng(seed), float(x.mean())
    sums, counts = _block_sums(x, block_ids(len(x), tau))
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=_DRAWS * 5)
    means = (drawn @ sums) / (drawn @ counts) + rng.normal(scale=1 / math.sqrt(len(then)), size=_DRAWS * 5)
    low, high = (float(v) for v in np.quantile(means, [0.01, 0.99]))
    moved = low > least or high < -least
    words = f"{what}: {size:+.2f} deviations of training rows ({low:+.2f} to {high:+.2f}): {'drift' if moved else 'no drift'}"
    return Drift(kind, "", size, low, high, "drift" if moved else "no drift", words, None, len(x), independent)


# Scores and alerts --------------------------------------------------------------------------------------------------


def score_drift(
    scores: NDArray[Any],
    *,
    operating: Flags | None = None,
    nominal: float = 0.01,
    calibrated_on: int | None = None,
    factor: float = _LEAST_FACTOR,
) -> Drift:
    """Do as many rows pass a score of ``-log10(nominal)`` as the calibration says? (METHODS S63)

    ``scores (n,)`` calibrated, in time order, NaN takes no part. Drift: the 95 % interval of the observed share, widened for
    rows that pass together, leaves out the nominal one by at least ``factor`` in the middle. ``size`` is in decades. An alert
    that lasts also shows here: leave out rows of known events. Raises ValueError for a ``nominal`` outside (0, 1).
    """
    if not 0 < nominal < 1:
        raise ValueError(f"nominal: expected a share between 0 and 1, got {nominal}")
    values = np.asarray(scores, dtype=np.float64)
    values = values[_mask(len(values), operating)]
    values = values[np.isfinite(values)]
    n = len(values)
    if n * nominal < 1 or n < _LEAST_INDEPENDENT:
        return _untold("score", "", f"scores: {n} rows cannot show a share of {nominal:.3g}: too few to tell", n)
    level = -math.log10(nominal)
    passed = values >= level
    tau = max(autocorrelation_time(passed), autocorrelation_time(values))
    worth = max(tau, clustering(passed, block_ids(n, tau)))
    independent = n / worth
    worth *= 1 + n / worth / calibrated_on if calibrated_on else 1
    low, high = share_interval(float(passed.sum()) / worth, n / worth)
    share = float(passed.mean())
    size = math.log10(max(share, 0.5 / n) / nominal)
    said = f"scores: {share:.2%} of the rows pass {level:.1f} ({low:.2%} to {high:.2%}), {nominal:.2%} should"
    least, most = (math.log10(max(end, 0.5 / n) / nominal) for end in (low, high))
    if not low <= nominal <= high and abs(size) >= math.log10(factor):
        verdict: Verdict = "drift"
    elif independent * nominal < 1:
        verdict = "too few to tell"
    else:
        verdict = "no drift"
    return Drift("score", "", size, least, most, verdict, f"{said}: {verdict}", None, n, independent)


def alert_rate_drift(
    count: int, days: float, budget: float, *, before: tuple[int, float] | None = None, factor: float = _LEAST_FACTOR
) -> Drift:
    """Alerts in ``days`` of operation, added up over assets, against a ``budget`` per asset and day; exact Poisson interval.

    ``before``, alerts and days of an earlier time, also shows a rate that fell silent: the two rates are compared by the
    conditional binomial test. ``size`` is the rate over the budget. Raises ValueError for a negative count or a budget that is
    not positive.
    """
    if count < 0 or not budget > 0:
        raise ValueError(f"count, budget: expected count >= 0 and budget > 0, got {count} and {budget}")
    if not days > 0:
        return _untold("alert rate", "", "alerts: no operating time: too few to tell")
    interval = poisson_interval(count, days)
    low, high = float(interval.low or 0.0), float(interval.high or 0.0)
    rate = count / days
    said = (
        f"alerts: {count} in {days:.3g} operating days, {rate:.3g} a day ({low:.3g} to {high:.3g}), budget {budget:.3g}"
    )
    changed = _changed(count, days, before, factor) if before else ""
    verdict: Verdict = "drift"
    if low > budget:
        said = f"{said}: over the budget"
    elif changed:
        said = f"{said}: {changed}"
    else:
        verdict = "no drift" if high <= budget or budget * days >= 1 else "too few to tell"
        said = f"{said}: {verdict if verdict != 'no drift' else 'within the budget'}"
    return Drift("alert rate", "", rate / budget, low / budget, high / budget, verdict, said, None, count, float(count))


def _changed(count: int, days: float, before: tuple[int, float], factor: float) -> str:
    """What is said of a rate that differs from an earlier one by ``factor`` and surely; empty where it does not."""
    earlier, span = before
    if not span > 0 or not count + earlier:
        return ""
    p = float(binomtest(count, count + earlier, days / (days + span)).pvalue)
    ratio = ((count + 0.5) / days) / ((earlier + 0.5) / span)
    if p >= _ALPHA or max(ratio, 1 / ratio) < factor:
        return ""
    return f"{'more' if ratio > 1 else 'fewer'} than the {earlier / span:.3g} a day before"


# Shared -------------------------------------------------------------------------------------------------------------


def _untold(kind: Kind, tag: str, words: str, rows: int = 0, independent: float = 0.0) -> Drift:
    return Drift(kind, tag, math.nan, None, None, "too few to tell", words, None, rows, independent)


def _mask(n: int, operating: Flags | None) -> Flags:
    if operating is None:
        return np.ones(n, dtype=bool)
    if operating.shape != (n,):
        raise ValueError(f"operating: expected one flag per row, {n}, got shape {operating.shape}")
    return operating.astype(bool)


def _checked(
    reference: NDArray[Any], current: NDArray[Any], tags: Sequence[str] | None, operating: Flags | None
) -> tuple[Floats, Floats]:
    held, rows = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    if held.ndim != 2 or rows.ndim != 2 or held.shape[1] != rows.shape[1]:
        raise ValueError(f"current: expected (n, C) with the C of reference {held.shape}, got {rows.shape}")
    if tags is not None and len(tags) != rows.shape[1]:
        raise ValueError(f"tags: expected one name per column, {rows.shape[1]}, got {len(tags)}")
    return held, rows[_mask(len(rows), operating)]


def _block_sums(x: Floats, ids: NDArray[np.int64]) -> tuple[Floats, Floats]:
    return np.bincount(ids, weights=x).astype(np.float64), np.bincount(ids).astype(np.float64)


def _distance_interval(a: Floats, b: Floats, ids: NDArray[np.int64], seed: int) -> tuple[float | None, float | None]:
    """95 % of the Wasserstein distance from ``a`` when whole blocks of ``b`` are drawn again; None for fewer than three."""
    n = int(ids[-1]) + 1
    if n < 3:
        return None, None
    edges = np.unique(np.quantile(np.concatenate((a, b)), np.linspace(0, 1, _STEPS)))
    below_a = np.searchsorted(np.sort(a), edges, side="right") / len(a)
    cell = ids * (len(edges) + 1) + np.searchsorted(edges, b, side="left")
    below_b = np.cumsum(np.bincount(cell, minlength=n * (len(edges) + 1)).reshape(n, -1), axis=1)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_DRAWS) @ below_b
    gaps = np.abs(drawn[:, :-1] / drawn[:, -1:] - below_a)
    values = gaps[:, :-1] @ np.diff(edges)
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)

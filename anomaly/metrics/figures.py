"""A number with what was counted and how sure it is: block bootstrap, and exact intervals for small counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, chi2, norm

#: Fewer groups than this give no interval: resampling them says nothing.
MIN_GROUPS = 3
#: Up to this many events an exact binomial interval is used.
FEW_EVENTS = 5


@dataclass(frozen=True)
class Interval:
    """An interval around a figure; ``low`` and ``high`` are None where none can be given, and ``reason`` says why."""

    low: float | None
    high: float | None
    groups: int
    method: str
    reason: str = ""


@dataclass(frozen=True)
class Figure:
    """One published number.

    ``value`` is NaN where it is not defined (``note`` says why); ``low`` and ``high`` bound a 95 % interval or are None;
    ``count`` says in words what was counted, ``n`` is its denominator; ``method`` is how the interval was made.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    count: str = ""
    n: int = 0
    method: str = ""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values: NaN and infinity become None."""
        return {**self.__dict__, **{k: number(getattr(self, k)) for k in ("value", "low", "high")}}


def number(value: float | None) -> float | None:
    """``value`` as JSON can hold it: None where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def figure(name: str, value: float, interval: Interval, count: str, n: int, note: str = "") -> Figure:
    """A figure from its value and its interval; the reasons of both are kept in the note."""
    said = "; ".join(part for part in (note, interval.reason) if part)
    return Figure(name, float(value), interval.low, interval.high, count, n, interval.method, said)


def undefined(name: str, reason: str, count: str = "", n: int = 0) -> Figure:
    """A figure that has no value, and why."""
    return Figure(name, math.nan, count=count, n=n, note=reason)


def bootstrap_interval(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    n_groups: int,
    *,
    holding: int | None = None,
    draws: int = 300,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval when whole groups (events, contiguous blocks of time) are drawn again, with replacement.

    ``statistic`` maps how often each group was drawn, ``(draws, n_groups)``, to ``(draws,)`` values, NaN where a draw
    has none. ``holding`` is how many groups hold what is measured (default all). Rows of one group are never counted as
    independent. No interval, with a reason, is given for fewer than three groups, or where resampling never changes
    the value: an interval of width zero would claim certainty.
    """
    held = n_groups if holding is None else holding
    method = f"block bootstrap, {draws} draws of {n_groups} groups"
    if held < MIN_GROUPS:
        return Interval(None, None, held, "none", f"{held} independent groups are too few for an interval")
    share = np.full(n_groups, 1 / n_groups)
    times_drawn = np.random.default_rng(seed).multinomial(n_groups, share, size=draws).astype(np.float64)
    values = statistic(times_drawn)
    values = values[np.isfinite(values)]
    if len(values) < draws / 2:
        return Interval(None, None, held, "none", "most resamples leave the figure undefined")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    if np.isclose(low, high, rtol=1e-12, atol=1e-12):
        return Interval(None, None, held, "none", "every resample gives the same value, so no interval")
    return Interval(float(low), float(high), held, method)


def clopper_pearson(found: int, total: int, level: float = 0.95) -> Interval:
    """Exact binomial interval of ``found`` out of ``total`` (Clopper and Pearson, 1934).

    >>> exact = clopper_pearson(0, 3)
    >>> exact.low, round(exact.high, 3)
    (0.0, 0.708)
    """
    _check_counts(found, total)
    a = (1 - level) / 2
    low = 0.0 if found == 0 else float(beta.ppf(a, found, total - found + 1))
    high = 1.0 if found == total else float(beta.ppf(1 - a, found + 1, total - found))
    return Interval(low, high, total, "exact binomial (Clopper-Pearson)")


def wilson(found: int, total: int, level: float = 0.95) -> Interval:
    """Score interval of ``found`` out of ``total`` (Wilson, 1927).

    >>> score = wilson(5, 10)
    >>> round(score.low, 3), round(score.high, 3)
    (0.237, 0.763)
    """
    _check_counts(found, total)
    z, p = float(norm.ppf((1 + level) / 2)), found / total
    middle = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return Interval(max(0.0, middle - half), min(1.0, middle + half), total, "Wilson over events")


def proportion_interval(found: int, total: int) -> Interval:
    """Exact for fewer than five events, Wilson from there on."""
    return clopper_pearson(found, total) if total < FEW_EVENTS else wilson(found, total)


def poisson_interval(count: int, exposure: float, level: float = 0.95) -> Interval:
    """Exact interval of the rate behind ``count`` happenings in ``exposure`` (Garwood, 1936).

    >>> round(poisson_interval(0, 1.0).high, 3)
    3.689
    """
    if count < 0 or not exposure > 0:
        raise ValueError(f"count, exposure: expected count >= 0 and exposure > 0, got {count} and {exposure}")
    a = (1 - level) / 2
    low = 0.0 if count == 0 else float(chi2.ppf(a, 2 * count)) / 2
    high = float(chi2.ppf(1 - a, 2 * count + 2)) / 2
    return Interval(low / exposure, high / exposure, count, "exact Poisson")


def _check_counts(found: int, total: int) -> None:
    if not 0 <= found <= total or total < 1:
        raise ValueError(f"found, total: expected 0 <= found <= total and total >= 1, got {found} and {total}")

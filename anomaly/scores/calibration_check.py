"""Do fresh normal rows pass a score as rarely as the score says? Nominal against observed rates (METHODS S63).

A score of s is meant to be passed by one normal row in 10^s. Neighbouring rows share most of their window, so they pass
together: intervals are widened by how much more the counts of blocks of rows vary than those of independent rows would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

Verdict = Literal["as calibrated", "too many", "too few", "too little to tell"]

#: Rows of one block lie in this many lookbacks: shorter blocks miss what neighbours at their edges share.
_LOOKBACKS = 3
_DECADES = 0.5
#: An interval that reaches to so many times the nominal rate cannot say that the calibration holds.
_TELLING = 10.0


@dataclass(frozen=True)
class CalibrationRow:
    """One nominal rate and what fresh normal rows did.

    ``nominal`` and ``observed`` are shares of rows, ``low`` to ``high`` is the 95 % interval of the observed one;
    ``expected`` and ``counted`` are rows. ``verdict`` says on which side of the interval the nominal rate lies, or that
    the interval is too wide to tell.
    """

    nominal: float
    observed: float
    low: float
    high: float
    expected: float
    counted: int
    verdict: Verdict


def check_calibration(
    scores: NDArray[np.float64], blocks: NDArray[np.int64], *, calibrated_on: int | None = None
) -> list[CalibrationRow]:
    """A row for nominal rates 10^-0.5, 10^-1, … while at least one row is expected beyond it.

    ``scores (n,)`` calibrated, of normal rows that the calibration did not see, NaN takes no part; ``blocks (n,)`` ids of
    stretches that count as independent of each other (``row_blocks``). ``calibrated_on`` rows of the same kind made the
    calibration: it is itself uncertain by them, and the interval is widened for that. Raises ValueError when lengths
    differ or no score is finite.
    """
    if len(scores) != len(blocks):
        raise ValueError(f"blocks: expected one id per score, got {len(blocks)} for {len(scores)}")
    scored = np.isfinite(scores)
    x, ids = scores[scored], np.unique(blocks[scored], return_inverse=True)[1]
    n = len(x)
    if not n:
        raise ValueError("scores: expected at least one finite score of a normal row, got none")
    rows: list[CalibrationRow] = []
    widened, level = 1.0, _DECADES
    while n * (nominal := 10.0**-level) >= 1:
        passed = x >= level
        counted = int(passed.sum())
        # A rare level has too few rows to tell how they cluster: it clusters at least as much as the level before.
        widened = max(widened, clustering(passed, ids))
        worth = widened * (1 + n / calibrated_on if calibrated_on else 1)
        low, high = share_interval(counted / worth, n / worth)
        verdict = _verdict(nominal, low, high)
        rows.append(CalibrationRow(nominal, counted / n, low, high, n * nominal, counted, verdict))
        level += _DECADES
    return rows


def _verdict(nominal: float, low: float, high: float) -> Verdict:
    """On which side of the interval the nominal rate lies; inside one that reaches to ten times as many, nothing is told."""
    if nominal < low:
        return "too many"
    if nominal > high:
        return "too few"
    return "as calibrated" if high <= nominal * _TELLING else "too little to tell"


def row_blocks(asset: NDArray[np.object_], lookback: int) -> NDArray[np.int64]:
    """Block ids ``(n,)`` of rows in time order: three lookbacks of neighbouring rows each, never two assets together.

    >>> row_blocks(np.array(["a"] * 4 + ["b"] * 2, dtype=object), 1).tolist()
    [0, 0, 0, 1, 2, 2]
    """
    if lookback < 1:
        raise ValueError(f"lookback: expected at least 1 row, got {lookback}")
    names, codes = np.unique(asset.astype(str), return_inverse=True)
    ids, used = np.empty(len(asset), dtype=np.int64), 0
    for code in range(len(names)):
        own = np.flatnonzero(codes == code)
        ids[own] = used + np.arange(len(own)) // (_LOOKBACKS * lookback)
        used = int(ids[own[-1]]) + 1
    return ids


def clustering(passed: NDArray[np.bool_], ids: NDArray[np.int64]) -> float:
    """How many rows are worth one independent row: the variance of block counts over that of independent rows.

    ``passed (n,)``, ``ids (n,)`` from 0 without holes. At least 1, at most the rows of a mean block.

    >>> clustering(np.array([True, True, False, False]), np.array([0, 0, 1, 1]))
    2.0
    """
    size, hits = np.bincount(ids), np.bincount(ids, weights=passed)
    share = float(passed.mean())
    if len(size) < 2 or not 0 < share < 1:
        return 1.0
    spread = float(((hits - share * size) ** 2).sum()) * len(size) / (len(size) - 1)
    return float(np.clip(spread / (len(passed) * share * (1 - share)), 1.0, len(passed) / len(size)))


def share_interval(hits: float, n: float) -> tuple[float, float]:
    """Clopper–Pearson 95 % interval of ``hits`` among ``n``, which need not be whole numbers.

    >>> [round(end, 3) for end in share_interval(0, 10)]
    [0.0, 0.308]
    """
    low = float(beta.ppf(0.025, hits, n - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    return low, high

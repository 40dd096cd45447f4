"""What an alert says of its peak: the sensors behind it, what of the past it looks like, and the window itself, to draw it.

The window is cut down to what a page can show: a few tags, a few hundred points, as many digits as a curve shows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.model import AnomalyModel
from anomaly.scores.explain import tag_reasons
from anomaly.stream import Evidence

MOST_TAGS, MOST_POINTS = 8, 200
#: Steps of a normal range that a curve shows, and digits of a number at most.
_STEPS, _MOST_DIGITS = 200.0, 12

Ranges = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Told:
    """What is known of one row that may be a peak. Its JSON text is made where it is asked for as ``str``: of most rows nobody
    asks.

    ``shares (C,)`` of the row's score; ``ranges``: low and high ``(C,)`` of normal rows.
    """

    model: AnomalyModel
    ranges: Ranges
    shares: NDArray[np.float32]
    evidence: Evidence

    def __str__(self) -> str:
        tags = tag_reasons(self.shares, self.evidence.values, *self.ranges, self.model.contract.tags)
        told: dict[str, Any] = {
            "tags": [t.to_dict() for t in tags],
            "alike": [a.to_dict() for a in self.evidence.alike],
        }
        if self.evidence.window is not None:
            told["excerpt"] = excerpt(self.model, self.evidence.window, self.shares, self.ranges)
        return json.dumps(told)


def excerpt(
    model: AnomalyModel, window: NDArray[np.float32], shares: NDArray[np.float32], ranges: Ranges
) -> dict[str, Any]:
    """The prepared ``window (T, C + K)`` that ends at a peak, for the tags with the largest ``shares (C,)``.

    ``before``: seconds from each point to the peak, counted in the log's period; ``tags``: of each its ``tag``, ``actual``
    values in its own unit (missing ones carried forward), what the model ``expected`` (None where it does not reconstruct), and
    the ``low`` and ``high`` of normal rows. At most 8 tags and 200 points.
    """
    tags = model.contract.tags
    rows = np.unique(np.linspace(0, len(window) - 1, min(len(window), MOST_POINTS)).round().astype(int))
    actual = model.preparer.inverse(window[:, : len(tags)])
    expected = None
    if model.encoder.can_reconstruct:
        # One window at a time and past the engines, so that neither a log's cut nor its length changes a digit.
        expected = model.preparer.inverse(model.encoder.reconstruct(window[None])[0])
    steps = np.nan_to_num(np.abs(ranges[1] - ranges[0])) / _STEPS
    curves = [
        {
            "tag": tags[c],
            "actual": _points(actual[rows, c], steps[c]),
            "expected": None if expected is None else _points(expected[rows, c], steps[c]),
            "low": _point(ranges[0][c], steps[c]),
            "high": _point(ranges[1][c], steps[c]),
        }
        for c in np.argsort(-shares, kind="stable")[:MOST_TAGS].tolist()
        if shares[c] > 0
    ]
    before = (len(window) - 1 - rows) * model.contract.period_us / 1e6
    return {"before": [round(float(s), 3) for s in before], "tags": curves}


def _points(values: NDArray[np.float64], step: float) -> list[float | None]:
    return [_point(v, step) for v in values]


def _point(value: float, step: float) -> float | None:
    """Five digits, or as many as tell ``step`` apart; None for what is missing."""
    if not np.isfinite(value):
        return None
    digits = 5
    if 0 < step < abs(value):
        digits = min(max(int(np.ceil(np.log10(abs(value) / step))) + 1, digits), _MOST_DIGITS)
    return float(f"{value:.{digits}g}")

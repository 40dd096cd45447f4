"""Pictures about the choice of a threshold: does the calibration hold, and what would other thresholds have given.

Drawn with the helpers of ``pipelines.report_pictures``; nothing to draw gives a sentence instead of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullFormatter

from anomaly.scores.calibration_check import CalibrationRow
from anomaly.scores.what_if import WhatIfRow
from pipelines.report_pictures import (
    BLUE,
    GREY,
    RED,
    Picture,
    _legend_below,
    _picture,
    _plain_ticks,
    duration_unit,
)

_SQUARE = (4.9, 4.0)
#: Beyond this the rare end of the interval is drawn as reaching the lower edge: a logarithm has no zero.
_EDGE = 0.3
_HOLDS, _OFF = ("as calibrated",), ("too many", "too few")
_GROUPS = (
    ("as calibrated", BLUE, _HOLDS),
    ("not as calibrated", RED, _OFF),
    ("too little to tell", GREY, ("too little to tell",)),
)


def calibration_plot(rows: Sequence[CalibrationRow]) -> Picture:
    """Observed over nominal rates of fresh normal rows, both logarithmic, with intervals and the diagonal (METHODS S63)."""
    title = "Calibration on fresh normal rows"
    if not rows:
        return Picture(title, "No calibration to show: too few normal rows for even the most common rate.")
    nominal = np.array([row.nominal for row in rows])
    floor = _EDGE * min(*(r.observed for r in rows if r.counted), *nominal.tolist(), 1.0)

    def draw(canvas: Canvas) -> None:
        ax = canvas.add_subplot()
        ax.set(xscale="log", yscale="log")
        ax.plot(nominal, nominal, color=GREY, ls="--", lw=1, label="as the score says")
        for label, colour, verdicts in _GROUPS:
            if own := [row for row in rows if row.verdict in verdicts]:
                _bars(ax, own, floor, colour, label)
        ax.set_ylim(bottom=floor)
        ax.set_xlim(nominal.min() / 2, nominal.max() * 2)
        ax.set_xlabel("share of normal rows that the score promises")
        ax.set_ylabel("share of fresh normal rows")
        _plain_ticks(ax)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        _legend_below(ax)

    return _picture(title, _calibration_text(rows), draw, _SQUARE)


def _bars(ax: Axes, rows: Sequence[CalibrationRow], floor: float, colour: str, label: str) -> None:
    """Observed shares with their intervals; one of no row at all stands on the lower edge, as a triangle."""
    x = np.array([row.nominal for row in rows])
    y = np.array([max(row.observed, floor) for row in rows])
    low = np.array([max(row.low, floor) for row in rows])
    high = np.array([max(row.high, floor) for row in rows])
    reach = np.maximum([y - low, high - y], 0)
    seen = np.array([row.counted > 0 for row in rows])
    ax.errorbar(x, y, reach, color=colour, marker="", ls="", capsize=4, label=f"{label}, 95 % interval")
    ax.plot(x[seen], y[seen], "o", color=colour)
    ax.plot(x[~seen], y[~seen], "v", color=colour, clip_on=False)


def _calibration_text(rows: Sequence[CalibrationRow]) -> str:
    figures = "; ".join(
        f"1 in {1 / row.nominal:.3g}: {row.counted} rows, {row.expected:.3g} expected, {row.verdict}" for row in rows
    )
    told = [row for row in rows if row.verdict in (*_HOLDS, *_OFF)]
    off = sum(row.verdict in _OFF for row in told)
    unknown = f", {len(rows) - len(told)} cannot be told" if len(told) < len(rows) else ""
    said = f"{off} of {len(rows)} rates are not as calibrated{unknown}"
    if not off:
        said = (
            f"{len(told)} of {len(rows)} rates are as calibrated{unknown}" if unknown else "every rate is as calibrated"
        )
    return f"Of fresh normal rows {said}. Scores passed by {figures}."


def what_if_plot(rows: Sequence[WhatIfRow]) -> Picture:
    """Events found over false episodes a week, a point per threshold, the chosen one marked (METHODS S61)."""
    title = "What other thresholds would give"
    if not rows:
        return Picture(title, "No thresholds to compare.")
    if not rows[0].events:
        return Picture(title, "No event in this part, so no threshold can be judged by what it finds.")
    ordered = sorted(rows, key=lambda row: row.threshold)
    x = np.array([row.per_week for row in ordered])
    y = np.array([row.found / row.events for row in ordered])
    reach = np.array([(row.per_week - row.low, row.high - row.per_week) for row in ordered]).T

    def draw(canvas: Canvas) -> None:
        ax = canvas.add_subplot()
        ax.errorbar(x, y, xerr=np.maximum(reach, 0), color=GREY, ls="", lw=0.8, capsize=2, label="95 % interval")
        ax.plot(x, y, "o-", color=BLUE, label="other thresholds")
        for row in ordered:
            if row.chosen:
                point = (row.per_week, row.found / row.events)
                ax.plot(*point, "o", color=RED, ms=9, zorder=5, label=f"chosen: {row.threshold:.2f}")
        for (at_x, at_y), label in _labels(ordered):
            ax.annotate(label, (at_x, at_y), (0, 6), textcoords="offset points", fontsize="x-small", rotation=45)
        if x.max() > 20 * max(float(np.min(x[x > 0], initial=np.inf)), 1e-9):
            ax.set_xscale("symlog", linthresh=float(x[x > 0].min()))
            ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlim(left=0)
        ax.set_ylim(-0.03, 1.18)
        ax.set_yticks(np.linspace(0, 1, 6))
        ax.set_xlabel("false episodes per asset and week")
        ax.set_ylabel(f"share of {ordered[0].events} events found")
        _legend_below(ax)

    return _picture(title, _what_if_text(ordered), draw, _SQUARE)


def _labels(rows: Sequence[WhatIfRow]) -> list[tuple[tuple[float, float], str]]:
    """One label per point; thresholds that fall on the same point share it."""
    points: dict[tuple[float, float], list[float]] = {}
    for row in rows:
        points.setdefault((row.per_week, row.found / row.events), []).append(row.threshold)
    return [
        (point, f"{own[0]:.2f}" if len(own) == 1 else f"{own[0]:.2f} to {own[-1]:.2f}") for point, own in points.items()
    ]


def _what_if_text(rows: Sequence[WhatIfRow]) -> str:
    said = []
    for row in rows:
        lead = ""
        if row.median_lead_s is not None:
            size, unit = duration_unit(abs(row.median_lead_s))
            lead = f", median lead {row.median_lead_s / size:.3g} {unit}"
        chosen = " (chosen)" if row.chosen else ""
        said.append(
            f"{row.threshold:.2f}{chosen}: {row.per_week:.3g} a week ({row.low:.3g} to {row.high:.3g}), "
            f"{row.found} of {row.events} events{lead}"
        )
    return f"False episodes per asset and week, and events found, by threshold. {'; '.join(said)}."

"""Two models on one log as a picture: how far each score is over its threshold, and where the outcomes differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from anomaly.data.contract import EVENT
from anomaly.files import atomic_path
from anomaly.fitting import PartScores
from anomaly.model import ANOMALOUS, UNSCORABLE
from pipelines.report_pictures import BLUE, GREY, ORANGE

_POINTS = 900
_MOST_ASSETS = 6
_STYLE = {"text.parse_math": False, "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False}


def draw(out: Path, names: Sequence[str], answers: tuple[PartScores, PartScores], thresholds: Sequence[float]) -> None:
    """Write a PNG: one row of axes for each asset (the first six), ``answers`` of equal rows sorted by asset and time.

    Scores are divided by their threshold, so that 1 is where an alert begins for both; the highest of each bin is drawn.
    Below them, ticks where only one model was anomalous, and where only one could score at all.
    """
    assets = list(dict.fromkeys(answers[0].asset.tolist()))[:_MOST_ASSETS]
    with mpl.rc_context(_STYLE):
        canvas = Canvas(figsize=(10, 1 + 2.6 * len(assets)), layout="constrained")
        grid = canvas.subplots(len(assets), 1, squeeze=False)[:, 0]
        for axes, asset in zip(grid, assets, strict=True):
            _one_asset(axes, str(asset), names, answers, thresholds)
        grid[0].legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, ncols=3, frameon=False)
        with atomic_path(out) as temporary:
            canvas.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _one_asset(
    axes: Axes, asset: str, names: Sequence[str], answers: tuple[PartScores, PartScores], thresholds: Sequence[float]
) -> None:
    own = answers[0].asset == asset
    time = answers[0].time[own].astype("datetime64[us]")
    flagged = [a.outcome[own] == ANOMALOUS for a in answers]
    silent = [a.outcome[own] == UNSCORABLE for a in answers]
    for name, a, threshold, colour in zip(names, answers, thresholds, (BLUE, ORANGE), strict=True):
        at, highest = _highest(a.score[own] / (threshold or 1.0))
        axes.plot(time[at], highest, color=colour, lw=0.8, label=name)
    axes.axhline(1, color=GREY, lw=0.7, ls="--")
    one_silent = silent[0] != silent[1]
    marks = (flagged[0] & ~flagged[1], BLUE, -0.15), (flagged[1] & ~flagged[0], ORANGE, -0.3), (one_silent, GREY, -0.45)
    for flags, colour, level in marks:
        axes.plot(time[flags], np.full(int(flags.sum()), level), "|", color=colour, ms=6)
    events = answers[0].kind[own] == EVENT
    axes.plot(time[events], np.full(int(events.sum()), -0.6), "|", color="black", ms=6, label="event")
    axes.set_title(f"{asset} (ticks: only one model flags, or could score)", loc="left", fontsize=9)
    axes.set_ylabel("score / threshold")
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _highest(values: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """Row and value of the highest of each bin of rows; NaN where a bin has none."""
    edges = np.linspace(0, len(values), min(_POINTS, len(values)) + 1).astype(int)[:-1]
    filled = np.where(np.isfinite(values), values, -np.inf)
    top = np.maximum.reduceat(filled, edges)
    return edges.astype(np.int64), np.where(np.isfinite(top), top, np.nan)

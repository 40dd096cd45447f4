"""A picture of drawn windows, a small panel each, so that a person can label them at a glance (METHODS S20)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from anomaly.data.store import WindowStore
from anomaly.model import AnomalyModel
from pipelines.report_pictures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from pipelines.terminal import moment, span

if TYPE_CHECKING:
    from pipelines.sample import SampledWindow

#: Panels of a sheet at most, and in a row of it.
MOST, ACROSS = 60, 5
_TAGS = 3
_PANEL = (2.9, 1.95)  # inches
_HEAD, _DPI = 0.4, 110
_LINES, _MODES = (BLUE, ORANGE, GREEN), (RED, PURPLE, SKY, GREY, BLUE, GREEN, ORANGE)
#: Lines are cut off this many normal ranges beyond the normal range: one broken sensor would flatten the rest.
_BEYOND = 1.5
_LONGEST_NAME = 18


@dataclass(frozen=True)
class Panel:
    """One window: its title, its mode, and its most unusual tags with ``lines (T, n)``, 0 and 1 the ends of each normal range."""

    title: str
    mode: int
    names: tuple[str, ...]
    lines: NDArray[np.float64]
    length_us: int


def shown_windows(found: Sequence[SampledWindow], most: int = MOST) -> list[SampledWindow]:
    """At most ``most`` windows, those that each mode gave first, grouped by mode."""
    first = sorted(found, key=lambda w: (w.draw_order, w.mode))[:most]
    return sorted(first, key=lambda w: (w.mode, w.draw_order))


def panels(store: WindowStore, model: AnomalyModel, found: Sequence[SampledWindow]) -> list[Panel]:
    """The panels of ``found``: tags by their mean deviation from normal, in units of each tag's normal range."""
    low, high = model.normal_ranges()
    center, scale = model.preparer.center_, model.preparer.scale_
    known = np.isfinite(low) & np.isfinite(high) & (high > low)
    low, width = np.where(known, low, center - 2 * scale), np.where(known, high - low, 4 * scale)
    made = []
    for window in shown_windows(found):
        rows = store.rows(window.asset, window.start_row, window.start_row + store.lookback)
        unusual = np.abs(model.preparer.transform(rows.values)).mean(axis=0)
        tags = np.argsort(-unusual, kind="stable")[:_TAGS]
        title = f"{_short(window.asset)}  {moment(window.start_us)}\nmode {window.mode}, novelty {window.novelty:.2f}"
        names = tuple(_short(model.contract.tags[c]) for c in tags)
        lines = (rows.values[:, tags].astype(np.float64) - low[tags]) / width[tags]
        made.append(Panel(title, window.mode, names, lines, window.end_us - window.start_us))
    return made


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def write_sheet(made: Sequence[Panel], path: Path) -> None:
    """Draw ``made`` as one PNG at ``path``; the same panels give the same bytes."""
    across = min(ACROSS, max(len(made), 1))
    down = max(-(-len(made) // across), 1)
    # Text from logs is never read as a formula.
    with mpl.rc_context({"text.parse_math": False, "font.size": 7.0, "axes.titlelocation": "left"}):
        wide, high = _PANEL[0] * across, _PANEL[1] * down + _HEAD
        canvas = Canvas(figsize=(wide, high), dpi=_DPI)
        FigureCanvasAgg(canvas)
        # Margins in inches: a layout engine takes seconds for as many panels.
        edges = {"left": 0.4 / wide, "right": 1 - 0.15 / wide, "bottom": 0.25 / high, "top": 1 - (_HEAD + 0.3) / high}
        canvas.subplots_adjust(**edges, wspace=0.2, hspace=0.5)
        said = "Grey: normal range of each tag (98 of 100 rows).\nColour of the frame: mode."
        canvas.text(0.1 / wide, 1 - 0.1 / high, said, fontsize=8, va="top")
        modes = sorted({panel.mode for panel in made})
        for number, panel in enumerate(made):
            colour = _MODES[modes.index(panel.mode) % len(_MODES)]
            _draw(canvas.add_subplot(down, across, number + 1), panel, colour)
        canvas.savefig(path, format="png", metadata={"Software": None})


def _draw(ax: Axes, panel: Panel, colour: str) -> None:
    ax.axhspan(0, 1, color="#dddddd", zorder=0)
    x = np.arange(len(panel.lines))
    for line, name, own in zip(panel.lines.T, panel.names, _LINES, strict=False):
        ax.plot(x, np.clip(line, -_BEYOND, 1 + _BEYOND), color=own, lw=1.2, label=name)
    ax.set_title(panel.title, fontsize=7)
    ax.set_ylim(-_BEYOND - 0.2, 3 + _BEYOND)  # room for the names
    ax.set_yticks([0, 1], ["low", "high"])
    ax.set_xticks([0, max(len(x) - 1, 1)], ["0", span(panel.length_us)])
    ax.legend(fontsize=6, loc="upper left", frameon=False, ncols=1, handlelength=1, labelspacing=0.15)
    for spine in ax.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(1.4)

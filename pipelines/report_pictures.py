"""The report's pictures: plain arrays in, one self-contained SVG (or PNG, if that is smaller) as a data URL out.

Figures are drawn without pyplot and without global state, in colours that colour-blind readers can tell apart (Okabe and
Ito). Nothing to draw gives a sentence instead of a picture.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from anomaly.intervals import Intervals
from anomaly.metrics import Confusion, Figure, pr_curve, ranking_problem, roc_curve

BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#767676",
)  # fmt: skip

#: Largest picture before it is drawn as pixels instead of lines.
LARGEST = 150_000
_POINTS = 700
_NAMED_TAGS = 7
_WIDE, _SQUARE = (9.0, 2.9), (4.9, 4.0)

#: Text from logs is never read as a formula, and the same data give the same bytes.
_STYLE = {
    "text.parse_math": False,
    "svg.hashsalt": "report",
    "svg.fonttype": "path",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8.0,
}


@dataclass(frozen=True)
class Picture:
    """A titled picture as a data URL, or, where ``url`` is empty, the sentence ``text`` in its place."""

    title: str
    text: str
    url: str = ""


@dataclass(frozen=True)
class AssetSeries:
    """Scores of one asset: ``time (n,)`` UTC microseconds, ``score (n,)``; ``events`` and ``alerts`` ``(k, 2)`` intervals."""

    asset: str
    time: NDArray[np.int64]
    score: NDArray[np.floating]
    events: Intervals
    alerts: Intervals


def precision_recall(score: NDArray[np.floating], positive: NDArray[np.bool_], threshold: float, part: str) -> Picture:
    """Precision over recall on the part that the threshold was picked on, with the chosen point."""
    title = f"Precision and recall, {part} part"
    if problem := ranking_problem(score, positive):
        return Picture(title, f"No curve for the {part} part: {problem}.")
    precision, recall, values = pr_curve(score, positive)
    at = int(np.searchsorted(values, threshold))
    said = f"threshold {threshold:.2f}: above every score"
    if at < len(values):
        said = f"threshold {threshold:.2f}: precision {precision[at]:.2f}, recall {recall[at]:.2f}"
    share = float(np.mean(positive[np.isfinite(score)]))

    def draw(canvas: Canvas) -> None:
        ax = canvas.add_subplot()
        x, y = _thin(recall, precision)
        ax.step(x, y, where="post", color=BLUE, label="model")
        ax.axhline(share, color=GREY, ls="--", lw=1, label=f"random ({share:.2g})")
        ax.plot(recall[at : at + 1], precision[at : at + 1], "o", color=RED, ms=8, label=said, zorder=5, clip_on=False)
        _unit_axes(ax, "recall (share of positive rows flagged)", "precision (share of flags right)")
        _legend_below(ax)

    text = f"Precision against recall; {said}; random {share:.2g}."
    return _picture(title, text, draw, _SQUARE)


def receiver_operating(
    score: NDArray[np.floating], positive: NDArray[np.bool_], matrix: Confusion, area: float, part: str
) -> Picture:
    """ROC on the judged part with the random diagonal and the point of the threshold."""
    title = f"ROC, {part} part"
    if problem := ranking_problem(score, positive):
        return Picture(title, f"No curve for the {part} part: {problem}.")
    rates, recalls = roc_curve(score, positive)

    def draw(canvas: Canvas) -> None:
        ax = canvas.add_subplot()
        ax.plot(*_thin(rates, recalls), color=BLUE, label=f"model, area {area:.3f}")
        ax.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1, label="random, area 0.5")
        point = matrix.tp / max(matrix.tp + matrix.fn, 1)
        ax.plot(matrix.false_positive_rate, point, "o", color=RED, ms=8, label="threshold", zorder=5, clip_on=False)
        _unit_axes(ax, "false positive rate (share of normal rows flagged)", "recall (share of positive rows flagged)")
        _legend_below(ax)

    return _picture(
        title, f"Recall against false positive rate; area under the curve {area:.3f}, random 0.5.", draw, _SQUARE
    )


def score_over_time(series: AssetSeries, threshold: float, part: str) -> Picture:
    """The score with the threshold, events shaded and alerts marked; peaks survive the thinning."""
    title = f"{_short(series.asset, 40)}: score over time, {part} part"
    scored = np.isfinite(series.score)
    if not scored.any():
        return Picture(title, f"No row of {series.asset} could be scored in the {part} part.")
    time, score = decimate(series.time, np.where(scored, series.score, np.nan))
    top = float(np.nanmax(series.score[scored]))

    def draw(canvas: Canvas) -> None:
        ax = canvas.add_subplot()
        ax.plot(_dates(time), score, color=BLUE, lw=0.8, label="anomaly score")
        ax.axhline(threshold, color=RED, ls="--", lw=1, label=f"threshold {threshold:.2f}")
        _spans(ax, series)
        if top > 10 * max(threshold, 1):
            ax.set_yscale("symlog", linthresh=max(threshold, 1))
            _plain_ticks(ax)
        ax.set_ylim(bottom=min(0.0, float(np.nanmin(score))), top=max(top, threshold) * 1.08)
        ax.set_ylabel("score (−log10 of\ntail probability)")
        ax.set_xlabel("time (UTC)")
        _date_axis(ax, series.time)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=4)

    text = f"Score of {series.asset}, highest {top:.2f}, {len(series.events)} events, {len(series.alerts)} alerts."
    return _picture(title, text, draw, _WIDE)


def lead_times(lead_s: Sequence[float], missed: int, part: str) -> Picture:
    """How long before each found event the first alert came; late ones apart."""
    title = f"Lead time, {part} part"
    if not lead_s:
        why = f"none of {missed} events was found" if missed else f"no event in the {part} part"
        return Picture(title, f"No lead times to show: {why}.")
    scale, unit = duration_unit(max(abs(v) for v in lead_s))
    values = np.sort(np.asarray(lead_s, dtype=np.float64)) / scale
    early = int((values > 0).sum())

    def draw(canvas: Canvas) -> None:
        ax = canvas.add_subplot()
        edges = np.histogram_bin_edges(values, bins=min(20, max(5, len(values) // 2)))
        groups = [values[values > 0], values[values <= 0]]
        labels = [f"before the event ({early})", f"at its start or later ({len(values) - early})"]
        ax.hist(groups, bins=edges.tolist(), stacked=True, color=[GREEN, ORANGE], label=labels, edgecolor="white")
        ax.axvline(float(np.median(values)), color=RED, lw=1.5, label=f"median {np.median(values):.3g} {unit}")
        ax.set_xlabel(f"first alert before event start ({unit}; negative is late)")
        ax.set_ylabel("events")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        _legend_below(ax)

    text = f"{early} of {len(values)} found events were announced before they began; {missed} were not found."
    return _picture(title, text, draw, _SQUARE)


def tag_shares(alerts: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Picture:
    """Which sensors the scores of the highest alerts came from, as stacked bars that add up to one."""
    title = "Sensors behind the highest alerts"
    if not alerts:
        return Picture(title, "No alert in this part, so no sensor to name.")
    names, table = _share_table(alerts)

    def draw(canvas: Canvas) -> None:
        ax = canvas.add_subplot()
        left = np.zeros(len(alerts))
        colours = [BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW, GREY]
        for column, name in enumerate(names):
            colour = GREY if name == "other" else colours[column]
            ax.barh(
                range(len(alerts)), table[:, column], left=left, color=colour, edgecolor="white", label=_short(name)
            )
            left += table[:, column]
        ax.set_yticks(range(len(alerts)), [_short(label, 34) for label, _ in alerts])
        ax.invert_yaxis()
        ax.set_xlim(0, 1)
        ax.set_xlabel("share of the score")
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))

    said = "; ".join(f"{label}: {max(shares, key=lambda s: s[1])[0]}" for label, shares in alerts if shares)
    return _picture(title, f"Largest share in each alert: {said}.", draw, (9.0, 1.2 + 0.32 * max(len(alerts), 4)))


def training_curves(loss: Sequence[float], val_loss: Sequence[float], best_epoch: int | None) -> Picture:
    """Loss per epoch, with the epoch whose weights were kept. Epochs count from 1."""
    title = "Training"
    if not len(loss):
        return Picture(title, "No training history: nothing was trained by epochs.")

    def draw(canvas: Canvas) -> None:
        ax = canvas.add_subplot()
        ax.plot(
            np.arange(1, len(loss) + 1), loss, color=BLUE, marker="." if len(loss) < 3 else "", label="training rows"
        )
        if len(val_loss):
            epochs = np.arange(1, len(val_loss) + 1)
            ax.plot(
                epochs, val_loss, color=ORANGE, ls="-.", marker="." if len(loss) < 3 else "", label="validation rows"
            )
        if best_epoch is not None:
            ax.axvline(best_epoch, color=RED, lw=1, ls=":", label=f"kept: epoch {best_epoch}")
        finite = [v for v in (*loss, *val_loss) if math.isfinite(v)]
        if finite and min(finite) > 0 and max(finite) > 10 * min(finite):
            ax.set_yscale("log")
            _plain_ticks(ax)
        ax.set_xlabel("epoch")
        ax.set_ylabel("loss")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend_below(ax)

    kept = "" if best_epoch is None else f"; the weights of epoch {best_epoch} were kept"
    return _picture(title, f"Loss over {len(loss)} epochs, last {loss[-1]:.3g}{kept}.", draw, _SQUARE)


def training_parts(parts: Mapping[str, Sequence[float]]) -> Picture:
    """What else was logged per epoch, each in its own axes: losses of a sum apart, rank and spread of embeddings."""
    title = "Embeddings and parts of the loss while training"
    shown = {name: values for name, values in parts.items() if len(values) and np.isfinite(values).all()}
    if not shown:
        return Picture(title, "Nothing but the loss was logged.")
    names = {"rank": "effective rank of embeddings", "spread": "spread of embeddings (0: all the same)"}
    rows = math.ceil(len(shown) / 2)

    def draw(canvas: Canvas) -> None:
        for number, (name, values) in enumerate(shown.items(), start=1):
            ax = canvas.add_subplot(rows, min(len(shown), 2), number)
            marker = "." if len(values) < 3 else ""
            ax.plot(np.arange(1, len(values) + 1), values, color=BLUE, marker=marker)
            ax.set_ylim(bottom=min(0.0, float(np.min(values))))
            ax.set_title(names.get(name, name.replace("_", " ")), fontsize="medium")
            ax.set_xlabel("epoch")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))

    last = "; ".join(f"{names.get(name, name)} {values[-1]:.3g}" for name, values in shown.items())
    return _picture(title, f"After {len(next(iter(shown.values())))} epochs: {last}.", draw, (9.0, 2.6 * rows))


def learning_curve(points: Sequence[tuple[int, Figure]], prevalence: float) -> Picture:
    """Average precision with its interval by how many rows were learned from (METHODS S35, S45)."""
    title = "How good the model is by how much it learned from"
    drawn = [(rows, figure) for rows, figure in points if math.isfinite(figure.value)]
    if len(drawn) < 2:
        return Picture(title, "No curve: fewer than two fits could be judged.")
    rows = np.array([n for n, _ in drawn])
    value = np.array([figure.value for _, figure in drawn])
    ends = [(f.value if f.low is None else f.low, f.value if f.high is None else f.high) for _, f in drawn]

    def draw(canvas: Canvas) -> None:
        ax = canvas.add_subplot()
        low, high = np.array(ends).T
        reach = np.maximum([value - low, high - value], 0)
        ax.errorbar(rows, value, reach, color=BLUE, marker="o", capsize=4, label="95 % interval")
        ax.axhline(prevalence, color=RED, lw=1, ls=":", label="an alarm without skill")
        ax.set_xscale("log", base=2)
        ax.set_xticks(rows, [str(n) for n in rows])
        ax.set(ylim=(0, 1.03), xlabel="training rows", ylabel="average precision")
        _legend_below(ax)

    last, before = value[-1], value[-2]
    said = "more rows may still help" if last > ends[-2][1] else "the gain lies inside the interval"
    said = "there are too few events to judge the gain" if drawn[-2][1].high is None else said
    text = (
        f"From {rows[-2]} to {rows[-1]} training rows, average precision went from {before:.3g} to {last:.3g}: {said}."
    )
    return _picture(title, text, draw, _SQUARE)


def decimate(
    time: NDArray[np.int64], score: NDArray[np.floating], bins: int = _POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most about ``3 * bins`` points of a series: lowest and highest of each stretch of rows, so no peak is lost.

    Times come back as float microseconds. A stretch without any score, an unscored row among few rows, and a step in time
    of more than 5 usual steps break the line with a NaN: nothing is drawn where there was no data.
    """
    n = len(time)
    if n > 2 * bins:
        edges = np.linspace(0, n, bins + 1).astype(int)
        kept = np.concatenate([_extremes(score, a, b) for a, b in itertools.pairwise(edges)])
    else:
        kept = np.arange(n)
    x, y = time[kept].astype(np.float64), score[kept].astype(np.float64)
    steps = np.diff(time)
    resumed = time[1:][steps > 5 * np.median(steps)] if n > 1 else time[:0]
    gaps = np.unique(np.searchsorted(x, resumed))
    gaps = gaps[(gaps > 0) & (gaps < len(x))]
    return np.insert(x, gaps, x[gaps] - 1), np.insert(y, gaps, np.nan)


def _extremes(score: NDArray[np.floating], start: int, end: int) -> NDArray[np.int64]:
    """Rows of the lowest and the highest score in ``[start, end)``, in order; the first row where none is scored."""
    part = score[start:end]
    if not np.isfinite(part).any():
        return np.array([start])
    return start + np.unique([np.nanargmin(part), np.nanargmax(part)])


def _share_table(alerts: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> tuple[list[str], NDArray[np.float64]]:
    """Tag names, largest first with the rest as "other", and shares ``(alerts, names)`` adding up to one."""
    totals: dict[str, float] = {}
    for _, shares in alerts:
        for tag, share in shares:
            totals[tag] = totals.get(tag, 0.0) + share
    names = sorted(totals, key=lambda tag: -totals[tag])[:_NAMED_TAGS]
    table = np.array([[sum(s for t, s in shares if t == tag) for tag in names] for _, shares in alerts])
    table = table.reshape(len(alerts), len(names))
    rest = np.clip(1 - table.sum(axis=1), 0, None)
    if rest.max() > 1e-3:
        names, table = [*names, "other"], np.column_stack((table, rest))
    return names, table


def _spans(ax: Axes, series: AssetSeries) -> None:
    """Events as shaded stretches over the full height, alerts as a band along the top edge."""
    for name, intervals, colour, low, high in (
        ("event", series.events, ORANGE, 0.0, 1.0),
        ("alert", series.alerts, RED, 0.95, 1.0),
    ):
        for i, (start, end) in enumerate(_dates(intervals.astype(np.float64)).reshape(-1, 2)):
            label = {"label": name} if i == 0 else {}
            alpha = 0.5 if name == "event" else 1.0
            ax.axvspan(start, end, low, high, color=colour, alpha=alpha, lw=0.8, **label)


def _dates(time_us: NDArray[np.float64]) -> NDArray[np.datetime64]:
    return np.asarray(time_us).astype(np.int64).astype("datetime64[us]")


def _date_axis(ax: Axes, time: NDArray[np.int64]) -> None:
    locator = AutoDateLocator(minticks=3, maxticks=11)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    first, last = _dates(time[[0, -1]].astype(np.float64))
    pad = np.timedelta64(0 if last > first else 30, "s")
    ax.set_xlim(first - pad, last + pad)


def _plain_ticks(ax: Axes) -> None:
    """Numbers written out on a logarithmic axis: its own labels are formulas, which are switched off."""
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _unit_axes(ax: Axes, x: str, y: str) -> None:
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.03), xlabel=x, ylabel=y)


def _legend_below(ax: Axes) -> None:
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=1)


def _thin(x: NDArray[np.float64], y: NDArray[np.float64], most: int = 1000) -> tuple[NDArray[np.float64], ...]:
    """At most ``most`` points of a curve, its ends kept."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), most)).astype(int))
    return x[kept], y[kept]


def duration_unit(seconds: float) -> tuple[float, str]:
    """The unit in which a duration reads well.

    >>> duration_unit(7200)
    (3600.0, 'h')
    """
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return size, unit
    return 1.0, "s"


def _short(text: str, width: int = 24) -> str:
    """``text`` on one line, cut to ``width`` with a mark."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _picture(title: str, text: str, draw: Callable[[Canvas], None], size: tuple[float, float]) -> Picture:
    image = rendered(draw, size, "svg")
    kind = "svg+xml"
    if len(image) > LARGEST:
        image, kind = rendered(draw, size, "png"), "png"
    return Picture(title, text, f"data:image/{kind};base64,{base64.b64encode(image).decode()}")


def rendered(draw: Callable[[Canvas], None], size: tuple[float, float], form: str) -> bytes:
    """The picture as the bytes of an "svg" or "png" file."""
    metadata: Mapping[str, None] = {"Date": None} if form == "svg" else {"Software": None}
    out = io.BytesIO()
    with mpl.rc_context(_STYLE):
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas)
        canvas.savefig(out, format=form, dpi=110, metadata=metadata)
    return out.getvalue()

"""The evaluation report: one HTML file without scripts or outside resources, that answers in words first.

``Report`` holds plain data only; ``write_report`` turns it into a page that prints and that follows a dark screen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from anomaly.errors import shown
from anomaly.files import atomic_path
from anomaly.metrics import Evaluation, Figure
from anomaly.scores.calibration_check import CalibrationRow
from anomaly.scores.what_if import WhatIfRow
from pipelines import report_pictures as pictures
from pipelines.recipe_choices import Choice
from pipelines.report_pictures import AssetSeries, Picture
from pipelines.report_thresholds import calibration_plot, what_if_plot

__all__ = ["AssetSeries", "LearningPoint", "PartRow", "RankedRows", "Report", "summary", "write_report"]

#: Assets whose scores are drawn; the others are named.
_DRAWN_ASSETS = 6
_NO_SKILL = ("always", "never", "random")

#: What each figure is called in the tables; ``median_lead_s`` is shown as a duration.
NAMES = {
    "average_precision": "average precision",
    "roc_auc": "area under ROC",
    "recall_at_fpr": "recall at 6.3 % false positive rate",
    "precision": "precision at the threshold",
    "recall": "row recall at the threshold",
    "false_positive_rate": "false positive rate at the threshold",
    "event_recall": "events found",
    "early_recall": "events announced before they began",
    "median_lead_s": "median lead time",
    "false_episodes_per_day": "false episodes per day",
}


@dataclass(frozen=True)
class PartRow:
    """One part of the split: rows and events in it, its first and last time (UTC microseconds), rows purged before it."""

    part: str
    rows: int
    events: int
    start_us: int | None = None
    end_us: int | None = None
    purged: int = 0


@dataclass(frozen=True)
class RankedRows:
    """Scores ``(n,)`` (NaN where unscorable) and whether each row counts as positive ``(n,)``, of a named part."""

    part: str
    score: NDArray[np.floating]
    positive: NDArray[np.bool_]


@dataclass(frozen=True)
class LearningPoint:
    """One point of the learning curve: rows learned from, seconds of the fit, and what the model ranks on the judged
    part, or why there is none."""

    rows: int
    seconds: float
    figure: Figure | None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Everything a report shows.

    ``settings``, ``contract``, ``threshold`` and ``audit`` are plain (nested) values; ``grades`` and ``findings`` are
    table rows, each a mapping from column to value; ``facts`` describe the encoder; ``history`` holds ``loss`` and
    ``val_loss`` per epoch, ``parts`` by name and ``best_epoch`` (from 1); ``threshold_rows`` are the rows that the
    threshold was picked on, ``test_rows`` the counted rows of the judged part; ``calibration`` what fresh normal rows of
    that part make of the score, ``what_if`` other thresholds on the rows of ``what_if_part``; ``top_alerts`` pairs a
    label with (tag, share) pairs; ``choices`` are what the recipe settled for the log, and why.
    """

    title: str
    evaluation: Evaluation
    model: str = ""
    fingerprint: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    contract: Mapping[str, Any] = field(default_factory=dict)
    notices: Sequence[str] = ()
    split: Sequence[PartRow] = ()
    grades: Sequence[Mapping[str, Any]] = ()
    findings: Sequence[Mapping[str, Any]] = ()
    audit: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)
    choices: Sequence[Choice] = ()
    learning: Sequence[LearningPoint] = ()
    threshold: Mapping[str, Any] = field(default_factory=dict)
    threshold_rows: RankedRows | None = None
    test_rows: RankedRows | None = None
    calibration: Sequence[CalibrationRow] = ()
    what_if: Sequence[WhatIfRow] = ()
    what_if_part: str = ""
    series: Sequence[AssetSeries] = ()
    top_alerts: Sequence[tuple[str, Sequence[tuple[str, float]]]] = ()
    created: datetime | None = None


def write_report(path: Path, report: Report) -> Path:
    """Write ``report`` to ``path``, whole or not at all. Raises Unavailable E5002 on a full or read-only disk."""
    page = render(report)
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def render(report: Report) -> str:
    """The page as text. Everything that came from a log is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    readers = (brief, figure_text, interval_text, when, cell, key_text, span_text)
    environment.filters |= {rule.__name__.removesuffix("_text"): rule for rule in readers}
    e = report.evaluation
    return environment.get_template("report.html.j2").render(
        r=report,
        e=e,
        summary=summary(report),
        pictures=all_pictures(report),
        table=[(name, NAMES.get(name, name), own) for name, own in e.figures.items()],
        settings=flat(report.settings),
        contract=flat(report.contract),
        threshold=flat(report.threshold),
        audit=flat(report.audit),
        facts=flat(report.facts),
        undrawn=[s.asset for s in report.series[_DRAWN_ASSETS:]],
        created=(report.created or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def all_pictures(report: Report) -> list[Picture]:
    """Every picture of the report, in reading order."""
    e, judged = report.evaluation, report.test_rows
    value = float(report.threshold.get("value", e.threshold))
    chosen = report.threshold_rows or judged
    made = [pictures.score_over_time(s, e.threshold, e.part) for s in report.series[:_DRAWN_ASSETS]]
    if chosen is not None:
        made.append(pictures.precision_recall(chosen.score, chosen.positive, value, chosen.part))
    if judged is not None:
        area = e.figures["roc_auc"].value
        made.append(pictures.receiver_operating(judged.score, judged.positive, e.confusion, area, judged.part))
    if report.calibration:
        made.append(calibration_plot(report.calibration))
    if report.what_if:
        made.append(what_if_plot(report.what_if))
    leads = [o.lead_s for o in e.outcomes if o.lead_s is not None]
    made.append(pictures.lead_times(leads, sum(not o.detected for o in e.outcomes), e.part))
    made.append(pictures.tag_shares(report.top_alerts))
    history = report.history
    made.append(
        pictures.training_curves(history.get("loss", ()), history.get("val_loss", ()), history.get("best_epoch"))
    )
    made.append(pictures.training_parts(history.get("parts", {})))
    if report.learning:
        drawn = [(p.rows, p.figure) for p in report.learning if p.figure is not None]
        made.append(pictures.learning_curve(drawn, e.prevalence))
    return made


def summary(report: Report) -> list[str]:
    """The answer in sentences: what was found, at what price, how sure, against what."""
    e = report.evaluation
    said = [_found(e), _price(e), _ranking(e), _against(e)]
    if e.random_split:
        said.insert(0, "This is a random split, made only to compare with published tables: the figures are inflated.")
    if e.unscorable:
        said.append(f"{e.unscorable} rows could not be scored: they are neither normal nor anomalous.")
    return [sentence for sentence in said if sentence]


def _found(e: Evaluation) -> str:
    recall, early, lead = (e.figures[k] for k in ("event_recall", "early_recall", "median_lead_s"))
    if not e.outcomes:
        return f"The {e.part} part holds no event, so nothing can be said about what the model would find."
    found, announced = sum(o.detected for o in e.outcomes), sum(o.early for o in e.outcomes)
    text = f"The model found {found} of {len(e.outcomes)} events in the {e.part} part{_range(recall)}"
    text += f" and announced {announced} of them before they began{_range(early)}"
    if math.isfinite(lead.value):
        late = "before" if lead.value >= 0 else "after"
        text += f"; the median first alert came {duration(abs(lead.value))} {late} the start of the event"
    return text + "."


def _price(e: Evaluation) -> str:
    rate = e.figures["false_episodes_per_day"]
    if not math.isfinite(rate.value):
        return "False episodes per day could not be counted: the part holds no normal operation."
    return (
        f"The price: {e.false_episodes} of its {e.episodes} episodes touched no event, {brief(rate.value)} per day of"
        f" normal operation{_range(rate)}, counted over {brief(e.days)} days."
    )


def _ranking(e: Evaluation) -> str:
    ap = e.figures["average_precision"]
    if not math.isfinite(ap.value):
        return f"How well the score ranks rows could not be judged: {ap.note}."
    return (
        f"Average precision is {brief(ap.value)}{_range(ap)}; {e.prevalence:.2%} of the {e.rows} counted rows are positive,"
        " and that is what an alarm without skill gets."
    )


def _against(e: Evaluation) -> str:
    """The strongest baseline by name, and what random alarms would have found."""
    ours = e.figures["average_precision"].value
    rivals = {n: f["average_precision"].value for n, f in e.baselines.items() if n not in _NO_SKILL}
    rivals = {n: v for n, v in rivals.items() if math.isfinite(v)}
    text = ""
    if rivals and math.isfinite(ours):
        best = max(rivals, key=lambda name: rivals[name])
        verdict = "which ranks rows better than the model" if rivals[best] > ours else "which the model beats"
        verdict = "which ranks rows just as well" if rivals[best] == ours else verdict
        text = f"The best baseline without a model is {best} with {brief(rivals[best])}, {verdict}. "
    lot = e.baselines.get("random", {}).get("event_recall")
    if lot is not None and math.isfinite(lot.value) and e.outcomes:
        text += f"Alarms by lot on as many rows would have found {brief(lot.value * len(e.outcomes))} of the events."
    return text.strip()


def _range(own: Figure) -> str:
    """The interval in brackets, or that there is none."""
    if own.low is None or own.high is None:
        return " (too little for an interval)"
    return f" (95 % interval {interval_text(own)})"


def brief(value: Any) -> str:
    """Three significant digits, "–" for what is not defined.

    >>> brief(0.123456), brief(float("nan")), brief(1234567.0)
    ('0.123', '–', '1.23e+06')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds in the unit that reads well.

    >>> duration(240.0), duration(-7200.0)
    ('4 min', '-2 h')
    """
    scale, unit = pictures.duration_unit(abs(seconds))
    return f"{seconds / scale:.3g} {unit}"


def figure_text(own: Figure | None) -> str:
    """The value of a figure, with its unit where it has one."""
    if own is None or not math.isfinite(own.value):
        return "–"
    return duration(own.value) if own.name == "median_lead_s" else brief(own.value)


def interval_text(own: Figure) -> str:
    """The interval of a figure, or "none"."""
    if own.low is None or own.high is None:
        return "none"
    as_text = duration if own.name == "median_lead_s" else brief
    return f"{as_text(own.low)} to {as_text(own.high)}"


def span_text(seconds: float | None) -> str:
    """A duration that may be missing."""
    return "–" if seconds is None else duration(seconds)


def when(time_us: int | None) -> str:
    """UTC microseconds to the minute.

    >>> when(0)
    '1970-01-01 00:00'
    """
    if time_us is None:
        return "–"
    return str(np.datetime64(int(time_us), "us").astype("datetime64[m]")).replace("T", " ")


def cell(value: Any) -> str:
    """One value in a table cell, short and printable."""
    if isinstance(value, list | tuple) and not isinstance(value, str):
        return ", ".join(cell(v) for v in value) or "–"
    return "–" if value is None or value == "" else shown(brief(value))


def key_text(name: str) -> str:
    """A key of a mapping as a person reads it."""
    return name.replace("_", " ")


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """A nested mapping as (dotted key, value) pairs.

    >>> flat({"a": {"b": 1}, "c": 2})
    [('a.b', 1), ('c', 2)]
    """
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs

"""The report: one self-contained page that answers in words, and pictures that lose no peak."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from anomaly.data.contract import EVENT, LEAD
from anomaly.errors import Unavailable
from anomaly.intervals import as_intervals
from anomaly.metrics import Confusion, Figure, ScoredPart, evaluate
from pipelines import report_pictures as pictures
from pipelines.report import (
    AssetSeries,
    LearningPoint,
    PartRow,
    RankedRows,
    Report,
    brief,
    render,
    summary,
    write_report,
)

MINUTE = 60_000_000
BEGIN = 1_700_000_000_000_000


def scored_part(events: int = 6, n: int = 3000, lead: int = 4, seed: int = 0) -> ScoredPart:
    """A row a minute; the score rises in the lead of each event."""
    rng = np.random.default_rng(seed)
    time = BEGIN + np.arange(n, dtype=np.int64) * MINUTE
    kind = np.zeros(n, np.int8)
    starts = [(i + 1) * (n // (events + 1)) for i in range(events)]
    for start in starts:
        kind[start - lead : start], kind[start : start + 3] = LEAD, EVENT
    score = rng.exponential(1 / np.log(10), n) + 2.0 * (kind > 0)
    outcome = np.where(score >= 2.5, "anomalous", "normal").astype(object)
    found = {"line 4": as_intervals([(time[s], time[s + 2] + 1) for s in starts])} if events else {}
    return ScoredPart(
        np.full(n, "line 4", object), time, score, outcome, kind, found, MINUTE, lead * MINUTE, 3 * MINUTE
    )


def sample(events: int = 6, **changes: object) -> Report:
    """A full report; ``changes`` replace fields of it."""
    return replace(_sample(events), **changes)  # type: ignore[arg-type]


@cache
def _page() -> str:
    return render(sample())


@cache
def _sample(events: int) -> Report:
    rows = scored_part(events)
    rng = np.random.default_rng(1)
    scores = {"row PCA": rows.score * 0.5 + rng.random(len(rows.score)), "5-NN": rng.random(len(rows.score))}
    evaluation = evaluate(rows, 2.5, baseline_scores=scores, merge_gap_us=10 * MINUTE)
    flagged = rows.time[rows.score >= 2.5]
    alerts = as_intervals(np.stack((flagged, flagged + 1), axis=1))
    counted = rows.kind != EVENT
    ranked = RankedRows("test", rows.score[counted], rows.kind[counted] == LEAD)
    return Report(
        title="Paper line 4",
        model="paper version 3",
        evaluation=evaluation,
        fingerprint="ab12cd34",
        settings={"window": {"lookback": 16}, "name": "paper"},
        contract={"tags": ("Pressure", "Flow")},
        notices=("period inferred: 60 s",),
        split=(PartRow("train", 9000, 12, BEGIN - 10**10, BEGIN, 0), PartRow("test", 3000, events, BEGIN, None, 20)),
        grades=({"tag": "Pressure", "grade": "good", "missing": 0.001},),
        findings=({"kind": "flat", "tag": "Flow", "rows": 200},),
        audit={"scaler": {"rows": 8800, "events": 0}},
        history={"loss": [1.0, 0.5, 0.3, 0.25], "val_loss": [1.1, 0.6, 0.42, 0.45], "best_epoch": 3},
        threshold={"value": 2.5, "rule": "pr_curve", "part": "validation", "rows": 3000},
        threshold_rows=replace(ranked, part="validation"),
        test_rows=ranked,
        series=(AssetSeries("line 4", rows.time, rows.score, rows.events.get("line 4", as_intervals([])), alerts),),
        top_alerts=tuple((f"line 4, 2023-11-1{i}", (("Pressure", 0.6), ("Flow", 0.25))) for i in range(4)),
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )


class _Page(HTMLParser):
    """Open tags, link targets and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.alts: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset"):
                self.links.append(value or "")
            if tag == "img" and name == "alt":
                self.alts.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """The words on the page, spaces joined."""
        return " ".join(" ".join(self.words).split())


def test_the_report_is_one_file_without_scripts_or_outside_resources(tmp_path: Path) -> None:
    path = write_report(tmp_path / "deep" / "report.html", sample())
    page = path.read_text(encoding="utf-8")
    seen = _Page(page)
    assert not seen.open, "every tag is closed"
    assert not {"script", "link", "iframe", "object", "form"} & set(seen.tags)
    assert all(link.startswith("data:image/") for link in seen.links)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_every_picture_is_small_and_has_a_text_for_those_who_cannot_see_it() -> None:
    seen = _Page(_page())
    assert len(seen.links) == 6
    assert len(seen.alts) == 6
    assert all(len(alt) > 30 for alt in seen.alts)
    for link in seen.links:
        image = base64.b64decode(link.partition(",")[2])
        assert 1000 < len(image) <= pictures.LARGEST
        assert b"<svg" in image[:1000]


def test_the_answer_comes_first_in_words() -> None:
    report = sample()
    said = " ".join(summary(report))
    e = report.evaluation
    found = sum(o.detected for o in e.outcomes)
    assert f"found {found} of 6 events in the test part (95 % interval" in said
    assert "per day of normal operation" in said
    assert "The best baseline without a model is row PCA" in said
    assert "by lot" in said
    page = _Page(_page()).text
    assert page.index("The model found") < page.index("Figures, test part")


def test_every_figure_is_printed_with_count_and_interval_beside_the_baselines() -> None:
    report = sample()
    text = _Page(_page()).text
    for figure in report.evaluation.figures.values():
        assert figure.count in text
        assert brief(figure.low) in text or figure.note in text
    for name in report.evaluation.baselines:
        assert name in text
    assert f"{report.evaluation.rows_id}" in text


def test_a_random_split_is_called_a_random_split_first_of_all() -> None:
    report = sample()
    report = replace(report, evaluation=replace(report.evaluation, random_split=True))
    assert summary(report)[0].startswith("This is a random split")
    assert "rows were drawn by lot" in _Page(render(report)).text


def test_a_baseline_that_wins_is_named_as_the_winner() -> None:
    rows = scored_part()
    perfect = (rows.kind == LEAD).astype(float)
    e = evaluate(rows, 2.5, baseline_scores={"energy": perfect})
    assert any("energy with 1, which ranks rows better than the model" in line for line in summary(Report("t", e)))


def test_a_part_without_events_is_said_in_sentences_instead_of_pictures() -> None:
    report = sample(events=0, top_alerts=(), history={})
    text = _Page(render(report)).text
    assert "The test part holds no event" in text
    assert "No curve for the test part: no positive row" in text
    assert "No lead times to show: no event in the test part." in text
    assert "No alert in this part, so no sensor to name." in text
    assert "No training history" in text
    assert not re.search(r"\bnan\b|\bNone\b", text)


def test_the_smallest_report_needs_only_a_title_and_an_evaluation() -> None:
    assert "Paper" in render(Report("Paper", evaluate(scored_part(), 2.5)))


def test_names_from_a_log_are_escaped_and_never_read_as_formulas() -> None:
    nasty = '<img src=x onerror="alert(1)"> $\\frac{a$ & {{ 7*7 }}'
    report = sample(
        title=nasty,
        notices=(nasty,),
        grades=({nasty: nasty},),
        top_alerts=((nasty, ((nasty, 0.7), ("$x_{", 0.3))),),
    )
    report = replace(report, series=(replace(report.series[0], asset=nasty),))
    page = render(report)
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert "49" not in _Page(page).text.partition("Figures,")[0]


def test_unscorable_rows_are_named_in_the_answer() -> None:
    rows = scored_part()
    score, outcome = rows.score.copy(), rows.outcome.copy()
    score[:25], outcome[:25] = np.nan, "unscorable"
    e = evaluate(replace(rows, score=score, outcome=outcome), 2.5)
    assert "25 rows could not be scored: they are neither normal nor anomalous." in summary(Report("t", e))


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render(sample()) == _page()


def test_a_target_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((Unavailable, OSError)):
        write_report(tmp_path / "file" / "report.html", sample())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# ---- pictures


def test_thinning_a_long_series_keeps_its_peaks_in_order() -> None:
    n = 200_000
    time = np.arange(n, dtype=np.int64) * MINUTE
    score = np.random.default_rng(0).random(n)
    score[123_456], score[77] = 9.0, -4.0
    x, y = pictures.decimate(time, score)
    assert len(x) <= 2101
    assert (np.diff(x) > 0).all()
    assert x[np.nanargmax(y)] == 123_456 * MINUTE
    assert x[np.nanargmin(y)] == 77 * MINUTE


def test_a_gap_in_time_and_unscored_stretches_break_the_line() -> None:
    time = np.concatenate((np.arange(100), np.arange(5000, 5100))).astype(np.int64) * MINUTE
    _, y = pictures.decimate(time, np.ones(200))
    assert np.isnan(y).sum() == 1
    assert np.isnan(y[100])
    score = np.ones(100_000)
    score[40_000:60_000] = np.nan
    _, thinned = pictures.decimate(np.arange(100_000, dtype=np.int64) * MINUTE, score)
    assert np.isnan(thinned).any()


def test_a_long_noisy_series_still_fits_its_size() -> None:
    n = 300_000
    time = BEGIN + np.arange(n, dtype=np.int64) * MINUTE
    starts = time[:: n // 400]
    events = as_intervals(np.stack((starts, starts + 30 * MINUTE), axis=1))
    series = AssetSeries("a", time, np.random.default_rng(0).exponential(1, n), events, events)
    url = pictures.score_over_time(series, 3.0, "test").url
    assert len(base64.b64decode(url.partition(",")[2])) <= pictures.LARGEST


def test_shares_of_each_alert_add_up_to_one_with_the_rest_named_other() -> None:
    alerts = [(f"a{i}", [(f"tag{j}", 0.1) for j in range(9)]) for i in range(3)]
    names, table = pictures._share_table(alerts)
    assert names[-1] == "other"
    assert len(names) == 8
    np.testing.assert_allclose(table.sum(axis=1), 1)


@pytest.mark.parametrize(
    "picture",
    [
        lambda: pictures.precision_recall(np.ones(5), np.array([1, 0, 0, 0, 0], bool), 1.0, "test"),
        lambda: pictures.receiver_operating(np.arange(5.0), np.zeros(5, bool), Confusion(0, 0, 0, 5), 0.5, "test"),
        lambda: pictures.lead_times([], 3, "test"),
        lambda: pictures.tag_shares([]),
        lambda: pictures.training_curves([], [], None),
        lambda: pictures.training_parts({}),
        lambda: pictures.learning_curve([], 0.1),
        lambda: pictures.learning_curve([(100, Figure("average_precision", np.nan))] * 3, 0.1),
        lambda: pictures.training_parts({"rank": [np.nan]}),
        lambda: pictures.score_over_time(
            AssetSeries("a", np.arange(3), np.full(3, np.nan), as_intervals([]), as_intervals([])), 1.0, "test"
        ),
    ],
)
def test_nothing_to_draw_is_a_sentence(picture) -> None:  # type: ignore[no-untyped-def]
    made = picture()
    assert made.url == ""
    assert made.text.endswith(".")


@pytest.mark.parametrize(
    "picture",
    [
        lambda: pictures.lead_times([60.0], 0, "test"),
        lambda: pictures.lead_times([0.0, 0.0], 1, "test"),
        lambda: pictures.training_curves([0.5], [], None),
        lambda: pictures.training_parts({"rank": [3.0], "spread": [0.2], "masked_loss": [0.1]}),
        lambda: pictures.training_curves([np.nan, np.inf], [np.nan, 1.0], 1),
        lambda: pictures.tag_shares([("a", [])]),
        lambda: pictures.learning_curve([(n, Figure("average_precision", 0.5)) for n in (50, 100)], 0.0),
        lambda: pictures.score_over_time(
            AssetSeries("a", np.array([5]), np.array([300.0]), as_intervals([]), as_intervals([])), 1.0, "test"
        ),
        lambda: pictures.precision_recall(np.arange(4.0), np.array([0, 0, 1, 1], bool), 99.0, "test"),
    ],
)
def test_small_and_odd_data_are_drawn_without_a_crash(picture) -> None:  # type: ignore[no-untyped-def]
    assert picture().url.startswith("data:image/svg+xml;base64,")


def test_s45_the_learning_curve_says_whether_more_rows_may_still_help() -> None:
    short = Figure("average_precision", 0.4, 0.3, 0.5)
    assert (
        "more rows may still help" in pictures.learning_curve([(50, short), (100, replace(short, value=0.6))], 0.1).text
    )
    assert "inside the interval" in pictures.learning_curve([(50, short), (100, replace(short, value=0.45))], 0.1).text
    points = (LearningPoint(25, 0.5, None, "not enough for a fit"), LearningPoint(50, 1.0, short))
    text = _Page(render(sample(learning=points, facts={"encoder": "tscc", "receptive field, rows": 31}))).text
    for said in ("not enough for a fit", "0.3 to 0.5", "receptive field, rows", "31"):
        assert said in text


def test_no_line_is_drawn_over_a_gap_that_is_shorter_than_a_thinned_stretch() -> None:
    logged = np.concatenate((np.arange(0, 5000), np.arange(5010, 9000))).astype(np.int64)
    time, score = pictures.decimate(logged, np.sin(np.arange(len(logged))))
    assert len(time) < len(logged)
    assert (np.diff(time) >= 0).all()
    broken = np.flatnonzero(np.isnan(score))
    assert len(broken) == 1
    assert time[broken[0] - 1] < 5000 <= time[broken[0] + 1]

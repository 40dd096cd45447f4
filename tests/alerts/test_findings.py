"""Findings on the data, floods under one parent, planned work, and verdicts as labels."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from alert_rows import DAY, HOUR, T0, Clock, all_rows, put, row

from alerts import tables
from alerts.alert import Alert
from alerts.episodes import Episode
from alerts.feedback import LabelledInterval, as_csv, contradictions, labelled, read_labels
from alerts.figures import silent
from alerts.findings import Finding, group_floods, record_findings
from alerts.grouping import planned_work
from alerts.listing import Filters
from alerts.outbox import Sender
from alerts.planning import AssetSettings, Planning
from alerts.states import QUALITY_KINDS
from alerts.store import AlertStore, BatchRecord
from alerts.workflow import Workflow
from anomaly.errors import UsageError

MINUTE = 60_000_000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> AlertStore:
    return AlertStore(tmp_path / "alerts.db")


def messages(store: AlertStore) -> list[str]:
    return [m["kind"] for m in all_rows(store.database, tables.outbox)]


# -- findings on the data


def test_a_unit_change_for_a_day_is_one_alert_and_one_message(store: AlertStore, clock: Clock) -> None:
    """The scorer says so again every ten minutes for 24 hours."""
    sender, sent = Sender(store.database, "hook", clock), 0
    for k in range(144):
        clock.now = T0 + k * 10 * MINUTE
        (id,) = record_findings(
            store.database, [Finding("unit", "press", "Temp", clock.now, clock.now + MINUTE)], clock
        )
        sent += sender.run_once(lambda message: None).sent
        assert id == 1
    (alert,) = store.alerts()
    assert (alert.kind, alert.cause, alert.start_us, alert.end_us) == (
        "unit",
        "Temp",
        T0,
        T0 + 143 * 10 * MINUTE + MINUTE,
    )
    assert (alert.first_batch, alert.top_tags, sent) == (None, (("Temp", 1.0),), 1)


def test_findings_are_one_alert_per_cause(store: AlertStore, clock: Clock) -> None:
    causes = [
        ("gap", "press", "T"),
        ("gap", "press", "P"),
        ("gap", "pump", "T"),
        ("flat_line", "press", "T"),
        ("gap", "press", "T"),
    ]
    assert record_findings(store.database, [Finding(*c, T0, T0) for c in causes], clock) == [1, 2, 3, 4, 1]
    for kind in QUALITY_KINDS:
        assert record_findings(store.database, [Finding(kind, "", "all", T0, T0)], clock)
    with pytest.raises(UsageError, match="flat_line, gap"):
        Finding("boring", "press", "T", T0, T0)
    with pytest.raises(ValueError, match="start <= end"):
        Finding("gap", "press", "T", T0, T0 - 1)


def test_a_finding_after_the_last_one_was_closed_is_a_new_alert(store: AlertStore, clock: Clock) -> None:
    finding = Finding("no_data", "press", "", T0, T0 + HOUR)
    record_findings(store.database, [finding], clock)
    Workflow(store.database, clock).verdict(1, "ann", "sensor_fault")
    assert record_findings(store.database, [finding], clock) == [1], "the same again is not news"
    assert record_findings(store.database, [Finding("no_data", "press", "", T0 + DAY, T0 + DAY)], clock) == [2]
    assert record_findings(store.database, [Finding("no_data", "press", "", T0, T0 + 2 * DAY)], clock) == [2]
    assert [(a.start_us, a.end_us) for a in store.alerts()] == [(T0 + DAY, T0 + 2 * DAY), (T0, T0 + HOUR)]


def test_episodes_and_findings_of_one_time_do_not_meet(store: AlertStore, clock: Clock) -> None:
    record_findings(store.database, [Finding("unit", "press", "T", T0, T0 + DAY)], clock)
    found = Episode("press", T0, T0, T0 + HOUR, 5.0, 3.0, 2, (("T", 1.0),))
    store.record_batch(BatchRecord("a", "", "demo", "f", 1, {}, {"press": (T0, T0 + DAY)}), [found])
    assert sorted((a.kind, a.start_us) for a in store.alerts()) == [("anomaly", T0), ("unit", T0)]


# -- floods


def burst(store: AlertStore, n: int, start: int = T0, asset: str = "press", step: int = 30_000_000) -> None:
    put(store.database, [row(asset=asset, start_us=start + k * step, end_us=start + k * step + 1, priority=3 - k % 2,
                             peak_score=4.0 + k, top_tags=json.dumps([["Flow" if k % 3 else "Heat", 1.0]]))
                         for k in range(n)])  # fmt: skip


def test_a_flood_is_one_parent_with_counts_and_nothing_is_hidden(store: AlertStore, clock: Clock) -> None:
    burst(store, 15)
    burst(store, 10, asset="pump")
    (parent,) = group_floods(store.database, T0, clock=clock)
    flood = store.alert(parent)
    assert (flood.kind, flood.asset, flood.rows, flood.priority, flood.peak_score) == ("flood", "press", 15, 2, 18.0)
    assert (flood.start_us, flood.end_us) == (T0, T0 + 14 * 30_000_000 + 1)
    assert flood.top_tags == (("Flow", pytest.approx(2 / 3)), ("Heat", pytest.approx(1 / 3)))
    assert len(store.page(Filters(parent=parent)).alerts) == 15
    assert {a.asset for a in store.page(Filters(top=True)).alerts} == {"press", "pump"}
    assert len(store.page(Filters(top=True)).alerts) == 11
    assert len(store.page(size=100).alerts) == 26
    assert messages(store) == ["alert.flood"]


def test_a_flood_found_twice_is_the_same_and_grows(store: AlertStore, clock: Clock) -> None:
    burst(store, 12)
    (parent,) = group_floods(store.database, T0, clock=clock)
    assert group_floods(store.database, T0, clock=clock) == []
    burst(store, 6, start=T0 + 12 * 30_000_000)
    assert group_floods(store.database, T0, clock=clock) == [parent]
    assert store.alert(parent).rows == 18
    assert messages(store) == ["alert.flood"]
    assert group_floods(AlertStore(str(store.database.path) + "x").database, T0) == []


def test_two_floods_of_one_asset_have_two_parents(store: AlertStore, clock: Clock) -> None:
    burst(store, 11)
    burst(store, 11, start=T0 + DAY)
    assert len(group_floods(store.database, T0, clock=clock)) == 2


# -- what the plant says beforehand


def test_the_calendar_keeps_planned_work_until_it_is_taken_back(store: AlertStore, clock: Clock) -> None:
    planning = Planning(store.database, clock)
    assert (planning.calendar(0, T0), planning.assets(), planning.last_answered()) == ([], {}, {})
    one = planning.plan("press", T0, T0 + HOUR, "felt", "ann")
    other = planning.plan("", T0 + DAY, T0 + 2 * DAY, "stop", "bob")
    assert planning.calendar(T0 + HOUR - 1, T0 + HOUR) == [one]
    assert planning.calendar(T0 + HOUR, T0 + DAY) == []
    assert planning.calendar(0, T0 + 9 * DAY) == [one, other]
    put(store.database, [row(), row(start_us=T0 + 5 * HOUR, end_us=T0 + 6 * HOUR)])
    marked = planned_work(store.alerts(), planning.calendar(0, T0 + 9 * DAY))
    assert {k: e.reason for k, e in marked.items()} == {1: "felt"}
    planning.cancel(one.id)
    assert planning.calendar(0, T0 + 9 * DAY) == [other]
    for wrong in (
        lambda: planning.cancel(one.id),
        lambda: planning.plan("press", T0, T0, "felt", "ann"),
        lambda: planning.plan("press", T0, T0 + 367 * DAY, "felt", "ann"),
        lambda: planning.plan("press", T0, T0 + HOUR, " ", "ann"),
        lambda: planning.set_asset("press", weight=0),
        lambda: planning.set_asset("press", budget=float("nan")),
    ):
        with pytest.raises(UsageError):
            wrong()


def test_the_weight_of_an_asset_decides_the_priority_of_what_comes(store: AlertStore, clock: Clock) -> None:
    planning = Planning(store.database, clock)
    planning.set_asset("press", weight=9.0)
    planning.set_asset("press", weight=2.0, budget=3.0)
    assert planning.assets() == {"press": AssetSettings(2.0, 3.0)}
    found = [Episode(a, T0, T0, T0 + 9, 3.1, 3.0, 2) for a in ("press", "pump")]
    store.record_batch(
        BatchRecord("a", "m", "demo", "f", 1, {}, dict.fromkeys(("press", "pump"), (T0, T0 + DAY))), found
    )
    assert {a.asset: a.priority for a in store.alerts()} == {"press": 1, "pump": 3}
    assert silent(planning.last_answered(), T0 + DAY + 2 * HOUR, HOUR) == ["press", "pump"]


# -- verdicts as labels


def judged(id: int, verdict: str | None, start: int = T0, asset: str = "press", **more: object) -> Alert:
    values = {"state": "closed" if verdict else "new", "first_batch": 1, "created_at": T0, "verdict": verdict} | more
    return Alert(id, asset, "m", "demo", start, start, start + HOUR, 5.0, 3.0, 1, None, (), **values)  # type: ignore[arg-type]


def test_verdicts_become_labels() -> None:
    verdicts = ["true_fault", "nuisance", "known_work", "sensor_fault", "unsure", None]
    rows = [judged(k, v, T0 - k) for k, v in enumerate(verdicts)]
    rows += [judged(9, "true_fault", kind="unit"), judged(10, "true_fault", state="new")]
    assert labelled(rows, {1: "ann"}) == [
        LabelledInterval("press", T0 - 2, T0 - 2 + HOUR + 1, 0, "known_work", "", 2),
        LabelledInterval("press", T0 - 1, T0 - 1 + HOUR + 1, 0, "nuisance", "ann", 1),
        LabelledInterval("press", T0, T0 + HOUR + 1, 1, "true_fault", "", 0),
    ]


def test_contradictions_are_named() -> None:
    rows = [judged(1, "true_fault"), judged(2, "nuisance", T0 + HOUR), judged(3, "nuisance", T0 + HOUR + 1),
            judged(4, "nuisance", asset="pump")]  # fmt: skip
    assert contradictions(labelled(rows)) == [(1, 2)]


def test_labels_of_a_database_name_who_judged_last_and_can_be_trained_on(store: AlertStore, clock: Clock) -> None:
    assert read_labels(store.database) == []
    put(store.database, [row(), row(asset="=cmd|' /C calc'!A0", start_us=T0 + DAY, end_us=T0 + DAY)])
    flow = Workflow(store.database, clock)
    flow.verdict(1, "ann", "nuisance")
    flow.verdict(1, "bob", "true_fault")
    flow.verdict(2, "cem", "known_work")
    labels = read_labels(store.database)
    assert [(i.label, i.who, i.alert) for i in labels] == [(0, "cem", 2), (1, "bob", 1)]
    assert [i.alert for i in read_labels(store.database, Filters(asset="press"))] == [1]
    text = as_csv(labels)
    assert "\n'=cmd" in text
    frame = pd.read_csv(io.StringIO(text))
    assert list(frame["verdict"]) == ["known work", "true fault"], "the words that training reads"
    assert pd.to_datetime(frame["end"], utc=True)[1].value == (T0 + HOUR + 1) * 1000

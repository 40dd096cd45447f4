"""What people do with alerts: states, versions, a past that stays, and the message written with each change."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alert_rows import DAY, HOUR, T0, Clock, all_rows, put, row, spaced

from alerts import tables
from alerts.episodes import Episode
from alerts.states import ACTIONS, KINDS, OPEN, STATES, VERDICTS, allowed, next_state
from alerts.store import GOES_ON_US, AlertStore, BatchRecord
from alerts.workflow import Conflict, Ticked, Workflow
from anomaly.errors import UsageError


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> AlertStore:
    return AlertStore(tmp_path / "alerts.db")


@pytest.fixture
def flow(store: AlertStore, clock: Clock) -> Workflow:
    put(store.database, [row()])
    return Workflow(store.database, clock)


# -- the machine itself


TABLE = {
    "acknowledge": {"new": "acknowledged"},
    "start": {"new": "in_work", "acknowledged": "in_work", "returned": "in_work"},
    "shelve": dict.fromkeys(("new", "acknowledged", "in_work", "returned"), "shelved"),
    "unshelve": {"shelved": "acknowledged"},
    "return": dict.fromkeys(("new", "acknowledged", "in_work"), "returned"),
    "verdict": dict.fromkeys(STATES, "closed"),
    "reopen": {"closed": "new", "returned": "new"},
    "assign": {state: state for state in OPEN},
    "note": {state: state for state in STATES},
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("state", STATES)
def test_the_whole_table_of_states_and_actions(state: str, action: str) -> None:
    if state in TABLE[action]:
        assert next_state(state, action) == TABLE[action][state]
        assert action in allowed(state)
        return
    with pytest.raises(UsageError) as refused:
        next_state(state, action)
    assert ", ".join(allowed(state)) in str(refused.value)


def test_words_are_as_long_as_their_columns() -> None:
    for words, column in ((STATES, "state"), (VERDICTS, "verdict"), (KINDS, "kind")):
        assert max(map(len, words)) <= tables.alerts.c[column].type.length


# -- changes of one alert


def test_a_morning_leaves_its_past_and_its_messages(flow: Workflow, store: AlertStore, clock: Clock) -> None:
    assert flow.acknowledge(1, "ann", version=1).acknowledged_at == T0
    clock.now += HOUR
    assert flow.start(1, "bob", version=2).assignee == "bob"
    flow.assign(1, "bob", "cem", version=3, comment="night shift")
    flow.note(1, "cem", "felt worn")
    closed = flow.verdict(1, "cem", "true_fault", comment="felt changed")
    assert (closed.state, closed.verdict, closed.version, closed.closed_at) == ("closed", "true_fault", 6, T0 + HOUR)
    assert closed.acknowledged_at == T0
    assert store.alert(1) == closed
    past = [(e.actor, e.action, e.from_state, e.to_state, e.comment, dict(e.detail)) for e in store.events(1)]
    assert past == [
        ("ann", "acknowledge", "new", "acknowledged", "", {}),
        ("bob", "start", "acknowledged", "in_work", "", {}),
        ("bob", "assign", "in_work", "in_work", "night shift", {"assignee": "cem"}),
        ("cem", "note", "in_work", "in_work", "felt worn", {}),
        ("cem", "verdict", "in_work", "closed", "felt changed", {"verdict": "true_fault"}),
    ]
    messages = all_rows(store.database, tables.outbox)
    assert [m["kind"] for m in messages] == [f"alert.{p[1]}" for p in past]
    assert json.loads(messages[-1]["payload"])["alert"]["verdict"] == "true_fault"
    assert (messages[-1]["asset"], messages[-1]["sensor"]) == ("press", "Flow")


def test_reopening_is_counted_and_forgets_the_verdict(flow: Workflow) -> None:
    flow.verdict(1, "ann", "nuisance")
    again = flow.reopen(1, "bob")
    assert (again.state, again.reopened, again.verdict, again.closed_at, again.acknowledged_at) == (
        "new",
        1,
        None,
        None,
        None,
    )
    flow.verdict(1, "ann", "unsure")
    assert flow.reopen(1, "bob").reopened == 2


def test_a_verdict_can_be_corrected_and_keeps_when_it_was_closed(flow: Workflow, clock: Clock) -> None:
    flow.verdict(1, "ann", "nuisance")
    clock.now += DAY
    later = flow.verdict(1, "bob", "true_fault")
    assert (later.verdict, later.closed_at) == ("true_fault", T0)


def test_the_second_of_two_writers_is_told(flow: Workflow, store: AlertStore) -> None:
    """RELIABILITY H8."""
    flow.acknowledge(1, "ann", version=1)
    with pytest.raises(Conflict) as conflict:
        flow.verdict(1, "bob", "nuisance", version=1)
    assert conflict.value.current == store.alert(1)
    assert conflict.value.current.state == "acknowledged"
    assert len(store.events(1)) == 1


def test_of_many_at_once_one_wins(flow: Workflow, store: AlertStore) -> None:
    def close(name: str) -> bool:
        try:
            Workflow(store.database).verdict(1, name, "nuisance", version=1)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(close, "abcdefgh")) == 1
    assert len(store.events(1)) == 1


def test_a_change_that_fails_leaves_nothing(flow: Workflow, store: AlertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no message")

    before = store.dump()
    monkeypatch.setattr("alerts.changes.enqueue", broken)
    with pytest.raises(RuntimeError, match="no message"):
        flow.acknowledge(1, "ann")
    assert store.dump() == before


def test_what_is_not_allowed_is_refused_with_what_is(flow: Workflow) -> None:
    flow.acknowledge(1, "ann")
    with pytest.raises(UsageError, match=r"start, shelve, return, verdict, assign, note.*acknowledge of an alert"):
        flow.acknowledge(1, "ann")
    for wrong in (
        lambda: flow.apply(1, "dance", "ann"),
        lambda: flow.verdict(1, "ann", "boring"),
        lambda: flow.note(1, "ann", "  "),
        lambda: flow.note(1, "ann", "x" * 4001),
        lambda: flow.note(1, "ann", "a\x00b"),
        lambda: flow.start(1, ""),
        lambda: flow.assign(1, "ann", "x" * 201),
        lambda: flow.note(99, "ann", "hello"),
    ):
        with pytest.raises(UsageError, match="E2001"):
            wrong()
    with pytest.raises(ValueError, match="details: expected"):
        flow.apply(1, "shelve", "ann", comment="why")


def test_hostile_words_come_back_as_they_were(flow: Workflow, store: AlertStore) -> None:
    nasty = "'; DROP TABLE alerts; --<script>alert(1)</script>=1+1\n\u202eevil"
    flow.note(1, nasty, nasty)
    assert (store.events(1)[0].actor, store.events(1)[0].comment) == (nasty, nasty)
    assert store.alert(1).version == 2


# -- shelves


def test_a_shelf_needs_a_reason_and_an_end(flow: Workflow, clock: Clock) -> None:
    with pytest.raises(UsageError, match="a comment"):
        flow.shelve(1, "ann", T0 + HOUR, " ")
    for until in (T0, T0 - HOUR, T0 + 30 * DAY + 1):
        with pytest.raises(UsageError, match="30 days"):
            flow.shelve(1, "ann", until, "waiting for parts")
    assert flow.shelve(1, "ann", T0 + 30 * DAY, "waiting for parts").state == "shelved"


@pytest.mark.parametrize(("seen", "then"), [(False, "new"), (True, "acknowledged")])
def test_a_shelf_ends_at_its_time(flow: Workflow, store: AlertStore, clock: Clock, seen: bool, then: str) -> None:
    if seen:
        flow.acknowledge(1, "ann")
    flow.shelve(1, "ann", T0 + HOUR, "waiting for parts")
    clock.now += HOUR - 1
    assert flow.tick() == Ticked()
    assert flow.read(1).state == "shelved"
    clock.now += 1
    assert flow.read(1).state == then
    assert flow.read(1).shelved_until is None
    last = store.events(1)[-1]
    assert (last.actor, last.action, last.from_state, last.to_state) == ("system", "unshelve", "shelved", then)


def test_a_change_after_the_shelf_ended_first_ends_it(flow: Workflow, store: AlertStore, clock: Clock) -> None:
    flow.shelve(1, "ann", T0 + HOUR, "waiting")
    clock.now += 2 * HOUR
    assert flow.acknowledge(1, "bob").state == "acknowledged"
    assert [e.action for e in store.events(1)] == ["shelve", "unshelve", "acknowledge"]


def test_a_shelf_can_be_ended_by_hand(flow: Workflow) -> None:
    flow.shelve(1, "ann", T0 + HOUR, "waiting")
    back = flow.unshelve(1, "bob")
    assert (back.state, back.shelved_until) == ("new", None)


# -- many at once, and time


def test_bulk_changes_what_it_can_and_says_why_not(flow: Workflow, store: AlertStore) -> None:
    put(store.database, spaced(3, asset="pump"))
    flow.acknowledge(2, "bob")
    done = flow.bulk({1: 1, 2: 1, 3: None, 77: None}, "acknowledge", "ann", comment="round")
    assert [(o.id, o.alert is not None, type(o.error)) for o in done] == [
        (1, True, type(None)), (2, False, Conflict), (3, True, type(None)), (77, False, UsageError),
    ]  # fmt: skip
    assert [store.alert(i).state for i in (1, 2, 3, 4)] == ["acknowledged"] * 3 + ["new"]
    assert [e.actor for e in store.events(2)] == ["bob"]
    shelved = flow.bulk({1: None, 4: None}, "shelve", "ann", comment="outage", until_us=T0 + HOUR)
    assert [o.alert.state for o in shelved if o.alert] == ["shelved", "shelved"]
    with pytest.raises(UsageError, match="at most 1000"):
        flow.bulk(dict.fromkeys(range(1001)), "note", "ann", comment="x")


def test_nobody_waits_for_a_lock_where_nothing_is_due(flow: Workflow, store: AlertStore) -> None:
    with store.database.writing():
        assert Workflow(AlertStore(store.database.path or "", wait_s=0.01).database).tick() == Ticked()


def test_an_acknowledged_alert_returns_to_normal_when_its_asset_was_quiet(store: AlertStore, clock: Clock) -> None:
    put(store.database, spaced(2, DAY))
    flow = Workflow(store.database, clock)
    with store.database.writing() as connection:
        rows = [{"asset": "press", "model": "m1", "start_us": T0, "end_us": T0 + DAY // 2 + HOUR + 1}]
        connection.execute(sa.insert(tables.coverage), rows)
    assert flow.tick(quiet_us=HOUR).returned == (), "nobody took it yet"
    flow.acknowledge(1, "ann")
    flow.acknowledge(2, "ann")
    assert flow.tick(quiet_us=HOUR + 1).returned == ()
    assert flow.tick(quiet_us=HOUR).returned == (1,)
    assert flow.read(1).state == "returned"


def test_an_alert_that_nobody_takes_is_told_of_once_more(store: AlertStore, clock: Clock) -> None:
    put(store.database, [row(priority=p, asset=f"a{p}") for p in (1, 2, 3)])
    flow = Workflow(store.database, clock)
    flow.acknowledge(2, "ann")
    clock.now += HOUR
    assert flow.tick(escalate_after_us=HOUR + 1).escalated == ()
    assert flow.tick(escalate_after_us=HOUR).escalated == (1,)
    assert flow.tick(escalate_after_us=HOUR).escalated == ()
    assert [m["kind"] for m in all_rows(store.database, tables.outbox)] == ["alert.acknowledge", "alert.escalate"]
    assert [(e.actor, e.action) for e in AlertStore(store.database).events(1)] == [("system", "escalate")]
    flow.verdict(1, "ann", "unsure")
    flow.reopen(1, "ann")
    assert flow.tick(escalate_after_us=HOUR).escalated == (1,), "opened again, it counts again"


# -- the past


@pytest.mark.parametrize("statement", ["UPDATE {} SET actor = 'x'", "DELETE FROM {}"])
@pytest.mark.parametrize("table", ["alert_events", "user_events"])
def test_the_past_cannot_be_changed(flow: Workflow, store: AlertStore, table: str, statement: str) -> None:
    flow.note(1, "ann", "hello")
    with store.database.writing() as connection:
        event = {"at": 1, "name": "a", "address": "", "action": "x", "actor": "a", "comment": ""}
        connection.execute(sa.insert(tables.user_events).values(**event))
    with pytest.raises(sa.exc.IntegrityError, match="never changed"), store.database.writing() as connection:
        connection.execute(sa.text(statement.format(table)))
    assert len(all_rows(store.database, tables.metadata.tables[table])) == 1


# -- what a later log does to alerts that people worked on


def batch(sha: str, end: int) -> BatchRecord:
    return BatchRecord(sha, "m1", "demo", "f", 1, {}, {"press": (T0, end)}, merge_gap_us=10)


def found(start: int, end: int) -> Episode:
    return Episode("press", start, start, end, 5.0, 3.0, 2, (("Flow", 1.0),))


def test_an_extended_alert_keeps_its_state_and_version(store: AlertStore, clock: Clock) -> None:
    flow = Workflow(store.database, clock)
    store.record_batch(batch("a", T0 + 100), [found(T0 + 50, T0 + 99)])
    flow.acknowledge(1, "ann")
    store.record_batch(batch("b", T0 + 200), [found(T0 + 100, T0 + 150)])
    (alert,) = store.alerts()
    assert (alert.end_us, alert.state, alert.version) == (T0 + 150, "acknowledged", 2)


@pytest.mark.parametrize(("later", "state", "count"), [(GOES_ON_US, "closed", 0), (GOES_ON_US + 1, "new", 1)])
def test_a_closed_alert_that_goes_on_is_opened_again(
    store: AlertStore, clock: Clock, later: int, state: str, count: int
) -> None:
    store.record_batch(batch("a", T0 + 100), [found(T0 + 50, T0 + 99)])
    Workflow(store.database, clock).verdict(1, "ann", "nuisance")
    store.record_batch(batch("b", T0 + 2 * later), [found(T0 + 90, T0 + later)])
    (alert,) = store.alerts()
    assert (alert.state, alert.reopened, alert.verdict) == (state, count, None if count else "nuisance")
    assert [e.action for e in store.events(1)] == ["verdict", "reopen"][: count + 1]


def test_what_was_done_to_a_merged_alert_is_not_lost(store: AlertStore, clock: Clock) -> None:
    flow = Workflow(store.database, clock)
    spans = [(T0 + 50, T0 + 99), (T0 + 500, T0 + 550)]
    store.record_batch(BatchRecord("a", "m1", "demo", "f", 1, {}, {"press": [(T0, T0 + 200), (T0 + 400, T0 + 600)]}),
                       [found(*s) for s in spans])  # fmt: skip
    flow.start(2, "bob")
    store.record_batch(batch("b", T0 + 600), [found(T0 + 60, T0 + 540)])
    (alert,) = store.alerts()
    assert (alert.id, alert.state, alert.assignee, alert.acknowledged_at) == (1, "in_work", "bob", T0)
    assert [(e.action, e.detail) for e in store.events(1)] == [("merge", {"merged": [2]})]
    assert [e.action for e in store.events(2)] == ["start"]


def test_each_new_alert_has_one_message_whose_id_does_not_change(tmp_path: Path) -> None:
    ids = []
    for name in ("one", "two"):
        store = AlertStore(tmp_path / name)
        store.record_batch(batch("a", T0 + 1000), [found(T0 + 100, T0 + 190), found(T0 + 500, T0 + 590)])
        assert not store.record_batch(batch("a", T0 + 1000), [found(T0 + 100, T0 + 190)])
        ids.append([m["message_id"] for m in all_rows(store.database, tables.outbox)])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 2

"""Notifications from scoring to the receiver: one alert per cause, few messages, no row lost (RELIABILITY H1)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from command_line import Press, anomaly, write_log

from alerts.database import Database
from alerts.episodes import Episode
from alerts.listing import Filters
from alerts.notification_settings import NotifySettings
from alerts.outbox import Message, SendFailed
from alerts.store import AlertStore, BatchRecord
from alerts.workflow import Workflow
from anomaly.data.quality import Finding
from anomaly.errors import Unavailable, UsageError
from pipelines.notify import LEAST_GAP_US, Notifier, after_record, alert_findings, retry, status, try_target

SECOND, MINUTE, HOUR, DAY = 1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000
NOON = 20_000 * DAY + 12 * HOUR
SECRET = "whsec_" + "A" * 40
TARGETS = {"hook": {"url": "https://example.org/hook", "secret_env": "HOOK"}}


def settings(**changes: Any) -> NotifySettings:
    return NotifySettings.from_dict({"targets": TARGETS, "digest_hour": -1, "escalate_minutes": 0} | changes)


class Clock:
    def __init__(self, now: int = NOON) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


class Receiver:
    """Keeps what came; while ``down`` it takes nothing."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.down: SendFailed | None = None

    def __call__(self, message: Message) -> None:
        if self.down:
            raise self.down
        self.got.append(message)

    @property
    def kinds(self) -> list[str]:
        return [m.kind for m in self.got]


def notifier(database: Database, clock: Clock, receiver: Receiver, **changes: Any) -> Notifier:
    return Notifier(database, settings(**changes), clock, {"hook": receiver})


def raised(
    database: Database, starts: list[int], batch: str = "a", asset: str = "press", tag: str = "P"
) -> list[Episode]:
    """Record short episodes, as scoring does; their messages carry the time of this machine."""
    episodes = [Episode(asset, s, s, s + SECOND, 5.0, 3.0, 2, ((tag, 1.0),)) for s in starts]
    record = BatchRecord(batch * 64, "m1", "demo", "f", 9, {}, {asset: (min(starts), max(starts) + MINUTE)})
    assert AlertStore(database).record_batch(record, episodes)
    return episodes


def now_us() -> int:
    return pd.Timestamp.now(tz="UTC").value // 1000


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "alerts.db")


# -- a broken sensor -------------------------------------------------------------------------------------------------


def changed_unit(frame: pd.DataFrame) -> pd.DataFrame:
    """A quiet day of the small plant of which ``tag3`` reads °F instead of °C for 24 hours."""
    day = frame.iloc[:1480].copy()
    led = day[["tag0", "tag1"]].to_numpy(copy=True)
    for event in np.flatnonzero(day["label"]):
        led[event - 4 : event + 1] -= 8
    values = day["tag3"].to_numpy(copy=True)
    values[40:] = values[40:] * 1.8 + 32
    return day.assign(tag0=led[:, 0], tag1=led[:, 1], tag3=values, label=0)


def test_a_unit_change_for_a_day_is_one_alert_and_few_messages(press: Press, tmp_path: Path) -> None:
    from pipelines.score import score
    from registry.bundle import load_bundle

    model, database, receiver = load_bundle(press.bundle), Database(tmp_path / "alerts.db"), Receiver()
    sender, rows, anomalous = notifier(database, Clock(now_us()), receiver, escalate_minutes=60), 0, 0
    log = changed_unit(press.frame).drop(columns="label")
    for k, part in enumerate(np.array_split(np.arange(len(log)), 4)):
        path = write_log(log.iloc[part], tmp_path / f"part{k}.csv")
        done = score([path], model, "press", tmp_path / f"scores{k}.parquet", str(tmp_path / "alerts.db"))
        assert done.recorded
        rows += len(pq.read_table(done.out))
        anomalous += done.outcomes["anomalous"]
        sender._clock.now = now_us() + k * 6 * HOUR  # type: ignore[attr-defined]
        sender.run_once()
    top = AlertStore(database).page(Filters(top=True)).alerts
    assert [(a.kind, a.cause) for a in top] == [("unit", "tag3")]
    assert rows == len(log) and anomalous > 900, "every row is scored and kept"
    everything = AlertStore(database).alerts(limit=None)
    members = [a for a in everything if a.kind == "anomaly"]
    assert members and {a.parent_id for a in members} == {top[0].id}
    assert top[0].end_us - top[0].start_us > 23 * HOUR
    assert 1 <= len(receiver.got) <= 6
    held = AlertStore(database).dump()
    assert len(held["outbox"]) == len(held["deliveries"]), "what was not sent is still in the table"
    print(
        f"{len(top)} alert, {len(members)} members, {len(receiver.got)} messages, {anomalous} of {rows} rows anomalous"
    )


def finding(kind: str, start: int, end: int, tag: str = "P", asset: str = "press") -> Finding:
    return Finding(kind, asset, tag, start, end, 30, "said")


def test_what_a_sensor_rule_finds_is_one_alert_per_cause() -> None:
    found = [finding("flat_line", NOON, NOON + HOUR), finding("flat_line", NOON + 3 * HOUR, NOON + 4 * HOUR),
             finding("unit_jump", NOON, NOON + HOUR, "Q"), finding("out_of_range", NOON, NOON + HOUR, "R"),
             finding("missing", NOON, NOON + HOUR, "S"), finding("gap", NOON, NOON + HOUR, ""),
             finding("gap", NOON, NOON + LEAST_GAP_US, "", "pump"), finding("swapped_pair", NOON, NOON, "T")]  # fmt: skip
    found.append(replace(found[-1], detail="T and U move with each other's neighbours", tag="V"))
    found.append(replace(found[-1], detail="T and U hold each other's levels", tag="T"))
    told = {(f.kind, f.asset, f.cause): (f.start_us, f.end_us, f.priority) for f in alert_findings(found)}
    assert told == {
        ("flat_line", "press", "P"): (NOON, NOON + 4 * HOUR, 2),
        ("unit", "press", "Q"): (NOON, NOON + HOUR, 2),
        ("no_data", "press", "S"): (NOON, NOON + HOUR, 2),
        ("gap", "pump", ""): (NOON, NOON + LEAST_GAP_US, 3),
        ("swap", "press", "T"): (NOON, NOON, 2),
    }


def test_a_finding_takes_in_what_it_explains_and_nothing_else(database: Database) -> None:
    inside = raised(database, [NOON + 20 * MINUTE])
    before = raised(database, [NOON - 2 * HOUR], "b")
    other = raised(database, [NOON + 40 * MINUTE], "c", tag="Q")
    taken = raised(database, [NOON + 70 * MINUTE], "d")
    by_start = {a.start_us: a.id for a in AlertStore(database).alerts()}
    Workflow(database).acknowledge(by_start[taken[0].start_us], "ann")
    (number,) = after_record(database, [finding("unit_jump", NOON, NOON + 2 * HOUR)], inside, 5 * MINUTE)
    parents = {a.start_us: a.parent_id for a in AlertStore(database).alerts() if a.kind == "anomaly"}
    assert parents[inside[0].start_us] == number
    assert {parents[e[0].start_us] for e in (before, other, taken)} == {None}


def test_a_closed_finding_that_is_told_again_stays_closed(database: Database) -> None:
    found = [finding("flat_line", NOON, NOON + HOUR)]
    (number,) = after_record(database, found, [])
    assert after_record(database, [finding("flat_line", NOON + 2 * HOUR, NOON + 3 * HOUR)], []) == [number]
    Workflow(database).verdict(number, "ann", "sensor_fault")
    again = [finding("flat_line", NOON + 2 * HOUR, NOON + 3 * HOUR)]
    assert after_record(database, again, []) == [number], "the same log once more"
    assert AlertStore(database).alert(number).state == "closed"
    assert after_record(database, [finding("flat_line", NOON + 9 * HOUR, NOON + 10 * HOUR)], []) != [number]


def test_a_flood_becomes_one_parent_when_it_is_recorded(database: Database) -> None:
    episodes = raised(database, [NOON + k * 30 * SECOND for k in range(14)])
    for _ in range(2):
        after_record(database, [], episodes)
    floods = [a for a in AlertStore(database).alerts(limit=None) if a.kind == "flood"]
    assert [f.rows for f in floods] == [14]
    assert len(AlertStore(database).page(Filters(top=True)).alerts) == 1


# -- the sender ------------------------------------------------------------------------------------------------------


def test_low_priorities_are_left_out_where_that_is_set(database: Database) -> None:
    raised(database, [NOON])
    priority = AlertStore(database).alerts()[0].priority
    quiet, loud = Receiver(), Receiver()
    notifier(database, Clock(now_us()), quiet, min_priority=priority - 1).run_once()
    Notifier(database, settings(), Clock(now_us()), {"other": loud}).run_once()
    assert (quiet.kinds, loud.kinds) == ([], ["alert.new"])


def test_what_nobody_took_is_told_of_once_more(database: Database) -> None:
    after_record(database, [finding("unit_jump", NOON, NOON + HOUR)], [])
    clock, receiver = Clock(now_us()), Receiver()
    sender = notifier(database, clock, receiver, escalate_minutes=30)
    sender.run_once()
    clock.now += 29 * MINUTE
    sender.run_once()
    assert receiver.kinds == ["alert.new"]
    clock.now += 2 * MINUTE
    assert len(sender.run_once().ticked.escalated) == 1
    sender.run_once()
    assert receiver.kinds == ["alert.new", "alert.escalate"]


def test_the_digest_comes_once_a_day_at_its_hour(database: Database) -> None:
    raised(database, [NOON - DAY])
    clock, receiver = Clock(NOON - 7 * HOUR), Receiver()
    for hours in (0, 1, 1, 1, 1):
        clock.now += hours * HOUR
        Notifier(database, settings(digest_hour=6), clock, {"hook": receiver}).run_once()
    (digest,) = [m for m in receiver.got if m.kind == "digest"]
    assert "1 open of 1 alerts" in digest.payload["subject"]


def test_an_asset_that_falls_silent_is_an_alert_until_somebody_looks(database: Database) -> None:
    raised(database, [NOON - 3 * HOUR])
    clock, receiver = Clock(NOON), Receiver()
    sender = notifier(database, clock, receiver, silent_minutes=60)
    assert sender.run_once().silent == ["press"]
    sender.run_once()
    assert [a.kind for a in AlertStore(database).alerts() if a.kind != "anomaly"] == ["no_data"]


def test_dead_letters_are_shown_and_tried_again(database: Database) -> None:
    raised(database, [NOON])
    clock, receiver = Clock(now_us()), Receiver()
    receiver.down = SendFailed("status 410", final=True)
    sender = notifier(database, clock, receiver)
    assert sender.run_once().sent["hook"].dead == 1
    told = status(database, settings())
    assert told["targets"]["hook"]["dead"] == 1 and told["targets"]["hook"]["configured"]
    assert [(d["target"], d["error"], d["attempts"]) for d in told["dead"]] == [("hook", "status 410", 1)]
    receiver.down = None
    assert retry(database, settings(), "hook", clock) == 1
    assert sender.run_once().sent["hook"].sent == 1
    assert status(database, settings())["dead"] == []
    with pytest.raises(UsageError, match="hok"):
        retry(database, settings(), "hok", clock)


def test_a_database_that_does_not_answer_is_tried_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, said, rounds = notifier(database, Clock(), Receiver()), list[str](), iter(range(5))

    def fails() -> None:
        raise Unavailable("locked")

    def heed() -> None:
        if next(rounds, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(sender, "run_once", fails)
    with pytest.raises(KeyboardInterrupt):
        sender.follow(0.0, heed, said.append)
    assert len(said) == 1 and "locked" in said[0]


# -- the command line ------------------------------------------------------------------------------------------------


def write_settings(home: Path, text: str) -> None:
    home.mkdir(exist_ok=True)
    (home / "notify.toml").write_text(text)


def test_the_commands_say_what_is_missing(home: Path) -> None:
    for line in (["send", "--once"], ["test", "hook"]):
        done = anomaly("notify", *line)
        assert done.status == 2 and "a target in the settings" in done.err
    assert anomaly("notify", "status").out.startswith("no target")
    assert not (home / "alerts.db").exists(), "looking makes no database"
    write_settings(home, '[notify]\n[notify.targets.hook]\nurl = "https://example.org"\nsecret_env = "NO_SUCH"\n')
    done = anomaly("notify", "send")
    assert done.status == 2 and "NO_SUCH" in done.err
    assert anomaly("notify", "send", "--follow", "--once").status == 2


def test_a_target_inside_is_refused_by_test_and_send(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", SECRET)
    write_settings(home, '[notify]\n[notify.targets.hook]\nurl = "https://127.0.0.1/x"\nsecret_env = "HOOK"\n')
    done = anomaly("notify", "test", "hook")
    assert done.status == 5 and "E5005" in done.err and "not allowed" in done.err
    raised(Database(home / "alerts.db"), [NOON])
    sent = anomaly("notify", "send", "--json").json
    assert sent["sent"]["hook"]["dead"] == 1
    told = anomaly("notify", "status", "--json").json
    assert told["dead"][0]["error"] == "the target is not allowed"
    assert "given up hook" in anomaly("notify", "status").out
    assert anomaly("notify", "retry", "hook", "--json").json == {"retried": 1}
    assert json.dumps(told).count(SECRET) == 0


def test_a_test_message_names_no_alert(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Receiver()
    monkeypatch.setattr("pipelines.notify.transport", lambda *_: receiver)
    try_target(settings(), "hook", Clock())
    assert receiver.got[0].kind == "test" and receiver.got[0].payload["alert"]["id"] == 0

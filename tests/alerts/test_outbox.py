"""The outbox: nothing lost, nothing invented, one id per message, whatever dies on the way (RELIABILITY §2.10, H1, H4)."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa
from alert_rows import DAY, HOUR, T0, Clock, all_rows, put, row

from alerts import tables
from alerts.database import Database
from alerts.episodes import Episode
from alerts.outbox import Message, QuietHours, Sender, SenderRules, SendFailed, Sent, enqueue, prune
from alerts.store import AlertStore, BatchRecord
from alerts.workflow import Workflow

SECOND, MINUTE = 1_000_000, 60_000_000
FREE = SenderRules(per_asset=10**9, per_sensor=10**9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "alerts.db")


def tell(database: Database, clock: Clock, *keys: str, kind: str = "alert.new", **more: object) -> list[str]:
    with database.writing() as connection:
        return [enqueue(connection, kind, {"key": k}, key=k, at=clock.now, **more) for k in keys]  # type: ignore[arg-type]


class Receiver:
    """Keeps what came; raises as told, before or after it took the message."""

    def __init__(self, *errors: Exception | None) -> None:
        self.got: list[Message] = []
        self.errors = list(errors)

    def __call__(self, message: Message) -> None:
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        self.got.append(message)

    @property
    def keys(self) -> list[str]:
        return [m.payload["key"] for m in self.got]


def states(database: Database) -> Counter[str]:
    return Counter(r["state"] for r in all_rows(database, tables.deliveries))


# -- writing


def test_a_message_is_there_if_and_only_if_its_change_is(database: Database, clock: Clock) -> None:
    class Crash(Exception):
        pass

    with pytest.raises(Crash), database.writing() as connection:
        enqueue(connection, "alert.new", {}, key="gone", at=T0)
        raise Crash
    (kept,) = tell(database, clock, "kept")
    assert [m["message_id"] for m in all_rows(database, tables.outbox)] == [kept]


def test_the_same_message_is_written_once(database: Database, clock: Clock) -> None:
    assert tell(database, clock, "a", "b", "a") == tell(database, clock, "a", "b", "a")
    assert len(all_rows(database, tables.outbox)) == 2
    assert tell(database, clock, "a", kind="digest") != tell(database, clock, "a")


# -- sending


def test_messages_go_out_once_oldest_first(database: Database, clock: Clock) -> None:
    ids = tell(database, clock, *"abc")
    receiver = Receiver()
    sender = Sender(database, "hook", clock)
    assert sender.run_once(receiver) == Sent(sent=3)
    assert sender.run_once(receiver) == Sent()
    assert [m.id for m in receiver.got] == ids
    assert receiver.keys == ["a", "b", "c"]


def test_nothing_to_do_waits_for_no_lock_and_makes_no_file(database: Database, clock: Clock, tmp_path: Path) -> None:
    assert Sender(database, "hook", clock).run_once(Receiver()) == Sent()
    assert not (tmp_path / "alerts.db").exists()
    tell(database, clock, "a")
    Sender(database, "hook", clock).run_once(Receiver())
    with database.writing():
        assert Sender(Database(tmp_path / "alerts.db", wait_s=0.01), "hook", clock).run_once(Receiver()) == Sent()


def test_each_target_gets_every_message(database: Database, clock: Clock) -> None:
    tell(database, clock, *"ab")
    first, second = Receiver(SendFailed("down"), SendFailed("down")), Receiver()
    assert Sender(database, "hook", clock).run_once(first) == Sent(failed=2)
    assert Sender(database, "mail", clock).run_once(second) == Sent(sent=2)


def test_the_wait_after_a_failure_doubles_and_ends(database: Database, clock: Clock) -> None:
    tell(database, clock, "a")
    rules = SenderRules(attempts=8, base_us=10 * SECOND, longest_us=100 * SECOND)
    receiver = Receiver(*[SendFailed("status 503")] * 99)
    sender = Sender(database, "hook", clock, rules, chance=lambda: 1.0)
    waits = []
    for _ in range(7):
        assert sender.run_once(receiver).failed == 1
        (held,) = all_rows(database, tables.deliveries)
        waits.append((held["next_at"] - clock.now) // SECOND)
        clock.now = held["next_at"] - 1
        assert sender.run_once(receiver) == Sent(), "not due yet"
        clock.now += 1
    assert waits == [10, 20, 40, 80, 100, 100, 100]
    assert sender.run_once(receiver) == Sent(dead=1)
    (held,) = all_rows(database, tables.deliveries)
    assert (held["state"], held["attempts"], held["error"]) == ("dead", 8, "status 503")
    clock.now += DAY
    assert sender.run_once(receiver) == Sent()
    assert sender.revive() == 1
    receiver.errors = []
    assert sender.run_once(receiver) == Sent(sent=1)


def test_the_wait_is_drawn_between_half_and_all_of_it(database: Database, clock: Clock) -> None:
    tell(database, clock, *map(str, range(40)))
    sender = Sender(database, "hook", clock, FREE)
    sender.run_once(Receiver(*[SendFailed("x")] * 40), most=40)
    waits = [r["next_at"] - clock.now for r in all_rows(database, tables.deliveries)]
    assert all(5 * SECOND <= w <= 10 * SECOND for w in waits)
    assert max(waits) - min(waits) > 3 * SECOND


def test_what_cannot_get_better_is_dead_at_once(database: Database, clock: Clock) -> None:
    tell(database, clock, "a")
    assert Sender(database, "hook", clock).run_once(Receiver(SendFailed("status 410", final=True))) == Sent(dead=1)


def test_words_of_libraries_are_not_kept(database: Database, clock: Clock) -> None:
    tell(database, clock, "a")
    Sender(database, "hook", clock).run_once(Receiver(RuntimeError("https://user:canary@host")))
    (held,) = all_rows(database, tables.deliveries)
    assert held["error"] == "RuntimeError"


def test_two_senders_do_not_send_the_same_at_once(database: Database, clock: Clock) -> None:
    tell(database, clock, *"abcd")
    other, seen = Receiver(), []

    def slow(message: Message) -> None:
        seen.append(message.payload["key"])
        if len(seen) == 1:  # while the first message is on its way, another sender does the rest
            Sender(database, "hook", clock).run_once(other)

    Sender(database, "hook", clock).run_once(slow)
    assert (seen, other.keys) == (["a"], ["b", "c", "d"])


def test_a_sender_that_lost_its_lease_does_not_undo_the_other(database: Database, clock: Clock) -> None:
    tell(database, clock, "a")
    receiver = Receiver()

    def hangs(_: Message) -> None:
        clock.now += SenderRules().lease_us
        assert Sender(database, "hook", clock).run_once(receiver) == Sent(sent=1)
        raise SendFailed("timed out")

    Sender(database, "hook", clock).run_once(hangs)
    (held,) = all_rows(database, tables.deliveries)
    assert (held["state"], held["attempts"], receiver.got[0].attempt) == ("sent", 2, 2)


# -- killed


class Killed(BaseException):
    """The process is gone: nothing after it runs."""


class Mortal(Sender):
    """Dies around its steps where ``fate`` says so."""

    fate: random.Random

    def _maybe(self) -> None:
        if self.fate.random() < 0.2:
            raise Killed

    def _admit(self, done):  # type: ignore[no-untyped-def]
        self._maybe()
        super()._admit(done)
        self._maybe()

    def _claim(self, done):  # type: ignore[no-untyped-def]
        self._maybe()
        claimed = super()._claim(done)
        self._maybe()
        return claimed

    def _finish(self, number, claim, **changed):  # type: ignore[no-untyped-def]
        self._maybe()
        super()._finish(number, claim, **changed)
        self._maybe()

    def _update(self, connection, number, held=None, **changed):  # type: ignore[no-untyped-def]
        super()._update(connection, number, held, **changed)
        self._maybe()  # inside the transaction: it must roll back


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_a_sender_killed_sixty_times_loses_and_invents_nothing(database: Database, clock: Clock, seed: int) -> None:
    """The receiver answers 15 % with 503 and takes 5 % without the sender learning of it; writers crash too."""
    fate, got, kills, wanted = random.Random(seed), [], 0, []  # noqa: S311

    def receiver(message: Message) -> None:
        if fate.random() < 0.15:
            raise SendFailed("status 503")
        got.append((message.id, message.payload["key"]))
        if fate.random() < 0.05:
            raise SendFailed("no answer")
        if fate.random() < 0.05:
            raise Killed

    rules = SenderRules(per_asset=10**9, per_sensor=10**9, attempts=50)
    for step in range(5000):
        clock.now += 30 * SECOND
        if step < 30:
            try:
                with database.writing() as connection:
                    ids = [
                        enqueue(connection, "alert.new", {"key": f"{step}.{k}"}, key=f"{step}.{k}", at=clock.now)
                        for k in range(2)
                    ]
                    if fate.random() < 0.2:
                        raise Killed
                wanted += ids
            except Killed:
                pass
        sender = Mortal(database, "hook", clock, rules, chance=fate.random)
        sender.fate = fate
        try:
            done = sender.run_once(receiver)
        except Killed:
            kills += 1
            continue
        if step >= 30 and done == Sent() and states(database).keys() <= {"sent"}:
            break
    assert kills >= 60
    assert states(database) == {"sent": len(wanted)}
    assert {i for i, _ in got} == set(wanted), "0 lost, 0 phantom"
    assert len(set(got)) == len(wanted), "a message always has the same id"
    assert len(got) > len(wanted), "some came twice: that is what is promised, and the receiver can tell"


# -- limits


def test_a_sensor_gone_mad_for_a_day_gives_six_messages_and_loses_no_row(tmp_path: Path, clock: Clock) -> None:
    """RELIABILITY H1: many short episodes of one sensor over 24 hours."""
    store = AlertStore(tmp_path / "alerts.db")
    starts = [T0 + k * 10 * MINUTE for k in range(144)]
    episodes = [Episode("press", t, t, t + 1, 9.0, 3.0, 2, (("Temp", 1.0),)) for t in starts]
    store.record_batch(BatchRecord("a", "m", "demo", "f", 1, {}, {"press": (T0, T0 + DAY)}), episodes)
    (made,) = {m["created_at"] for m in all_rows(store.database, tables.outbox)}
    clock.now = made
    receiver = Receiver()
    got = Sender(store.database, "hook", clock).run_once(receiver, most=999)
    assert got == Sent(sent=6, limited=138)
    assert len(store.alerts(limit=None)) == len(all_rows(store.database, tables.outbox)) == 144


def test_the_limit_is_per_sensor_per_asset_and_per_day(database: Database, clock: Clock) -> None:
    sender, receiver = Sender(database, "hook", clock, SenderRules(per_asset=5, per_sensor=2)), Receiver()
    for sensor in ("T", "P", "Q"):
        tell(database, clock, *(f"{sensor}{k}" for k in range(3)), asset="press", sensor=sensor)
    tell(database, clock, "pump", asset="pump", sensor="T")
    tell(database, clock, "no asset", "none either", "nor here")
    assert sender.run_once(receiver) == Sent(sent=9, limited=4)
    assert receiver.keys == ["T0", "T1", "P0", "P1", "Q0", "pump", "no asset", "none either", "nor here"]
    clock.now += DAY - 1
    tell(database, clock, "T again", asset="press", sensor="T")
    assert sender.run_once(receiver) == Sent(limited=1)
    clock.now += 1
    tell(database, clock, "T next day", asset="press", sensor="T")
    assert sender.run_once(receiver) == Sent(sent=1)


def test_kinds_that_nobody_wants_and_old_messages_are_skipped(database: Database, clock: Clock) -> None:
    tell(database, clock, "note", kind="alert.note")
    tell(database, clock, "old")
    clock.now += SenderRules().oldest_us + 1
    tell(database, clock, "fresh")
    receiver = Receiver()
    assert Sender(database, "hook", clock).run_once(receiver) == Sent(sent=1, skipped=2)
    assert receiver.keys == ["fresh"]


# -- quiet hours


@pytest.mark.parametrize(
    ("now", "until"),
    [("21:59", None), ("22:00", "30:00"), ("23:30", "30:00"), ("00:00", "06:00"), ("05:59", "06:00"), ("06:00", None)],
)
def test_quiet_hours_over_midnight(now: str, until: str | None) -> None:
    def micro(text: str) -> int:
        hours, minutes = map(int, text.split(":"))
        return 19_000 * DAY + hours * HOUR + minutes * MINUTE

    assert QuietHours(22 * 60, 6 * 60).until(micro(now)) == (micro(until) if until else None)


def test_quiet_hours_are_those_of_the_place() -> None:
    """Berlin, the night the clock is put forward: 06:00 is 04:00 UTC."""
    night = 1_711_839_600_000_000  # 2024-03-30T23:00Z, 00:00 there
    assert QuietHours(22 * 60, 6 * 60, "Europe/Berlin").until(night) == night + 5 * HOUR
    assert QuietHours(8 * 60, 8 * 60).until(T0) is None, "no quiet hours at all"
    with pytest.raises(ValueError, match="minutes of a day"):
        QuietHours(0, 1440)


def test_in_quiet_hours_only_what_is_urgent_goes_out(database: Database, clock: Clock) -> None:
    clock.now = 19_000 * DAY + 23 * HOUR
    tell(database, clock, "can wait", priority=2)
    tell(database, clock, "urgent", priority=1)
    receiver = Receiver()
    sender = Sender(database, "hook", clock, SenderRules(quiet=QuietHours(22 * 60, 6 * 60)))
    assert sender.run_once(receiver) == Sent(sent=1)
    assert receiver.keys == ["urgent"]
    clock.now += 7 * HOUR
    assert sender.run_once(receiver) == Sent(sent=1)


# -- age


def test_old_messages_are_forgotten_once_nobody_wants_them(database: Database, clock: Clock) -> None:
    tell(database, clock, *"abcd")
    sender, receiver = Sender(database, "hook", clock), Receiver(None, SendFailed("x"))
    sender.run_once(receiver)
    assert prune(database, T0) == 0
    assert prune(database, T0 + 1) == 2, "b is still wanted, d marks how far the target has come"
    assert [json.loads(m["payload"])["key"] for m in all_rows(database, tables.outbox)] == ["b", "d"]
    clock.now += MINUTE
    tell(database, clock, "e")
    sender.run_once(receiver)
    assert sorted(receiver.keys) == ["a", "b", "c", "d", "e"]


def test_every_change_of_the_workflow_can_be_sent_as_json(tmp_path: Path, clock: Clock) -> None:
    database = Database(tmp_path / "alerts.db")
    put(database, [row(peak_score=float("inf"), asset="\u202e<b>&\"'")])
    Workflow(database, clock).verdict(1, "ann", "nuisance", comment="=1+1")
    receiver = Receiver()
    assert Sender(database, "hook", clock).run_once(receiver).sent == 1
    alert = receiver.got[0].payload["alert"]
    assert (alert["peak_score"], alert["asset"], receiver.got[0].payload["comment"]) == (None, "\u202e<b>&\"'", "=1+1")
    with database.reading() as connection:
        assert connection is not None
        assert connection.execute(sa.select(sa.func.count()).select_from(tables.outbox)).scalar() == 1

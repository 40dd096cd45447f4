"""A scorer that stands still becomes one alert, whoever looks, and returns when it runs again (RELIABILITY D, H3)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from test_watch import Place, log, model  # noqa: F401  fixtures

from alerts.alert import Alert
from alerts.database import Database
from alerts.states import NEW, RETURNED
from alerts.store import AlertStore
from anomaly.errors import Fault, Unavailable
from anomaly.model import AnomalyModel
from pipelines import watch_health
from pipelines.watch import HEARTBEAT, Watch
from pipelines.watch_health import Beat, Looks, Return, last_beat, looking, tell_stale
from pipelines.watch_loop import Loop

SECOND = 1_000_000


@dataclass
class Clock:
    now: int = 10**15

    def __call__(self) -> int:
        return self.now


@dataclass
class Scorer:
    """A watch of which only the heartbeat is there."""

    home: Path
    clock: Clock

    @property
    def place(self) -> Path:
        return self.home / "work" / "watch-1"

    def beat(self, every_s: float | None = 200.0) -> None:
        after = None if every_s is None else watch_health.stale_after_s(every_s)
        self.place.mkdir(parents=True, exist_ok=True)
        told = {"time": self.clock.now / 1e6, "folder": "/in", "stale_after_s": after, "trouble": ""}
        (self.place / HEARTBEAT).write_text(json.dumps(told))


@pytest.fixture
def scorer(tmp_path: Path) -> Scorer:
    return Scorer(tmp_path, Clock())


def stale(database: Database) -> list[Alert]:
    return [a for a in AlertStore(database).alerts(limit=None) if a.kind == "stale_scorer"]


def test_a_heartbeat_that_stops_is_one_alert_until_it_comes_again(scorer: Scorer) -> None:
    database, clock = Database(scorer.home / "a.db"), scorer.clock
    looks = Looks(database, scorer.home, clock)
    scorer.beat()
    died = clock.now
    for _ in range(100):
        clock.now += 60 * SECOND
        looks.look()
    (alert,) = stale(database)
    assert (alert.state, alert.cause, alert.priority) == (NEW, "watch of /in", 1)
    assert (alert.start_us, alert.end_us) == (died, clock.now)
    assert alert.created_at <= died + 2 * 400 * SECOND, "within twice the limit"
    clock.now += SECOND
    scorer.beat()
    assert looks.look() == [] and [a.state for a in stale(database)] == [RETURNED]
    clock.now += 3600 * SECOND
    assert (looks.look(), looks.look()) == ([], ["/in"])
    (alert,) = stale(database)
    assert (alert.state, alert.reopened) == (NEW, 1), "once more within a day: the same alert"


def test_what_is_not_expected_to_go_on_is_not_stale(scorer: Scorer) -> None:
    looks = Looks(Database(scorer.home / "a.db"), scorer.home, scorer.clock, times=1)
    scorer.beat(every_s=None)
    scorer.clock.now += 10**13
    assert looks.look() == []
    (scorer.place / HEARTBEAT).write_text("{")
    assert looks.look() == [] and last_beat(scorer.place) is None
    assert not (scorer.home / "a.db").exists(), "looking makes no database"


def test_a_clock_that_jumps_raises_nothing(scorer: Scorer) -> None:
    database = Database(scorer.home / "a.db")
    looks = Looks(database, scorer.home, scorer.clock)
    for jump in (3600, -7200, 3600):
        scorer.beat()
        scorer.clock.now += jump * SECOND
        assert looks.look() == []
        scorer.beat()
        assert looks.look() == []
    assert stale(database) == []


def test_the_watch_itself_says_that_it_stood_still_when_nobody_looked(scorer: Scorer) -> None:
    database = Database(scorer.home / "a.db")
    scorer.beat()
    back = Return(scorer.place, Path("/in"), scorer.clock.now + 3600 * SECOND)
    back.tell(database)
    back.tell(database)
    (alert,) = stale(database)
    assert (alert.state, alert.end_us - alert.start_us) == (RETURNED, 3600 * SECOND)
    Return(scorer.place, Path("/in"), scorer.clock.now + 10 * SECOND).tell(database)
    assert len(stale(database)) == 1


def test_a_loop_beats_and_its_next_start_tells_a_long_silence(
    model: AnomalyModel,  # noqa: F811
    log: pd.DataFrame,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Place(tmp_path, model, lateness_us=0)
    place.options = place.options.__class__(0, settle_s=0.0, every_s=5.0)
    Loop(place.watch(), 0.01, lambda said: None).step()
    beat = last_beat(place.state)
    assert beat is not None and beat.stale_after_us == 300 * SECOND and beat.folder == str(place.folder.resolve())
    later = time.time_ns() + 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    said: list[str] = []
    loop = Loop(place.watch(), 0.0, said.append)
    with monkeypatch.context() as patch:
        patch.setattr(watch_health, "tell_stale", down)
        loop.step()
    assert any("recording failed" in line for line in said) and stale(Database(place.database)) == []
    loop.step()
    (alert,) = stale(Database(place.database))
    assert alert.state == RETURNED and 3590 * SECOND < alert.end_us - alert.start_us < 3700 * SECOND


def down(*args: object) -> None:
    raise Unavailable(Fault("E5001", "a database that answers", "locked"))


def test_a_long_turn_beats_from_within(
    model: AnomalyModel,  # noqa: F811
    log: pd.DataFrame,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.watch._BEAT_S", 0.0)
    place, beats = Place(tmp_path, model, lateness_us=0), list[int]()
    watch, whole = place.watch(), Watch.heartbeat
    monkeypatch.setattr(Watch, "heartbeat", lambda self: (beats.append(1), whole(self)))
    place.land(log[:40], "a.csv")
    watch.turn(watch.new_files()[0])
    assert beats and (place.state / HEARTBEAT).exists()


def test_a_server_looks_while_it_serves(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(scorer.home / "a.db")
    scorer.clock.now = time.time_ns() // 1000 - 3600 * SECOND
    scorer.beat()
    answers = [True]

    def flaky(*args: object) -> object:
        if answers:
            answers.pop()
            down()
        return tell_stale(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(watch_health, "tell_stale", flaky)
    with looking(database, scorer.home, every_s=0.02):
        end = time.monotonic() + 20
        while time.monotonic() < end and not (database.exists() and stale(database)):
            time.sleep(0.05)
    assert [a.state for a in stale(database)] == [NEW] and not answers


def test_a_beat_names_its_folder() -> None:
    assert len(Beat(0, "x" * 5000, None).cause) == 1000

"""``anomaly watch`` in trouble: killed at every point, database and registry down, two at once, stopped by a signal."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import Press, anomaly, write_log
from processes import run_apart
from test_watch import Place, alert_rows, assert_same, assert_same_alerts, log, model, whole  # noqa: F401  fixtures

from alerts import store
from alerts.store import AlertStore
from anomaly import files
from anomaly.errors import Fault, Unavailable
from anomaly.files import TEMPORARY
from anomaly.model import AnomalyModel
from pipelines import watch as watching
from pipelines.score import score
from pipelines.watch import HEARTBEAT, scores_of
from pipelines.watch_loop import BackOff, Loop, once

Whole = tuple[pd.DataFrame, list[dict[str, Any]]]


class Killed(BaseException):
    """The process died here."""


class Killer:
    """Dies at one pass of one kill point, told as ``anomaly.faults`` is: NAME or NAME:PASS."""

    def __init__(self, point: str) -> None:
        self.name, _, nth = point.partition(":")
        self.left = int(nth or 1)

    def __call__(self, name: str) -> None:
        self.left -= name == self.name
        if not self.left:
            raise Killed(name)


#: The first file that appears in a turn is the reason of a quarantine, then scores, state, drift and heartbeat.
POINTS = [*(f"files.{when}_rename:{n}" for n in range(1, 6) for when in ("before", "after")), "watch.before_quarantine",
          "watch.after_scores", "watch.after_state", "alerts.before_commit", "alerts.after_commit",
          "watch.after_record"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("finish", [False, True], ids=["one kill after the other", "finished after each kill"])
def test_killed_at_every_point_it_loses_and_duplicates_nothing(
    model: AnomalyModel,  # noqa: F811
    log: pd.DataFrame,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finish: bool,
) -> None:
    rows = 24 * len(POINTS)
    path = write_log(log[:rows], tmp_path / "log.csv")
    score([path], model, "m", tmp_path / "s.parquet", str(tmp_path / "whole.db"))
    wanted = pd.read_parquet(tmp_path / "s.parquet"), alert_rows(tmp_path / "whole.db")
    place = Place(tmp_path / "place", model, lateness_us=0)
    place.watch()
    for number, point in enumerate(POINTS):
        place.land(log[max(24 * number - 5, 0) : 24 * (number + 1)], f"{number}.csv")
        (place.folder / f"bad{number}.csv").write_text("nonsense")
        with monkeypatch.context() as patch:
            killer = Killer(point)
            for module in (watching, files, store):
                patch.setattr(module, "killpoint", killer)
            with pytest.raises(Killed):
                place.once()
        if finish:
            place.once()
    place.once()
    assert_same(place.scores(), wanted[0])
    assert_same_alerts(place.alerts(), wanted[1])
    assert len(wanted[1]) >= 2
    batches = AlertStore(place.database).dump()["batches"]
    assert sum(b["rows"] for b in batches) == len(wanted[0]), "the ledger counts each row once"
    assert sorted(b["score_path"] for b in batches) == [str(p) for p in scores_of(place.out)]
    assert not list(tmp_path.rglob(f"*{TEMPORARY}*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["watch.after_scores", "watch.after_state", "watch.after_record", "files.before_rename:3"]
)
def test_kill_9_in_a_process_of_its_own(press: Press, home: Path, tmp_path: Path, point: str) -> None:
    folder, out = tmp_path / "in", tmp_path / "scores"
    folder.mkdir()
    write_log(press.frame[:450], folder / "a.csv")
    command = ("watch", folder, "--model", press.bundle, "--out", out, "--once", "--flush", "--settle", "0s")
    status, said = run_apart(tmp_path, *command, killpoint=point)
    assert status == -9, said
    done = anomaly(*command, "--json").json
    assert done["quarantined"] == {}
    reference = write_log(press.frame[:450], tmp_path / "whole.csv")
    found, database = alert_rows(home / "alerts.db"), tmp_path / "other.db"
    from registry.bundle import load_bundle

    score([reference], load_bundle(press.bundle), "press", tmp_path / "s.parquet", str(database))
    assert_same_alerts(found, alert_rows(database), close=1e-4)
    tables = pd.concat([pd.read_parquet(p) for p in scores_of(out)])
    # The bundle was loaded twice: two engines of one model differ in the last digits.
    assert_same(tables, pd.read_parquet(tmp_path / "s.parquet"), close=1e-4)


def down(*args: object) -> bool:
    raise Unavailable(Fault("E5001", "a database that answers", "locked"))


def test_scoring_goes_on_while_the_database_is_down(
    model: AnomalyModel,  # noqa: F811
    log: pd.DataFrame,  # noqa: F811
    whole: Whole,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, said = Place(tmp_path, model, lateness_us=0), list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(AlertStore, "record_batch", down)
        place.land(log[:700], "a.csv")
        with pytest.raises(Unavailable, match="E5001"):
            once(place.watch())
        assert len(place.scores()) == 700
        loop = Loop(place.watch(), 0.01, said.append)
        place.land(log[700:], "b.csv")
        loop.step()
        assert len(place.scores()) == 1500
        assert "locked" in json.loads((place.state / HEARTBEAT).read_text())["trouble"]
        assert any("recording failed" in line for line in said)
        assert place.alerts() == []
    time.sleep(0.02)
    loop.step()
    assert "recording works again" in said
    assert json.loads((place.state / HEARTBEAT).read_text())["trouble"] == ""
    assert_same_alerts(place.alerts(), whole[1])


def test_the_model_at_work_stays_while_the_registry_is_down_and_changes_after(
    model: AnomalyModel,  # noqa: F811
    log: pd.DataFrame,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.watch_loop._REFRESH_S", 0.0)
    answers: list[Callable[[], Any]] = [down, lambda: replace(model, digest="e" * 64)]
    place, said = Place(tmp_path, model, 0), list[str]()
    newest = iter(answers)

    def newer() -> Any:
        return next(newest)()

    loop = Loop(place.watch(), 0.01, said.append, newer)
    place.land(log[:50], "a.csv")
    loop.step()
    assert [line[:23] for line in said] == ["the model at work stays", "1 files, 50 rows scored"]
    place.land(log[50:90], "b.csv")
    loop.step()
    assert "the model changed; its windows begin anew" in said
    assert {b["model"][0] for b in AlertStore(place.database).dump()["batches"]} == {"d", "e"}


def test_rows_that_wait_are_scored_when_the_folder_is_quiet(
    model: AnomalyModel,  # noqa: F811
    log: pd.DataFrame,  # noqa: F811
    tmp_path: Path,
) -> None:
    place = Place(tmp_path, model, lateness_us=200_000)
    place.land(log[:50], "a.csv")
    loop = Loop(place.watch(), 0.01, lambda said: None)
    loop.step()
    assert loop.watch.state.order.rows == 1
    time.sleep(0.25)
    loop.step()
    assert (loop.watch.state.order.rows, len(place.scores())) == (0, 50)


def test_a_full_disk_leaves_the_turn_undone(
    model: AnomalyModel,  # noqa: F811
    log: pd.DataFrame,  # noqa: F811
    whole: Whole,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, said = Place(tmp_path, model, lateness_us=0), list[str]()
    place.land(log[:600], "a.csv")
    loop = Loop(place.watch(), 0.0, said.append)

    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.watch_state.np.savez", full)
        loop.step()
    assert any("E5002" in line for line in said)
    assert loop.watch.state.rows == 0
    loop.step()
    place.land(log[600:], "b.csv")
    loop.step()
    assert_same(place.scores(), whole[0])
    assert_same_alerts(place.alerts(), whole[1])


def test_waits_double_up_to_five_minutes() -> None:
    wait = BackOff(5.0)
    assert [wait.failed() for _ in range(8)] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert not wait.due
    wait.worked()
    assert wait.due


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def landed(press: Press, home: Path, tmp_path: Path) -> Iterator[tuple[Path, tuple[object, ...]]]:
    """A folder with two good files and a bad one, and the command that watches it."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_log(press.frame[300:600], folder / "a.csv")
    write_log(press.frame[:300], folder / "b.parquet")
    (folder / "bad.csv").write_text("time,tag0\nyesterday,1\n")
    yield folder, ("watch", folder, "--model", press.bundle, "--out", tmp_path / "scores", "--settle", "0s")


def test_once_takes_what_is_there_and_says_six_where_files_were_set_aside(
    landed: tuple[Path, tuple[object, ...]], tmp_path: Path
) -> None:
    folder, command = landed
    done = anomaly(*command, "--once", "--flush")
    assert done.status == 6
    assert "2 files, 600 rows scored" in done.out + done.err
    assert "quarantined bad.csv" in done.out + done.err
    assert (folder / "quarantine" / "bad.csv.reason.txt").exists()
    again = anomaly(*command, "--once", "--json").json
    assert (again["files"], again["rows"], again["waiting"]) == (0, 0, 0)
    assert {d["kind"] for d in again["drifts"]} >= {"input", "score", "alert rate"}
    assert len(list((tmp_path / "scores").glob("scores-*.drift.json"))) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_at_a_safe_place(
    landed: tuple[Path, tuple[object, ...]], home: Path, tmp_path: Path, number: signal.Signals
) -> None:
    _, command = landed
    beat = threading.Event()

    def stop() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not list((home / "work").glob(f"*/{HEARTBEAT}")):
            time.sleep(0.05)
        beat.set()
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    done = anomaly(*command, "--every", "1s", "--lateness", "0s")
    assert beat.is_set()
    assert done.status == 128 + number
    assert "600 rows are scored; running the same command again goes on from there" in done.out + done.err
    rows = sum(len(pd.read_parquet(p)) for p in scores_of(tmp_path / "scores"))
    assert rows == 600


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--flush"], "E2001"),
        (["--json"], "E2001"),
        (["--lateness", "soon"], "E2001"),
        (["--out", "IN"], "E2003"),
        (["--model", "nobody"], "E4001"),
    ],
)
def test_a_wrong_flag_is_refused(landed: tuple[Path, tuple[object, ...]], flags: list[str], code: str) -> None:
    folder, command = landed
    done = anomaly(
        *command,
        *[str(folder) if f == "IN" else f for f in flags],
        *([] if flags[0] in ("--flush", "--json") else ["--once"]),
    )
    assert code in done.err
    assert done.status in (2, 4)
    assert len(list(folder.iterdir())) == 3

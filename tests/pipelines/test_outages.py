"""An asset that cannot be scored for a while is one alert with one cause, however its rows came (RELIABILITY C1, H3)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_plant import small_frame
from test_watch import Place, model  # noqa: F401  a fixture

from alerts.alert import Alert
from alerts.database import Database
from alerts.findings import Finding, record_findings
from alerts.listing import Filters
from alerts.states import NEW, RETURNED
from alerts.store import AlertStore
from alerts.workflow import Workflow
from anomaly.model import AnomalyModel
from pipelines.outages import Outage, Outages, outages_in, record_outages


def reasons(*runs: tuple[str, int]) -> np.ndarray:
    return np.array([why for why, n in runs for _ in range(n)], dtype=object)


def told(reason: np.ndarray, cuts: list[int] | None = None) -> list[Outage]:
    """What is told of one asset's rows, cut into pieces, saved and restored between them."""
    own, time = Outages(), np.arange(len(reason), dtype=np.int64)
    for part in np.split(np.arange(len(reason)), cuts or []):
        own.follow("press", time[part], reason[part])
        own = Outages.from_state(json.loads(json.dumps(own.to_state())))
    return list({(o.cause, o.start_us): o for o in own.fresh}.values())


def test_a_few_rows_are_no_outage_and_half_of_them_are_one() -> None:
    assert told(reasons(("", 20), ("gap", 14), ("", 40))) == []
    (one,) = told(reasons(("", 20), ("missing: P", 15), ("", 40)))
    assert (one.cause, one.start_us, one.end_us, one.over) == ("P", 20, 34, True)
    assert one.detail == "15 of 30 rows cannot be scored: missing: P"


def test_good_rows_inside_a_long_outage_do_not_end_it() -> None:
    flapping = reasons(("", 20), *[("missing: P", 12), ("", 9)] * 20)
    (one,) = told(flapping)
    assert (one.start_us, one.over) == (20, False)
    (one,) = told(np.concatenate([flapping, reasons(("", 30))]))
    assert (one.end_us, one.over) == (20 + 19 * 21 + 11, True)


def test_an_outage_after_the_first_is_another_one_that_begins_after_it() -> None:
    first, second = told(reasons(("missing: P", 30), ("", 28), ("missing: Q", 15), ("", 30)))
    assert (first.cause, first.end_us, second.cause, second.start_us) == ("P", 29, "Q", 58)


@pytest.mark.parametrize("seed", range(3))
def test_however_the_rows_are_cut_the_outages_are_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs = [(str(rng.choice(["", "missing: P", "missing: P, Q", "gap"])), int(rng.integers(1, 60))) for _ in range(16)]
    reason = reasons(*runs)
    whole = told(reason)
    assert whole, "the runs make outages"
    cuts = np.sort(rng.choice(np.arange(1, len(reason)), 12, replace=False)).tolist()
    assert told(reason, cuts) == whole
    assert told(reason, list(range(1, len(reason)))) == whole


def alerts(database: Path) -> list[Alert]:
    return [a for a in AlertStore(database).alerts(limit=None) if a.kind in ("unscorable", "no_data")]


def test_one_outage_is_one_alert_that_returns_and_is_reopened_when_it_is_back(tmp_path: Path) -> None:
    database, hour = Database(tmp_path / "a.db"), 3_600_000_000
    first = Outage("press", "P", hour, 2 * hour, "why")
    for end in (2, 3, 4):
        assert record_outages(database, [replace(first, end_us=end * hour)]) == [1]
    over = replace(first, end_us=5 * hour, over=True)
    record_outages(database, [over])
    (alert,) = alerts(tmp_path / "a.db")
    assert (alert.kind, alert.cause, alert.state, alert.end_us, alert.priority) == (
        "unscorable", "P", RETURNED, 5 * hour, 1,
    )  # fmt: skip
    back = Outage("press", "P", 6 * hour, 7 * hour, "why")
    record_outages(database, [over, back])
    record_outages(database, [over, back])  # as after a kill
    (alert,) = alerts(tmp_path / "a.db")
    assert (alert.state, alert.reopened, alert.end_us) == (NEW, 1, 7 * hour)
    assert [e.action for e in AlertStore(database).events(1)] == ["return", "reopen"]
    record_outages(database, [replace(back, over=True), replace(back, start_us=90 * hour, end_us=91 * hour)])
    assert [(a.state, a.start_us) for a in alerts(tmp_path / "a.db")] == [(NEW, 90 * hour), (RETURNED, hour)]


def test_one_that_somebody_closed_stays_closed(tmp_path: Path) -> None:
    database = Database(tmp_path / "a.db")
    own = Outage("press", "", 10, 20, "why")
    record_outages(database, [own])
    Workflow(database).verdict(1, "ann", "sensor_fault")
    record_outages(database, [replace(own, over=True)])
    assert [a.state for a in alerts(tmp_path / "a.db")] == ["closed"]


def test_the_sensor_that_is_missing_goes_under_the_asset_it_stops(tmp_path: Path) -> None:
    database = Database(tmp_path / "a.db")
    record_findings(database, [Finding("no_data", "press", tag, 5, 90) for tag in ("P", "Q")])
    (parent,) = record_outages(database, [Outage("press", "P", 10, 80, "why")])
    assert [(a.kind, a.cause) for a in AlertStore(database).page(Filters(parent=parent)).alerts] == [("no_data", "P")]
    top = {(a.kind, a.cause) for a in AlertStore(database).page(Filters(top=True)).alerts}
    assert top == {("unscorable", "P"), ("no_data", "Q")}


def test_a_watch_tells_a_dead_sensor_once_from_file_to_file(model: AnomalyModel, tmp_path: Path) -> None:  # noqa: F811
    log = small_frame(600).drop(columns="label")
    log.loc[200:400, "tag2"] = np.nan
    place = Place(tmp_path, model, lateness_us=0)
    states = []
    for number, part in enumerate(np.array_split(np.arange(600), 12)):
        place.land(log.iloc[part], f"{number:02d}.csv")
        place.once()
        states += [[(a.cause, a.state) for a in alerts(Path(place.database)) if a.kind == "unscorable"]]
    assert states[:4] == [[]] * 4 and states[4] == [("tag2", NEW)] and states[7] == [("tag2", NEW)]
    assert states[-1] == [("tag2", RETURNED)]
    (alert,) = [a for a in alerts(Path(place.database)) if a.kind == "unscorable"]
    (one,) = outages_in(place.out)
    assert (one.cause, one.start_us, one.end_us, one.over) == ("tag2", alert.start_us, alert.end_us, True)
    scored = place.scores()
    bad = scored.loc[(scored["outcome"] == "unscorable") & scored["reason"].str.startswith("missing"), "time"]
    assert (pd.Timestamp(alert.start_us, unit="us", tz="UTC"), alert.end_us) == (
        bad.min(), bad.max().value // 1000,
    )  # fmt: skip

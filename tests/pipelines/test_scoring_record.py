"""What the scoring service says and records beside scores: findings on sensors and alerts, as `anomaly score` has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import Press, anomaly
from scoring import client_of, posted

from alerts.store import AlertStore
from pipelines import cli_scoring
from pipelines.scoring_service import Holder, Loaded, Service, loader

CLOCK = ("id", "first_batch", "created_at", "recorded_at")
#: What depends on rounding, or on where the log came from.
OTHER = (*CLOCK, "peak_score", "reasons", "top_tags", "file_name", "score_path")


@pytest.fixture(scope="module")
def loaded(press: Press) -> Loaded:
    found = loader(str(press.bundle), press.home)(None)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def frame(press: Press) -> pd.DataFrame:
    """Rows with events, a silent sensor, one that stands still, and an outage of two days."""
    rows = press.frame.drop(columns="label")[:1100].reset_index(drop=True).copy()
    rows.loc[200:500, "tag2"] = np.nan
    rows.loc[520:1000, "tag4"] = rows["tag4"].iloc[520]
    rows.loc[1020:, "time"] += pd.Timedelta(days=2)
    return rows


def held(database: Path, table: str) -> list[dict[str, Any]]:
    rows = AlertStore(str(database)).dump().get(table, [])
    kept = [{k: v for k, v in row.items() if k not in OTHER} for row in rows]
    return sorted(kept, key=lambda row: str((row.get("asset"), row["start_us"], row.get("kind"), row.get("tag"))))


@pytest.mark.parametrize("form", ["json", "csv"])
def test_a_recorded_request_leaves_the_alert_rows_of_anomaly_score(
    press: Press, loaded: Loaded, frame: pd.DataFrame, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALY_DB_URL", str(tmp_path / "one.db"))
    frame.to_csv(tmp_path / "log.csv", index=False)
    done = anomaly(
        "score", tmp_path / "log.csv", "--model", press.bundle, "--out", tmp_path / "s.parquet", "--json"
    ).json
    two = tmp_path / "two.db"
    with client_of(Holder(lambda now: loaded, now=loaded, trouble=""), database=str(two)) as client:
        told = posted(client, form, frame).json()
        wanted = held(tmp_path / "one.db", "alerts")
        assert {"anomaly", "no_data", "flat_line", "gap"} <= {row["kind"] for row in wanted}
        assert told["recorded"] is True
        assert told["findings"] == done["findings"]
        assert held(two, "alerts") == wanted
        names = ("model", "model_name", "rows", "normal", "anomalous", "unscorable", "start_us", "end_us")
        batches = [[{n: row[n] for n in names} for row in held(d, "batches")] for d in (two, tmp_path / "one.db")]
        assert batches[0] == batches[1]
        before = AlertStore(str(two)).dump()
        assert posted(client, form, frame).json()["recorded"] is False
    assert AlertStore(str(two)).dump() == before
    assert {row["score_path"] for row in before["batches"]} == {""}, "there is no score file to point to"


def test_without_a_database_findings_are_told_and_nothing_is_written(
    loaded: Loaded, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALY_DB_URL", str(tmp_path / "alerts.db"))
    with client_of(Holder(lambda now: loaded, now=loaded, trouble="")) as client:
        told = posted(client, "csv", frame).json()
    assert {"missing", "flat_line", "gap"} <= {f["kind"] for f in told["findings"]}
    assert "recorded" not in told
    assert not (tmp_path / "alerts.db").exists()


@pytest.mark.parametrize("flags", [(), ("--record",)])
def test_the_command_records_only_where_that_is_said(
    press: Press, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    made: list[Service] = []
    monkeypatch.setenv("ANOMALY_DB_URL", str(tmp_path / "alerts.db"))
    monkeypatch.setattr("pipelines.scoring_service.create_app", made.append)
    monkeypatch.setattr(cli_scoring, "run", lambda *_: None)
    for part in ("Config", "Server"):  # making one sets up the logging of this whole process
        monkeypatch.setattr(f"uvicorn.{part}", lambda *_, **__: None)
    done = anomaly("serve-model", "--model", press.bundle, *flags)
    assert done.status == 0, done.err
    assert [service.database for service in made] == [str(tmp_path / "alerts.db") if flags else None]

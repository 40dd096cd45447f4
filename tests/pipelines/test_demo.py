"""``anomaly demo``: the whole job on a synthetic plant, with nothing given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import anomaly

from alerts.store import Alert, AlertStore
from anomaly.config import Settings
from pipelines.demo import leads_of


@pytest.mark.slow
def test_the_demo_trains_scores_and_lists_alerts(
    registry_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shorter plant and fewer epochs than a person gets; everything else as they get it."""
    short = Settings(name="demo").changed(training={"epochs": 3})
    monkeypatch.setattr("pipelines.demo.Settings", lambda name: short)
    folder = tmp_path / "demo"
    done = anomaly("demo", "--out", folder, "--rows", 6000, "--seed", 3, "--json").json
    written = {"history.csv", "new_days.csv", "model", "scores.parquet", "scores.drift.json"}
    assert {p.name for p in folder.iterdir()} == written
    history, new, scores = (
        pd.read_csv(folder / "history.csv"),
        pd.read_csv(folder / "new_days.csv"),
        pd.read_parquet(folder / "scores.parquet"),
    )
    assert len(scores) == len(new) == done["scored"]["rows"]
    assert "label" in history
    assert "label" not in new
    assert history["time"].max() < new["time"].min()
    assert sum(done["scored"]["outcomes"].values()) == len(new)
    assert done["trained"]["aliases"] == ["challenger", "champion"]
    assert Path(done["trained"]["report"]).is_file()
    assert done["summary"].startswith("new days:")
    # Frozen sensors are alerts of their own class.
    stored = [a for a in AlertStore(registry_home / "alerts.db").alerts(limit=None) if a.kind == "anomaly"]
    assert [a.id for a in stored] == [a["id"] for a in done["alerts"]]
    assert len(stored) == done["scored"]["episodes"]


def test_an_alert_leads_to_the_next_break_if_it_was_on_shortly_before_it() -> None:
    def alert(number: int, start: int, end: int) -> Alert:
        return Alert(number, "a", "m", "m", start, start, end, 3.0, 2.0, 1, None, (), "new", 1, 0)

    events = np.array([100, 200])
    alerts = [alert(1, 95, 99), alert(2, 60, 70), alert(3, 100, 100), alert(4, 195, 230), alert(5, 210, 220)]
    assert leads_of(events, alerts, 10) == {1: 5, 3: 0, 4: 5}


@pytest.mark.parametrize(("flag", "value"), [("--rows", 12), ("--seed", -1)])
def test_a_plant_that_cannot_be_made_is_a_usage_error(home: Path, tmp_path: Path, flag: str, value: int) -> None:
    done = anomaly("demo", "--out", tmp_path / "demo", flag, value)
    assert done.status == 2, done.err
    assert done.err.startswith("E2001")
    assert list(tmp_path.iterdir()) == []

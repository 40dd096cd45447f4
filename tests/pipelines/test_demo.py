"""``anomaly demo``: the whole job on a synthetic plant, with nothing given."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from command_line import anomaly

from alerts.store import AlertStore
from anomaly.config import Settings


@pytest.mark.slow
def test_the_demo_trains_scores_and_lists_alerts(
    registry_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shorter plant and fewer epochs than a person gets; everything else as they get it."""
    short = Settings(name="demo").changed(training={"epochs": 3})
    monkeypatch.setattr("pipelines.demo.Settings", lambda name: short)
    folder = tmp_path / "demo"
    done = anomaly("demo", "--out", folder, "--rows", 6000, "--seed", 3, "--json").json
    assert {p.name for p in folder.iterdir()} == {"history.csv", "new_days.csv", "model", "scores.parquet"}
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
    stored = AlertStore(registry_home / "alerts.db").alerts(limit=None)
    assert [a.id for a in stored] == [a["id"] for a in done["alerts"]]
    assert len(stored) == done["scored"]["episodes"]


@pytest.mark.parametrize(("flag", "value"), [("--rows", 12), ("--seed", -1)])
def test_a_plant_that_cannot_be_made_is_a_usage_error(home: Path, tmp_path: Path, flag: str, value: int) -> None:
    done = anomaly("demo", "--out", tmp_path / "demo", flag, value)
    assert done.status == 2, done.err
    assert done.err.startswith("E2001")
    assert list(tmp_path.iterdir()) == []

"""Every case of the panel of real logs: train as `anomaly train train.parquet --time time --label label`, then score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from alerts.store import AlertStore
from anomaly.config import Settings
from pipelines.home import alert_database
from pipelines.score import score
from pipelines.train import train
from registry.bundle import load_bundle

pytestmark = [pytest.mark.realdata, pytest.mark.slow]

CASES = (
    "nab_ambient",
    "skab_other_11",
    "skab_valve1_0",
    "skab_valve2_1",
    "smap_D-13",
    "smap_E-5",
    "smap_G-7",
    "smd_1-6",
    "smd_2-1",
    "smd_2-1_labelled",
    "smd_2-7",
    "smd_3-3",
    "smd_3-3_labelled",
    "tep_dev",
    "threew_1_06",
    "threew_2_11",
)
#: Alike in kind to smd_1-6 and smd_3-3_labelled, and a quarter of a minute each: `make test-long`.
LONG = ("smd_2-1", "smd_2-1_labelled", "smd_2-7", "smd_3-3")


def few_epochs(case: str) -> Settings:
    """Default settings but for the epochs, which are few so that the tests stay short."""
    epochs = 1 if case.startswith("smd") else 3
    return Settings().changed(log={"time": "time", "label": "label"}, training={"epochs": epochs})


def test_every_case_of_the_folder_is_tested(shared_data: Path) -> None:
    assert sorted(p.parent.name for p in (shared_data / "panel").glob("*/train.parquet")) == sorted(CASES)


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.long] if c in LONG else []) for c in CASES])
def test_trains_and_scores_with_one_answer_a_row(case: str, shared_data: Path, real_home: Path, tmp_path: Path) -> None:
    folder = shared_data / "panel" / case
    trained = train([folder / "train.parquet"], few_epochs(case), tmp_path / "model")
    assert trained.version >= 1 and trained.report.stat().st_size > 10_000
    assert np.isfinite(trained.threshold.value)

    model, out = load_bundle(tmp_path / "model"), tmp_path / "scores.parquet"
    assert model.digest == trained.digest
    run = score([folder / "test.parquet"], model, case, out, alert_database())

    log, scores = pd.read_parquet(folder / "test.parquet"), pd.read_parquet(out)
    assert run.rows == len(scores) == len(log) == pq.read_metadata(folder / "test.parquet").num_rows
    stamps = pd.to_datetime(log["time"], utc=True).astype("datetime64[us, UTC]")
    assert (scores["time"].to_numpy() == stamps.to_numpy()).all(), "rows in the log's order"
    _check_outcomes(scores)
    _check_missing(log, scores, list(model.contract.tags))
    recorded = [a for a in AlertStore(alert_database()).alerts(limit=100_000) if a.model_name == case]
    assert len(recorded) == len(run.episodes)


def test_a_value_missing_from_a_real_log_is_never_called_normal(
    shared_data: Path, real_home: Path, tmp_path: Path
) -> None:
    """The panel has no tag that is missing now and then, so one is taken out here."""
    folder, holes = shared_data / "panel" / "tep_dev", np.r_[100:140, 700]
    train([folder / "train.parquet"], few_epochs("tep_dev"), tmp_path / "model")
    model, log = load_bundle(tmp_path / "model"), pd.read_parquet(folder / "test.parquet")
    tag = model.contract.tags[3]
    log.loc[holes, tag] = np.nan
    log.to_parquet(tmp_path / "holes.parquet", index=False)
    score([tmp_path / "holes.parquet"], model, "tep_dev", tmp_path / "scores.parquet", None)
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    assert (scores["outcome"][holes] == "unscorable").all() and scores["reason"][holes].str.contains(tag).all()
    _check_outcomes(scores)
    _check_missing(log, scores, list(model.contract.tags))


def _check_outcomes(scores: pd.DataFrame) -> None:
    """Three outcomes; a score exactly where a row could be scored; the outcome is what score and threshold say."""
    outcome, value = scores["outcome"], scores["anomaly_score"]
    assert set(outcome) <= {"normal", "anomalous", "unscorable"}
    assert (value.isna() == (outcome == "unscorable")).all()
    scored = outcome != "unscorable"
    assert ((value >= scores["threshold"]) == (outcome == "anomalous"))[scored].all()
    assert scored.mean() > 0.5 and (scores.loc[~scored, "reason"] != "").all()


def _check_missing(log: pd.DataFrame, scores: pd.DataFrame, tags: list[str]) -> None:
    """A tag that was always there in training (none of the panel's is missing now and then) must be there now."""
    missing = log[tags].isna().any(axis=1).to_numpy()
    assert not (missing & (scores["outcome"] == "normal").to_numpy()).any()

"""A plant of several assets as one log file and as a folder by asset, its model, and what one process says of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from small_plant import chunk_of, small_frame

from alerts.store import AlertStore
from anomaly.data.quality import QualityProfile
from anomaly.fitting import Fitted
from anomaly.model import AnomalyModel

ASSETS = 5
#: Two workers of one core each, as processes of their own.
CLUSTER = "local-cluster[2,1,1024]"
#: What a dead executor held is asked for a second long, not a quarter of a minute.
SOON = "--conf spark.shuffle.io.retryWait=500ms --conf spark.shuffle.io.maxRetries=2"
CLOCK = ("id", "first_batch", "created_at", "recorded_at")


@dataclass(frozen=True)
class Plant:
    """``log`` is one file, ``folder`` the same rows as ``asset=…`` folders of two files each."""

    model: AnomalyModel
    bundle: Path
    log: Path
    folder: Path
    scores: pd.DataFrame
    alerts: list[dict[str, Any]]
    ledger: list[tuple[Any, ...]]


def alert_rows(database: Path) -> list[dict[str, Any]]:
    """The alerts as stored, without numbers and clock columns."""
    rows = AlertStore(str(database)).dump().get("alerts", [])
    kept = [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]
    return sorted(kept, key=lambda row: (row["asset"], row["start_us"]))


def ledger_of(database: Path) -> list[tuple[Any, ...]]:
    """What the ledger says of every batch, but for names of files and times of day."""
    names = ("model", "rows", "normal", "anomalous", "unscorable", "start_us", "end_us")
    return [tuple(row[n] for n in names) for row in AlertStore(str(database)).dump()["batches"]]


def plant_frame() -> pd.DataFrame:
    """Assets with silences and an outage; a tag of P 0 is silent for longer than what a stretch brings along.

    Each has other rows of the plant that the model learned from, so that it is well but for its events.
    """
    frames, rng = [], np.random.default_rng(5)
    once = small_frame().drop(columns="label")
    twice = pd.concat([once, once.assign(time=once["time"] + pd.Timedelta(minutes=3120))], ignore_index=True)
    for number in range(ASSETS):
        rows = 1300 + 50 * number if number else 4000
        frame = twice.iloc[150 * number : 150 * number + rows].reset_index(drop=True)
        tags = [f"tag{i}" for i in range(6)]
        frame[tags] += rng.normal(size=(rows, len(tags))).astype(np.float32) * np.float32(0.05)
        frame.loc[300:304, "tag2"] = np.nan
        frame.loc[rows * 3 // 4 :, "time"] += pd.Timedelta(days=number)
        if number == 0:
            frame.loc[1510:2200, "tag4"] = np.nan
        frame.insert(0, "asset", f"P {number}")
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="session", autouse=True)
def _light_java() -> Iterator[None]:
    """Short jobs: a Java that compiles little and collects on one thread leaves the cores to the work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto")
        patch.setenv("PYSPARK_SUBMIT_ARGS", f"{SOON} pyspark-shell")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
        yield


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """One Spark cluster of two worker processes for all tests: what a command does there finds it and leaves it running."""
    from pipelines.spark_session import session

    with session(CLUSTER) as spark:
        yield spark


@pytest.fixture(scope="session")
def plant(fitted: Fitted, frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """The plant, scored once by one process."""
    from pipelines.score import score
    from registry.bundle import save_bundle

    root = tmp_path_factory.mktemp("plant")
    profile = QualityProfile.fit([chunk_of(frame)], fitted.model.contract)
    settings = fitted.model.settings.changed(detection={"half_life": 1.0})
    contract = replace(fitted.model.contract, asset="asset")
    model = replace(fitted.model, settings=settings, contract=contract, quality=profile.to_dict(), _engines={})
    model.digest = save_bundle(model, root / "bundle")
    rows = plant_frame()
    rows.to_parquet(root / "log.parquet", index=False)
    for asset, own in rows.groupby("asset", sort=False):
        place = root / "log" / f"asset={str(asset).replace(' ', '%20')}"
        place.mkdir(parents=True)
        half = len(own) // 2  # the two files repeat ten rows
        own.drop(columns="asset").iloc[: half + 10].to_parquet(place / "part-0.parquet", index=False)
        own.drop(columns="asset").iloc[half:].to_parquet(place / "part-1.parquet", index=False)
    score([root / "log.parquet"], model, model.settings.name, root / "s.parquet", str(root / "alerts.db"))
    scores = pq.read_table(root / "s.parquet").to_pandas().sort_values(["asset", "time"], kind="stable")
    scores = scores.reset_index(drop=True)
    database = root / "alerts.db"
    return Plant(
        model,
        root / "bundle",
        root / "log.parquet",
        root / "log",
        scores,
        alert_rows(database),
        ledger_of(database),
    )


def corrupted(plant: Plant, folder: Path) -> Path:
    """A copy of the plant's folder in which a file of the asset P 3 is damaged."""
    shutil.copytree(plant.folder, folder / "log")
    broken = folder / "log" / "asset=P%203" / "part-1.parquet"
    content = bytearray(broken.read_bytes())
    content[len(content) // 3 : len(content) // 2] = os.urandom(len(content) // 2 - len(content) // 3)
    broken.write_bytes(content)
    return folder / "log"


#: Scores of a log that is cut otherwise differ by rounding in the linear algebra of other block sizes.
CLOSE = {"rtol": 1e-6, "atol": 3e-6}


def assert_same(plant: Plant, found: pd.DataFrame, database: Path) -> None:
    """The same scores within rounding, and the same alert rows, as one process gave; those on sensors are among them."""
    wanted = plant.scores
    assert {"anomaly", "gap", "no_data"} <= {row["kind"] for row in plant.alerts}
    for name in ("asset", "time", "outcome", "reason"):
        assert (found[name].to_numpy() == wanted[name].to_numpy()).all(), name
    one, two = found["anomaly_score"].to_numpy(np.float64), wanted["anomaly_score"].to_numpy(np.float64)
    np.testing.assert_allclose(one, two, **CLOSE, equal_nan=True)
    assert (found["outcome"] == "anomalous").any()
    rows = alert_rows(database)
    assert rows
    assert [without_figures(row) for row in rows] == [without_figures(row) for row in plant.alerts]
    peaks, known = ([r["peak_score"] for r in some] for some in (rows, plant.alerts))
    np.testing.assert_allclose(peaks, known, **CLOSE)
    assert [_words(r) for r in rows] == [_words(r) for r in plant.alerts]
    assert ledger_of(database) == plant.ledger


def without_figures(row: dict[str, Any]) -> dict[str, Any]:
    """An alert row without what is measured with rounding."""
    return {k: v for k, v in row.items() if k not in ("peak_score", "top_tags", "reasons")}


def _words(row: dict[str, Any]) -> list[str]:
    """What an alert says, figures left out: the tags of its peak and of its reasons, in order."""
    return [tag for tag, _ in json.loads(row["top_tags"])] + [
        t["tag"] for t in json.loads(row["reasons"] or "{}").get("tags", [])
    ]


sys.modules.setdefault("spark_conftest", sys.modules[__name__])

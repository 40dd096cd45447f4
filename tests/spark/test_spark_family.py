"""`anomaly score FAMILY --engine spark`: each asset by its own model, the answers of the family on one process."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from command_line import anomaly
from small_plant import SMALL, chunk_of, contract_of
from spark_conftest import CLOSE, CLUSTER, Plant, alert_rows, ledger_of, without_figures

from anomaly.data.quality import QualityProfile
from anomaly.data.store import WindowStore, create_store
from anomaly.fitting import fit_model
from anomaly.model import AnomalyModel
from pipelines import score_family, spark_family
from registry.bundle import save_bundle
from registry.catalogue import ResolvedModel
from registry.families import Family, Member

pytestmark = [
    pytest.mark.spark,
    pytest.mark.usefixtures("cluster", "home"),
    pytest.mark.filterwarnings("ignore:.*pandas.*:FutureWarning"),
]

TAGS = ["tag0", "tag1", "tag3", "tag4", "tag5"]


@dataclass(frozen=True)
class Trained:
    """A family of three models: of P 0 and P 1 by all tags, of P 2 by fewer, and one of P 3 that is damaged; P 4 has none."""

    family: Family
    places: dict[str, ResolvedModel]

    def resolve(self, reference: str, home: Path) -> ResolvedModel:
        return self.places[reference.removeprefix("models:/").partition("@")[0]]


def fewer_tags(frame: pd.DataFrame, folder: Path) -> AnomalyModel:
    """A model of other columns, which scores at another threshold."""
    rows = frame[["time", *TAGS, "label"]]
    settings = SMALL.changed(training={"epochs": 1}, encoder={"name": "features"}, detection={"half_life": 2.0})
    contract = replace(contract_of(rows), asset="asset")
    with create_store(folder / "few.h5", contract_of(rows), settings.window, settings.split) as writer:
        writer.append(chunk_of(rows))
    with WindowStore.open(folder / "few.h5") as store:
        model = fit_model(store, settings, folder / "work").model
    profile = QualityProfile.fit([chunk_of(rows)], model.contract)
    return replace(model, contract=contract, quality=profile.to_dict(), _engines={})


@pytest.fixture(scope="module")
def trained(plant: Plant, frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("family")
    few = fewer_tags(frame, root)
    models = {"plant--P_0": plant.model, "plant--P_2": few, "plant--P_3": few}
    places = {name: ResolvedModel(root / name, save_bundle(m, root / name), name, 1) for name, m in models.items()}
    broken = next(f for f in sorted((root / "plant--P_3").iterdir()) if f.name != "manifest.json")
    broken.write_bytes(broken.read_bytes()[:-1])
    members = [Member("plant--P_0", "P 0", ("P 0", "P 1")), Member("plant--P_2", "P 2", ("P 2",)),
               Member("plant--P_3", "P 3", ("P 3",))]  # fmt: skip
    return Trained(Family("plant", "asset", "champion", tuple(members)), places)


def test_each_asset_is_scored_by_its_own_model_as_in_one_process(
    plant: Plant, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (score_family, spark_family):
        monkeypatch.setattr(module, "resolve_model", trained.resolve)
    monkeypatch.setattr("registry.families.find_family", lambda name, home: trained.family)
    monkeypatch.setenv("ANOMALY_DB_URL", str(tmp_path / "two.db"))
    one = score_family.score_family([plant.log], trained.family, tmp_path / "one.parquet", str(tmp_path / "one.db"))
    monkeypatch.setattr(spark_family, "planned_by", in_short_stretches)
    done = anomaly("score", plant.folder, "--engine", "spark", "--master", CLUSTER, "--json", "--model", "plant",
                   "--out", tmp_path / "two.parquet")  # fmt: skip
    assert done.status == 6, done.err
    two = json.loads(done.out)
    known = one.to_dict()
    for name in ("rows", "outcomes", "reasons", "episodes", "models", "without_model", "refused"):
        assert two[name] == known[name], name
    assert (two["models"], two["without_model"], list(two["refused"])) == (2, ["P 4"], ["plant--P_3"])
    assert two["stretches"] > 5 and len(two["workers"]) >= 2
    assert_same_scores(tmp_path / "one.parquet", tmp_path / "two.parquet")
    rows, wanted = (alert_rows(tmp_path / name) for name in ("two.db", "one.db"))
    assert {"P 0", "P 2"} <= {r["asset"] for r in wanted if r["kind"] == "anomaly"}
    assert {r["kind"] for r in wanted} > {"anomaly"}
    assert [without_figures(r) for r in rows] == [without_figures(r) for r in wanted]
    assert sorted(ledger_of(tmp_path / "two.db")) == sorted(ledger_of(tmp_path / "one.db"))
    drifts = [json.loads((tmp_path / f"{name}.drift.json").read_text()) for name in ("one", "two")]
    assert drifts[0]["models"].keys() == drifts[1]["models"].keys() == {"plant--P_0", "plant--P_2"}


def in_short_stretches(*args: Any) -> Any:
    """Plans of several stretches of an asset, as long logs have."""
    from pipelines.spark_job import planned_by

    return planned_by(*args[:3], 700)


def assert_same_scores(one: Path, two: Path) -> None:
    wanted, found = (pq.read_table(p).to_pandas() for p in (one, two))
    wanted = wanted.sort_values(["asset", "time"], kind="stable").reset_index(drop=True)
    for name in ("asset", "time", "outcome", "reason"):
        assert (found[name].to_numpy() == wanted[name].to_numpy()).all(), name
    assert "no_model" in set(found["reason"])
    assert found["reason"].str.startswith("model_refused: ").any()
    for name in ("anomaly_score", "threshold"):
        values = (f[name].to_numpy(np.float64) for f in (found, wanted))
        np.testing.assert_allclose(*values, **CLOSE, equal_nan=True)

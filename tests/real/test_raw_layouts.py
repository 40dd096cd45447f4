"""Logs as their publishers wrote them: `;` separated CSV, fault codes in Parquet, one line a value, no label at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly.config import Settings
from anomaly.data.contract import NORMAL, UNKNOWN
from anomaly.data.store import WindowStore
from anomaly.data.synthetic import SyntheticPlant, generate, write_long_form
from pipelines.ingest import ingest
from pipelines.train import Trained, train
from registry.bundle import load_bundle

pytestmark = pytest.mark.slow


def trained(paths: list[Path], out: Path, lead: str = "0s", **log: Any) -> tuple[Trained, Settings]:
    """`anomaly train PATHS --… --lead LEAD --epochs 1 --out OUT`."""
    settings = Settings().changed(log=log, window={"lead": lead}, training={"epochs": 1})
    return train(paths, settings, out), settings


def check_fitted_rows(paths: list[Path], settings: Settings, bundle: Path, folder: Path) -> dict[int, int]:
    """Every row that scaler or encoder was fitted on is labelled normal, is no lead, and lies in the train part; gives
    the log's label counts. The store is made anew: training removes its own."""
    audits = load_bundle(bundle).audits
    assert sorted(audits) == ["encoder", "scaler"] and all(audit.rows > 0 for audit in audits.values())
    made = ingest(paths, settings, folder / "store.h5")
    with WindowStore.open(made.store) as store:
        for asset in store.assets:
            kind = store.rows(asset, 0, store.n_rows(asset)).kind
            start, stop = store.part_rows(asset, "train")
            for audit in audits.values():
                fitted = [np.arange(a, b) for a, b in audit.intervals(asset)]
                rows = np.concatenate([np.empty(0, int), *fitted])
                assert (kind[rows] == NORMAL).all()
                assert ((rows >= start) & (rows < stop)).all()
        assert {a for audit in audits.values() for a in audit.assets} <= set(store.assets)
    return made.label_counts


@pytest.mark.realdata
def test_skab_as_published(shared_data: Path, real_home: Path, tmp_path: Path) -> None:
    """Semicolons, an irregular clock, and a file without the label column."""
    paths = sorted((shared_data / "raw" / "skab").glob("*.csv"))
    done, settings = trained(paths, tmp_path / "m", lead="20s", label="anomaly")
    said = "\n".join(done.notices)
    assert "semicolon (inferred)" in said and "time column datetime (inferred)" in said
    assert "no label column anomaly in anomaly-free.csv: these rows are unknown, not normal" in said
    assert done.evaluation["events"] > 0 and done.evaluation["positives"] > 0
    counts = check_fitted_rows(paths, settings, tmp_path / "m", tmp_path)
    assert counts[UNKNOWN] == sum(1 for _ in (shared_data / "raw/skab/anomaly-free.csv").open()) - 1
    assert load_bundle(tmp_path / "m").contract.tags == (
        "Accelerometer1RMS", "Accelerometer2RMS", "Current", "Pressure", "Temperature", "Thermocouple", "Voltage",
        "Volume Flow RateRMS",
    )  # fmt: skip


@pytest.mark.realdata
@pytest.mark.parametrize("pattern", [None, r"(WELL-\d+)"])
def test_3w_as_published(pattern: str | None, shared_data: Path, real_home: Path, tmp_path: Path) -> None:
    """Fault codes as label (0 normal, k fault, 100+k transient, missing unknown), one file an instance."""
    paths = sorted((shared_data / "raw" / "3w").glob("*.parquet"))
    done, settings = trained(paths, tmp_path / "m", label="class", asset_from_name=pattern)
    assert "label class holds fault codes" in "\n".join(done.notices)
    counts = check_fitted_rows(paths, settings, tmp_path / "m", tmp_path)
    assert counts == label_counts_of(paths)
    wells = {"WELL-00001", "WELL-00002", "WELL-00011"} if pattern else {"plant"}
    assert set(load_bundle(tmp_path / "m").seen) == wells
    silent = [n for n in done.evaluation["notes"] if n.startswith("why rows could not be scored")]
    assert not pattern or "missing: " in silent[0], "a tag that the other wells have is empty in one"


def label_counts_of(paths: list[Path]) -> dict[int, int]:
    """Unknown, normal and event rows by the `class` column, read without our readers."""
    import pandas as pd

    code = pd.concat([pd.read_parquet(p, columns=["class"]) for p in paths])["class"].to_numpy(dtype=float)
    missing = np.isnan(code)
    return {-1: int(missing.sum()), 0: int((code == 0).sum()), 1: int((~missing & (code != 0)).sum())}


@pytest.mark.realdata
def test_nab_as_published(shared_data: Path, real_home: Path, tmp_path: Path) -> None:
    """One sensor, no label, a hole of 174 hours."""
    paths = sorted((shared_data / "raw" / "nab").glob("*.csv"))
    done, settings = trained(paths, tmp_path / "m")
    assert "no label column: every row is taken as normal" in done.notices
    assert done.threshold.rule == "budget" and done.threshold.fallback
    counts = check_fitted_rows(paths, settings, tmp_path / "m", tmp_path)
    assert counts == {-1: 0, 0: 7267, 1: 0}


def test_long_form_with_quality_codes(real_home: Path, tmp_path: Path) -> None:
    """One line a value: asset, tag, time, value, quality; the label comes as a tag."""
    made, path = generate(SyntheticPlant(rows=4000)), tmp_path / "long.csv"
    write_long_form(made.frame, path)
    done, settings = trained([path], tmp_path / "m", lead="8min", label="label")
    said = "\n".join(done.notices)
    assert "long form" in said and "values of bad quality are taken as missing" in said
    counts = check_fitted_rows([path], settings, tmp_path / "m", tmp_path)
    assert counts == {-1: 0, 0: 4000 - len(made.events), 1: len(made.events)}
    assert set(load_bundle(tmp_path / "m").contract.tags) == set(made.tags)

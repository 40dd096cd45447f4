"""Reasons: who a score came from, what that sensor did, and that planted single-sensor faults are named (METHODS S7, S55)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomaly.config import Settings
from anomaly.data.scaling import RowPreparer
from anomaly.data.store import WindowStore
from anomaly.data.synthetic import SyntheticPlant, write_synthetic
from anomaly.detectors import DETECTORS, build_detector
from anomaly.ensemble import Ensemble
from anomaly.fitting import PreparedWindows, Repeated, fit_model
from anomaly.model import AnomalyModel
from anomaly.scores.explain import tag_reasons
from pipelines.ingest import ingest

FAULTS = 240
#: A labelled head scores what it was taught, not single sensors; it has tests of its own.
NAMED = [name for name in DETECTORS if name not in ("head", "labelled")]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnomalyModel, PreparedWindows, WindowStore]:
    folder: Path = tmp_path_factory.mktemp("plant")
    write_synthetic(SyntheticPlant(rows=5000, drift=0, missing_share=0, event_share=0.001), folder / "log.parquet")
    settings = Settings().changed(
        log={"label": "label"},
        window={"lookback": 8},
        training={"epochs": 12},
        threshold={"rule": "fixed", "value": 3.0},
    )
    ingest([folder / "log.parquet"], settings, folder / "store.h5")
    store = WindowStore.open(folder / "store.h5")
    model = fit_model(store, settings, folder / "work").model
    windows = PreparedWindows(store, model.preparer, model.vocabulary, settings.training)
    return model, windows, store


def faulty(windows: np.ndarray, tags: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal windows, the same with one sensor off by eight deviations in the last four rows, and which sensor that is."""
    rng = np.random.default_rng(seed)
    clean = windows[rng.choice(len(windows), FAULTS, replace=False)]
    chosen = clean.copy()
    sensor = rng.integers(0, tags, FAULTS)
    off = 8 * rng.choice([-1, 1], FAULTS)[:, None]
    # Levels, and where they stand beside them, departures from the rows before.
    beside = (windows.shape[2] - tags + sensor,) if windows.shape[2] >= 2 * tags else ()
    for channel in (sensor, *beside):
        chosen[np.arange(FAULTS), -4:, channel] += off
    return clean, chosen, sensor


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMED, "fused"])
def test_s55_a_planted_single_sensor_fault_is_among_the_first_three_tags(plant, name):
    model, windows, _ = plant
    names = ("reconstruction", "knn") if name == "fused" else (name,)
    asked = replace(model, ensemble=Ensemble([build_detector(n) for n in names]))
    trail = asked.ensemble.trail
    asked.ensemble.fit(Repeated(lambda: (asked.encode(b.windows) for b in windows.training(0, trail))))
    asked.ensemble.calibrate(asked.encode(b.values) for b in windows.blocks("validation", trail))
    later = np.concatenate([block.values for block in windows.blocks("test", trail)])
    clean, broken, sensor = faulty(later, len(model.contract.tags))
    _, shares, alone = asked.window_scores(broken)
    before = asked.window_scores(clean)[2]
    # Where the window was unusual before, the fault is not what its score came from.
    seen = (alone >= 1).any(axis=1) & (before < 1).all(axis=1)
    assert seen.sum() >= 30, "embeddings smooth single sensors away; what is found must be enough to judge reasons by"
    first = np.argsort(-shares[seen], axis=1)[:, :3]
    assert (first == sensor[seen][:, None]).any(axis=1).mean() >= 0.9


def test_a_reason_says_direction_range_and_value_in_the_sensors_own_unit(plant):
    model, _, store = plant
    low, high = model.normal_ranges()
    rows = store.rows(store.assets[0], 0, 3000)
    quiet = rows.values[rows.kind == 0]
    inside = ((quiet >= low) & (quiet <= high)).mean(axis=0)
    assert ((inside > 0.95) & (inside < 0.999)).all(), "about 98 of 100 normal rows"
    values = (low + high) / 2
    values[0], values[1] = high[0] + 1, low[1] - 1
    shares = np.zeros(len(values))
    shares[:3] = (5.0, 3.0, 2.0)
    reasons = tag_reasons(shares, values, low, high, model.contract.tags)
    assert [(r.tag, r.direction, r.share) for r in reasons] == [
        (model.contract.tags[0], "high", 0.5),
        (model.contract.tags[1], "low", 0.3),
        (model.contract.tags[2], "pattern", 0.2),
    ]
    assert reasons[0].value == pytest.approx(high[0] + 1, rel=1e-5)
    assert reasons[0].high == pytest.approx(high[0], rel=1e-5)


def test_a_missing_value_is_none_and_a_sensor_without_a_share_is_not_named():
    nothing = np.array([np.nan, 1.0])
    (reason,) = tag_reasons(np.array([2.0, 0.0]), nothing, nothing, nothing, ["a", "b"])
    assert (reason.tag, reason.value, reason.low, reason.direction) == ("a", None, None, "pattern")


@pytest.mark.parametrize("compress", [True, False])
def test_scaled_values_go_back_to_their_own_units(compress):
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(500, 3)) * [1, 100, 0.01] + [5, -3, 0]).astype(np.float32)
    preparer = RowPreparer(compress=compress)
    preparer.partial_fit(rows, np.zeros(rows.shape, np.uint8), np.ones(500, bool), "A", 0).finish()
    far = (rows * np.float32(20)).astype(np.float32)
    np.testing.assert_allclose(preparer.inverse(preparer.transform(far)), far, rtol=2e-4, atol=1e-3)

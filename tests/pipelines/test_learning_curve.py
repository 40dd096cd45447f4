"""``anomaly train --learning-curve``: smaller fits on the newest rows, judged on the same later rows (METHODS S35, S45)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import FLAGS, anomaly, write_log
from small_plant import SMALL, small_frame

from anomaly.data.store import WindowStore
from anomaly.metrics import Figure
from pipelines.ingest import ingest
from pipelines.learning_curve import learning_curve


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curve")
    log = write_log(small_frame(4000), folder / "log.parquet")
    ingest([log], SMALL.changed(log={"label": "label"}), folder / "store.h5")
    return folder / "store.h5"


def test_s35_each_fit_learns_from_more_rows_and_all_are_judged_alike(store_path: Path, tmp_path: Path) -> None:
    whole = Figure("average_precision", 0.5, 0.4, 0.6)
    with WindowStore.open(store_path) as store:
        # Without the labelled head: with it every fit of this plant ranks without a fault, and has no interval.
        settings = SMALL.changed(
            training={"epochs": 2}, threshold={"rule": "fixed", "value": 2.0}, detection={"labelled": False}
        )
        points = learning_curve(store, settings, tmp_path, whole, 9.0)
        n = store.n_part_rows("train")
    assert [p.rows for p in points] == [round(n / 8), round(n / 4), round(n / 2), n]
    assert points[-1].figure is whole
    assert points[-1].seconds == 9.0
    judged = [p.figure for p in points if p.figure is not None]
    assert len(judged) >= 3
    assert all(0 <= f.value <= 1 and f.low is not None and f.low <= f.value <= f.high for f in judged)
    assert len({f.count for f in judged[:-1]}) == 1, "the same rows judge every fit"
    assert all(p.seconds > 0 for p in points)


def test_s35_a_share_too_small_for_a_fit_says_why_and_the_others_stand(store_path: Path, tmp_path: Path) -> None:
    with WindowStore.open(store_path) as store:
        small = store.with_training_share(0.015)
        points = learning_curve(small, SMALL.changed(training={"epochs": 1}), tmp_path, Figure("x", np.nan), 1.0)
    assert points[0].figure is None
    assert "E3302" in points[0].note
    assert points[-2].figure is not None, points[-2].note


def test_s45_the_report_holds_the_curve_with_intervals_and_the_peak_memory(tmp_path: Path) -> None:
    log = write_log(small_frame(1600), tmp_path / "log.csv")
    trained = anomaly("train", log, *FLAGS, "--epochs", "1", "--learning-curve", "--name", "curve", "--json").json
    page = Path(trained["report"]).read_text(encoding="utf-8")
    assert "Learning from fewer rows" in page
    assert "How good the model is by how much it learned from" in page
    assert "peak memory of the run" in page
    assert "embedding width" in page

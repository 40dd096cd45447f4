"""The window behind a peak: which tags and points are kept, in which units, and that it comes with the alert of a scored log."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from command_line import write_log
from small_plant import small_frame

from alerts import tables
from alerts.database import Database
from anomaly.data.quality import QualityProfile
from anomaly.fitting import Fitted
from anomaly.model import chunk_from_frame
from anomaly.stream import Evidence
from pipelines.excerpt import MOST_POINTS, MOST_TAGS, Told, excerpt
from pipelines.score import score


def made_up(tags: int, reconstructs: bool = True) -> Any:
    """A model whose unit is ten times the prepared value and that expects zero everywhere."""
    encoder = SimpleNamespace(can_reconstruct=reconstructs, reconstruct=lambda windows: 0 * windows[..., :tags])
    contract = SimpleNamespace(tags=tuple(f"T{k}" for k in range(tags)), period_us=2_000_000)
    return SimpleNamespace(encoder=encoder, contract=contract, preparer=SimpleNamespace(inverse=lambda z: 10.0 * z))


def ranges(tags: int) -> tuple[Any, Any]:
    return np.full(tags, -1.0), np.full(tags, np.nan)


def test_tags_with_the_largest_share_come_first_in_their_own_unit() -> None:
    window = np.array([[1, 2, 3], [4, 5, 6.123456]], np.float32)
    told = excerpt(made_up(3), window, np.array([0.0, 1.0, 2.0], np.float32), ranges(3))
    assert told["before"] == [2.0, 0.0]
    assert [t["tag"] for t in told["tags"]] == ["T2", "T1"], "a tag without a share is left out"
    assert told["tags"][0] == {"tag": "T2", "actual": [30.0, 61.235], "expected": [0.0, 0.0], "low": -1.0, "high": None}
    blind = excerpt(made_up(3, reconstructs=False), window, np.ones(3, np.float32), ranges(3))
    assert {t["expected"] for t in blind["tags"]} == {None}


@pytest.mark.parametrize(("rows", "tags"), [(1, 1), (MOST_POINTS, 3), (1000, 12)])
def test_it_is_bounded_and_keeps_the_first_and_the_last_row(rows: int, tags: int) -> None:
    window = np.zeros((rows, tags), np.float32)
    window[-1] = 7
    told = excerpt(made_up(tags), window, np.ones(tags, np.float32), ranges(tags))
    assert len(told["before"]) == min(rows, MOST_POINTS) and len(told["tags"]) == min(tags, MOST_TAGS)
    assert told["before"][0] == 2.0 * (rows - 1) and told["before"][-1] == 0.0
    assert all(t["actual"][-1] == 70.0 and len(t["actual"]) == len(told["before"]) for t in told["tags"])


def test_a_row_whose_window_is_not_known_has_reasons_and_no_excerpt() -> None:
    told = Told(made_up(2), ranges(2), np.ones(2, np.float32), Evidence(np.ones(2, np.float32)))
    assert set(json.loads(str(told))) == {"tags", "alike"}


def test_every_alert_of_a_scored_log_comes_with_the_window_that_was_logged(fitted: Fitted, tmp_path: Path) -> None:
    frame = small_frame(1200).drop(columns="label")
    profile = QualityProfile.fit([chunk_from_frame(frame, fitted.model.contract)], fitted.model.contract)
    model = replace(fitted.model, digest="d" * 64, quality=profile.to_dict())
    score([write_log(frame, tmp_path / "log.parquet")], model, "m", tmp_path / "s.parquet", str(tmp_path / "a.db"))
    with Database(tmp_path / "a.db").reading() as connection:
        assert connection is not None
        own = tables.alerts.c
        rows = connection.execute(sa.select(own.peak_us, own.excerpt).where(own.kind == "anomaly")).all()
    assert rows
    times = frame["time"].astype("int64").to_numpy() // (1000 if frame["time"].dt.unit == "ns" else 1)
    for peak_us, text in rows:
        told = json.loads(text)
        at = int(np.searchsorted(times, peak_us))
        assert len(told["before"]) == model.lookback
        for tag in told["tags"]:
            logged = frame[tag["tag"]].to_numpy()[at - model.lookback + 1 : at + 1]
            if not np.isnan(logged).any():
                np.testing.assert_allclose(tag["actual"], logged, rtol=1e-3, atol=1e-3)
            if model.encoder.can_reconstruct:
                assert len(tag["expected"]) == model.lookback

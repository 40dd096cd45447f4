"""Drift at every scoring: told, kept beside the scores, the same however the log is cut."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from command_line import Press, anomaly, write_log
from numpy.typing import NDArray

from anomaly.drift import Drift
from anomaly.model import ANOMALOUS, UNSCORABLE, WARM_UP, ScoredRows
from pipelines.drift_report import DriftSample, drift_path, notices


def rows_of(n: int, start: int = 0, asset: str = "A", outcome: int = 0, reason: str = "") -> ScoredRows:
    """Scored rows whose one prepared tag is their time."""
    time = np.arange(start, start + n, dtype=np.int64)
    nothing, text = np.empty((n, 0), np.float32), np.full(n, reason, dtype=object)
    return ScoredRows(time, np.full(n, asset, dtype=object), np.ones(n, np.float32), np.full(n, outcome, np.int8), text,
                      nothing, time[:, None].astype(np.float32), nothing, np.full(n, None, dtype=object))  # fmt: skip


def test_the_sample_is_the_same_however_the_rows_are_cut_and_ordered() -> None:
    whole, pieces = DriftSample(1, 50), DriftSample(1, 50)
    whole.add(rows_of(1000))
    whole.add(rows_of(1000, asset="B"))
    for start in (700, 0, 350):
        pieces.add(rows_of(350 if start < 700 else 300, start, "B"))
        pieces.add(rows_of(350 if start < 700 else 300, start, "A"))
    again = DriftSample.from_state(*_through_json(pieces))
    for one in (pieces, again):
        order = np.argsort([*one.assets])
        assert one.operating == whole.operating == 2000
        assert one.span == whole.span == (0, 999)
        got = {n: set(one.rows()[0][_of(one, n), 0]) for n in np.array(one.assets)[order]}
        assert got == {n: set(whole.rows()[0][_of(whole, n), 0]) for n in whole.assets}
        assert len(one.rows()[1]) == 50


def _of(sample: DriftSample, name: str) -> NDArray[np.bool_]:
    """Which of the rows are of one asset."""
    return np.sort(sample._kept.asset) == sample.assets.index(name)


def _through_json(sample: DriftSample) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    plain, arrays = sample.to_state()
    return json.loads(json.dumps(plain)), arrays


def test_the_sample_is_fair() -> None:
    """The mean place of the kept rows is that of all rows, within four standard errors; every tenth has its share."""
    sample, n, kept = DriftSample(1, 2000), 100_000, 2000
    for start in range(0, n, 7000):
        sample.add(rows_of(min(7000, n - start), start))
    at = sample.rows()[0][:, 0]
    assert len(at) == kept
    assert (np.diff(at) > 0).all(), "in time order"
    assert abs(at.mean() - n / 2) < 4 * n / math.sqrt(12 * kept)
    share = np.bincount((at // (n // 10)).astype(int), minlength=10) / kept
    assert np.abs(share - 0.1).max() < 4 * math.sqrt(0.1 * 0.9 / kept)


def test_rows_out_of_operation_take_no_part_and_warm_up_has_no_score() -> None:
    sample = DriftSample(1, 50)
    sample.add(rows_of(10, 0, outcome=UNSCORABLE))
    assert (sample.operating, sample.span, len(sample.rows()[0])) == (0, None, 0)
    sample.add(rows_of(10, 10, reason=WARM_UP))
    sample.add(rows_of(10, 20, outcome=ANOMALOUS))
    prepared, score = sample.rows()
    assert prepared[:, 0].tolist() == list(range(10, 30))
    assert np.isnan(score).tolist() == [True] * 10 + [False] * 10


def test_only_sure_drifts_are_told_and_many_sensors_are_counted() -> None:
    found = [Drift("input", f"t{i}", float(i), None, None, "drift", f"t{i} moved") for i in range(8)]
    found += [
        Drift("score", "", 1.0, None, None, "no drift", "calm"),
        Drift("level", "", 1.0, None, None, "drift", "up"),
    ]
    said = notices(found)
    assert said[0] == "drift of input: t7 moved"
    assert said[5:] == ("drift of input: 3 more sensors", "drift of level: up")
    assert len(said) == 7


def test_scoring_tells_the_sensor_that_drifted_and_no_other(press: Press, home: Path, tmp_path: Path) -> None:
    """The plant as it was is calm in its inputs; with an offset on one sensor, that sensor is named."""
    frame, told = press.frame.drop(columns="label"), {}
    for name, offset in (("same", 0.0), ("moved", 12.0)):
        changed = frame.assign(tag4=frame["tag4"] + np.float32(offset))
        out = tmp_path / f"{name}.parquet"
        log = write_log(changed, tmp_path / f"{name}.csv")
        done = anomaly("score", log, "--model", press.bundle, "--out", out, "--no-alerts", "--json").json
        kept = json.loads(drift_path(out).read_text())
        assert kept["drifts"] == done["drifts"]
        assert kept["rows_in_operation"] == done["rows"] - done["outcomes"]["unscorable"]
        assert set(kept["notices"]) <= set(done["notices"])
        told[name] = {d["tag"]: d["verdict"] for d in done["drifts"] if d["kind"] == "input"}
        if name == "moved":
            assert any("tag4" in notice for notice in done["notices"])
            assert {d["kind"] for d in done["drifts"]} == {"input", "level", "relations", "score", "alert rate"}
    assert "drift" not in told["same"].values()
    assert {tag for tag, verdict in told["moved"].items() if verdict == "drift"} == {"tag4"}


def test_a_log_too_short_to_tell_is_said_to_be(press: Press, home: Path, tmp_path: Path) -> None:
    log = write_log(press.frame[:15], tmp_path / "a.csv")
    done = anomaly("score", log, "--model", press.bundle, "--out", tmp_path / "s.parquet", "--no-alerts", "--json").json
    assert {d["verdict"] for d in done["drifts"] if d["kind"] == "input"} == {"too few to tell"}
    assert not [n for n in done["notices"] if n.startswith("drift of input")]


def test_the_sample_stays_bounded() -> None:
    sample = DriftSample(1, 500)
    for start in range(0, 400_000, 50_000):
        sample.add(rows_of(50_000, start))
        assert len(sample.rows()[0]) <= 500
    assert sample.operating == 400_000

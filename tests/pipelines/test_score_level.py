"""`anomaly feedback level`: score files in, a threshold that follows their level out; nothing is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import anomaly


def score_file(path: Path, scores: np.ndarray, threshold: float = 3.0, start: str = "2026-05-01") -> Path:
    time = pd.date_range(start, periods=len(scores), freq="min", tz="UTC")
    frame = pd.DataFrame({"time": time, "asset": "pump", "anomaly_score": scores.astype(np.float32)})
    frame.assign(threshold=np.float32(threshold), outcome="normal").to_parquet(path)
    return path


def calibrated(rows: int, seed: int = 0) -> np.ndarray:
    return -np.log10(1 - np.random.default_rng(seed).random(rows))


def test_a_level_that_has_risen_is_followed_over_several_files(home: Path, tmp_path: Path) -> None:
    moved = 0.4 + 1.5 * calibrated(6000)
    one = score_file(tmp_path / "a.parquet", moved[:3000])
    other = score_file(tmp_path / "b.parquet", moved[3000:], start="2026-05-03 02:00")
    told = anomaly("feedback", "level", one, other, "--json").json
    assert told["needed"]
    assert told["proposed"] == pytest.approx(0.4 + 1.5 * 3, abs=0.4)
    assert told["after"] < told["before"]
    assert told["rows"] == 6000
    said = anomaly("feedback", "level", one, other)
    assert "the score level has risen" in said.out
    assert "anomaly feedback apply --value" in said.out


def test_a_level_that_stayed_asks_for_nothing_and_a_row_twice_counts_once(home: Path, tmp_path: Path) -> None:
    path = score_file(tmp_path / "a.parquet", calibrated(6000))
    told = anomaly("feedback", "level", path, path, "--json").json
    assert (told["needed"], told["rows"]) == (False, 6000)


@pytest.mark.parametrize("rows", [10, 399])
def test_too_few_rows_are_a_usage_error(home: Path, tmp_path: Path, rows: int) -> None:
    done = anomaly("feedback", "level", score_file(tmp_path / "a.parquet", calibrated(rows)))
    assert done.status == 2
    assert "400 scored rows" in done.err


def test_files_of_two_thresholds_and_files_that_are_no_scores_are_refused(home: Path, tmp_path: Path) -> None:
    one = score_file(tmp_path / "a.parquet", calibrated(500))
    other = score_file(tmp_path / "b.parquet", calibrated(500), threshold=2.0, start="2026-06-01")
    done = anomaly("feedback", "level", one, other)
    assert (done.status, done.err[:5]) == (2, "E2001")
    pd.DataFrame({"x": [1.0]}).to_parquet(tmp_path / "log.parquet")
    done = anomaly("feedback", "level", tmp_path / "log.parquet")
    assert (done.status, done.err[:5]) == (3, "E3101")
    done = anomaly("feedback", "level", tmp_path / "none.parquet")
    assert (done.status, done.err[:5]) == (3, "E3001")

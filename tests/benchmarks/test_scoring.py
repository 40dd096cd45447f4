"""The benchmark of scoring: what its table says, the log it makes, and that it runs at a small size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks is no installed package

from benchmarks import scoring
from benchmarks.scoring import Runs, Taken, generated, goal_lines, write_log

ROOT = Path(__file__).resolve().parents[2]


def runs(score: float, alerts: float, large: float) -> Runs:
    """Three rounds at 100 rows, the bare call taking a second, one of 1000 rows; seconds of the rest, MB at the larger."""
    facts = {"engine": "graph", "detectors": "knn", "alerts": 2}
    works = {"bare": 1.0, "score": score, "alerts": alerts}
    made = {(name, 100): [Taken(100, 1.0, work, 2 * work, 200.0, facts)] * 3 for name, work in works.items()}
    return made | {("alerts", 1000): [Taken(1000, 1.0, 10.0, 20.0, large, facts)]}


@pytest.mark.parametrize(
    ("score", "alerts", "large", "told"),
    [
        (1.2, 1.4, 205, ["holds", "holds", "holds"]),
        (1.4, 1.5, 209, ["holds", "MISSED", "holds"]),
        (1.5, 1.6, 215, ["MISSED", "MISSED", "MISSED"]),
    ],
)
def test_verdicts(score: float, alerts: float, large: float, told: list[str]) -> None:
    lines = list(goal_lines(runs(score, alerts, large)))[2:]
    assert [line.split(" | ")[-1].rstrip(" |") for line in lines] == told
    assert f"{100 / score:,.0f} against 100 rows/s" in lines[0] and f"200 and {large} MB" in lines[2]


def test_one_size_says_nothing_about_growth() -> None:
    assert len(list(goal_lines({k: v for k, v in runs(1, 1, 1).items() if k[1] == 100}))) == 4


def test_the_log_has_a_fault_each_so_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_BLOCK", 700)
    table = pq.read_table(write_log(tmp_path / "log.parquet", 2000, every=500))
    assert table.num_rows == 2000 and len(table.column_names) == 26
    assert np.flatnonzero(table["label"]).tolist() == [k + d for k in (0, 500, 1000, 1500) for d in (497, 498, 499)]
    step = np.diff(table["time"].cast("int64").to_numpy())
    assert (step == 10_000_000).all()
    first = generated(0, 700, 500)["tag3"]
    assert table["tag3"][:700].to_pylist() == first.to_pylist()


@pytest.mark.bench
def test_it_runs_at_a_small_size(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/scoring.py", "--rows", "3000", "6000", "--rounds", "1", "--train-rows", "4000",
               "--epochs", "2", "--write", str(tmp_path / "told.md")]  # fmt: skip
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "told.md").read_text(encoding="utf-8")
    assert (
        told.count("\n| alerts |") == 2 and "peak memory at 3,000 and 6,000 rows" in told and "| bare | 3,000 |" in told
    )

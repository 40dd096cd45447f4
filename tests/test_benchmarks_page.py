"""The benchmark of the page: what its table says, and that it runs as a process at a small size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.page import KINDS, Taken, _table, _weight

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("slowest", "alerts", "verdict"),
    [(140.0, 100_000, "holds"), (160.0, 100_000, "MISSED"), (490.0, 1_000_000, "holds"), (510.0, 1_000_000, "MISSED")],
)
def test_the_goal_is_that_of_the_size_and_the_verdict_that_of_the_99th_percentile(
    slowest: float, alerts: int, verdict: str
) -> None:
    taken = Taken({kind: [1.0] * 90 + [slowest] * 10 for kind in KINDS})
    rows = list(_table(alerts, 0.0, taken, 4.0, 0.03))
    assert all(row.endswith(f"| {slowest:.0f} ms | {verdict} |") for row in rows[: len(KINDS)])
    assert rows[len(KINDS)].endswith("| 0 | 0 | holds |") and rows[-2].endswith("| 10.0 ms | – |")
    assert rows[-1].endswith("| 3% | – |")


def test_users_who_pause_are_shown_and_not_judged() -> None:
    rows = list(_table(100_000, 1.0, Taken({kind: [900.0] for kind in KINDS}), 4.0, 0.0))
    assert all("1 s pause" in row for row in rows)
    assert all(row.endswith("| – | 900 ms | – |") for row in rows[: len(KINDS)])


def test_one_fault_and_a_heavy_page_miss_their_goals() -> None:
    taken = Taken({kind: [1.0] for kind in KINDS}, ["list: / gave 500"])
    rows = list(_table(100_000, 1.0, taken, 1.0, 0.0))
    assert rows[-3].endswith("| 0 | 1 | MISSED |")
    assert _weight(100_000, 250.0).endswith("| 250 kB | MISSED |") and _weight(100_000, 249.0).endswith("| holds |")


@pytest.mark.bench
def test_it_runs_at_a_small_size_without_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/page.py", "--alerts", "400", "--users", "3", "--seconds", "3", "--think", "0.1",
               "--port", "8797", "--write", str(tmp_path / "told.md")]  # fmt: skip
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "told.md").read_text(encoding="utf-8")
    assert "| 0 | 0 | holds |" in told and all(f"{kind}: p99 of" in told for kind in KINDS)

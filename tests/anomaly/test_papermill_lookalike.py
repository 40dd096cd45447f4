"""The look-alike of the sheet-break log has the columns and the traits of the public one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks is no installed package

from benchmarks.papermill_lookalike import lookalike, write_lookalike

SENSORS = [f"x{i}" for i in range(1, 62)]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return lookalike()


def test_columns_and_size(frame: pd.DataFrame) -> None:
    assert list(frame.columns) == ["time", "y", *SENSORS]
    assert len(frame) == 18_000 and not frame.isna().any().any()


def test_about_124_breaks_of_one_row(frame: pd.DataFrame) -> None:
    y = frame["y"].to_numpy()
    assert y.sum() == 124 and set(y) == {0, 1}
    assert not (y[1:] & y[:-1]).any()


def test_two_minute_rows_and_downtime_after_every_break_only(frame: pd.DataFrame) -> None:
    step = frame["time"].diff().dt.total_seconds().to_numpy() / 60
    after = np.flatnonzero(frame["y"]) + 1
    assert (step[after] >= 30).all() and (np.delete(step, [0, *after]) == 2).all()
    assert 25 <= (frame["time"].iloc[-1] - frame["time"].iloc[0]).days <= 35


def test_x28_is_a_grade_and_x61_a_flag(frame: pd.DataFrame) -> None:
    assert 3 <= frame["x28"].nunique() <= 10 and frame["x28"].dtype.kind == "i"
    assert set(frame["x61"]) == {0, 1} and 0.02 < frame["x61"].mean() < 0.4
    assert (frame["x28"].diff() != 0).sum() < 300
    assert frame.drop(columns=["time", "y", "x28", "x61"]).nunique().min() > 10_000


def test_levels_move_from_day_to_day(frame: pd.DataFrame) -> None:
    """A day's first half says where its second half lies: 0 for a log without levels of the day."""
    x = frame[[s for s in SENSORS if s not in ("x28", "x61")]]
    halves = x.groupby([frame["time"].dt.date, frame["time"].dt.hour >= 12]).mean().unstack()
    alike = [halves[s][False].corr(halves[s][True]) for s in x.columns]
    assert np.median(alike) > 0.4


def test_equal_seeds_give_equal_logs() -> None:
    pd.testing.assert_frame_equal(lookalike(2000, seed=5), lookalike(2000, seed=5))
    assert not lookalike(2000, seed=5).equals(lookalike(2000, seed=6))


def nearest(reference: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean squared distance to the five nearest reference rows."""
    squares = (rows**2).sum(1)[:, None] + (reference**2).sum(1) - 2 * rows @ reference.T
    return np.asarray(np.partition(squares, 4, axis=1)[:, :5].mean(axis=1))


def test_a_random_split_of_rows_looks_better_than_a_chronological_one(frame: pd.DataFrame) -> None:
    """5-NN distance to normal rows; label: the two rows before a break (the break's own row is left out)."""
    y = frame["y"].to_numpy()
    lead = np.roll(y, -1) | np.roll(y, -2)
    x = frame[SENSORS].to_numpy()[y == 0]
    x, lead = (x - x.mean(axis=0)) / x.std(axis=0), lead[y == 0]

    def auc(order: NDArray[np.int64]) -> float:
        cut = int(0.8 * len(order))
        train, test = order[:cut], order[cut:]
        reference = x[train[lead[train] == 0]][::2]
        return float(roc_auc_score(lead[test], nearest(reference, x[test])))

    chronological = auc(np.arange(len(x)))
    shuffled = auc(np.random.default_rng(0).permutation(len(x)))
    assert 0.55 < chronological < 0.8, "the precursor is there, and weak"
    assert shuffled > chronological + 0.1


def test_csv_in_iso_times(tmp_path: Path) -> None:
    frame = write_lookalike(tmp_path / "log.csv", 2000)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0].startswith("time,y,x1,x2,") and lines[1].startswith("1999-05-01 00:00:00,0,")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "log.csv", parse_dates=["time"]), frame, check_dtype=False)


def test_csv_in_the_public_files_times(tmp_path: Path) -> None:
    frame = write_lookalike(tmp_path / "log.csv", 2000, us_time=True)
    read = pd.read_csv(tmp_path / "log.csv")
    assert read["time"].iloc[:2].tolist() == ["5/1/99 0:00", "5/1/99 0:02"]
    times = pd.to_datetime(read["time"], format="%m/%d/%y %H:%M")
    assert (times == frame["time"]).all()

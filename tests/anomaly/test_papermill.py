"""The sheet-break benchmark on a small look-alike: two protocols, the same columns, no test row in training."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks is no installed package

from anomaly.data.labels import curve_shift
from anomaly.errors import InputRefused
from benchmarks.papermill import LEAD_ROWS, Outcome, load, main, measure, run
from benchmarks.papermill_lookalike import write_lookalike

#: Dear fixtures are made once, on one worker.
pytestmark = pytest.mark.xdist_group("papermill")

ROWS, BREAKS = 3000, 21
PARTS = ["train", "validation", "test"]


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mill") / "log.csv"
    assert write_lookalike(path, ROWS)["y"].sum() == BREAKS
    return path


@pytest.fixture(scope="module")
def outcomes(csv: Path) -> list[Outcome]:
    return run(csv, None, seed=123, epochs=2)


@pytest.mark.slow
def test_both_protocols_score_every_test_row_by_every_method(outcomes: list[Outcome]) -> None:
    assert [o.title.split()[0] for o in outcomes] == ["random", "chronological"]
    rows = ["random", "row PCA", "5-NN", "dense AE (source)"]
    assert [list(o.scores) for o in outcomes] == [rows, [*rows, "windows (default)"]]
    for o in outcomes:
        assert sorted(o.parts) == sorted(PARTS)
        assert all(len(s) == len(o.parts["test"].row) and np.isfinite(s).all() for s in o.scores.values())


@pytest.mark.slow
def test_s58_published_positives_are_those_of_curve_shift_2(csv: Path, outcomes: list[Outcome]) -> None:
    label, kept = curve_shift(pd.read_csv(csv)["y"].to_numpy(), -2)
    found = np.concatenate([outcomes[0].parts[p].row[outcomes[0].parts[p].positive] for p in PARTS])
    assert LEAD_ROWS == 2 and sorted(found) == kept[label == 1].tolist() and len(found) == 2 * BREAKS


@pytest.mark.slow
def test_published_counts_add_up(outcomes: list[Outcome]) -> None:
    sizes = {name: len(part.row) for name, part in outcomes[0].parts.items()}
    assert sum(sizes.values()) == ROWS - BREAKS, "all rows but the breaks'"
    assert sizes["test"] == pytest.approx(0.2 * ROWS, rel=0.02)
    assert sizes["validation"] == pytest.approx(0.16 * ROWS, rel=0.02)


@pytest.mark.slow
def test_no_row_is_in_two_parts(csv: Path, outcomes: list[Outcome]) -> None:
    breaks = np.flatnonzero(pd.read_csv(csv)["y"])
    for o in outcomes:
        rows = np.concatenate([o.parts[p].row for p in PARTS])
        assert len(np.unique(rows)) == len(rows) and not np.isin(breaks, rows).any()


@pytest.mark.slow
def test_s59_chronological_parts_follow_one_another_and_share_no_break(csv: Path, outcomes: list[Outcome]) -> None:
    train, validation, test = (outcomes[1].parts[p] for p in PARTS)
    assert train.row.max() < validation.row.min() and validation.row.max() < test.row.min()
    breaks = np.flatnonzero(pd.read_csv(csv)["y"])
    ahead = [set(np.searchsorted(breaks, part.row[part.positive])) for part in (train, validation, test)]
    assert all(ahead) and sum(map(len, ahead)) == len(set.union(*ahead))


@pytest.mark.slow
def test_a_chronological_lead_never_crosses_downtime(csv: Path, outcomes: list[Outcome]) -> None:
    frame = pd.read_csv(csv, parse_dates=["time"])
    ahead = frame["time"].where(frame["y"] == 1).bfill() - frame["time"]
    positive = np.concatenate([outcomes[1].parts[p].row[outcomes[1].parts[p].positive] for p in PARTS])
    assert len(positive) > BREAKS
    assert ahead.iloc[positive].max() <= pd.Timedelta(minutes=4)


def test_figures_have_intervals_around_them() -> None:
    rng = np.random.default_rng(0)
    positive = np.zeros(2000, bool)
    positive[50::100] = True
    for name, figure in measure(rng.random(2000) + 0.4 * positive, positive).items():
        assert figure.low is not None and figure.high is not None, name
        assert 0 < figure.low < figure.value < figure.high < 1, name


@pytest.mark.slow
def test_prints_one_table_with_counts_and_the_difference(csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--csv", str(csv), "--epochs", "1"]) == 0
    text = capsys.readouterr().out
    assert text.count("recall at 6.3% false positives") == 3 and text.count("dense AE (source)") == 5
    assert "random rows, as published" in text and "chronological 60/20/20, purged" in text
    assert "random rows minus chronological" in text and "test          596 rows" in text


def test_the_public_files_times_are_read_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Times like 5/1/99 0:00; the 13th and later settle that the month comes first."""
    path = tmp_path / "public.csv"
    frame = write_lookalike(path, 9000, us_time=True)
    _, chunk = load(path, None)
    assert (pd.to_datetime(chunk.time, unit="us") == frame["time"]).all()
    assert "%m/%d/%y %H:%M (inferred" in capsys.readouterr().err


def test_dates_that_may_be_read_two_ways_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "public.csv"
    frame = write_lookalike(path, 2000, us_time=True)
    assert frame["time"].dt.day.max() <= 12
    with pytest.raises(InputRefused) as refused:
        load(path, None)
    assert [f.code for f in refused.value.faults] == ["E3202"]
    assert "--time-format '%m/%d/%y %H:%M'" in refused.value.faults[0].line()
    assert len(load(path, "%m/%d/%y %H:%M")[1]) == 2000


def test_a_wrong_file_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("time,y,x1\n2026-01-01 00:00,0,1\n2026-01-01 00:02,0,2\n")
    assert main(["--csv", str(wrong)]) == 3
    said = capsys.readouterr()
    assert "E3101" in said.err and "x2" in said.err and "Traceback" not in said.err and not said.out
    assert main(["--csv", str(tmp_path / "none.csv")]) == 3

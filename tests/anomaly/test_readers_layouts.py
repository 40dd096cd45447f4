"""Many files, many assets, overlaps, long form and the real logs."""

from __future__ import annotations

import gc
from dataclasses import fields
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from log_reading import joined, us, write
from numpy.testing import assert_array_equal

from anomaly.config import LogSettings
from anomaly.data.contract import EVENT, NORMAL, UNKNOWN, LogChunk
from anomaly.data.readers import open_log
from anomaly.data.reading import sources
from anomaly.errors import InputRefused
from anomaly.files import sha256


def test_assets_from_a_column_keep_the_input_order(tmp_path: Path) -> None:
    text = "time,unit,a\n2026-01-01,B,1\n2026-01-01,A,2\n2026-01-02,B,3\n2026-01-02,A,4\n"
    log = open_log([write(tmp_path / "log.csv", text)], LogSettings(asset="unit"))
    chunk = joined(log)
    assert chunk.asset.tolist() == ["B", "A", "B", "A"]
    assert chunk.values[:, 0].tolist() == [1, 2, 3, 4]
    assert log.contract.asset == "unit"
    assert log.duplicates == 0


def test_assets_from_file_names_are_read_one_after_the_other(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.csv", f"time,a\n2026-01-0{d},{v}\n")
             for n, d, v in (("W2-x", 1, 20), ("W1-late", 3, 11), ("W1-early", 2, 10))]  # fmt: skip
    log = open_log(paths, LogSettings(asset_from_name=r"(W\d)"))
    chunk = joined(log)
    assert list(zip(chunk.asset, chunk.values[:, 0], strict=True)) == [("W1", 10), ("W1", 11), ("W2", 20)]
    assert chunk.row.tolist() == [0, 1, 2]


def test_exact_duplicates_stay_and_are_counted(tmp_path: Path) -> None:
    text = "time,a,b\n2026-01-01,1,\n2026-01-01,1.0,NaN\n2026-01-01,1,null\n2026-01-02,1,2\n"
    log = open_log([write(tmp_path / "log.csv", text)])
    assert (log.rows, log.duplicates, len(joined(log))) == (4, 2, 4)


def test_duplicates_are_seen_across_batches(tmp_path: Path) -> None:
    stamps = pa.array([0, 1, 2, 2, 3, 4], pa.timestamp("s"))
    for last, value in (("same", 2.0), ("other", 9.0)):
        pq.write_table(pa.table({"time": stamps, "a": [0.0, 1, 2, value, 3, 4]}), tmp_path / f"{last}.parquet")
    with mock.patch.object(sources, "BATCH_ROWS", 3):
        assert open_log([tmp_path / "same.parquet"]).duplicates == 1
        with pytest.raises(InputRefused) as refused:
            open_log([tmp_path / "other.parquet"])
    assert [(f.code, f.column, f.row) for f in refused.value.faults] == [("E3206", "a", 4)]


def test_overlapping_files_with_equal_rows_are_read_once(tmp_path: Path) -> None:
    def lines(first: int, last: int) -> str:
        return "".join(f"2026-01-01 00:00:{i:02d},{i},{int(i == 7)}\n" for i in range(first, last))

    a = write(tmp_path / "a.csv", "time,a,y\n" + lines(0, 10))
    b = write(tmp_path / "b.csv", "time,a,y\n" + lines(6, 20))
    c = write(tmp_path / "c.csv", "time,a,y\n" + lines(0, 10))
    log = open_log([b, c, a], LogSettings(label="y"))
    chunk = joined(log)
    assert chunk.values[:, 0].tolist() == list(range(20))
    assert chunk.row.tolist() == list(range(20))
    assert (log.rows, log.duplicates) == (20, 14)
    assert log.label_counts == {UNKNOWN: 0, NORMAL: 19, EVENT: 1}
    assert "14 rows that overlapping files repeat are read once" in log.notices
    whole = open_log([write(tmp_path / "whole.csv", "time,a,y\n" + lines(0, 20))], LogSettings(label="y"))
    for f in fields(LogChunk):
        assert_array_equal(getattr(chunk, f.name), getattr(joined(whole), f.name))


def test_overlaps_of_one_asset_leave_the_others_alone(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", "time,unit,v\n2026-01-01,A,1\n2026-01-02,A,2\n")
    b = write(tmp_path / "b.csv", "time,unit,v\n2026-01-01,B,7\n2026-01-02,A,2\n2026-01-03,A,3\n")
    chunk = joined(open_log([a, b], LogSettings(asset="unit")))
    assert list(zip(chunk.asset, chunk.values[:, 0], strict=True)) == [("A", 1), ("A", 2), ("B", 7), ("A", 3)]


LONG = """tag,asset,time,value,quality
Pressure,P1,2026-01-01 00:00:02,1.2,192
Pressure,P1,2026-01-01 00:00:00,1.0,192
Flow,P1,2026-01-01 00:00:01,5,64
Flow,P1,2026-01-01 00:00:02,6,0
Pressure,P2,2026-01-01 00:00:00,Bad,192
Flow,P2,2026-01-01 00:00:00,7,216
Flow,P2,2026-01-01 00:00:00,7,216
fault,P1,2026-01-01 00:00:02,1,192
"""


def test_long_form_becomes_wide_sorted_by_asset_and_time(tmp_path: Path) -> None:
    path = write(tmp_path / "long.csv", LONG)
    log = open_log([path], LogSettings(label="fault"))
    nan = np.nan
    chunk = joined(log)
    assert log.contract.tags == ("Flow", "Pressure")
    assert (log.contract.form, log.contract.asset, log.contract.time) == ("long", "asset", "time")
    assert chunk.asset.tolist() == ["P1", "P1", "P1", "P2"]
    assert chunk.time.tolist() == [us(f"2026-01-01 00:00:0{s}") for s in (0, 1, 2, 0)]
    assert_array_equal(chunk.values, np.array([[nan, 1], [5, nan], [nan, 1.2], [7, nan]], np.float32))
    assert chunk.bad.tolist() == [[False, False], [False, False], [True, False], [False, True]]
    assert chunk.label.tolist() == [UNKNOWN, UNKNOWN, EVENT, UNKNOWN]
    assert (log.rows, log.duplicates) == (4, 1)
    assert log.files[0].sha256 == sha256(path)
    assert (log.files[0].rows, log.files[0].first_us) == (8, us("2026-01-01"))


def test_long_form_in_bins_never_looks_ahead(tmp_path: Path) -> None:
    text = "tag,time,value\na,2026-01-01 00:00:00,1\na,2026-01-01 00:00:01,2\na,2026-01-01 00:00:09,3\nb,2026-01-01 00:00:10,4\n"
    log = open_log([write(tmp_path / "long.csv", text)], LogSettings(period="10s"))
    chunk = joined(log)
    assert chunk.time.tolist() == [us("2026-01-01"), us("2026-01-01 00:00:10")]
    assert_array_equal(chunk.values, np.array([[1, np.nan], [3, 4]], np.float32))
    assert log.contract.period_us == 10_000_000


def test_long_form_scratch_goes_away_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    log = open_log([write(tmp_path / "long.csv", LONG)])
    assert list(scratch.iterdir())
    del log
    gc.collect()
    assert not list(scratch.iterdir())
    with pytest.raises(InputRefused):
        open_log([write(tmp_path / "bad.csv", LONG.replace("1.0", "x"))])
    assert not list(scratch.iterdir())


def test_long_form_categories_label_column_and_odd_tag_names(tmp_path: Path) -> None:
    text = 'time,Name,Val,broken\n2026-01-01,it\'s "P"; --,1,0\n2026-01-01,Grade,A7,0\n2026-01-02,p$1,2,1\n'
    text = text.replace('it\'s "P"; --', '"it\'s ""P""; --"')
    log = open_log([write(tmp_path / "long.csv", text)], LogSettings(label="broken", categories=("Grade",)))
    assert set(log.contract.tags) == {'it\'s "P"; --', "p$1"}
    chunk = joined(log)
    assert chunk.categories[:, 0].tolist() == ["A7", ""]
    assert chunk.label.tolist() == [NORMAL, EVENT]
    assert log.contract.asset is None


def test_long_form_scored_by_a_model_of_a_wide_log(tmp_path: Path) -> None:
    wide = open_log([write(tmp_path / "w.csv", "time,Flow,Pressure,Level\n2026-01-01,1,2,3\n2026-01-02,1,2,3\n")])
    text = "tag,time,value\nPressure,2026-01-03,2\nFlow,2026-01-03,1\n"
    log = open_log([write(tmp_path / "long.csv", text)], contract=wide.contract)
    assert_array_equal(joined(log).values, np.array([[1, 2, np.nan]], np.float32))
    assert "no sample of tag Level in this log" in log.notices


@pytest.mark.parametrize(
    ("codes", "bad"),
    [
        (("192", "64", "0"), (False, False, True)),
        (("0", "0x40000000", "0x80000000"), (False, False, True)),
        (("0", str(0x40000000), str(0x80350000 - 2**32)), (False, False, True)),
        (("0", "0", "0"), (False, False, False)),
        (("Good", "questionable", "BAD"), (False, False, True)),
    ],
)
def test_quality_codes(codes: tuple[str, ...], bad: tuple[bool, ...], tmp_path: Path) -> None:
    text = "tag,time,value,quality\n" + "".join(f"a,2026-01-0{i + 1},{i},{q}\n" for i, q in enumerate(codes))
    chunk = joined(open_log([write(tmp_path / "long.csv", text)]))
    assert chunk.bad[:, 0].tolist() == list(bad)
    assert_array_equal(chunk.values[:, 0], np.where(bad, np.nan, [0, 1, 2]).astype(np.float32))


def test_a_wide_log_with_a_value_column_is_not_taken_as_long(tmp_path: Path) -> None:
    log = open_log([write(tmp_path / "log.csv", "time,name,value,flow\n2026-01-01,x,1,2\n2026-01-02,x,1,2\n")])
    assert log.contract.form == "wide"
    assert log.contract.tags == ("value", "flow")


@pytest.mark.realdata
def test_real_skab(shared_data: Path) -> None:
    paths = sorted((shared_data / "raw" / "skab").glob("*.csv"))
    log = open_log(paths, LogSettings(label="anomaly"))
    assert len(log.contract.tags) == 8
    assert log.contract.period_us == 1_000_000
    assert log.label_counts[UNKNOWN] == 9405
    assert log.label_counts[EVENT] > 1000
    assert len(joined(log)) == log.rows == sum(f.rows for f in log.files)
    assert "changepoint" in dict(log.contract.left_out)


@pytest.mark.realdata
def test_real_3w(shared_data: Path) -> None:
    paths = sorted((shared_data / "raw" / "3w").glob("*.parquet"))
    log = open_log(paths, LogSettings(label="class", asset_from_name=r"(WELL-\d+)"))
    chunk = joined(log)
    assert set(chunk.asset) == {"WELL-00001", "WELL-00002", "WELL-00011"}
    assert log.label_counts == {UNKNOWN: 271, NORMAL: 74831, EVENT: 41166}
    assert_array_equal(np.bincount(chunk.label + 1), [271, 74831, 41166])
    assert any("fault codes" in n for n in log.notices)
    for asset in set(chunk.asset):
        assert (np.diff(chunk.time[chunk.asset == asset]) > 0).all()


@pytest.mark.realdata
def test_real_panel(shared_data: Path) -> None:
    for folder in sorted((shared_data / "panel").iterdir()):
        if (folder / "train.parquet").is_file():
            declared = LogSettings(time="time", label="label")
            train = open_log([folder / "train.parquet"], declared)
            assert train.rows == pq.read_metadata(folder / "train.parquet").num_rows
            test = open_log([folder / "test.parquet"], declared, train.contract)
            assert sum(len(c) for c in test.chunks()) == test.rows


@pytest.mark.realdata
def test_real_nab_with_its_hole(shared_data: Path) -> None:
    log = open_log([shared_data / "raw" / "nab" / "ambient_temperature_system_failure.csv"])
    assert log.contract.tags == ("value",)
    assert log.contract.period_us == 3600 * 10**6
    assert np.diff(joined(log).time).max() == 174 * 3600 * 10**6

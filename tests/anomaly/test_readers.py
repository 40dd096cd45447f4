"""Good logs: what is inferred, what the chunks hold, how fast."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_reading import joined, us, write
from numpy.testing import assert_array_equal

from anomaly.config import LogSettings
from anomaly.data.contract import EVENT, NORMAL, ONE_ASSET, UNKNOWN, LogChunk
from anomaly.data.readers import PlantLog, open_log
from anomaly.files import sha256


def test_a_plain_log_is_read_without_any_setting(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "time,Pressure,Flow\n2026-01-01 00:00:00,1.5,2\n2026-01-01 00:00:02,-3e1,\n")
    log = open_log([path])
    assert log.contract.time == "time"
    assert log.contract.tags == ("Pressure", "Flow")
    assert log.contract.period_us == 2_000_000
    assert (log.contract.zoned, log.contract.timezone, log.contract.form) == (False, "UTC", "wide")
    assert log.rows == 2
    assert log.label_counts == {UNKNOWN: 0, NORMAL: 2, EVENT: 0}
    assert "no label column: every row is taken as normal" in log.notices
    assert any("carry no zone" in n for n in log.notices)
    assert "period 2 s (inferred)" in log.notices
    chunk = joined(log)
    assert_array_equal(chunk.values, np.array([[1.5, 2], [-30, np.nan]], np.float32))
    assert chunk.time.tolist() == [us("2026-01-01"), us("2026-01-01 00:00:02")]
    assert chunk.asset.tolist() == [ONE_ASSET, ONE_ASSET]
    assert chunk.row.tolist() == [0, 1]
    assert chunk.values.dtype == np.float32
    assert chunk.label.dtype == np.int8
    assert not chunk.bad.any()
    assert chunk.categories.shape == (2, 0)


def test_the_file_is_named_by_its_digest(tmp_path: Path) -> None:
    text = "time,a\n2026-01-01,1\n2026-01-03,2\n"
    log = open_log([write(tmp_path / "log.csv", text)])
    assert log.files[0].sha256 == sha256(tmp_path / "log.csv")
    assert (log.files[0].rows, log.files[0].first_us, log.files[0].last_us) == (2, us("2026-01-01"), us("2026-01-03"))
    same = open_log([write(tmp_path / "other-name.csv", text)])
    assert same.fingerprint == log.fingerprint
    changed = open_log([write(tmp_path / "log.csv", text.replace(",2", ",3"))])
    assert changed.fingerprint != log.fingerprint


@pytest.mark.parametrize("token", ["", "NaN", "nan", "NULL", "null", "NA", "N/A", "n/a", "None", "  "])
def test_missing_tokens_are_nan_and_not_bad(token: str, tmp_path: Path) -> None:
    log = open_log([write(tmp_path / "log.csv", f"time,a\n2026-01-01,1\n2026-01-02,{token}\n2026-01-03,3\n")])
    chunk = joined(log)
    assert_array_equal(chunk.values[:, 0], np.array([1, np.nan, 3], np.float32))
    assert not chunk.bad.any()


@pytest.mark.parametrize("token", ["Bad", "Bad Input", "No Data", "I/O Timeout", "Pt Created", "Comm Fail", "Shutdown",
                                   "No Good Data", "Over Range", "Under Range", "Scan Off"])  # fmt: skip
def test_historian_texts_are_nan_and_bad(token: str, tmp_path: Path) -> None:
    log = open_log([write(tmp_path / "log.csv", f"time,a\n2026-01-01,1\n2026-01-02,{token}\n2026-01-03,3\n")])
    chunk = joined(log)
    assert_array_equal(chunk.values[:, 0], np.array([1, np.nan, 3], np.float32))
    assert chunk.bad[:, 0].tolist() == [False, True, False]
    assert "1 values of bad quality are taken as missing" in log.notices


def test_semicolons_and_decimal_commas_are_told(tmp_path: Path) -> None:
    text = "\ufeffZeit;Druck;Menge\r\n01.02.2026 10:00:00;1,5;-2\r\n13.02.2026 10:00:00;2,25e1;3,0\r\n"
    log = open_log([write(tmp_path / "log.csv", text)])
    assert "the separator is a semicolon (inferred)" in log.notices
    assert "the decimal mark is a comma (inferred)" in log.notices
    assert "dates are written with the day first (inferred)" in log.notices
    assert "time column Zeit (inferred)" in log.notices
    chunk = joined(log)
    assert_array_equal(chunk.values, np.array([[1.5, -2], [22.5, 3]], np.float32))
    assert chunk.time.tolist() == [us("2026-02-01 10:00"), us("2026-02-13 10:00")]


@pytest.mark.parametrize("mark", ["\t", "|", ";", ","])
def test_separators(mark: str, tmp_path: Path) -> None:
    text = "time,a,b\n2026-01-01,1.5,2\n2026-01-02,2.5,3\n".replace(",", mark)
    assert_array_equal(joined(open_log([write(tmp_path / "x.csv", text)])).values, [[1.5, 2], [2.5, 3]])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_quotes_and_blank_lines(end: str, tmp_path: Path) -> None:
    text = 'time,"a, in bar",b\n"2026-01-01",1,2\n\n2026-01-02,3,"4"'.replace("\n", end)
    log = open_log([write(tmp_path / "log.csv", text)])
    assert log.contract.tags == ("a, in bar", "b")
    assert_array_equal(joined(log).values, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("cells", "form", "wanted"),
    [
        (("2026-01-01T10:00:00Z", "2026-01-01T12:00:00+01:00"), None, ("2026-01-01 10:00", "2026-01-01 11:00")),
        (("2026-01-01 10:00", "2026-01-01 10:00:00.5"), None, ("2026-01-01 10:00", "2026-01-01 10:00:00.500000")),
        (("2026-01-01 10:00:00.123456789", "2026-01-02"), None, ("2026-01-01 10:00:00.123456", "2026-01-02")),
        (("2026-01-01 10:00:00.123456789+01:30", "2026-01-02 00:00:00Z"), None, ("2026-01-01 08:30:00.123456",
                                                                                "2026-01-02")),
        (('"2026-01-01 10:00:00,5-0100"', "2026-01-02 00:00Z"), None, ("2026-01-01 11:00:00.500000", "2026-01-02")),
        (("2026/01/31 10:00:00", "2026/02/01 10:00:00"), None, ("2026-01-31 10:00", "2026-02-01 10:00")),
        (("1/31/2026 9:30", "2/1/2026 9:30"), None, ("2026-01-31 09:30", "2026-02-01 09:30")),
        (("1767225600", "1767225601.5"), "epoch_s", ("2026-01-01", "2026-01-01 00:00:01.500000")),
        (("1767225600001", "1767225600002"), "epoch_ms", ("2026-01-01 00:00:00.001", "2026-01-01 00:00:00.002")),
        (("1767225600000001", "1767225600000002"), "epoch_us", ("2026-01-01 00:00:00.000001",
                                                                "2026-01-01 00:00:00.000002")),
        (("1767225600000001000", "1767225600000002000"), "epoch_ns", ("2026-01-01 00:00:00.000001",
                                                                      "2026-01-01 00:00:00.000002")),
        (("01/02/2026", "02/02/2026"), "%d/%m/%Y", ("2026-02-01", "2026-02-02")),
        (("Jan 31 26 01:00 PM", "Jan 31 26 02:00 PM"), "%b %d %y %I:%M %p", ("2026-01-31 13:00", "2026-01-31 14:00")),
        (("2026-01-01 10:00 +0100", "2026-01-01 10:00 +0000"), "%Y-%m-%d %H:%M %z", ("2026-01-01 09:00",
                                                                                     "2026-01-01 10:00")),
    ],
)  # fmt: skip
def test_times_as_written(cells: tuple[str, str], form: str | None, wanted: tuple[str, str], tmp_path: Path) -> None:
    log = open_log(
        [write(tmp_path / "log.csv", f"time,a\n{cells[0]},1\n{cells[1]},2\n")], LogSettings(time_format=form)
    )
    assert joined(log).time.tolist() == [us(w) for w in wanted]


@pytest.mark.parametrize(
    "kind", [pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("ns", "UTC"),
             pa.timestamp("us", "Asia/Tokyo"), pa.string(), pa.dictionary(pa.int32(), pa.string())], ids=str,
)  # fmt: skip
def test_parquet_times(kind: pa.DataType, tmp_path: Path) -> None:
    if pa.types.is_timestamp(kind):
        days = [datetime(2026, 1, d, tzinfo=UTC if kind.tz else None) for d in (1, 2)]
        column = pa.array(days, kind)
    else:
        column = pa.array(["2026-01-01", "2026-01-02"]).cast(kind)
    pq.write_table(pa.table({"t": column, "a": [1, 2]}), tmp_path / "log.parquet")
    log = open_log([tmp_path / "log.parquet"])
    assert log.contract.time == "t"
    assert log.contract.zoned == (getattr(kind, "tz", None) is not None)
    assert joined(log).time.tolist() == [us("2026-01-01"), us("2026-01-02")]


def test_a_local_zone_is_read_with_its_summer_time(tmp_path: Path) -> None:
    text = "time,a\n2026-03-29 01:30:00,1\n2026-03-29 03:30:00,2\n2026-07-01 12:00:00,3\n"
    log = open_log([write(tmp_path / "log.csv", text)], LogSettings(timezone="Europe/Berlin"))
    wanted = ["2026-03-29 01:30+01:00", "2026-03-29 03:30+02:00", "2026-07-01 12:00+02:00"]
    assert joined(log).time.tolist() == [us(w) for w in wanted]
    assert log.contract.timezone == "Europe/Berlin"


def test_parquet_types_and_a_pandas_index(tmp_path: Path) -> None:
    index = pd.date_range("2026-01-01", periods=30, freq="1min")
    frame = pd.DataFrame({
        "i": np.arange(30), "f": np.arange(30, dtype=np.float32), "b": np.arange(30) % 2 == 0,
        "d": pa.array([str(i) for i in range(30)]).cast(pa.decimal128(10, 2)).to_pylist(),
        "text": ["1.5"] * 30, "grade": pd.Categorical(["A", "B", "C"] * 10), "list": [[1]] * 30,
        "other": index, "none": [None] * 30,
    }, index=index)  # fmt: skip
    frame.to_parquet(tmp_path / "log.parquet")
    log = open_log([tmp_path / "log.parquet"])
    assert log.contract.time == "__index_level_0__"
    assert log.contract.tags == ("i", "f", "b", "d", "text")
    assert log.contract.categories == ("grade",)
    assert dict(log.contract.left_out) == {
        "list": "holds neither numbers nor text", "other": "holds times", "none": "no value in any row",
    }  # fmt: skip
    chunk = joined(log)
    assert_array_equal(chunk.values[3], np.array([3, 3, 0, 3, 1.5], np.float32))
    assert chunk.categories[:3, 0].tolist() == ["A", "B", "C"]


def test_boolean_text_is_a_tag(tmp_path: Path) -> None:
    log = open_log([write(tmp_path / "log.csv", "time,run\n2026-01-01,true\n2026-01-02,False\n2026-01-03,\n")])
    assert_array_equal(joined(log).values[:, 0], np.array([1, 0, np.nan], np.float32))


def test_text_columns_become_categories_or_are_left_out(tmp_path: Path) -> None:
    lines = "".join(
        f"2026-01-01 00:{i // 60:02d}:{i % 60:02d},{i},{'AB'[i % 2]},note {i},{i % 3}.0\n" for i in range(120)
    )
    path = write(tmp_path / "log.csv", "time,a,state,remark,grade\n" + lines)
    log = open_log([path], LogSettings(categories=("grade",)))
    assert log.contract.categories == ("grade", "state")
    assert log.contract.tags == ("a",)
    assert [c for c, _ in log.contract.left_out] == ["remark"]
    assert "text column state is kept as a category (2 values)" in log.notices
    assert joined(log).categories[:3].tolist() == [["0", "A"], ["1", "B"], ["2", "A"]]


def test_label_like_and_empty_columns_are_left_out_unless_declared(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "time,a,Class,empty\n2026-01-01,1,0,\n2026-01-02,2,1,\n")
    log = open_log([path])
    assert log.contract.tags == ("a",)
    assert [c for c, _ in log.contract.left_out] == ["Class", "empty"]
    assert any("looks like a label" in n for n in log.notices)
    assert open_log([path], LogSettings(tags=("Class", "a"))).contract.tags == ("Class", "a")
    assert open_log([path], LogSettings(drop=("Class",))).contract.tags == ("a",)


def test_labels_binary_missing_and_fault_codes(tmp_path: Path) -> None:
    declared = LogSettings(label="y")
    path = write(tmp_path / "log.csv", "time,a,y\n2026-01-01,1,0\n2026-01-02,1,1.0\n2026-01-03,1,\n2026-01-04,1,true\n")
    log = open_log([path], declared)
    assert joined(log).label.tolist() == [NORMAL, EVENT, UNKNOWN, EVENT]
    assert log.label_counts == {UNKNOWN: 1, NORMAL: 1, EVENT: 2}
    codes = write(
        tmp_path / "codes.csv", "time,a,y\n2026-01-01,1,0\n2026-01-02,1,105\n2026-01-03,1,5\n2026-01-04,1,NaN\n"
    )
    log = open_log([codes], declared)
    assert joined(log).label.tolist() == [NORMAL, EVENT, EVENT, UNKNOWN]
    assert any("fault codes" in n for n in log.notices)
    steady = write(tmp_path / "steady.csv", "time,a,y\n2026-01-01,1,0\n2026-01-02,1,4\n")
    assert joined(open_log([steady], replace(declared, label_scheme="fault-code"))).label.tolist() == [NORMAL, EVENT]
    # a model trained on fault codes scores a log in which no transient happens to occur
    assert joined(open_log([steady], declared, open_log([codes], declared).contract)).label.tolist() == [NORMAL, EVENT]


def test_files_without_the_label_are_unknown_unless_declared_normal(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", "time,a,y\n2026-01-01,1,0\n2026-01-02,1,1\n")
    b = write(tmp_path / "b.csv", "time,a\n2026-01-03,1\n2026-01-04,1\n")
    log = open_log([b, a], LogSettings(label="y"))
    assert [f.path.name for f in log.files] == ["a.csv", "b.csv"]
    assert joined(log).label.tolist() == [NORMAL, EVENT, UNKNOWN, UNKNOWN]
    assert "no label column y in b.csv: these rows are unknown, not normal" in "\n".join(log.notices)
    normal = open_log([b, a], LogSettings(label="y", unlabelled="normal"))
    assert joined(normal).label.tolist() == [NORMAL, EVENT, NORMAL, NORMAL]
    assert normal.label_counts == {UNKNOWN: 0, NORMAL: 3, EVENT: 1}


def test_scoring_follows_the_contract_whatever_the_order(tmp_path: Path) -> None:
    train = open_log([write(tmp_path / "a.csv", "time,p,q,label,note\n2026-01-01,1,2,0,\n2026-01-02,3,4,1,\n")],
                     LogSettings(label="label"))  # fmt: skip
    path = write(tmp_path / "b.csv", "q,time,p\n20,2026-02-01,10\n,2026-02-02,\n")
    log = open_log([path], LogSettings(label="label"), train.contract)
    assert log.contract == train.contract
    assert_array_equal(joined(log).values, np.array([[10, 20], [np.nan, np.nan]], np.float32))
    assert joined(log).label.tolist() == [UNKNOWN, UNKNOWN]
    assert log.label_counts == {UNKNOWN: 2, NORMAL: 0, EVENT: 0}


def test_scoring_takes_a_tag_without_any_value(tmp_path: Path) -> None:
    train = open_log([write(tmp_path / "a.csv", "time,p,q\n2026-01-01,1,2\n2026-01-02,3,4\n")])
    log = open_log([write(tmp_path / "b.csv", "time,p,q\n2026-02-01,1,\n")], contract=train.contract)
    assert np.isnan(joined(log).values[:, 1]).all()


def frame(n: int, columns: int = 2, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(size=(n, columns)).astype(np.float32)
    data = pd.DataFrame(values, columns=[f"s{i}" for i in range(columns)])
    data.insert(0, "time", pd.date_range("2026-01-01", periods=n, freq="1s"))
    data["label"] = (np.arange(n) % 97 == 0).astype(np.int8)
    return data


@pytest.fixture(scope="module")
def two_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlantLog, LogChunk]:
    folder = tmp_path_factory.mktemp("two")
    data = frame(500)
    data.iloc[:300].to_csv(folder / "a.csv", index=False)
    data.iloc[290:].to_parquet(folder / "b.parquet")
    log = open_log([folder / "a.csv", folder / "b.parquet"], LogSettings(label="label"))
    return log, joined(log)


@given(rows=st.integers(1, 700))
@settings(max_examples=25, deadline=None)
def test_chunks_hold_the_same_rows_whatever_their_size(two_files: tuple[PlantLog, LogChunk], rows: int) -> None:
    log, whole = two_files
    sizes = [len(c) for c in log.chunks(rows)]
    assert sizes[:-1] == [rows] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= rows
    for f in fields(LogChunk):
        assert_array_equal(getattr(joined(log, rows), f.name), getattr(whole, f.name))


def test_csv_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    data = frame(150_000)
    data.to_csv(tmp_path / "log.csv", index=False)
    data.to_parquet(tmp_path / "log.parquet", row_group_size=40_000)
    declared = LogSettings(label="label")
    text, typed = open_log([tmp_path / "log.csv"], declared), open_log([tmp_path / "log.parquet"], declared)
    assert len(list(text.chunks())) == 3
    assert text.contract == typed.contract
    assert text.label_counts == typed.label_counts
    a, b = joined(text), joined(typed)
    for f in fields(LogChunk):
        assert_array_equal(getattr(a, f.name), getattr(b, f.name))
    assert_array_equal(b.values, data[["s0", "s1"]].to_numpy())


@pytest.mark.slow
def test_speed(tmp_path: Path) -> None:
    """Goals: 300k rows a second from Parquet, 50k from CSV, ten float columns, check and chunks together."""
    data = frame(300_000, 10)
    data.to_parquet(tmp_path / "log.parquet")
    data.iloc[:100_000].to_csv(tmp_path / "log.csv", index=False)
    for name, rows, goal in (("log.parquet", 300_000, 300_000), ("log.csv", 100_000, 50_000)):
        start = perf_counter()
        assert sum(len(c) for c in open_log([tmp_path / name]).chunks()) == rows
        # half the goal: other work may share the machine
        assert rows / (perf_counter() - start) > goal / 2


def test_chunks_of_no_rows_are_refused(tmp_path: Path) -> None:
    log = open_log([write(tmp_path / "log.csv", "time,a\n2026-01-01,1\n")])
    assert "period 1 s (assumed: there is no step in time)" in log.notices
    with pytest.raises(ValueError, match="rows: expected at least 1, got 0"):
        next(log.chunks(0))


def test_a_declared_period_wins(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "time,a\n2026-01-01,1\n2026-01-02,1\n")
    assert open_log([path], LogSettings(period="1min")).contract.period_us == 60_000_000


def test_a_file_without_a_last_line_end_is_read_whole_and_said_so(tmp_path: Path) -> None:
    log = open_log([write(tmp_path / "log.csv", "time,a\n2026-01-01,1\n2026-01-02,25")])
    assert joined(log).values[:, 0].tolist() == [1, 25]
    assert any("no line end" in n for n in log.notices)


def test_reading_parquet_holds_a_few_row_groups_and_not_what_was_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow keeps all that an iterator has read of a file until it ends: memory would grow with the log."""
    from anomaly.data.reading import sources

    rows, group, path = 400_000, 8000, tmp_path / "log.parquet"
    values = np.random.default_rng(0).normal(size=(rows, 6))
    data = pd.DataFrame(values, columns=list("abcdef")).astype({"a": "float64"})
    data.insert(0, "t", pd.date_range("2026-01-01", periods=rows, freq="s", tz="UTC"))
    data.to_parquet(path, row_group_size=group, index=False)
    monkeypatch.setattr(sources, "BATCH_ROWS", 5000)
    monkeypatch.setattr(sources, "_KEPT_ROWS", 20_000)
    log, before, held, seen = open_log([path]), pa.total_allocated_bytes(), 0, 0
    for chunk in log.chunks():
        assert_array_equal(chunk.values, values[seen : seen + len(chunk)].astype(np.float32))
        seen += len(chunk)
        held = max(held, pa.total_allocated_bytes() - before)
    assert seen == rows
    assert held < path.stat().st_size / 4

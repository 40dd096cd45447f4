"""Reading fast must not read otherwise: parsed numbers against texts, kept rows against the file, pivots against pandas."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly.config import LogSettings, Settings, SplitSettings, WindowSettings
from anomaly.data import readers, store_layout
from anomaly.data.contract import LogChunk, LogContract
from anomaly.data.readers import PlantLog, open_log
from anomaly.data.reading import long_pivot, profile, sources, spool
from anomaly.data.scaling import HoldState, hold_last
from anomaly.data.store import SignalsStore, WindowStore, create_store, write_signals
from anomaly.data.store_repack import repack_filtered
from anomaly.data.store_writer import _held, _LookedUp
from anomaly.errors import InputRefused, UsageError
from pipelines.ingest import ingest, write_store

ROOT = Path(__file__).resolve().parents[2]


def csv_text(rows: int = 400, **last: str) -> str:
    """A wide log with a tag, a sparse tag, a text and a label; ``last`` are cells of the last row."""
    lines = ["time,a,b,mode,label"]
    for i in range(rows):
        cells = {"a": f"{i * 0.25 - 3}", "b": "" if i % 7 else f"{i}", "mode": "on" if i % 3 else "off", "label": "0"}
        cells |= last if i == rows - 1 else {}
        lines.append(
            f"2026-01-01T{i // 60:02}:{i % 60:02}:00Z,{cells['a']},{cells['b']},{cells['mode']},{cells['label']}"
        )
    return "\n".join(lines) + "\n"


def told(log: PlantLog) -> tuple[object, ...]:
    return log.contract, log.notices, log.rows, log.label_counts, log.duplicates, log.fingerprint


def joined(log: PlantLog) -> LogChunk:
    return LogChunk.join(list(log.chunks(97)))


def assert_equal(a: LogChunk, b: LogChunk) -> None:
    for name in ("row", "time", "asset", "values", "categories", "label", "bad"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the rows of small files too, and parse blocks of few rows."""
    monkeypatch.setattr(readers, "LEAST_BYTES", 0)
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 4096)


CASES = {
    "plain": {},
    "bad quality": {"a": "Bad"},
    "blanks": {"a": " 1.5 "},
    "not a number": {"a": "NaN"},
    "plus": {"b": "+5"},
    "exponent": {"b": "1e-3"},
    "code": {"label": "1"},
    "quoted": {"a": '"7.5"'},
}


@pytest.mark.parametrize("last", CASES.values(), ids=CASES)
def test_s1_columns_parsed_as_numbers_equal_those_read_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: None, last: dict[str, str]
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(csv_text(**last), encoding="utf-8")
    settings = LogSettings(label="label")
    fast = open_log([path], settings)
    rows = joined(fast)
    monkeypatch.setattr(profile, "_plain_columns", lambda *_: {})
    monkeypatch.setattr(readers, "LEAST_BYTES", 1 << 40)
    slow = open_log([path], settings)
    assert all(part.source.spool is None for part in slow._parts), "the reference parses the file again"
    assert told(fast) == told(slow)
    assert_equal(rows, joined(slow))


@pytest.mark.parametrize(
    "last", [{"a": "inf"}, {"a": "1e31"}, {"a": "-nan"}, {"a": "x"}, {"label": "7"}, {"a": "1e400"}]
)
def test_s1_faults_show_the_cells_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: None, last: dict[str, str]
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(csv_text(**last), encoding="utf-8")
    with pytest.raises(InputRefused) as fast:
        open_log([path], LogSettings(label="label"))
    monkeypatch.setattr(profile, "_plain_columns", lambda *_: {})
    with pytest.raises(InputRefused) as slow:
        open_log([path], LogSettings(label="label"))
    assert fast.value.faults == slow.value.faults
    assert [f.found for f in fast.value.faults] == list(last.values())


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the text files whose parsing was begun."""
    begun: list[str] = []
    reader = sources.CsvSource._reader

    def counted(self: sources.CsvSource, places: list[str], wanted: list[str]) -> Iterator[pa.RecordBatch]:
        begun.append(self.path.name)
        return reader(self, places, wanted)

    monkeypatch.setattr(sources.CsvSource, "_reader", counted)
    return begun


def test_s1_a_file_is_parsed_whole_once(tmp_path: Path, kept: None, parses: list[str]) -> None:
    path = tmp_path / "log.csv"
    path.write_text(csv_text(), encoding="utf-8")
    log = open_log([path], LogSettings(label="label"))
    assert parses == ["log.csv"] * 2, "the first block tells the form, then one pass checks every row"
    assert len(joined(log)) == 400
    assert len(parses) == 2, "the checked rows are kept"


def test_s1_a_category_is_read_as_it_is_written(tmp_path: Path, kept: None) -> None:
    """A text elsewhere makes a column a category; where it looked like numbers it is parsed again."""
    for name, cells in (("a.csv", ["3.10", "3.0"]), ("b.csv", ["x", "x"])):
        day = 1 if name == "a.csv" else 2
        rows = [f"2026-01-0{day}T00:{i:02}:00,{i},{cells[i % 2]}" for i in range(40)]
        (tmp_path / name).write_text("time,v,grade\n" + "\n".join(rows) + "\n", encoding="utf-8")
    log = open_log([tmp_path / "a.csv", tmp_path / "b.csv"], LogSettings(tags=("v",), categories=("grade",)))
    assert set(joined(log).categories[:, 0]) == {"3.10", "3", "x"}


def test_s1_a_full_disk_costs_a_second_parse_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: None, parses: list[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "no space left")

    path = tmp_path / "log.csv"
    path.write_text(csv_text(), encoding="utf-8")
    expected = joined(open_log([path], LogSettings(label="label")))
    before = len(parses)
    monkeypatch.setattr(spool.SpoolFile, "append", full)
    assert_equal(joined(open_log([path], LogSettings(label="label"))), expected)
    assert len(parses) == before + 3


def test_s1_kept_rows_outlive_the_log_while_they_are_read(tmp_path: Path, kept: None) -> None:
    path = tmp_path / "log.csv"
    path.write_text(csv_text(), encoding="utf-8")
    assert sum(len(c) for c in open_log([path], LogSettings(label="label")).chunks(50)) == 400


# -- long form -------------------------------------------------------------------------------------------------------


def samples(n: int, seed: int, shuffled: bool) -> pd.DataFrame:
    """Coded samples without contradictions: two assets, five tags, some without a value, some repeated."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"asset": rng.integers(0, 2 if shuffled else 1, n), "tag": rng.integers(0, 5, n)})
    frame["time"] = np.sort(rng.integers(0, n // 3, n)) * 10
    frame["value"] = (frame["asset"] * 7 + frame["tag"] * 1.5 + frame["time"] * 0.01).where(frame["time"] % 70 > 0)
    if shuffled:
        frame = frame.sample(frac=1, random_state=seed).reset_index(drop=True)
    return frame.assign(text=None, file=0, row=np.arange(n) + 1)


def pivoted(frame: pd.DataFrame, folder: Path, ordered: bool, pivot: long_pivot.Pivot) -> pd.DataFrame:
    parts = [folder / f"{i}.parquet" for i in range(2)]
    for part, piece in zip(parts, (frame[: len(frame) // 2], frame[len(frame) // 2 :]), strict=True):
        pq.write_table(pa.Table.from_pandas(piece, long_pivot.SCHEMA, preserve_index=False), part)
    pivot.write(parts, ordered, folder / "wide.parquet")
    return pq.read_table(folder / "wide.parquet").to_pandas()


@pytest.mark.parametrize(("ordered", "period"), [(True, None), (False, None), (True, 60), (False, 60)])
def test_s1_the_pivot_equals_that_of_pandas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordered: bool, period: int | None
) -> None:
    monkeypatch.setattr(long_pivot, "_BLOCK", 53)
    monkeypatch.setattr(long_pivot, "_MOST_CELLS", 40)
    frame = samples(900, 3, not ordered)
    tags, assets = ["t", "b", "a", "z", "c"], ["south", "north"]
    pivot = long_pivot.Pivot(tags, assets, period=period)
    found = pivoted(frame, tmp_path, ordered, pivot)
    named = frame.assign(tag=[tags[t] for t in frame["tag"]], asset=[assets[a] for a in frame["asset"]])
    assert pivot.duplicates == named.duplicated(["asset", "tag", "time"]).sum() > 0
    assert pivot.contradictions == []
    named["bin"] = named["time"] if period is None else -(-named["time"] // period) * period
    last = named.sort_values("time", kind="stable").groupby(["asset", "bin", "tag"])["value"].last()
    wide = last.unstack("tag").reset_index().sort_values(["asset", "bin"])
    assert found["asset"].tolist() == wide["asset"].tolist()
    assert found["time"].tolist() == wide["bin"].tolist()
    np.testing.assert_array_equal(found[[f"t{i}" for i in range(5)]], wide[sorted(tags)])


def test_s1_contradictions_are_found_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_pivot, "_BLOCK", 2)
    rows = [(0, 0, 10, 1.0), (0, 1, 10, 2.0), (0, 0, 10, 1.0), (0, 1, 10, 9.0), (0, 0, 20, np.nan), (0, 0, 20, 5.0)]
    frame = pd.DataFrame(rows, columns=["asset", "tag", "time", "value"]).assign(text=None, file=0, row=range(1, 7))
    pivot = long_pivot.Pivot(["p", "q"], ["plant"])
    pivoted(frame, tmp_path, True, pivot)
    assert [(c.tag, c.time_us, c.row) for c in pivot.contradictions] == [(1, 10, 4), (0, 20, 6)]
    assert pivot.duplicates == 3


@pytest.mark.long
@pytest.mark.slow
def test_s2_long_logs_become_wide_in_flat_memory(tmp_path: Path) -> None:
    """The sort of a log that lies tag by tag may take what the database may hold, and no more."""
    program, peaks = str(ROOT / "benchmarks" / "ingest.py"), []
    for order, rows in (("time", 200_000), ("time", 1_000_000), ("tag", 1_000_000), ("tag", 4_000_000)):
        path, store = tmp_path / f"{rows}-long.parquet", tmp_path / "s.h5"
        step, tag = np.divmod(np.arange(rows), 4) if order == "time" else np.divmod(np.arange(rows), rows // 4)[::-1]
        time = pa.array(step * 10**7 + 10**15).cast(pa.timestamp("us", "UTC"))
        names = pa.DictionaryArray.from_arrays(pa.array(tag.astype(np.int32)), list("abcd")).cast(pa.string())
        pq.write_table(pa.table({"time": time, "tag": names, "value": np.sin(step / 50 + tag)}), path)
        command = [sys.executable, program, "--one", str(path), str(store)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
    assert peaks[1] < peaks[0] + 60, peaks
    assert peaks[3] < peaks[2] + 120, peaks


# -- the store -------------------------------------------------------------------------------------------------------


def test_s57_rows_without_a_gap_need_no_holding() -> None:
    values = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    starts = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0], dtype=bool)
    for state in (None, HoldState(np.float32([1, np.nan, 2]), np.uint8([3, 255, 0]))):
        for found, expected in zip(_held(values, starts, state)[:2], hold_last(values, starts, state)[:2], strict=True):
            np.testing.assert_array_equal(found, expected)
        last, wanted = _held(values, starts, state)[2], hold_last(values, starts, state)[2]
        assert (last.values == wanted.values).all()
        assert (last.age == wanted.age).all()


def test_s59_looked_up_times_are_those_of_the_dataset(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        times = np.arange(300_001) * 3
        looked_up = _LookedUp(file.create_dataset("time", data=times, chunks=(8192,)))
        assert len(looked_up) == len(times)
        for at in [0, 8191, 8192, 300_000, -1, *np.random.default_rng(1).integers(0, 300_001, 200).tolist()]:
            assert looked_up[at] == times[at]
        assert len(looked_up._blocks) == 16


def small_store(path: Path, compress: str) -> None:
    contract = LogContract("time", ("a", "b"), 10**7)
    n = 3000
    rows = np.arange(n)
    values = np.round(np.sin(rows[:, None] / [30, 70]), 1).astype(np.float32)
    chunk = LogChunk(
        rows, rows * 10**7, np.full(n, "plant", object), values, np.empty((n, 0), object),
        np.zeros(n, np.int8), np.zeros((n, 2), bool),
    )  # fmt: skip
    with create_store(path, contract, WindowSettings(8), SplitSettings(), compress) as writer:
        writer.append(chunk)


@pytest.mark.parametrize("compress", ["gzip", "zstd"])
def test_s1_a_compressed_store_holds_the_same_windows_in_chunks_of_whole_rows(tmp_path: Path, compress: str) -> None:
    if compress == "zstd":
        pytest.importorskip("hdf5plugin")
    small_store(tmp_path / "plain.h5", "none")
    small_store(tmp_path / "small.h5", compress)
    assert (tmp_path / "small.h5").stat().st_size < 0.7 * (tmp_path / "plain.h5").stat().st_size
    with WindowStore.open(tmp_path / "plain.h5") as plain, WindowStore.open(tmp_path / "small.h5") as small:
        for a, b in zip(plain.row_blocks(), small.row_blocks(), strict=True):
            np.testing.assert_array_equal(a.values, b.values)
            np.testing.assert_array_equal(a.kind, b.kind)
            np.testing.assert_array_equal(a.time, b.time)
    with h5py.File(tmp_path / "small.h5") as file:
        values = file["series/plant/values"]
        assert values.chunks[1] == 2
        assert values.chunks[0] * 2 * 4 <= 1 << 20
        assert values.shuffle
        assert file["series/plant/kind"].compression is None


@pytest.mark.parametrize("compress", ["none", "gzip", "zstd"])
def test_s3_a_repacked_file_keeps_everything(tmp_path: Path, compress: str) -> None:
    if compress == "zstd":
        pytest.importorskip("hdf5plugin")
    signals = np.random.default_rng(0).integers(0, 9, (50, 6, 2)).astype(np.float32)
    labels, places = np.arange(50) % 2, {"unit": np.array(["a", "b"] * 25, dtype=object)}
    write_signals(tmp_path / "in.h5", [signals], labels, places, {"plant": "north", "names": ["x", "ü"]})
    repack_filtered(tmp_path / "in.h5", tmp_path / "out.h5", compress)
    with SignalsStore.open(tmp_path / "in.h5") as a, SignalsStore.open(tmp_path / "out.h5") as b:
        np.testing.assert_array_equal(a.signals[:], b.signals[:])
        np.testing.assert_array_equal(a.labels[:], b.labels[:])
        assert a.metadata("unit").tolist() == b.metadata("unit").tolist()
        assert b.attributes["plant"] == "north"
        assert list(b.attributes["names"]) == ["x", "ü"]
        assert (b.signals.chunks is not None) and b.signals.shuffle == (compress != "none")


def test_s1_a_filter_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_signals(tmp_path / "in.h5", [np.zeros((50, 6, 2), np.float32)])
    repack_filtered(tmp_path / "in.h5", tmp_path / "out.h5", "gzip")
    monkeypatch.setattr(store_layout, "_available", lambda _: False)
    log = tmp_path / "log.csv"
    log.write_text(csv_text(), encoding="utf-8")
    with pytest.raises(UsageError, match=r"plant-anomaly\[zstd\]"):
        ingest([log], Settings(), tmp_path / "new.h5", compress="zstd")
    with pytest.raises(UsageError, match="none, gzip, zstd"):
        ingest([log], Settings(), tmp_path / "new.h5", compress="lzma")
    assert not (tmp_path / "new.h5").exists()
    with pytest.raises(InputRefused, match="deflate in signals"):
        SignalsStore.open(tmp_path / "out.h5")


def test_s1_the_default_store_is_the_same_however_the_log_was_read(tmp_path: Path, kept: None) -> None:
    path, settings = tmp_path / "log.csv", Settings(log=LogSettings(label="label"))
    path.write_text(csv_text(), encoding="utf-8")
    write_store(open_log([path], settings.log), settings, tmp_path / "a.h5")
    frame = pd.read_csv(path, parse_dates=["time"])
    frame.to_parquet(tmp_path / "log.parquet", index=False)
    write_store(open_log([tmp_path / "log.parquet"], settings.log), settings, tmp_path / "b.h5")
    with WindowStore.open(tmp_path / "a.h5") as a, WindowStore.open(tmp_path / "b.h5") as b:
        assert a.digest == b.digest

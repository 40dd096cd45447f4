"""METHODS S1: the window store, written as rows come, read in blocks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.config import LogSettings, SplitSettings, WindowSettings
from anomaly.data.contract import EVENT, LEAD, NORMAL, UNKNOWN, LogChunk, LogContract
from anomaly.data.labels import event_intervals, lead_kinds, segment_intervals, segments
from anomaly.data.readers import open_log
from anomaly.data.scaling import hold_last
from anomaly.data.splits import PARTS
from anomaly.data.store import WindowBatch, WindowStore, create_store
from anomaly.data.windows import cut_windows, window_starts
from anomaly.errors import InputRefused, UsageError
from anomaly.intervals import contains

MINUTE = 60_000_000
TAGS = ("flow", "pressure", "speed")
CONTRACT = LogContract("time", TAGS, MINUTE, categories=("grade",), asset="asset", label="label")
WINDOW = WindowSettings(lookback=8, stride=2, lead="4min")


def asset_rows(asset: str, n: int, seed: int, first: int = 0) -> LogChunk:
    """Rows of one asset: gaps, missing values, unknown labels, events, grades."""
    rng = np.random.default_rng(seed)
    step = np.where(rng.random(n) < 0.01, 30, 1)
    time = (first + np.cumsum(step)) * MINUTE
    values = rng.normal(size=(n, 3)).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = np.nan
    label = np.where(rng.random(n) < 0.02, UNKNOWN, NORMAL).astype(np.int8)
    for at in rng.integers(0, n, max(n // 100, 1)):
        label[at : at + 2] = EVENT
    grade = rng.choice(np.array(["A", "B", "", "Ü"], dtype=object), size=(n, 1))
    names = np.full(n, asset, dtype=object)
    return LogChunk(np.arange(n), time, names, values, grade, label, np.zeros(values.shape, bool))


def joined(chunks: Sequence[LogChunk]) -> LogChunk:
    names = ("row", "time", "asset", "values", "categories", "label", "bad")
    return LogChunk(*(np.concatenate([getattr(c, name) for c in chunks]) for name in names))


def write(
    path: Path, log: LogChunk, size: int = 10**9, window: WindowSettings = WINDOW, contract: LogContract = CONTRACT
) -> Path:
    with create_store(path, contract, window, SplitSettings()) as writer:
        for at in range(0, len(log), size):
            writer.append(log.take(slice(at, at + size)))
    return path


@pytest.fixture(scope="module")
def log() -> LogChunk:
    """Two assets whose rows alternate in stretches."""
    a, b = asset_rows("pump/1", 1500, 1), asset_rows("..", 900, 2, first=40)
    order = np.argsort(np.concatenate((np.arange(1500) // 100, np.arange(900) // 60)), kind="stable")
    return joined([a, b]).take(order)


@pytest.fixture(scope="module")
def path(log: LogChunk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("s1") / "store.h5", log, size=333)


def of(log: LogChunk, asset: str) -> LogChunk:
    return log.take(log.asset == asset)


def test_s1_rows_come_back_as_they_were(path: Path, log: LogChunk) -> None:
    with WindowStore.open(path, expect=CONTRACT) as store:
        assert store.assets == ("..", "pump/1")
        assert store.contract == CONTRACT
        assert (store.lookback, store.stride, store.lead_us, store.period_us) == (8, 2, 4 * MINUTE, MINUTE)
        assert store.max_gap_us == 3.5 * MINUTE
        for asset in store.assets:
            own = of(log, asset)
            chunk = joined([block.as_chunk() for block in store.row_blocks(size=170) if block.asset == asset])
            for name in ("time", "values", "categories", "asset"):
                np.testing.assert_array_equal(getattr(chunk, name), getattr(own, name))
            known = own.label == chunk.label
            assert (chunk.label[~known] == UNKNOWN).all()
            assert chunk.row.tolist() == list(range(len(own)))


def test_s1_series_equal_the_pure_functions(path: Path, log: LogChunk) -> None:
    with WindowStore.open(path) as store:
        for asset in store.assets:
            own, gap = of(log, asset), store.max_gap_us
            pieces, block = segment_intervals(own.time, gap), store.rows(asset, 0, store.n_rows(asset))
            starts = segments(own.time, gap)
            held, age, _ = hold_last(own.values, starts)
            np.testing.assert_array_equal(store.segments(asset), pieces)
            np.testing.assert_array_equal(store.events(asset), event_intervals(own.time, own.label, pieces))
            np.testing.assert_array_equal(block.values, held)
            np.testing.assert_array_equal(block.age, age)
            np.testing.assert_array_equal(block.kind, lead_kinds(own.time, own.label, pieces, store.lead_us))
            np.testing.assert_array_equal(block.starts, starts)
            expected = np.concatenate([np.arange(b - a) for a, b in pieces.tolist()])
            np.testing.assert_array_equal(block.since_start, expected)


def test_s1_windows_equal_slices_of_the_series(path: Path) -> None:
    severity = {NORMAL: 0, UNKNOWN: 1, LEAD: 2, EVENT: 3}
    with WindowStore.open(path) as store:
        blocks, total = list(store.window_blocks(size=50)), 0
        for asset in store.assets:
            rows = store.rows(asset, 0, store.n_rows(asset))
            starts = window_starts(store.segments(asset), store.lookback, store.stride)
            own = [b for b in blocks if b.asset == asset]
            np.testing.assert_array_equal(np.concatenate([b.starts for b in own]), starts)
            for name in ("values", "age"):
                expected = cut_windows(getattr(rows, name), starts, store.lookback)
                np.testing.assert_array_equal(np.concatenate([getattr(b, name) for b in own]), expected)
            worst = [max(rows.kind[s : s + store.lookback], key=lambda k: severity[int(k)]) for s in starts]
            assert np.concatenate([b.kind for b in own]).tolist() == [int(k) for k in worst]
            total += len(starts)
        assert store.n_windows == total
        assert max(len(b) for b in blocks) <= 50


def test_s1_blocks_are_windows_of_a_part(path: Path) -> None:
    with WindowStore.open(path) as store:
        for part in (*PARTS, None):
            blocks = list(store.blocks(64, part))
            windows = list(store.window_blocks(part, 64))
            assert all(b.shape[1:] == (8, 3) and b.dtype == np.float32 and len(b) <= 64 for b in blocks)
            assert sum(map(len, blocks)) == sum(map(len, windows))
            for block in windows:
                if part is None:
                    continue
                first, stop = store.part_rows(block.asset, part)
                assert block.starts.min() >= first
                assert block.starts.max() + store.lookback <= stop
        assert all((b.kind == NORMAL).all() for b in store.window_blocks("train", normal_only=True))


def test_s59_parts_are_chronological_and_purged(path: Path, log: LogChunk) -> None:
    with WindowStore.open(path) as store:
        for asset in store.assets:
            time = of(log, asset).time
            events = store.events(asset)
            for earlier, later in (("train", "validation"), ("validation", "test")):
                end, start = store.part_rows(asset, earlier)[1], store.part_rows(asset, later)[0]
                assert time[start] - time[end - 1] >= 8 * MINUTE + store.lead_us
            for part in PARTS:
                first, stop = store.part_rows(asset, part)
                inside = contains(events, time[first:stop])
                assert not inside[0] or time[first] in events[:, 0]
        assert store.n_part_rows(None) == len(log)
        assert store.n_part_rows("train") == sum(b - a for a, b in (store.part_rows(x, "train") for x in store.assets))


def test_counts_by_label_kind_and_part(path: Path, log: LogChunk) -> None:
    with WindowStore.open(path) as store:
        for label in (UNKNOWN, NORMAL, EVENT):
            assert store.label_counts()[label] == (log.label == label).sum()
        kinds = store.kind_counts()
        assert kinds[LEAD] > 0
        for part in PARTS:
            kind = np.concatenate([b.kind for b in store.row_blocks(part)])
            assert store.kind_counts(part) == {k: int((kind == k).sum()) for k in (UNKNOWN, NORMAL, EVENT, LEAD)}


@pytest.mark.parametrize("size", [1, 7, 1024])
def test_any_chunking_gives_the_same_store(path: Path, log: LogChunk, tmp_path: Path, size: int) -> None:
    cut = log.take(slice(0, 600)) if size == 1 else log
    one, other = write(tmp_path / "one.h5", cut), write(tmp_path / "other.h5", cut, size)
    with WindowStore.open(one) as a, WindowStore.open(other) as b:
        assert a.split == b.split
        for mine, theirs in zip(a.row_blocks(), b.row_blocks(), strict=True):
            for name in ("time", "values", "age", "kind", "starts"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
            np.testing.assert_array_equal(mine.as_chunk().categories, theirs.as_chunk().categories)
        for one_block, other_block in zip(a.window_blocks(), b.window_blocks(), strict=True):
            np.testing.assert_array_equal(one_block.kind, other_block.kind)
        for asset in a.assets:
            np.testing.assert_array_equal(a.events(asset), b.events(asset))


def test_exact_duplicates_are_stored_once(log: LogChunk, tmp_path: Path) -> None:
    own = of(log, "..")
    twice = own.take(np.repeat(np.arange(len(own)), 2))
    with WindowStore.open(write(tmp_path / "s.h5", twice, size=101)) as store:
        assert store.n_rows("..") == len(own)
        np.testing.assert_array_equal(store.rows("..", 0, len(own)).time, own.time)


def test_rows_outside_a_log_are_refused(path: Path) -> None:
    with WindowStore.open(path) as store:
        with pytest.raises(ValueError, match="inside 0 … 1500"):
            store.rows("pump/1", 10, 1501)
        with pytest.raises(ValueError, match="asset: expected one of"):
            store.rows("fan", 0, 1)
        assert len(store.rows("pump/1", 5, 5)) == 0


def identities(batches: Iterable[WindowBatch]) -> list[tuple[str, int]]:
    return [(asset, int(start)) for b in batches for asset, start in zip(b.asset, b.starts, strict=True)]


@pytest.mark.parametrize("pool_bytes", [1, 8 * 3 * 5 * 300, 64 << 20])
def test_shuffled_batches_serve_each_normal_window_once(path: Path, pool_bytes: int) -> None:
    with WindowStore.open(path) as store:
        wanted = {(b.asset, int(s)) for b in store.window_blocks("train", normal_only=True) for s in b.starts}
        batches = list(store.shuffled_batches(32, seed=1, pool_bytes=pool_bytes))
        served = identities(batches)
        assert len(served) == len(wanted)
        assert set(served) == wanted
        assert {len(b) for b in batches[:-1]} == {32}
        for batch in batches:
            for asset, start, values, age in zip(batch.asset, batch.starts, batch.values, batch.age, strict=True):
                rows = store.rows(asset, int(start), int(start) + store.lookback)
                np.testing.assert_array_equal(values, rows.values)
                np.testing.assert_array_equal(age, rows.age)


def test_shuffled_order_depends_on_seed_and_epoch_only(path: Path) -> None:
    with WindowStore.open(path) as store:
        first = identities(store.shuffled_batches(32, seed=1))
        assert identities(store.shuffled_batches(32, seed=1)) == first
        assert identities(store.shuffled_batches(32, seed=2)) != first
        assert identities(store.shuffled_batches(32, seed=1, epoch=1)) != first
        assert first != sorted(first)
        mixed = np.array([start for asset, start in first if asset == "pump/1"])
        assert abs(np.corrcoef(np.arange(len(mixed)), mixed)[0, 1]) < 0.3


def odd_values_out(values: NDArray, age: NDArray, codes: NDArray) -> tuple[NDArray, NDArray]:
    """A preparation: rows doubled, codes beside them, and rows of one value in ten not to be learned from."""
    first = np.nan_to_num(values[:, 0])
    return np.column_stack((2 * np.nan_to_num(values), codes)).astype(np.float32), np.round(first * 100) % 10 != 0


def test_rows_are_prepared_before_windows_are_cut_and_infinite_goes_on(path: Path) -> None:
    with WindowStore.open(path) as store:
        plain = {
            (block.asset, int(start)): window
            for block in store.window_blocks("train", normal_only=True)
            for start, window in zip(block.starts, block.values, strict=True)
        }
        some = list(store.shuffled_batches(16, prepare=odd_values_out))
        assert 0 < sum(len(b) for b in some) < len(plain)
        for batch in some:
            for asset, start, window in zip(batch.asset, batch.starts, batch.values, strict=True):
                rows = store.rows(asset, int(start), int(start) + store.lookback)
                prepared, usable = odd_values_out(rows.values, rows.age, rows.categories)
                assert usable.all()
                np.testing.assert_array_equal(window, prepared)
                np.testing.assert_array_equal(
                    window[:, : rows.values.shape[1]], 2 * np.nan_to_num(plain[asset, int(start)])
                )
        in_order = list(store.window_blocks("train", normal_only=True, prepare=odd_values_out))
        assert sum(len(b) for b in in_order) == sum(len(b) for b in some)
        stream = store.shuffled_batches(16, prepare=odd_values_out, infinite=True)
        got = [next(stream) for _ in range(2 * len(some))]
        assert identities(got[: len(some)]) == identities(some)
        assert identities(got[len(some) :]) == identities(store.shuffled_batches(16, epoch=1, prepare=odd_values_out))
        nothing = lambda v, a, c: (v, np.zeros(len(v), bool))  # noqa: E731
        assert list(store.shuffled_batches(16, prepare=nothing, infinite=True)) == []


def test_segments_too_short_for_windows_are_stepped_over(tmp_path: Path) -> None:
    """Stretches of seven rows hold no window of eight: blocks do not read through thousands of them."""
    n = 40_000
    time = (np.arange(n) + 100 * (np.arange(n) // 7)) * MINUTE
    time[-40:] = time[-41] + np.arange(100, 140) * MINUTE
    time[:40] = time[40] - np.arange(140, 100, -1) * MINUTE
    whole = asset_rows("a", n, 5)
    log = replace(whole, time=time, label=np.zeros(n, np.int8))
    path = write(tmp_path / "s.h5", log, size=9999, window=WindowSettings(8, 1, "0s"))
    with WindowStore.open(path) as store:
        blocks = list(store.window_blocks())
        assert [len(b) for b in blocks] == [33, 33]
        assert blocks[1].starts[0] == n - 40


@pytest.mark.parametrize("rows", [7, 0])
def test_a_log_shorter_than_one_window_is_refused(tmp_path: Path, rows: int) -> None:
    with pytest.raises(InputRefused, match=r"E3301.*lookback 8.*found=" + str(rows)):
        write(tmp_path / "s.h5", asset_rows("a", 40, 1).take(slice(0, rows)))
    assert list(tmp_path.iterdir()) == []


def test_gaps_everywhere_are_refused_with_the_longest_stretch(tmp_path: Path) -> None:
    rows = asset_rows("a", 70, 1)
    time = (np.arange(70) + 100 * (np.arange(70) // 5)) * MINUTE
    log = replace(rows, time=time)
    with pytest.raises(InputRefused, match="70 rows, at most 5 of them without a gap"):
        write(tmp_path / "s.h5", log)


def test_backward_times_and_infinite_values_are_refused(tmp_path: Path) -> None:
    rows = asset_rows("a", 60, 1)
    swapped = replace(rows.take(np.r_[0, 2, 1, 3:60]), row=np.arange(60))
    with pytest.raises(InputRefused, match=r"E3205 row=3 "):
        write(tmp_path / "s.h5", swapped)
    with pytest.raises(InputRefused, match=r"E3205 row=3 "):
        write(tmp_path / "s.h5", swapped, size=2)
    values = rows.values.copy()
    values[30, 1] = np.inf
    with pytest.raises(InputRefused, match=r"E3110 column=pressure row=31"):
        write(tmp_path / "s.h5", replace(rows, values=values))
    assert list(tmp_path.iterdir()) == []


def test_another_contract_is_refused_with_the_difference(path: Path) -> None:
    other = LogContract("time", ("flow", "level", "speed"), MINUTE, categories=("grade",))
    with pytest.raises(InputRefused, match=r"E3402[\s\S]*tag level: only in the first[\s\S]*tag pressure"):
        WindowStore.open(path, expect=other)


def test_an_error_while_writing_leaves_the_old_store(path: Path, log: LogChunk, tmp_path: Path) -> None:
    target = write(tmp_path / "s.h5", log)
    before = target.read_bytes()
    with pytest.raises(RuntimeError, match="midway"), create_store(target, CONTRACT, WINDOW, SplitSettings()) as writer:
        writer.append(log)
        raise RuntimeError("midway")
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]
    with pytest.raises(UsageError, match="E2003"), create_store(tmp_path, CONTRACT, WINDOW, SplitSettings()):
        pass


def test_a_reader_keeps_the_old_store_while_a_new_one_is_published(log: LogChunk, tmp_path: Path) -> None:
    target = write(tmp_path / "s.h5", log)
    with WindowStore.open(target) as old:
        write(target, of(log, ".."))
        assert old.n_rows("pump/1") == 1500
        assert sum(len(b) for b in old.row_blocks()) == len(log)
    with WindowStore.open(target) as new:
        assert new.assets == ("..",)


def test_every_dataset_is_checksummed_in_row_chunks_below_1_mib(path: Path) -> None:
    with h5py.File(path) as file:
        seen = []

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                seen.append(name)
                assert item.fletcher32, name
                assert item.chunks[1:] == item.shape[1:], name
                assert np.prod(item.chunks) * item.dtype.itemsize <= 1 << 20, name
                if item.dtype.kind == "f":
                    assert np.isnan(item.fillvalue), name

        file.visititems(visit)
        assert len(seen) > 15
        assert bool(file.attrs["complete"])
        assert file.attrs["lookback"] == 8
        assert file.attrs["fingerprint"] == CONTRACT.fingerprint()


def test_many_tags_fit(tmp_path: Path) -> None:
    """Names beyond the 64 KiB that an HDF5 attribute may hold."""
    tags = tuple(f"a rather long name of a plant tag, number {i}" for i in range(3000))
    contract = LogContract("time", tags, MINUTE)
    n = 20
    chunk = LogChunk(
        np.arange(n), np.arange(n) * MINUTE, np.full(n, "plant", object), np.ones((n, 3000), np.float32),
        np.empty((n, 0), object), np.zeros(n, np.int8), np.zeros((n, 3000), bool),
    )  # fmt: skip
    with WindowStore.open(write(tmp_path / "s.h5", chunk, contract=contract)) as store:
        assert store.contract.tags == tags
        assert store.n_windows == 7


def wide_log(n: int) -> Iterator[LogChunk]:
    rng = np.random.default_rng(0)
    for start in range(0, n, 10_000):
        rows = np.arange(start, start + 10_000)
        label = (rows % 1000 == 500).astype(np.int8)
        yield LogChunk(
            rows, rows * MINUTE, np.full(10_000, "a", object), rng.normal(size=(10_000, 8)).astype(np.float32),
            np.empty((10_000, 0), object), label, np.zeros((10_000, 8), bool),
        )  # fmt: skip


@pytest.mark.slow
def test_memory_is_flat_in_the_length_of_the_log(tmp_path: Path) -> None:
    contract = LogContract("time", tuple("abcdefgh"), MINUTE, label="label")
    peaks = {}
    for n in (40_000, 400_000):
        path = tmp_path / f"{n}.h5"
        tracemalloc.start()
        with create_store(path, contract, WindowSettings(8, 1, "4min"), SplitSettings()) as writer:
            for chunk in wide_log(n):
                writer.append(chunk)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        with WindowStore.open(path) as store:
            windows = sum(len(b) for b in store.blocks(1024))
            rows = sum(len(b) for b in store.row_blocks(size=8192))
            mixed = sum(len(b) for b in store.shuffled_batches(256, pool_bytes=2 << 20))
        peaks[n] = written, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert windows == n - 7
        assert rows == n
        assert mixed > n // 2
    # Times of at most 4M rows, 8 bytes each, are read at once to plan the split.
    assert peaks[400_000][0] < peaks[40_000][0] + 8 * 400_000
    assert peaks[400_000][1] < 1.5 * peaks[40_000][1]


WRITER = """
    import sys
    import numpy as np
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from test_store import asset_rows, write
    write(Path({target!r}), asset_rows("a", 3000, 1), size=1000)
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", ["store.after_append:2", "store.before_publish"])
def test_kill_9_leaves_no_half_file_and_a_rerun_finishes(tmp_path: Path, point: str) -> None:
    target, here = tmp_path / "s.h5", Path(__file__).resolve()
    program = textwrap.dedent(WRITER.format(tests=str(here.parent), target=str(target)))
    environment = {**os.environ, "PYTHONPATH": str(here.parents[2])}
    killed = subprocess.run(
        [sys.executable, "-c", program], env={**environment, "ANOMALY_KILLPOINT": point}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1  # the temporary file, for the next run to sweep
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]
    with WindowStore.open(target) as store:
        assert store.n_rows("a") == 3000


@pytest.mark.slow
@pytest.mark.realdata
def test_s59_every_panel_case_keeps_normal_windows_in_train_and_validation(shared_data: Path, tmp_path: Path) -> None:
    for source in sorted((shared_data / "panel").glob("*/train.parquet")):
        log = open_log([source], LogSettings(time="time", label="label"))
        with create_store(tmp_path / "s.h5", log.contract, WindowSettings(), SplitSettings()) as writer:
            for chunk in log.chunks():
                writer.append(chunk)
        with WindowStore.open(tmp_path / "s.h5") as store:
            assert store.n_part_rows(None) + log.duplicates == log.rows
            wanted = sum(len(b) for b in store.window_blocks(normal_only=True))
            for part, share in (("train", 0.6), ("validation", 0.2)):
                found = sum(len(b) for b in store.window_blocks(part, normal_only=True))
                assert found > 0.4 * share * wanted, source.parent.name

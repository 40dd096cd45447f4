"""METHODS S1, S3: the plain form signals (N, T, C), labels (N,), metadata."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from anomaly.config import SplitSettings, WindowSettings
from anomaly.data.contract import LogChunk, LogContract
from anomaly.data.store import SignalsStore, WindowStore, create_signals, create_store, write_signals
from anomaly.errors import InputRefused

N, T, C = 1000, 6, 3


def signals() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, T, C)).astype(np.float32)


@pytest.mark.parametrize("compress", [False, True])
def test_s1_groups_datasets_and_attributes_round_trip(tmp_path: Path, compress: bool) -> None:
    path, data = tmp_path / "s.h5", signals()
    labels = (np.arange(N) % 7 == 0).astype(np.int8)
    metadata = {"machine": np.array(["Ü1", "b"] * (N // 2), object), "rpm": np.arange(N) * 1.5, "xy": np.ones((N, 2))}
    attributes = {"tags": ["a", "b", "ç"], "lookback": 6, "site": "mill", "rate": 0.5}
    blocks = (data[i : i + 300] for i in range(0, N, 300))
    write_signals(path, blocks, labels, metadata, attributes, compress=compress)
    with SignalsStore.open(path) as store:
        np.testing.assert_array_equal(store.signals[:], data)
        assert store.labels is not None
        np.testing.assert_array_equal(store.labels[:], labels)
        assert store.metadata_names == ("machine", "rpm", "xy")
        for name, column in metadata.items():
            np.testing.assert_array_equal(store.metadata(name), column)
            np.testing.assert_array_equal(store.metadata(name, 5, 9), column[5:9])
        assert list(store.attributes["tags"]) == attributes["tags"]
        assert {k: store.attributes[k] for k in ("lookback", "site", "rate")} == {
            "lookback": 6,
            "site": "mill",
            "rate": 0.5,
        }
        sizes = [len(b) for b in store.blocks(256)]
        assert sizes == [256, 256, 256, 232]
        np.testing.assert_array_equal(np.concatenate(list(store.blocks(256))), data)


def test_s3_labels_and_metadata_may_be_absent(tmp_path: Path) -> None:
    write_signals(tmp_path / "s.h5", [signals()])
    with SignalsStore.open(tmp_path / "s.h5") as store:
        assert store.labels is None
        assert store.metadata_names == ()
        assert store.attributes == {}
        assert store.n_windows == N


def test_s1_the_seed_form_written_by_plain_h5py_is_read(tmp_path: Path) -> None:
    path, data = tmp_path / "seed.h5", signals().astype(np.float64)
    with h5py.File(path, "w") as file:
        file.create_dataset("signals", data=data, chunks=True, compression="gzip")
        file.create_dataset("labels", data=np.zeros(N, int))
        file.create_group("metadata").create_dataset("id", data=[f"w{i}" for i in range(N)])
    with SignalsStore.open(path) as store:
        first = next(store.blocks(10))
        assert first.dtype == np.float32
        np.testing.assert_array_equal(first, data[:10].astype(np.float32))
        assert store.n_windows == N


class CountingFile(io.FileIO):
    """A file that adds up the bytes read from it."""

    read_bytes = 0

    def readinto(self, buffer: Any) -> int:
        got = super().readinto(buffer)
        self.read_bytes += got or 0
        return got or 0


def test_s1_slicing_reads_no_more_than_the_touched_chunks(tmp_path: Path) -> None:
    path, windows = tmp_path / "s.h5", 20_000
    write_signals(path, (np.ones((2000, 16, 4), np.float32) for _ in range(windows // 2000)))
    with CountingFile(path) as stream, h5py.File(stream, "r") as file:
        store = SignalsStore(file, path)
        whole = windows * 16 * 4 * 4
        _ = store.signals[3:4]  # the chunk table is read once
        before = stream.read_bytes
        block = store.signals[10_000:10_001]
        read = stream.read_bytes - before
        block_bytes, few = 16 * 4 * 4, store.signals[10_000:10_300]
        both = stream.read_bytes - before - read
    assert block.shape == (1, 16, 4)
    # Plain rows lie in a chunk as they are: what is read is what is wanted, not even their whole chunk.
    assert block_bytes <= read <= block_bytes + 8192
    assert few.nbytes <= both <= few.nbytes + 8192 < whole / 15


def test_s1_slicing_a_compressed_file_reads_the_touched_chunks_alone(tmp_path: Path) -> None:
    path, windows = tmp_path / "s.h5", 20_000
    noise = np.random.default_rng(0).normal(size=(2000, 16, 4)).astype(np.float32)
    write_signals(path, (noise for _ in range(windows // 2000)), compress=True)
    with CountingFile(path) as stream, h5py.File(stream, "r") as file:
        store = SignalsStore(file, path)
        chunk = int(np.prod(store.signals.chunks)) * 4
        _ = store.signals[3:4]
        before = stream.read_bytes
        _ = store.signals[10_000:10_001]
        read = stream.read_bytes - before
    assert chunk / 2 <= read <= chunk + 8192


def test_blocks_are_lazy(tmp_path: Path) -> None:
    write_signals(tmp_path / "s.h5", (np.zeros((1000, 16, 4), np.float32) for _ in range(40)))
    with SignalsStore.open(tmp_path / "s.h5") as store:
        tracemalloc.start()
        assert sum(len(b) for b in store.blocks(500)) == 40_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


@pytest.mark.parametrize("wrong", [N - 1, N + 1])
def test_labels_and_metadata_of_another_length_are_refused(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(ValueError, match="labels"):
        write_signals(tmp_path / "s.h5", [signals()], np.zeros(wrong, np.int8))
    with pytest.raises(ValueError, match="rpm"):
        write_signals(tmp_path / "s.h5", [signals()], None, {"rpm": np.zeros(wrong)})
    assert list(tmp_path.iterdir()) == []


def test_columns_may_not_come_and_go(tmp_path: Path) -> None:
    block = signals()[:10]
    for first, second in (({}, {"a": np.zeros(10)}), ({"a": np.zeros(10)}, {})):
        with pytest.raises(ValueError, match="column"), create_signals(tmp_path / "s.h5") as writer:
            writer.append(block, None, first)
            writer.append(block, None, second)
    assert list(tmp_path.iterdir()) == []


def test_another_form_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "flat.h5", "x") as file:
        file["signals"] = np.zeros((5, 4))
    with pytest.raises(InputRefused, match="E3007"):
        SignalsStore.open(tmp_path / "flat.h5")
    with h5py.File(tmp_path / "short.h5", "x") as file:
        file["signals"], file["labels"] = np.zeros((5, 4, 1)), np.zeros(4)
    with pytest.raises(InputRefused, match="4 labels for 5 signals"):
        SignalsStore.open(tmp_path / "short.h5")


def test_s1_a_window_store_exports_the_plain_form(tmp_path: Path) -> None:
    n = 700
    label = (np.arange(n) % 90 == 50).astype(np.int8)
    assets = np.where(np.arange(n) < 400, "pump", "Lüfter").astype(object)
    chunk = LogChunk(
        np.arange(n), np.arange(n) * 1_000_000, assets, signals()[:n, 0], np.empty((n, 0), object), label,
        np.zeros((n, 3), bool),
    )  # fmt: skip
    contract = LogContract("time", ("a", "b", "c"), 1_000_000, asset="asset", label="label")
    with create_store(tmp_path / "w.h5", contract, WindowSettings(6, 1, "2s"), SplitSettings()) as writer:
        writer.append(chunk)
    with WindowStore.open(tmp_path / "w.h5") as store:
        store.export_signals(tmp_path / "s.h5")
        store.export_signals(tmp_path / "train.h5", "train")
        windows = list(store.window_blocks())
        train = sum(len(b) for b in store.window_blocks("train"))
        with SignalsStore.open(tmp_path / "s.h5") as plain, SignalsStore.open(tmp_path / "train.h5") as part:
            np.testing.assert_array_equal(plain.signals[:], np.concatenate([b.values for b in windows]))
            assert plain.labels is not None
            np.testing.assert_array_equal(plain.labels[:], np.concatenate([b.kind for b in windows]))
            assert plain.metadata("asset").tolist() == [b.asset for b in windows for _ in b.starts]
            for asset, start, when in zip(*(plain.metadata(k) for k in ("asset", "start", "time")), strict=True):
                assert when == store.rows(asset, int(start) + 5, int(start) + 6).time[0]
            assert list(plain.attributes["tags"]) == ["a", "b", "c"]
            assert part.n_windows == train

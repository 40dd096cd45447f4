"""Files of other origin: what their chunks cost, a cache that pays for it, and a copy that needs none (METHODS S1, S2)."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from anomaly.data.store import SignalsStore
from anomaly.data.store_layout import layout, open_cached
from anomaly.data.store_signals import repack_signals
from anomaly.errors import InputRefused, UsageError

N, T, C = 40_000, 8, 4
SIGNALS = np.random.default_rng(0).normal(size=(N, T, C)).astype(np.float32)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """As the sources write it: column chunks, gzip, labels and metadata with attributes."""
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "x") as file:
        file.create_dataset("signals", data=SIGNALS, chunks=(20_000, 1, 1), compression="gzip")
        file["labels"] = (np.arange(N) % 3).astype(np.int8)
        group = file.create_group("metadata")
        group.attrs["site"] = "mill"
        group["machine"] = np.array([b"a", b"b"] * (N // 2))
    return path


def test_s1_the_cost_of_column_chunks_is_what_a_count_gives(foreign: Path) -> None:
    with h5py.File(foreign) as file:
        cost = layout(file["signals"], rows=1000)
        assert cost.touched == T * C
        assert cost.bytes_read == T * C * 20_000 * 4
        assert cost.amplification == pytest.approx(20.0)
        for words in ("20000 × 1 × 1, gzip", "touches 32 of them", "20 times", "anomaly ingest FILE --repack"):
            assert words in cost.notice("signals")
        whole = file["labels"]
        assert layout(whole).chunk is None
        assert layout(whole).notice("labels") == ""


def test_s1_the_cache_holds_a_block_so_no_chunk_is_read_twice(foreign: Path) -> None:
    with h5py.File(foreign) as file:
        plain = file["signals"].id.get_access_plist().get_chunk_cache()[1]
        cached = open_cached(file, "signals", rows=256)
        assert cached.id.get_access_plist().get_chunk_cache()[1] >= T * C * 20_000 * 4 > plain
        np.testing.assert_array_equal(cached[19_900:20_100], SIGNALS[19_900:20_100])


def test_s1_a_store_of_other_origin_gets_that_cache(foreign: Path) -> None:
    with SignalsStore.open(foreign) as store:
        assert store.signals.id.get_access_plist().get_chunk_cache()[1] >= T * C * 20_000 * 4
        assert "20000 × 1 × 1" in store.notice
        assert sum(len(block) for block in store.blocks()) == N


def test_chunks_that_fit_no_cache_are_said_to(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "wide.h5", "x") as file:
        wide = file.create_dataset("signals", (10_000_000, 32, 4), "f4", chunks=(5_000_000, 1, 1))
        cost = layout(wide)
        assert not cost.cached
        assert "do not fit a cache of 512 MiB" in cost.notice("signals")
        assert open_cached(file, "signals").id.get_access_plist().get_chunk_cache()[1] <= 512 << 20


def test_s1_a_repacked_file_has_the_same_contents_and_nothing_slow(foreign: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    said = repack_signals(foreign, tmp_path / "new.h5", lambda done, total: seen.append((done, total)))
    assert "20000 × 1 × 1" in said
    assert seen[-1] == (N, N)
    with SignalsStore.open(tmp_path / "new.h5") as store:
        np.testing.assert_array_equal(np.concatenate(list(store.blocks())), SIGNALS)
        np.testing.assert_array_equal(store.labels[:], np.arange(N) % 3)
        assert store.metadata("machine", 0, 3).tolist() == ["a", "b", "a"]
        assert store.attributes["site"] == "mill"
        assert store.notice == ""
        chunk = store.signals.chunks
        assert chunk[1:] == (T, C)
        assert np.prod(chunk) * 4 <= 1 << 20
        assert layout(store.signals, rows=256).amplification < 40


def test_a_copy_onto_itself_and_a_file_of_another_form_are_refused(foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E2003"):
        repack_signals(foreign, foreign)
    with h5py.File(tmp_path / "other.h5", "x") as file:
        file["values"] = np.zeros(3)
    with pytest.raises(InputRefused, match="E3007"):
        repack_signals(tmp_path / "other.h5", tmp_path / "new.h5")
    assert not (tmp_path / "new.h5").exists()

"""The draw from small columns in blocks, against one over everything in memory (METHODS S18 to S20)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import PROJECT, anomaly
from extraction import make_plant
from small_plant import SMALL, chunk_of, contract_of, small_frame

from anomaly.data.contract import LogChunk
from anomaly.data.store import WindowStore, create_store
from anomaly.data.store_features import FORMAT, Features
from anomaly.errors import UsageError
from anomaly.fitting import Fitted
from anomaly.scores.sampling import row_noise
from anomaly.scores.window_scores import Limits, composite
from pipelines.extract import ExtractOptions, extract
from pipelines.sample_draw import FIGURES, Candidates, apart, draw, first_rows
from registry.bundle import load_bundle, save_bundle

ASSETS = ("P-1", "P-2", "P-3")


@pytest.fixture(scope="module")
def plants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three assets."""
    path = tmp_path_factory.mktemp("plants") / "plants.h5"
    frame = small_frame(700)
    contract = replace(contract_of(frame), asset="asset")
    with create_store(path, contract, SMALL.window, SMALL.split) as writer:
        for number, name in enumerate(ASSETS):
            chunk = chunk_of(frame.iloc[: 700 - 90 * number])
            writer.append(replace(chunk, asset=np.full(len(chunk), name, dtype=object)))
    return path


def write_features(store: WindowStore, path: Path, seed: int = 0, modes: int = 4) -> dict[str, np.ndarray]:
    """A features file of made-up figures; some windows have no mode, one an energy that is not finite."""
    rng, n = np.random.default_rng(seed), store.n_windows
    columns = {name: rng.gamma(2.0, size=n).astype(np.float32) for name in FIGURES}
    columns["cluster_id"] = rng.choice(modes, n, p=[0.6, 0.3, 0.097, 0.003]).astype(np.int32)
    bad = rng.random(n) < 0.05
    columns["cluster_id"][bad] = -1
    for name in FIGURES:
        columns[name][bad] = np.nan
    columns["energy"][np.flatnonzero(~bad)[40]] = np.inf
    columns["metadata/start"] = np.concatenate([b.starts for b in store.raw_blocks()])
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": FORMAT, "complete": True})
        file["features"] = np.zeros((n, 1), np.float32)
        for name, values in columns.items():
            file[name] = values
    return columns


def by_brute_force(
    store: WindowStore, columns: dict[str, np.ndarray], part: str | None, overlapping: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Window numbers that may be drawn and their rows over all assets, one window after another."""
    chosen, rows, before = [], [], 0
    for low, high, asset in store.window_spans():
        first, stop = (0, store.n_rows(asset)) if part is None else store.part_rows(asset, part)
        free = 0
        for number in range(low, high):
            start = int(columns["metadata/start"][number])
            figures = [columns[name][number] for name in FIGURES]
            if columns["cluster_id"][number] < 0 or not np.isfinite(figures).all():
                continue
            if start < first or start + store.lookback > stop or (start < free and not overlapping):
                continue
            free = start + store.lookback
            chosen.append(number)
            rows.append(before + start)
        before += store.n_rows(asset)
    return np.array(chosen), np.array(rows)


@pytest.mark.parametrize("part", [None, "train", "test"])
@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("size", [19, 97, 1 << 16])
def test_s19_s20_the_draw_in_blocks_is_that_over_everything_in_memory(
    plants: Path, tmp_path: Path, part: str | None, overlapping: bool, size: int
) -> None:
    temperature, seed, k, weights = 0.3, 11, 5, (0.5, 1.0, 0.8)
    with WindowStore.open(plants) as store:
        columns = write_features(store, tmp_path / "f.h5")
        number, row = by_brute_force(store, columns, part, overlapping)
        with Features.open(tmp_path / "f.h5") as features:
            candidates = Candidates(store, features, part, overlapping=overlapping, size=size)
            read = list(candidates.blocks())
            limits = Limits().fit(block.scores() for block in candidates.blocks())
            made = draw(candidates, limits, weights, k, temperature, seed)
    assert np.concatenate([block.row for block in read]).tolist() == row.tolist()
    scores = np.column_stack([columns[name][number] for name in ("stability", "novelty", "energy")])
    low, high = scores.min(axis=0).astype(float), scores.max(axis=0).astype(float)
    np.testing.assert_array_equal(limits.low, low)
    weight = (scores - low) / (high - low) @ np.array(weights)
    key, mode = weight + temperature * row_noise(row, seed), columns["cluster_id"][number]
    assert made.modes == {m: int((mode == m).sum()) for m in np.unique(mode)}
    expected = []
    for m in np.unique(mode):
        own = np.flatnonzero(mode == m)
        expected += own[np.argsort(-key[own])][:k].tolist()
    assert made.drawn.rows.tolist() == row[expected].tolist()
    assert made.rank.tolist() == [1 + int(((mode == mode[i]) & (weight > weight[i])).sum()) for i in expected]
    for name, column in zip(FIGURES, made.drawn.columns, strict=True):
        np.testing.assert_array_equal(column, columns[name][number[expected]])


def test_s20_windows_of_two_assets_share_no_row(plants: Path, tmp_path: Path) -> None:
    with WindowStore.open(plants) as store:
        write_features(store, tmp_path / "f.h5")
        assert first_rows(store).tolist() == [0, 700, 1310]
        with Features.open(tmp_path / "f.h5") as features:
            rows = np.concatenate([block.row for block in Candidates(store, features, size=50).blocks()])
    assert np.diff(rows).min() >= store.lookback
    for first in (700, 1310):
        assert rows[rows >= first].min() < first + store.lookback + 10, "the next asset begins with its own windows"


def test_s20_ties_share_their_place(plants: Path, tmp_path: Path) -> None:
    with WindowStore.open(plants) as store:
        write_features(store, tmp_path / "f.h5")
        with h5py.File(tmp_path / "f.h5", "r+") as file:
            for name in FIGURES:
                file[name][:] = 2.0
            file["energy"][100] = 3.0
            file["cluster_id"][:] = 0
        with Features.open(tmp_path / "f.h5") as features:
            candidates = Candidates(store, features, overlapping=True, size=64)
            made = draw(candidates, Limits().fit(b.scores() for b in candidates.blocks()), (1, 1, 1), 30, 1e-3, 7)
    assert made.rank.tolist() == [1] + [2] * 29
    assert made.warning == "", "what is constant correlates with nothing"


@pytest.mark.parametrize(("slope", "warns"), [(-1.0, True), (1.0, False), (0.0, False)])
def test_s18_cancelling_scores_are_told_as_if_all_were_in_memory(
    plants: Path, tmp_path: Path, slope: float, warns: bool
) -> None:
    with WindowStore.open(plants) as store:
        columns = write_features(store, tmp_path / "f.h5")
        columns["novelty"] = (1000 + slope * columns["stability"] + 0.1 * columns["novelty"]).astype(np.float32)
        with h5py.File(tmp_path / "f.h5", "r+") as file:
            file["novelty"][:] = columns["novelty"]
        number, _ = by_brute_force(store, columns, None, overlapping=True)
        scores = np.column_stack([columns[name][number] for name in ("stability", "novelty", "energy")])
        with Features.open(tmp_path / "f.h5") as features:
            candidates = Candidates(store, features, overlapping=True, size=64)
            limits = Limits().fit([scores])
            made = draw(candidates, limits, (0.5, 1.0, 0.8), 3, 0.1, 7)
    assert made.warning == composite(limits.scale(scores)).warning
    assert bool(made.warning) == warns


def test_s20_the_rule_of_shared_rows_is_the_first_that_fits() -> None:
    rng = np.random.default_rng(5)
    for lookback in (1, 3, 10):
        rows = np.flatnonzero(rng.random(400) < 0.6)
        kept, free = [], 37
        for at, row in enumerate(rows):
            if row >= free:
                kept.append(at)
                free = row + lookback
        assert apart(rows, lookback, 37).tolist() == kept
    assert apart(np.array([1, 2]), 3, 9).tolist() == []


def test_features_without_modes_are_refused_by_name(plants: Path, tmp_path: Path) -> None:
    with WindowStore.open(plants) as store:
        write_features(store, tmp_path / "f.h5")
        with h5py.File(tmp_path / "f.h5", "r+") as file:
            del file["novelty"]
        with Features.open(tmp_path / "f.h5") as features, pytest.raises(UsageError, match=r"E2001.*novelty"):
            Candidates(store, features)


def test_the_command_draws_from_an_extraction(fitted: Fitted, store_path: Path, tmp_path: Path) -> None:
    save_bundle(fitted.model, tmp_path / "model")
    features = tmp_path / "f.h5"
    extract(store_path, load_bundle(tmp_path / "model"), features, ExtractOptions(clusters=3))
    flags = ("--model", tmp_path / "model", "--features", features, "--k", 2)
    done = anomaly("sample", store_path, *flags, "--out", tmp_path / "drawn", "--json")
    assert done.status == 0, done.err
    assert done.json["drawn"] == 6 and len(done.json["modes"]) == 3
    said = anomaly("sample", store_path, *flags, "--out", tmp_path / "again")
    assert said.status == 0 and "6 of" in said.out
    wrong = anomaly("sample", store_path, *flags, "--out", tmp_path / "out", "--part", "all")
    assert wrong.status == 2 and "E2001" in wrong.err
    wrong = anomaly("sample", store_path, *flags, "--out", tmp_path / "out", "--weights", "1,x")
    assert wrong.status == 2 and "--weights" in wrong.err


_MEMORY = """
import sys, threading
from pathlib import Path
from pipelines.sample import sample
from registry.bundle import load_bundle
def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(l.split()[1]) for l in lines if l.startswith(("Private_Clean", "Private_Dirty"))) / 1024
model, peak, stop = load_bundle(Path(sys.argv[1])), [0.0], threading.Event()
def watch():
    while not stop.wait(0.02):
        peak[0] = max(peak[0], private())
sample(Path(sys.argv[2]), model, 3, out=Path(sys.argv[4]), clusters=4, overlapping=True)
thread = threading.Thread(target=watch); thread.start()
done = sample(Path(sys.argv[3]), model, 3, out=Path(sys.argv[4]), clusters=4, overlapping=True)
stop.set(); thread.join()
print(done.windows, peak[0])
"""


def _long_store(path: Path, rows: int, chunk: Callable[[int], LogChunk], step: int = 50_000) -> Path:
    frame = small_frame(100)
    with create_store(path, contract_of(frame), SMALL.window, SMALL.split) as writer:
        for low in range(0, rows, step):
            writer.append(chunk(low))
    return path


@pytest.mark.long
@pytest.mark.slow
def test_s20_memory_does_not_grow_with_the_number_of_windows(tmp_path: Path) -> None:
    plant, peaks = make_plant(tmp_path), []
    whole = chunk_of(small_frame(50_000))
    time = np.arange(50_000, dtype=np.int64) * 60_000_000 + whole.time[0]

    def chunk(low: int) -> LogChunk:
        return replace(whole, row=np.arange(low, low + 50_000), time=time + low * 60_000_000)

    tiny = plant.store
    for n in (100_000, 500_000):
        source = _long_store(tmp_path / f"{n}.h5", n, chunk)
        command = [sys.executable, "-c", _MEMORY, plant.bundle, tiny, source, tmp_path / "out"]
        done = subprocess.run(list(map(str, command)), cwd=PROJECT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        windows, peak = done.stdout.split()
        assert int(windows) > 0.95 * n
        peaks.append(float(peak))
        source.unlink()
    assert peaks[1] <= 1.05 * peaks[0] + 5, peaks

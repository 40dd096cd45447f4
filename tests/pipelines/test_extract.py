"""One streamed pass: embeddings, modes and scores of every window (METHODS S1 to S4, S8 to S13)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import PROJECT, anomaly
from extraction import Plant, datasets, make_plant, same, write_signals_file
from processes import run_apart

from anomaly.data import store_features
from anomaly.data.store import WindowStore
from anomaly.data.store_features import Features, part_folder
from anomaly.embeddings.reduction import subspace_angle
from anomaly.errors import InputRefused, Unavailable, UsageError
from anomaly.model import UNSCORABLE, prepared_rows
from pipelines.extract import ExtractOptions, extract

KILLED = -9


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    return make_plant(tmp_path_factory.mktemp("extract"))


@pytest.fixture(scope="module")
def extracted(plant: Plant, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store, extracted in the ordinary way."""
    out = tmp_path_factory.mktemp("features") / "features.h5"
    extract(plant.store, plant.model, out, ExtractOptions(reduce=4))
    return out


def prepared(plant: Plant) -> np.ndarray:
    """All windows as the encoder takes them, in memory at once."""
    with WindowStore.open(plant.store) as store:
        rows = (
            store.rows("", 0, store.n_rows(""))
            if "" in store.assets
            else store.rows(store.assets[0], 0, store.n_rows(store.assets[0]))
        )
        starts = np.concatenate([block.starts for block in store.window_blocks()])
    made = prepared_rows(plant.model.preparer, rows.values, rows.categories)
    return np.stack([made[start : start + plant.model.lookback] for start in starts])


def test_s2_features_of_all_windows_equal_those_of_one_big_call(plant: Plant, extracted: Path) -> None:
    windows = prepared(plant)
    with Features.open(extracted) as features:
        assert features.n == len(windows)
        np.testing.assert_allclose(features.column("features")[:], plant.model.encoder.embed(windows), atol=1e-5)
        apart = windows - plant.model.encoder.reconstruct(windows)
        np.testing.assert_allclose(features.column("reconstruction_error")[:], (apart**2).mean(axis=(1, 2)), rtol=1e-4)


def test_s2_every_raw_row_is_read_once_but_for_the_overlap_of_blocks(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[int]()
    inner = WindowStore._read

    def counting(self, dataset, start=0, stop=None):
        if dataset.name.endswith("/values"):
            read.append(int(stop) - int(start))
        return inner(self, dataset, start, stop)

    monkeypatch.setattr(WindowStore, "_read", counting)
    extract(plant.store, plant.model, tmp_path / "f.h5", ExtractOptions(block=1))
    with WindowStore.open(plant.store) as store:
        rows = store.n_part_rows(None)
    assert len(read) > 1
    assert rows - 20 <= sum(read) <= rows + len(read) * plant.model.lookback


def test_s13_scores_are_those_of_scoring_the_log(plant: Plant, extracted: Path) -> None:
    with WindowStore.open(plant.store) as store:
        asset = store.assets[0]
        block = store.rows(asset, 0, store.n_rows(asset))
        ends = np.concatenate([b.starts for b in store.window_blocks()]) + store.lookback - 1
    scored = plant.model.stream().score(block.as_chunk())
    with Features.open(extracted) as features:
        mine, outcome = features.column("anomaly_score")[:], features.column("outcome")[:]
    np.testing.assert_allclose(mine, scored.score[ends], atol=2e-3)
    assert (outcome == scored.outcome[ends]).mean() > 0.999


def test_results_do_not_depend_on_threads_or_blocks(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.extraction._PIECE", 128)
    extracted = tmp_path / "f.h5"
    extract(plant.store, plant.model, extracted, ExtractOptions(reduce=4))
    for number, (workers, block) in enumerate([(1, 1), (2, 64), (5, 100_000)]):
        out = tmp_path / f"{number}.h5"
        extract(plant.store, plant.model, out, ExtractOptions(reduce=4, workers=workers, block=block))
        same(extracted, out)


def test_both_forms_of_a_store_give_the_same(plant: Plant, extracted: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.h5"
    extract(plant.signals, plant.model, out, ExtractOptions(space=extracted))
    one, other = datasets(extracted), datasets(out)
    for name in ("features", "reconstruction_error", "energy", "reduced", "cluster_id", "novelty"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_s8_s10_s11_modes_equal_scikit_learn_and_brute_force(plant: Plant, extracted: Path) -> None:
    from sklearn.decomposition import PCA

    with Features.open(extracted) as features, WindowStore.open(plant.store) as store:
        settings, arrays = features.kept("space")
        embedded, learn = features.column("features")[:], store.learnable(0, store.n_windows)
        reduced, ids = features.column("reduced")[:], features.column("cluster_id")[:]
        novelty = features.column("novelty")[:]
    exact = PCA(4).fit(embedded[learn].astype(np.float64))
    assert np.degrees(subspace_angle(arrays["pca_components"], exact.components_)) < 1e-3
    turned = (embedded - arrays["pca_mean"]) @ arrays["pca_components"].T
    np.testing.assert_allclose(reduced, turned, atol=1e-4)
    centres = arrays["kmeans_centers"]
    apart = np.linalg.norm(reduced[:, None] - centres[None], axis=2)
    assert (ids == apart.argmin(axis=1)).mean() > 0.999
    np.testing.assert_allclose(novelty, apart.min(axis=1) / arrays["kmeans_radius"][ids], rtol=1e-3)
    best = apart[np.arange(len(ids)), ids][learn]
    assert settings["kmeans"]["clusters"] == len(centres)
    assert (best**2).sum() <= 1.05 * _kmeans_inertia(reduced[learn], len(centres))


def _kmeans_inertia(rows: np.ndarray, clusters: int) -> float:
    from sklearn.cluster import KMeans

    return float(KMeans(clusters, n_init=5, random_state=0).fit(rows).inertia_)


def test_s8_incremental_pca_is_offered_and_its_angle_told(plant: Plant, tmp_path: Path) -> None:
    done = extract(plant.store, plant.model, tmp_path / "f.h5", ExtractOptions(reduce=4, pca="incremental"))
    assert done.pca_angle_degrees is not None and 0 <= done.pca_angle_degrees < 90
    with Features.open(tmp_path / "f.h5") as features:
        assert features.kept("space")[0]["pca"]["method"] == "incremental"


def test_s13_a_space_that_is_given_is_used_and_not_changed(plant: Plant, extracted: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.h5"
    before = datasets(extracted)
    extract(plant.store, plant.model, out, ExtractOptions(space=extracted))
    same(extracted, out)
    for name, values in before.items():
        np.testing.assert_array_equal(values, datasets(extracted)[name])


def test_s3_labels_and_metadata_are_copied_with_their_attributes(plant: Plant, tmp_path: Path) -> None:
    source, out = tmp_path / "signals.h5", tmp_path / "f.h5"
    shutil.copyfile(plant.signals, source)
    with h5py.File(source, "r+") as file:
        file["labels"].attrs["meaning"] = "1 is an event"
        file["metadata"].attrs["plant"] = "north"
    with h5py.File(source) as file:  # a changed file is foreign: its seal no longer holds
        plain = tmp_path / "plain.h5"
        with h5py.File(plain, "w") as copy:
            for name in file:
                file.copy(name, copy)
    extract(plain, plant.model, out, ExtractOptions())
    one, other = datasets(plain), datasets(out)
    for name in ("labels", *(name for name in one if name.startswith("metadata/"))):
        np.testing.assert_array_equal(one[name], other[name])
    with h5py.File(out) as file:
        assert file["labels"].attrs["meaning"] == "1 is an event"
        assert file["metadata"].attrs["plant"] == "north"
        assert "signals" not in file


def test_s3_labels_and_metadata_may_be_absent(plant: Plant, tmp_path: Path) -> None:
    with h5py.File(plant.signals) as file, h5py.File(tmp_path / "bare.h5", "w") as bare:
        bare["signals"] = file["signals"][:200]
    done = extract(tmp_path / "bare.h5", plant.model, tmp_path / "f.h5", ExtractOptions())
    assert done.windows == 200
    assert not {"labels", "metadata"} & set(h5py.File(tmp_path / "f.h5"))


def test_s3_signals_are_copied_linked_or_left_out(plant: Plant, tmp_path: Path) -> None:
    with h5py.File(plant.signals) as file:
        raw = file["signals"][:]
    for how in ("copy", "link"):
        out = tmp_path / f"{how}.h5"
        extract(plant.signals, plant.model, out, ExtractOptions(signals=how, features_only=True))
        with h5py.File(out) as file:
            np.testing.assert_array_equal(file["signals"][:], raw)
    extract(plant.store, plant.model, tmp_path / "series.h5", ExtractOptions(signals="copy", features_only=True))
    np.testing.assert_array_equal(h5py.File(tmp_path / "series.h5")["signals"][:], raw)


def test_s4_features_alone_are_the_features_of_the_enriched_file(plant: Plant, extracted: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.h5"
    extract(plant.store, plant.model, out, ExtractOptions(features_only=True))
    alone, all_of_it = datasets(out), datasets(extracted)
    assert not {"anomaly_score", "cluster_id", "energy"} & alone.keys()
    for name in ("features", "labels", "metadata/start", "metadata/time", "metadata/asset"):
        np.testing.assert_array_equal(alone[name], all_of_it[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    ["features.after_journal:1", "features.before_journal:2", "features.after_journal:2",
     "features.before_rename", "features.after_rename"],
)  # fmt: skip
def test_killed_it_goes_on_at_the_last_commit(plant: Plant, tmp_path: Path, point: str) -> None:
    whole, out = tmp_path / "whole.h5", tmp_path / "killed.h5"
    command = ["extract", plant.store, "--model", plant.bundle, "--reduce", 4, "--clusters", 3]
    assert anomaly(*command, "--out", whole).status == 0
    status, said = run_apart(tmp_path, *command, "--out", out, killpoint=point)
    assert status == KILLED, said
    again = anomaly(*command, "--out", out, "--resume", "--json")
    assert again.status == 0, again.err
    same(whole, out)
    assert not part_folder(out).exists()


def test_resumed_in_the_middle_it_gives_the_same(plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.extract._COMMIT_SECONDS", 0.0)
    monkeypatch.setattr("anomaly.extraction._PIECE", 128)
    extracted = tmp_path / "f.h5"
    extract(plant.store, plant.model, extracted, ExtractOptions(reduce=4))
    for commits in range(1, 60, 7):
        out = tmp_path / f"{commits}.h5"
        left, save = [commits], store_features.Journal.save

        def dying(self, folder, left=left, save=save):
            save(self, folder)
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        options = ExtractOptions(reduce=4, block=64)
        with monkeypatch.context() as patch:
            patch.setattr(store_features.Journal, "save", dying)
            try:
                extract(plant.store, plant.model, out, options)
            except KeyboardInterrupt:
                assert not out.exists()
        if not out.exists():
            done = extract(plant.store, plant.model, out, ExtractOptions(reduce=4, block=64, resume=True))
            assert done.windows
        same(extracted, out)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_signal_stops_at_a_block_and_the_run_can_go_on(
    plant: Plant, tmp_path: Path, number: int, status: int
) -> None:
    windows = np.random.default_rng(0).normal(size=(400_000, plant.model.lookback, 6)).astype(np.float32)
    source = write_signals_file(tmp_path / "many.h5", windows)
    out = tmp_path / "f.h5"
    command = [sys.executable, "-m", "pipelines.cli", "extract", source, "--model", plant.bundle, "--out", out]
    run = subprocess.Popen(list(map(str, command)), cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (part_folder(out) / "data.h5").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    run.send_signal(number)
    _, said = run.communicate(timeout=120)
    assert run.returncode == status, said
    assert "--resume" in said and not out.exists()
    done = anomaly(*command[3:], "--resume", "--json")
    assert done.status == 0, done.err
    assert done.json["resumed_at"] > 0
    assert done.json["windows"] == 400_000
    with Features.open(out) as features:
        assert np.isfinite(features.column("anomaly_score")[:]).all()


def test_a_window_with_a_missing_value_is_unscorable_and_counted(plant: Plant, tmp_path: Path) -> None:
    with h5py.File(plant.signals) as file:
        windows = file["signals"][:500]
    windows[[3, 77], 2, 1] = np.nan
    source = write_signals_file(tmp_path / "gaps.h5", windows)
    done = extract(source, plant.model, tmp_path / "f.h5", ExtractOptions())
    assert done.unscorable == 2
    found = datasets(tmp_path / "f.h5")
    for name in ("features", "anomaly_score", "energy", "novelty"):
        missing = np.isnan(found[name].reshape(500, -1)).any(axis=1)
        assert np.flatnonzero(missing).tolist() == [3, 77], name
    assert (found["cluster_id"][[3, 77]] == -1).all()
    assert np.flatnonzero(found["outcome"] == UNSCORABLE).tolist() == [3, 77]


def test_an_output_that_exists_is_refused_and_kept(plant: Plant, tmp_path: Path) -> None:
    out = tmp_path / "f.h5"
    out.write_text("mine")
    with pytest.raises(UsageError, match="overwrite"):
        extract(plant.store, plant.model, out, ExtractOptions())
    assert out.read_text() == "mine"
    extract(plant.store, plant.model, out, ExtractOptions(overwrite=True, features_only=True))
    again = extract(plant.store, plant.model, out, ExtractOptions(resume=True, features_only=True))
    assert "complete" in again.notices[0]
    with pytest.raises(UsageError, match="overwrite"):
        extract(plant.store, plant.model, out, ExtractOptions(resume=True))


def test_an_unfinished_run_is_neither_lost_nor_mixed(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.h5"
    _full_disk_after(monkeypatch, 3)
    with pytest.raises(Unavailable):
        extract(plant.store, plant.model, out, ExtractOptions(block=64))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="resume"):
        extract(plant.store, plant.model, out, ExtractOptions(block=64))
    with pytest.raises(InputRefused, match="options"):
        extract(plant.store, plant.model, out, ExtractOptions(reduce=3, resume=True))
    extract(plant.store, plant.model, out, ExtractOptions(resume=True))
    assert out.exists()


def _full_disk_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    monkeypatch.setattr("pipelines.extract._COMMIT_SECONDS", 0.0)
    inner, left = store_features.FeaturesFile.write, [writes]

    def write(self, first, columns):
        left[0] -= 1
        if left[0] < 0:
            with store_features._disk(self.folder):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inner(self, first, columns)

    monkeypatch.setattr(store_features.FeaturesFile, "write", write)


def test_a_full_disk_is_said_plainly_and_the_run_goes_on_later(
    plant: Plant, extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.h5"
    _full_disk_after(monkeypatch, 3)
    with pytest.raises(Unavailable, match=r"E5002.*--resume"):
        extract(plant.store, plant.model, out, ExtractOptions(reduce=4, block=64))
    assert not out.exists()
    monkeypatch.undo()
    extract(plant.store, plant.model, out, ExtractOptions(reduce=4, resume=True))
    same(extracted, out)


def test_too_little_room_is_told_before_anything_is_written(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(store_features.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(Unavailable, match="GB of room"):
        extract(plant.store, plant.model, tmp_path / "f.h5", ExtractOptions())
    assert list(tmp_path.iterdir()) == []


def test_stores_that_cannot_be_extracted_are_refused(plant: Plant, tmp_path: Path) -> None:
    with h5py.File(plant.signals) as file:
        windows = file["signals"][:100]
    out = tmp_path / "f.h5"

    def refused(source: Path, code: str) -> None:
        with pytest.raises(InputRefused, match=code):
            extract(source, plant.model, out, ExtractOptions())
        assert not out.exists() and not part_folder(out).exists()

    cut = tmp_path / "cut.h5"
    cut.write_bytes(plant.store.read_bytes()[:-5000])
    refused(cut, "E3006")
    refused(tmp_path / "none.h5", "E3001")
    refused(write_signals_file(tmp_path / "short.h5", windows[:, :-1]), "E3402")
    refused(write_signals_file(tmp_path / "few.h5", windows[:, :, :4]), "E3402")
    renamed = tmp_path / "renamed.h5"
    with h5py.File(renamed, "w") as file:
        file["signals"] = windows
        file.create_group("metadata").attrs["tags"] = [f"tag{i}" for i in (1, 0, 2, 3, 4, 5)]
    refused(renamed, "E3402.*tag 1")
    unfinished = tmp_path / "unfinished.h5"
    with h5py.File(plant.store) as file, h5py.File(unfinished, "w") as copy:
        for name in file:
            file.copy(name, copy)
        copy.attrs.update({k: v for k, v in file.attrs.items() if k != "complete"})
    refused(unfinished, "E3401")


def test_a_flipped_byte_is_met_by_a_checksum_and_refused(plant: Plant, tmp_path: Path) -> None:
    with WindowStore.open(plant.store) as store:
        group = store._groups[store.assets[0]]
    with h5py.File(plant.store) as file:
        offset = file[f"{group}/values"].id.get_chunk_info(0).byte_offset
    flipped, blob = tmp_path / "flipped.h5", bytearray(plant.store.read_bytes())
    blob[offset + 40] ^= 0x10
    flipped.write_bytes(blob)
    with pytest.raises(InputRefused, match="E3006"):
        extract(flipped, plant.model, tmp_path / "f.h5", ExtractOptions())
    assert not (tmp_path / "f.h5").exists()


def test_a_flipped_byte_of_signals_is_refused_before_anything_is_written(plant: Plant, tmp_path: Path) -> None:
    with h5py.File(plant.signals) as file:
        assert not file["signals"].fletcher32
        offset = file["signals"].id.get_chunk_info(0).byte_offset
    flipped, blob = tmp_path / "flipped.h5", bytearray(plant.signals.read_bytes())
    blob[offset + 40] ^= 0x10
    flipped.write_bytes(blob)
    with pytest.raises(InputRefused, match="E3006"):
        extract(flipped, plant.model, tmp_path / "f.h5", ExtractOptions())
    assert [p.name for p in tmp_path.iterdir()] == ["flipped.h5"]


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"reduce": -1}, {"clusters": 0}, {"signals": "some"}, {"pca": "kernel"}, {"block": 0}]
)
def test_options_that_cannot_be_followed_are_refused_by_name(options: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        ExtractOptions(**options)


@pytest.mark.parametrize(
    ("options", "said"), [({"reduce": 999}, "ask for fewer"), ({"clusters": 10**6}, "fewer clusters")]
)
def test_spaces_that_the_windows_cannot_have_are_refused(
    plant: Plant, tmp_path: Path, options: dict, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        extract(plant.store, plant.model, tmp_path / "f.h5", ExtractOptions(**options))
    assert not (tmp_path / "f.h5").exists()


def test_the_command_tells_what_it_did(plant: Plant, tmp_path: Path) -> None:
    done = anomaly("extract", plant.store, "--model", plant.bundle, "--out", tmp_path / "f.h5")
    assert done.status == 0, done.err
    said = done.out + done.err
    assert "windows/s" in said and "modes" in said and "engine" in said
    with Features.open(tmp_path / "f.h5") as features:
        assert features.attributes["complete"] and json.loads(features.attributes["detectors"])[0] == "reconstruction"


_MEMORY = """
import os, sys, threading, time
from pathlib import Path
from pipelines.extract import ExtractOptions, extract
from registry.bundle import load_bundle
def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(l.split()[1]) for l in lines if l.startswith(("Private_Clean", "Private_Dirty"))) / 1024
model, peak, stop = load_bundle(Path(sys.argv[1])), [0.0], threading.Event()
def watch():
    while not stop.wait(0.02):
        peak[0] = max(peak[0], private())
extract(Path(sys.argv[2]), model, Path(sys.argv[4]), ExtractOptions(clusters=4))
base = private()
thread = threading.Thread(target=watch); thread.start()
extract(Path(sys.argv[3]), model, Path(sys.argv[4]), ExtractOptions(clusters=4, overwrite=True))
stop.set(); thread.join()
print(base, peak[0])
"""


@pytest.mark.long
@pytest.mark.slow
def test_s2_memory_does_not_grow_with_the_number_of_windows(plant: Plant, tmp_path: Path) -> None:
    rng, peaks = np.random.default_rng(0), []
    lookback = plant.model.lookback
    tiny = write_signals_file(tmp_path / "tiny.h5", rng.normal(size=(2000, lookback, 6)).astype(np.float32))
    for n in (100_000, 500_000):
        source = write_signals_file(tmp_path / f"{n}.h5", rng.normal(size=(n, lookback, 6)).astype(np.float32))
        command = [sys.executable, "-c", _MEMORY, plant.bundle, tiny, source, tmp_path / "f.h5"]
        done = subprocess.run(list(map(str, command)), cwd=PROJECT, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[1]))
        (tmp_path / "f.h5").unlink()
    assert peaks[1] <= 1.05 * peaks[0] + 5, peaks

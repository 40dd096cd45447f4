"""``anomaly ingest``: logs of every layout become one window store, and what was inferred is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import Press, anomaly, write_log

from anomaly.data.contract import EVENT, LEAD, NORMAL
from anomaly.data.store import WindowStore
from anomaly.files import TEMPORARY

FLAGS = ("--label", "label", "--lookback", "6", "--lead", "4min")


def rows_of(path: Path) -> pd.DataFrame:
    """All rows of a store: time, tags, kind."""
    with WindowStore.open(path) as store:
        blocks = list(store.row_blocks())
        found = pd.DataFrame(np.concatenate([b.values for b in blocks]), columns=list(store.contract.tags))
        found.insert(0, "time", np.concatenate([b.time for b in blocks]))
        found["kind"] = np.concatenate([b.kind for b in blocks])
    return found


@pytest.fixture(scope="module")
def expected(press: Press, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    path = tmp_path_factory.mktemp("wide") / "store.h5"
    assert anomaly("ingest", press.log, *FLAGS, "--store", path).status == 0
    return rows_of(path)


def test_s1_the_store_holds_the_rows_of_the_log(
    press: Press, home: Path, tmp_path: Path, expected: pd.DataFrame
) -> None:
    done = anomaly("ingest", press.log, *FLAGS, "--store", tmp_path / "store.h5", "--json").json
    tags = [f"tag{i}" for i in range(6)]
    assert np.allclose(expected[tags], press.frame[tags])
    assert (expected["time"].to_numpy() == press.frame["time"].astype("datetime64[us, UTC]").astype("int64")).all()
    assert ((expected["kind"] == EVENT) == (press.frame["label"] == 1)).all()
    assert done["rows"] == len(press.frame)
    assert [g["tag"] for g in done["grades"]] == tags
    assert any("inferred" in n for n in done["notices"]), "what was inferred is said"


def test_s58_a_lead_stands_before_each_event_and_never_crosses_a_gap(
    press: Press, home: Path, tmp_path: Path, expected: pd.DataFrame
) -> None:
    assert (expected["kind"] == LEAD).sum() == 4 * (expected["kind"] == EVENT).sum()
    cut = press.frame[(press.frame.index < 148) | (press.frame.index >= 150)].drop(index=range(60, 148))
    log = write_log(cut, tmp_path / "gap.csv")
    assert anomaly("ingest", log, *FLAGS, "--store", tmp_path / "gap.h5").status == 0
    kinds = rows_of(tmp_path / "gap.h5")["kind"].to_numpy()
    assert kinds[60] == EVENT, "the event is the first row after a gap of 90 minutes"
    assert (kinds[:60] == NORMAL).all()


def test_layouts_of_one_log_give_one_store(press: Press, home: Path, tmp_path: Path, expected: pd.DataFrame) -> None:
    """Parquet, long form, a German CSV, several files and a folder hold the same rows as the CSV."""
    frame = press.frame
    folder = tmp_path / "days"
    folder.mkdir()
    parts = [write_log(frame[:1000], folder / "1.csv"), write_log(frame[1000:], folder / "2.parquet")]
    long = frame.rename(columns={"label": "fault"}).melt("time", var_name="tag", value_name="value")
    german = tmp_path / "german.csv"
    local = frame.assign(time=frame["time"].dt.tz_convert("Europe/Berlin").dt.strftime("%d.%m.%Y %H:%M:%S"))
    local.to_csv(german, index=False, sep=";", decimal=",")
    layouts: dict[str, tuple[object, ...]] = {
        "parquet": (write_log(frame, tmp_path / "a.parquet"), *FLAGS),
        "two files": (*parts, *FLAGS),
        "folder": (folder, *FLAGS),
        "long": (
            write_log(long.sort_values("time", kind="stable"), tmp_path / "long.csv"),
            "--label",
            "fault",
            *FLAGS[2:],
        ),
        "german": (german, *FLAGS, "--timezone", "Europe/Berlin", "--time-format", "%d.%m.%Y %H:%M:%S"),
    }
    for name, arguments in layouts.items():
        store = tmp_path / f"{name}.h5"
        done = anomaly("ingest", *arguments, "--store", store)
        assert done.status == 0, (name, done.err)
        found = rows_of(store)
        if name == "long":
            found = found[list(expected.columns)]
        pd.testing.assert_frame_equal(found, expected, rtol=1e-5, atol=1e-5, obj=name)


def test_a_store_is_replaced_and_a_foreign_file_is_not(press: Press, home: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.h5"
    for rows in (800, 600):
        log = write_log(press.frame[:rows], tmp_path / "a.csv")
        assert anomaly("ingest", log, *FLAGS, "--store", store, "--json").json["rows"] == rows
    assert len(rows_of(store)) == 600
    (tmp_path / "notes.txt").write_text("mine")
    done = anomaly("ingest", press.log, *FLAGS, "--store", tmp_path / "notes.txt")
    assert done.status == 2
    assert "E2003" in done.err
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.rglob(f"*{TEMPORARY}*"))


def test_rows_without_a_label_are_unknown_unless_declared_normal(press: Press, home: Path, tmp_path: Path) -> None:
    """Files without the label column beside one that has it: never taken as normal by themselves (METHODS S56)."""
    labelled = write_log(press.frame[:900], tmp_path / "1.csv")
    bare = write_log(press.frame[900:1400].drop(columns="label"), tmp_path / "2.csv")
    for flags, unknown in (((), 500), (("--unlabelled", "normal"), 0)):
        done = anomaly("ingest", labelled, bare, *FLAGS, *flags, "--store", tmp_path / "s.h5", "--json").json
        assert done["label_counts"].get("-1", 0) == unknown


def test_the_sensors_are_graded_for_people(press: Press, home: Path, tmp_path: Path) -> None:
    frozen = press.frame[:900].assign(tag3=7.0)
    done = anomaly("ingest", write_log(frozen, tmp_path / "a.csv"), *FLAGS, "--store", tmp_path / "s.h5")
    assert done.status == 0, done.err
    grades = {line.split()[0]: line for line in done.out.splitlines() if line.startswith("tag")}
    assert set(grades) >= {f"tag{i}" for i in range(6)}
    assert "900 rows" in grades["tag3"]


def test_s1_repack_copies_a_file_of_windows_and_says_what_was_slow(tmp_path: Path) -> None:
    import h5py

    signals = np.random.default_rng(0).normal(size=(40_000, 8, 4)).astype(np.float32)
    with h5py.File(tmp_path / "old.h5", "x") as file:
        file.create_dataset("signals", data=signals, chunks=(20_000, 1, 1))
    done = anomaly("ingest", tmp_path / "old.h5", "--repack", "--store", tmp_path / "new.h5", "--json").json
    assert done["windows"] == 40_000
    assert "20000 × 1 × 1" in done["notice"]
    with h5py.File(tmp_path / "new.h5") as file:
        np.testing.assert_array_equal(file["signals"][:], signals)
    said = anomaly("ingest", tmp_path / "new.h5", "--repack", "--store", tmp_path / "again.h5")
    assert "was not slow to read" in said.out
    refused = anomaly("ingest", tmp_path / "old.h5", tmp_path / "new.h5", "--repack", "--store", tmp_path / "x.h5")
    assert (refused.status, "E2001" in refused.err) == (2, True)
    same = anomaly("ingest", tmp_path / "old.h5", "--repack", "--store", tmp_path / "old.h5")
    assert (same.status, "E2003" in same.err) == (2, True)

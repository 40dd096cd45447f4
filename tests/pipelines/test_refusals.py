"""Bad input at the command line: exit status 3, coded lines that name file, column and row, and nothing written.

The readers' own table (``tests/anomaly/test_readers_refusals.py``) holds every kind of bad file; here each class of fault
goes through each command once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import SHORT, Press, anomaly, files_under, write_log
from small_plant import small_frame

Recipe = Callable[[Path], None]


def frame(rows: int = 400) -> pd.DataFrame:
    return small_frame(rows)


def cell(row: int, column: str, value: str | int) -> Recipe:
    """The small log as CSV with one cell replaced; rows count from 1."""

    def write(path: Path) -> None:
        changed = frame().astype(object)
        changed.loc[row - 1, column] = value
        write_log(changed, path)

    return write


def made(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Recipe:
    def write(path: Path) -> None:
        write_log(change(frame()), path)

    return write


def text(content: str | bytes) -> Recipe:
    def write(path: Path) -> None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def lines(change: Callable[[list[str]], list[str]]) -> Recipe:
    """The small log as CSV with its lines changed."""

    def write(path: Path) -> None:
        write_log(frame(), path)
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return write


def damaged(change: Callable[[bytearray], bytearray]) -> Recipe:
    """The small log as Parquet with checksums, then with other bytes."""

    def write(path: Path) -> None:
        pq.write_table(
            pa.Table.from_pandas(frame(), preserve_index=False), path, write_page_checksum=True, compression="none"
        )
        path.write_bytes(bytes(change(bytearray(path.read_bytes()))))

    return write


def flipped(data: bytearray) -> bytearray:
    data[len(data) // 3] ^= 0xFF
    return data


@dataclass(frozen=True)
class Case:
    id: str
    command: str  # those it is tried with: s(core), t(rain), i(ingest)
    recipe: Recipe
    code: str
    column: str | None = None
    row: int | None = None
    flags: tuple[str, ...] = ()
    name: str = "log.csv"


CASES = [
    Case("no such file", "sti", lambda path: None, "E3001"),
    Case("empty", "sti", text(b""), "E3002"),
    Case("header only", "sti", text("time,tag0,tag1,tag2,tag3,tag4,tag5,label\n"), "E3003"),
    Case("cut line", "sti", lines(lambda all_: [*all_[:200], all_[200][:20]]), "E3004", row=200),
    Case("not UTF-8", "si", text("time,tag0\n2026-01-01,\xfc\n".encode("latin-1")), "E3005"),
    Case("truncated Parquet", "sti", damaged(lambda d: d[: len(d) // 2]), "E3006", name="log.parquet"),
    Case("flipped Parquet", "sti", damaged(flipped), "E3006", name="log.parquet"),
    Case("an archive", "si", text(b"PK\x03\x04" + bytes(100)), "E3007"),
    Case("missing column", "s", made(lambda f: f.drop(columns="tag3")), "E3101", "tag3"),
    Case("renamed column", "s", made(lambda f: f.rename(columns={"tag3": "tag_3"})), "E3101", "tag3"),
    Case("extra column", "s", made(lambda f: f.assign(pump=1.5)), "E3102", "pump"),
    Case("duplicate column", "sti", lines(lambda all_: [all_[0].replace("tag4", "tag3"), *all_[1:]]), "E3103", "tag3"),
    Case("no label column", "ti", made(lambda f: f.drop(columns="label")), "E3105", "label"),
    Case("text in a number column", "sti", cell(77, "tag2", "oops"), "E3107", "tag2", 77),
    Case("no numeric tag", "i", made(lambda f: f[["time", "label"]].assign(what="stop")), "E3108"),
    Case("tag without a value", "ti", made(lambda f: f.assign(tag1=np.nan)), "E3109", "tag1",
         flags=("--tags", "tag0,tag1")),
    Case("infinite", "sti", cell(12, "tag5", "-inf"), "E3110", "tag5", 12),
    Case("1e38", "sti", cell(13, "tag5", "1e38"), "E3111", "tag5", 13),
    Case("label 2", "ti", cell(14, "label", 2), "E3112", "label", 14),
    Case("naive times", "s", made(lambda f: f.assign(time=f["time"].dt.tz_localize(None))), "E3201", "time"),
    Case("day or month", "ti", made(lambda f: f.assign(time=f["time"].dt.strftime("%m/%d/%Y %H:%M"))), "E3202", "time"),
    Case("unreadable time", "sti", cell(20, "time", "soon"), "E3204", "time", 20),
    Case("times go backwards", "sti", lines(lambda all_: [*all_[:90], all_[80], *all_[90:]]), "E3205", "time", 90),
    Case("same time, other values", "sti",
         lines(lambda all_: [*all_[:91], all_[90].rpartition(",")[0] + ",1", *all_[91:]]), "E3206", None, 91),
    Case("epoch in the wrong unit", "i", made(lambda f: f.assign(time=f["time"].astype("int64"))), "E3207", "time",
         flags=("--time-format", "epoch_s")),
    Case("shorter than a window", "ti", made(lambda f: f[:4]), "E3301"),
    Case("shorter than a window, to score", "s", made(lambda f: f[:4]), "E3301"),
    Case("no normal row", "ti", made(lambda f: f.assign(label=1)), "E3302"),
    Case("another period", "s", made(lambda f: f.assign(time=f["time"][0] + pd.to_timedelta(np.arange(400), "h"))),
         "E3303"),
]  # fmt: skip
RUNS = [pytest.param(c, which, id=f"{which}: {c.id}") for c in CASES for which in c.command]


@pytest.fixture
def ready(press: Press, home: Path, tmp_path: Path) -> Path:
    """A state that has an alert database and an earlier score file, so that a change to either would show."""
    log = write_log(press.frame[:300], tmp_path / "earlier.csv")
    done = anomaly("score", log, "--model", press.bundle, "--out", tmp_path / "out.parquet")
    assert done.status == 0, done.err
    return tmp_path


def command(which: str, log: Path, flags: tuple[str, ...], bundle: Path, folder: Path) -> tuple[object, ...]:
    return {
        "s": ("score", log, "--model", bundle, "--out", folder / "out.parquet"),
        "t": ("train", log, *SHORT, *flags, "--out", folder / "model"),
        "i": ("ingest", log, "--label", "label", "--lookback", "6", *flags, "--store", folder / "store.h5"),
    }[which]


@pytest.mark.parametrize(("case", "which"), RUNS)
def test_a_bad_log_is_refused_and_nothing_is_written(press: Press, ready: Path, case: Case, which: str) -> None:
    log = ready / case.name
    case.recipe(log)
    before = files_under(ready)
    done = anomaly(*command(which, log, case.flags, press.bundle, ready))
    assert done.status == 3, (done.out, done.err)
    assert done.out == ""
    wanted = [w for w in (case.column and f"column={case.column}", case.row and f"row={case.row} ") if w]
    said = [line for line in done.err.splitlines() if line.startswith(case.code)]
    assert any(all(w in line for w in wanted) for line in said), (case.code, wanted, done.err)
    if case.code not in ("E3301", "E3302"):
        assert any(str(log) in line for line in said), done.err
    assert files_under(ready) == before


def test_every_class_of_fault_is_in_the_table() -> None:
    assert len({c.code for c in CASES}) >= 24
    assert {w for c in CASES for w in c.command} == set("sti")


def test_all_faults_of_all_files_come_in_one_report(press: Press, ready: Path) -> None:
    first, second = ready / "1.csv", ready / "2.csv"
    cell(5, "tag1", "x")(first)
    text(b"")(second)
    done = anomaly("score", first, second, "--model", press.bundle, "--out", ready / "out.parquet")
    assert done.status == 3
    codes = [line.split()[0] for line in done.err.splitlines()]
    assert {"E3107", "E3002"} <= set(codes)
    assert str(first) in done.err
    assert str(second) in done.err


@pytest.fixture(scope="module")
def store(press: Press, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ingested") / "store.h5"
    done = anomaly("ingest", press.log, "--label", "label", "--lookback", "6", "--store", path)
    assert done.status == 0, done.err
    return path


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty after the signature"])
def test_a_damaged_window_store_is_refused(press: Press, ready: Path, store: Path, how: str) -> None:
    data = bytearray(store.read_bytes())
    bad = {
        "truncated": data[: len(data) * 2 // 3],
        "flipped": flipped(data[:]),
        "empty after the signature": data[:600],
    }
    (ready / "store.h5").write_bytes(bad[how])
    before = files_under(ready)
    done = anomaly("train", ready / "store.h5", *SHORT, "--out", ready / "model")
    assert done.status == 3, done.err
    assert "E3006" in done.err
    assert str(ready / "store.h5") in done.err
    assert files_under(ready) == before


@pytest.mark.parametrize("kind", ["folder with other files", "file"])
def test_an_output_that_is_something_else_is_left_alone(press: Press, ready: Path, kind: str) -> None:
    target = ready / "model"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    before = files_under(ready)
    done = anomaly("train", press.log, *SHORT, "--out", target)
    assert done.status == 2
    assert "E2003" in done.err
    assert files_under(ready) == before


def test_a_folder_without_logs_is_refused(press: Press, ready: Path) -> None:
    (ready / "empty").mkdir()
    done = anomaly("score", ready / "empty", "--model", press.bundle, "--out", ready / "out.parquet")
    assert done.status == 3
    assert "E3001" in done.err


@pytest.mark.parametrize("member", ["manifest.json", "arrays.npz", "canary.json"])
def test_a_changed_bundle_ends_with_4(press: Press, ready: Path, member: str) -> None:
    model = ready / "model"
    model.mkdir()
    for file in press.bundle.iterdir():
        data = bytearray(file.read_bytes())
        (model / file.name).write_bytes(flipped(data) if file.name == member else data)
    before = files_under(ready)
    done = anomaly("score", press.log, "--model", model, "--out", ready / "out.parquet")
    assert done.status == 4, done.err
    assert "E400" in done.err
    assert files_under(ready) == before


def test_a_log_too_short_for_a_detector_is_refused_and_nothing_is_registered(press: Press, home: Path, tmp_path: Path):
    """Found by the learning curve of the benchmark: it was told as a bug of ours (E7000)."""
    log = write_log(press.frame[:300], tmp_path / "short.csv")
    (tmp_path / "short.toml").write_text(
        f"""
        [log]
        paths = ["{log}"]
        label = "label"
        [window]
        lookback = 6
        lead = "4min"
        [training]
        epochs = 1
        [detection]
        detectors = ["knn", "gmm"]
        [detection.options.gmm]
        components = 5000
        """,
        encoding="utf-8",
    )
    done = anomaly("train", tmp_path / "short.toml", "--out", tmp_path / "model")
    assert done.status == 3 and "E3302 expected=normal windows enough for knn, gmm" in done.err, done.err
    assert "5000" in done.err and not (tmp_path / "model").exists() and not list((home / "work").iterdir())

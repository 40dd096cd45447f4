"""kill -9 at every named point: no half file, no half batch, and the same command again finishes the job.

Each command dies in a process of its own; what it left is looked at, then the command runs again.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import FLAGS, PROJECT, SHORT, Press, anomaly, write_log
from processes import run_apart

from alerts.store import AlertStore
from anomaly.data.store import WindowStore
from anomaly.files import TEMPORARY
from registry.bundle import load_bundle, verify_bundle

KILLED = -9

#: A file appears whole before the first point of a pair and after the second.
SCORE = ["files.before_rename", "files.after_rename", "score.after_parquet", "alerts.before_commit", "alerts.after_commit",
         "score.before_findings", "score.after_record"]  # fmt: skip
INGEST = ["store.after_append", "store.before_publish", "files.before_rename", "files.after_rename"]
TRAIN = ["store.after_append", "store.before_publish", "train.after_ingest", "training.after_best", "training.after_checkpoint",
         "train.after_fit",
         "files.before_rename:2", "files.after_rename:2", "files.before_rename:3", "train.after_bundle",
         "registry.before_log", "registry.after_log", "registry.before_alias"]  # fmt: skip
#: Tested beside the rest of what they belong to: test_extract.py, test_watch_trouble.py and registry/test_promotion_race.py.
ELSEWHERE = ["features.before_journal", "features.after_journal", "features.before_rename", "features.after_rename",
             "promotion.before_table", "promotion.in_transaction", "promotion.before_commit", "promotion.before_alias",
             "promotion.after_alias",
             "watch.before_quarantine", "watch.after_scores", "watch.after_state", "watch.after_record",
             "train_assets.after_model", "score_family.after_record", "spark.first_attempt"]  # fmt: skip

pytestmark = pytest.mark.slow


def test_every_kill_point_of_the_program_is_in_a_list_above() -> None:
    named = set()
    for package in ("anomaly", "registry", "alerts", "pipelines"):
        for source in (PROJECT / package).rglob("*.py"):
            named |= set(re.findall(r'killpoint\("([\w.]+)"\)', source.read_text(encoding="utf-8")))
    assert named == {p.partition(":")[0] for p in SCORE + INGEST + TRAIN + ELSEWHERE}


def contents(database: Path) -> dict[str, list[dict[str, Any]]]:
    """The database without the times of writing."""
    dump = AlertStore(database).dump()
    clock = ("recorded_at", "created_at")
    return {table: [{k: v for k, v in row.items() if k not in clock} for row in rows] for table, rows in dump.items()}


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob(f"*{TEMPORARY}*") if p.exists()]


@pytest.mark.parametrize("point", SCORE)
def test_score_killed_leaves_no_half_and_finishes_when_run_again(
    press: Press, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    early = write_log(press.frame[:600], tmp_path / "early.csv")
    late = write_log(press.frame[500:1500], tmp_path / "late.csv")
    out = tmp_path / "s.parquet"
    command = ("score", late, "--model", press.bundle, "--out", out)

    monkeypatch.setenv("ANOMALY_HOME", str(tmp_path / "undisturbed"))
    for log in (early, late):
        assert anomaly("score", log, "--model", press.bundle, "--out", out).status == 0
    whole, wanted = out.read_bytes(), contents(tmp_path / "undisturbed" / "alerts.db")

    monkeypatch.setenv("ANOMALY_HOME", str(tmp_path / "home"))
    assert anomaly("score", early, "--model", press.bundle, "--out", out).status == 0
    earlier, before = out.read_bytes(), contents(tmp_path / "home" / "alerts.db")
    status, said = run_apart(tmp_path, *command, killpoint=point)
    assert status == KILLED, said
    recorded = point in ("alerts.after_commit", "score.before_findings", "score.after_record")
    found = contents(tmp_path / "home" / "alerts.db")
    if point == "score.before_findings":  # what sensor rules found is a transaction of its own, made good below
        assert _anomalies(found) == _anomalies(wanted)
    else:
        assert found == (wanted if recorded else before), "all of a batch, or nothing"
    assert out.read_bytes() == (earlier if point == "files.before_rename" else whole), "a whole file, old or new"

    again = anomaly(*command, "--json").json
    assert again["recorded"] is not recorded
    assert contents(tmp_path / "home" / "alerts.db") == wanted
    assert out.read_bytes() == whole or _same_scores(out, whole)
    assert not leftovers(tmp_path)


def _anomalies(found: dict[str, list[dict[str, Any]]]) -> list[tuple[Any, ...]]:
    return [(a["asset"], a["start_us"], a["peak_score"]) for a in found["alerts"] if a["kind"] == "anomaly"]


def _same_scores(out: Path, whole: bytes) -> bool:
    found, wanted = (pq.read_table(source)["anomaly_score"].to_numpy() for source in (out, pa.BufferReader(whole)))
    return bool(np.allclose(found, wanted, equal_nan=True))


@pytest.mark.parametrize("earlier", [False, True], ids=["new store", "store to replace"])
def test_ingest_killed_leaves_no_half_and_finishes_when_run_again(
    press: Press, home: Path, tmp_path: Path, earlier: bool
) -> None:
    log, store = write_log(press.frame[:900], tmp_path / "a.csv"), tmp_path / "store.h5"
    if earlier:
        before = write_log(press.frame[:500], tmp_path / "before.csv")
        assert anomaly("ingest", before, *FLAGS, "--store", store).status == 0
    for point in INGEST:
        status, said = run_apart(tmp_path, "ingest", log, *FLAGS, "--store", store, killpoint=point)
        assert status == KILLED, (point, said)
        rows = _rows(store)
        assert rows == (900 if point == "files.after_rename" else 500 if earlier else None), point
    assert anomaly("ingest", log, *FLAGS, "--store", store).status == 0
    assert _rows(store) == 900
    assert not leftovers(tmp_path)


def _rows(store: Path) -> int | None:
    """Rows of a whole store, None where there is none; anything else is an error."""
    if not store.exists():
        return None
    with WindowStore.open(store) as held:
        return sum(held.n_rows(a) for a in held.assets)


def test_train_killed_leaves_no_half_and_finishes_when_run_again(
    press: Press, mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One state, killed at one point after the other: every start but the first is also the next start after a kill."""
    log, out = write_log(press.frame[:1500], tmp_path / "a.csv"), tmp_path / "model"
    command = ("train", log, *SHORT, "--name", "kiln", "--out", out)
    wanted = _undisturbed(command, mlflow_tables, tmp_path, monkeypatch)
    home = _fresh_home("home", mlflow_tables, tmp_path, monkeypatch)
    for point in TRAIN:
        shutil.rmtree(out, ignore_errors=True)
        status, said = run_apart(tmp_path, *command, killpoint=point)
        assert status == KILLED, (point, said)
        bundled = point in ("train.after_bundle", *(p for p in TRAIN if p.startswith("registry")))
        assert out.exists() == bundled, point
        if bundled:
            verify_bundle(out)
        versions = anomaly("models", "list", "--json").json["models"]
        assert all(v["aliases"] == [] for v in versions), "a half-done registration is no model that anybody gets"
        assert anomaly("score", log, "--model", "kiln", "--out", tmp_path / "s.parquet").status == 4

    done = anomaly(*command, "--json").json
    assert sorted(done["aliases"]) == ["challenger", "champion"]
    assert done["threshold"] == wanted["threshold"]
    assert load_bundle(out).digest == done["digest"]
    assert anomaly("models", "show", "kiln", "--json").json["digest"] == done["digest"]
    assert not leftovers(tmp_path)
    assert not list((home / "work").iterdir())


def _fresh_home(name: str, tables: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = folder / name
    home.mkdir()
    shutil.copyfile(tables, home / "mlflow.db")
    monkeypatch.setenv("ANOMALY_HOME", str(home))
    return home


def _undisturbed(
    command: tuple[object, ...], tables: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    _fresh_home("undisturbed", tables, folder, monkeypatch)
    return anomaly(*command, "--json").json

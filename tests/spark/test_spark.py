"""`anomaly score --engine spark`: what many processes say is what one says, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from command_line import anomaly
from spark_conftest import ASSETS, CLUSTER, Plant, assert_same, corrupted

from alerts.store import AlertStore
from anomaly.errors import UsageError
from pipelines.spark import score_on_spark
from pipelines.spark_commit import SparkScored
from pipelines.spark_session import session

pytestmark = [pytest.mark.spark, pytest.mark.filterwarnings("ignore:.*pandas.*:FutureWarning")]


def run(plant: Plant, folder: Path, logs: list[Path], out: str = "scores.parquet", rows: int = 700) -> SparkScored:
    """Score in this process as driver; stretches are short so that there are several of an asset."""
    return score_on_spark(
        logs, plant.model, plant.bundle, plant.model.settings.name, folder / out, str(folder / "alerts.db"),
        master=CLUSTER, stretch_rows=rows,
    )  # fmt: skip


def scored(plant: Plant, folder: Path, *flags: object) -> tuple[int, dict[str, Any], str]:
    """``anomaly score FOLDER --engine spark``: status, what it says as JSON, and its errors."""
    done = anomaly("score", folder, "--engine", "spark", "--master", CLUSTER, "--json", "--model", plant.bundle, *flags)
    return done.status, json.loads(done.out or "{}"), done.err


@pytest.mark.usefixtures("home")
def test_a_master_that_nobody_knows_is_a_usage_error(plant: Plant, tmp_path: Path) -> None:
    """First of all: Java is started once, and it stays for the cluster."""
    out = tmp_path / "s.parquet"
    done = anomaly("score", plant.folder, "--engine", "spark", "--master", "cluster://nobody", "--model", plant.bundle,
                   "--out", out)  # fmt: skip
    assert done.status == 2, done.err
    assert "cluster://nobody" in done.err
    assert not out.exists()


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(("java", "said"), [("", "no java on PATH"), ("/nowhere", "no java in JAVA_HOME=/nowhere")])
def test_without_java_there_is_a_word_on_the_cure(
    plant: Plant, tmp_path: Path, java: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", java)
    for command in ("score", "extract"):
        done = anomaly(command, plant.folder, "--engine", "spark", "--model", plant.bundle, "--out", tmp_path / "out")
        assert done.status == 2, done.err
        assert said in done.err
        assert "install Java 17 or 21" in done.err


def test_a_cluster_of_two_loses_an_executor_and_says_what_one_process_says(
    plant: Plant, cluster: Any, tmp_path: Path
) -> None:
    with killed_executor(cluster, tmp_path) as killed:
        done = run(plant, tmp_path, [plant.folder])
    assert killed.numbers
    assert killed.failed
    assert_same(plant, pd.read_parquet(tmp_path / "scores.parquet"), tmp_path / "alerts.db")
    assert done.stretches > ASSETS
    assert set(done.alone) == {"P 0"}
    assert (done.set_aside, done.recorded) == ({}, True)
    assert not list(tmp_path.glob(".scores*"))
    before = AlertStore(str(tmp_path / "alerts.db")).dump()
    wait_for_executors(cluster, 2)  # what was left of the work may have been done before the new one came
    again = run(plant, tmp_path, [plant.folder], rows=10**6)
    assert len(again.workers) >= 2
    assert str(os.getpid()) not in {name.rpartition(":")[2] for name in [*done.workers, *again.workers]}
    assert (again.recorded, again.alone) == (False, {})
    assert AlertStore(str(tmp_path / "alerts.db")).dump() == before
    assert_same(plant, pd.read_parquet(tmp_path / "scores.parquet"), tmp_path / "alerts.db")


@dataclass
class Killing:
    """Executors that were killed, and whether a task was seen to fail by it."""

    numbers: list[int] = field(default_factory=list)
    failed: bool = False


@contextmanager
def killed_executor(cluster: Any, folder: Path) -> Iterator[Killing]:
    """Kill -9 an executor once the first stretch is scored, and another if that one had no task."""
    over, done = threading.Event(), Killing()

    def kill() -> None:
        while not over.wait(0.02) and not done.failed:
            if list(folder.glob(".scores.parquet.shards-*/*.parquet")) and len(done.numbers) < 3:
                executors = [p for p in descendants(os.getpid()) if "CoarseGrainedExecutorBackend" in command_of(p)]
                for number in executors[-1:]:
                    os.kill(number, signal.SIGKILL)
                    done.numbers.append(number)
            for _ in range(100 if done.numbers else 0):  # a stage that is tried anew counts from nothing
                done.failed = done.failed or failed_tasks(cluster) > 0
                if done.failed or over.wait(0.02):
                    break

    watcher = threading.Thread(target=kill)
    watcher.start()
    try:
        yield done
    finally:
        over.set()
        watcher.join()


def wait_for_executors(cluster: Any, count: int) -> None:
    """Until so many executors are there; the driver stands among them in Spark's own list."""
    deadline = time.monotonic() + 120
    while cluster.sparkContext._jsc.sc().getExecutorMemoryStatus().size() < count + 1:
        assert time.monotonic() < deadline, "an executor that was killed is replaced"
        time.sleep(0.2)


def failed_tasks(cluster: Any) -> int:
    """Tasks that failed in any stage so far."""
    tracker = cluster.sparkContext.statusTracker()
    jobs = [tracker.getJobInfo(j) for j in tracker.getJobIdsForGroup(None)]
    stages = [tracker.getStageInfo(s) for job in jobs if job for s in job.stageIds]
    return sum(stage.numFailedTasks for stage in stages if stage)


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        waiting += (own := children.get(waiting.pop(), []))
        found += own
    return found


def command_of(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.usefixtures("cluster")
def test_one_file_of_many_assets_into_a_folder_of_scores(plant: Plant, tmp_path: Path) -> None:
    done = run(plant, tmp_path, [plant.log], "scores", rows=10**6)
    assert done.alone == {}
    assert done.stretches == ASSETS
    files = sorted((tmp_path / "scores").glob("asset=*/scores.parquet"))
    assert len(files) == ASSETS
    found = pd.concat([pq.ParquetFile(f).read().to_pandas() for f in files], ignore_index=True)
    assert_same(plant, found, tmp_path / "alerts.db")


@pytest.mark.usefixtures("cluster", "home")
def test_a_corrupt_partition_is_reported_and_the_others_finish(plant: Plant, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    status, done, err = scored(plant, corrupted(plant, tmp_path), "--out", out)
    assert status == 6, err
    assert list(done["set_aside"]) == ["asset P 3"]
    assert "E3006" in done["set_aside"]["asset P 3"]
    assert "asset P 3 is set aside: E3006" in err
    found = pd.read_parquet(out)
    wanted = plant.scores[plant.scores["asset"] != "P 3"].reset_index(drop=True)
    assert (found["asset"].to_numpy() == wanted["asset"].to_numpy()).all()
    assert found["anomaly_score"].to_numpy() == pytest.approx(
        wanted["anomaly_score"].to_numpy(), 1e-6, 1e-6, nan_ok=True
    )


@pytest.mark.usefixtures("cluster", "home")
def test_nothing_is_written_where_every_file_is_refused(plant: Plant, tmp_path: Path) -> None:
    (tmp_path / "log" / "asset=A").mkdir(parents=True)
    (tmp_path / "log" / "asset=A" / "a.parquet").write_bytes(b"PAR1 and no more")
    status, _, err = scored(plant, tmp_path / "log", "--out", tmp_path / "scores.parquet")
    assert status == 3, err
    assert "E3006" in err
    assert not (tmp_path / "scores.parquet").exists()


@pytest.mark.usefixtures("cluster")
def test_a_running_session_on_another_master_is_not_taken() -> None:
    with pytest.raises(UsageError, match=r"E2001.*local\[2\].*local-cluster"), session("local[2]"):
        pass

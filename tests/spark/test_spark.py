"""`anomaly score --engine spark`: what many processes say is what one says, whatever dies on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from spark_conftest import ASSETS, Plant, assert_same

from alerts.store import AlertStore
from pipelines.spark import score_on_spark
from pipelines.spark_commit import SparkScored

pytestmark = [pytest.mark.spark, pytest.mark.filterwarnings("ignore:.*pandas.*:FutureWarning")]

CLUSTER = "local-cluster[2,1,1024]"
PROJECT = Path(__file__).resolve().parents[2]


def run(plant: Plant, folder: Path, logs: list[Path], out: str = "scores.parquet", master: str = "local[2]",
        rows: int = 500) -> SparkScored:  # fmt: skip
    """Score in this process as driver; stretches are short so that there are several of an asset."""
    return score_on_spark(
        logs, plant.model, plant.bundle, plant.model.settings.name, folder / out, str(folder / "alerts.db"),
        master=master, stretch_rows=rows,
    )  # fmt: skip


def test_a_folder_by_asset_on_two_threads_gives_the_scores_and_alerts_of_one_process(
    plant: Plant, tmp_path: Path
) -> None:
    done = run(plant, tmp_path, [plant.folder])
    assert_same(plant, pd.read_parquet(tmp_path / "scores.parquet"), tmp_path / "alerts.db")
    assert done.stretches > ASSETS
    assert set(done.alone) == {"P 0"}
    assert done.set_aside == {}
    assert done.recorded
    assert not list(tmp_path.glob(".scores*"))
    before = AlertStore(str(tmp_path / "alerts.db")).dump(), (tmp_path / "scores.parquet").read_bytes()
    again = run(plant, tmp_path, [plant.folder])
    assert not again.recorded
    assert (AlertStore(str(tmp_path / "alerts.db")).dump(), (tmp_path / "scores.parquet").read_bytes()) == before


def test_one_file_of_many_assets_into_a_folder_of_scores(plant: Plant, tmp_path: Path) -> None:
    done = run(plant, tmp_path, [plant.log], "scores", rows=10**6)
    assert done.alone == {}
    assert done.stretches == ASSETS
    files = sorted((tmp_path / "scores").glob("asset=*/scores.parquet"))
    assert len(files) == ASSETS
    found = pd.concat([pq.ParquetFile(f).read().to_pandas() for f in files], ignore_index=True)
    assert_same(plant, found, tmp_path / "alerts.db")
    known = [(f.kind, f.asset, f.tag, f.start_us, f.end_us) for f in done.findings]
    assert ("gap", "P 0") in {k[:2] for k in known}


def command(plant: Plant, folder: Path, *flags: str, **environment: str) -> subprocess.Popen[str]:
    """``anomaly score --engine spark`` as a process of its own."""
    argv = [sys.executable, "-m", "pipelines.cli", "score", str(plant.folder), "--engine", "spark", "--json",
            "--model", str(plant.bundle), "--out", str(folder / "scores.parquet"), *flags]  # fmt: skip
    own = {**os.environ, "PYTHONPATH": str(PROJECT), "ANOMALY_HOME": str(folder / "home"), **environment}
    own["ANOMALY_DB_URL"] = str(folder / "alerts.db")
    return subprocess.Popen(argv, env=own, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_cluster_of_two_loses_the_worker_of_every_first_attempt_and_one_executor(
    plant: Plant, tmp_path: Path
) -> None:
    process = command(plant, tmp_path, "--master", CLUSTER, ANOMALY_KILLPOINT="spark.first_attempt")
    killed = _kill_an_executor(process, tmp_path)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    done = json.loads(out)
    assert killed
    assert len(done["workers"]) >= 2
    assert done["rows"] == len(plant.scores)
    assert_same(plant, pd.read_parquet(tmp_path / "scores.parquet"), tmp_path / "alerts.db")


def _kill_an_executor(process: subprocess.Popen[str], folder: Path) -> int:
    """Kill -9 one executor of ``process`` as soon as the first stretch is scored; gives its number, 0 if all ended first."""
    until = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < until:
        if list(folder.glob(".scores.parquet.shards-*/*.parquet")):
            executors = [p for p in _descendants(process.pid) if "CoarseGrainedExecutorBackend" in _command(p)]
            if executors:
                os.kill(executors[0], signal.SIGKILL)
                return executors[0]
        time.sleep(0.05)
    return 0


def _descendants(pid: int) -> list[int]:
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


def _command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_a_corrupt_partition_is_reported_and_the_others_finish(plant: Plant, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    shutil.copytree(plant.folder, folder)
    broken = folder / "asset=P%203" / "part-1.parquet"
    content = bytearray(broken.read_bytes())
    content[len(content) // 3 : len(content) // 2] = os.urandom(len(content) // 2 - len(content) // 3)
    broken.write_bytes(content)
    process = command(Plant(**{**vars(plant), "folder": folder}), tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 6, err[-3000:]
    done = json.loads(out)
    assert list(done["set_aside"]) == ["asset P 3"]
    assert "E3006" in done["set_aside"]["asset P 3"]
    assert "asset P 3 is set aside: E3006" in err
    found = pd.read_parquet(tmp_path / "scores.parquet")
    wanted = plant.scores[plant.scores["asset"] != "P 3"].reset_index(drop=True)
    assert (found["asset"].to_numpy() == wanted["asset"].to_numpy()).all()
    assert found["anomaly_score"].to_numpy() == pytest.approx(
        wanted["anomaly_score"].to_numpy(), 1e-6, 1e-6, nan_ok=True
    )


def test_nothing_is_written_where_every_file_is_refused(plant: Plant, tmp_path: Path) -> None:
    (tmp_path / "log" / "asset=A").mkdir(parents=True)
    (tmp_path / "log" / "asset=A" / "a.parquet").write_bytes(b"PAR1 and no more")
    process = command(Plant(**{**vars(plant), "folder": tmp_path / "log"}), tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 3, err[-3000:]
    assert "E3006" in err
    assert not (tmp_path / "scores.parquet").exists()


@pytest.mark.parametrize(("home", "said"), [("", "no java on PATH"), ("/nowhere", "no java in JAVA_HOME=/nowhere")])
def test_without_java_there_is_a_word_on_the_cure(plant: Plant, tmp_path: Path, home: str, said: str) -> None:
    process = command(plant, tmp_path, PATH=str(tmp_path), JAVA_HOME=home)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert said in err
    assert "install Java 17 or 21" in err


def test_a_master_that_nobody_knows_is_a_usage_error(plant: Plant, tmp_path: Path) -> None:
    process = command(plant, tmp_path, "--master", "cluster://nobody")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err[-3000:]
    assert "cluster://nobody" in err

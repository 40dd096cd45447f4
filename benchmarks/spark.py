"""Scoring on Spark beside scoring by one process: rows per second, and what Spark costs on top.

    python benchmarks/spark.py [--rows 3200000] [--assets 16] [--standalone] [--work FOLDER]

Generates the job (``--rows`` over ``--assets``, a folder of Parquet by asset), trains a small model on the first asset, and
scores: by one process, on ``local[2]``, and with ``--standalone`` on a master with two workers that are started here by
``spark-class``. Every way runs in a process of its own, model loading and checks included; the start of the Spark session
is told apart. Needs Java 17 or newer and the extra ``spark``. The last lines say what the figures mean for 10 000 assets.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))  # a file run by its path sees only its own folder

TAGS, LOOKBACK, TRAINED = 24, 30, 20_000
_FEATURES = [f"tag{i:02d}" for i in range(TAGS)]


@dataclass(frozen=True)
class Run:
    """One way of scoring: seconds of the whole process, of them those of the session's start, rows, workers that scored."""

    name: str
    seconds: float
    session_s: float
    rows: int
    workers: int

    @property
    def rate(self) -> float:
        """Rows per second, the session's start left out."""
        return self.rows / (self.seconds - self.session_s)


def generate(work: Path, rows: int, assets: int, seed: int = 0) -> Path:
    """The log: ``work/log/asset=A00/part-0.parquet`` and so on, the same plant at different times, and ``train.parquet``."""
    rng, folder = np.random.default_rng(seed), work / "log"
    mixing = rng.normal(size=(4, TAGS))
    each = rows // assets
    for number in range(-1, assets):
        n = TRAINED if number < 0 else each
        frame = _frame(rng, n, mixing)
        if number < 0:
            frame.assign(asset="train", label=0).to_parquet(work / "train.parquet", index=False)
            continue
        place = folder / f"asset=A{number:02d}"
        place.mkdir(parents=True)
        frame.to_parquet(place / "part-0.parquet", index=False)
    return folder


def _frame(rng: np.random.Generator, rows: int, mixing: np.ndarray) -> pd.DataFrame:
    from anomaly.data.synthetic import autoregressive

    latent = autoregressive(rng.normal(size=(rows, len(mixing))), 0.95)
    values = latent @ mixing + 0.3 * rng.normal(size=(rows, TAGS))
    for at in rng.integers(100, rows - 100, max(rows // 20_000, 1)):
        values[at : at + 5, :3] += 40
    frame = pd.DataFrame(values.astype(np.float32), columns=_FEATURES)
    frame.insert(0, "time", pd.date_range("2026-01-01", periods=rows, freq="1min", tz="UTC"))
    return frame


def train(work: Path) -> Path:
    """A small model of the plant, in ``work/model``."""
    flags = ["--time", "time", "--label", "label", "--asset", "asset", "--lookback", str(LOOKBACK), "--epochs", "2",
             "--rule", "quantile", "--rate", "0.0005", "--out", str(work / "model")]  # fmt: skip
    _anomaly(work, "train", str(work / "train.parquet"), *flags)
    return work / "model"


def _anomaly(work: Path, *args: str) -> tuple[dict[str, Any], float]:
    """``anomaly ARGS --json`` in a process of its own: what it says, and its seconds."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "ANOMALY_HOME": str(work / "home")}
    environment["ANOMALY_DB_URL"] = str(work / f"alerts-{time.time_ns()}.db")
    started = time.perf_counter()
    argv = [sys.executable, "-m", "pipelines.cli", *args, "--json"]
    done = subprocess.run(argv, env=environment, cwd=work, text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - started


def one_process(work: Path, folder: Path, model: Path) -> Run:
    """All assets as one log, by one process: the files are named, and the assets taken from their names."""
    flat = work / "flat"
    flat.mkdir(exist_ok=True)
    for number, file in enumerate(sorted(folder.rglob("*.parquet"))):
        target = flat / f"part-{number:04d}.parquet"
        if not target.exists():
            asset = file.parent.name.partition("=")[2]
            pd.read_parquet(file, partitioning=None).assign(asset=asset).to_parquet(target, index=False)
    told, seconds = _anomaly(work, "score", str(flat), "--model", str(model), "--out", str(work / "one.parquet"))
    return Run("one process", seconds, 0.0, told["rows"], 1)


def on_spark(work: Path, folder: Path, model: Path, master: str, name: str) -> Run:
    """The folder by asset, on ``master``."""
    out = str(work / f"{name.replace(' ', '-')}.parquet")
    told, seconds = _anomaly(
        work, "score", str(folder), "--engine", "spark", "--master", master, "--model", str(model), "--out", out
    )
    return Run(name, seconds, told["session_s"], told["rows"], len(told["workers"]))


@contextmanager
def standalone(work: Path) -> Iterator[str]:
    """A master and two workers of one core each, by ``spark-class``; gives the master's address, and stops them."""
    import pyspark

    start = str(Path(pyspark.__file__).parent / "bin" / "spark-class")
    port, deploy = _free_port(), "org.apache.spark.deploy"
    address = f"spark://127.0.0.1:{port}"
    environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"}
    argvs = [[start, f"{deploy}.master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]]
    worker = [start, f"{deploy}.worker.Worker", "--cores", "1", "--memory", "2g", "--webui-port", "0"]
    argvs += [[*worker, "--work-dir", str(work / f"worker-{n}"), address] for n in range(2)]
    running = []
    try:
        for argv in argvs:
            with (work / f"{argv[1].rpartition('.')[2]}-{len(running)}.log").open("w") as log:
                running.append(subprocess.Popen(argv, env=environment, stdout=log, stderr=log))
            _wait_for(port)
        yield address
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(30)


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def _wait_for(port: int, longest_s: float = 120) -> None:
    until = time.monotonic() + longest_s
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit(f"no Spark master on port {port} after {longest_s:g} s")


def same_scores(work: Path, runs: list[Run]) -> None:
    """Raise where a way of scoring gave other scores than one process, beyond 1e-6."""
    wanted = pd.read_parquet(work / "one.parquet").sort_values(["asset", "time"])["anomaly_score"].to_numpy()
    for run in runs[1:]:
        found = pd.read_parquet(work / f"{run.name.replace(' ', '-')}.parquet")["anomaly_score"].to_numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6, equal_nan=True)


def lines(runs: list[Run], assets: int) -> list[str]:
    """A table, the overhead, and what it means for 10 000 assets."""
    one, each = runs[0], runs[0].rows // assets
    said = ["| way | rows/s | seconds | session start | workers |", "|---|---|---|---|---|"]
    for r in runs:
        said.append(f"| {r.name} | {r.rate:,.0f} | {r.seconds:.1f} | {r.session_s:.1f} | {r.workers} |")
    for r in runs[1:]:
        over = r.seconds - r.session_s - one.seconds
        said.append(f"{r.name}: {over:+.1f} s beside session start and the time of one process (goal: below 25)")
    best = max(runs[1:], key=lambda r: r.rate, default=one)
    hours = 10_000 * each / best.rate / 3600
    said.append(f"10 000 assets of {each:,} rows at the rate of {best.name}: {hours:.1f} h on 2 cores, "
                f"{hours / 16:.1f} h on 32 (where reading and the driver's commit keep up)")  # fmt: skip
    return said


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_200_000)
    parser.add_argument("--assets", type=int, default=16)
    parser.add_argument("--standalone", action="store_true", help="also a standalone master with two workers")
    parser.add_argument("--work", type=Path, help="folder to work in (default: a temporary one, removed afterwards)")
    asked = parser.parse_args()
    work = asked.work or Path(tempfile.mkdtemp(prefix="spark-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        folder = work / "log"
        if not folder.exists():
            generate(work, asked.rows, asked.assets)
        model = work / "model"
        if not model.exists():
            train(work)
        runs = [one_process(work, folder, model), on_spark(work, folder, model, "local[2]", "local 2")]
        if asked.standalone:
            with standalone(work) as address:
                runs.append(on_spark(work, folder, model, address, "standalone 1 and 2"))
        same_scores(work, runs)
        print("\n".join(lines(runs, asked.assets)))
    finally:
        if asked.work is None:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()

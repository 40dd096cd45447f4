"""`anomaly score --engine spark`: a folder of Parquet scored by many processes, the same answers as by one.

Files are checked and read by the workers with the reader of single-process scoring, rows are grouped by asset and stretch
of time, ``score_asset`` scores a group, and the driver commits what the groups wrote. Every path must be one that the
workers reach: a shared file system, unless all run on this machine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from anomaly.data.quality import Finding
from anomaly.encoders.inference import kind_for
from anomaly.errors import AnomalyError, Fault, InputRefused, Unavailable, UsageError
from anomaly.fitting import Progress, silent
from anomaly.model import AnomalyModel
from pipelines import spark_tasks
from pipelines.feedback import with_threshold
from pipelines.spark_commit import SparkScored, check_target, commit, discard
from pipelines.spark_job import Inspected, Job, LogFile, Reading, in_order, parquet_files, planned

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_log = logging.getLogger(__name__)

LOCAL = "local[2]"
_OLDEST_JAVA = 17
#: Attempts of a task in local mode, where Spark's own default is one.
_ATTEMPTS = 4
_MOST_TASKS = 2000
#: Settings of this process that the workers of a cluster need as well.
_HANDED_ON = ("ANOMALY_KILLPOINT", "KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL", "OMP_NUM_THREADS")


def score_on_spark(
    paths: Sequence[Path],
    model: AnomalyModel,
    bundle: Path,
    model_name: str,
    out: Path,
    database: str | None,
    *,
    master: str = LOCAL,
    stretch_rows: int | None = None,
    progress: Progress = silent,
) -> SparkScored:
    """Score Parquet logs at ``paths`` with the model in ``bundle``, by asset and stretches of about ``stretch_rows`` rows.

    ``out`` is one Parquet file by its name, else a folder with a file per asset. Files and assets that are refused are set
    aside and the others scored; InputRefused where nothing is left. Raises UsageError where Java or pyspark is missing,
    Unavailable E5005 where the job fails.
    """
    check_target(out, paths)
    model, told = with_threshold(model, database)
    files = parquet_files(paths, model.settings.log.asset or model.contract.asset)
    reading = Reading(model.settings.log, model.contract)
    run = SparkScored(out)
    started = time.perf_counter()
    with session(master) as spark:
        run.session_s = time.perf_counter() - started
        progress("check", 0, len(files))
        good, run.set_aside = in_order(_inspected(spark, tuple(files), reading))
        progress("check", len(files), len(files))
        job = _job(good, run, reading, model, bundle, out, stretch_rows)
        job = _scored(spark, job, run, progress)
        run.findings = _watched(spark, job)
    run.notices = tuple(dict.fromkeys([*(n for one in good for n in one.notices), *filter(None, [told])]))
    commit(run, job, model, model_name, good, database)
    discard(Path(job.shards))
    return run


def _job(
    good: list[Inspected],
    run: SparkScored,
    reading: Reading,
    model: AnomalyModel,
    bundle: Path,
    out: Path,
    stretch_rows: int | None,
) -> Job:
    rows = sum(one.rows for one in good)
    if not good:
        raise InputRefused([_again(line) for lines in run.set_aside.values() for line in lines.splitlines()])
    if rows < model.lookback:
        hint = "join it with the rows before it"
        raise InputRefused(Fault("E3301", f"at least one window of {model.lookback} rows", f"{rows} rows", hint))
    job = planned(good, reading, model, str(bundle.resolve()), kind_for(rows), stretch_rows)
    key = [
        [one.sha256 for one in good],
        [asdict(f) for f in job.files],
        job.digest,
        job.engine_kind,
        job.overlap_us,
        job.threshold,
    ]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return replace(job, shards=str(out.resolve().parent / f".{out.name}.shards-{name}"))


def _again(line: str) -> Fault:
    """A fault that came from a worker as its printed line."""
    code, _, rest = line.partition(" ")
    return Fault(code, "a log that can be read", rest)


def _inspected(spark: SparkSession, files: tuple[LogFile, ...], reading: Reading) -> list[Inspected]:
    """What the workers found in every file."""
    look = _look(files, reading)
    frame = _numbers(spark, len(files)).mapInArrow(look, spark_tasks.INSPECTED_DDL)
    with _told_failures():
        found = sorted((row["number"], row["found"]) for row in frame.collect())
    return [spark_tasks.inspected_from(text) for _, text in found]


def _scored(spark: SparkSession, job: Job, run: SparkScored, progress: Progress) -> Job:
    """Score all stretches; assets whose history reaches too far back are scored again, each in one stretch."""
    progress("score", 0, job.pieces())
    told = _groups(spark, job)
    _note(run, told)
    alone = {t["asset"]: t["why"] for t in told if t["state"] == spark_tasks.AGAIN}
    if alone:
        _log.info("%d assets are scored in one stretch each", len(alone))
        whole = job.whole(alone)
        _note(run, _groups(spark, whole))
        job = replace(job, cuts=job.cuts | whole.cuts)
        run.alone = alone
    progress("score", job.pieces(), job.pieces())
    left = {asset: cut for asset, cut in job.cuts.items() if f"asset {asset}" not in run.set_aside}
    if not left:
        raise InputRefused([_again(line) for lines in run.set_aside.values() for line in lines.splitlines()])
    return replace(job, cuts=left)


def _groups(spark: SparkSession, job: Job) -> list[dict[str, Any]]:
    tasks = min(max(job.pieces(), 2), _MOST_TASKS)
    spark.conf.set("spark.sql.shuffle.partitions", str(tasks))
    rows = _numbers(spark, len(job.files)).mapInArrow(_read(job), spark_tasks.GROUPED_DDL)
    told = rows.groupBy("asset", "piece").applyInArrow(_score(job), spark_tasks.TOLD_DDL)
    with _told_failures():
        return [row.asDict() for row in told.collect()]


def _watched(spark: SparkSession, job: Job) -> list[Finding]:
    """What the sensor rules find in assets of several stretches: their rows once more, in time order, without an end."""
    long = job.whole(asset for asset, cut in job.cuts.items() if cut.pieces > 1)
    if not long.cuts:
        return []
    spark.conf.set("spark.sql.shuffle.partitions", str(min(max(len(long.cuts), 2), _MOST_TASKS)))
    rows = _numbers(spark, len(job.files)).mapInArrow(_read(long), spark_tasks.GROUPED_DDL)
    ordered = rows.repartition("asset").sortWithinPartitions("asset", "time", "part", "row")
    with _told_failures():
        told = ordered.mapInArrow(_watch(long), spark_tasks.FOUND_DDL).collect()
    return [Finding(**f) for row in told for f in json.loads(row["found"])]


def _note(run: SparkScored, told: list[dict[str, Any]]) -> None:
    run.stretches += sum(t["state"] == spark_tasks.SCORED for t in told)
    run.workers.update(t["worker"] for t in told)
    run.told.update({(t["asset"], t["piece"]): t["rows"] for t in told})
    for one in told:
        if one["state"] == spark_tasks.REFUSED:
            run.set_aside[f"asset {one['asset']}"] = one["why"]


# Spark ships these by value, and with them only the job: what they call is imported by the worker, with its caches.


def _look(
    files: tuple[LogFile, ...], reading: Reading
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return spark_tasks.inspected(files, reading, batches)

    return look


def _read(job: Job) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return spark_tasks.rows_read(job, batches)

    return read


def _score(job: Job) -> Callable[[pa.Table], pa.Table]:
    def score(table: pa.Table) -> pa.Table:
        return spark_tasks.scored_group(job, table)

    return score


def _watch(job: Job) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def watch(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return spark_tasks.watched(job, batches)

    return watch


def _numbers(spark: SparkSession, count: int) -> Any:
    """The numbers of the files, one task each up to a limit."""
    return spark.range(0, count, 1, min(count, _MOST_TASKS))


@contextmanager
def _told_failures() -> Iterator[None]:
    """A failed job as one line; the first line of the cause that names one of ours or Python's errors."""
    try:
        yield
    except AnomalyError:
        raise
    except Exception as error:  # Py4J raises classes of its own for every kind of failure
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = next(
            (line for line in reversed(lines) if re.match(r"[\w.]*(Error|Refused|Exception)\b", line)), lines[0]
        )
        hint = "see the log of the workers; what was scored is kept, running the same command again goes on from there"
        raise Unavailable(Fault("E5005", "a Spark job that ends", cause, hint)) from error


@contextmanager
def session(master: str) -> Iterator[SparkSession]:
    """A Spark session on ``master``, always stopped; raises UsageError E2001 where Java, pyspark or the master is missing."""
    check_installed()
    from pyspark.sql import SparkSession

    if master.startswith("local") or "PYSPARK_PYTHON" not in os.environ:
        os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    retried = re.fullmatch(r"local(?:\[(\d+|\*)\])?", master)
    own = f"local[{retried[1] or 1},{_ATTEMPTS}]" if retried else master
    path = os.pathsep.join(dict.fromkeys(p for p in (str(Path(__file__).resolve().parents[1]), *sys.path) if p))
    builder = SparkSession.builder.master(own).appName("anomaly score").config(map=_settings(path))
    try:
        spark = builder.getOrCreate()
    except Exception as error:  # what a wrong address raises depends on how far Java came
        found = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        hint = "--master is local[N], spark://HOST:PORT, or what your cluster gives; Java 17 or 21 is needed"
        raise UsageError(Fault("E2001", f"a Spark session on {master}", found, hint)) from error
    try:
        spark.sparkContext.setLogLevel(os.environ.get("ANOMALY_SPARK_LOG_LEVEL", "ERROR"))
        yield spark
    finally:
        spark.stop()


def _settings(path: str) -> dict[str, str]:
    handed = {f"spark.executorEnv.{name}": os.environ[name] for name in _HANDED_ON if name in os.environ}
    return handed | {
        "spark.executorEnv.PYTHONPATH": path,
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.adaptive.coalescePartitions.enabled": "false",
        "spark.sql.adaptive.skewJoin.enabled": "false",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.python.worker.reuse": "true",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }


def check_installed() -> None:
    """Raise UsageError E2001 with the cure where pyspark or a Java that runs it is not there."""
    if importlib.util.find_spec("pyspark") is None:
        hint = "pip install 'plant-anomaly[spark]', or leave out --engine spark"
        raise UsageError(Fault("E2001", "pyspark for --engine spark", "not installed", hint))
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    hint = "install Java 17 or 21 (Debian: default-jre-headless), or point JAVA_HOME to one"
    if java is None:
        found = f"no java in JAVA_HOME={home}" if home else "no java on PATH and no JAVA_HOME"
        raise UsageError(Fault("E2001", "Java for --engine spark", found, hint))
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', told)
    if version and int(version[1]) < _OLDEST_JAVA:
        raise UsageError(Fault("E2001", f"Java {_OLDEST_JAVA} or newer for --engine spark", version[0], hint))

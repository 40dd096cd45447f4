"""`anomaly score --engine spark`: a folder of Parquet scored by many processes, the same answers as by one.

Files are checked and read by the workers with the reader of single-process scoring, rows are grouped by asset and stretch
of time, ``score_asset`` scores a group, and the driver commits what the groups wrote. Every path must be one that the
workers reach: a shared file system, unless all run on this machine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from anomaly.data.quality import Finding
from anomaly.encoders.inference import kind_for
from anomaly.errors import Fault, InputRefused
from anomaly.fitting import Progress, silent
from anomaly.model import AnomalyModel
from pipelines import drift_report, spark_tasks
from pipelines.feedback import with_threshold
from pipelines.spark_commit import Bound, SparkScored, check_target, commit, discard
from pipelines.spark_job import Inspected, Job, LogFile, Reading, in_order, parquet_files, planned
from pipelines.spark_session import LOCAL, session, told_failures

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_log = logging.getLogger(__name__)

_MOST_TASKS = 2000

Batches = Iterator[pa.RecordBatch]
#: Makes the job over checked files.
Plan = Callable[[list[Inspected]], Job]


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

    def plan(good: list[Inspected]) -> Job:
        rows = sum(one.rows for one in good)
        if rows < model.lookback:
            hint = "join it with the rows before it"
            raise InputRefused(Fault("E3301", f"at least one window of {model.lookback} rows", f"{rows} rows", hint))
        return planned(good, reading, model, str(bundle.resolve()), kind_for(rows), stretch_rows)

    good, job = on_workers(files, reading, plan, run, master, progress)
    run.notices += (told,) if told else ()
    bound = Bound(model_name, model)
    own = commit(run, job, lambda _: bound, good, database)[model_name]
    run.drifts = drift_report.report(model, own.sample, len(run.episodes), drift_report.drift_path(out))
    run.notices += drift_report.notices(run.drifts)
    discard(Path(job.shards))
    return run


def on_workers(
    files: Sequence[LogFile], reading: Reading, plan: Plan, run: SparkScored, master: str, progress: Progress
) -> tuple[list[Inspected], Job]:
    """Have workers check ``files`` and score them as ``plan`` says; gives the files that are sound and the job that was done.

    ``run`` notes what is set aside, what the sensor rules found, and notices. Raises as ``score_on_spark``.
    """
    started = time.perf_counter()
    with session(master) as spark:
        run.session_s = time.perf_counter() - started
        good, run.set_aside = checked(spark, files, reading, progress)
        job = _named(plan(good), good, run.out)
        job, watched = _scored(spark, job, run, progress)
        run.findings = [f for asset, found in watched.items() for f in found] + _watched(spark, job, watched)
    run.notices = tuple(dict.fromkeys(n for one in good for n in one.notices))
    return good, job


def checked(
    spark: SparkSession, files: Sequence[LogFile], reading: Reading, progress: Progress
) -> tuple[list[Inspected], dict[str, str]]:
    """The files that are sound, in reading order, and what is set aside: file or asset → its faults.

    Raises InputRefused with every fault where nothing is left.
    """
    progress("check", 0, len(files))
    good, aside = in_order(_inspected(spark, tuple(files), reading))
    progress("check", len(files), len(files))
    if not good:
        raise all_refused(aside)
    return good, aside


def all_refused(aside: dict[str, str]) -> InputRefused:
    """The faults of everything that was set aside, from their printed lines."""
    return InputRefused([_again(line) for lines in aside.values() for line in lines.splitlines()])


def _again(line: str) -> Fault:
    """A fault that came from a worker as its printed line."""
    code, _, rest = line.partition(" ")
    return Fault(code, "a log that can be read", rest)


def _named(job: Job, good: Sequence[Inspected], out: Path) -> Job:
    """The job with the folder of its shards, whose name says what they depend on."""
    scorers = {json.dumps(s if isinstance(s, str) else asdict(s), sort_keys=True) for s in job.scorers.values()}
    key = [[one.sha256 for one in good], [asdict(f) for f in job.files], sorted(scorers)]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return replace(job, shards=str(out.resolve().parent / f".{out.name}.shards-{name}"))


def _inspected(spark: SparkSession, files: tuple[LogFile, ...], reading: Reading) -> list[Inspected]:
    """What the workers found in every file."""
    look = _look(files, reading)
    frame = numbers(spark, len(files)).mapInArrow(look, spark_tasks.INSPECTED_DDL)
    with told_failures():
        found = sorted((row["number"], row["found"]) for row in frame.collect())
    return [spark_tasks.inspected_from(text) for _, text in found]


def _scored(
    spark: SparkSession, job: Job, run: SparkScored, progress: Progress
) -> tuple[Job, dict[str, list[Finding]]]:
    """Score all stretches; assets whose history reaches too far back are scored again, each in one stretch. Gives the job as
    it was done, and what the sensor rules found in assets of several stretches as far as they were passed over on the way."""
    progress("score", 0, job.pieces())
    assets = job.by_files(spark.sparkContext.defaultParallelism)
    told, watched = _assets(spark, job, assets) if assets else (_groups(spark, job), {})
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
        raise all_refused(run.set_aside)
    job = replace(job, cuts=left)
    return job, {asset: found for asset, found in watched.items() if asset in left and left[asset].pieces > 1}


def _assets(
    spark: SparkSession, job: Job, assets: tuple[str, ...]
) -> tuple[list[dict[str, Any]], dict[str, list[Finding]]]:
    """Each asset by the task that reads its files: how its stretches went, and what the sensor rules found in it."""
    frame = numbers(spark, len(assets)).mapInArrow(_read_and_score(job, assets), spark_tasks.DONE_DDL)
    with told_failures():
        rows = [row.asDict() for row in frame.collect()]
    found = {row["asset"]: [Finding(**f) for f in json.loads(row["found"])] for row in rows if row["piece"] < 0}
    return [row for row in rows if row["piece"] >= 0], found


def _groups(spark: SparkSession, job: Job) -> list[dict[str, Any]]:
    spark.conf.set("spark.sql.shuffle.partitions", str(tasks_for(job.pieces())))
    rows = rows_of(spark, job)
    told = rows.groupBy("asset", "piece").applyInArrow(_score(job), spark_tasks.TOLD_DDL)
    with told_failures():
        return [row.asDict() for row in told.collect()]


def tasks_for(pieces: int) -> int:
    """Tasks for so many pieces of work, two at least, so that two workers have something to do."""
    return min(max(pieces, 2), _MOST_TASKS)


def _watched(spark: SparkSession, job: Job, already: Collection[str]) -> list[Finding]:
    """What the sensor rules find in assets of several stretches: their rows once more, in time order, without an end."""
    several = (a for a, cut in job.cuts.items() if cut.pieces > 1 and not isinstance(job.scorers[a], str))
    long = job.whole(a for a in several if a not in already)
    if not long.cuts:
        return []
    ordered = by_asset_and_time(spark, long)
    with told_failures():
        told = ordered.mapInArrow(_watch(long), spark_tasks.FOUND_DDL).collect()
    return [Finding(**f) for row in told for f in json.loads(row["found"])]


def rows_of(spark: SparkSession, job: Job) -> Any:
    """The rows of the job's files as a frame (GROUPED_SCHEMA), read by the workers."""
    return numbers(spark, len(job.files)).mapInArrow(_read(job), spark_tasks.GROUPED_DDL)


def by_asset_and_time(spark: SparkSession, job: Job) -> Any:
    """``rows_of`` with each asset's rows together and in time order; Spark sorts on disk where memory is short."""
    rows = rows_of(spark, job).repartition(tasks_for(len(job.cuts)), "asset")
    return rows.sortWithinPartitions("asset", "time", "part", "row")


def _note(run: SparkScored, told: list[dict[str, Any]]) -> None:
    run.stretches += sum(t["state"] == spark_tasks.SCORED for t in told)
    run.workers.update(t["worker"] for t in told)
    run.told.update({(t["asset"], t["piece"]): t["rows"] for t in told})
    for one in told:
        if one["state"] == spark_tasks.REFUSED:
            run.set_aside[f"asset {one['asset']}"] = one["why"]


# Spark ships these by value, and with them only the job: what they call is imported by the worker, with its caches.


def _look(files: tuple[LogFile, ...], reading: Reading) -> Callable[[Batches], Batches]:
    def look(batches: Batches) -> Batches:
        return spark_tasks.inspected(files, reading, batches)

    return look


def _read(job: Job) -> Callable[[Batches], Batches]:
    def read(batches: Batches) -> Batches:
        return spark_tasks.rows_read(job, batches)

    return read


def _score(job: Job) -> Callable[[pa.Table], pa.Table]:
    def score(table: pa.Table) -> pa.Table:
        return spark_tasks.scored_group(job, table)

    return score


def _read_and_score(job: Job, assets: tuple[str, ...]) -> Callable[[Batches], Batches]:
    def score(batches: Batches) -> Batches:
        return spark_tasks.scored_assets(job, assets, batches)

    return score


def _watch(job: Job) -> Callable[[Batches], Batches]:
    def watch(batches: Batches) -> Batches:
        return spark_tasks.watched(job, batches)

    return watch


def numbers(spark: SparkSession, count: int) -> Any:
    """The numbers of the files, one task each up to a limit."""
    return spark.range(0, count, 1, min(count, _MOST_TASKS))

"""What Spark's Python workers do: look at files, read their rows, score stretches. Arrow in and out; no Spark is imported.

Workers import these functions by name, so what they keep (the loaded model) outlives the task that made it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anomaly.data.contract import LogChunk, LogContract
from anomaly.data.readers import PlantLog, open_log
from anomaly.errors import AnomalyError, Fault, InputRefused
from anomaly.faults import killpoint
from anomaly.files import atomic_path
from pipelines.asset_scoring import (
    FOUND,
    ROWS_SCHEMA,
    HistoryTooShort,
    chunk_of,
    model_of,
    narrowed,
    quality_watch,
    rows_table,
    score_asset,
    unscored,
)
from pipelines.spark_job import Inspected, Job, LogFile, Reading

SCORED, AGAIN, REFUSED = "scored", "again", "refused"

#: Rows as they travel, with the group that they belong to.
GROUPED_SCHEMA = pa.schema([("asset", pa.string()), ("piece", pa.int32()), *ROWS_SCHEMA])
GROUPED_DDL = (
    "asset string, piece int, time bigint, part int, `row` bigint, again boolean, `values` binary, "
    "categories array<string>"
)
INSPECTED_SCHEMA = pa.schema([("number", pa.int64()), ("found", pa.string())])
INSPECTED_DDL = "number bigint, found string"
FOUND_SCHEMA = pa.schema([("asset", pa.string()), ("found", pa.string())])
FOUND_DDL = "asset string, found string"
#: What is told of a stretch; its rows are in the shard.
TOLD_SCHEMA = pa.schema(
    [("asset", pa.string()), ("piece", pa.int32()), ("rows", pa.int64()), ("state", pa.string()),
     ("why", pa.string()), ("worker", pa.string())]
)  # fmt: skip
TOLD_DDL = "asset string, piece int, rows bigint, state string, why string, worker string"
#: The same, or (piece -1) what the sensor rules found in the whole asset.
DONE_SCHEMA = TOLD_SCHEMA.append(pa.field("found", pa.string()))
DONE_DDL = f"{TOLD_DDL}, found string"


def _open(file: LogFile, reading: Reading) -> PlantLog:
    """The file as a checked log; one whose folder names the asset may be without the column."""
    settings, column = reading.settings, reading.settings.asset or reading.contract.asset
    if file.asset is not None and not _has(file, column):
        settings = replace(settings, asset_from_name="(.*)")
    log = open_log([Path(file.path)], settings, reading.contract)
    if any(notice.startswith("long form:") for notice in log.notices):
        hint = "rows of a long form belong together across files: score it with --engine local"
        raise InputRefused(Fault("E3007", "a log in wide form", "long form", hint, file.path))
    return log


def _has(file: LogFile, column: str | None) -> bool:
    try:
        return column in pq.read_schema(file.path).names
    except (OSError, pa.ArrowInvalid):
        return False  # what is wrong with the file is told by its reader


def _chunks(log: PlantLog, file: LogFile) -> Iterator[LogChunk]:
    """The rows of a file, with the asset that its folder names where its rows name none."""
    if file.asset is None or _has(file, log.contract.asset):
        yield from log.chunks()
        return
    for chunk in log.chunks():
        yield replace(chunk, asset=np.full(len(chunk), file.asset, dtype=object))


def inspect(file: LogFile, reading: Reading) -> Inspected:
    """Read and check one file as single-process scoring does; what is refused becomes ``faults``, never an exception."""
    try:
        log = _open(file, reading)
        spans = dict[str, tuple[int, int, int]]()
        for chunk in _chunks(log, file):
            for asset in dict.fromkeys(chunk.asset):
                time = chunk.time[chunk.asset == asset]
                n, first, last = spans.get(str(asset), (0, int(time[0]), int(time[-1])))
                spans[str(asset)] = n + len(time), min(first, int(time[0])), max(last, int(time[-1]))
    except AnomalyError as error:
        return Inspected(file, faults=tuple(f.line() for f in error.faults))
    except (OSError, pa.ArrowInvalid) as error:
        return Inspected(file, faults=(Fault("E3001", "a readable file", error, file=file.path).line(),))
    return Inspected(file, log.files[0].sha256, log.rows, spans, log.notices)


def inspected(
    files: tuple[LogFile, ...], reading: Reading, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """``inspect`` for the files whose numbers ``batches`` bring (column ``id``), as INSPECTED_SCHEMA."""
    for batch in batches:
        for number in batch.column("id").to_pylist():
            text = json.dumps(asdict(inspect(files[number], reading)))
            yield pa.RecordBatch.from_pylist([{"number": number, "found": text}], INSPECTED_SCHEMA)


def inspected_from(text: str) -> Inspected:
    """What ``inspected`` told of a file."""
    held = json.loads(text)
    assets = {asset: (int(n), int(first), int(last)) for asset, (n, first, last) in held["assets"].items()}
    texts = {name: tuple(held[name]) for name in ("notices", "faults")}
    return Inspected(**{**held, **texts, "file": LogFile(**held["file"]), "assets": assets})


def rows_read(job: Job, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows of the files whose numbers ``batches`` bring, as GROUPED_SCHEMA; those that a later stretch needs come twice."""
    for batch in batches:
        for number in batch.column("id").to_pylist():
            file = job.files[number]
            for chunk in _chunks(_open(file, job.reading), file):
                for asset in dict.fromkeys(map(str, chunk.asset)):
                    if asset in job.cuts:  # else it is set aside
                        table = _table(chunk.take(chunk.asset == asset), asset, number, job)
                        for piece, rows in _by_piece(table, asset, job):
                            yield from _keyed(rows, asset, piece).to_batches()


def _table(chunk: LogChunk, asset: str, number: int, job: Job) -> pa.Table:
    """One asset's rows of a chunk of file ``number`` (ROWS_SCHEMA)."""
    return rows_table(chunk, number, chunk.time <= job.resume[number].get(asset, np.iinfo(np.int64).min))


def _by_piece(table: pa.Table, asset: str, job: Job) -> Iterator[tuple[int, pa.Table]]:
    """Rows of an asset by piece, and again those that the next piece brings along."""
    cut, time = job.cuts[asset], table["time"].to_numpy()
    piece = cut.piece(time)
    for k in np.unique(piece).tolist():
        yield k, table.filter(pa.array(piece == k))
        along = (piece == k) & (time >= cut.end_us(k) - job.overlap_us(asset))
        if k < cut.pieces - 1 and along.any():
            yield k + 1, table.filter(pa.array(along))


def scored_assets(job: Job, assets: tuple[str, ...], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Score the ``assets`` whose numbers ``batches`` bring, each read from its own files: no row travels (DONE_SCHEMA).

    A piece is scored as soon as no row of it can come any more, so a task holds two pieces and a chunk. The sensor rules pass
    over an asset of several pieces on the way, as ``watched`` does.
    """
    for batch in batches:
        for number in batch.column("id").to_pylist():
            yield from _scored_asset(job, assets[number])


def _scored_asset(job: Job, asset: str) -> Iterator[pa.RecordBatch]:
    cut, scorer, waiting = job.cuts[asset], job.scorers[asset], dict[int, list[pa.Table]]()
    model = None if isinstance(scorer, str) or cut.pieces == 1 else model_of(scorer.bundle, scorer.digest)
    watch = None if model is None else quality_watch(model)
    for number, following in job.files_of(asset):
        file = job.files[number]
        for chunk in _chunks(_open(file, job.reading), file):
            table = _table(chunk, asset, number, job)
            if watch is not None and model is not None:
                watch.update(_first_seen(table, asset, job, model.contract))
            for piece, rows in _by_piece(table, asset, job):
                waiting.setdefault(piece, []).append(rows)
            bound = min(int(chunk.time[-1]) if len(chunk) else cut.first_us, following)
            for piece in sorted(k for k in waiting if k < cut.pieces - 1 and cut.end_us(k) <= bound):
                yield _told(job, asset, piece, waiting.pop(piece))
    for piece in sorted(waiting):
        yield _told(job, asset, piece, waiting.pop(piece))
    if watch is not None:
        found = json.dumps([asdict(f) for f in watch.finish()])
        yield pa.RecordBatch.from_pylist([{"asset": asset, "piece": -1, "rows": 0, "found": found}], DONE_SCHEMA)


def _told(job: Job, asset: str, piece: int, tables: list[pa.Table]) -> pa.RecordBatch:
    """``scored_group`` of the rows of one piece."""
    told = scored_group(job, _keyed(pa.concat_tables(tables), asset, piece)).to_pylist()
    return pa.RecordBatch.from_pylist([{**one, "found": None} for one in told], DONE_SCHEMA)


def _first_seen(table: pa.Table, asset: str, job: Job, contract: LogContract) -> LogChunk:
    """The rows that no earlier file holds, as the sensor rules of a model take them."""
    first = table.filter(pc.invert(table["again"]))
    return chunk_of(narrowed(first, job.reading.contract, contract), asset, contract)


def _keyed(table: pa.Table, asset: str, piece: int) -> pa.Table:
    keys = [pa.repeat(pa.scalar(asset), table.num_rows), pa.repeat(pa.scalar(piece, pa.int32()), table.num_rows)]
    return pa.Table.from_arrays([*keys, *table.columns], schema=GROUPED_SCHEMA)


def scored_group(job: Job, table: pa.Table) -> pa.Table:
    """Score one group (GROUPED_SCHEMA, one asset and piece), write its shard, tell how it went (TOLD_SCHEMA).

    The shard appears whole by rename under a name that says what is in it: a second attempt, or a copy of the task that
    runs beside it, writes the same. Refused rows are told, never raised, so that the other assets go on.
    """
    asset, piece = str(table["asset"][0].as_py()), int(table["piece"][0].as_py())
    shard = job.shard(asset, piece)
    told = {"asset": asset, "piece": piece, "rows": 0, "state": SCORED, "why": "",
            "worker": f"{socket.gethostname()}:{os.getpid()}"}  # fmt: skip
    _die_on_first_attempt()
    try:
        rows = _known_rows(shard)
        if rows is None:
            scored = _scored(job, asset, piece, table.select(ROWS_SCHEMA.names).cast(ROWS_SCHEMA))
            with atomic_path(shard) as temporary:
                pq.write_table(scored, temporary, compression="zstd", write_page_checksum=True)
            rows = scored.num_rows
        told["rows"] = rows
    except HistoryTooShort as short:
        told |= {"state": AGAIN, "why": str(short)}
    except InputRefused as refused:
        told |= {"state": REFUSED, "why": str(refused)}
    return pa.Table.from_pylist([told], TOLD_SCHEMA)


def _scored(job: Job, asset: str, piece: int, rows: pa.Table) -> pa.Table:
    why = job.scorers[asset]
    if isinstance(why, str):
        return unscored(asset, rows, why)
    contract = model_of(why.bundle, why.digest).contract
    return score_asset(job.stretch(asset, piece).on(narrowed(rows, job.reading.contract, contract)))


def watched(job: Job, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """What the sensor rules find in rows that come asset by asset and in time order (GROUPED_SCHEMA → FOUND_SCHEMA).

    Runs and blocks of the rules know no stretches, so they pass over an asset from its first row to its last, in the memory
    of a batch.
    """
    for asset, tables in by_asset(batches):
        scorer = job.scorer(asset)
        model = model_of(scorer.bundle, scorer.digest)
        watch = quality_watch(model)
        for table in tables:
            watch.update(_first_seen(table, asset, job, model.contract))
        found = json.dumps([asdict(f) for f in watch.finish()])
        yield pa.RecordBatch.from_pylist([{"asset": asset, "found": found}], FOUND_SCHEMA)


def by_asset(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, Iterator[pa.Table]]]:
    """Rows that come asset by asset (GROUPED_SCHEMA) as the assets and their tables (ROWS_SCHEMA), a batch at a time."""

    def named() -> Iterator[tuple[str, pa.Table]]:
        for batch in batches:
            table = pa.Table.from_batches([batch])
            for name in table["asset"].unique().to_pylist():
                own = table.filter(pc.equal(table["asset"], name))
                yield str(name), own.select(ROWS_SCHEMA.names).cast(ROWS_SCHEMA)

    for asset, group in groupby(named(), key=itemgetter(0)):
        yield asset, (table for _, table in group)


def _known_rows(shard: Path) -> int | None:
    """Rows of a shard that an earlier attempt or run finished; None where there is none."""
    try:
        held = pq.read_metadata(shard)
    except (OSError, pa.ArrowInvalid):
        return None
    return int(held.num_rows) if FOUND in (held.metadata or {}) else None


def _die_on_first_attempt() -> None:
    """A kill point of the tests: the worker of each task's first attempt."""
    if not os.environ.get("ANOMALY_KILLPOINT"):
        return
    from pyspark import TaskContext

    context = TaskContext.get()
    if context is not None and context.attemptNumber() == 0:
        killpoint("spark.first_attempt")

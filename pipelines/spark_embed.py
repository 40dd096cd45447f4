"""What Spark's workers do for `anomaly extract`: an asset's rows in, the embeddings of its windows out. No Spark imported.

The rows of an asset come in time order, a batch at a time. They become a window store on the worker's own disk, and its
windows go through the pass that `anomaly extract` uses: an asset may be larger than memory, and the answers are the same.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly.data.contract import LogChunk, LogContract
from anomaly.data.store import WindowStore, create_store
from anomaly.embeddings.space import Space
from anomaly.errors import InputRefused
from anomaly.extraction import InOrder, Stability, Wanted, WindowPass
from anomaly.files import atomic_path
from anomaly.model import ANOMALOUS, AnomalyModel
from pipelines.asset_scoring import chunk_of, disagree, model_of
from pipelines.extract import energy_weights
from pipelines.spark_job import Job
from pipelines.spark_tasks import by_asset

#: What is told of an asset, as JSON; its windows are in the shard, whose metadata holds the same.
TOLD_SCHEMA = pa.schema([("asset", pa.string()), ("told", pa.string())])
TOLD_DDL = "asset string, told string"
TOLD = b"anomaly.embedded"
_BLOCK = 8192


@dataclass(frozen=True)
class Embedding:
    """What is made of the windows: ``enriched`` adds scores; ``space`` as ``Space.to_state`` gives it adds modes."""

    job: Job
    enriched: bool
    space: tuple[dict[str, Any], dict[str, NDArray[Any]]] | None
    seed: int = 7


def embedded(work: Embedding, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Embed the assets whose rows ``batches`` bring (GROUPED_SCHEMA, by asset and time), tell how it went (TOLD_SCHEMA).

    A shard appears whole by rename under a name that says what is in it: a second attempt finds it or writes the same.
    Refused rows are told, never raised, so that the other assets go on.
    """
    for asset, tables in by_asset(batches):
        shard = work.job.shard(asset, 0)
        told = _known(shard)
        if told is None:
            try:
                told = _embed(work, asset, tables, shard)
            except InputRefused as refused:
                told = {"refused": str(refused)}
        told["worker"] = f"{socket.gethostname()}:{os.getpid()}"
        yield pa.RecordBatch.from_pylist([{"asset": asset, "told": json.dumps(told)}], TOLD_SCHEMA)


def _known(shard: Path) -> dict[str, Any] | None:
    """What is told of a shard that an earlier attempt or run finished; None where there is none."""
    try:
        held = pq.read_metadata(shard).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    return dict(json.loads(held[TOLD])) if TOLD in held else None


def _embed(work: Embedding, asset: str, tables: Iterator[pa.Table], shard: Path) -> dict[str, Any]:
    scorer = work.job.scorer(asset)
    model = model_of(scorer.bundle, scorer.digest)
    model.engine_kind = scorer.engine_kind
    with tempfile.TemporaryDirectory(prefix="anomaly-embed-") as folder:
        path = Path(folder) / "windows.h5"
        with create_store(path, model.contract, model.settings.window, model.settings.split) as writer:
            for chunk in read_once(tables, asset, model.contract):
                writer.append(chunk)
        with WindowStore.open(path, verify=False) as store:
            return _windows(work, asset, model, store, shard)


def read_once(tables: Iterator[pa.Table], asset: str, contract: LogContract) -> Iterator[LogChunk]:
    """Rows in time order (ROWS_SCHEMA) as log chunks, those that a later file repeats compared and left out.

    Raises InputRefused E3205 for a time that the earlier file does not have, E3206 for other values.
    """
    last: LogChunk | None = None
    for table in tables:
        chunk, again = chunk_of(table, asset, contract), table["again"].to_numpy()
        if last is not None:
            chunk, again = _joined(last, chunk), np.concatenate(([False], again))
        before = np.maximum.accumulate(np.where(again, -1, np.arange(len(chunk))))
        here = np.flatnonzero(again)
        _check_repeats(chunk, here, before[here], asset)
        own = np.flatnonzero(~again)[0 if last is None else 1 :]
        if before[-1] >= 0:
            last = chunk.take(slice(before[-1], before[-1] + 1))
        if len(own):
            yield chunk.take(own)


def _joined(first: LogChunk, second: LogChunk) -> LogChunk:
    names = ("row", "time", "asset", "values", "categories", "label", "bad")
    return LogChunk(*(np.concatenate((getattr(first, n), getattr(second, n))) for n in names))


def _check_repeats(chunk: LogChunk, later: NDArray[np.int64], first: NDArray[np.int64], asset: str) -> None:
    """Rows ``later (m,)`` against those at ``first (m,)`` of the earlier file, -1 where there is none."""
    missing = (first < 0) | (chunk.time[first] != chunk.time[later])
    if missing.any():
        times = chunk.time[later[missing]]
        raise disagree("E3205", "a time after the end of the earlier file", asset, times)
    one, two = chunk.values[first], chunk.values[later]
    differs = ~((one == two) | (np.isnan(one) & np.isnan(two))).all(axis=1)
    differs |= (chunk.categories[first] != chunk.categories[later]).any(axis=1)
    if differs.any():
        raise disagree("E3206", "the values that an earlier file has", asset, chunk.time[later[differs]])


def _windows(work: Embedding, asset: str, model: AnomalyModel, store: WindowStore, shard: Path) -> dict[str, Any]:
    """All windows of an open store, embedded into ``shard``; gives what is told of them."""
    space = None if work.space is None else Space.from_state(*work.space)
    passes = WindowPass(model, Wanted(work.enriched, False, energy_weights(model), work.seed), store.vocabulary, space)
    order, stability = InOrder(model, store.stride), Stability()
    width, engine = passes.layout()["features"].shape[0], model.engine(embedding=True).name
    unscorable = anomalous = 0
    with atomic_path(shard) as temporary:
        writer: pq.ParquetWriter | None = None
        for block in store.raw_blocks(max(_BLOCK // passes.size, 1) * passes.size, 0, model.ensemble.trail):
            for piece in passes(block):
                columns = order.finish(piece)
                if space is not None:
                    columns["stability"] = stability.add(asset, columns["cluster_id"])
                unscorable += int(piece.unscorable.sum())
                anomalous += int((columns.get("outcome", np.empty(0)) == ANOMALOUS).sum())
                table = embedding_table(asset, store.end_times(asset, piece.block.starts), columns)
                writer = writer or pq.ParquetWriter(
                    temporary, table.schema, compression="zstd", write_page_checksum=True
                )
                writer.write_table(table)
        told = {
            "windows": store.n_windows,
            "unscorable": unscorable,
            "anomalous": anomalous,
            "width": width,
            "engine": engine,
        }
        if writer is not None:
            writer.add_key_value_metadata({TOLD.decode(): json.dumps(told)})
            writer.close()
    return told


def embedding_table(asset: str, time: NDArray[np.int64], columns: dict[str, NDArray[Any]]) -> pa.Table:
    """Windows as rows: ``time (B,)`` of their last rows, UTC microseconds, and columns ``(B,)`` or ``(B, k)`` by name."""
    found: dict[str, pa.Array] = {
        "time": pa.array(time, pa.timestamp("us", tz="UTC")),
        "asset": pa.array([asset] * len(time), pa.string()),
    }
    for name, values in columns.items():
        held = pa.array(np.ascontiguousarray(values).ravel())
        found[name] = held if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(held, values.shape[1])
    return pa.table(found)

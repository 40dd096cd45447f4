"""What a Spark worker makes of an asset's rows for `anomaly extract`; no Spark here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_plant import small_frame

from anomaly.data.contract import LogChunk
from anomaly.data.store import create_store
from anomaly.errors import InputRefused
from anomaly.fitting import Fitted
from anomaly.model import AnomalyModel, chunk_from_frame
from pipelines import spark_embed
from pipelines.asset_scoring import narrowed, rows_table, unscored
from pipelines.extract import ExtractOptions, extract
from pipelines.spark_embed import Embedding, embedded, read_once
from pipelines.spark_job import Cut, Job, Reading, Scorer
from pipelines.spark_tasks import GROUPED_SCHEMA


def chunk_of(model: AnomalyModel, rows: int) -> LogChunk:
    return chunk_from_frame(small_frame(rows, seed=3).drop(columns="label"), model.contract)


def grouped(chunk: LogChunk, asset: str) -> list[pa.RecordBatch]:
    table = rows_table(chunk, 0, np.zeros(len(chunk), bool))
    keys = [pa.array([asset] * len(chunk)), pa.array(np.zeros(len(chunk), np.int32))]
    return pa.Table.from_arrays([*keys, *table.columns], schema=GROUPED_SCHEMA).to_batches(max_chunksize=300)


def test_assets_become_shards_once_and_the_refused_are_told(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(fitted.model, digest="d" * 64, _engines={})
    monkeypatch.setattr(spark_embed, "model_of", lambda bundle, digest: model)
    scorer = Scorer("bundle", "d" * 64, "auto", model.threshold.to_dict(), 0)
    cuts, scorers = {a: Cut(0, 1, 1) for a in "AB"}, dict.fromkeys("AB", scorer)
    job = Job(Reading(model.settings.log, model.contract), (), (), cuts, scorers, str(tmp_path / "shards"))
    chunk, short = chunk_of(model, 1000), chunk_of(model, 3)
    batches = [*grouped(chunk, "A"), *grouped(short, "B")]

    def run() -> dict[str, Any]:
        rows = pa.Table.from_batches(embedded(Embedding(job, False, None), iter(batches))).to_pylist()
        return {row["asset"]: json.loads(row["told"]) for row in rows}

    told = run()
    assert "E3301" in told["B"]["refused"]
    with create_store(tmp_path / "w.h5", model.contract, model.settings.window, model.settings.split) as writer:
        writer.append(chunk)
    done = extract(tmp_path / "w.h5", model, tmp_path / "f.h5", ExtractOptions(features_only=True, workers=1))
    from anomaly.data.store_features import Features

    shard = job.shard("A", 0)
    found = pq.read_table(shard)
    with Features.open(tmp_path / "f.h5") as features:
        wanted = features.column("features")[:]
        assert (found["time"].cast(pa.int64()).to_numpy() == features.column("metadata/time")[:]).all()
    values = np.asarray(found["features"].combine_chunks().flatten()).reshape(wanted.shape)
    np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-5)
    assert told["A"]["windows"] == done.windows == len(wanted)
    before = shard.stat().st_mtime_ns
    assert run() == told
    assert shard.stat().st_mtime_ns == before


@pytest.mark.parametrize("cut", [10, 25, 40])
def test_rows_that_files_repeat_are_compared_over_the_edges_of_batches(fitted: Fitted, cut: int) -> None:
    contract, chunk = fitted.model.contract, chunk_of(fitted.model, 40)
    first = rows_table(chunk, 0, np.zeros(40, bool))

    def read(again: LogChunk) -> list[int]:
        rows = pa.concat_tables([first, rows_table(again, 1, np.ones(10, bool))])
        rows = rows.sort_by([("time", "ascending"), ("part", "ascending")])
        tables = [t for t in (rows.slice(0, cut), rows.slice(cut)) if t.num_rows]
        return [int(t) for c in read_once(iter(tables), "A", contract) for t in c.time]

    later = chunk.take(slice(20, 30))
    assert read(later) == chunk.time.tolist()
    values = later.values.copy()
    values[4, 2] += 1
    with pytest.raises(InputRefused, match="E3206"):
        read(replace(later, values=values))
    with pytest.raises(InputRefused, match="E3205"):
        read(replace(later, time=later.time + 1))


def test_rows_are_narrowed_to_a_models_columns(fitted: Fitted) -> None:
    wide = replace(fitted.model.contract, categories=("mode", "grade"))
    words = pd.DataFrame({"mode": ["a", "b"] * 10, "grade": ["c"] * 20})
    chunk = chunk_from_frame(pd.concat([small_frame(20).drop(columns="label"), words], axis=1), wide)
    narrow = replace(wide, tags=("tag4", "tag1"), categories=("grade",))
    found = narrowed(rows_table(chunk, 0, np.zeros(20, bool)), wide, narrow)
    values = np.frombuffer(b"".join(found["values"].to_pylist()), np.float32).reshape(20, 2)
    np.testing.assert_array_equal(values, chunk.values[:, [4, 1]])
    assert found["categories"].to_pylist() == [["c"]] * 20
    table = rows_table(chunk, 0, np.zeros(20, bool))
    assert narrowed(table, wide, wide) is table


def test_rows_without_a_model_are_unscorable_by_time_and_read_once(fitted: Fitted) -> None:
    chunk = chunk_of(fitted.model, 20)
    found = unscored("A", rows_table(chunk.take(np.arange(19, -1, -1)), 0, np.arange(20) < 5), "no_model")
    assert found["time"].cast(pa.int64()).to_pylist() == chunk.time[:15].tolist()
    assert set(zip(found["outcome"].to_pylist(), found["reason"].to_pylist(), strict=True)) == {
        ("unscorable", "no_model")
    }
    assert found["anomaly_score"].null_count == 15

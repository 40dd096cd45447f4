"""Assets scored by the task that reads their files: what it says is what scoring by groups says, without Spark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from small_plant import chunk_of, small_frame

from anomaly.data.quality import QualityProfile
from anomaly.fitting import Fitted
from pipelines import spark_tasks
from pipelines.spark_job import Job, Reading, in_order, parquet_files, planned
from registry.bundle import save_bundle

ASSETS, ROWS, STRETCH = 4, 5000, 900


def batches(count: int) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_pydict({"id": list(range(count))})


@pytest.fixture(scope="module")
def job(fitted: Fitted, frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Assets of a folder each, in two files that repeat ten rows; one has a sensor that stands still for long."""
    root, once = tmp_path_factory.mktemp("plant"), small_frame().drop(columns="label")
    twice = pd.concat([once, once.assign(time=once["time"] + pd.Timedelta(minutes=3120))], ignore_index=True)
    profile = QualityProfile.fit([chunk_of(frame)], fitted.model.contract)
    contract = replace(fitted.model.contract, asset="asset")
    model = replace(fitted.model, contract=contract, quality=profile.to_dict(), _engines={})
    model.digest = save_bundle(model, root / "bundle")
    for number in range(ASSETS):
        own = twice.iloc[100 * number : 100 * number + ROWS].reset_index(drop=True)
        if number == 1:
            own.loc[300:900, "tag3"] = np.float32(1.5)
        place = root / "log" / f"asset=P{number}"
        place.mkdir(parents=True)
        own.iloc[: ROWS // 2 + 10].to_parquet(place / "a.parquet", index=False)
        own.iloc[ROWS // 2 :].to_parquet(place / "b.parquet", index=False)
    reading = Reading(model.settings.log, contract)
    files = [spark_tasks.inspect(file, reading) for file in parquet_files([root / "log"], "asset")]
    good, aside = in_order(files)
    assert not aside
    return planned(good, reading, model, str(root / "bundle"), "auto", STRETCH)


def by_groups(job: Job) -> tuple[list[dict[str, object]], dict[str, list[object]]]:
    rows = pa.Table.from_batches(spark_tasks.rows_read(job, batches(len(job.files))))
    keys = sorted(set(zip(rows["asset"].to_pylist(), rows["piece"].to_pylist(), strict=True)))
    told = []
    for asset, piece in keys:
        use = pc.and_(pc.equal(rows["asset"], asset), pc.equal(rows["piece"], piece))
        told += spark_tasks.scored_group(job, rows.filter(use)).to_pylist()
    whole = job.whole(job.cuts)
    all_rows = pa.Table.from_batches(spark_tasks.rows_read(whole, batches(len(job.files))))
    ordered = all_rows.sort_by([(name, "ascending") for name in ("asset", "time", "part", "row")])
    found = pa.Table.from_batches(spark_tasks.watched(whole, iter(ordered.to_batches(max_chunksize=400)))).to_pylist()
    return told, {row["asset"]: json.loads(row["found"]) for row in found}


def test_it_writes_the_shards_and_finds_what_groups_write_and_find(job: Job, tmp_path: Path) -> None:
    one, other = (replace(job, shards=str(tmp_path / name)) for name in ("one", "other"))
    for each in (one, other):
        Path(each.shards).mkdir()
    told, found = by_groups(one)
    assets = other.by_files(2)
    assert assets == tuple(f"P{k}" for k in range(ASSETS))
    done = pa.Table.from_batches(spark_tasks.scored_assets(other, assets, batches(ASSETS))).to_pylist()
    assert sorted((d["asset"], d["piece"], d["rows"], d["state"]) for d in done if d["piece"] >= 0) == sorted(
        (t["asset"], t["piece"], t["rows"], t["state"]) for t in told
    )
    assert {d["asset"]: json.loads(d["found"]) for d in done if d["piece"] < 0} == found
    assert found["P1"], "the sensor that stands still is found"
    shards = sorted(p.name for p in Path(one.shards).glob("*.parquet"))
    assert len(shards) > 2 * ASSETS
    assert shards == sorted(p.name for p in Path(other.shards).glob("*.parquet"))
    for name in shards:
        pd.testing.assert_frame_equal(*(pd.read_parquet(Path(e.shards) / name) for e in (one, other)))


def test_a_piece_is_scored_once_all_its_rows_are_there(job: Job, tmp_path: Path) -> None:
    """The first file ends inside a piece that the second goes on with."""
    own = replace(job, shards=str(tmp_path))
    done = pa.Table.from_batches(spark_tasks.scored_assets(own, ("P0",), batches(1))).to_pylist()
    rows = [d["rows"] for d in done if d["piece"] >= 0]
    assert sum(rows) == ROWS
    assert len(rows) == own.cuts["P0"].pieces


@pytest.mark.parametrize(
    ("held", "pieces", "tasks", "even"),
    [
        ([{"a": 0}, {"b": 0}, {"c": 0}, {"d": 0}], [2, 2, 2, 2], 2, True),
        ([{"a": 0}, {"b": 0}, {"c": 0}], [2, 2, 2], 2, False),
        ([{"a": 0}, {"b": 0}, {"c": 0}, {"d": 0}], [9, 2, 2, 2], 2, False),
        ([{"a": 0, "b": 5}, {"c": 0}, {"d": 0}], [2, 2, 2, 2], 2, False),
    ],
    ids=["even", "too few assets", "one is larger than a share", "a file of two assets"],
)
def test_it_is_done_where_the_work_can_be_shared_evenly(
    job: Job, held: list[dict[str, int]], pieces: list[int], tasks: int, even: bool
) -> None:
    cut = next(iter(job.cuts.values()))
    cuts = {name: replace(cut, pieces=n) for name, n in zip("abcd", pieces, strict=False)}
    own = replace(job, begins=tuple(held), cuts=cuts)
    assert bool(own.by_files(tasks)) is even


def test_later_files_of_an_asset_say_where_they_begin(job: Job) -> None:
    own = replace(job, begins=({"a": 3}, {"b": 0}, {"a": 20}, {"a": 10}))
    never = int(np.iinfo(np.int64).max)
    assert own.files_of("a") == [(0, 10), (2, 10), (3, never)]

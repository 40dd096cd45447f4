"""`anomaly extract --engine spark`: the embeddings of one process, by asset, whatever is begun, there already or damaged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Outcome, anomaly
from numpy.typing import NDArray
from spark_conftest import ASSETS, CLUSTER, Plant, corrupted

from anomaly.data.readers import open_log
from anomaly.data.store import create_store
from pipelines.extract import ExtractOptions, extract

pytestmark = [
    pytest.mark.spark,
    pytest.mark.usefixtures("cluster", "home"),
    pytest.mark.filterwarnings("ignore:.*pandas.*:FutureWarning"),
]


@dataclass(frozen=True)
class Alone:
    """What one process makes of the plant: rows by asset and time."""

    asset: list[str]
    time: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def alone(plant: Plant, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder, model = tmp_path_factory.mktemp("alone"), plant.model
    log = open_log([plant.log], model.settings.log, model.contract)
    with create_store(folder / "w.h5", model.contract, model.settings.window, model.settings.split) as writer:
        for chunk in log.chunks():
            writer.append(chunk)
    features_only = model.ensemble.space is None
    extract(folder / "w.h5", model, folder / "f.h5", ExtractOptions(features_only=features_only, workers=1))
    with h5py.File(folder / "f.h5") as file:
        names = [n for n in file if isinstance(file[n], h5py.Dataset) and n != "labels"]
        columns = {n: file[n][:] for n in names}
        return Alone([a.decode() for a in file["metadata/asset"][:]], file["metadata/time"][:], columns)


def run(plant: Plant, log: Path, out: Path, *flags: str) -> Outcome:
    return anomaly("extract", log, "--engine", "spark", "--master", CLUSTER, "--json", "--model", plant.bundle, "--out",
                   out, *flags)  # fmt: skip


def matrix(column: pa.ChunkedArray) -> NDArray[Any]:
    values = column.combine_chunks()
    if pa.types.is_fixed_size_list(values.type):
        return np.asarray(values.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)
    return np.asarray(values.to_numpy(zero_copy_only=False))


def assert_as_alone(out: Path, alone: Alone, but: str = "") -> None:
    kept = np.array([a != but for a in alone.asset])
    files = sorted(out.glob("asset=*/embeddings.parquet"))
    assert len(files) == len(set(np.array(alone.asset)[kept]))
    found = pa.concat_tables(pq.ParquetFile(f).read() for f in files)
    assert found["asset"].to_pylist() == [a for a in alone.asset if a != but]
    assert (found["time"].cast(pa.int64()).to_numpy() == alone.time[kept]).all()
    assert {"features", "reconstruction_error"} <= alone.columns.keys() <= set(found.column_names)
    for name, wanted in alone.columns.items():
        np.testing.assert_allclose(matrix(found[name]), wanted[kept], rtol=1e-5, atol=1e-5, err_msg=name)


def test_embeddings_are_those_of_one_process_and_are_made_once(plant: Plant, alone: Alone, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(plant, plant.folder, out).json
    assert_as_alone(out, alone)
    assert (done["assets"], done["windows"], done["set_aside"]) == (ASSETS, len(alone.time), {})
    assert done["unscorable"] == np.isnan(alone.columns["features"][:, 0]).sum() > 0
    assert len(done["workers"]) == 2
    assert not list(tmp_path.glob(".out*"))
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*")}
    refused = run(plant, plant.folder, out)
    assert (refused.status, "E2003" in refused.err, "--overwrite" in refused.err) == (2, True, True)
    assert "complete already" in run(plant, plant.folder, out, "--resume").json["notices"][0]
    other = run(plant, plant.folder, out, "--resume", "--features-only")
    assert (other.status, "E3402" in other.err) == (3, True)
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*")} == before


def test_a_corrupt_partition_is_reported_and_what_was_begun_is_gone_on_with(
    plant: Plant, alone: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import spark_extract

    log, out = corrupted(plant, tmp_path), tmp_path / "out"

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(spark_extract, "_commit", die)
        spark_extract.extract_on_spark([log], plant.model, plant.bundle, out, master=CLUSTER)
    shards = {f: f.stat().st_mtime_ns for f in tmp_path.glob(".out.embedded-*/*.parquet")}
    assert len(shards) == ASSETS - 1 and not out.exists()
    refused = run(plant, log, out)
    assert (refused.status, "--resume" in refused.err) == (2, True)
    done = run(plant, log, out, "--resume")
    assert done.status == 6, done.err
    told = json.loads(done.out)
    assert list(told["set_aside"]) == ["asset P 3"] and "E3006" in told["set_aside"]["asset P 3"]
    assert "asset P 3 is set aside: E3006" in done.err
    assert_as_alone(out, alone, but="P 3")
    kept = {f.stat().st_mtime_ns for f in out.glob("asset=*/embeddings.parquet")}
    assert kept == set(shards.values()), "nothing was embedded twice"


def test_options_that_spark_lacks_and_folders_of_others_are_refused(plant: Plant, tmp_path: Path) -> None:
    done = run(plant, plant.folder, tmp_path / "out", "--clusters", "3", "--pca", "incremental")
    assert (done.status, "--clusters, --pca" in done.err) == (2, True)
    done = anomaly("extract", plant.log, "--out", tmp_path / "o.h5", "--master", CLUSTER)
    assert (done.status, "--master together with --engine spark" in done.err) == (2, True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    done = run(plant, plant.folder, tmp_path / "other", "--overwrite")
    assert (done.status, "E2003" in done.err) == (2, True)
    done = run(plant, plant.folder, plant.folder / "out")
    assert (done.status, "apart from the log" in done.err) == (2, True)

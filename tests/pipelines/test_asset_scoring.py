"""``score_asset``: an asset scored in stretches says what it says when its log is scored at once. No Spark here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from small_plant import chunk_of, small_frame

from anomaly.data.contract import LogChunk
from anomaly.data.quality import QualityProfile
from anomaly.errors import Fault, InputRefused, UsageError
from anomaly.fitting import Fitted
from anomaly.model import OUTCOMES, AnomalyModel, ScoredRows, chunk_from_frame
from pipelines import asset_scoring
from pipelines.asset_scoring import HistoryTooShort, Stretch, needed_rows, overlap_rows, rows_table, score_asset
from pipelines.drift_report import DriftSample
from pipelines.spark_commit import add_sampled, check_target, count_operating, scored_rows
from pipelines.spark_job import Inspected, Job, LogFile, Reading, in_order, parquet_files, planned

Use = Callable[[float], AnomalyModel]


@pytest.fixture(scope="module")
def plain(fitted: Fitted, frame: pd.DataFrame) -> AnomalyModel:
    """The small plant's model with what its sensors usually do."""
    profile = QualityProfile.fit([chunk_of(frame)], fitted.model.contract)
    return replace(fitted.model, digest="d" * 64, quality=profile.to_dict(), _engines={})


@pytest.fixture
def use(plain: AnomalyModel, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Let ``score_asset`` find the model with another half-life of smoothing."""

    def call(half_life: float) -> AnomalyModel:
        settings = plain.settings.changed(detection={"half_life": half_life})
        model = replace(plain, settings=settings, _engines={})
        monkeypatch.setattr(asset_scoring, "model_of", lambda bundle, digest: model)
        return model

    return call


def troubled(rows: int = 2600) -> pd.DataFrame:
    """Rows with short and long silences, gaps, a repeated row, and an outage longer than what a stretch brings along."""
    frame = small_frame(rows, seed=3).drop(columns="label")
    frame.loc[300:304, "tag2"] = np.nan
    frame.loc[2000, "tag1"] = np.nan
    frame.loc[rows * 3 // 4 :, "time"] += pd.Timedelta(days=9)
    return pd.concat([frame.iloc[:700], frame.iloc[699:]], ignore_index=True)


def job_of(chunk: LogChunk, model: AnomalyModel, rows: int) -> Job:
    """The job over one file that holds ``chunk``, all of the asset A."""
    spans = {"A": (len(chunk), int(chunk.time[0]), int(chunk.time[-1]))}
    file = Inspected(LogFile("a.parquet", "A"), "0" * 64, len(chunk), spans)
    return planned([file], Reading(model.settings.log, model.contract), model, "bundle", "graph", rows)


def stretches(chunk: LogChunk, job: Job) -> list[pa.Table]:
    """What ``score_asset`` is given for every stretch of the asset A, the rows in disorder."""
    found, rng = [], np.random.default_rng(0)
    for piece in range(job.cuts["A"].pieces):
        stretch = job.stretch("A", piece)
        own = chunk.take((chunk.time >= stretch.low_us) & (chunk.time < stretch.end_us))
        own = own.take(rng.permutation(len(own)))
        found.append(stretch.on(rows_table(own, 0, np.zeros(len(own), dtype=bool))))
    return found


def assert_rows(found: list[pa.Table], wanted: ScoredRows, tags: int) -> None:
    got = ScoredRows.join([scored_rows(t, tags, 0) for t in found])
    assert (got.time == wanted.time).all()
    assert (got.outcome == wanted.outcome).all()
    assert (got.reason == wanted.reason).all()
    np.testing.assert_allclose(got.score, wanted.score, rtol=1e-6, atol=1e-6, equal_nan=True)
    anomalous = OUTCOMES[wanted.outcome] == "anomalous"
    assert anomalous.any()
    np.testing.assert_allclose(got.shares[anomalous], wanted.shares[anomalous], rtol=1e-4, atol=1e-5)
    both = (got.evidence != None) & (wanted.evidence != None)  # noqa: E711  an array is compared element by element
    assert both.any()
    for one, two in zip(got.evidence[both], wanted.evidence[both], strict=True):
        assert (one.values == two.values).all()
        np.testing.assert_allclose(one.window, two.window, rtol=1e-6)


@pytest.mark.parametrize(("half_life", "rows"), [(0.0, 600), (0.0, 10**6), (2.0, 600)])
def test_stretches_say_what_the_whole_log_says(use: Use, half_life: float, rows: int) -> None:
    model = use(half_life)
    chunk = chunk_from_frame(troubled(), model.contract)
    job = job_of(chunk, model, rows)
    assert (job.cuts["A"].pieces > 2) == (rows == 600)
    found = [score_asset(t) for t in stretches(chunk, job)]
    assert_rows(found, model.stream().score(chunk), len(model.contract.tags))
    assert sum(t["outcome"].to_pylist().count("unscorable") for t in found) > 0
    assert any(t["reason"].to_pylist()[0] == "gap" for t in found[1:] if t.num_rows) == (rows == 600)


def test_a_stretch_begins_where_the_one_before_ends_and_the_smoothing_reaches_over(use: Use) -> None:
    model = use(3.0)
    assert needed_rows(model.lookback, 3.0) == model.lookback - 1 + 192
    assert overlap_rows(model) > needed_rows(model.lookback, 3.0) + model.ensemble.trail
    frame = small_frame(9000).drop(columns="label")
    frame["time"] = pd.date_range(frame["time"].iloc[0], periods=len(frame), freq="1min")
    chunk = chunk_from_frame(frame, model.contract)
    job = job_of(chunk, model, 300)
    (second,) = (score_asset(t) for t in stretches(chunk, job)[1:2])
    whole = model.stream().score(chunk)
    at = np.flatnonzero(whole.time == second["time"].cast(pa.int64()).to_numpy()[0])[0]
    np.testing.assert_allclose(second["anomaly_score"].to_numpy()[:5], whole.score[at : at + 5], rtol=1e-6)
    cold = model.stream().score(chunk.take(slice(at, at + 5)))
    assert abs(cold.score - whole.score[at : at + 5]).max() > 1e-3  # without the rows before it would be another answer


def test_a_tag_silent_beyond_what_comes_along_is_noticed(use: Use) -> None:
    model = use(0.0)
    frame = small_frame(2600, seed=3).drop(columns="label").iloc[:1250]
    frame.loc[100:1200, "tag4"] = np.nan
    chunk = chunk_from_frame(frame, model.contract)
    job = job_of(chunk, model, 100)
    short = replace(job.scorer("A"), overlap_us=overlap_rows(model) * 60_000_000)
    tables = stretches(chunk, replace(job, scorers={"A": short}))
    assert len(tables) == 1 or job.cuts["A"].pieces == len(tables)
    half = replace(job, cuts={"A": replace(job.cuts["A"], length_us=600 * 60_000_000, pieces=2)})
    first, second = stretches(chunk, half)
    score_asset(first)
    with pytest.raises(HistoryTooShort, match="tag4 was silent"):
        score_asset(second)
    (whole,) = stretches(chunk, replace(job, cuts={"A": replace(job.cuts["A"], pieces=1)}))
    assert score_asset(whole).num_rows == len(chunk)


def test_rows_that_files_repeat_are_read_once_and_must_agree(use: Use) -> None:
    model = use(0.0)
    chunk = chunk_from_frame(small_frame(400).drop(columns="label"), model.contract)
    job = job_of(chunk, model, 10**6)
    early, late = chunk.take(slice(0, 300)), chunk.take(slice(250, 400))
    again = late.time <= early.time[-1]

    def table(other: LogChunk) -> pa.Table:
        rows = [rows_table(early, 0, np.zeros(len(early), dtype=bool)), rows_table(other, 1, again)]
        return job.stretch("A", 0).on(pa.concat_tables(rows))

    assert_rows([score_asset(table(late))], model.stream().score(chunk), len(model.contract.tags))
    other = replace(late, values=late.values.copy())
    other.values[20, 1] += 1
    with pytest.raises(InputRefused, match="E3206"):
        score_asset(table(other))
    passed_over = replace(late, time=late.time - np.where(np.arange(len(late)) == 0, 30_000_000, 0))
    with pytest.raises(InputRefused, match="E3205"):
        score_asset(table(passed_over))


def test_drift_of_stretches_is_drift_of_the_log(use: Use) -> None:
    model = use(0.0)
    chunk = chunk_from_frame(troubled(), model.contract)
    tags = len(model.contract.tags)
    whole, parts = DriftSample(tags), DriftSample(tags)
    scored = model.stream().score(chunk)
    whole.add(replace(scored, asset=np.full(len(chunk), "A", dtype=object)))
    for table in map(score_asset, stretches(chunk, job_of(chunk, model, 600))):
        add_sampled(parts, scored_rows(table, tags, 0), table)
        count_operating(parts, json.loads(table.schema.metadata[asset_scoring.FOUND]))
    assert (parts.operating, parts.span) == (whole.operating, whole.span)
    for one, two in zip(parts.rows(), whole.rows(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_a_table_without_a_stretch_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="expected a stretch"):
        Stretch.of(pa.table({}))


# Plans ---------------------------------------------------------------------------------------------------------------


def test_files_of_a_folder_as_spark_sees_them(tmp_path: Path) -> None:
    for name in ("asset=P%2F1/a.parquet", "asset=P2/day=3/b.parquet", "c.parquet", "_old/d.parquet", "x/e.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {Path(f.path).name: f.asset for f in parquet_files([tmp_path], None)}
    assert found == {"a.parquet": "P/1", "b.parquet": "P2", "c.parquet": None}
    with pytest.raises(UsageError, match=r"E2001.*plant\.csv"):
        parquet_files([tmp_path / "plant.csv"], None)
    with pytest.raises(InputRefused, match="E3001"):
        parquet_files([tmp_path / "x"], "pump") if not (tmp_path / "x" / "e.parquet").unlink() else None


def test_an_asset_with_a_refused_file_is_set_aside_whole() -> None:
    bad = Fault("E3006", "a whole file", "half of one", file="a2").line()
    files = [
        Inspected(LogFile("b", "B"), "2", 5, {"B": (5, 0, 9)}),
        Inspected(LogFile("a2", "A"), faults=(bad,)),
        Inspected(LogFile("a1", "A"), "1", 5, {"A": (5, 0, 9)}),
        Inspected(LogFile("c", None), faults=(bad,)),
    ]
    good, aside = in_order(files)
    assert [one.file.path for one in good] == ["b"]
    assert aside == {"asset A": bad, "c": bad}


def test_scores_never_fall_on_the_log_or_on_other_files(tmp_path: Path) -> None:
    log, other = tmp_path / "log", tmp_path / "notes"
    log.mkdir()
    other.mkdir()
    (other / "letter.txt").write_text("keep")
    for out in (log, tmp_path, log / "scores.parquet", other):
        with pytest.raises(UsageError, match="E2003"):
            check_target(out, [log])
    check_target(tmp_path / "scores.parquet", [log])

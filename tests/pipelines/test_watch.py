"""``anomaly watch``: the same scores and alerts as one file, whatever lands, in what pieces and in what order."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from command_line import write_log
from small_plant import chunk_of, small_frame

from alerts.episodes import EpisodeRules, EpisodeTracker
from alerts.store import AlertStore
from anomaly.data.contract import LogChunk
from anomaly.data.quality import QualityProfile
from anomaly.errors import InputRefused
from anomaly.fitting import Fitted
from anomaly.model import AnomalyModel, StreamScorer, chunk_from_frame, scored_frame
from pipelines.score import score
from pipelines.watch import QUARANTINE, STATE, Turn, Watch, WatchOptions, scores_of
from pipelines.watch_loop import once
from pipelines.watch_state import Order, row_digests

HOUR = 3_600_000_000
#: Columns that hold measured figures as text or number: equal within rounding.
MEASURED = ("peak_score", "top_tags", "reasons")
CLOCK = ("id", "first_batch", "created_at", "recorded_at")


@pytest.fixture(scope="module")
def model(fitted: Fitted, frame: pd.DataFrame) -> AnomalyModel:
    """The small plant's model with smoothing, so that there is more state than the window."""
    settings = fitted.model.settings.changed(detection={"half_life": 2.0})
    profile = QualityProfile.fit([chunk_of(frame)], fitted.model.contract)
    return replace(fitted.model, settings=settings, digest="d" * 64, quality=profile.to_dict(), _engines={})


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    """Rows with missing values, gaps and events."""
    frame = small_frame(1500).drop(columns="label")
    frame.loc[300:304, "tag2"] = np.nan
    frame.loc[905, "tag1"] = np.nan
    return frame


class Place:
    """A folder that is watched, and what comes of it."""

    def __init__(self, root: Path, model: AnomalyModel, lateness_us: int = 4 * HOUR) -> None:
        self.folder, self.out, self.state, self.model = root / "in", root / "scores", root / "state", model
        self.database = str(root / "alerts.db")
        self.options = WatchOptions(lateness_us, settle_s=0.0)
        self.folder.mkdir(parents=True)

    def watch(self) -> Watch:
        """A watch that goes on from what is on disk, as a new process would."""
        return Watch(self.folder, self.model, "m", self.out, self.database, self.state, self.options)

    def once(self, everything: bool = False) -> Turn:
        return once(self.watch(), everything)

    def land(self, frame: pd.DataFrame, name: str) -> Path:
        return write_log(frame, self.folder / name)

    def scores(self) -> pd.DataFrame:
        tables = [pq.read_table(p).to_pandas() for p in scores_of(self.out)]
        return pd.concat(tables).sort_values(["asset", "time"]).reset_index(drop=True)

    def alerts(self) -> list[dict[str, Any]]:
        return alert_rows(Path(self.database))


def alert_rows(database: Path) -> list[dict[str, Any]]:
    """The alerts as stored, without numbers and clock columns."""
    rows = AlertStore(database).dump().get("alerts", [])
    kept = [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]
    return sorted(kept, key=lambda row: (row["asset"], row["start_us"]))


@pytest.fixture(scope="module")
def whole(
    model: AnomalyModel, log: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Scores and alerts of the log as one file."""
    folder = tmp_path_factory.mktemp("whole")
    path = write_log(log, folder / "log.csv")
    score([path], model, "m", folder / "s.parquet", str(folder / "alerts.db"))
    return pq.read_table(folder / "s.parquet").to_pandas(), alert_rows(folder / "alerts.db")


def assert_same(found: pd.DataFrame, wanted: pd.DataFrame, close: float = 1e-6) -> None:
    assert (found["time"].to_numpy() == wanted["time"].to_numpy()).all()
    assert (found["outcome"].to_numpy() == wanted["outcome"].to_numpy()).all()
    assert (found["reason"].to_numpy() == wanted["reason"].to_numpy()).all()
    one, two = found["anomaly_score"].to_numpy(np.float64), wanted["anomaly_score"].to_numpy(np.float64)
    np.testing.assert_allclose(one, two, rtol=close, atol=close, equal_nan=True)


def assert_same_alerts(found: list[dict[str, Any]], wanted: list[dict[str, Any]], close: float = 1e-6) -> None:
    exact = (
        "asset",
        "start_us",
        "peak_us",
        "end_us",
        "rows",
        "state",
        "priority",
        "lead_us",
        "model",
        "search",
        "kind",
    )
    assert [[row[k] for k in exact] for row in found] == [[row[k] for k in exact] for row in wanted]
    assert set(found[0]) == set(wanted[0]) >= set(exact)
    np.testing.assert_allclose([r["peak_score"] for r in found], [r["peak_score"] for r in wanted], rtol=1e-6)


def shuffled(n: int, apart: int, seed: int) -> list[int]:
    """0 … n-1 in an order in which each is at most ``apart`` places from its own."""
    late = np.arange(n) + np.random.default_rng(seed).uniform(0, apart, n)
    return [int(i) for i in np.argsort(late)]


def test_fifty_files_shuffled_and_row_by_row_give_the_scores_and_alerts_of_one_file(
    model: AnomalyModel, log: pd.DataFrame, whole: tuple[pd.DataFrame, list[dict[str, Any]]], tmp_path: Path
) -> None:
    place, pieces = Place(tmp_path, model), np.array_split(np.arange(len(log)), 50)
    for number in shuffled(50, 5, seed=1):
        kind = "csv" if number % 2 else "parquet"
        place.land(log.iloc[pieces[number]], f"{number:02d}.{kind}")
        done = place.once()
        assert not done.quarantined
    place.once(everything=True)
    assert len(whole[1]) > 5
    assert_same(place.scores(), whole[0])
    assert_same_alerts(place.alerts(), whole[1])

    stream, chunk = model.stream(), chunk_from_frame(log, model.contract)
    rows = [scored_frame(stream.score(chunk.take(slice(i, i + 1))), model) for i in range(800)]
    assert_same(pd.concat(rows), whole[0][:800])


def only(frame: pd.DataFrame, unit: str) -> pd.DataFrame:
    return frame.loc[frame["unit"] == unit]


def test_two_assets_in_one_log_or_in_files_that_mix_them(
    model: AnomalyModel, log: pd.DataFrame, tmp_path: Path
) -> None:
    model = replace(model, contract=replace(model.contract, asset="unit"))
    both = pd.concat([log[:420].assign(unit="A"), log[120:500].assign(unit="B")]).sort_values("time", kind="stable")
    path = write_log(both, tmp_path / "both.csv")
    score([path], model, "m", tmp_path / "s.parquet", str(tmp_path / "whole.db"))
    wanted = pq.read_table(tmp_path / "s.parquet").to_pandas().sort_values(["asset", "time"]).reset_index(drop=True)
    place = Place(tmp_path / "place", model)
    parts = [both[:150], both[500:], both[150:300], only(both[300:500], "B"),
             only(both[290:500], "A")]  # fmt: skip
    for number, part in enumerate(parts):
        place.land(part, f"{number}.csv")
        assert not place.once().quarantined
    place.once(everything=True)
    assert_same(place.scores(), wanted)
    assert_same_alerts(place.alerts(), alert_rows(tmp_path / "whole.db"))
    assert {row["asset"] for row in place.alerts()} == {"A", "B"}


@pytest.mark.parametrize("seed", range(5))
def test_episodes_saved_and_restored_after_any_rows_are_the_same(seed: int) -> None:
    rng, rules = np.random.default_rng(seed), EpisodeRules(off=0.8, min_rows=2, merge_gap_us=3, max_gap_us=5)
    time = np.cumsum(rng.choice([1, 2, 7], size=200, p=[0.8, 0.15, 0.05]))
    value, outcome = rng.exponential(1.5, 200), rng.choice([0, 2], size=200, p=[0.9, 0.1])
    shares, told = rng.random((200, 2)), np.array([f"r{i}" for i in range(200)], dtype=object)
    whole, cut = (EpisodeTracker("A", 2.0, rules, ("P", "Q")) for _ in range(2))
    why = np.full(200, "", dtype=object)
    whole.update(time, value, outcome, why, shares, told)
    for part in np.array_split(np.arange(200), 40):
        cut.update(time[part], value[part], outcome[part], why[part], shares[part], told[part])
        plain, arrays = cut.to_state()
        cut = EpisodeTracker.from_state("A", 2.0, rules, ("P", "Q"), json.loads(json.dumps(plain)), arrays)
    assert len(whole.finish()) > 5
    assert cut.finish() == whole.finish()
    with pytest.raises(ValueError, match="1 tags, got 2"):
        EpisodeTracker.from_state("A", 2.0, rules, ("P",), plain, arrays)


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 130, 302, 750, 751, 906, 1350])
def test_a_stream_saved_and_restored_at_any_row_gives_the_same_scores(
    model: AnomalyModel, log: pd.DataFrame, cut: int, tmp_path: Path
) -> None:
    chunk = chunk_from_frame(log, model.contract)
    undisturbed = model.stream()
    first, wanted = undisturbed.score(chunk.take(slice(0, cut))), undisturbed.score(chunk.take(slice(cut, None)))
    stream = model.stream()
    stream.score(chunk.take(slice(0, cut)))
    plain, arrays = stream.to_state()
    np.savez(tmp_path / "s.npz", allow_pickle=False, **arrays)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as held:
        again = StreamScorer.from_state(model, json.loads(json.dumps(plain)), dict(held))
    # The first row once more: its answer, evidence and all, comes from the state alone.
    repeated = again.score(chunk.take(slice(max(cut - 1, 0), cut)))
    found = again.score(chunk.take(slice(cut, None)))
    for name in ("score", "outcome", "reason", "shares", "alone"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
        np.testing.assert_array_equal(getattr(repeated, name), getattr(first, name)[-1:], err_msg=name)
    assert [e and e.alike for e in found.evidence] == [e and e.alike for e in wanted.evidence]
    assert [e and e.alike for e in repeated.evidence] == [e and e.alike for e in first.evidence[-1:]]


def test_a_state_of_other_sensors_is_refused(model: AnomalyModel, log: pd.DataFrame) -> None:
    stream = model.stream()
    stream.score(chunk_from_frame(log[:10], model.contract))
    plain, arrays = stream.to_state()
    arrays["0/last_shares"] = arrays["0/last_shares"][:, :2]
    with pytest.raises(ValueError, match="6 tags, got one of 2"):
        StreamScorer.from_state(model, plain, arrays)


def test_files_that_repeat_and_overlap_are_answered_once(
    model: AnomalyModel, log: pd.DataFrame, whole: tuple[pd.DataFrame, list[dict[str, Any]]], tmp_path: Path
) -> None:
    place = Place(tmp_path, model, lateness_us=0)
    for name, part in {"a": log[:600], "b": log[400:900], "c": log[100:200], "d": log[880:]}.items():
        place.land(part, f"{name}.csv")
        assert not place.once().quarantined
    place.land(log[400:900], "again.csv")
    assert place.once().repeated == 1
    assert_same(place.scores(), whole[0])
    assert_same_alerts(place.alerts(), whole[1])
    before = AlertStore(place.database).dump()
    assert place.once(everything=True).rows == 0
    assert AlertStore(place.database).dump() == before


def test_a_row_too_late_puts_its_file_aside_and_the_others_go_on(
    model: AnomalyModel, log: pd.DataFrame, tmp_path: Path
) -> None:
    place = Place(tmp_path, model, lateness_us=0)
    place.land(log[:100].drop(index=range(40, 50)), "a.csv")
    place.once()
    place.land(log[35:60], "late.csv")
    place.land(log[100:150], "b.csv")
    done = place.once()
    assert list(done.quarantined) == ["late.csv"]
    assert "E3205" in done.quarantined["late.csv"]
    assert "10 rows too late" in done.quarantined["late.csv"]
    assert "row=6" in done.quarantined["late.csv"]
    assert (place.folder / QUARANTINE / "late.csv").exists()
    assert "10 rows too late" in (place.folder / QUARANTINE / "late.csv.reason.txt").read_text()
    assert not (place.folder / "late.csv").exists()
    assert len(place.scores()) == 140


def test_a_file_within_the_limit_fills_the_hole_and_one_beyond_does_not(
    model: AnomalyModel, log: pd.DataFrame, whole: tuple[pd.DataFrame, list[dict[str, Any]]], tmp_path: Path
) -> None:
    for lateness, quarantined in ((2 * HOUR, False), (HOUR // 2, True)):
        place = Place(tmp_path / str(lateness), model, lateness)
        place.land(log[:60], "a.csv")
        place.once()
        place.land(log[120:180], "c.csv")
        place.once()
        place.land(log[60:120], "b.csv")
        assert bool(place.once().quarantined) is quarantined
        place.once(everything=True)
        if not quarantined:
            assert_same(place.scores(), whole[0][:180])


def other_value(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(tag0=frame["tag0"].where(frame.index != frame.index[7], 99.0))


@pytest.mark.parametrize(
    ("name", "make", "code"),
    [
        ("cut.csv", lambda log: b"time,tag0\n2026-01-05T00:00", "E3"),
        ("empty.csv", lambda log: b"", "E3002"),
        ("x.parquet", lambda log: b"PAR1 nonsense PAR1", "E3006"),
        ("columns.csv", lambda log: log[20:40].drop(columns="tag3").to_csv(index=False).encode(), "E3101"),
        ("values.csv", lambda log: other_value(log[10:30]).to_csv(index=False).encode(), "E3206"),
        (
            "clock.csv",
            lambda log: log[20:40].assign(time=log["time"] + pd.Timedelta(20_000, "D")).to_csv(index=False).encode(),
            "E3207",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) and v.endswith("csv") else "",
)
@pytest.mark.parametrize("lateness", [0, 4 * HOUR])
def test_a_bad_file_is_put_aside_with_the_reason_and_changes_nothing(
    model: AnomalyModel,
    log: pd.DataFrame,
    tmp_path: Path,
    name: str,
    make: Callable[[pd.DataFrame], bytes],
    code: str,
    lateness: int,
) -> None:
    place = Place(tmp_path, model, lateness)
    place.land(log[:20], "a.csv")
    place.once()
    (place.folder / name).write_bytes(make(log))
    place.land(log[20:40], "b.csv")
    done = place.once(everything=True)
    assert list(done.quarantined) == [name]
    assert code in (place.folder / QUARANTINE / f"{name}.reason.txt").read_text()
    assert (done.files, len(place.scores())) == (1, 40)
    assert sorted(p.name for p in place.folder.iterdir()) == ["a.csv", "b.csv", QUARANTINE]
    assert place.once().quarantined == {}


def test_two_bad_files_of_one_name_are_both_kept(model: AnomalyModel, tmp_path: Path) -> None:
    place = Place(tmp_path, model)
    for content in ("x", "y"):
        (place.folder / "bad.csv").write_text(content)
        place.once()
    aside = place.folder / QUARANTINE
    assert [(aside / name).read_text() for name in ("bad.csv", "bad.2.csv")] == ["x", "y"]


def test_a_file_is_read_once_it_has_settled(model: AnomalyModel, log: pd.DataFrame, tmp_path: Path) -> None:
    place = Place(tmp_path, model)
    place.options = replace(place.options, settle_s=60.0)
    path = place.land(log[:40], "a.csv")
    watch = place.watch()
    assert watch.new_files() == ({}, 1)
    old = path.stat().st_mtime - 100
    os.utime(path, (old, old))
    found, unsettled = watch.new_files()
    assert (list(found), unsettled) == (["a.csv"], 0)
    (place.folder / "link.csv").symlink_to(path)
    (place.folder / ".hidden.csv").write_text("x")
    (place.folder / "folder.csv").mkdir()
    assert (list(watch.new_files()[0]), watch.new_files()[1]) == (["a.csv"], 0)


def chunk_of_times(times: list[int], values: list[float], assets: list[str] | None = None) -> LogChunk:
    n = len(times)
    asset = np.array(assets or ["A"] * n, dtype=object)
    own = np.array(values, np.float32).reshape(n, 1)
    return LogChunk(np.arange(n), np.array(times, np.int64), asset, own, np.empty((n, 0), dtype=object),
                    np.zeros(n, np.int8), np.zeros((n, 1), bool))  # fmt: skip


def test_rows_wait_for_the_watermark_of_their_own_asset() -> None:
    order = Order(lateness_us=10, max_gap_us=100)
    order.admit(chunk_of_times([0, 20, 5, 6], [1, 2, 3, 4], ["A", "A", "B", "B"]))
    released = order.release()
    assert released is not None
    assert list(zip(released.asset, released.time.tolist(), strict=True)) == [("A", 0)]
    order.admit(chunk_of_times([12, 15], [5, 6]))
    assert order.release() is None
    order.admit(chunk_of_times([25], [7]))
    released = order.release()
    assert released is not None
    assert released.time.tolist() == [12, 15]
    assert order.rows == 2 + 2


def test_order_tells_repeated_late_and_differing_rows_apart() -> None:
    order = Order(lateness_us=0, max_gap_us=5)
    order.admit(chunk_of_times([0, 2, 4, 20, 22], [1, 2, np.nan, 4, 5]))
    order.release()
    order.waiting, again = {}, chunk_of_times([0, 2, 4, 20, 22, 24], [1, 2, np.nan, 4, -0.0, 6])
    assert order.faults(chunk_of_times([0, 2, 4], [1, 2, np.nan]), "f") == []
    assert [f.code for f in order.faults(again, "f")] == ["E3206"]
    late = order.faults(chunk_of_times([2, 3, 21], [2, 9, 9]), "f")
    assert [(f.code, f.row) for f in late] == [("E3205", 2)]
    plain, arrays = order.to_state()
    assert [f.code for f in Order.from_state(0, 5, plain, arrays).faults(again, "f")] == ["E3206"]
    assert order.admit(chunk_of_times([22, 24, 24], [5, 6, 6])) == 1


def test_digests_of_rows_tell_neighbouring_values_apart() -> None:
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=(20_000, 3)), 2).astype(np.float32)
    chunk = chunk_of_times(list(range(20_000)), [0.0] * 20_000)
    found = row_digests(replace(chunk, values=values, bad=np.zeros(values.shape, bool)))
    assert len(np.unique(found)) == len(np.unique(values, axis=0))


def test_a_damaged_state_is_refused_and_left_alone(model: AnomalyModel, log: pd.DataFrame, tmp_path: Path) -> None:
    place = Place(tmp_path, model)
    place.land(log[:40], "a.csv")
    place.once()
    data = (place.state / STATE).read_bytes()[:-200]
    (place.state / STATE).write_bytes(data)
    with pytest.raises(InputRefused, match="E3006"):
        place.watch()
    assert (place.state / STATE).read_bytes() == data


def test_another_model_goes_on_with_the_rows_that_wait(model: AnomalyModel, log: pd.DataFrame, tmp_path: Path) -> None:
    place = Place(tmp_path, model, HOUR)
    place.land(log[:200], "a.csv")
    place.once()
    place.model = replace(model, digest="e" * 64)
    place.land(log[200:300], "b.csv")
    place.once(everything=True)
    found = place.scores()
    assert found["time"].is_unique
    assert len(found) == 300
    began = found.index[found["reason"] == "warm_up"].tolist()
    assert began == [0, 1, 2, 3, 4, 140, 141, 142, 143, 144], "windows begin anew, no row is lost"

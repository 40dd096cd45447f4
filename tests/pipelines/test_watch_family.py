"""``anomaly watch`` and ``anomaly evaluate`` by a family of models, and a file of the family's log that is damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import anomaly, files_under, write_log
from family import Trained
from small_plant import small_frame
from test_watch import Place, alert_rows, assert_same, assert_same_alerts

from alerts.store import AlertStore
from anomaly.errors import Fault, ModelRefused
from pipelines import watch_members
from pipelines.watch import STATE, Watch, WatchOptions, scores_of
from pipelines.watch_loop import once
from pipelines.watch_members import WatchModels, family_models, narrowed
from registry.families import Family, find_family, member_name

ASSETS = ["P-1", "line 2/P:2"]
SECOND = member_name("plant", "line 2/P:2")


@pytest.fixture
def models(family: Trained) -> WatchModels:
    return family_models(known(family))


def known(family: Trained) -> Family:
    found = find_family("plant", family.home)
    assert found is not None
    return found


def both(family: Trained, rows: slice = slice(None)) -> pd.DataFrame:
    """Unlabelled rows of the two assets that have a model, mixed by time."""
    frame = family.frame[family.frame["asset"].isin(ASSETS)].drop(columns="label")
    return frame.iloc[rows].reset_index(drop=True)


class FamilyPlace(Place):
    """A folder that a family watches."""

    def __init__(self, root: Path, models: WatchModels) -> None:
        super().__init__(root, models.first, 0)
        self.models = models

    def watch(self) -> Watch:
        return Watch(self.folder, self.models, "", self.out, self.database, self.state, self.options)


def test_files_through_a_watch_give_the_scores_and_alerts_of_the_family_on_one_file(
    family: Trained, models: WatchModels, tmp_path: Path
) -> None:
    log = both(family)
    path, place = write_log(log, tmp_path / "log.csv"), FamilyPlace(tmp_path / "place", models)
    anomaly("score", path, "--model", "plant", "--out", tmp_path / "s.parquet")
    whole = pd.read_parquet(tmp_path / "s.parquet").sort_values(["asset", "time"]).reset_index(drop=True)
    for number, part in enumerate(np.array_split(np.arange(len(log)), 7)):
        place.land(log.iloc[part], f"{number}.{'csv' if number % 2 else 'parquet'}")
        assert not once(place.watch()).quarantined, "each turn by a new process"
    once(place.watch(), everything=True)
    assert_same(place.scores(), whole, close=1e-4)
    assert_same_alerts(place.alerts(), alert_rows(tmp_path / "alerts.db"), close=1e-4)
    assert {row["asset"] for row in place.alerts()} == set(ASSETS)
    batches = AlertStore(place.database).dump()["batches"]
    assert {b["model_name"] for b in batches} == {"plant--P-1", SECOND}
    assert sum(b["rows"] for b in batches) == len(log)
    thresholds = place.scores().groupby("asset")["threshold"].unique()
    assert all(len(own) == 1 for own in thresholds) and len({float(own[0]) for own in thresholds}) == 2


def test_a_member_that_changes_begins_anew_and_the_others_go_on(
    family: Trained, models: WatchModels, tmp_path: Path
) -> None:
    place, log = FamilyPlace(tmp_path, models), both(family, slice(0, 400))
    watch = place.watch()
    for number, part in enumerate((log[:200], log[200:])):
        place.land(part, f"{number}.csv")
        once(watch)
        changed = dict(models.loaded) | {SECOND: replace(models.loaded[SECOND], digest="e" * 64, _engines={})}
        watch.use(replace(models, loaded=changed))
    found = place.scores()
    warm = found[found["reason"] == "warm_up"].groupby("asset").size()
    assert (warm["P-1"], warm["line 2/P:2"]) == (5, 10)
    assert len(found) == 400


def test_rows_without_a_model_are_unscorable_and_become_one_alert(
    family: Trained, models: WatchModels, tmp_path: Path
) -> None:
    log = both(family, slice(0, 200))
    stranger = log[log["asset"] == "P-1"].assign(asset="P-9")
    place = FamilyPlace(tmp_path, models)
    for number, part in enumerate((stranger[:50], stranger[50:])):
        place.land(pd.concat([log, part]) if not number else part, f"{number}.csv")
        done = once(place.watch())
        assert "P-9: rows are unscorable (no_model)" in done.notices
    own = place.scores().loc[lambda s: s["asset"] == "P-9"]
    assert set(own["reason"]) == {"no_model"} and own["anomaly_score"].isna().all() and len(own) == len(stranger)
    found = [
        (a.asset, a.cause, a.state) for a in AlertStore(place.database).alerts(limit=None) if a.kind == "unscorable"
    ]
    assert found == [("P-9", "no_model", "new")]


def test_a_member_that_is_refused_leaves_the_others_to_score(
    family: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = watch_members.load_bundle

    def picky(folder: Path, **how: Any) -> Any:
        model = whole(folder, **how)
        if model.settings.name == "plant--P-1":
            raise ModelRefused(Fault("E4004", "its recorded scores", "others"))
        return model

    monkeypatch.setattr(watch_members, "load_bundle", picky)
    folder = tmp_path / "in"
    folder.mkdir()
    write_log(both(family, slice(0, 300)), folder / "a.csv")
    (folder / "bad.csv").write_text("time,asset,tag0\nyesterday,P-1,1\n")
    done = anomaly("watch", folder, "--model", "plant", "--out", tmp_path / "out", "--once", "--flush",
                   "--settle", "0s", "--json")  # fmt: skip
    assert done.status == 6
    told = json.loads(done.out)
    assert list(told["refused"]) == ["plant--P-1"] and list(told["quarantined"]) == ["bad.csv"]
    found = pd.read_parquet(scores_of(tmp_path / "out")[0])
    assert set(found.loc[found["asset"] == "P-1", "reason"]) == {"model_refused: E4004"}
    assert (found.loc[found["asset"] == "line 2/P:2", "outcome"] != "unscorable").mean() > 0.9
    drift = json.loads(next((tmp_path / "out").glob("*.drift.json")).read_text())
    assert list(drift["models"]) == [SECOND]


def test_a_newer_member_is_noticed(family: Trained, models: WatchModels, tmp_path: Path) -> None:
    from pipelines.cli_watch import _newer

    watch = FamilyPlace(tmp_path, models).watch()
    assert _newer(watch, "plant")() is None
    watch.models = replace(watch.models, resolved={**models.resolved, SECOND: "f" * 64})
    found = _newer(watch, "plant")()
    assert isinstance(found, WatchModels) and found.resolved == models.resolved


def test_a_chunk_has_the_tags_of_its_model_only(models: WatchModels) -> None:
    contract = models.contract
    wanted = replace(contract, tags=(contract.tags[3], contract.tags[0]))
    from anomaly.model import chunk_from_frame

    chunk = chunk_from_frame(small_frame(20).assign(asset="P-1"), contract)
    own = narrowed(chunk, contract, wanted)
    np.testing.assert_array_equal(own.values, chunk.values[:, [3, 0]])
    assert narrowed(chunk, contract, contract) is chunk


# -- one file of many is damaged


def test_a_damaged_file_is_set_aside_and_the_other_assets_are_scored(family: Trained, tmp_path: Path) -> None:
    log = both(family, slice(0, 900))
    folder = tmp_path / "log"
    folder.mkdir()
    good = write_log(log[log["asset"] == "P-1"], folder / "a.parquet")
    bad = write_log(log[log["asset"] == "line 2/P:2"], folder / "b.parquet")
    bad.write_bytes(bad.read_bytes()[:-500])
    done = anomaly("score", folder, "--model", "plant", "--out", tmp_path / "s.parquet", "--json")
    assert done.status == 6, done.err
    told = json.loads(done.out)
    assert list(told["set_aside"]) == [str(bad)] and "E3006" in told["set_aside"][str(bad)]
    assert any("b.parquet is set aside" in n for n in told["notices"]) and told["models"] == 1
    anomaly("score", good, "--model", "plant", "--out", tmp_path / "alone.parquet", "--no-alerts")
    found = pd.read_parquet(tmp_path / "s.parquet")
    pd.testing.assert_frame_equal(found, pd.read_parquet(tmp_path / "alone.parquet"))
    (batch,) = AlertStore(tmp_path / "alerts.db").dump()["batches"]
    assert batch["file_name"] == "a.parquet"


def test_a_log_of_which_nothing_can_be_read_is_refused_and_nothing_is_written(family: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    for name in ("a.csv", "b.csv"):
        (folder / name).write_text("time,asset,tag0\nyesterday,P-1,1\n")
    before = files_under(tmp_path)
    done = anomaly("score", folder, "--model", "plant", "--out", tmp_path / "s.parquet")
    assert done.status == 3 and "a.csv" in done.err and "b.csv" in done.err
    assert files_under(tmp_path) == before


# -- evaluate


@pytest.fixture
def labelled(family: Trained, tmp_path: Path) -> pd.DataFrame:
    """Later rows of the two assets, with labels, and an asset that has no model."""
    parts = [small_frame(1200, seed=7 + k).iloc[800:].assign(asset=a) for k, a in enumerate([*ASSETS, "P-9"])]
    whole = pd.concat(parts)
    return whole.assign(time=whole["time"] + pd.Timedelta(90, "D")).sort_values("time", kind="stable")


def test_each_member_is_judged_by_its_own_rows_and_one_table_holds_them(
    family: Trained, labelled: pd.DataFrame, tmp_path: Path
) -> None:
    log = write_log(labelled, tmp_path / "log.parquet")
    done = anomaly("evaluate", "plant", log, "--report", tmp_path / "all.csv", "--json").json
    rows = {r["model"]: r for r in done["rows"]}
    assert set(rows) == {"plant--P-1", SECOND} and done["without_model"] == ["P-9"]
    alone = write_log(labelled[labelled["asset"] == "P-1"], tmp_path / "one.parquet")
    one = anomaly("evaluate", "plant--P-1", alone, "--report", tmp_path / "one.html", "--json").json["evaluation"]
    assert done["evaluations"]["plant--P-1"]["figures"] == one["figures"]
    assert rows["plant--P-1"]["average_precision"] == one["figures"]["average_precision"]["value"]
    assert rows["plant--P-1"]["events"] == one["events"] > 0
    table = pd.read_csv(tmp_path / "all.csv")
    assert table["model"].tolist() == [r["model"] for r in done["rows"]]
    assert all(Path(r["report"]).stat().st_size > 5000 for r in done["rows"])


def test_a_member_or_file_that_cannot_be_judged_leaves_the_others(
    family: Trained, labelled: pd.DataFrame, tmp_path: Path
) -> None:
    kept = labelled[labelled["asset"] != "P-9"]
    unknown = kept["label"].where(kept["asset"] == "P-1").astype("Int8")
    log = write_log(kept.assign(label=unknown), tmp_path / "log.parquet")
    (tmp_path / "bad.csv").write_text("time,asset\n")
    done = anomaly("evaluate", "plant", log, tmp_path / "bad.csv", "--report", tmp_path / "all.csv")
    assert done.status == 6, done.err
    assert "plant--P-1" in done.out and "E3105" in done.out and "bad.csv is set aside" in done.out
    nothing = write_log(kept.drop(columns="label"), tmp_path / "none.parquet")
    refused = anomaly("evaluate", "plant", nothing, "--report", tmp_path / "x.csv")
    assert (refused.status, "E3105" in refused.err, (tmp_path / "x.csv").exists()) == (3, True, False)


def test_the_state_of_a_family_is_one_file(family: Trained, models: WatchModels, tmp_path: Path) -> None:
    place = FamilyPlace(tmp_path, models)
    place.options = WatchOptions(0, settle_s=0.0)
    place.land(both(family, slice(0, 100)), "a.csv")
    once(place.watch())
    assert sorted(p.name for p in place.state.iterdir()) == ["heartbeat.json", STATE]
    again = place.watch()
    assert set(again.state.members) == set(models.loaded) and again.state.rows == 100


def test_a_challenger_beside_a_family_is_refused(family: Trained, tmp_path: Path) -> None:
    done = anomaly("watch", tmp_path, "--model", "plant", "--shadow", "plant--P-1", "--once", "--out", tmp_path / "o")
    assert (done.status, "FAMILY--ASSET" in done.err) == (2, True)

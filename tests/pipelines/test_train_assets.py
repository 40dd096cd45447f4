"""``anomaly train --per …`` and ``anomaly score`` by the models of a family: one run, one table, one score file."""

from __future__ import annotations

import csv
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import SHORT, anomaly, write_log
from family import FAMILY_FLAGS as FLAGS
from family import Trained
from processes import run_apart
from small_plant import chunk_of, contract_of, small_frame

from alerts.store import AlertStore
from anomaly.config import AssetSettings, LogSettings, Settings
from anomaly.encoders.memory import release_memory
from anomaly.errors import Fault, ModelRefused, Unavailable, UsageError
from pipelines import asset_groups, score_family, train_assets
from pipelines.asset_groups import Grouping, Spool, from_table, reading, to_table, without_class
from registry import families
from registry.bundle import load_bundle
from registry.catalogue import resolve
from registry.families import find_family, member_name

#: Dear fixtures are made once, on one worker.
pytestmark = pytest.mark.xdist_group("family")


def rows_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {r["group"]: r for r in result["rows"]}


# Train --------------------------------------------------------------------------------------------------------------


def test_every_asset_gets_a_model_or_a_reason_and_the_status_says_so(trained: Trained) -> None:
    assert trained.done.status == 6, trained.done.err
    rows = rows_of(trained.result)
    assert {name: (r["outcome"], r["code"]) for name, r in rows.items() if r["code"]} == {
        "short": ("failed", "E3301"),
        "tagged": ("failed", "E3302"),
    }
    usual = rows["P-1"]
    assert usual["model"] == "plant--P-1" and usual["version"] == 1
    assert (usual["rows"], usual["events"]) == (900, 6)
    assert usual["low"] is None or usual["low"] <= usual["average_precision"] <= usual["high"]
    assert usual["false_episodes_per_day"] is not None and Path(usual["report"]).is_file()


def test_a_killed_run_goes_on_with_what_is_not_registered(trained: Trained) -> None:
    assert trained.killed == -9
    rows = rows_of(trained.result)
    outcomes = sorted(r["outcome"] for r in rows.values() if not r["code"])
    assert outcomes == ["registered before", "trained"]
    assert {r["version"] for r in rows.values() if not r["code"]} == {1}, "no model was made twice"
    assert not [p for p in (trained.home / "work").iterdir() if not p.name.startswith("watch-")]


def test_the_same_command_again_trains_nothing(family: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a registered model was trained again")

    monkeypatch.setattr(train_assets, "train_prepared", never)
    again = anomaly("train", family.log, *FLAGS, "--per", "asset", "--json")
    rows = rows_of(json.loads(again.out))
    assert again.status == 6
    assert {r["outcome"] for r in rows.values() if not r["code"]} == {"registered before"}
    first = rows_of(family.result)["P-1"]
    assert {k: v for k, v in rows["P-1"].items() if k not in ("outcome", "seconds")} == {
        k: v for k, v in first.items() if k not in ("outcome", "seconds")
    }


def test_other_settings_or_other_rows_are_another_training(family: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def count(_: Any, settings: Settings, *__: Any) -> None:
        asked.append(settings.name)
        raise ModelRefused("counted")

    monkeypatch.setattr(train_assets, "train_prepared", count)
    anomaly("train", family.log, *FLAGS, "--per", "asset", "--seed", 8)
    assert len(asked) == 2
    later = write_log(family.frame.iloc[:-1], family.log.with_name("other.parquet"))
    anomaly("train", later, *FLAGS, "--per", "asset")
    assert len(asked) == 4


def test_a_fault_of_ours_with_one_asset_does_not_stop_the_others(
    family: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(train_assets, "train_prepared", broken)
    done = anomaly("train", family.log, *FLAGS, "--per", "asset", "--seed", 9, "--json")
    rows = rows_of(json.loads(done.out))
    assert done.status == 6
    assert [r["code"] for r in rows.values()].count("E7000") == 2
    assert "by zero" in rows["P-1"]["reason"]


def test_a_registry_that_is_away_stops_the_run(family: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise Unavailable(Fault("E5003", "an answer", "none"))

    monkeypatch.setattr(train_assets, "train_prepared", away)
    done = anomaly("train", family.log, *FLAGS, "--per", "asset", "--seed", 10)
    assert done.status == 5 and "E5003" in done.err


def test_the_summary_is_a_table_a_csv_and_a_page(family: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = anomaly("train", family.log, *FLAGS, "--per", "asset")  # everything is registered: nothing is trained
    assert "plant--P-1/1" in shown.out and "E3301" in shown.out and "2 failed" in shown.out
    result = family.result
    with Path(result["table"]).open(newline="") as stream:
        table = {r["group"]: r for r in csv.DictReader(stream)}
    assert table.keys() == rows_of(result).keys()
    assert float(table["P-1"]["threshold"]) == pytest.approx(rows_of(result)["P-1"]["threshold"])
    page = Path(result["page"]).read_text(encoding="utf-8")
    assert "<script" not in page and "line 2/P:2" in page and "plant--P-1/1" in page
    assert page.index("E3301") < page.index("plant--P-1/1"), "what failed comes first"


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--per", "asset"), "E2001", "--asset"),
        (("--asset", "asset", "--per", "class"), "E2002", "--class-column"),
        (("--asset", "asset", "--per", "plant"), "E2002", "assets.models"),
        (("--asset", "asset", "--per", "asset", "--name", "n" * 70), "E2002", "at most 66 letters"),
    ],
)
def test_what_makes_no_family_is_refused(
    registry_home: Path, tmp_path: Path, flags: tuple[str, ...], code: str, words: str
) -> None:
    frame = small_frame(200)
    log = write_log(frame.assign(asset="a") if "--asset" in flags else frame, tmp_path / "log.parquet")
    done = anomaly("train", log, *SHORT, *flags)
    assert done.status == 2 and code in done.err and words in done.err


def test_a_name_is_one_model_or_a_family(press_registry: Any) -> None:
    done = anomaly("train", press_registry.log, *SHORT, "--asset", "tag0", "--per", "asset", "--name", "press")
    assert done.status == 2 and "E2002" in done.err and "--name" in done.err


@pytest.mark.slow
def test_a_process_that_dies_costs_its_asset_only(family: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_assets, "PER_PROCESS", 2)
    monkeypatch.setenv("ANOMALY_KILLPOINT", "train.after_fit")
    done = anomaly("train", family.log, *FLAGS, "--per", "asset", "--seed", 11, "--json")
    rows = rows_of(json.loads(done.out))
    assert done.status == 6 and len(rows) == 4
    assert "signal SIGKILL" in rows["P-1"]["reason"] and "signal SIGKILL" in rows["line 2/P:2"]["reason"]
    assert (rows["short"]["code"], rows["tagged"]["code"]) == ("E3301", "E3302")


# Score --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def later(family: Trained, tmp_path: Path) -> Path:
    """The log again, with an asset that nobody trained for."""
    stranger = family.frame[family.frame["asset"] == "P-1"].head(50).assign(asset="P-9")
    whole = pd.concat([family.frame, stranger]).sort_values("time", kind="stable", ignore_index=True)
    return write_log(whole.drop(columns="label"), tmp_path / "later.parquet")


def scores(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)


def test_one_score_file_in_input_order_each_asset_by_its_own_model(
    family: Trained, later: Path, tmp_path: Path
) -> None:
    done = anomaly("score", later, "--model", "plant", "--out", tmp_path / "s.parquet", "--json").json
    log, found = pd.read_parquet(later), scores(tmp_path / "s.parquet")
    assert (done["rows"], done["models"]) == (len(log), 2)
    assert found["asset"].tolist() == log["asset"].tolist()
    assert (found["time"] == log["time"]).all()
    for asset, model in (("P-1", "plant--P-1"), ("line 2/P:2", member_name("plant", "line 2/P:2"))):
        alone = write_log(log[log["asset"] == asset], tmp_path / "alone.parquet")
        anomaly("score", alone, "--model", model, "--out", tmp_path / "one.parquet", "--no-alerts")
        one, own = scores(tmp_path / "one.parquet"), found[found["asset"] == asset].reset_index(drop=True)
        np.testing.assert_allclose(own["anomaly_score"], one["anomaly_score"], rtol=1e-6)
        assert own["outcome"].tolist() == one["outcome"].tolist()
        assert own["threshold"].nunique() == 1 and own["threshold"][0] == one["threshold"][0]


def test_assets_without_a_model_are_unscorable_and_told(family: Trained, later: Path, tmp_path: Path) -> None:
    done = anomaly("score", later, "--model", "plant", "--out", tmp_path / "s.parquet", "--no-alerts", "--json").json
    found = scores(tmp_path / "s.parquet")
    stranger = found[found["asset"] == "P-9"]
    assert set(stranger["outcome"]) == {"unscorable"} and set(stranger["reason"]) == {"no_model"}
    assert stranger["anomaly_score"].isna().all()
    assert sorted(done["without_model"]) == ["P-9", "short", "tagged"]
    assert any("no model for" in n for n in done["notices"])
    assert done["outcomes"]["unscorable"] >= 50


def test_alerts_name_the_model_and_come_once(family: Trained, tmp_path: Path) -> None:
    args = ("score", family.log, "--model", "plant", "--out", tmp_path / "s.parquet", "--json")
    first = anomaly(*args).json
    with sqlite3.connect(tmp_path / "alerts.db") as database:
        before = database.execute("SELECT COUNT(*) FROM alerts").fetchone()[0]
        models = {row[0] for row in database.execute("SELECT DISTINCT model_name FROM batches")}
    assert first["recorded"] and before >= first["episodes"] > 0
    assert models == {"plant--P-1", member_name("plant", "line 2/P:2")}
    again = anomaly(*args).json
    with sqlite3.connect(tmp_path / "alerts.db") as database:
        after = database.execute("SELECT COUNT(*) FROM alerts").fetchone()[0]
    assert not again["recorded"] and after == before


def test_a_model_that_is_refused_leaves_the_others_to_score(
    family: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_bundle

    def picky(folder: Path, **how: Any) -> Any:
        if folder == resolve("plant--P-1"):
            raise ModelRefused(Fault("E4004", "its recorded scores", "others"))
        return whole(folder, **how)

    monkeypatch.setattr(score_family, "load_bundle", picky)
    done = anomaly("score", family.log, "--model", "plant", "--out", tmp_path / "s.parquet", "--json")
    found = scores(tmp_path / "s.parquet")
    assert done.status == 6 and "plant--P-1" in json.loads(done.out)["refused"]
    assert set(found.loc[found["asset"] == "P-1", "reason"]) == {"model_refused: E4004"}
    assert (found.loc[found["asset"] == "line 2/P:2", "outcome"] != "unscorable").mean() > 0.9


def test_without_mlflow_the_family_is_what_it_was(
    family: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = find_family("plant", family.home)
    assert known is not None and [m.group for m in known.members] == ["P-1", "line 2/P:2"]

    def away(*_: Any) -> None:
        raise Unavailable(Fault("E5003", "an answer", "none"))

    monkeypatch.setattr(families, "connection", away)
    assert find_family("plant", family.home) == known
    assert find_family("other", family.home) is None


def test_one_model_and_a_folder_are_no_family(press_registry: Any) -> None:
    assert find_family("press", press_registry.home) is None
    assert find_family(str(press_registry.bundle), press_registry.home) is None


# Classes ------------------------------------------------------------------------------------------------------------


def test_a_class_is_one_model_and_scores_assets_it_never_saw(registry_home: Path, tmp_path: Path) -> None:
    frame = pd.concat([small_frame(500, seed=k).assign(asset=f"P-{k}") for k in (1, 2)], ignore_index=True)
    stray = small_frame(100).assign(asset="fan")
    log = write_log(pd.concat([frame, stray], ignore_index=True), tmp_path / "log.parquet")
    config = tmp_path / "plant.toml"
    config.write_text(
        'name = "plant"\n[assets]\nmodels = "class"\n[assets.classes]\npump = ["P-*"]\n[log]\nasset = "asset"\nlabel = "label"\n'
        '[window]\nlookback = 6\nlead = "4min"\n[encoder]\nname = "features"\n'
    )
    done = anomaly("train", log, "--config", config, "--json")
    rows = rows_of(json.loads(done.out))
    assert done.status == 6, done.err
    assert rows["pump"]["model"] == "plant--pump" and (rows["pump"]["assets"], rows["pump"]["rows"]) == (2, 1000)
    assert rows["fan"]["outcome"] == "failed" and "[assets.classes]" in rows["fan"]["reason"]
    new = write_log(small_frame(200, seed=5).assign(asset="P-77").drop(columns="label"), tmp_path / "new.parquet")
    scored = anomaly("score", new, "--model", "plant", "--out", tmp_path / "s.parquet", "--no-alerts", "--json").json
    assert scored["without_model"] == [] and scored["outcomes"]["normal"] > 80


def test_the_class_column_sorts_assets_and_is_not_learned_from() -> None:
    contract = replace(contract_of(small_frame(200)), categories=("grade", "kind"))
    settings = AssetSettings("class", "kind", {"other": ["x*"]})
    chunk = chunk_of(small_frame(200)).take(slice(0, 6))
    assets = np.array(["a", "a", "b", "b", "x1", "y"], dtype=object)
    words = np.array([["A", w] for w in ("pump", "", "fan", "fan", "", "")], dtype=object)
    chunk = replace(chunk, asset=assets, categories=words)
    grouping = Grouping(settings, contract)
    assert grouping.groups(chunk) == {"a": "pump", "b": "fan", "x1": "other", "y": None}
    assert without_class(contract, settings).categories == ("grade",)
    assert reading(LogSettings(), settings).categories == ("kind",)
    words[1, 1] = "fan"
    with pytest.raises(UsageError, match=r"E2001.*a: fan, pump"):
        grouping.groups(chunk)


# Parts --------------------------------------------------------------------------------------------------------------


def test_rows_come_back_from_the_spool_as_they_went_in(tmp_path: Path) -> None:
    contract = replace(contract_of(small_frame(200)), categories=("grade",))
    chunk = chunk_of(small_frame(200))
    values = chunk.values.copy()
    values[3, 2] = np.nan
    words = np.array([["A"], ["é"]] * 100, dtype=object)
    chunk = replace(chunk, values=values, categories=words)
    with Spool(tmp_path / "rows") as spool:
        spool.add(0, "a", to_table(chunk.take(slice(0, 50))))
        spool.add(1, "b", to_table(chunk.take(slice(50, 60))))
        spool.add(1, "a", to_table(chunk.take(slice(60, 200))))
        (zero, first), (one, second) = spool.pieces("a")
        back = from_table(first, contract, contract)
        fewer = from_table(second, contract, contract.without({"tag1"}, "dead"))
        assert (zero, one, len(spool.across(1)), spool.numbers) == (0, 1, 2, 2)
    for name in ("row", "time", "asset", "values", "categories", "label", "bad"):
        np.testing.assert_array_equal(getattr(back, name), getattr(chunk, name)[:50])
    np.testing.assert_array_equal(fewer.values, np.delete(values, 1, axis=1)[60:])
    assert not (tmp_path / "rows").exists()


def test_a_member_has_a_name_that_mlflow_takes_and_no_other_has() -> None:
    groups = ["P-1", "p/1", "p:1", "p 1", "p_1", "ü", "x" * 200, "x" * 201, "a.b", "P'1"]
    names = [member_name("plant", g) for g in groups]
    assert len(set(names)) == len(groups)
    for name in names:
        assert Settings().named(name).name == name and len(name) <= 80
        assert not set(name) & set("/:.'\"%")


def test_a_tag_that_is_dead_on_one_asset_is_left_out_there_only(tmp_path: Path) -> None:
    frame = small_frame(200)
    chunk = chunk_of(frame)
    values = chunk.values.copy()
    values[:, 1] = np.nan
    group = asset_groups.Group("a")
    group.add(replace(chunk, values=values))
    contract = contract_of(frame)
    with Spool(tmp_path / "rows") as spool:
        spool.add(0, "a", to_table(replace(chunk, values=values)))
        job = train_assets.Job((), Settings(), None, contract, spool.path, spool.places, "f")
        made = train_assets._ingested(job, group, tmp_path / "a.h5", "key")
    assert "tag1" not in made.contract.tags and len(made.contract.tags) == 5
    assert "tag1" in made.notices[0]
    shared = score_family.shared_contract([made.contract, contract])
    assert set(shared.tags) == set(contract.tags) and not dict(shared.left_out)


def test_models_of_two_periods_are_no_family() -> None:
    contract = contract_of(small_frame(200))
    with pytest.raises(ModelRefused, match="E4003"):
        score_family.shared_contract([contract, replace(contract, period_us=1)])


def test_memory_is_given_back_between_models() -> None:
    import keras

    first = keras.layers.Dense(1).name
    release_memory()
    assert keras.layers.Dense(1).name == "dense" != keras.layers.Dense(1).name
    assert first.startswith("dense")


def test_a_killed_scoring_of_a_family_is_finished_by_the_same_command(family: Trained, tmp_path: Path) -> None:
    log = write_log(family.frame.drop(columns="label"), tmp_path / "log.csv")
    args = ("score", log, "--model", "plant", "--out", tmp_path / "scores.parquet")
    whole = tmp_path / "whole.db"
    killed, _ = run_apart(tmp_path, *args, killpoint="score_family.after_record")
    assert killed == -9
    for database in (tmp_path / "alerts.db", whole):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ANOMALY_DB_URL", str(database))
            assert anomaly(*args).status in (0, 6)
    found = [[(a.asset, a.start_us, a.peak_score) for a in AlertStore(d).alerts(limit=None)]
             for d in (tmp_path / "alerts.db", whole)]  # fmt: skip
    assert sorted(found[0]) == sorted(found[1])
    assert found[0]

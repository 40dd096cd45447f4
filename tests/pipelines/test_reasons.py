"""From flags to reasons: detectors and fusion by name, and an alert that says who, how much and what it looks like."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import FLAGS, SHORT, Press, anomaly, write_log
from small_plant import small_frame

from alerts.store import AlertStore
from registry.bundle import load_bundle


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("several")
    log = write_log(small_frame(), folder / "log.parquet")
    flags = ("--detectors", "knn, reconstruction", "--fusion", "max", "--name", "several", "--json")
    trained = anomaly("train", log, *FLAGS, "--epochs", "3", *flags, "--out", folder / "model").json
    return folder, trained


def test_detectors_and_fusion_by_flags_are_those_of_the_bundle_and_each_stands_in_the_report(several):
    folder, trained = several
    model = load_bundle(folder / "model")
    assert model.ensemble.names == ("knn", "reconstruction")
    assert model.ensemble.rule == "max"
    assert set(trained["evaluation"]["detectors"]) == {"knn", "reconstruction"}
    for own in trained["evaluation"]["detectors"].values():
        assert own["average_precision"]["low"] <= own["average_precision"]["value"] <= own["average_precision"]["high"]
    assert "Each detector by itself" in Path(trained["report"]).read_text(encoding="utf-8")


def test_toml_says_the_same_as_the_flags(several, tmp_path):
    folder, trained = several
    text = f"""
        name = "several"
        [log]
        paths = ["{folder / "log.parquet"}"]
        label = "label"
        [window]
        lookback = 6
        lead = "4min"
        [training]
        epochs = 3
        [detection]
        detectors = ["knn", "reconstruction"]
        fusion = "max"
    """
    (tmp_path / "plant.toml").write_text(text, encoding="utf-8")
    again = anomaly("train", tmp_path / "plant.toml", "--json").json
    assert again["threshold"]["value"] == trained["threshold"]["value"]
    assert again["evaluation"]["figures"] == trained["evaluation"]["figures"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--detectors", "knm"), "did you mean knn"),
        (("--detectors", "knn,knn"), "detection.detectors"),
        (("--detectors", ""), "detection.detectors"),
        (("--fusion", "median"), "detection.fusion"),
        (("--fusion", "weighted"), "detection.weights"),
        (("--detectors", "reconstruction", "--encoder", "features"), "a detector that scores embeddings"),
    ],
)
def test_flags_that_cannot_work_are_refused_by_name(several, flags, said):
    done = anomaly("train", several[0] / "log.parquet", *SHORT, *flags)
    assert done.status == 2
    assert "E2002" in done.err
    assert said in done.err


def test_an_alert_names_share_direction_range_value_and_past_events(press: Press, tmp_path):
    database = tmp_path / "alerts.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALY_DB_URL", f"sqlite:///{database}")
        anomaly("score", press.log, "--model", press.bundle, "--out", tmp_path / "s.parquet", "--json").json  # noqa: B018
        shown = anomaly("alerts", "show", "1")
        told = anomaly("alerts", "show", "1", "--json").json["reasons"]
    assert shown.status == 0
    for words in ("share", "value at the peak", "normal range", "looks like", "past event"):
        assert words in shown.out
    model, (alert,) = load_bundle(press.bundle), [a for a in AlertStore(database).alerts() if a.id == 1]
    low, high = model.normal_ranges()
    row = press.frame[press.frame["time"].astype("int64") // 10**3 == alert.peak_us]
    assert len(row) <= 1
    assert [t["tag"] for t in told["tags"]][: len(alert.top_tags)] == [tag for tag, _ in alert.top_tags]
    for own in told["tags"]:
        at = model.contract.tags.index(own["tag"])
        assert own["low"] == pytest.approx(low[at], rel=1e-5)
        assert own["high"] == pytest.approx(high[at], rel=1e-5)
        wanted = "high" if own["value"] > high[at] else "low" if own["value"] < low[at] else "pattern"
        assert own["direction"] == wanted
        if len(row) == 1 and np.isfinite(row[own["tag"]].iloc[0]):
            assert own["value"] == pytest.approx(float(row[own["tag"]].iloc[0]), rel=1e-5)
    assert [a["event"] for a in told["alike"]] == sorted((a["event"] for a in told["alike"]), reverse=True)
    assert all(a["distance"] >= 0 and a["time"].endswith("Z") for a in told["alike"])


def test_reasons_do_not_depend_on_how_the_log_is_cut(press: Press):
    """The stream in one piece and in many gives the same evidence at the highest row of each run."""
    from anomaly.model import chunk_from_frame

    model = load_bundle(press.bundle)
    chunk = chunk_from_frame(press.frame, model.contract)
    whole = model.stream().score(chunk)
    stream, found = model.stream(), []
    for low in range(0, len(chunk), 700):
        found.append(stream.score(chunk.take(slice(low, low + 700))))
    evidence = np.concatenate([rows.evidence for rows in found])
    score = np.concatenate([rows.score for rows in found])
    at = [i for i, e in enumerate(whole.evidence) if e is not None]
    assert len(at) > 5
    same = [i for i in at if evidence[i] is not None]
    assert len(same) >= len(at) - 1, "a run that is cut may show one more row, never another"
    for i in same:
        np.testing.assert_array_equal(whole.evidence[i].values, evidence[i].values)
        assert json.dumps([a.to_dict() for a in whole.evidence[i].alike]) == json.dumps(
            [a.to_dict() for a in evidence[i].alike]
        )
    np.testing.assert_allclose(score, whole.score, rtol=1e-4, equal_nan=True)

"""Shadow scoring: the challenger's scores are kept beside, no alert comes of them, and nothing harms the champion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from command_line import Press, anomaly, files_under, write_log

from alerts.store import AlertStore
from pipelines.shadow import Shadowed, shadow, shadow_path
from registry.bundle import load_bundle, save_bundle


@pytest.fixture(scope="module")
def lower(press: Press, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a threshold of half: it is anomalous wherever the champion is, and more often."""
    model = load_bundle(press.bundle)
    model.threshold = replace(model.threshold, value=model.threshold.value / 2)
    folder = tmp_path_factory.mktemp("lower") / "m"
    save_bundle(model, folder)
    return folder


def scores(path: Path) -> pd.DataFrame:
    return pq.read_table(path, page_checksum_verification=True).to_pandas()


def test_the_challenger_scores_beside_and_raises_no_alert(
    press: Press, lower: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.parquet"
    done = anomaly("score", press.log, "--model", press.bundle, "--shadow", lower, "--out", out, "--json").json
    alone, with_shadow = tmp_path / "alone.db", home / "alerts.db"
    monkeypatch.setenv("ANOMALY_DB_URL", str(alone))
    plain = anomaly("score", press.log, "--model", press.bundle, "--out", tmp_path / "t.parquet", "--json").json
    assert (tmp_path / "t.parquet").read_bytes() == out.read_bytes(), "the champion's scores know nothing of it"
    count = [len(AlertStore(db).alerts(limit=None)) for db in (with_shadow, alone)]
    assert count[0] == count[1] == plain["episodes"] > 5
    assert len(AlertStore(with_shadow).dump()["batches"]) == 1

    told = done["shadow"]
    champion, challenger = scores(out), scores(shadow_path(out))
    assert told["out"] == str(tmp_path / "s.shadow.parquet")
    assert (champion["time"] == challenger["time"]).all() and len(challenger) == told["rows"] == len(press.frame)
    np.testing.assert_allclose(champion["anomaly_score"], challenger["anomaly_score"])
    flagged = [f["outcome"] == "anomalous" for f in (champion, challenger)]
    assert told["both"] == int((flagged[0] & flagged[1]).sum()) > 0
    assert told["challenger_only"] == int((flagged[1] & ~flagged[0]).sum()) > 0
    assert (told["champion_only"], told["one_unscorable"], told["aligned"], told["refused"]) == (0, 0, True, "")
    assert told["champion_episodes"] == plain["episodes"] and told["challenger_episodes"] >= 1


def test_the_challengers_scores_are_those_it_gives_by_itself(
    press: Press, lower: Path, home: Path, tmp_path: Path
) -> None:
    out, alone = tmp_path / "s.parquet", tmp_path / "alone.parquet"
    done = anomaly(
        "score", press.log, "--model", press.bundle, "--shadow", lower, "--out", out, "--no-alerts", "--json"
    )
    by_itself = anomaly("score", press.log, "--model", lower, "--out", alone, "--no-alerts", "--json").json
    assert shadow_path(out).read_bytes() == alone.read_bytes()
    assert done.json["shadow"]["challenger_episodes"] == by_itself["episodes"]
    assert not list(tmp_path.rglob("*.db*")) and not shadow_path(out).with_suffix(".drift.json").exists()


def test_one_line_says_where_they_disagree(press: Press, lower: Path, home: Path, tmp_path: Path) -> None:
    log = write_log(press.frame[:900], tmp_path / "a.csv")
    out = tmp_path / "s.parquet"
    done = anomaly("score", log, "--model", press.bundle, "--shadow", lower, "--out", out, "--no-alerts")
    assert done.status == 0, done.err
    (line,) = [text for text in done.out.splitlines() if text.startswith("shadow ")]
    assert "anomalous in both, 0 in the champion only, " in line and str(shadow_path(out)) in line


def test_a_model_in_its_own_shadow_agrees(press: Press, tmp_path: Path) -> None:
    log = write_log(press.frame[:900], tmp_path / "a.csv")
    out = tmp_path / "s.parquet"
    assert anomaly("score", log, "--model", press.bundle, "--out", out, "--no-alerts").status == 0
    told = shadow([log], load_bundle(press.bundle), "itself", out, 6)
    assert (told.champion_only, told.challenger_only, told.aligned, told.rows) == (0, 0, True, 900)


def test_a_log_that_does_not_fit_the_challenger_leaves_the_champions_scoring(
    press: Press, lower: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.parquet"
    shadow_path(out).write_bytes(b"of an earlier run")
    real = load_bundle(lower)
    other = replace(real, contract=replace(real.contract, tags=(*real.contract.tags[:-1], "another")))
    monkeypatch.setattr("registry.bundle.load_bundle", lambda path: other if path == lower else load_bundle(path))
    done = anomaly("score", press.log, "--model", press.bundle, "--shadow", lower, "--out", out, "--json").json
    assert "E3101" in done["shadow"]["refused"]
    assert "did not score" in Shadowed("x", out, refused=done["shadow"]["refused"]).line()
    assert done["recorded"] and done["rows"] == len(press.frame) == len(scores(out))
    assert not shadow_path(out).exists(), "no scores of an earlier run beside those of this one"


def test_scores_of_other_rows_are_not_compared_row_by_row(press: Press, lower: Path, tmp_path: Path) -> None:
    log = write_log(press.frame[:900], tmp_path / "a.csv")
    out = tmp_path / "s.parquet"
    for rows in (slice(0, 890), slice(5, 900), slice(0, 1000)):
        part = write_log(press.frame[rows], tmp_path / "part.csv")
        assert anomaly("score", part, "--model", press.bundle, "--out", out, "--no-alerts").status == 0
        told = shadow([log], load_bundle(lower), "x", out, 1)
        assert not told.aligned and told.rows == 900
        assert "not those of the champion" in told.line()


@pytest.mark.parametrize(
    ("flags", "status", "code"),
    [
        (["--shadow", "no/such/model"], 4, "E4001"),
        (["--engine", "spark"], 2, "E2001"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    press: Press, lower: Path, home: Path, tmp_path: Path, flags: list[Any], status: int, code: str
) -> None:
    flags = flags if "--shadow" in flags else [*flags, "--shadow", lower]
    done = anomaly("score", press.log, "--model", press.bundle, "--out", tmp_path / "s.parquet", *flags)
    assert (done.status, code in done.err) == (status, True)
    assert files_under(tmp_path) == {}


def test_a_log_named_as_the_shadows_scores_is_left_alone(press: Press, lower: Path, home: Path, tmp_path: Path) -> None:
    log = write_log(press.frame[:100], tmp_path / "s.shadow.parquet")
    before = files_under(tmp_path)
    done = anomaly("score", log, "--model", press.bundle, "--shadow", lower, "--out", tmp_path / "s.parquet")
    assert (done.status, "E2003" in done.err) == (2, True)
    assert files_under(tmp_path) == before

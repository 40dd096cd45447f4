"""``anomaly score``: one row per log row, three outcomes, alerts that do not depend on how often or in what pieces."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Press, anomaly, files_under, write_log

from alerts.store import AlertStore
from registry.bundle import load_bundle

#: DESIGN §6, word for word.
SCHEMA = pa.schema(
    {
        "time": pa.timestamp("us", tz="UTC"),
        "asset": pa.string(),
        "anomaly_score": pa.float32(),
        "threshold": pa.float32(),
        "outcome": pa.string(),
        "reason": pa.string(),
        "top_tags": pa.list_(pa.struct({"tag": pa.string(), "share": pa.float32()})),
    }
)


def scores(path: Path) -> pd.DataFrame:
    return pq.read_table(path, page_checksum_verification=True).to_pandas()


def stored(database: Path) -> list[tuple[Any, ...]]:
    """The alerts as a person tells them apart; the number and the time of recording are not part of that."""
    rows = AlertStore(database).alerts(limit=None)
    return sorted(
        (a.asset, a.start_us, a.peak_us, a.end_us, round(a.peak_score, 4), [(t, round(s, 4)) for t, s in a.top_tags])
        for a in rows
    )


def test_one_row_per_log_row_in_input_order_with_the_design_schema(press: Press, home: Path, tmp_path: Path) -> None:
    done = anomaly("score", press.log, "--model", press.bundle, "--out", tmp_path / "s.parquet", "--json").json
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.schema.equals(SCHEMA)
    found = table.to_pandas()
    assert done["rows"] == len(found) == len(press.frame)
    assert (found["time"].to_numpy() == press.frame["time"].to_numpy()).all()
    assert set(found["outcome"]) == {"normal", "anomalous", "unscorable"}
    unscorable = found["outcome"] == "unscorable"
    assert (found["anomaly_score"].isna() == unscorable).all()
    assert (found.loc[unscorable, "reason"] != "").all()
    assert (found.loc[unscorable, "top_tags"].map(len) == 0).all()
    assert table["anomaly_score"].null_count == unscorable.sum(), "null in the file, not NaN"
    scored = found[~unscorable]
    assert ((scored["anomaly_score"] >= scored["threshold"]) == (scored["outcome"] == "anomalous")).all()
    told = scored["top_tags"].map(lambda tags: 0 < sum(t["share"] for t in tags) <= 1 + 1e-6)
    assert told[scored["anomaly_score"] > 0].all(), "a score of 0, as normal as can be, has nothing to share out"


def test_two_files_score_like_the_one_they_were_cut_from(press: Press, home: Path, tmp_path: Path) -> None:
    first = write_log(press.frame[:400], tmp_path / "1.csv")
    second = write_log(press.frame[400:700], tmp_path / "2.parquet")
    out = tmp_path / "s.parquet"
    assert anomaly("score", first, second, "--model", press.bundle, "--out", out, "--no-alerts").status == 0
    whole = tmp_path / "whole.parquet"
    log = write_log(press.frame[:700], tmp_path / "w.csv")
    assert anomaly("score", log, "--model", press.bundle, "--out", whole, "--no-alerts").status == 0
    one, two = scores(out), scores(whole)
    assert (one["time"] == two["time"]).all()
    assert np.allclose(one["anomaly_score"], two["anomaly_score"], rtol=1e-4, atol=1e-4, equal_nan=True)


def test_a_flipped_byte_in_the_score_file_is_noticed(press: Press, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    assert anomaly("score", press.log, "--model", press.bundle, "--out", out, "--no-alerts").status == 0
    assert len(scores(out)) == len(press.frame)
    group = pq.ParquetFile(out).metadata.row_group(0)
    data, column = bytearray(out.read_bytes()), group.column(2)
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF
    out.write_bytes(data)
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        scores(out)


def test_scoring_twice_leaves_the_database_equal(press: Press, home: Path, tmp_path: Path) -> None:
    first = anomaly("score", press.log, "--model", press.bundle, "--out", tmp_path / "s.parquet", "--json").json
    before, written = AlertStore(home / "alerts.db").dump(), (tmp_path / "s.parquet").read_bytes()
    second = anomaly("score", press.log, "--model", press.bundle, "--out", tmp_path / "s.parquet", "--json").json
    assert before["alerts"], "the log has events, so there is something to record twice"
    assert AlertStore(home / "alerts.db").dump() == before
    assert (tmp_path / "s.parquet").read_bytes() == written
    assert (first["recorded"], second["recorded"]) == (True, False)


@pytest.mark.parametrize(
    ("start", "stop"),
    [(1600, 1900), (100, 2995), (1130, 1272), (1250, 1400), (1264, 1400), (1268, 1402), (1269, 1403), (1271, 1405)],
)
def test_overlapping_files_leave_the_alerts_of_the_whole(
    press: Press, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, stop: int
) -> None:
    """Rows ``start`` to ``stop`` are in both files, as many as a score depends on; an event is at row 1270.

    A log that begins inside an episode scores its first rows on what little came before them. In time order the earlier
    log has answered those; the other way round they may flag other rows, but no alert is lost and none is there twice.
    """
    assert stop - start >= load_bundle(press.bundle).history
    pieces = {
        "whole": write_log(press.frame, tmp_path / "whole.csv"),
        "early": write_log(press.frame[:stop], tmp_path / "early.csv"),
        "late": write_log(press.frame[start:], tmp_path / "late.csv"),
    }
    orders = {"whole": ["whole"], "forwards": ["early", "late"], "all": ["whole", "late", "early"]}
    found = {}
    for name, order in (orders | {"backwards": ["late", "early"]}).items():
        monkeypatch.setenv("ANOMALY_DB_URL", str(tmp_path / f"{name}.db"))
        for piece in order:
            done = anomaly("score", pieces[piece], "--model", press.bundle, "--out", tmp_path / "s.parquet")
            assert done.status == 0, done.err
        found[name] = stored(tmp_path / f"{name}.db")
    assert len(found["whole"]) > 5
    for name in orders:
        assert found[name] == found["whole"], name
    spans = {name: [(start_us, end_us) for _, start_us, _, end_us, *_ in alerts] for name, alerts in found.items()}
    for low, high in spans["whole"]:
        assert sum(first < high and low < last for first, last in spans["backwards"]) == 1, "one alert for each"


@pytest.mark.parametrize("reference", ["press", "models:/press@champion", "models:/press/1", "press@challenger"])
def test_the_model_may_be_named_in_the_registry(press_registry: Press, tmp_path: Path, reference: str) -> None:
    log = write_log(press_registry.frame[:300], tmp_path / "a.csv")
    named, folder = tmp_path / "named.parquet", tmp_path / "folder.parquet"
    assert anomaly("score", log, "--model", reference, "--out", named).status == 0
    assert anomaly("score", log, "--model", press_registry.bundle, "--out", folder, "--no-alerts").status == 0
    assert named.read_bytes() == folder.read_bytes()


def test_no_alerts_leaves_no_database(press: Press, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    done = anomaly("score", press.log, "--model", press.bundle, "--out", out, "--no-alerts", "--json").json
    assert out.exists()
    assert not done["recorded"]
    assert not list(tmp_path.rglob("*.db*"))


def test_nan_and_gaps_give_unscorable_rows_with_a_reason(press: Press, home: Path, tmp_path: Path) -> None:
    frame = press.frame.drop(columns="label")[:900].copy()
    frame.loc[300:304, "tag2"] = np.nan
    frame.loc[400, ["tag0", "tag5"]] = np.nan
    frame = frame.drop(index=range(600, 640))
    done = anomaly(
        "score",
        write_log(frame, tmp_path / "a.csv"),
        "--model",
        press.bundle,
        "--out",
        tmp_path / "s.parquet",
        "--json",
    ).json
    found = scores(tmp_path / "s.parquet").set_index(frame.index)
    assert found.loc[300:304, "outcome"].eq("unscorable").all()
    assert found.loc[300:304, "reason"].eq("missing: tag2").all()
    assert found.loc[400, "outcome"] == "unscorable"
    assert found.loc[400, "reason"] == "missing: tag0, tag5"
    assert (found.loc[640, "outcome"], found.loc[640, "reason"]) == ("unscorable", "gap")
    assert (found.loc[641:644, "reason"] == "warm_up").all()
    touched = frame.isna().any(axis=1)
    assert not (found.loc[touched, "outcome"] == "normal").any(), "a row with a missing value is never called normal"
    assert done["outcomes"]["unscorable"] == int((found["outcome"] == "unscorable").sum()) == 9
    assert done["reasons"] == {"warm_up": 5 + 4, "settling": 128, "gap": 1, "missing": 6 + 2}, (
        "two windows are mostly missing"
    )
    assert (found.loc[305:306, "reason"] == "missing: most of the window").all()


def test_a_log_with_labels_scores_like_the_log_without(press: Press, home: Path, tmp_path: Path) -> None:
    """A label that came with the log cannot change its scores."""
    frame, out = press.frame[:500], [tmp_path / "1.parquet", tmp_path / "2.parquet"]
    for one, target in zip((frame, frame.drop(columns="label")), out, strict=True):
        log = write_log(one, tmp_path / "a.csv")
        assert anomaly("score", log, "--model", press.bundle, "--out", target, "--no-alerts").status == 0
    assert out[0].read_bytes() == out[1].read_bytes()


def test_rows_before_a_change_keep_their_scores(press: Press, home: Path, tmp_path: Path) -> None:
    """A score for row t does not change when any row after t is altered."""
    changed = press.frame[:800].copy()
    changed.loc[500:, "tag0":"tag5"] += 5
    found = []
    for frame in (press.frame[:800], changed):
        log = write_log(frame, tmp_path / "a.csv")
        assert (
            anomaly("score", log, "--model", press.bundle, "--out", tmp_path / "s.parquet", "--no-alerts").status == 0
        )
        found.append(scores(tmp_path / "s.parquet")["anomaly_score"].to_numpy())
    assert np.allclose(found[0][:500], found[1][:500], rtol=1e-4, atol=1e-4, equal_nan=True)
    assert not np.allclose(found[0][500:], found[1][500:], rtol=1e-4, atol=1e-4, equal_nan=True)


def test_the_log_itself_is_no_place_for_the_scores(press: Press, home: Path, tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    shutil.copyfile(press.log, log)
    before = files_under(tmp_path)
    done = anomaly("score", log, "--model", press.bundle, "--out", tmp_path / "." / "a.csv")
    assert done.status == 2
    assert "E2003" in done.err
    assert files_under(tmp_path) == before


def test_an_asset_that_cannot_be_scored_is_one_alert_with_its_cause(press: Press, home: Path, tmp_path: Path) -> None:
    frame = press.frame[:500].copy()
    frame.loc[300:380, "tag2"] = np.nan
    log = write_log(frame, tmp_path / "a.csv")
    for _ in range(2):
        assert anomaly("score", log, "--model", press.bundle, "--out", tmp_path / "s.parquet").status == 0
    kinds = [
        (a.kind, a.top_tags[0][0] if a.top_tags else "") for a in AlertStore(home / "alerts.db").alerts(limit=None)
    ]
    assert [k for k in kinds if k[0] == "unscorable"] == [("unscorable", "tag2")], kinds

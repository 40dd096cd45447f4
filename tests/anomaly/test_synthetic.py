"""The synthetic plant: every trait it promises, measured on the log it gives."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anomaly.data.synthetic import (
    MODES,
    SyntheticLog,
    SyntheticPlant,
    autoregressive,
    generate,
    spaced,
    write_long_form,
    write_synthetic,
)
from anomaly.errors import UsageError

PLANT = SyntheticPlant()
SMALL = SyntheticPlant(rows=3000, seed=3)


@pytest.fixture(scope="module")
def log() -> SyntheticLog:
    return generate(PLANT)


def lines(table: pd.DataFrame) -> list[Any]:
    return list(table.itertuples())


def digest(log: SyntheticLog) -> str:
    return hashlib.sha256(log.frame.to_csv().encode()).hexdigest()


def test_equal_settings_give_an_equal_log_and_another_seed_another() -> None:
    assert digest(generate(SMALL)) == digest(generate(SMALL))
    assert digest(generate(SMALL)) != digest(generate(replace(SMALL, seed=4)))


def test_the_log_is_equal_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from anomaly.data.synthetic import *; "
        "write_synthetic(SyntheticPlant(rows=3000, seed=3), pathlib.Path(sys.argv[1]))"
    )
    root = Path(__file__).resolve().parents[2]
    path = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": os.pathsep.join(path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there.csv")], check=True, env=env)
    write_synthetic(SMALL, tmp_path / "here.csv")
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()


def test_shape_types_and_names(log: SyntheticLog) -> None:
    frame = log.frame
    assert len(frame) == 25_000 and len(log.tags) == 24 == len(set(log.tags))
    assert str(frame["time"].dt.tz) == "UTC" and frame["time"].is_monotonic_increasing and frame["time"].is_unique
    assert set(frame["grade"]) == {"A", "B"}
    assert all(frame[t].dtype == np.float64 for t in log.tags)


@pytest.mark.parametrize("seed", [1, 7, 20])
def test_events_are_single_rows_at_half_a_percent(seed: int) -> None:
    frame = generate(replace(PLANT, seed=seed)).frame
    label = frame["label"].to_numpy()
    assert 0.003 <= label.mean() <= 0.007
    assert not (label[1:] & label[:-1]).any()


def test_truth_agrees_with_the_labels(log: SyntheticLog) -> None:
    assert log.events["row"].tolist() == np.flatnonzero(log.frame["label"]).tolist()
    assert log.events["time"].tolist() == log.frame["time"][log.frame["label"] == 1].tolist()
    assert set(log.events["mode"]) == set(MODES)
    assert all(3 <= len(tags) <= 5 and set(tags) <= set(log.tags) for tags in log.events["tags"])


def test_downtime_of_30_to_120_minutes_follows_every_event_and_nothing_else(log: SyntheticLog) -> None:
    step = log.frame["time"].diff().dt.total_seconds().to_numpy() / 60
    after = log.events["row"].to_numpy() + 1
    assert ((step[after] - 2 >= 30) & (step[after] - 2 <= 122)).all()
    assert (np.delete(step, [0, *after]) == 2).all()
    assert ((step[after] / 2 - 1).astype(int) == log.events["downtime_rows"]).all()


def test_a_quarter_of_the_events_has_no_precursor(log: SyntheticLog) -> None:
    assert (~log.events["has_precursor"]).mean() == pytest.approx(0.25, abs=0.01)
    rows = log.events["precursor_rows"][log.events["has_precursor"]]
    assert rows.min() == 2 and rows.max() == 6


def standardised(log: SyntheticLog) -> pd.DataFrame:
    tags = log.frame[list(log.tags)]
    inner = tags.groupby(log.frame["grade"])
    return ((tags - inner.transform("mean")) / inner.transform("std")).abs()


def test_the_precursor_shows_in_the_involved_tags_only(log: SyntheticLog) -> None:
    z = standardised(log)
    seen, others, before = [], [], []
    for event in lines(log.events[log.events["has_precursor"]]):
        rows = slice(event.row - event.precursor_rows, event.row)
        seen.append(np.nanmean(z[list(event.tags)].iloc[rows]))
        others.append(np.nanmean(z.drop(columns=list(event.tags)).iloc[rows]))
        before.append(np.nanmean(z[list(event.tags)].iloc[event.row - 16 : event.row - 10]))
    assert np.mean(seen) > 2.5 * np.mean(others)
    assert np.mean(before) == pytest.approx(np.mean(others), abs=0.1)


def test_an_event_without_precursor_comes_unannounced(log: SyntheticLog) -> None:
    z = standardised(log)
    silent = log.events[~log.events["has_precursor"]]
    lead = [np.nanmean(z[list(e.tags)].iloc[e.row - 6 : e.row]) for e in lines(silent)]
    event = [np.nanmean(z[list(e.tags)].iloc[e.row]) for e in lines(silent)]
    assert np.mean(lead) < 1.0
    assert np.mean(event) > 3.0


def test_nothing_of_an_event_or_disturbance_shows_outside_its_own_rows(log: SyntheticLog) -> None:
    """No future leak: without strength the same plant differs on precursor, event and disturbance rows only."""
    calm = generate(replace(PLANT, strength=0.0))
    allowed = np.zeros((len(log.frame), len(log.tags)), dtype=bool)
    place = {t: i for i, t in enumerate(log.tags)}
    for e in lines(log.events):
        allowed[e.row - e.precursor_rows : e.row + 1, [place[t] for t in e.tags]] = True
    for d in lines(log.disturbances):
        allowed[d.row : d.row + d.rows, [place[t] for t in d.tags]] = True
    for f in lines(log.frozen):
        allowed[f.row : f.row + f.rows, place[f.tag]] = True
    ours, theirs = (g.frame[list(g.tags)].to_numpy() for g in (log, calm))
    differs = ~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))
    assert differs.sum() > 1000 and not (differs & ~allowed).any()


def test_disturbances_lie_away_from_events(log: SyntheticLog) -> None:
    assert len(log.disturbances) == round(0.2 * len(log.events))
    distance = np.abs(log.disturbances["row"].to_numpy()[:, None] - log.events["row"].to_numpy())
    assert distance.min() >= 20


def test_two_grades_have_their_own_set_points(log: SyntheticLog) -> None:
    tags = log.frame[list(log.tags)]
    means = tags.groupby(log.frame["grade"]).mean()
    moved = ((means.loc["A"] - means.loc["B"]) / tags.std()).abs()
    assert (moved > 0.5).sum() >= 6
    assert (log.frame["grade"] != log.frame["grade"].shift()).sum() > 10


def test_drifting_tags_drift(log: SyntheticLog) -> None:
    """The last fifth against the first, within grades, in spreads; the same plant without drift is the yardstick."""

    def moved(given: SyntheticLog) -> pd.Series:
        tags = given.frame[list(given.tags)]
        centred = tags - tags.groupby(given.frame["grade"]).transform("mean")
        fifth = len(tags) // 5
        return ((centred.tail(fifth).mean() - centred.head(fifth).mean()) / centred.std()).abs()

    assert len(log.drifting) == 8
    still = generate(replace(PLANT, drift=0.0))
    assert moved(log)[list(log.drifting)].mean() > 0.5 > 2 * moved(still)[list(log.drifting)].mean()


def test_tags_are_correlated_in_rows_and_in_time(log: SyntheticLog) -> None:
    tags = log.frame[log.frame["grade"] == "A"][list(log.tags)]
    assert (tags.corr().abs().to_numpy()[np.triu_indices(24, 1)] > 0.3).sum() > 20
    assert min(tags[t].autocorr() for t in log.tags) > 0.3


def test_a_daily_cycle_is_there(log: SyntheticLog) -> None:
    """Folding a temperature by the hour of day leaves a swing that a flow does not have."""

    def swing(tag: str) -> float:
        hour = log.frame["time"].dt.hour
        centred = log.frame[tag] - log.frame.groupby("grade")[tag].transform("mean")
        return float(np.ptp(centred.groupby(hour).mean()) / centred.std())

    assert swing("feed_temperature") > 0.6 > swing("steam_flow")


def test_frozen_sensors_repeat_one_value(log: SyntheticLog) -> None:
    assert len(log.frozen) == 6
    for f in lines(log.frozen):
        assert f.rows >= 60
        assert log.frame[f.tag].iloc[f.row : f.row + f.rows].dropna().nunique() == 1


def test_missing_values_scattered_and_in_bursts(log: SyntheticLog) -> None:
    absent = log.frame[list(log.tags)].isna()
    assert 0.002 < absent.to_numpy().mean() < 0.005
    assert log.missing == absent.sum().to_dict()
    in_a_row = absent.astype(int).rolling(5).sum().max()
    assert (in_a_row == 5).any()


@pytest.mark.parametrize("tags", [20, 30])
def test_other_numbers_of_tags(tags: int) -> None:
    log = generate(replace(SMALL, tags=tags))
    assert len(log.tags) == tags == len(set(log.tags))


@pytest.mark.parametrize("wrong", [{"tags": 19}, {"event_share": 0.2}, {"rows": 10}])
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}: expected"):
        SyntheticPlant(**wrong)  # type: ignore[arg-type]


def test_csv_and_parquet_hold_the_same_log(tmp_path: Path) -> None:
    log = write_synthetic(SMALL, tmp_path / "log.csv")
    write_synthetic(SMALL, tmp_path / "log.parquet")
    text = pd.read_csv(tmp_path / "log.csv", parse_dates=["time"])
    binary = pd.read_parquet(tmp_path / "log.parquet")
    for frame in (text, binary):
        assert (frame["time"].to_numpy() == log.frame["time"].to_numpy()).all()
        pd.testing.assert_frame_equal(frame[list(log.tags)], log.frame[list(log.tags)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv", "log.parquet"]


def test_another_suffix_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E2001"):
        write_synthetic(SMALL, tmp_path / "log.xlsx")
    assert not list(tmp_path.iterdir())


def test_long_form_has_a_line_for_every_value(tmp_path: Path) -> None:
    log = generate(SMALL)
    write_long_form(log.frame, tmp_path / "long.csv", asset="P-1")
    long = pd.read_csv(tmp_path / "long.csv", parse_dates=["time"])
    assert list(long.columns) == ["asset", "tag", "time", "value", "quality"]
    assert set(long["asset"]) == {"P-1"} and set(long["quality"]) == {192, 64, 0}
    assert long["quality"].ne(192).mean() == pytest.approx(0.002, rel=0.1)
    assert long[long["tag"] == "label"]["quality"].eq(192).all()
    wide = long.pivot(index="time", columns="tag", values="value")
    expected = log.frame.set_index("time")[list(log.tags)]
    np.testing.assert_array_equal(wide[list(log.tags)].to_numpy(), expected.to_numpy())


def test_long_form_with_quality_in_words(tmp_path: Path) -> None:
    frame = generate(SMALL).frame.head(500)
    written = write_long_form(frame, tmp_path / "long.parquet", qualities=("Good", "Uncertain", "Bad"), poor_share=0.1)
    assert written["quality"].value_counts().index[0] == "Good"
    assert pd.read_parquet(tmp_path / "long.parquet")["quality"].tolist() == written["quality"].tolist()


def test_autoregressive_against_the_recursion() -> None:
    shocks = np.random.default_rng(0).standard_normal((50, 2))
    expected = shocks.copy()
    for t in range(1, 50):
        expected[t] = 0.8 * expected[t - 1] + 0.6 * shocks[t]
    np.testing.assert_allclose(autoregressive(shocks, 0.8), expected)


def test_spaced_rows_keep_their_distance_and_say_when_there_is_no_room() -> None:
    rows = spaced(np.random.default_rng(0), 20, 10, 400, 15)
    assert np.diff(rows).min() >= 15 and rows[0] >= 10 and rows[-1] < 400
    with pytest.raises(ValueError, match="count: expected room"):
        spaced(np.random.default_rng(0), 20, 0, 100, 15)

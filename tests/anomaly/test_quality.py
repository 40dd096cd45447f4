"""Sensor grades and the rules beside the model: every sensor fault of RELIABILITY 2.14, and no flood."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.data.contract import EVENT, LogChunk, LogContract
from anomaly.data.quality import Finding, QualityProfile, QualityWatch, SensorGrade, SensorStatistics, TagProfile
from anomaly.data.sensor_rules import opposed_pairs, unit_change
from anomaly.data.sensor_statistics import RowSample, longest_usual
from anomaly.data.stretches import BlockCorrelation, ClusterFinder, RunFinder, correlation
from anomaly.data.synthetic import SyntheticPlant, generate

PERIOD = 120_000_000
TRAIN = 6000


def make_chunk(values: NDArray[np.floating], time: NDArray[np.int64] | None = None, asset: str = "plant") -> LogChunk:
    n, tags = values.shape
    return LogChunk(
        row=np.arange(n, dtype=np.int64),
        time=np.arange(n, dtype=np.int64) * PERIOD if time is None else time,
        asset=np.full(n, asset, dtype=object),
        values=values.astype(np.float32),
        categories=np.empty((n, 0), dtype=object),
        label=np.zeros(n, dtype=np.int8),
        bad=np.zeros((n, tags), dtype=bool),
    )


def make_contract(tags: int | tuple[str, ...]) -> LogContract:
    names = tuple(f"t{i}" for i in range(tags)) if isinstance(tags, int) else tags
    return LogContract("time", names, PERIOD)


def cut(chunk: LogChunk, rows: int) -> Iterator[LogChunk]:
    for start in range(0, len(chunk), rows):
        yield chunk.take(slice(start, start + rows))


class Plant:
    """A healthy synthetic log of 24 tags, a profile of its first 6000 rows, and 4000 rows to break."""

    def __init__(self) -> None:
        log = generate(SyntheticPlant(rows=TRAIN + 4000, frozen=0))
        frame = log.frame
        time = np.asarray(frame["time"].astype("int64"), dtype=np.int64)
        whole = make_chunk(frame[list(log.tags)].to_numpy(), time)
        whole = replace(whole, label=frame["label"].to_numpy(np.int8))
        self.tags = log.tags
        self.contract = make_contract(log.tags)
        self.train, self.test = whole.take(slice(0, TRAIN)), whole.take(slice(TRAIN, None))
        self.profile = QualityProfile.fit([self.train], self.contract)

    def findings(self, values: NDArray[np.floating], *, gaps: bool = False) -> list[Finding]:
        watch = QualityWatch(self.profile, self.contract)
        watch.update(replace(self.test, values=values.astype(np.float32)))
        return [f for f in watch.finish() if gaps or f.kind != "gap"]

    def broken(self, tag: str, start: int, end: int, value: Any) -> NDArray[np.float32]:
        values = self.test.values.copy()
        column = values[start:end, self.tags.index(tag)]
        values[start:end, self.tags.index(tag)] = value(column) if callable(value) else value
        return values


@pytest.fixture(scope="module")
def plant() -> Plant:
    return Plant()


def covers(finding: Finding, plant: Plant, start: int, end: int, slack: int = 0) -> bool:
    time = plant.test.time
    return bool(finding.start_us <= time[start + slack] and finding.end_us >= time[end - 1 - slack])


# The watch: sensor faults


def test_a_healthy_log_gives_gaps_only(plant: Plant) -> None:
    kinds = Counter(f.kind for f in plant.findings(plant.test.values, gaps=True))
    assert kinds == {"gap": int((np.diff(plant.test.time) > 3.5 * PERIOD).sum())} and kinds["gap"] > 5


def test_one_stuck_sensor_is_flagged_over_all_its_rows(plant: Plant) -> None:
    """C3: a reconstruction model alone alerted in 45 % of the windows."""
    stuck = plant.broken("steam_pressure", 1000, 1300, 8.97)
    (found,) = plant.findings(stuck)
    assert (found.kind, found.tag, found.asset) == ("flat_line", "steam_pressure", "plant")
    assert covers(found, plant, 1000, 1300)
    assert found.rows == pytest.approx(300, abs=6)  # less the values that are missing, plus a neighbour of equal value


def test_all_sensors_stuck_at_their_means_are_all_flagged(plant: Plant) -> None:
    """Fact 9: a reconstruction model alone alerted in 0 % of the windows."""
    values = plant.test.values.copy()
    values[1000:1500] = np.nanmean(plant.train.values, axis=0)
    found = plant.findings(values)
    assert Counter(f.kind for f in found) == {"flat_line": 24}
    assert {f.tag for f in found} == set(plant.tags) and all(covers(f, plant, 1000, 1500) for f in found)


def test_a_flat_line_of_usual_length_is_nothing(plant: Plant) -> None:
    assert plant.findings(plant.broken("steam_pressure", 1000, 1018, 8.97)) == []


@pytest.mark.parametrize(
    ("tag", "change", "factor", "offset"),
    [
        ("feed_temperature", "°C → °F", 1.8, 32),
        ("bearing_temperature", "°C → K", 1, 273.15),
        ("feed_flow", "×10", 10, 0),
        ("drive_torque", "×1000", 1000, 0),
        ("steam_flow", "÷10", 0.1, 0),
        ("vacuum_pressure", "×100", 100, 0),
        ("drive_speed", "÷1000", 0.001, 0),
    ],
)
def test_a_change_of_unit_is_one_finding(plant: Plant, tag: str, change: str, factor: float, offset: float) -> None:
    """C4: one finding for the stretch, not a flood of values out of range."""
    found = plant.findings(plant.broken(tag, 500, 4000, lambda x: factor * x + offset))
    assert [(f.kind, f.tag) for f in found] == [("unit_jump", tag)]
    assert found[0].detail.startswith(f"as if {change}:") and covers(found[0], plant, 500, 4000, slack=5)


def test_a_change_of_unit_and_back_twice_is_two_findings(plant: Plant) -> None:
    values = plant.broken("feed_temperature", 500, 700, lambda x: 1.8 * x + 32)
    values[2000:2300] = plant.broken("feed_temperature", 2000, 2300, lambda x: 1.8 * x + 32)[2000:2300]
    assert [f.kind for f in plant.findings(values)] == ["unit_jump", "unit_jump"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("feed_flow", "steam_flow"), ("drive_speed", "oil_pressure"), ("cooling_flow", "vacuum_pressure")],
)
def test_two_swapped_sensors_are_one_finding(plant: Plant, one: str, other: str) -> None:
    """C5, by level."""
    values = plant.test.values.copy()
    i, j = plant.tags.index(one), plant.tags.index(other)
    values[800:1200, [i, j]] = values[800:1200, [j, i]]
    (found,) = plant.findings(values)
    assert (found.kind, {found.tag, found.other}) == ("swapped_pair", {one, other})
    assert covers(found, plant, 800, 1200, slack=5)


@pytest.mark.parametrize(
    ("one", "other"),
    [("feed_flow", "steam_pressure"), ("drive_speed", "feed_pressure"), ("cooling_flow", "drive_current")],
)
def test_swapped_sensors_of_equal_level_are_told_by_correlation(plant: Plant, one: str, other: str) -> None:
    """C5, by correlation: every tag brought to mean 0 and deviation 1, so that levels say nothing."""
    mean, spread = np.nanmean(plant.train.values, axis=0), np.nanstd(plant.train.values, axis=0)
    scaled = [replace(c, values=((c.values - mean) / spread).astype(np.float32)) for c in (plant.train, plant.test)]
    profile = QualityProfile.fit([scaled[0]], plant.contract)
    i, j = plant.tags.index(one), plant.tags.index(other)
    swapped = scaled[1].values.copy()
    swapped[:, [i, j]] = swapped[:, [j, i]]
    for values, expected in ((scaled[1].values, []), (swapped, [{one, other}])):
        watch = QualityWatch(profile, plant.contract)
        watch.update(replace(plant.test, values=values))
        assert [{f.tag, f.other} for f in watch.finish() if f.kind == "swapped_pair"] == expected


def test_a_sensor_at_zero_is_flat_and_out_of_range(plant: Plant) -> None:
    found = plant.findings(plant.broken("feed_flow", 1000, 1400, 0.0))
    assert sorted(f.kind for f in found) == ["flat_line", "out_of_range"]
    assert all(f.tag == "feed_flow" and covers(f, plant, 1000, 1400, slack=2) for f in found)


def test_a_sensor_without_values_is_missing(plant: Plant) -> None:
    (found,) = plant.findings(plant.broken("feed_flow", 1000, 1400, np.nan))
    assert (found.kind, found.tag) == ("missing", "feed_flow")
    assert covers(found, plant, 1000, 1400) and found.rows == pytest.approx(400, abs=3)


def test_missing_as_often_as_in_training_is_nothing() -> None:
    """A tag measured every 30th row has long silences by habit."""
    rng = np.random.default_rng(0)
    values = rng.normal(50, 1, (3000, 2))
    values[np.arange(3000) % 30 != 0, 1] = np.nan
    contract = make_contract(2)
    watch = QualityWatch(QualityProfile.fit([make_chunk(values)], contract), contract)
    watch.update(make_chunk(values))
    assert watch.finish() == []


def test_out_of_range_needs_three_rows_and_three_ranges(plant: Plant) -> None:
    usual = plant.profile.tags[plant.tags.index("feed_flow")]
    near, far = usual.high + 2.5 * usual.reach, usual.high + 3.5 * usual.reach
    assert plant.findings(plant.broken("feed_flow", 1000, 1002, far)) == []
    assert plant.findings(plant.broken("feed_flow", 1000, 1010, near)) == []
    (found,) = plant.findings(plant.broken("feed_flow", 1000, 1003, far))
    assert (found.kind, found.rows) == ("out_of_range", 3)


def test_a_gap_names_the_rows_around_it() -> None:
    time = np.array([0, 1, 2, 12, 13, 16], dtype=np.int64) * PERIOD
    contract = make_contract(1)
    values = np.arange(6.0)[:, None]
    watch = QualityWatch(QualityProfile.fit([make_chunk(values)], contract), contract)
    watch.update(make_chunk(values, time))
    (found,) = watch.finish()
    assert (found.kind, found.tag, found.rows) == ("gap", "", 9)
    assert (found.start_us, found.end_us) == (2 * PERIOD, 12 * PERIOD)


def test_a_tag_that_never_moved_in_training_is_not_judged() -> None:
    contract = make_contract(2)
    train = np.column_stack([np.full(500, 5.0), np.full(500, np.nan)])
    watch = QualityWatch(QualityProfile.fit([make_chunk(train)], contract), contract)
    watch.update(make_chunk(np.column_stack([np.full(500, 50.0), np.full(500, 3.0)])))
    assert watch.finish() == []


def test_a_set_point_that_seldom_moves_is_not_flat() -> None:
    contract = make_contract(1)
    steps = np.repeat(np.random.default_rng(1).normal(50, 5, 20), 300)[:, None]
    watch = QualityWatch(QualityProfile.fit([make_chunk(steps)], contract), contract)
    watch.update(make_chunk(np.repeat(steps[:2], 700, axis=0)))
    assert watch.finish() == []


# The watch: any chunking, assets, limits


@pytest.fixture(scope="module")
def broken(plant: Plant) -> LogChunk:
    values = plant.broken("steam_pressure", 1000, 1300, 8.97)
    values[2000:2600, plant.tags.index("feed_temperature")] *= 10
    values[400:460, plant.tags.index("drive_speed")] = np.nan
    pair = [plant.tags.index("feed_flow"), plant.tags.index("oil_pressure")]
    values[3000:3500, pair] = values[3000:3500, pair[::-1]]
    return replace(plant.test, values=values)


@pytest.mark.parametrize("rows", [1, 7, 256, 1000])
def test_any_chunking_gives_the_same_findings(plant: Plant, broken: LogChunk, rows: int) -> None:
    part = broken.take(slice(0, 700)) if rows == 1 else broken
    once, chunked = QualityWatch(plant.profile, plant.contract), QualityWatch(plant.profile, plant.contract)
    once.update(part)
    for chunk in cut(part, rows):
        chunked.update(chunk)
    expected = once.finish()
    assert chunked.finish() == expected
    assert {f.kind for f in expected} >= ({"missing"} if rows == 1 else {"flat_line", "unit_jump", "swapped_pair"})


def test_assets_do_not_mix(plant: Plant, broken: LogChunk) -> None:
    """Rows of two assets in turns: each gets the findings it has alone."""
    other = replace(plant.test, asset=np.full(len(plant.test), "other", dtype=object))
    n = len(broken)
    joined = LogChunk(
        *(
            np.stack([getattr(broken, k), getattr(other, k)], axis=1).reshape(2 * n, *getattr(broken, k).shape[1:])
            for k in ("row", "time", "asset", "values", "categories", "label", "bad")
        )
    )
    together, alone = QualityWatch(plant.profile, plant.contract), QualityWatch(plant.profile, plant.contract)
    together.update(joined)
    alone.update(broken)
    found = together.finish()
    assert [f for f in found if f.asset == "plant"] == alone.finish()
    assert {f.kind for f in found if f.asset == "other"} == {"gap"}


def test_findings_are_bounded_and_the_rest_is_counted() -> None:
    contract = make_contract(1)
    values = np.random.default_rng(0).normal(size=(700, 1))
    watch = QualityWatch(QualityProfile.fit([make_chunk(values)], contract), contract)
    watch.update(make_chunk(values, np.arange(700, dtype=np.int64) * 10 * PERIOD))
    assert len(watch.finish()) == 500 and watch.left_out == 199


def test_an_empty_chunk_changes_nothing(plant: Plant) -> None:
    watch = QualityWatch(plant.profile, plant.contract)
    watch.update(plant.test.take(slice(0, 0)))
    assert watch.finish() == []


def test_a_profile_of_other_tags_is_refused(plant: Plant) -> None:
    with pytest.raises(ValueError, match="profile: expected the contract's tags"):
        QualityWatch(plant.profile, make_contract(24))


# The profile


def test_the_profile_survives_json(plant: Plant) -> None:
    again = QualityProfile.from_dict(json.loads(json.dumps(plant.profile.to_dict(), allow_nan=False)))
    assert again.tags == plant.profile.tags and again.rows == plant.profile.rows
    assert again.correlation is not None and plant.profile.correlation is not None
    np.testing.assert_allclose(again.correlation, plant.profile.correlation, atol=1e-4)


def test_the_profile_of_a_tag_without_values_survives_json() -> None:
    profile = QualityProfile.fit([make_chunk(np.full((5, 1), np.nan))], make_contract(1))
    again = QualityProfile.from_dict(json.loads(json.dumps(profile.to_dict(), allow_nan=False)))
    assert np.isnan(again.tags[0].median) and again.correlation is None and not again.tags[0].moves


def test_the_profile_sees_normal_rows_only() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 1))
    values[500:] += 1000
    chunk = make_chunk(values)
    chunk.label[500:] = EVENT
    profile = QualityProfile.fit([chunk], make_contract(1))
    assert profile.rows == 500 and profile.tags[0].high < 10


def test_quantiles_against_numpy_while_the_log_fits_the_sample(plant: Plant) -> None:
    normal = plant.train.values[plant.train.label == 0].astype(np.float64)
    found = np.array([(t.low, t.q25, t.median, t.q75, t.high) for t in plant.profile.tags])
    np.testing.assert_allclose(found.T, np.nanquantile(normal, [0.001, 0.25, 0.5, 0.75, 0.999], axis=0))


def test_the_profile_is_equal_for_any_chunking(plant: Plant) -> None:
    again = QualityProfile.fit(cut(plant.train, 777), plant.contract)
    assert again.to_dict() == plant.profile.to_dict()


def test_one_frozen_stretch_in_training_is_not_taken_for_a_habit() -> None:
    values = np.random.default_rng(0).normal(size=(2000, 1))
    values[100:400] = values[100]
    assert QualityProfile.fit([make_chunk(values)], make_contract(1)).tags[0].flat_rows == 1


# Grades


def grade(values: NDArray[np.floating], bad: NDArray[np.bool_] | None = None) -> SensorGrade:
    statistics = SensorStatistics(make_contract(1))
    chunk = make_chunk(values.reshape(-1, 1))
    statistics.update(chunk if bad is None else replace(chunk, bad=bad.reshape(-1, 1)))
    return statistics.grades()[0]


def test_a_healthy_sensor_is_high() -> None:
    found = grade(np.random.default_rng(0).normal(size=1000))
    assert found == SensorGrade("t0", "high", 0.0, 1000, 1)


@pytest.mark.parametrize(
    ("case", "expected", "reason"),
    [
        ("none", "low", "no value"),
        ("constant", "low", "always the same value"),
        ("rare", "low", "60.0% missing"),
        ("stuck", "low", "one value for 601 rows, over half of the log"),
        ("gaps", "medium", "10.0% missing"),
        ("flat", "medium", "one value for 201 rows"),
        ("spikes", "medium", "usually"),
        ("bad", "medium", "2.0% of bad quality"),
    ],
)
def test_grades_and_their_reasons(case: str, expected: str, reason: str) -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    bad = np.zeros(1000, dtype=bool)
    if case == "none":
        values[:] = np.nan
    elif case == "constant":
        values[:] = 3.5
    elif case == "rare":
        values[:600] = np.nan
    elif case == "stuck":
        values[300:900] = values[299]
    elif case == "gaps":
        values[::10] = np.nan
    elif case == "flat":
        values[300:500] = values[299]
    elif case == "spikes":
        values = np.random.default_rng(0).normal(size=3000).astype(np.float32)
        values[77], bad = 1e6, np.zeros(3000, dtype=bool)
    else:
        bad[::50] = True
        values[bad] = np.nan
    found = grade(values, bad)
    assert found.grade == expected and any(reason in r for r in found.reasons), found


def test_grades_are_equal_for_any_chunking(plant: Plant, broken: LogChunk) -> None:
    once, chunked = SensorStatistics(plant.contract), SensorStatistics(plant.contract)
    once.update(broken)
    for chunk in cut(broken, 333):
        chunked.update(chunk)
    assert once.grades() == chunked.grades()
    assert once.grades()[plant.tags.index("steam_pressure")].longest_flat_rows >= 290


def test_statistics_stay_bounded() -> None:
    """Whatever the log's length, at most 8192 sampled rows and 1000 distinct values are held."""
    statistics = SensorStatistics(make_contract(1))
    rng = np.random.default_rng(0)
    for _ in range(20):
        statistics.update(make_chunk(rng.normal(size=(5000, 1))))
    assert 3000 < len(statistics._sample.values) <= 8192
    assert statistics.grades()[0].distinct == 1000
    assert statistics.profile().tags[0].median == pytest.approx(0, abs=0.05)


def test_a_tag_is_judged_over_its_assets() -> None:
    """Equal values at the end of one asset and the start of the next are not one flat run."""
    statistics = SensorStatistics(make_contract(1))
    values = np.random.default_rng(0).normal(size=(100, 1))
    values[50:] = 1.0
    statistics.update(make_chunk(values, asset="a"))
    statistics.update(make_chunk(values[::-1], asset="b"))
    assert statistics.grades()[0].longest_flat_rows == 50


# The pure parts, against closed forms


def test_unit_change_prefers_the_nearest_and_wants_movement() -> None:
    usual = TagProfile("t", 15.0, 19.0, 20.0, 21.0, 25.0, 1, 0, True)
    x = np.random.default_rng(0).normal(20, 1.5, 200).astype(np.float32)
    assert unit_change(1.8 * x + 32, usual) == "°C → °F"
    assert unit_change(10 * x, usual) == "×10"
    assert unit_change(x + np.float32(273.15), usual) == "°C → K"
    assert unit_change(5 * x, usual) is None
    assert unit_change(np.full(200, 200, np.float32), usual) is None


def test_opposed_pairs_against_the_definition() -> None:
    rng = np.random.default_rng(3)
    usual = np.asarray(np.corrcoef(rng.normal(size=(8, 12))))
    order = np.arange(8)
    order[[2, 5]] = 5, 2
    block = usual[np.ix_(order, order)]

    def cosine(i: int, j: int) -> float:
        d, b = (np.delete(m[i] - m[j], [i, j]) for m in (usual, block))
        return float(d @ b / np.linalg.norm(d) / np.linalg.norm(b))

    assert cosine(2, 5) == pytest.approx(-1)
    assert opposed_pairs(block, usual) == [(2, 5)]
    assert opposed_pairs(usual, usual) == []


def test_correlation_against_numpy_and_without_movement() -> None:
    x = np.random.default_rng(0).normal(100, 1, (300, 3)).astype(np.float32)
    x[:, 2] = 0.1
    found = correlation(x)
    assert found[0, 1] == pytest.approx(np.asarray(np.corrcoef(x[:, 0], x[:, 1]))[0, 1], abs=1e-6)
    np.testing.assert_array_equal(found[2], [0, 0, 1])
    x[:, 2] = np.nan
    np.testing.assert_array_equal(correlation(x)[2], [0, 0, 1])


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_runs_against_a_loop(rows: int) -> None:
    values = np.random.default_rng(0).integers(0, 2, 200).astype(np.float32)
    time = np.arange(200, dtype=np.int64) * 10
    expected: list[list[float]] = []
    for v, t in zip(values.tolist(), time.tolist(), strict=True):
        if expected and expected[-1][3] == v:
            expected[-1][1:3] = [t, expected[-1][2] + 1]
        else:
            expected.append([t, t, 1, v])
    finder = RunFinder()
    parts = [finder.update(values[i : i + rows], time[i : i + rows]) for i in range(0, 200, rows)] + [finder.close()]
    assert [list(run) for part in parts for run in zip(*part, strict=True)] == expected


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_clusters_for_any_chunking(rows: int) -> None:
    at = np.array([3, 4, 9, 30, 31, 32, 60], dtype=np.int64)
    finder, ended = ClusterFinder(patience=6), []
    for start in range(0, 100, rows):
        here = at[(at >= start) & (at < start + rows)]
        ended += finder.update(here, here * 10, here.astype(np.float32))
    ended += finder.close()
    assert [(c.start_us, c.end_us, c.rows, c.span) for c in ended] == [
        (30, 90, 3, 7),
        (300, 320, 3, 3),
        (600, 600, 1, 1),
    ]
    assert ended[0].values.tolist() == [3, 4, 9]


def test_blocks_keep_the_rows_left_over() -> None:
    x = np.random.default_rng(0).normal(size=(25, 2)).astype(np.float32)
    blocks = BlockCorrelation(rows=10)
    time = np.arange(25, dtype=np.int64)
    found = [b for i in range(0, 25, 4) for b in blocks.update(x[i : i + 4], time[i : i + 4])]
    assert [(b.start_us, b.end_us) for b in found] == [(0, 9), (10, 19)]
    np.testing.assert_array_equal(found[1].correlation, correlation(x[10:20]))


def test_the_row_sample_is_the_same_for_any_chunking_and_evenly_spread() -> None:
    rows = np.arange(50_000, dtype=np.float32)[:, None]
    once, chunked = RowSample(1000), RowSample(1000)
    once.update(rows)
    for start in range(0, 50_000, 333):
        chunked.update(rows[start : start + 333])
    np.testing.assert_array_equal(once.values, chunked.values)
    assert once.values.mean() == pytest.approx(25_000, rel=0.1)


def test_longest_usual_run_needs_a_companion() -> None:
    assert longest_usual([900, 800, 3]) == 900
    assert longest_usual([900, 200, 60, 10, 2]) == 2
    assert longest_usual([4]) == 4

"""The figures of the detection benchmark: VUS-PR against loops from its definition, thresholds, episodes, margins, goals."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks is no installed package

from benchmarks import detection_table as table
from benchmarks.detection_cases import PLAIN, Trial
from benchmarks.detection_metrics import BUDGET, MERGE_GAP, figures, held_level
from benchmarks.detection_ours import CENTRED, OURS
from benchmarks.encoder_cases import Case
from benchmarks.vus import vus_pr


def vus_by_definition(score: list[float], label: list[int], window: int) -> float:
    """Paparrizos et al. 2022, row by row: every tolerance, every threshold, no shortcut shared with the benchmark's code.

    As in the authors' present code, soft rows count among the positives only where they are flagged.
    """
    n, areas = len(score), []
    for tolerance in range(window + 1):
        soft = [float(y) for y in label]
        for at in range(n):
            begins = label[at] and (at == 0 or not label[at - 1])
            ends = label[at] and (at == n - 1 or not label[at + 1])
            for step in range(1, tolerance // 2 + 1):
                height = math.sqrt(1 - step / tolerance)
                if begins and at - step >= 0:
                    soft[at - step] += height
                if ends and at + step < n:
                    soft[at + step] += height
        soft = [min(value, 1.0) for value in soft]
        regions, inside = list[list[int]](), False
        for at in range(n):
            if soft[at] > 0:
                regions = [*regions[:-1], [*regions[-1], at]] if inside else [*regions, [at]]
            inside = soft[at] > 0
        area, before = 0.0, 0.0
        for threshold in sorted(set(score), reverse=True):
            flagged = [at for at in range(n) if score[at] >= threshold]
            hits = sum(soft[at] for at in flagged)
            met = sum(any(score[at] >= threshold for at in region) for region in regions) / len(regions)
            around = sum(soft[at] for at in flagged if not label[at])
            recall = min(hits / ((sum(label) + sum(label) + around) / 2), 1.0) * met
            area += (recall - before) * hits / len(flagged)
            before = recall
        areas.append(area)
    return sum(areas) / len(areas)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("window", [0, 1, 7, 20])
def test_vus_pr_is_that_of_its_definition(seed: int, window: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(30, 90))
    label = np.zeros(n, int)
    for start in rng.integers(0, n - 4, size=3):
        label[start : start + rng.integers(1, 6)] = 1
    score = np.round(rng.normal(size=n) + 2 * label, 1 if seed % 2 else 6)  # ties in every other case
    assert vus_pr(score, label.astype(bool), window) == pytest.approx(
        vus_by_definition(score.tolist(), label.tolist(), window), abs=1e-12
    )


def trial(train_rows: int = 1000, test_rows: int = 1000, events: tuple[tuple[int, int], ...] = ((400, 420),)) -> Trial:
    def log(rows: int) -> pd.DataFrame:
        times = pd.date_range("2026-01-01", periods=rows, freq="10s", tz="UTC")
        return pd.DataFrame({"time": times, "a": np.zeros(rows, np.float32), "label": np.zeros(rows, np.int8)})

    test = log(test_rows)
    for start, stop in events:
        test.loc[start : stop - 1, "label"] = 1
    case = Case("mill_1", "mill", Path("mill_1"), 10, train_rows)
    return Trial(case, log(train_rows), test, np.ones(test_rows, bool))


def test_s63_the_threshold_keeps_the_budget_on_the_held_back_rows() -> None:
    score = np.random.default_rng(3).normal(size=5000)
    level = held_level(score, np.ones(5000, bool))
    assert not level.followed and level.rows == 5000

    def episodes(threshold: float) -> int:
        at = np.flatnonzero(score >= threshold)
        return int(len(at) > 0) + int((np.diff(at) > MERGE_GAP).sum())

    assert episodes(level.value) == 5000 * BUDGET
    assert episodes(np.sort(score[score < level.value])[-1]) > 5000 * BUDGET


def test_rows_that_cannot_hold_the_budget_have_their_tail_followed() -> None:
    draws = [np.random.default_rng(seed).exponential(size=80) for seed in range(40)]
    levels = [held_level(score, np.ones(80, bool)) for score in draws]
    assert all(level.followed and level.rows == 80 for level in levels)
    rate = math.exp(-float(np.median([level.value for level in levels])))
    assert BUDGET / 4 < rate < BUDGET * 4, "what an exponential score promises at that threshold"
    assert np.mean([level.value > score.max() for level, score in zip(levels, draws, strict=True)]) > 0.5


def test_events_in_the_held_back_rows_and_missing_scores_set_no_threshold() -> None:
    score = np.random.default_rng(5).normal(size=2000)
    normal = np.ones(2000, bool)
    before = held_level(score, normal).value
    dirty, known = (
        np.concatenate((score, np.full(50, 99.0), [np.nan])),
        np.concatenate((normal, np.zeros(50, bool), [True])),
    )
    assert held_level(dirty, known).value == before
    assert held_level(np.full(5, np.nan), np.ones(5, bool)).value == math.inf
    assert held_level(np.ones(100), np.ones(100, bool)).value > 1, "scores that never differ raise no alert"


def scores(plant: dict[int, float], rows: int = 1000) -> NDArray[np.float64]:
    own = np.random.default_rng(6).uniform(size=rows)
    for at, value in plant.items():
        own[at] = value
    return own


HELD = np.random.default_rng(7).uniform(size=200)


def test_alert_figures_of_a_planted_score() -> None:
    own = trial(events=((400, 420), (700, 710)))
    # Two rows before the first event and within it; two false rows that are one episode, a third that is another.
    score = scores({398: 9, 405: 9, 100: 8, 108: 8, 900: 8})
    found = figures(own, score, HELD, fixed=5.0)
    assert found["recall"] == 0.5 and found["events"] == 2
    assert found["false_episodes"] == 2, "the episode that reaches into an event is none"
    assert found["nominal"] == pytest.approx(970 * 0.002) and found["ratio"] == pytest.approx(2 / 1.94)
    assert found["lead_rows"] == 2 and found["lead_s"] == 20
    assert found["flagged_normal"] == pytest.approx(4 / 970)


def test_recall_read_off_the_test_log_lets_no_more_than_two_false_episodes_in_1000_rows_pass() -> None:
    own = trial(test_rows=1100, events=((400, 420), (700, 710)))
    high = {100: 9.0, 200: 8.0}
    assert figures(own, scores({**high, 405: 7.0, 705: 6.0}, 1100), HELD)["recall_oracle"] == 1.0
    assert figures(own, scores({**high, 300: 6.5, 405: 7.0, 705: 6.0}, 1100), HELD)["recall_oracle"] == 0.5


def test_no_label_of_the_test_log_moves_the_threshold() -> None:
    one, other = trial(events=((400, 420),)), trial(events=((10, 700),))
    score = scores({5: 3.0, 450: 3.0})
    first, second = (figures(t, score, HELD) for t in (one, other))
    assert first["held_rows"] == second["held_rows"] == 200
    flagged = [f["flagged_normal"] * round(f["nominal"] / BUDGET) for f in (first, second)]
    assert flagged == pytest.approx([2.0, 1.0]), "the same two rows pass; one of them is an event row in the second"


def test_rows_that_are_not_judged_count_nowhere() -> None:
    own = trial()
    judged = own.judged.copy()
    judged[800:] = False
    score = scores({900: 9.0, 405: 8.0})
    assert figures(own, score, HELD, fixed=5.0)["false_episodes"] == 1
    assert figures(replace(own, judged=judged), score, HELD, fixed=5.0)["false_episodes"] == 0


def test_unscorable_rows_rank_last_and_raise_no_alert() -> None:
    own, score = trial(), scores({405: 9.0})
    score[410:420] = np.nan
    found = figures(own, score, HELD, fixed=5.0)
    assert found["unscorable"] == 10 and found["false_episodes"] == 0
    score[410:420] = -5.0
    assert figures(own, score, HELD, fixed=5.0)["vus_pr"] == pytest.approx(found["vus_pr"])
    with pytest.raises(ValueError, match="expected 1000 and 200 rows"):
        figures(own, score[:-1], HELD)


def test_the_paired_margin_draws_the_same_plants_for_both() -> None:
    dataset = {f"c{i}": f"d{i // 2}" for i in range(12)}
    rng = np.random.default_rng(0)
    theirs = {c: float(rng.uniform(0.1, 0.9)) for c in dataset}
    ours = {c: 1.2 * v for c, v in theirs.items()}
    margin = table.paired_margin(ours, theirs, dataset)
    assert margin.ratio == pytest.approx((1.2, 1.2, 1.2)), "plants differ wildly, the ratio never does"
    value, low, high = margin.difference
    assert low < value < high and low > 0
    few = table.paired_margin({"c0": 1.0, "c2": 1.0}, {"c0": 0.5, "c2": 0.5}, dataset)
    assert few.ratio[0] == 2 and math.isnan(few.ratio[1]), "two plants give no interval"
    assert math.isnan(table.paired_margin({}, theirs, dataset).ratio[0])


def record(method: str, case: str, **own: float | None) -> dict[str, Any]:
    usual = {"vus_pr": 0.5, "ap": 0.5, "auc": 0.5, "recall": 0.5, "recall_oracle": 0.5, "ratio": 1.0, "lead_rows": 0.0,
             "flagged_normal": 0.01, "seconds": 10.0}  # fmt: skip
    return {"method": method, "case": case, "dataset": case[:2], "variant": PLAIN, **usual, **own}


CASES = [f"d{i}_{k}" for i in range(5) for k in range(2)]


def goals(records: list[dict[str, Any]]) -> list[list[str]]:
    lines = table.goal_table(table.Results.of(records))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]


def test_goals_that_are_met_say_by_how_much() -> None:
    records = [record(OURS, c, vus_pr=0.6, recall=0.7, recall_oracle=0.7) for c in CASES]
    records += [record("knn", c) for c in CASES] + [record(CENTRED, c, vus_pr=0.61) for c in CASES]
    records += [record("random", c, vus_pr=0.99, recall=0.99) for c in CASES]
    found = goals(records)
    assert len(found) == 10 and all(row[-1].startswith("met") for row in found), found
    assert "knn" in found[0][0] and found[0][2].startswith("1.200") and found[0][-1] == "met by 0.100", (
        "random is no peer"
    )


def test_goals_that_are_missed_say_by_how_much_and_where() -> None:
    records = [record(OURS, c, vus_pr=0.2 if c < "d1" else 0.6, recall=0.4, recall_oracle=0.4, ratio=9.0, seconds=300.0)
               for c in CASES]  # fmt: skip
    records += [record("knn", c) for c in CASES] + [record(CENTRED, c, vus_pr=0.7) for c in CASES]
    found = goals(records)
    assert [row[-1].split()[0] for row in found] == ["missed"] * 10
    assert "d0 to knn (-0.300)" in found[1][2] and found[1][-1] == "missed by 1 data sets"


def test_a_goal_that_no_method_could_reach_is_told_so() -> None:
    records = [record(OURS, c, recall=1.0) for c in CASES] + [record("knn", c, recall=0.95) for c in CASES]
    said = {row[0].split(";")[1].strip()[:9]: row[-1] for row in goals(records) if "event recall ÷" in row[0]}
    assert said["threshold"] == "missed by 0.097; 1.053 is the most there is" and "most" not in said["≤ 2 false"]


def test_a_mean_above_the_goal_with_an_interval_that_reaches_one_is_missed() -> None:
    wide = {c: (1.4 if c < "d2" else 0.45) for c in CASES}
    records = [record(OURS, c, vus_pr=v) for c, v in wide.items()] + [record("knn", c) for c in CASES]
    assert goals(records)[0][-1].startswith("missed") and "interval not above 1.0" in goals(records)[0][-1]


def test_what_was_not_measured_is_never_met() -> None:
    assert table.goal_table(table.Results.of([record("knn", c) for c in CASES])) == [
        "Our default was not measured in this run: no goal is judged."
    ]
    found = goals([record(OURS, c) for c in CASES])
    assert found[0][-1] == found[7][-1] == "not measured"
    partly = [record(OURS, c) for c in CASES[:4]] + [record("knn", c) for c in CASES]
    assert "missing on 6 of 10 cases" in table.goal_table(table.Results.of(partly))[0]
    half = [record(OURS, c) for c in CASES] + [record("pca", c, vus_pr=0.4) for c in CASES]
    assert "(pca)" in goals([*half, record("knn", CASES[0], vus_pr=0.9)])[0][0], (
        "a peer measured on one case is not the best"
    )


def test_damage_tables_show_the_change_on_the_same_cases() -> None:
    records = [record("knn", c, vus_pr=0.5) for c in CASES]
    records += [record("knn", c, vus_pr=0.4) | {"variant": "unit change"} for c in CASES[:-1]]
    lines = table.robustness_table(records, "vus_pr", "VUS-PR")
    assert lines[0] == "| VUS-PR | as it is | unit change |" and lines[2] == "| knn | 0.500 | -0.100 |"

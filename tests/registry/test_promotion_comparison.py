"""The gates: paired differences against brute force, and each gate open and closed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from anomaly.data.contract import EVENT, NORMAL, UNKNOWN
from anomaly.metrics import ScoredPart, evaluate
from registry.comparison import (
    Difference,
    Gate,
    GateRules,
    Pair,
    alert_budget,
    average_precision_difference,
    equal_budget,
    event_recall_difference,
    gates_of,
    latency_gate,
    parity_gate,
    schema_gate,
)

MINUTE = 60_000_000
RULES = GateRules()


def part(signal: float, seed: int, rows: int = 4000, every: int = 200) -> ScoredPart:
    """Noise with events of five rows that stand out by ``signal``."""
    kind = np.full(rows, NORMAL, np.int8)
    for at in range(100, rows - 10, every):
        kind[at : at + 5] = EVENT
    rng = np.random.default_rng(seed)
    score = rng.exponential(0.43, rows) + signal * (kind == EVENT)
    time = np.arange(rows, dtype=np.int64) * MINUTE
    starts = np.flatnonzero(np.diff(np.concatenate(([0], kind == EVENT))) == 1)
    events = {"p": np.column_stack((time[starts], time[starts + 4] + 1))}
    asset, outcome = np.full(rows, "p", object), np.full(rows, "normal", object)
    return ScoredPart(asset, time, score, outcome, kind, events, MINUTE, 0, 3 * MINUTE)


def pair(a: ScoredPart, b: ScoredPart, threshold: float = 2.0) -> Pair:
    return Pair(a, b, threshold, threshold)


def gate(gates: list[Gate], name: str) -> Gate:
    return next(g for g in gates if g.name == name)


# Paired differences -------------------------------------------------------------------------------------------------


def test_s61_the_difference_of_average_precision_is_that_of_scikit_learn() -> None:
    a, b = part(1.0, 1), part(2.0, 2)
    found = average_precision_difference(pair(a, b))
    positive = a.kind == EVENT
    expected = average_precision_score(positive, a.score) - average_precision_score(positive, b.score)
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert found.low is not None and found.high is not None and found.low < expected < found.high < 0


def test_s61_pairing_makes_the_interval_of_like_models_narrow() -> None:
    a, b = part(1.5, 1), part(1.5, 1)
    alike = replace(b, score=b.score + 0.02 * np.random.default_rng(3).random(len(b.score)))
    close, apart = (average_precision_difference(pair(a, other)) for other in (alike, part(1.5, 2)))
    widths = [d.high - d.low for d in (close, apart) if d.high is not None and d.low is not None]
    assert len(widths) == 2 and widths[0] < widths[1] / 4
    same = average_precision_difference(pair(a, b))
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0) and "equal" in same.words()


def test_s61_equal_models_are_seldom_called_worse() -> None:
    worse = 0
    for seed in range(20):
        found = average_precision_difference(pair(part(1.5, seed, rows=1500), part(1.5, 1000 + seed, rows=1500)))
        worse += found.high is not None and found.high < 0
    assert worse <= 2, "2.5 % is nominal"


def test_s62_event_recall_is_compared_at_equally_many_flagged_normal_rows() -> None:
    a, b = part(1.0, 1), part(3.0, 2)
    loud = replace(a, score=a.score * 10)  # another scale: its own threshold says nothing here
    (mine, above_a), (other, above_b) = equal_budget(pair(loud, b))
    normal = b.kind == NORMAL
    flagged = [int((normal & (p.score > t)).sum()) for p, t in ((mine, above_a), (other, above_b))]
    assert flagged[0] == flagged[1] == int((normal & (b.score >= 2.0)).sum()) > 0
    found = event_recall_difference(pair(loud, b))
    brute = [
        np.mean([(p.score[at : at + 5] > t).any() for at in range(100, 3990, 200)])
        for p, t in ((mine, above_a), (other, above_b))
    ]
    assert (found.challenger, found.champion) == pytest.approx(tuple(brute))
    assert found.high is not None and found.high < 0


def test_s62_a_champion_that_never_flags_still_gives_a_budget() -> None:
    a, b = part(1.0, 1), part(2.0, 2)
    for own, above in equal_budget(Pair(a, b, 99.0, 99.0)):
        assert int(((own.kind == NORMAL) & (own.score > above)).sum()) == math.ceil(
            0.001 * int((a.kind == NORMAL).sum())
        )


def test_rows_that_the_challenger_cannot_score_count_against_it() -> None:
    b = part(2.0, 2)
    deaf = np.where(b.kind == EVENT, np.nan, b.score)
    a = replace(b, score=deaf, outcome=np.where(np.isnan(deaf), "unscorable", b.outcome).astype(object))
    assert average_precision_difference(pair(a, b)).value < -0.5
    found = event_recall_difference(pair(a, b))
    assert found.challenger == 0 and found.high is not None and found.high < 0


def test_a_pair_is_of_the_same_rows() -> None:
    a = part(1.0, 1)
    with pytest.raises(ValueError, match="same time"):
        pair(a, replace(a, time=a.time + 1))
    with pytest.raises(ValueError, match="same events"):
        pair(a, replace(a, events={"p": a.events["p"][1:]}))


def test_words_say_which_way_and_how_sure() -> None:
    said = Difference("event recall", 0.4, 0.6, -0.35, -0.05, "20 events").words()
    assert (
        said
        == "event recall 0.400 against 0.600 of the champion: 0.200 lower, between 0.350 lower and 0.050 lower (20 events)"
    )
    assert "no interval (2 events)" in Difference("event recall", 0.5, 0.5, None, None, "2 events").words()


# Gates --------------------------------------------------------------------------------------------------------------


def judged(
    a: ScoredPart, b: ScoredPart | None, rules: GateRules = RULES, accepted: str = "", budget: float = 1e4
) -> list[Gate]:
    return gates_of(evaluate(a, 2.0), None if b is None else pair(a, b), budget, 1, rules, accepted)


def test_a_better_challenger_passes_and_a_worse_one_is_refused_in_words() -> None:
    good, bad = part(4.0, 1), part(1.0, 2)
    assert all(g.passed for g in judged(good, bad))
    refused = judged(bad, good)
    assert [g.name for g in refused if not g.passed] == ["average_precision", "event_recall"]
    words = gate(refused, "average_precision").words
    assert words.startswith("worse than the champion") and "lower, between" in words


def test_a_margin_lets_a_little_worse_pass() -> None:
    a, b = part(1.7, 1), part(2.0, 1)
    strict = gate(judged(a, b), "average_precision")
    assert not strict.passed and strict.high is not None
    loose = gate(judged(a, b, GateRules(margin=-strict.high + 0.01)), "average_precision")
    assert loose.passed and "margin" in loose.words


def test_g5_too_few_events_need_a_person() -> None:
    few, other = part(3.0, 1, rows=700), part(3.0, 2, rows=700)
    assert [g.name for g in judged(few, other) if not g.passed] == ["events"]
    taken = judged(few, other, accepted="spare line, breaks twice a year")
    assert all(g.passed for g in taken)
    assert "spare line" in gate(taken, "events").words and gate(taken, "events").waived
    assert not gate(judged(part(3.0, 1), part(3.0, 2), accepted="never mind"), "events").waived


def test_g5_a_person_cannot_take_on_what_was_measured() -> None:
    bad, good = part(0.5, 1, rows=900, every=250), part(4.0, 2, rows=900, every=250)
    names = [g.name for g in judged(bad, good, accepted="never mind") if not g.passed]
    assert "average_precision" in names and "events" not in names


def test_without_any_event_a_person_takes_on_what_cannot_be_told() -> None:
    a, b = part(1.0, 1), part(1.0, 2)
    a, b = (
        replace(p, kind=np.where(p.kind == EVENT, UNKNOWN, p.kind).astype(np.int8), events={"p": p.events["p"][:0]})
        for p in (a, b)
    )
    assert {g.name for g in judged(a, b) if not g.passed} == {
        "events",
        "average_precision",
        "event_recall",
        "recall_floor",
    }
    taken = judged(a, b, accepted="new line")
    assert all(g.passed for g in taken) and gate(taken, "average_precision").waived == "new line"
    assert gate(taken, "average_precision").to_dict()["figure"] is None


def test_a_first_version_is_judged_by_its_own_gates() -> None:
    assert [g.name for g in judged(part(3.0, 1), None)] == ["events", "recall_floor", "alert_budget"]
    low = gate(judged(part(0.0, 1), None, GateRules(floor=0.9)), "recall_floor")
    assert not low.passed and low.high is not None and "at least 90% wanted" in low.words


@pytest.mark.parametrize(("count", "passed"), [(0, True), (10, True), (17, True), (19, False), (40, False)])
def test_the_alert_budget_is_over_only_where_the_poisson_interval_is(count: int, passed: bool) -> None:
    found = alert_budget(count, 10.0, 1.0, 2)
    assert found.passed is passed and found.figure == count / 10
    assert not alert_budget(0, 0.0, 1.0, 1).passed


def test_schema_latency_and_parity() -> None:
    assert schema_gate([]).passed and not schema_gate(["tag a: only in the first"]).passed
    assert "tag a" in schema_gate(["tag a: only in the first"]).words
    assert latency_gate([0.01] * 20, MINUTE, RULES).passed and not latency_gate([31.0] * 20, MINUTE, RULES).passed
    here = np.array([1.0, np.nan, 3.0])
    assert parity_gate(here, here.copy()).passed and not parity_gate(here, here + np.array([0, 0, 1e-3])).passed
    assert not parity_gate(here, np.array([1.0, 2.0, 3.0])).passed
    assert not parity_gate(here, here[:2]).passed
    assert "killed" in parity_gate(here, None, "killed").words


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"floor": 1.5}, {"events": -1}, {"slowest": math.nan}])
def test_rules_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        GateRules(**wrong)  # type: ignore[arg-type]

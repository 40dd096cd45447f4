"""The ledger and the alerts: once per log, whatever the order of overlapping logs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.episodes import Episode, EpisodeRules, find_episodes
from alerts.store import Alert, AlertStore, BatchRecord
from anomaly.errors import UsageError

STEP, GAP = 10, 30
RULES = EpisodeRules(off=0.8, min_rows=1, merge_gap_us=GAP)


@pytest.fixture
def store(tmp_path: Path) -> AlertStore:
    return AlertStore(tmp_path / "alerts.db")


def episode(start, end, *, peak=None, score=5.0, rows=None, asset="A", tags=(("P", 0.75), ("Q", 0.25))):
    count = (end - start) // STEP + 1 if rows is None else rows
    return Episode(asset, start, start if peak is None else peak, end, score, 3.0, count, tags)


def batch(sha="a" * 64, covered=None, model="m1", **changes):
    given_values = {
        "sha256": sha,
        "model": model,
        "model_name": "demo",
        "file_name": "log.csv",
        "rows": 100,
        "outcomes": {"normal": 90, "anomalous": 7, "unscorable": 3},
        "covered": {"A": (0, 1000)} if covered is None else covered,
        "score_path": "scores.parquet",
        "lead_us": 240_000_000,
        "merge_gap_us": GAP,
    }
    return BatchRecord(**given_values | changes)


def comparable(store: AlertStore):
    """Alerts apart from number, time of recording and first batch, which depend on the order of recording."""
    rows = [
        {k: v for k, v in row.items() if k not in ("id", "created_at", "first_batch")} for row in store.dump()["alerts"]
    ]
    return sorted(rows, key=lambda r: (r["asset"], r["model"], r["start_us"]))


def spans(store: AlertStore):
    return sorted((a.start_us, a.peak_us, a.end_us, a.rows) for a in store.alerts(limit=None))


# recording and reading


def test_a_batch_comes_back_as_ledger_entry_coverage_and_alerts(store):
    assert store.record_batch(batch(), [episode(100, 190, peak=150, score=6.5)])
    (found,) = store.alerts()
    assert found == Alert(
        id=1,
        asset="A",
        model="m1",
        model_name="demo",
        start_us=100,
        peak_us=150,
        end_us=190,
        peak_score=6.5,
        threshold=3.0,
        rows=10,
        lead_us=240_000_000,
        top_tags=(("P", 0.75), ("Q", 0.25)),
        state="new",
        first_batch=1,
        created_at=found.created_at,
        priority=1,
    )
    assert store.alert(1) == found
    dump = store.dump()
    (entry,) = dump["batches"]
    assert entry["recorded_at"] == found.created_at > 1_600_000_000_000_000
    assert {k: entry[k] for k in ("normal", "anomalous", "unscorable", "rows", "start_us", "end_us")} == {
        "normal": 90, "anomalous": 7, "unscorable": 3, "rows": 100, "start_us": 0, "end_us": 1000,
    }  # fmt: skip
    assert dump["coverage"] == [{"asset": "A", "model": "m1", "start_us": 0, "end_us": 1000}]


def test_the_same_log_twice_changes_nothing(store):
    assert store.record_batch(batch(), [episode(100, 190)])
    before = store.dump()
    assert not store.record_batch(batch(score_path="elsewhere"), [episode(100, 190), episode(500, 590)])
    assert store.dump() == before


def test_another_model_answers_the_same_log_anew(store):
    store.record_batch(batch(), [episode(100, 190)])
    assert store.record_batch(batch(model="m2"), [episode(100, 190)])
    assert [a.model for a in store.alerts(limit=None)] == ["m2", "m1"]
    assert [a.model for a in store.alerts(model="m1")] == ["m1"]


def test_lists_newest_first_and_filters(store):
    found = [episode(100, 190), episode(500, 590), episode(300, 350, asset="B")]
    store.record_batch(batch(covered={"A": (0, 1000), "B": (0, 1000)}), found)
    assert [a.start_us for a in store.alerts()] == [500, 300, 100]
    assert [a.start_us for a in store.alerts(limit=2)] == [500, 300]
    assert [a.start_us for a in store.alerts(asset="B")] == [300]
    assert [a.start_us for a in store.alerts(since_us=350)] == [500, 300]
    assert [a.start_us for a in store.alerts(since_us=351)] == [500]
    assert len(store.alerts(state="new")) == 3
    assert store.alerts(state="closed") == []
    with pytest.raises(UsageError, match="E2001"):
        store.alerts(limit=0)


def test_reading_a_database_that_is_not_there_makes_no_file(tmp_path):
    store = AlertStore(tmp_path / "none" / "alerts.db")
    assert store.alerts() == []
    assert store.dump() == {}
    with pytest.raises(UsageError, match="there are no alerts"):
        store.alert(1)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_alert_is_refused_with_the_known_range(store):
    store.record_batch(batch(), [episode(100, 190), episode(500, 590)])
    with pytest.raises(UsageError, match=r"1 to 2.*found=7"):
        store.alert(7)


def test_hostile_text_is_stored_as_text(store):
    hostile = "x'); DROP TABLE alerts; --"
    found = episode(100, 190, asset=hostile, tags=((hostile, 1.0), ('"\\é\x01\U0001f600', 0.5)))
    store.record_batch(batch(covered={hostile: (0, 1000)}, file_name=hostile), [found])
    assert store.alerts(asset=hostile)[0].episode() == found


def test_plain_values_are_json_ready(store):
    store.record_batch(batch(), [episode(1_000_000, 2_000_000, score=float("inf"))])
    plain = store.alerts()[0].to_dict()
    assert plain["peak_score"] is None
    assert plain["start"] == "1970-01-01T00:00:01Z"
    assert plain["top_tags"] == [{"tag": "P", "share": 0.75}, {"tag": "Q", "share": 0.25}]


# overlapping logs


def test_an_episode_in_answered_time_is_dropped(store):
    store.record_batch(batch("a" * 64), [episode(100, 190)])
    before = comparable(store)
    store.record_batch(batch("b" * 64, {"A": (50, 900)}), [episode(110, 190, score=9), episode(400, 500)])
    assert comparable(store) == before


def test_an_episode_that_ends_where_the_answer_ends_is_not_yet_answered(store):
    store.record_batch(batch("a" * 64, {"A": (0, 191)}), [])
    store.record_batch(batch("b" * 64, {"A": (0, 300)}), [episode(100, 190)])
    assert spans(store) == []
    store.record_batch(batch("c" * 64, {"A": (0, 400)}), [episode(100, 300)])
    assert len(spans(store)) == 1


def test_time_left_out_of_the_coverage_takes_a_better_answer(store):
    store.record_batch(batch("b" * 64, {"A": [(600, 700), (750, 1000)]}), [])
    store.record_batch(batch("a" * 64, {"A": (0, 800)}), [episode(590, 610), episode(710, 720), episode(760, 770)])
    assert [s[0] for s in spans(store)] == [590, 710]


def test_an_episode_across_the_border_extends_its_alert_and_keeps_the_number(store):
    store.record_batch(batch("a" * 64, {"A": (0, 191)}), [episode(20, 40), episode(150, 190, peak=160, score=5)])
    number = store.alerts(limit=1)[0].id
    store.record_batch(batch("b" * 64, {"A": (170, 400)}), [episode(170, 240, peak=200, score=7, tags=(("R", 1.0),))])
    newest = store.alerts(limit=1)[0]
    assert (newest.id, newest.start_us, newest.peak_us, newest.end_us, newest.rows) == (number, 150, 200, 240, 10)
    assert newest.top_tags == (("R", 1.0),)
    assert newest.first_batch == 1


def test_logs_that_meet_join_episodes_within_the_merge_gap_only(store):
    store.record_batch(batch("a" * 64, {"A": (0, 200)}), [episode(150, 190)])
    store.record_batch(batch("b" * 64, {"A": (200, 400)}), [episode(190 + GAP, 250)])
    assert spans(store) == [(150, 150, 250, 9)]
    store.record_batch(batch("c" * 64, {"A": (400, 600)}), [episode(251 + GAP + 120, 500)])
    assert len(spans(store)) == 2


def test_an_episode_that_bridges_two_alerts_leaves_the_older(store):
    store.record_batch(batch("a" * 64, {"A": (0, 200)}), [episode(150, 190)])
    store.record_batch(batch("c" * 64, {"A": (300, 500)}), [episode(300, 390, score=8)])
    store.record_batch(batch("b" * 64, {"A": (150, 400)}), [episode(150, 390, peak=300, score=8)])
    assert [(a.id, a.start_us, a.end_us, a.peak_us, a.rows) for a in store.alerts()] == [(1, 150, 390, 300, 25)]
    store.record_batch(batch("d" * 64, {"A": (900, 1000)}), [episode(900, 910)])
    assert store.alerts()[0].id == 3  # the number of the alert that was taken in is not given again


def test_coverage_rows_are_joined(store):
    for sha, span in (("a", (0, 100)), ("b", (200, 300)), ("c", (100, 200)), ("d", (50, 60))):
        store.record_batch(batch(sha * 64, {"A": span}), [])
    assert [(r["start_us"], r["end_us"]) for r in store.dump()["coverage"]] == [(0, 300)]


levels = st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.5, 3.0, 4.0, 5.0, 9.0, float("nan")])


def answer(score, start, end):
    """Ledger entry and episodes of the rows [start, end) of one long log."""
    time, part = STEP * np.arange(start, end), score[start:end]
    shares = np.stack([np.arange(start, end) % 5 + 1, np.arange(start, end) % 3], axis=1)
    outcome = np.where(np.isnan(part), "unscorable", "normal").astype(object)
    reason = np.full(len(part), "", object)
    found = find_episodes(time, part, outcome, reason, 3.0, RULES, asset="A", shares=shares, tags=("P", "Q"))
    return batch(f"{start}-{end}", {"A": (int(time[0]), int(time[-1]) + 1)}), found


def recorded(score, *pieces):
    with tempfile.TemporaryDirectory() as folder:
        store = AlertStore(Path(folder) / "alerts.db")
        for start, end in pieces:
            store.record_batch(*answer(score, start, end))
        return comparable(store)


@settings(max_examples=25, deadline=None)
@given(st.lists(levels, min_size=40, max_size=60), st.integers(5, 20), st.integers(5, 15))
def test_overlapping_logs_give_the_same_alerts_in_any_order(values, start, overlap):
    score, end = np.array(values), start + overlap
    first, second = (0, end), (start, len(score))
    assert recorded(score, first, second) == recorded(score, second, first)


@settings(max_examples=25, deadline=None)
@given(st.lists(levels, min_size=60, max_size=80), st.integers(5, 20), st.integers(0, 15))
def test_overlapping_logs_give_the_alerts_of_the_whole_log(values, start, between):
    # quiet for longer than the merge gap where each of the two begins or ends: every episode is whole in one of them
    score, end = np.array(values), start + between + 8
    score[start : start + 4] = score[end - 4 : end] = 0
    first, second = (0, end), (start, len(score))
    whole = recorded(score, (0, len(score)))
    assert recorded(score, first, second) == whole == recorded(score, second, first)


@settings(max_examples=25, deadline=None)
@given(st.lists(levels, min_size=30, max_size=50), st.integers(0, 25), st.integers(1, 25))
def test_a_part_of_an_answered_log_changes_nothing(values, start, length):
    score = np.array(values)
    part = (start, min(start + length, len(score)))
    assert recorded(score, (0, len(score)), part) == recorded(score, (0, len(score)))


def test_an_episode_cut_by_both_logs_is_one_alert_with_its_rows_once():
    score = np.zeros(40)
    score[5:35] = 4.0
    score[20] = 8.0
    whole, both = recorded(score, (0, 40)), recorded(score, (0, 22), (15, 40))
    for row in (*whole, *both):
        row.pop("top_tags")  # of the view with the higher peak or more rows: averaged over other rows than the whole's
    assert both == whole
    assert (both[0]["rows"], both[0]["peak_us"]) == (30, 200)

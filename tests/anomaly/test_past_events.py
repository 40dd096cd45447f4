"""What an alert looks like: nearest past events and normal operation, against brute force (METHODS S11, S52)."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.scores.past_events import PastWindows

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(60, 4)).astype(np.float32)
EVENTS = (RNG.normal(size=(5, 4)) + np.array([8, 0, 0, 0])).astype(np.float32)


def past() -> PastWindows:
    embeddings = np.concatenate((NORMAL, EVENTS))
    asset = np.array([f"P-{i % 2}" for i in range(65)], dtype=object)
    return PastWindows(embeddings, np.arange(65) * 1_000_000, asset, np.arange(65) >= 60)


def test_the_nearest_are_those_of_brute_force_events_first():
    held, asked = past(), np.array([7.5, 0.2, -0.1, 0.0], np.float32)
    found = held.nearest(asked, events=3, normal=2)
    assert [a.event for a in found] == [True, True, True, False, False]
    scale = NORMAL.std(axis=0)
    for wanted, block, first in ((found[:3], EVENTS, 60), (found[3:], NORMAL, 0)):
        gaps = np.linalg.norm((block - asked) / scale, axis=1)
        order = np.argsort(gaps)[: len(wanted)]
        assert [a.time_us for a in wanted] == [(first + int(i)) * 1_000_000 for i in order]
        np.testing.assert_allclose([a.distance * held.unit for a in wanted], gaps[order], rtol=1e-5)


def test_a_distance_of_one_is_as_near_as_normal_operation_is_to_itself():
    scaled = NORMAL / NORMAL.std(axis=0)
    gaps = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert past().unit == pytest.approx(np.median(gaps.min(axis=1)), rel=1e-4)


def test_the_state_gives_the_same_answers():
    held = past()
    again = PastWindows.from_state(*held.to_state())
    assert again.nearest(NORMAL[7]) == held.nearest(NORMAL[7])
    assert len(PastWindows.none()) == 0
    assert PastWindows.none().nearest(np.zeros(1, np.float32)) == []


def test_constant_embeddings_and_few_windows_have_a_distance():
    same = PastWindows(np.ones((5, 2), np.float32), np.arange(5), np.full(5, "A", object), np.zeros(5, bool))
    assert same.nearest(np.array([1.0, 1.0], np.float32))[0].distance == 0
    assert np.isfinite(same.nearest(np.array([3.0, 1.0], np.float32))[0].distance)

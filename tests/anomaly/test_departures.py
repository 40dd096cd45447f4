"""Departures from the recent past: the closed form, any cut of the log, and the detector that scores them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from anomaly.data.departures import departures
from anomaly.detectors.base import Encoded
from anomaly.detectors.local import LocalDetector

RNG = np.random.default_rng(0)
LEVELS = RNG.standard_normal((500, 3)).astype(np.float32)
SINCE = np.concatenate((np.arange(200), np.arange(300)))
TRAIL = 16


def test_a_departure_is_from_the_mean_of_the_rows_before_it_in_its_segment() -> None:
    found = departures(LEVELS, SINCE, TRAIL)
    for i in (0, 1, 5, 100, 199, 200, 203, 400):
        low = max(i - TRAIL, i - SINCE[i])
        wanted = LEVELS[i] - LEVELS[low:i].mean(axis=0) if i > low else np.zeros(3)
        np.testing.assert_allclose(found[i], wanted, atol=1e-5)


@pytest.mark.parametrize("cuts", [(130, 210), (1, 2, 3), (16, 199, 200, 201, 499)])
def test_any_cut_of_a_log_gives_the_same_bits(cuts: tuple[int, ...]) -> None:
    edges = [0, *cuts, len(LEVELS)]
    parts = [departures(LEVELS[a:b], SINCE[a:b], TRAIL, LEVELS[max(a - TRAIL, 0) : a]) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), departures(LEVELS, SINCE, TRAIL))


def test_rows_that_are_not_counted_move_no_mean() -> None:
    events = np.zeros(len(LEVELS), dtype=bool)
    events[[50, 51, 52, 260]] = True
    altered = np.where(events[:, None], np.float32(1e6), LEVELS)
    found, other = (departures(rows, SINCE, TRAIL, counted=~events) for rows in (LEVELS, altered))
    np.testing.assert_array_equal(found[~events], other[~events])
    wanted = LEVELS[56] - np.concatenate((LEVELS[40:50], LEVELS[53:56])).mean(axis=0)
    np.testing.assert_allclose(found[56], wanted, atol=1e-5)
    assert (departures(LEVELS, SINCE, TRAIL, counted=np.zeros(len(LEVELS), bool)) == 0).all()


def test_a_slow_drift_departs_little_and_a_step_departs_by_its_size() -> None:
    drift = np.linspace(0, 50, 5000, dtype=np.float32)[:, None]
    step = np.where(np.arange(5000) < 4000, drift[:, 0], drift[:, 0] + 3)[:, None].astype(np.float32)
    since = np.arange(5000)
    assert np.abs(departures(drift, since, 64)[100:]).max() < 0.4
    assert departures(step, since, 64)[4000, 0] == pytest.approx(3, abs=0.4)


def test_a_trail_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="trail: expected at least 1"):
        departures(LEVELS, SINCE, 0)


def block(local: np.ndarray) -> Encoded:
    return Encoded(np.zeros_like(local), local=local)


def test_the_local_detector_names_the_tag_that_departed_and_no_other_drowns_it() -> None:
    normal = 0.1 * RNG.standard_normal((2000, 8, 3)).astype(np.float32)
    detector = LocalDetector().fit([block(normal)])
    broken = normal[:50].copy()
    broken[:, -1, 1] += 2.0
    shares = detector.shares(block(broken))
    assert (shares.argmax(axis=1) == 1).all()
    usual = detector.anomaly_score(block(normal))
    assert detector.anomaly_score(block(broken)).min() > np.quantile(usual, 0.99)


def test_a_tag_that_never_departed_keeps_the_scale_of_its_level() -> None:
    normal = np.zeros((100, 4, 2), np.float32)
    normal[:, :, 0] = RNG.standard_normal((100, 4))
    detector = LocalDetector().fit([block(normal)])
    assert detector.scale_[1] == 1
    moved = np.zeros((1, 4, 2), np.float32)
    moved[:, :, 1] = 3.0
    assert detector.anomaly_score(block(moved))[0] == pytest.approx(9)
    mean = LocalDetector(over="mean").fit([block(normal)])
    assert mean.anomaly_score(block(moved))[0] == pytest.approx(9 / 2)


def test_the_farthest_tag_is_the_score_and_the_others_have_their_share_of_it() -> None:
    normal = RNG.standard_normal((500, 8, 3)).astype(np.float32)
    both = [LocalDetector(half_life=None, over=over).fit([block(normal)]) for over in ("max", "mean")]
    highest, mean = (detector.shares(block(normal)) for detector in both)
    np.testing.assert_allclose(highest.sum(axis=1), 3 * mean.max(axis=1))
    np.testing.assert_allclose(highest / highest.sum(axis=1, keepdims=True), mean / mean.sum(axis=1, keepdims=True))
    with pytest.raises(ValueError, match="over: expected one of max, mean"):
        LocalDetector(over="median")

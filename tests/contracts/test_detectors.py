"""Promises that every detector keeps (METHODS S51–S55)."""

from __future__ import annotations

import numpy as np
import pytest
from instances import DETECTORS

from anomaly.detectors import DETECTORS as NAMED
from anomaly.detectors import build_detector, detector_class
from anomaly.detectors.base import Encoded
from anomaly.errors import UsageError

WINDOWS = np.random.default_rng(1).normal(size=(200, 4, 3)).astype(np.float32)


def encoded(windows: np.ndarray) -> Encoded:
    """Windows whose reconstruction is zero and whose embedding is themselves, flattened."""
    flat = windows.reshape(len(windows), -1)
    return Encoded(windows, embedding=flat, residual=windows, again=lambda other, _: encoded(other), local=windows)


BLOCK = encoded(WINDOWS)


@pytest.fixture(params=DETECTORS, ids=lambda d: f"{d.name}-{d.to_state()[0]}")
def detector(request):
    return request.param.fit([BLOCK])


def test_fit_returns_the_detector_and_scores_have_one_value_per_row(detector):
    before = WINDOWS.copy()
    assert detector.fit([BLOCK]) is detector
    assert detector.anomaly_score(BLOCK).shape == (len(BLOCK),)
    np.testing.assert_array_equal(WINDOWS, before)


def test_a_planted_outlier_scores_above_every_normal_row_and_is_its_sensors_doing(detector):
    windows = WINDOWS[:1].copy()
    windows[:, :, 1] += 30
    outlier = encoded(windows)
    assert detector.anomaly_score(outlier)[0] > detector.anomaly_score(BLOCK).max()
    assert detector.shares(outlier)[0].argmax() == 1


def test_shares_add_up_to_the_score(detector):
    np.testing.assert_allclose(detector.shares(BLOCK).sum(axis=1), detector.anomaly_score(BLOCK), rtol=1e-9)


def test_a_state_gives_the_same_scores(detector):
    again = type(detector).from_state(*detector.to_state())
    np.testing.assert_array_equal(again.anomaly_score(BLOCK), detector.anomaly_score(BLOCK))


def test_a_non_finite_block_is_refused_by_window(detector):
    bad = WINDOWS.copy()
    bad[7, 0, 0] = np.nan
    with pytest.raises(ValueError, match="window 7"):
        detector.anomaly_score(encoded(bad))
    if detector.needs != "windows":
        with pytest.raises(ValueError, match=f"its {detector.needs}"):
            detector.anomaly_score(Encoded(WINDOWS))


def test_names():
    assert {detector_class(n).name for n in NAMED} == {d.name for d in DETECTORS}
    with pytest.raises(UsageError, match="reconstruction"):
        detector_class("reconstruct")
    with pytest.raises(UsageError, match="neighbours"):
        build_detector("knn", neighbours=3)
    with pytest.raises(UsageError, match="at least 1"):
        build_detector("knn", k=0)

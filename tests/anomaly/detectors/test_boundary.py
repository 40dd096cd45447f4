"""Boundaries around normal embeddings (METHODS S54)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.ensemble import IsolationForest
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import SGDOneClassSVM
from sklearn.svm import OneClassSVM

from anomaly.detectors import boundary
from anomaly.detectors.base import Encoded
from anomaly.detectors.boundary import IsolationForestDetector, OneClassSvmDetector, mean_path

RNG = np.random.default_rng(4)
WINDOWS = (RNG.normal(size=(900, 2, 3)) * [1.0, 5.0, 0.2] + 3).astype(np.float32)


def encoded(windows: np.ndarray) -> Encoded:
    flat = windows.reshape(len(windows), int(np.prod(windows.shape[1:])))
    return Encoded(windows, embedding=flat, again=lambda other, _: encoded(other))


BLOCKS = [encoded(WINDOWS[low : low + 150]) for low in range(0, 900, 150)]
FLAT = WINDOWS.reshape(900, -1)
ASKED = encoded(np.concatenate((WINDOWS, WINDOWS[:200] * 1.7)))
MEAN, SCALE = FLAT.mean(axis=0, dtype=np.float64), FLAT.std(axis=0, dtype=np.float64)
NORMAL, POINTS = (FLAT - MEAN) / SCALE, (ASKED.embedding - MEAN) / SCALE


@pytest.mark.parametrize(("trees", "sample"), [(100, 256), (7, 2), (20, 100), (10, 900), (10, 4096)])
def test_s54_forest_equals_scikit_learn(trees, sample):
    detector = IsolationForestDetector(trees, sample, seed=9).fit(BLOCKS)
    peer = IsolationForest(n_estimators=trees, max_samples=min(sample, 900), random_state=9).fit(FLAT)
    np.testing.assert_allclose(detector.anomaly_score(ASKED), -peer.score_samples(ASKED.embedding), rtol=0, atol=1e-9)


def test_s54_a_row_on_a_threshold_goes_where_scikit_learn_sends_it():
    grid = RNG.integers(4, size=(500, 2, 3)).astype(np.float32) / 3
    detector = IsolationForestDetector(seed=1).fit([encoded(grid)])
    peer = IsolationForest(max_samples=256, random_state=1).fit(grid.reshape(500, -1))
    limits = np.unique(detector.limits_[np.isfinite(detector.limits_)])
    values = np.concatenate([limits, np.nextafter(limits, np.float32(9)), np.nextafter(limits, np.float32(-9))])
    asked = encoded(RNG.choice(values, size=(2000, 2, 3)))
    np.testing.assert_allclose(detector.anomaly_score(asked), -peer.score_samples(asked.embedding), rtol=0, atol=1e-9)


def test_s54_mean_path_is_the_expected_depth_of_random_cuts():
    """Binary search trees of random insertions: 2 (H(n) − 1) for an unsuccessful search, H by logarithm."""
    harmonic = np.log(99) + np.euler_gamma
    assert mean_path(np.array([100]))[0] == pytest.approx(2 * harmonic - 2 * 99 / 100)
    assert mean_path(np.array([0, 1, 2])).tolist() == [0, 0, 1]


def test_s54_exact_machine_equals_scikit_learn():
    detector = OneClassSvmDetector(nu=0.1).fit(BLOCKS)
    peer = OneClassSVM(kernel="rbf", gamma=1 / 6, nu=0.1, tol=1e-5).fit(NORMAL)
    np.testing.assert_allclose(detector.anomaly_score(ASKED), -peer.decision_function(POINTS), rtol=0, atol=1e-6)


def test_s54_approximate_machine_equals_scikit_learn():
    detector = OneClassSvmDetector(exact_limit=899, seed=3).fit(BLOCKS)
    landmarks = Nystroem(gamma=1 / 6, n_components=300, random_state=3)
    peer = SGDOneClassSVM(nu=0.05, random_state=3).fit(landmarks.fit_transform(NORMAL))
    expected = -peer.decision_function(landmarks.transform(POINTS))
    np.testing.assert_allclose(detector.anomaly_score(ASKED), expected, rtol=0, atol=1e-6)


def test_s54_the_row_limit_decides_and_both_sides_agree():
    exact, near = (OneClassSvmDetector(exact_limit=limit).fit(BLOCKS) for limit in (900, 899))
    assert len(near.support_) == 300
    both = [one.anomaly_score(ASKED) for one in (exact, near)]
    assert spearmanr(*both).statistic > 0.9


def test_s54_nu_lies_between_the_rows_outside_and_the_rows_not_inside():
    """The property that gives nu its meaning (Schölkopf et al. 2001, proposition 3); rows on the boundary are either."""
    for nu in (0.02, 0.2):
        scores = OneClassSvmDetector(nu).fit(BLOCKS).anomaly_score(encoded(WINDOWS))
        assert (scores > 1e-3).mean() <= nu <= (scores > -1e-3).mean()


MAKES = [
    IsolationForestDetector,
    OneClassSvmDetector,
    lambda: OneClassSvmDetector(exact_limit=0),
]


@pytest.mark.parametrize("make", MAKES, ids=["forest", "exact", "approximate"])
def test_s54_sign_is_unified_and_fits_repeat(make):
    detector = make().fit(BLOCKS)
    scores = detector.anomaly_score(encoded(np.stack([MEAN.reshape(2, 3), FLAT.max(axis=0).reshape(2, 3) + 9])))
    assert scores[1] > np.quantile(detector.anomaly_score(encoded(WINDOWS)), 0.99) > scores[0]
    np.testing.assert_array_equal(make().fit(BLOCKS).anomaly_score(ASKED), detector.anomaly_score(ASKED))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "normal",
    [np.ones((30, 2, 3)), np.repeat(WINDOWS[:2], 15, axis=0), WINDOWS[:2], WINDOWS[:60] * [1, 1, 0] + 7],
    ids=["constant", "duplicates", "two-rows", "still-sensor"],
)
@pytest.mark.parametrize("make", MAKES, ids=["forest", "exact", "approximate"])
def test_s54_degenerate_normal_windows_give_finite_scores(make, normal):
    normal = normal.astype(np.float32)
    detector = make().fit([encoded(normal[:1]), encoded(normal[1:])])
    base, moved = (detector.anomaly_score(encoded(w)) for w in (normal, normal[:1] + np.float32(50)))
    assert np.isfinite(base).all()
    assert np.isfinite(moved).all()
    assert moved[0] >= base.min()
    again = type(detector).from_state(*detector.to_state())
    np.testing.assert_array_equal(again.anomaly_score(encoded(normal)), base)


def test_s54_rows_beyond_the_limits_are_sampled(monkeypatch):
    monkeypatch.setattr(boundary, "_FOREST_ROWS", 50)
    monkeypatch.setattr(boundary, "_MACHINE_ROWS", 60)
    forest = IsolationForestDetector(trees=3).fit(BLOCKS)
    assert forest.lengths_.shape == (3, 64)  # 50 rows: depth 6
    assert len(OneClassSvmDetector(exact_limit=59).fit(BLOCKS).support_) == 60


def test_scoring_starts_without_scikit_learn():
    code = "import sys, anomaly.detectors.boundary, anomaly.detectors.density; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bad_input_is_named():
    for wrong, match in (
        (lambda: IsolationForestDetector(trees=0), "trees: expected at least 1, got 0"),
        (lambda: IsolationForestDetector(sample=1), "sample: expected 2 to 4096"),
        (lambda: IsolationForestDetector(sample=5000), "sample: expected 2 to 4096"),
        (lambda: OneClassSvmDetector(nu=0), "nu: expected a share between 0 and 1, got 0"),
        (lambda: OneClassSvmDetector(exact_limit=10**6), "exact_limit: expected 0 to 20000"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()
    for make in MAKES:
        with pytest.raises(ValueError, match="blocks: expected"):
            make().fit([])
        with pytest.raises(ValueError, match="at least 2 normal windows, got 1"):
            make().fit([encoded(WINDOWS[:1])])

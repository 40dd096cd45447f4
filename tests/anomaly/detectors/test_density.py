"""Density of normal embeddings (METHODS S53)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from anomaly.detectors.base import Encoded
from anomaly.detectors.density import GmmDetector, KdeDetector

RNG = np.random.default_rng(3)
WINDOWS = (RNG.normal(size=(600, 2, 3)) * [1.0, 5.0, 0.2] + 3).astype(np.float32)
WINDOWS[::3, :, 1] += 40


def encoded(windows: np.ndarray) -> Encoded:
    flat = windows.reshape(len(windows), int(np.prod(windows.shape[1:])))
    return Encoded(windows, embedding=flat, again=lambda other, _: encoded(other))


BLOCKS = [encoded(WINDOWS[low : low + 150]) for low in range(0, 600, 150)]
FLAT = WINDOWS.reshape(600, -1).astype(np.float64)
MEAN, SCALE = FLAT.mean(axis=0), FLAT.std(axis=0)
ASKED = encoded(np.concatenate((WINDOWS[:50], WINDOWS[:20] * 1.5, WINDOWS[:5] + 500)))
POINTS = (ASKED.embedding - MEAN) / SCALE


@pytest.mark.parametrize("components", [1, 2, 4])
def test_s53_gmm_equals_scikit_learn(components):
    detector = GmmDetector(components, seed=5).fit(BLOCKS)
    peer = GaussianMixture(components, reg_covar=1e-3, random_state=5, max_iter=300).fit((FLAT - MEAN) / SCALE)
    expected = -peer.score_samples(POINTS) + np.log(SCALE).sum()
    np.testing.assert_allclose(detector.anomaly_score(ASKED), expected, rtol=1e-6, atol=1e-6)


def test_s53_one_component_is_the_closed_form_in_units_of_the_embedding():
    floor = np.diag(1e-3 * SCALE**2)
    expected = -multivariate_normal(MEAN, np.cov(FLAT.T, bias=True) + floor).logpdf(ASKED.embedding)
    np.testing.assert_allclose(GmmDetector(1).fit(BLOCKS).anomaly_score(ASKED), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bandwidth", ["scott", 0.3, 2])
def test_s53_kde_equals_scikit_learn(bandwidth):
    detector = KdeDetector(bandwidth=bandwidth).fit(BLOCKS)
    # One leaf: where trees bound their kernels, scikit-learn's far log densities differ from their own sums by tens.
    peer = KernelDensity(bandwidth=bandwidth, leaf_size=1000).fit((FLAT - MEAN) / SCALE)
    expected = -peer.score_samples(POINTS) + np.log(SCALE).sum()
    np.testing.assert_allclose(detector.anomaly_score(ASKED), expected, rtol=1e-6, atol=1e-6)


def test_s53_kde_bank_is_a_bounded_sample_of_real_rows():
    detector = KdeDetector(bank=100).fit(BLOCKS)
    rows = detector.rows_ * detector.scale_ + detector.mean_
    assert rows.shape == (100, 6)
    assert np.abs(rows[:, None] - FLAT).max(axis=2).min(axis=1).max() < 1e-5
    assert detector.width == pytest.approx(100 ** (-1 / 10))


@pytest.mark.parametrize("make", [GmmDetector, KdeDetector])
def test_s53_score_rises_away_from_the_mass_and_repeats(make):
    detector = make().fit(BLOCKS)
    steps = np.stack([WINDOWS[1] * [1, 1, 1] + [0, 0, step] for step in (0, 2, 4, 8, 1000)]).astype(np.float32)
    scores = detector.anomaly_score(encoded(steps))
    assert (np.diff(scores) > 0).all()
    np.testing.assert_array_equal(make().fit(BLOCKS).anomaly_score(ASKED), detector.anomaly_score(ASKED))


def test_s53_between_two_clouds_is_less_dense_than_in_either():
    clouds = np.where(np.arange(400)[:, None, None] % 2, 5.0, -5.0) + RNG.normal(size=(400, 2, 1)) * 0.5
    clouds = clouds.astype(np.float32)
    middle = np.array([[[-5.0], [-5.0]], [[5.0], [5.0]], [[0.0], [0.0]]], np.float32)
    for detector in (GmmDetector(2), KdeDetector()):
        left, right, between = detector.fit([encoded(clouds)]).anomaly_score(encoded(middle))
        assert between > max(left, right) + 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "normal",
    [
        np.ones((30, 2, 3)),
        np.repeat(WINDOWS[:2], 15, axis=0),
        WINDOWS[:4],
        WINDOWS[:60] * [1, 1, 0] + 7,
        WINDOWS[:60, :, [0, 0, 0]],
    ],
    ids=["constant", "duplicates", "four-rows", "still-sensor", "dependent"],
)
@pytest.mark.parametrize("make", [GmmDetector, KdeDetector])
def test_s53_degenerate_covariance_gives_finite_scores_that_still_rise(make, normal):
    normal = normal.astype(np.float32)
    detector = make().fit([encoded(normal[:1]), encoded(normal[1:])])
    base, moved = (detector.anomaly_score(encoded(w)) for w in (normal, normal[:1] + np.float32(50)))
    assert np.isfinite(base).all()
    assert np.isfinite(moved).all()
    assert moved[0] > base.max()
    noise = encoded(normal * np.float32(1 + 1e-6))
    np.testing.assert_allclose(detector.anomaly_score(noise), base, atol=0.05)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"components: expected at most the number .* got 4 for 3; give a longer log"):
        GmmDetector().fit([encoded(WINDOWS[:3])])
    with pytest.raises(ValueError, match="got 1 for 1"):
        GmmDetector(1).fit([encoded(WINDOWS[:1])])
    with pytest.raises(ValueError, match="components: expected at least 1"):
        GmmDetector(0)
    with pytest.raises(ValueError, match="bank: expected at least 1"):
        KdeDetector(bank=0)
    for bandwidth in ("silverman", 0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="bandwidth: expected"):
            KdeDetector(bandwidth=bandwidth)
    for detector in (GmmDetector(), KdeDetector()):
        with pytest.raises(ValueError, match="blocks: expected normal windows"):
            detector.fit([])

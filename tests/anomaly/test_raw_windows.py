"""Detectors of raw windows: the principal subspace against scikit-learn, the bank against brute force (METHODS S8, S52)."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from anomaly.detectors.base import Encoded
from anomaly.detectors.raw_windows import SubspaceDetector, WindowKnnDetector

RNG = np.random.default_rng(0)
LATENT = RNG.normal(size=(3000, 3)) @ RNG.normal(size=(3, 20))
WINDOWS = (1000 + LATENT + 0.1 * RNG.normal(size=(3000, 20))).astype(np.float32).reshape(3000, 5, 4)


def test_s8_the_subspace_residual_is_that_of_scikit_learn_whatever_the_blocks():
    rows = WINDOWS.reshape(3000, -1)[:, ::-1].astype(np.float64)
    pca = PCA(0.9, svd_solver="full").fit(rows)
    wanted = ((rows - pca.inverse_transform(pca.transform(rows))) ** 2).mean(axis=1)
    for size in (3000, 7):
        blocks = [Encoded(WINDOWS[i : i + size]) for i in range(0, 3000, size)]
        detector = SubspaceDetector(0.9, half_life=None).fit(blocks)
        assert len(detector.components_) == pca.n_components_
        np.testing.assert_allclose(detector.anomaly_score(Encoded(WINDOWS)), wanted, rtol=0.02, atol=1e-3)


def test_a_coupling_that_breaks_is_seen_though_every_value_is_usual():
    detector = SubspaceDetector().fit([Encoded(WINDOWS)])
    broken = WINDOWS[:200].copy()
    broken[:, :, 2] = WINDOWS[1000:1200, :, 2]
    assert np.median(detector.anomaly_score(Encoded(broken))) > 20 * np.median(detector.anomaly_score(Encoded(WINDOWS)))


def test_a_wide_window_is_thinned_in_time_and_keeps_its_last_row():
    windows = RNG.normal(size=(50, 300, 40)).astype(np.float32)
    detector = SubspaceDetector().fit([Encoded(windows)])
    assert len(detector.mean_) == 25 * 40
    changed = windows[:1].copy()
    changed[0, -1, 7] += 50
    assert detector.anomaly_score(Encoded(changed))[0] > detector.anomaly_score(Encoded(windows[:1]))[0] + 0.1


def test_constant_and_too_few_windows():
    still = np.ones((30, 2, 2), np.float32)
    detector = SubspaceDetector().fit([Encoded(still)])
    assert detector.anomaly_score(Encoded(still)).max() < 1e-9
    assert detector.anomaly_score(Encoded(still + 1))[0] > 0.1
    with pytest.raises(ValueError, match="at least 2 normal windows, got 1"):
        SubspaceDetector().fit([Encoded(still[:1])])
    with pytest.raises(ValueError, match="variance: expected a share between 0 and 1, got 1"):
        SubspaceDetector(1)


def test_s52_the_bank_of_windows_is_brute_force_on_flat_windows():
    detector = WindowKnnDetector(k=3, bank=5000, half_life=None).fit([Encoded(WINDOWS - 1000)])
    asked = (WINDOWS[:100] - 1000 + RNG.normal(size=(100, 5, 4))).astype(np.float32)
    flat = (WINDOWS - 1000).reshape(3000, -1)
    found, _ = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(flat).kneighbors(asked.reshape(100, -1))
    np.testing.assert_allclose(detector.anomaly_score(Encoded(asked)), found.mean(axis=1), rtol=1e-3)


@pytest.mark.parametrize("make", [WindowKnnDetector, partial(SubspaceDetector, 0.3)])
def test_a_short_fault_counts_most_in_the_newest_row_and_none_counts_rows_alike(make):
    windows = RNG.normal(size=(2000, 8, 3)).astype(np.float32)
    old, new = (windows[:300].copy() for _ in range(2))
    old[:, 0, 1] += 4
    new[:, -1, 1] += 4
    weighted, plain = (make(half_life=h).fit([Encoded(windows)]) for h in (1.0, None))
    scores = {h: [d.anomaly_score(Encoded(w)).mean() for w in (old, new)] for h, d in (("w", weighted), ("p", plain))}
    assert scores["w"][1] > 1.3 * scores["w"][0]
    assert scores["p"][1] == pytest.approx(scores["p"][0], rel=0.2)

"""Distances to normal embeddings: nearest neighbours (METHODS S52) and centroid (S51)."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import cdist, cosine, mahalanobis
from sklearn.covariance import OAS

from anomaly.detectors.base import Encoded
from anomaly.detectors.centroid import METRICS, CentroidDetector
from anomaly.detectors.distance import KnnDetector
from anomaly.detectors.moments import Moments, shrunk
from anomaly.detectors.neighbours import nearest_in_bank, smallest, squared_distances

RNG = np.random.default_rng(2)
WINDOWS = (RNG.normal(size=(700, 4, 3)) + 0.5).astype(np.float32)
WINDOWS[::9, :, 2] += 6


def encoded(windows: np.ndarray) -> Encoded:
    return Encoded(windows, embedding=windows.reshape(len(windows), int(np.prod(windows.shape[1:]))))


BLOCKS = [encoded(WINDOWS[low : low + 100]) for low in range(0, 700, 100)]
FLAT = WINDOWS.reshape(700, -1).astype(np.float64)
ASKED = encoded(RNG.normal(size=(90, 4, 3)).astype(np.float32) * 2)


@pytest.mark.parametrize("rows", [3, 70, 700, 3001])
@pytest.mark.parametrize("level", [0, 300])
def test_s52_equals_brute_force(rows, level):
    bank = (RNG.normal(size=(rows, 8)) + level).astype(np.float32)
    points = (RNG.normal(size=(333, 8)) + level).astype(np.float32)
    distances, positions = nearest_in_bank(points, bank, 3)
    every = cdist(points.astype(float), bank.astype(float))
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :3], rtol=1e-6)
    np.testing.assert_array_equal(positions, np.argsort(every, axis=1)[:, :3])


@pytest.mark.parametrize(("m", "k"), [(5, 9), (5, 5), (100, 3), (1000, 3), (1001, 7), (1000, 400)])
def test_s52_smallest_finds_the_same_values_as_a_sort(m, k):
    for values in (RNG.normal(size=(40, m)), RNG.integers(3, size=(40, m)).astype(float), np.zeros((4, m))):
        found = smallest(values, k)
        assert all(len(set(row)) == min(k, m) for row in found.tolist())
        got = np.sort(np.take_along_axis(values, found, axis=1), axis=1)
        np.testing.assert_array_equal(got, np.sort(values, axis=1)[:, :k])


@pytest.mark.parametrize("coreset", ["random", "greedy", "kmeans"])
def test_s52_a_training_row_does_not_match_itself(coreset):
    detector = KnnDetector(k=2, bank=200, coreset=coreset).fit(BLOCKS)
    bank = detector.embeddings_.astype(float)
    every = cdist(bank, bank)
    np.fill_diagonal(every, np.inf)
    np.testing.assert_allclose(detector.bank_scores(), np.sort(every, axis=1)[:, :2].mean(axis=1), rtol=1e-6)
    own = nearest_in_bank(detector.embeddings_, detector.embeddings_, 1)[0]
    assert own.max() == 0


def test_s52_of_duplicates_one_leaves_itself_out_and_matches_the_other():
    bank = np.repeat(np.array([[1.0], [4.0]], np.float32), 20, axis=0)
    distances, positions = nearest_in_bank(bank, bank, 2, leave_out_self=True)
    assert distances.max() == 0
    assert not (positions == np.arange(40)[:, None]).any()
    with pytest.raises(ValueError, match="expected at least 1 neighbour and 2 rows"):
        nearest_in_bank(bank[:1], bank[:1], 1, leave_out_self=True)
    with pytest.raises(ValueError, match="points: expected the 40 rows"):
        nearest_in_bank(bank[:3], bank, 1, leave_out_self=True)


def test_s52_k_larger_than_the_bank_uses_all_of_it():
    few = KnnDetector(k=10).fit([encoded(WINDOWS[:4])])
    every = cdist(ASKED.embedding / few.scale_, few.embeddings_).mean(axis=1)
    np.testing.assert_allclose(few.anomaly_score(ASKED), every, rtol=1e-5)


def test_s52_memory_is_bounded_by_tiles_and_by_the_coreset():
    bank, points = (RNG.normal(size=(n, 16)).astype(np.float32) for n in (10_000, 8_000))
    tracemalloc.start()
    nearest_in_bank(points, bank, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20  # 320 MB for all distances at once
    wide = RNG.normal(size=(60, 3000)).astype(np.float32)
    tracemalloc.start()
    nearest_in_bank(np.tile(wide, (40, 1)), wide, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20  # 28.8 MB of them are the points; differences to six neighbours at once would be 173 MB
    for coreset in ("greedy", "kmeans"):
        assert len(KnnDetector(bank=50, coreset=coreset).fit(BLOCKS).windows_) == 50


@pytest.mark.parametrize("coreset", ["greedy", "kmeans"])
def test_s52_a_coreset_keeps_the_windows_of_its_rows_and_round_trips(coreset):
    detector = KnnDetector(bank=80, coreset=coreset).fit(BLOCKS)
    np.testing.assert_array_equal(detector.windows_.reshape(80, -1) / detector.scale_, detector.embeddings_)
    settings, arrays = detector.to_state()
    assert settings["coreset"] == coreset
    again = KnnDetector.from_state(settings, arrays)
    np.testing.assert_array_equal(again.anomaly_score(ASKED), detector.anomaly_score(ASKED))
    np.testing.assert_array_equal(again.shares(ASKED), detector.shares(ASKED))
    with pytest.raises(ValueError, match="coreset: expected one of random, greedy, kmeans, got 'best'"):
        KnnDetector(coreset="best")


def test_s52_greedy_remembers_a_state_that_a_sample_forgets():
    rare = encoded(WINDOWS[:1] + 40)
    blocks = [*BLOCKS, rare]
    greedy = KnnDetector(k=1, bank=20, coreset="greedy").fit(blocks).anomaly_score(rare)[0]
    assert greedy == 0
    assert KnnDetector(k=1, bank=20).fit(blocks).anomaly_score(rare)[0] > 1


def test_squared_distances_are_never_negative():
    near = (RNG.normal(size=(50, 4)) * 1e-4 + 100).astype(np.float32)
    assert squared_distances(near, near).min() >= 0


def test_s51_centroid_equals_its_closed_forms():
    centre = FLAT.mean(axis=0)
    asked = ASKED.embedding.astype(np.float64)
    got = {metric: CentroidDetector(metric).fit(BLOCKS).anomaly_score(ASKED) for metric in METRICS}
    np.testing.assert_allclose(got["euclidean"], np.linalg.norm(asked - centre, axis=1), rtol=1e-6)
    np.testing.assert_allclose(got["cosine"], [cosine(row, centre) for row in asked], rtol=1e-5, atol=1e-7)
    deviation = FLAT.std(axis=0)
    inverse = np.linalg.inv(OAS().fit(FLAT / deviation).covariance_)
    expected = [mahalanobis(row / deviation, centre / deviation, inverse) for row in asked]
    np.testing.assert_allclose(got["mahalanobis"], expected, rtol=1e-5)


def test_s51_moments_and_shrinkage_equal_the_references():
    moments = Moments()
    for low in range(0, 700, 130):
        moments.add(FLAT[low : low + 130] + 1e6)
    np.testing.assert_allclose(moments.mean, FLAT.mean(axis=0) + 1e6, rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov((FLAT + 1e6).T, bias=True), rtol=1e-6, atol=1e-8)
    for n in (5, 30, 700):
        np.testing.assert_allclose(
            shrunk(np.cov(FLAT[:n].T, bias=True), n), OAS().fit(FLAT[:n]).covariance_, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("metric", METRICS)
def test_s51_larger_is_more_anomalous(metric):
    detector = CentroidDetector(metric).fit(BLOCKS)
    centre, away = FLAT.mean(axis=0), np.zeros(12)
    away[[0, 7]] = 3.0, -3.0
    path = np.stack([centre + step * away for step in (0, 0.5, 1, 2, 4)]).astype(np.float32)
    scores = detector.anomaly_score(encoded(path.reshape(-1, 4, 3)))
    assert (np.diff(scores) > 0).all()
    assert scores[0] == pytest.approx(0, abs=1e-4)


def test_s51_shares_name_the_sensor_and_add_up():
    for metric in METRICS:
        detector = CentroidDetector(metric).fit(BLOCKS)
        window = WINDOWS.mean(axis=0, keepdims=True)
        window[:, :, 1] += 5
        shares = detector.shares(encoded(window))
        assert shares[0, 1] > 0.99 * shares[0].sum()
        np.testing.assert_allclose(shares.sum(axis=1), detector.anomaly_score(encoded(window)))


@pytest.mark.parametrize(
    "normal",
    [np.ones((30, 4, 3)), np.repeat(WINDOWS[:2], 15, axis=0), WINDOWS[:2], WINDOWS[:30] * [1, 1, 0]],
    ids=["constant", "duplicates", "two-rows", "still-sensor"],
)
@pytest.mark.parametrize("make", [*METRICS, "knn", "greedy", "kmeans"])
def test_degenerate_normal_windows_give_finite_scores_that_still_rise(make, normal):
    detector = CentroidDetector(make) if make in METRICS else None
    detector = detector or KnnDetector(bank=5, coreset="random" if make == "knn" else make)
    normal = normal.astype(np.float32)
    detector.fit([encoded(normal[:1]), encoded(normal[:0]), encoded(normal[1:])])
    turned = -3 * normal[:1] + np.array([0, 0, -1], np.float32)
    scores, base = detector.anomaly_score(encoded(turned)), detector.anomaly_score(encoded(normal))
    assert np.isfinite(base).all()
    assert scores[0] > base.max()
    assert np.isfinite(scores).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="metric: expected one of euclidean"):
        CentroidDetector("manhattan")
    for detector in (CentroidDetector(), CentroidDetector("mahalanobis"), KnnDetector()):
        with pytest.raises(ValueError, match="blocks: expected"):
            detector.fit([])
    with pytest.raises(ValueError, match="at least 2 normal windows, got 1"):
        CentroidDetector("mahalanobis").fit([encoded(WINDOWS[:1])])
    with pytest.raises(ValueError, match="k, bank: expected at least 1 neighbour"):
        nearest_in_bank(ASKED.embedding, ASKED.embedding[:0], 1)

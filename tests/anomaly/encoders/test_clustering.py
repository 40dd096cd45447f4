"""Clustering mathematics against loops, closed forms and sklearn (METHODS S41, S42)."""

import numpy as np
import pytest
from keras import ops
from sklearn.cluster import KMeans

from anomaly.encoders.clustering import (
    cluster_loss,
    moved_share,
    nearest,
    reseeded,
    sharpened_target,
    start_centres,
    student_t_memberships,
)

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(40, 5)).astype(np.float32)
CENTRES = RNG.normal(size=(3, 5)).astype(np.float32)
BLOBS = np.concatenate([RNG.normal(centre, 0.3, size=(60, 4)) for centre in (-4, 0, 5)]).astype(np.float32)


def memberships(features: np.ndarray, centres: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(student_t_memberships(features, centres, alpha)))


def target(q: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(sharpened_target(np.float32(q), np.float32(frequencies))))


def in_order(centres: np.ndarray) -> np.ndarray:
    return centres[np.lexsort(centres.T)]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_s42_memberships_equal_the_loop_over_windows_and_clusters(alpha):
    expected = np.zeros((40, 3))
    for i, feature in enumerate(FEATURES.astype(float)):
        for j, centre in enumerate(CENTRES.astype(float)):
            expected[i, j] = (1 + np.linalg.norm(feature - centre) ** 2 / alpha) ** (-(alpha + 1) / 2)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(memberships(FEATURES, CENTRES, alpha), expected, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e15])
def test_s42_memberships_sum_to_one_at_every_scale(scale):
    q = memberships(FEATURES * np.float32(scale), CENTRES * np.float32(scale))
    assert (q >= 0).all()
    np.testing.assert_allclose(q.sum(axis=1), 1, atol=1e-6)


def test_s42_far_features_keep_different_memberships_where_the_kernel_underflows():
    q = memberships(np.float32([[0.0]]), np.float32([[1e4], [1.1e4]]), alpha=20.0)
    expected = 1 / (1 + 1.1**-21.0)
    np.testing.assert_allclose(q[0], [expected, 1 - expected], rtol=1e-3)


def test_s42_large_features_near_a_centre_keep_their_digits():
    q = memberships(np.float32([[10_000.0]]), np.float32([[10_000.5], [10_001.0]]))
    near, far = 1 / (1 + 0.25), 1 / (1 + 1.0)
    np.testing.assert_allclose(q[0], [near / (near + far), far / (near + far)], rtol=1e-5)


def test_s42_target_sharpening_equals_the_formula():
    q = RNG.dirichlet(np.ones(4), size=20)
    frequencies = q.sum(axis=0)
    expected = np.array([[q[i, j] ** 2 / frequencies[j] for j in range(4)] for i in range(20)])
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(target(q, frequencies), expected, rtol=1e-4)
    np.testing.assert_allclose(target(q, frequencies / 20), expected, rtol=1e-4)
    np.testing.assert_allclose(target(q, np.tile(frequencies, (20, 1))), expected, rtol=1e-4)


def test_s42_the_target_is_sharper_and_favours_small_clusters():
    q = np.array([[0.7, 0.2, 0.1]])
    sharp = target(q, np.ones(3))
    assert sharp[0, 0] > 0.7 and sharp[0, 2] < 0.1
    assert target(q, np.array([3.0, 1.0, 1.0]))[0, 0] < sharp[0, 0]


def test_s42_an_empty_cluster_leaves_the_target_finite():
    sharp = target(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([2.0, 0.0]))
    np.testing.assert_allclose(sharp, [[1, 0], [1, 0]])


def test_s42_the_loss_is_the_divergence_of_each_row():
    p, q = RNG.dirichlet(np.ones(4), size=(2, 10))
    found = ops.convert_to_numpy(cluster_loss(np.float32(p), np.float32(q)))
    expected = [sum(a * np.log(a / b) for a, b in zip(*pair, strict=True)) for pair in zip(p, q, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(cluster_loss(np.float32(q), np.float32(q))), 0, atol=1e-6)


def test_s42_the_loss_is_finite_where_a_membership_is_zero():
    found = ops.convert_to_numpy(cluster_loss(np.float32([[1, 0], [0.5, 0.5]]), np.float32([[0, 1], [1, 0]])))
    assert np.isfinite(found).all() and (found > 0).all()


def test_s41_centres_equal_sklearn_on_the_same_features():
    expected = KMeans(3, n_init=10, random_state=5).fit(BLOBS.astype(np.float64)).cluster_centers_
    np.testing.assert_allclose(start_centres(BLOBS, 3, seed=5), expected, rtol=1e-6, atol=1e-6)


def test_s41_centres_are_the_means_of_planted_groups():
    planted = np.stack([BLOBS[at : at + 60].mean(axis=0) for at in (0, 60, 120)])
    np.testing.assert_allclose(in_order(start_centres(BLOBS, 3, seed=0)), in_order(planted), atol=1e-5)


def test_s41_an_empty_cluster_goes_to_the_farthest_point():
    points = np.array([[0.0, 0.0], [0.1, 0.0], [9.0, 9.0], [6.0, 0.0]])
    centres = np.array([[0.0, 0.0], [-50.0, 0.0], [-60.0, 0.0]])
    np.testing.assert_array_equal(reseeded(centres, points), [[0, 0], [9, 9], [6, 0]])
    labels, _ = nearest(points, reseeded(centres, points))
    assert set(labels) == {0, 1, 2}


def test_s41_no_centre_moves_where_no_cluster_is_empty():
    np.testing.assert_array_equal(reseeded(BLOBS[[0, 60, 120]].astype(float), BLOBS.astype(float)), BLOBS[[0, 60, 120]])


@pytest.mark.filterwarnings("error")
def test_s41_fewer_different_points_than_clusters_give_finite_centres_on_those_points():
    points = np.float32([[0, 0]] * 6 + [[1, 1]] * 6)
    centres = start_centres(points, 4, seed=0)
    assert centres.shape == (4, 2) and set(map(tuple, centres)) == {(0, 0), (1, 1)}


def test_s41_fewer_features_than_clusters_are_refused():
    with pytest.raises(ValueError, match="at least one per cluster"):
        start_centres(BLOBS[:2], 3, seed=0)


def test_nearest_equals_the_full_distance_table():
    table = ((FEATURES[:, None].astype(float) - CENTRES[None].astype(float)) ** 2).sum(axis=2)
    labels, squared = nearest(FEATURES, CENTRES)
    np.testing.assert_array_equal(labels, table.argmin(axis=1))
    np.testing.assert_allclose(squared, table.min(axis=1), rtol=1e-5)


def test_s42_moved_share_counts_changed_labels():
    labels = RNG.integers(0, 4, size=1000)
    changed = labels.copy()
    changed[:7] += 1
    assert moved_share(labels, changed) == 0.007
    assert moved_share(labels, labels) == 0.0 == moved_share(labels[:0], labels[:0])

"""Coresets: rows that stand for all (METHODS S52)."""

from __future__ import annotations

import tracemalloc
from itertools import combinations

import numpy as np
import pytest

from anomaly.detectors.coreset import CORESETS, k_centre_greedy, kmeans_coreset
from anomaly.detectors.neighbours import nearest_in_bank

RNG = np.random.default_rng(5)
POINTS = RNG.normal(size=(500, 6)).astype(np.float32)


def radius(points: np.ndarray, chosen: np.ndarray) -> float:
    """The farthest that any row is from the chosen."""
    apart = np.linalg.norm(points[:, None].astype(float) - points[chosen][None], axis=2)
    return float(apart.min(axis=1).max())


@pytest.mark.parametrize("seed", range(5))
def test_s52_greedy_is_within_twice_the_best_radius(seed):
    points = np.random.default_rng(seed).normal(size=(14, 2))
    best = min(radius(points, np.array(some)) for some in combinations(range(14), 3))
    assert best <= radius(points, k_centre_greedy(points, 3, seed)) <= 2 * best


def test_s52_greedy_takes_the_farthest_each_time():
    chosen = k_centre_greedy(POINTS, 20, seed=0)
    for number in range(1, 20):
        gap = np.linalg.norm(POINTS[:, None].astype(float) - POINTS[chosen[:number]], axis=2).min(axis=1)
        assert gap[chosen[number]] == pytest.approx(gap.max(), rel=1e-5)


def test_s52_a_rare_state_keeps_a_place_by_greedy_and_by_kmeans():
    rare = np.concatenate((POINTS, POINTS[:2] + 60))
    for name in ("greedy", "kmeans"):
        assert (CORESETS[name](rare, 20, 0) >= 500).any(), name


def test_s52_kmeans_quantises_better_than_a_random_sample_and_keeps_real_rows():
    error = {n: nearest_in_bank(POINTS, POINTS[CORESETS[n](POINTS, 20, 1)], 1)[0] for n in ("random", "kmeans")}
    assert (error["kmeans"] ** 2).mean() < 0.9 * (error["random"] ** 2).mean()
    clouds = np.repeat(np.array([[0.0], [10.0], [20.0]]), 50, axis=0) + RNG.normal(size=(150, 1)) * 0.1
    found = [set(np.rint(clouds[kmeans_coreset(clouds, 3, s), 0] / 10).astype(int)) for s in range(10)]
    assert max(found, key=len) == {0, 1, 2}


@pytest.mark.parametrize("name", CORESETS)
def test_s52_positions_are_distinct_repeatable_and_all_where_k_is_larger(name):
    choose = CORESETS[name]
    first = choose(POINTS, 50, 3)
    assert len(set(first.tolist())) == 50
    assert first.min() >= 0
    assert first.max() < 500
    np.testing.assert_array_equal(choose(POINTS, 50, 3), first)
    assert not np.array_equal(np.sort(choose(POINTS, 50, 4)), np.sort(first))
    assert sorted(choose(POINTS, 501, 0)) == list(range(500))
    assert sorted(choose(POINTS, 500, 0)) == list(range(500))


@pytest.mark.parametrize("name", CORESETS)
def test_s52_duplicates_and_constant_rows_do_not_break_it(name):
    twice = np.repeat(POINTS[:5], 20, axis=0)
    chosen = CORESETS[name](twice, 30, 0)
    assert len(set(chosen.tolist())) == 30
    assert len(set(CORESETS[name](np.ones((40, 3), np.float32), 10, 0).tolist())) == 10
    if name == "greedy":
        assert len(np.unique(twice[k_centre_greedy(twice, 5, 0)], axis=0)) == 5


@pytest.mark.parametrize("name", CORESETS)
def test_bad_input_is_named(name):
    with pytest.raises(ValueError, match="k: expected at least 1"):
        CORESETS[name](POINTS, 0, 0)
    with pytest.raises(ValueError, match="points: expected rows"):
        CORESETS[name](np.empty((0, 3), np.float32), 2, 0)


@pytest.mark.parametrize("name", ["greedy", "kmeans"])
def test_s52_memory_is_a_few_copies_of_the_points(name):
    points = RNG.normal(size=(20_000, 16)).astype(np.float32)
    tracemalloc.start()
    CORESETS[name](points, 60 if name == "greedy" else 2500, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20  # distances of all to all would be 200 MB for 2500

"""Baselines against plain references; none may learn from anything but normal training rows (METHODS S56)."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from anomaly.baselines import energy_scores, knn_scores, pca_scores, random_flags


def correlated(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) @ rng.normal(size=(2, 6)) + 0.05 * rng.normal(size=(n, 6))


def test_pca_scores_equal_the_residual_of_scikit_learn() -> None:
    train, rows = correlated(400), np.random.default_rng(1).normal(size=(50, 6))
    pca = PCA(n_components=0.9, svd_solver="full").fit(train)
    residual = rows - pca.inverse_transform(pca.transform(rows))
    np.testing.assert_allclose(pca_scores(train, rows), (residual**2).mean(axis=1), rtol=1e-9)


def test_pca_keeps_a_direction_outside_even_when_all_variance_is_asked_for() -> None:
    scores = pca_scores(correlated(100), np.random.default_rng(0).normal(size=(20, 6)), variance=1.0)
    assert (scores > 0).all()


@pytest.mark.parametrize("train", [np.zeros((5, 3)), np.ones((1, 1))])
def test_pca_of_rows_that_never_moved_scores_any_movement(train: np.ndarray) -> None:
    moved = train[:1] + 2.0
    assert pca_scores(train, moved)[0] == pytest.approx(4.0)


@pytest.mark.parametrize("k", [1, 5])
def test_knn_scores_equal_a_sorted_distance_table(k: int) -> None:
    train, rows = correlated(200), correlated(30, seed=9) + 1
    table = np.sort(np.linalg.norm(rows[:, None] - train[None], axis=2), axis=1)[:, :k].mean(axis=1)
    np.testing.assert_allclose(knn_scores(train, rows, k=k), table, rtol=1e-6)


def test_knn_bank_is_bounded_seeded_and_may_be_smaller_than_k() -> None:
    train, rows = correlated(500), correlated(10, seed=3)
    one = knn_scores(train, rows, bank=50, seed=1)
    np.testing.assert_array_equal(one, knn_scores(train, rows, bank=50, seed=1))
    assert not np.array_equal(one, knn_scores(train, rows, bank=50, seed=2))
    assert np.isfinite(knn_scores(train[:2], rows, k=5)).all()


def test_knn_in_chunks_equals_knn_at_once() -> None:
    train, rows = correlated(20), correlated(5000, seed=4)
    np.testing.assert_allclose(knn_scores(train, rows)[4000:], knn_scores(train, rows[4000:]), rtol=1e-9)


def test_energy_is_the_mean_square() -> None:
    rows = correlated(20)
    np.testing.assert_allclose(energy_scores(rows), (rows**2).sum(axis=1) / 6)


def test_random_flags_are_exact_in_number_and_seeded() -> None:
    flags = random_flags(1000, 0.123, seed=4)
    assert flags.sum() == 123
    np.testing.assert_array_equal(flags, random_flags(1000, 0.123, seed=4))
    assert not np.array_equal(flags, random_flags(1000, 0.123, seed=5))


def test_rows_with_missing_values_are_unscorable_and_learned_from_by_nobody() -> None:
    train, rows = correlated(100), correlated(10)
    holed = np.concatenate((train, np.full((3, 6), np.nan)))
    rows[4, 2], rows[5, 0] = np.nan, np.inf
    for score in (energy_scores(rows), pca_scores(holed, rows), knn_scores(holed, rows)):
        assert np.isnan(score[[4, 5]]).all()
        assert np.isfinite(np.delete(score, [4, 5])).all()
    np.testing.assert_allclose(pca_scores(holed, rows), pca_scores(train, rows))


def test_s56_scores_of_a_row_do_not_depend_on_the_other_rows_scored() -> None:
    train, rows = correlated(100), correlated(40, seed=2)
    for rule in (lambda r: pca_scores(train, r), lambda r: knn_scores(train, r), energy_scores):
        np.testing.assert_allclose(rule(rows)[:5], rule(rows[:5]), rtol=1e-9)


def test_no_rows_give_no_scores() -> None:
    assert knn_scores(correlated(10), np.empty((0, 6))).shape == (0,)
    assert pca_scores(correlated(10), np.empty((0, 6))).shape == (0,)


@pytest.mark.parametrize("rule", [pca_scores, knn_scores])
def test_nothing_to_learn_from_is_refused(rule) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="train: expected at least one row"):
        rule(np.full((3, 2), np.nan), np.ones((1, 2)))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="variance"):
        pca_scores(correlated(10), correlated(2), variance=0)
    with pytest.raises(ValueError, match="k, bank"):
        knn_scores(correlated(10), correlated(2), k=0)
    with pytest.raises(ValueError, match="rate"):
        random_flags(10, 1.5)

"""Scores of windows and novelty-weighted draws, against closed forms and exact probabilities (METHODS S15 to S20)."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import chisquare, kstest
from sklearn.metrics.pairwise import cosine_similarity

from anomaly.scores.sampling import StratifiedSample, gumbel_top_k, row_noise
from anomaly.scores.window_scores import (
    Limits,
    ModeStability,
    centre_cosine,
    composite,
    energy,
    filled_radius,
    novelty,
    recent_share,
)
from benchmarks.sampling import Curve, curves, markdown, ordered_draws, planted_windows, saving

WEIGHTS = np.array([0.0, 0.4, 1.0, 1.5])


# -- scores ----------------------------------------------------------------------------------------------------------


def test_s15_cosine_equals_scikit_learn_and_is_safe_at_the_origin():
    rng = np.random.default_rng(0)
    points, centres, ids = rng.normal(size=(50, 6)), rng.normal(size=(4, 6)), rng.integers(0, 4, 50)
    expected = cosine_similarity(points, centres)[np.arange(50), ids]
    np.testing.assert_allclose(centre_cosine(points, centres, ids), expected, atol=1e-12)
    np.testing.assert_allclose(centre_cosine(points * 1e200, centres * 1e-200, ids), expected, atol=1e-12)
    assert centre_cosine(np.zeros((1, 6)), centres, np.array([0])).tolist() == [0.0]
    with pytest.raises(ValueError, match="points, centres, ids"):
        centre_cosine(points, centres[:, :5], ids)
    with pytest.raises(ValueError, match="centres: expected finite"):
        centre_cosine(points, centres * np.nan, ids)


def test_s15_recent_share_equals_counting_by_hand_and_never_looks_ahead():
    rng = np.random.default_rng(1)
    ids, starts = rng.integers(0, 3, 200), rng.random(200) < 0.05
    starts[0] = True
    for window in (1, 4, 500):
        expected = []
        for i in range(200):
            first = max(int(np.flatnonzero(starts[: i + 1])[-1]), i - window + 1)
            expected.append(np.mean(ids[first : i + 1] == ids[i]))
        np.testing.assert_allclose(recent_share(ids, starts, window), expected)
    changed = ids.copy()
    changed[100:] = 9
    np.testing.assert_array_equal(recent_share(changed, starts, 5)[:100], recent_share(ids, starts, 5)[:100])
    with pytest.raises(ValueError, match="window: expected at least 1"):
        recent_share(ids, starts, 0)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_s15_stability_of_a_stream_is_that_of_the_whole(size: int):
    rng = np.random.default_rng(2)
    ids, stability, found = rng.integers(0, 2, 60), ModeStability(5), []
    for asset, own in (("A", ids[:35]), ("B", ids[35:])):
        found += [stability.add(asset, own[i : i + size]) for i in range(0, len(own), size)]
    starts = np.isin(np.arange(60), (0, 35))
    np.testing.assert_allclose(np.concatenate(found), recent_share(ids, starts, 5))


def test_s16_novelty_is_the_norm_over_the_radius_and_tight_clusters_count():
    rng = np.random.default_rng(3)
    offset = rng.normal(size=(20, 5))
    distance = np.linalg.norm(offset, axis=1)
    np.testing.assert_allclose(novelty(distance, 1.0), distance)
    tight = novelty(distance * 0.01, np.full(20, 0.01))
    np.testing.assert_allclose(
        tight, novelty(distance, np.ones(20)), err_msg="the same shape at a hundredth of the size"
    )
    assert np.isfinite(novelty(np.array([0.0, 3.0]), np.zeros(2))).all()
    assert filled_radius(np.array([2.0, 1e-9, 0.0, 4.0])).tolist() == [2.0, 3.0, 3.0, 4.0]
    assert filled_radius(np.zeros(2)).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="radius"):
        novelty(distance, -1.0)


def test_s17_energy_is_the_root_mean_square_of_raw_units():
    rng = np.random.default_rng(4)
    windows = rng.normal(50, 9, size=(8, 7, 3))
    np.testing.assert_allclose(energy(windows), np.sqrt((windows**2).mean(axis=(1, 2))))
    weights = np.array([0.0, 1.0, 3.0])
    expected = np.sqrt(((windows**2).mean(axis=1) * weights).sum(axis=1) / 4)
    np.testing.assert_allclose(energy(windows, weights), expected)
    np.testing.assert_allclose(energy(windows, weights * 1e300), expected)
    assert energy(np.zeros((2, 4, 3)), weights).tolist() == [0.0, 0.0]


def test_s17_energy_is_never_nan_and_refuses_what_it_cannot_weigh():
    windows = np.array([[[1.0, np.nan], [3.0, np.nan]], [[np.nan, np.nan], [np.nan, np.nan]]])
    np.testing.assert_allclose(energy(windows), [np.sqrt(5), 0])
    assert energy(np.full((1, 2, 1), 1e200)).tolist() == [1e200]
    assert energy(np.empty((0, 2, 1))).shape == (0,)
    for weights in ([0.0, 0.0], [1.0, -1.0], [1.0], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="weights"):
            energy(windows, np.array(weights))
    with pytest.raises(ValueError, match="infinity"):
        energy(np.full((1, 1, 1), np.inf))


def test_s18_limits_are_kept_so_that_batches_are_comparable():
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(40, 3)) * [1, 5, 0]
    limits = Limits().fit([scores[:1], scores[1:1], scores[1:]])
    scaled = limits.scale(scores)
    assert scaled[:, :2].min(axis=0).tolist() == [0, 0] and scaled[:, :2].max(axis=0).tolist() == [1, 1]
    assert not scaled[:, 2].any(), "a constant score says nothing"
    again = Limits.from_state(*limits.to_state())
    later = rng.normal(size=(5, 3)) * 9
    np.testing.assert_array_equal(again.scale(later), limits.scale(later))
    np.testing.assert_array_equal(
        limits.scale(later)[2:3], limits.scale(later[2:3]), "a row does not depend on its batch"
    )
    assert (np.abs(limits.scale(later)[:, 0]) > 1).any(), "beyond the limits is beyond 1"
    huge = Limits().fit([np.array([[-1.7e308], [1.7e308]])])
    assert huge.scale(np.array([[0.0], [1.7e308]])).ravel().tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match="finite scores"):
        Limits().fit([np.array([[np.nan]])])
    with pytest.raises(ValueError, match="got none"):
        Limits().fit([])
    with pytest.raises(RuntimeError, match="fit"):
        Limits().scale(scores)
    with pytest.raises(ValueError, match="low at or below high"):
        Limits.from_state({}, {"low": np.ones(1), "high": np.zeros(1)})


def test_s18_the_weighted_sum_and_its_warning():
    rng = np.random.default_rng(6)
    scaled = rng.random((100, 3))
    plain = composite(scaled)
    np.testing.assert_allclose(plain.score, scaled @ [0.5, 1.0, 0.8])
    assert plain.warning == ""
    scaled[:, 0] = 1 - scaled[:, 1] + 0.01 * rng.random(100)
    assert "nearly cancel" in composite(scaled).warning
    assert composite(scaled, (-0.5, 1.0, 0.8)).warning == "", "opposite signs add to one another"
    assert composite(scaled, (0.0, 1.0, 0.8)).warning == ""
    scaled[:, 0] = 0.3
    assert composite(scaled).warning == "", "a constant score has no correlation"
    for weights in ((0, 0, 0), (1, 2), (np.nan, 1, 1)):
        with pytest.raises(ValueError, match="weights"):
            composite(scaled, weights)
    with pytest.raises(ValueError, match="scaled"):
        composite(scaled * np.nan)


# -- one draw --------------------------------------------------------------------------------------------------------


def successive(weights: np.ndarray, k: int, temperature: float) -> dict[tuple[int, ...], float]:
    """The exact probability of every ordered draw of ``k``, one row after another."""
    share = np.exp((weights - weights.max()) / temperature)
    found = {}
    for order in permutations(range(len(weights)), k):
        p, left = 1.0, share.sum()
        for i in order:
            p, left = p * share[i] / left, left - share[i]
        found[order] = p
    return found


def fits(counts: dict[tuple[int, ...], int], expected: dict[tuple[int, ...], float], draws: int) -> float:
    """p value of the counts; outcomes expected less than 5 times are put together."""
    seen = np.array([counts.get(order, 0) for order in expected], dtype=float)
    wanted = np.array(list(expected.values())) * draws
    rare = wanted < 5
    seen, wanted = np.append(seen[~rare], seen[rare].sum()), np.append(wanted[~rare], wanted[rare].sum())
    if wanted[-1] < 1e-6:
        assert seen[-1] == 0
        seen, wanted = seen[:-1], wanted[:-1]
    return float(chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue) if len(seen) > 1 else 1.0


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_s19_frequencies_match_the_exact_probabilities_of_drawing_one_after_another(temperature: float, k: int):
    rng, draws = np.random.default_rng(7), 6000
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        order = tuple(gumbel_top_k(WEIGHTS, k, temperature, rng).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert fits(counts, successive(WEIGHTS, k, temperature), draws) > 1e-3
    if k > 1:
        wrong = {order: 1 / len(successive(WEIGHTS, k, 1.0)) for order in successive(WEIGHTS, k, 1.0)}
        assert fits(counts, wrong, draws) < 1e-6, "the check can fail"


@pytest.mark.parametrize("temperature", [1e-3, 1e-300])
def test_s19_towards_zero_the_largest_are_drawn_and_ties_are_broken_by_the_seed(temperature: float):
    weights = np.array([1.0, 5.0, 5.0, 5.0, 9.0, -1e300])
    drawn = {tuple(gumbel_top_k(weights, 3, temperature, np.random.default_rng(s)).tolist()) for s in range(200)}
    assert {order[0] for order in drawn} == {4} and {order[1] for order in drawn} == {1, 2, 3}
    assert len(drawn) == 6, "both places of the three ties, in any order"
    again = [gumbel_top_k(weights, 3, temperature, np.random.default_rng(3)).tolist() for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize("temperature", [1e9, 1e308, np.inf])
def test_s19_at_infinity_every_row_is_as_likely(temperature: float):
    rng = np.random.default_rng(8)
    counts = np.bincount([gumbel_top_k(WEIGHTS, 1, temperature, rng)[0] for _ in range(4000)], minlength=4)
    assert chisquare(counts).pvalue > 1e-3


def test_s19_few_rows_large_weights_and_wrong_temperatures():
    rng = np.random.default_rng(9)
    assert sorted(gumbel_top_k(WEIGHTS, 10, 1.0, rng).tolist()) == [0, 1, 2, 3], "fewer rows than k: all of them"
    assert gumbel_top_k(np.empty(0), 3, 1.0, rng).shape == (0,) and gumbel_top_k(WEIGHTS, 0, 1.0, rng).shape == (0,)
    huge = np.array([-1.7e308, 0.0, 1.7e308])
    for temperature in (1e-300, 0.5, 1.0, 1e3):
        assert gumbel_top_k(huge, 3, temperature, rng).tolist() == [2, 1, 0]
    shifted = {int(gumbel_top_k(np.full(3, 1e15), 1, 1.0, rng)[0]) for _ in range(100)}
    assert shifted == {0, 1, 2}, "equal weights stay equally likely however large they are"
    for temperature in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match=r"temperature: expected above 0 .*0\.01"):
            gumbel_top_k(WEIGHTS, 1, temperature, rng)
    with pytest.raises(ValueError, match="weights: expected finite"):
        gumbel_top_k(np.array([np.nan]), 1, 1.0, rng)
    with pytest.raises(ValueError, match="k: expected"):
        gumbel_top_k(WEIGHTS, -1, 1.0, rng)


# -- every cluster ---------------------------------------------------------------------------------------------------


def test_s19_the_noise_of_rows_is_gumbel_and_hangs_on_seed_and_row_alone():
    noise = row_noise(np.arange(20_000), seed=7)
    assert kstest(noise, "gumbel_r").pvalue > 1e-3
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.03
    other = row_noise(np.arange(20_000), seed=8)
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.03 and not (noise == other).any()
    assert np.isfinite(row_noise(np.array([0, 2**62]), seed=-1)).all()


@pytest.mark.parametrize("k", [1, 2])
def test_s19_draws_by_row_noise_match_the_exact_probabilities_too(k: int):
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(3000):
        sample = StratifiedSample(k, 1.0, seed)
        sample.add(np.zeros(4, int), WEIGHTS, np.arange(4) * 11)
        order = tuple((sample.drawn().rows // 11).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert fits(counts, successive(WEIGHTS, k, 1.0), 3000) > 1e-3


def offered(n: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(10)
    ids = rng.choice([0, 1, 2, 9], size=n, p=[0.6, 0.3, 0.095, 0.005])
    ids[:4] = [0, 1, 2, 9]
    rows = rng.permutation(10 * n)[:n]
    return ids, rng.normal(size=n), rows, rows * 2.0


def test_s20_every_cluster_is_covered_rows_are_unique_and_map_back():
    ids, weights, rows, doubled = offered()
    sample = StratifiedSample(5, 1.0, seed=7)
    sample.add(ids, weights, rows, doubled)
    drawn = sample.drawn()
    sizes = dict(zip(*np.unique(ids, return_counts=True), strict=True))
    assert {c: int((drawn.ids == c).sum()) for c in sizes} == {c: min(5, n) for c, n in sizes.items()}
    assert len(np.unique(drawn.rows)) == len(drawn)
    at = np.array([int(np.flatnonzero(rows == r)[0]) for r in drawn.rows])
    np.testing.assert_array_equal(ids[at], drawn.ids)
    np.testing.assert_array_equal(weights[at], drawn.weights)
    np.testing.assert_array_equal(doubled[at], drawn.columns[0])
    assert drawn.order[drawn.ids == 0].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_s20_neither_cuts_nor_order_change_the_draw_and_a_seed_repeats_it(size: int):
    parts = offered()
    whole, cut, other = (StratifiedSample(5, 1.0, seed) for seed in (7, 7, 8))
    whole.add(*parts)
    other.add(*parts)
    for low in reversed(range(0, len(parts[0]), size)):
        cut.add(*(part[low : low + size] for part in parts))
        assert max(len(kept.rows) for kept in cut._kept.values()) <= 5, "no more than k rows are held"
    np.testing.assert_array_equal(whole.drawn().rows, cut.drawn().rows)
    np.testing.assert_array_equal(whole.drawn().columns[0], cut.drawn().columns[0])
    assert whole.drawn().rows.tolist() != other.drawn().rows.tolist()


def test_s20_nothing_offered_and_what_is_refused():
    sample = StratifiedSample(2, 1.0, 7)
    assert len(sample.drawn()) == 0
    sample.add(np.empty(0, int), np.empty(0), np.empty(0, int))
    assert len(sample.drawn()) == 0
    sample.add(np.zeros(1, int), np.zeros(1), np.array([3]))
    with pytest.raises(ValueError, match="row 3 again"):
        sample.add(np.zeros(1, int), np.zeros(1), np.array([3]))
    with pytest.raises(ValueError, match="rows: expected"):
        sample.add(np.zeros(2, int), np.zeros(2), np.array([4, 4]))
    with pytest.raises(ValueError, match="equal lengths"):
        sample.add(np.zeros(2, int), np.zeros(2), np.array([4]))
    with pytest.raises(ValueError, match="k: expected"):
        StratifiedSample(0, 1.0, 7)
    with pytest.raises(ValueError, match="temperature"):
        StratifiedSample(1, 0.0, 7)


def test_s20_a_rare_mode_is_found_with_fewer_labels_than_by_uniform_draws():
    uniform, ours = curves(range(20), n=4000, temperatures=(0.1,))
    ratio, low, high = saving(uniform, ours)
    assert 1 < low <= ratio <= high, (ratio, low, high)
    assert saving(uniform, uniform) == (1.0, 1.0, 1.0)


def test_s20_the_curve_counts_rare_windows_by_labels_and_is_told_as_a_table():
    made = curves(range(2), n=1000, temperatures=(0.1,))
    planted = planted_windows(0, 1000)
    assert planted.rare.sum() == 5 and planted.windows.shape == (1000, 16, 6)
    order = ordered_draws(planted, 0.1, 0, 500)
    assert len(np.unique(order)) == len(order)
    np.testing.assert_array_equal(made[1].found[0], np.cumsum(planted.rare[order[:500]]))
    curve = Curve("x", np.array([[0, 1, 1, 2], [0, 0, 0, 1]]))
    assert curve.labels_for(1).tolist() == [2, 4] and curve.labels_for(2).tolist() == [4, 5]
    lines = markdown(made).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1

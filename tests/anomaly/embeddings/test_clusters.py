"""Streamed k-means over embeddings (METHODS S10, S11)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from sklearn.cluster import KMeans

from anomaly.embeddings import StreamedKMeans
from anomaly.embeddings.clusters import nearest_centres, start_centres


def blobs(rows: int = 6000, modes: int = 6, width: int = 5, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    """Rows around ``modes`` centres that lie 8 apart in scale."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(modes, width)) * 8
    return (centres[rng.integers(modes, size=rows)] + spread * rng.normal(size=(rows, width))).astype(np.float32)


def blocks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def brute(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids and distances by the definition, in float64."""
    apart = np.linalg.norm(points[:, None].astype(np.float64) - centres[None].astype(np.float64), axis=2)
    return apart.argmin(axis=1), apart.min(axis=1)


@pytest.mark.parametrize("size", [100, 1000, 6000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_s10_inertia_is_within_5_percent_of_the_full_kmeans(size, seed):
    rows = blobs(seed=seed)
    full = KMeans(6, n_init=10, random_state=0).fit(rows)
    assert StreamedKMeans(6, seed).fit(blocks(rows, size)).inertia_ <= 1.05 * full.inertia_


def test_s10_inertia_is_within_5_percent_where_modes_overlap():
    rows = blobs(seed=4, spread=5.0)
    full = KMeans(6, n_init=10, random_state=0).fit(rows)
    assert StreamedKMeans(6, 0).fit(blocks(rows, 300)).inertia_ <= 1.05 * full.inertia_


def test_s10_a_stream_sorted_by_mode_is_found_from_a_sample():
    rows = blobs(12_000)
    ids = KMeans(6, n_init=10, random_state=0).fit(rows)
    ordered = rows[np.argsort(ids.labels_, kind="stable")]
    sample = ordered[np.random.default_rng(0).choice(len(rows), 1000, replace=False)]
    assert StreamedKMeans(6, 0, passes=2).fit(blocks(ordered, 500), sample).inertia_ <= 1.05 * ids.inertia_


@pytest.mark.parametrize("size", [7, 500, 5000, 6000])
def test_s10_no_row_is_counted_twice_in_a_pass(size):
    rows = blobs()
    # With one cluster the moving average after one pass is the mean of all rows, each once.
    one = StreamedKMeans(1, 0, passes=1).fit(blocks(rows, size))
    np.testing.assert_allclose(one.centers_[0], rows.mean(axis=0, dtype=np.float64), rtol=1e-5)
    many = StreamedKMeans(4, 0).fit(blocks(rows, size))
    assert many.rows_ == many.counts_.sum() == len(rows)


def test_s10_the_first_block_weighs_as_much_as_any_other():
    first, second = np.zeros((5000, 2), np.float32), np.ones((5000, 2), np.float32)
    np.testing.assert_allclose(StreamedKMeans(1, 0, passes=1).fit([first, second]).centers_, 0.5, rtol=1e-6)


def test_s10_more_clusters_than_rows_in_the_first_block():
    rows = blobs(3000, modes=40, width=8)
    ours = StreamedKMeans(40, 0).fit(blocks(rows, 16))
    assert ours.inertia_ <= 1.05 * KMeans(40, n_init=10, random_state=0).fit(rows).inertia_
    assert (ours.counts_ > 0).all()


def test_s10_a_seeded_run_is_repeatable_and_the_seed_matters():
    cut = blocks(blobs(spread=6.0), 256)
    a, b, c = (StreamedKMeans(7, seed).fit(cut) for seed in (5, 5, 6))
    np.testing.assert_array_equal(a.centers_, b.centers_)
    np.testing.assert_array_equal(a.radius_, b.radius_)
    assert not np.array_equal(a.centers_, c.centers_)


def test_s10_later_passes_never_raise_the_inertia():
    cut = blocks(blobs(spread=6.0), 256)
    found = [StreamedKMeans(7, 5, passes).fit(cut).inertia_ for passes in (1, 2, 4, 8)]
    assert all(later <= before * (1 + 1e-6) for before, later in pairwise(found))
    assert found[-1] < found[0]


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_s11_ids_are_the_argmin_to_the_saved_centres(offset, scale):
    rows = (blobs(2000, spread=6.0) * scale + offset).astype(np.float32)
    ours = StreamedKMeans(6, 0).fit([rows])
    again = StreamedKMeans.from_state(*ours.to_state())
    ids, distance = again.assign(rows)
    expected, apart = brute(rows, again.centers_)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(distance, apart, rtol=1e-4, atol=1e-6 * max(offset, 1))
    assert (ids.dtype, distance.dtype) == (np.int32, np.float32)


def test_s11_ties_go_to_the_lowest_id():
    centres = np.array([[1, 0], [-1, 0], [1, 0], [0, 1]], np.float32)
    points = np.array([[0, 0], [0, -3], [1, 0], [-5, 0], [0.5, 0.5], [0, 2]], np.float32)
    assert nearest_centres(points, centres)[0].tolist() == [0, 0, 0, 1, 0, 3]
    rng = np.random.default_rng(0)
    twin = rng.normal(size=(3, 33)).astype(np.float32)[[0, 1, 2, 0, 1, 2, 0]]
    assert nearest_centres(rng.normal(size=(999, 33)).astype(np.float32), twin)[0].max() <= 2


def test_s11_rows_too_close_to_call_in_float32_are_settled_exactly():
    rng = np.random.default_rng(1)
    centres = (rng.normal(size=(2, 64)) + 30).astype(np.float32)
    points = (centres.mean(axis=0) + 1e-5 * rng.normal(size=(2000, 64))).astype(np.float32)
    ids = nearest_centres(points, centres)[0]
    assert 200 < ids.sum() < 1800
    np.testing.assert_array_equal(ids, brute(points, centres)[0])


def test_s11_prototypes_are_the_nearest_real_rows():
    rows = blobs(spread=3.0)
    cut = blocks(rows, 77)
    ours = StreamedKMeans(5, 0).fit(cut)
    found = ours.prototypes(cut, per_cluster=3)
    ids, apart = brute(rows, ours.centers_)
    for cluster in range(5):
        own = np.flatnonzero(ids == cluster)
        expected = own[np.argsort(apart[own], kind="stable")[:3]]
        assert found.rows[found.ids == cluster].tolist() == expected.tolist()
    np.testing.assert_array_equal(found.embeddings, rows[found.rows])
    np.testing.assert_allclose(found.distance, apart[found.rows], rtol=1e-5)


def test_s11_a_cluster_with_fewer_rows_gives_fewer_prototypes_and_equals_come_in_order():
    rows = np.array([[9.0], [0.0], [0.0], [0.0]], np.float32)
    ours = StreamedKMeans(2, 0).fit([rows[:2], rows[2:]])
    found = ours.prototypes([rows[:2], rows[2:]], per_cluster=2)
    assert sorted(found.rows.tolist()) == [0, 1, 2]


def test_counts_radius_and_inertia_are_those_of_the_final_centres():
    rows = blobs(spread=3.0)
    ours = StreamedKMeans(5, 0).fit(blocks(rows, 77))
    ids, apart = brute(rows, ours.centers_)
    assert ours.counts_.tolist() == np.bincount(ids, minlength=5).tolist()
    assert ours.inertia_ == pytest.approx((apart**2).sum(), rel=1e-6)
    rms = [np.sqrt((apart[ids == i] ** 2).mean()) for i in range(5)]
    np.testing.assert_allclose(ours.radius_, rms, rtol=1e-5)


def test_a_singleton_takes_the_radius_of_all_rows_and_none_is_zero():
    rows = np.concatenate(
        [blobs(200, modes=1), np.full((1, 5), 500.0, np.float32), np.full((9, 5), -500.0, np.float32)]
    )
    ours = StreamedKMeans(3, 0).fit([rows])
    overall = np.sqrt(ours.inertia_ / len(rows))
    alone, equal = (int(ours.assign(rows[at : at + 1])[0][0]) for at in (200, 201))
    assert (ours.counts_[alone], ours.counts_[equal]) == (1, 9)
    assert ours.radius_[alone] == pytest.approx(overall, rel=1e-5)
    assert ours.radius_[equal] == pytest.approx(0.01 * overall, rel=1e-5)


def three_groups() -> list[np.ndarray]:
    """A block of equal rows, then one with two groups on either side, one of them farther off."""
    noise = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    return [np.zeros((4096, 2), np.float32), np.concatenate((noise + 200, noise[:300] - 100))]


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("sampled", [False, True])
def test_an_empty_cluster_starts_again_from_the_farthest_rows(passes, sampled):
    groups = three_groups()
    start = groups[0][:100] if sampled else None  # all start centres are the same row: all but one begin empty
    assert sorted(StreamedKMeans(3, 0, passes).fit(groups, start).counts_.tolist()) == [300, 500, 4096]


def test_duplicate_rows_leave_centres_without_rows():
    rows = np.repeat(np.array([[0.0, 0.0], [4.0, 0.0]], np.float32), 50, axis=0)
    ours = StreamedKMeans(5, 0).fit(blocks(rows, 30))
    assert ours.inertia_ == 0
    assert sorted(ours.counts_.tolist()) == [0, 0, 0, 50, 50]
    assert (ours.radius_ > 0).all()


def test_constant_embeddings_are_one_cluster():
    rows = np.full((40, 3), 2.5, np.float32)
    ours = StreamedKMeans(3, 0).fit(blocks(rows, 9))
    assert ours.counts_.tolist() == [40, 0, 0]
    assert (ours.radius_ > 0).all()
    np.testing.assert_array_equal(ours.centers_, np.full((3, 3), 2.5))


def test_bad_input_is_refused_with_the_argument_and_the_cure():
    rows = blobs(20)
    with pytest.raises(ValueError, match=r"clusters: expected at most as many as there are rows \(20\), got 21; ask"):
        StreamedKMeans(21, 0).fit(blocks(rows, 6))
    with pytest.raises(ValueError, match="blocks: expected rows to cluster, got none"):
        StreamedKMeans(1, 0).fit([rows[:0]])
    bad = rows.copy()
    bad[13, 0] = np.nan
    with pytest.raises(ValueError, match=r"blocks: .* row 13; leave"):
        StreamedKMeans(2, 0).fit(blocks(bad, 6))
    with pytest.raises(ValueError, match=r"points: .* row 13"):
        StreamedKMeans(2, 0).fit([rows]).assign(bad)
    with pytest.raises(ValueError, match=r"points: expected shape \(rows, 5\)"):
        StreamedKMeans(2, 0).fit([rows]).assign(rows[:, :2])
    with pytest.raises(ValueError, match="same 20 rows in every pass, got 0; give a list"):
        StreamedKMeans(2, 0).fit(iter(blocks(rows, 6)))
    with pytest.raises(ValueError, match="clusters, passes: expected at least 1"):
        StreamedKMeans(0)
    with pytest.raises(ValueError, match="per_cluster: expected at least 1, got 0"):
        StreamedKMeans(2, 0).fit([rows]).prototypes([rows], 0)
    with pytest.raises(ValueError, match="call fit first"):
        StreamedKMeans(2).assign(rows)


def test_one_object_can_be_fitted_again_on_other_rows():
    ours = StreamedKMeans(2, 0)
    ours.fit([blobs(300)]).fit([blobs(200)])
    assert ours.rows_ == 200


def test_a_start_is_no_worse_than_the_full_kmeans_on_its_buffer():
    rows = blobs(1000, modes=8)
    centres = start_centres(rows, 8, 0)
    assert (brute(rows, centres)[1] ** 2).sum() <= 1.05 * KMeans(8, n_init=10, random_state=0).fit(rows).inertia_

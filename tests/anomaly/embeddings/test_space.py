"""The space of embeddings as a whole (METHODS S8 to S14)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from anomaly.embeddings import Space, StreamedPCA, compare_spaces, fit_space_once, subspace_angle
from anomaly.embeddings.space import chosen_clusters

ARI_BOUND = 0.95


def planted(rows: int = 3000, modes: int = 4, width: int = 512, seed: int = 0):
    """Embeddings whose modes lie in few of their dimensions, and the modes."""
    rng = np.random.default_rng(seed)
    mode = rng.integers(modes, size=rows)
    spread = 1 / np.sqrt(np.arange(1, width + 1))
    centres = rng.normal(size=(modes, width)) * 4 * spread
    return (centres[mode] + rng.normal(size=(rows, width)) * spread).astype(np.float32), mode


def blocks(rows: np.ndarray, size: int = 400) -> list[np.ndarray]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


class Counted:
    """Blocks that count how often they are read."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.reads = rows, 0

    def __iter__(self):
        self.reads += 1
        return iter(blocks(self.rows))


ROWS, MODE = planted()


def test_s9_reduction_in_two_steps_is_the_reduction_in_one():
    half = StreamedPCA(64).fit(blocks(ROWS))
    quarter = StreamedPCA(32).fit([half.transform(block) for block in blocks(ROWS)])
    direct = StreamedPCA(32).fit(blocks(ROWS))
    assert subspace_angle(quarter.components_ @ half.components_, direct.components_) < 1e-3
    assert half.variance_kept * quarter.variance_kept == pytest.approx(direct.variance_kept, rel=1e-5)


def test_s9_both_paths_run_and_the_rows_compare_silhouette_and_retrieval():
    found = compare_spaces(ROWS, MODE, (0, 64, 32), clusters=4)
    assert [row["dimensions"] for row in found] == [512, 64, 32]
    assert [row["variance_kept"] for row in found] == sorted((r["variance_kept"] for r in found), reverse=True)
    assert [row["silhouette"] for row in found] == sorted(row["silhouette"] for row in found)  # less noise, more apart
    for row in found:
        assert row["silhouette_low"] <= row["silhouette"] <= row["silhouette_high"]
        assert row["retrieval"] > 0.95
    json.dumps(found)
    noise = np.random.default_rng(0).permutation(MODE)
    assert compare_spaces(ROWS, noise, (32,), clusters=4)[0]["retrieval"] == pytest.approx(0.25, abs=0.05)


def test_s9_a_single_cluster_gives_a_reason_in_the_report():
    (row,) = compare_spaces(ROWS[:300, :8], MODE[:300], (0,), clusters=1)
    assert row["silhouette"] is None
    assert "no other" in row["reason"]


@pytest.mark.parametrize("reduce", [0, 16, 64])
def test_s14_planted_modes_are_recovered_without_being_told_their_number(reduce):
    space = Space.fit(blocks(ROWS), reduce=reduce)
    assert space.clusters == 4
    assert [row["clusters"] for row in space.tried] == list(range(2, 9))
    assert adjusted_rand_score(MODE, space.place(ROWS).ids) > ARI_BOUND


def test_s14_a_stream_sorted_by_mode_gives_the_same_modes():
    order = np.argsort(MODE, kind="stable")
    space = Space.fit(blocks(ROWS[order]), clusters=4, reduce=16)
    assert adjusted_rand_score(MODE, space.place(ROWS).ids) > ARI_BOUND


def test_structureless_rows_are_one_cluster():
    rows = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
    space = Space.fit(blocks(rows))
    assert space.clusters == 1
    assert max(row["value"] for row in space.tried) < 0.1
    assert set(space.place(rows).ids.tolist()) == {0}


@pytest.mark.parametrize("reduce", [0, 16])
def test_s13_scoring_never_changes_the_space(reduce):
    space = Space.fit(blocks(ROWS), clusters=4, reduce=reduce)
    before = space.digest()
    rows = ROWS * 3 + 1
    kept = rows.copy()
    space.place(rows)
    space.prototypes(blocks(rows), 2)
    assert space.digest() == before
    np.testing.assert_array_equal(rows, kept)
    space.kmeans.centers_[0, 0] += 1e-3  # the digest can tell
    assert space.digest() != before


@pytest.mark.parametrize("reduce", [0, 16])
def test_a_state_gives_the_same_places_and_digest(reduce):
    space = Space.fit(blocks(ROWS), reduce=reduce)
    settings, arrays = space.to_state()
    again = Space.from_state(json.loads(json.dumps(settings)), arrays)
    assert again.digest() == space.digest()
    for one, other in zip(vars(again.place(ROWS)).values(), vars(space.place(ROWS)).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_s10_the_same_blocks_and_seed_give_the_same_digest():
    digests = [Space.fit(blocks(ROWS), clusters=5, reduce=8, seed=seed).digest() for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_s11_place_is_the_argmin_in_the_reduced_space_and_the_cosine_to_that_centre():
    space = Space.fit(blocks(ROWS), clusters=4, reduce=16)
    placed = space.place(ROWS)
    np.testing.assert_array_equal(placed.reduced, space.pca.transform(ROWS))
    apart = np.linalg.norm(placed.reduced[:, None].astype(float) - space.kmeans.centers_[None], axis=2)
    np.testing.assert_array_equal(placed.ids, apart.argmin(axis=1))
    np.testing.assert_allclose(placed.distance, apart.min(axis=1), rtol=1e-4)
    own = space.kmeans.centers_[placed.ids]
    lengths = np.linalg.norm(placed.reduced, axis=1) * np.linalg.norm(own, axis=1)
    np.testing.assert_allclose(placed.cosine, (placed.reduced * own).sum(axis=1) / lengths, atol=1e-5)


def test_the_cosine_of_a_row_does_not_depend_on_the_others_and_is_zero_without_direction():
    space = Space.fit(blocks(ROWS), clusters=4, reduce=16)
    far = np.concatenate((ROWS[:3], 1e6 * ROWS[3:4]))
    np.testing.assert_allclose(space.place(far).cosine[:3], space.place(ROWS[:3]).cosine, rtol=1e-5)
    assert (Space.fit(blocks(ROWS), clusters=1, reduce=16).place(ROWS).cosine == 0).all()
    assert (Space.fit([ROWS + 1], clusters=1).place(ROWS).cosine != 0).all()


@pytest.mark.parametrize("reduce", [0, 16])
def test_the_fused_pass_is_the_fit_and_its_places(reduce):
    space, ids, distance = fit_space_once(blocks(ROWS), 4, reduce)
    assert space.digest() == Space.fit(blocks(ROWS), 4, reduce).digest()
    placed = space.place(ROWS)
    np.testing.assert_array_equal(ids, placed.ids)
    np.testing.assert_allclose(distance, placed.distance, rtol=1e-3, atol=1e-5)


def test_the_fused_pass_is_exact_pca_and_near_full_kmeans_in_four_reads():
    source = Counted(ROWS)
    space, _, _ = fit_space_once(source, 4, 16, passes=2)
    assert source.reads == 4
    full = PCA(16, svd_solver="full").fit(ROWS.astype(np.float64))
    assert subspace_angle(space.pca.components_, full.components_) < 1e-5
    reduced = full.transform(ROWS)
    assert space.kmeans.inertia_ <= 1.05 * KMeans(4, n_init=10, random_state=0).fit(reduced).inertia_


def test_s11_prototypes_lie_where_their_rows_lie():
    space = Space.fit(blocks(ROWS), clusters=4, reduce=16)
    found = space.prototypes(blocks(ROWS, 77), 2)
    assert found.ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    placed = space.place(ROWS[found.rows])
    assert placed.ids.tolist() == found.ids.tolist()
    np.testing.assert_allclose(placed.reduced, found.embeddings, atol=1e-5)


@pytest.mark.parametrize("reduce", [0, 2])
def test_constant_and_few_rows_are_one_cluster(reduce):
    constant = Space.fit([np.full((50, 4), 3.0, np.float32)], reduce=reduce)
    assert constant.clusters == 1
    assert (constant.place(np.full((2, 4), 3.0, np.float32)).distance < 1e-5).all()
    assert Space.fit([ROWS[:3, :4]], reduce=reduce).clusters == 1


@pytest.mark.parametrize("reduce", [0, 2])
def test_bad_input_is_refused_with_the_argument(reduce):
    rows = ROWS[:30, :4]
    with pytest.raises(ValueError, match="clusters: expected at most as many as there are rows"):
        Space.fit([rows], clusters=31, reduce=reduce)
    with pytest.raises(ValueError, match="blocks: expected rows to learn a space from, got none"):
        Space.fit([], reduce=reduce)
    with pytest.raises(ValueError, match="clusters, passes: expected at least 1"):
        Space.fit([rows], clusters=0, reduce=reduce)
    with pytest.raises(ValueError, match="give a list"):
        Space.fit(iter([rows]), clusters=2, reduce=reduce)
    bad = rows.copy()
    bad[9, 1] = np.nan
    with pytest.raises(ValueError, match=r"blocks: .* row 9"):
        Space.fit(blocks(bad, 4), clusters=2, reduce=reduce)
    with pytest.raises(ValueError, match=r"points: .* row 9"):
        Space.fit([rows], clusters=2, reduce=reduce).place(bad)
    with pytest.raises(ValueError, match="points: expected shape"):
        Space.fit([rows], clusters=2, reduce=reduce).place(rows[:, :1])


def test_a_reduction_out_of_range_is_refused():
    with pytest.raises(ValueError, match="reduce: expected 0 for the full space"):
        Space.fit([ROWS], reduce=-1)
    with pytest.raises(ValueError, match="components: expected at most the embedding's 4, got 5; ask for fewer"):
        Space.fit([ROWS[:, :4]], reduce=5)
    with pytest.raises(ValueError, match="blocks: expected at least 9 rows for 9 components, got 8"):
        Space.fit([ROWS[:8]], reduce=9)


def test_no_silhouette_above_a_tenth_is_one_cluster():
    assert chosen_clusters([{"clusters": 2, "value": 0.1}, {"clusters": 3, "value": None}]) == 1
    assert chosen_clusters([{"clusters": 2, "value": 0.5}, {"clusters": 3, "value": 0.5}]) == 2

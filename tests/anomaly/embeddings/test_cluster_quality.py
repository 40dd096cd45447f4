"""Inertia, silhouette, retrieval and stability of clusters (METHODS S9, S12, S14)."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_samples, silhouette_score
from sklearn.neighbors import NearestNeighbors

from anomaly.embeddings import StreamedKMeans
from anomaly.embeddings.quality import (
    cosine_to_centre,
    label_stability,
    retrieval,
    silhouette,
    silhouette_of,
    stability_tail,
    streamed_inertia,
)

ARI_BOUND = 0.95


def planted(rows: int = 3000, modes: int = 4, width: int = 6, seed: int = 0, apart: float = 5.0):
    """Rows in ``modes`` modes of unequal size, and their modes."""
    rng = np.random.default_rng(seed)
    mode = rng.choice(modes, rows, p=np.arange(1, modes + 1) / np.arange(1, modes + 1).sum())
    return (rng.normal(size=(modes, width))[mode] * apart + rng.normal(size=(rows, width))).astype(np.float32), mode


def test_s12_streamed_inertia_is_exact():
    rows, _ = planted()
    full = KMeans(4, n_init=2, random_state=0).fit(rows.astype(np.float64))
    cut = [rows[at : at + 33] for at in range(0, len(rows), 33)]
    centres = full.cluster_centers_.astype(np.float32)
    apart = ((rows[:, None].astype(np.float64) - centres[None]) ** 2).sum(axis=2).min(axis=1)
    assert streamed_inertia(cut, centres) == pytest.approx(apart.sum(), rel=1e-12)
    assert streamed_inertia(cut, centres) == pytest.approx(full.inertia_, rel=1e-6)
    with pytest.raises(ValueError, match=r"blocks: expected shape \(rows, 6\)"):
        streamed_inertia([rows[:, :2]], centres)


def test_s12_every_row_drawn_is_the_exact_silhouette():
    rows, mode = planted(700)
    rows[5] = rows[6]
    mode[0] = 99  # a cluster of one row
    np.testing.assert_allclose(silhouette_of(rows, np.unique(mode, return_inverse=True)[1], np.arange(700)),
                               silhouette_samples(rows.astype(np.float64), mode), atol=1e-9)  # fmt: skip
    found = silhouette(rows, mode, sample=10_000)
    assert found.value == pytest.approx(silhouette_score(rows.astype(np.float64), mode), abs=1e-9)
    assert found.low == found.high == found.value
    assert found.rows == 700


@pytest.mark.parametrize("apart", [0.7, 2.0, 5.0])
def test_s12_the_sampled_silhouette_holds_the_exact_one_in_its_interval(apart):
    rows, mode = planted(apart=apart)
    exact = silhouette_score(rows, mode)
    found = [silhouette(rows, mode, sample=200, seed=seed) for seed in range(40)]
    inside = sum(f.low <= exact <= f.high for f in found)
    assert inside >= 34  # 95 % intervals: 34 or fewer of 40 would come by once in 70 times
    assert all(f.low < f.value < f.high and f.high - f.low < 0.2 for f in found)


def test_s12_a_single_cluster_gives_a_reason_and_no_number():
    rows, _ = planted(50)
    for ids, reason in ((np.zeros(50, int), "1 cluster: there is no other"), (np.arange(50), "a cluster of its own")):
        found = silhouette(rows, ids)
        assert (found.value, found.low, found.high, found.rows) == (None, None, None, 0)
        assert reason in found.reason
    assert "0 cluster" in silhouette(rows[:0], np.zeros(0, int)).reason
    assert silhouette(rows, np.arange(50) % 2).reason == ""


def test_silhouette_of_equal_rows_is_zero_not_nan():
    assert silhouette(np.ones((20, 3), np.float32), np.arange(20) % 2).value == 0


def test_silhouette_refuses_bad_input():
    rows, mode = planted(50)
    with pytest.raises(ValueError, match="ids: expected one for each of 50 points, got 49"):
        silhouette(rows, mode[1:])
    with pytest.raises(ValueError, match="sample: expected at least 2"):
        silhouette(rows, mode, sample=1)
    rows[7] = np.nan
    with pytest.raises(ValueError, match=r"points: .* row 7"):
        silhouette(rows, mode)


def test_s9_retrieval_is_that_of_a_neighbour_search():
    rows, mode = planted(600, apart=1.0)
    near = NearestNeighbors(n_neighbors=11).fit(rows).kneighbors(rows, return_distance=False)[:, 1:]
    assert retrieval(rows, mode, sample=600) == pytest.approx((mode[near] == mode[:, None]).mean(), abs=1e-3)
    assert retrieval(rows, np.zeros(600)) == 1.0
    assert retrieval(rows[:3], np.array(["a", "b", "c"])) == 0.0
    with pytest.raises(ValueError, match="labels: expected one for each of at least 2 points"):
        retrieval(rows, mode[1:])


@pytest.mark.parametrize("seed", range(4))
def test_s14_known_modes_are_recovered(seed):
    rows, mode = planted(seed=seed)
    ids, _ = StreamedKMeans(4, seed).fit([rows[at : at + 200] for at in range(0, len(rows), 200)]).assign(rows)
    assert adjusted_rand_score(mode, ids) > ARI_BOUND


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_s14_flipped_labels_rank_in_the_low_stability_tail(offset):
    rows, mode = planted(2000, seed=1)
    flipped = np.random.default_rng(0).choice(2000, 60, replace=False)
    labels = mode.copy()
    labels[flipped] = (labels[flipped] + 1) % 4
    tail = stability_tail(label_stability(rows + np.float32(offset), labels), 0.05)  # 100 rows
    assert np.isin(flipped, tail).mean() > 0.9
    reference = stability_tail(-label_stability(rows + np.float32(offset), labels), 0.5)
    assert not np.isin(flipped, reference).any()


def test_cosine_to_centre_is_its_definition_and_zero_without_direction():
    rows, mode = planted(50)
    centres = np.stack([rows[mode == i].mean(axis=0) for i in range(4)])
    expected = [r @ c / np.linalg.norm(r) / np.linalg.norm(c) for r, c in zip(rows, centres[mode], strict=True)]
    np.testing.assert_allclose(cosine_to_centre(rows, centres, mode), expected, atol=1e-6)
    rows[3], centres[1] = 0, 0
    found = cosine_to_centre(rows, centres, mode)
    assert found[3] == 0
    assert (found[mode == 1] == 0).all()
    tiny = np.full((1, 6), 1e-9, np.float32)
    assert cosine_to_centre(rows[:1], tiny, np.zeros(1, int), np.ones(1, np.float32)).tolist() == [0]


def test_stability_of_one_label_and_bad_input():
    rows, mode = planted(50)
    assert np.isfinite(label_stability(rows, np.zeros(50))).all()
    assert (label_stability(np.ones((4, 2), np.float32), np.array([0, 0, 1, 1])) == 0).all()
    with pytest.raises(ValueError, match="labels: expected one for each"):
        label_stability(rows, mode[1:])
    with pytest.raises(ValueError, match="share: expected above 0"):
        stability_tail(np.ones(3), 0)

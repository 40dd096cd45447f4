"""The streamed reduction of embeddings (METHODS S8)."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from anomaly.embeddings import StreamedPCA, subspace_angle
from anomaly.embeddings.reduction import Moments

ANGLE_BOUND = 1e-5  # radians, covariance way; every direction kept is apart from those left out
INCREMENTAL_BOUND = 0.1
METHODS = ("covariance", "incremental")


def falling(rows: int = 3000, width: int = 12, offset: float = 0.0, seed: int = 0) -> np.ndarray:
    """Rows whose standard deviation halves every other direction of a turned basis."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return ((rng.normal(size=(rows, width)) * 0.7 ** np.arange(width)) @ basis + offset).astype(np.float32)


def blocks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


@pytest.mark.parametrize(("method", "bound"), [("covariance", ANGLE_BOUND), ("incremental", INCREMENTAL_BOUND)])
def test_s8_the_angle_to_the_full_pca_is_below_the_bound(method, bound):
    rows = falling()
    full = PCA(4, svd_solver="full").fit(rows.astype(np.float64))
    ours = StreamedPCA(4, method).fit(blocks(rows, 256))
    assert subspace_angle(ours.components_, full.components_) < bound
    assert subspace_angle(ours.components_, PCA(12).fit(rows).components_[4:8]) > 1.5  # the measure can fail
    np.testing.assert_allclose(ours.mean_, full.mean_, atol=1e-6)
    np.testing.assert_allclose(ours.variance_kept, full.explained_variance_ratio_.sum(), rtol=1e-2)
    assert ours.n_samples_seen_ == len(rows)


def test_s8_the_covariance_way_has_every_attribute_of_the_full_pca():
    rows = falling(offset=3.0)
    full = PCA(5, svd_solver="full").fit(rows.astype(np.float64))
    ours = StreamedPCA(5).fit(blocks(rows, 700))
    np.testing.assert_allclose(ours.explained_variance_, full.explained_variance_, rtol=1e-10)
    np.testing.assert_allclose(ours.explained_variance_ratio_, full.explained_variance_ratio_, rtol=1e-10)
    np.testing.assert_allclose(np.abs(ours.components_), np.abs(full.components_), atol=1e-8)
    signs = np.sign((ours.components_ * full.components_).sum(axis=1))
    np.testing.assert_allclose(ours.transform(rows), full.transform(rows) * signs, atol=2e-6)
    assert ours.transform(rows).dtype == np.float32


@pytest.mark.parametrize("method", METHODS)
def test_s8_signs_do_not_depend_on_the_blocks(method):
    rows = falling()
    parts = [StreamedPCA(3, method).fit(blocks(rows, size)).components_ for size in (len(rows), 500, 333)]
    for components in parts:
        assert (components[np.arange(3), np.abs(components).argmax(axis=1)] > 0).all()
        assert ((components * parts[0]).sum(axis=1) > 0.9).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [[40, 3], [3, 40], [2, 2, 2, 2], [40, 1, 1, 1, 30, 2], [9], [0, 20, 0, 1]])
def test_s8_no_block_is_too_small(method, sizes):
    rows = falling(sum(sizes))
    cut = np.split(rows, np.cumsum(sizes)[:-1])
    ours = StreamedPCA(8, method).fit(cut)
    full = PCA(8, svd_solver="full").fit(rows.astype(np.float64))
    assert ours.n_samples_seen_ == len(rows)
    np.testing.assert_allclose(ours.mean_, full.mean_, atol=1e-6)
    assert ours.transform(rows).shape == (len(rows), 8)
    if method == "covariance" and len(rows) > 8:
        assert subspace_angle(ours.components_, full.components_) < ANGLE_BOUND


def test_s8_variance_kept_is_the_share_of_the_planted_directions():
    rng = np.random.default_rng(3)
    rows = (rng.normal(size=(20_000, 3)) * [2.0, 1.0, 1.0]).astype(np.float32)
    assert StreamedPCA(1).fit(blocks(rows, 999)).variance_kept == pytest.approx(4 / 6, abs=0.02)
    assert StreamedPCA(3).fit([rows]).variance_kept == pytest.approx(1.0)


def test_a_large_common_offset_costs_no_digits():
    rows = falling(4000, 6, offset=4096.0)
    full = PCA(2, svd_solver="full").fit(rows.astype(np.float64))
    ours = StreamedPCA(2).fit(blocks(rows, 100))
    assert subspace_angle(ours.components_, full.components_) < ANGLE_BOUND
    np.testing.assert_allclose(ours.explained_variance_, full.explained_variance_, rtol=1e-9)
    turned = full.transform(rows) * np.sign((ours.components_ * full.components_).sum(axis=1))
    np.testing.assert_allclose(ours.transform(rows), turned, atol=2e-5)


def test_moments_of_blocks_are_those_of_all_rows():
    rows = falling(100, 5, offset=2.0)
    moments = Moments(5)
    for block in np.split(rows, [1, 4, 60]):
        moments.add(block)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance(), np.cov(rows.T.astype(np.float64)), rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_zero_variance_columns_are_fine(method):
    rows = falling(500, 6)
    rows[:, [1, 4]] = 7.0
    ours = StreamedPCA(4, method).fit(blocks(rows, 50))
    np.testing.assert_allclose(ours.components_[:, [1, 4]], 0, atol=1e-9)
    assert ours.variance_kept == pytest.approx(1.0)


@pytest.mark.parametrize("method", METHODS)
def test_constant_embeddings_lose_nothing_and_land_on_the_origin(method):
    rows = np.full((30, 4), 5.0, np.float32)
    ours = StreamedPCA(2, method).fit(blocks(rows, 7))
    assert ours.variance_kept == 1.0
    assert np.isfinite(ours.explained_variance_ratio_).all()
    np.testing.assert_allclose(ours.transform(rows), 0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_bad_input_is_refused_with_the_argument_and_the_cure(method):
    rows = falling(50, 4)
    with pytest.raises(ValueError, match="components: expected at most the embedding's 4, got 5; ask for fewer"):
        StreamedPCA(5, method).fit([rows])
    with pytest.raises(ValueError, match="blocks: expected at least 4 rows for 4 components, got 3; give more"):
        StreamedPCA(4, method).fit([rows[:2], rows[2:3]])
    with pytest.raises(ValueError, match="blocks: expected at least 2 rows for 1 components, got 0"):
        StreamedPCA(1, method).fit([])
    bad = rows.copy()
    bad[33, 2] = np.inf
    with pytest.raises(ValueError, match=r"NaN or infinity in row 33; leave"):
        StreamedPCA(2, method).fit(blocks(bad, 20))
    with pytest.raises(ValueError, match=r"points: .* row 33"):
        StreamedPCA(2, method).fit([rows]).transform(bad)
    with pytest.raises(ValueError, match=r"points: expected shape \(rows, 4\), got \(50, 3\)"):
        StreamedPCA(2, method).fit([rows]).transform(rows[:, :3])
    with pytest.raises(ValueError, match=r"blocks: expected shape \(rows, 4\)"):
        StreamedPCA(2, method).fit([rows, rows[:, :3]])


def test_settings_out_of_range_and_use_before_a_fit_are_refused():
    with pytest.raises(ValueError, match="components: expected at least 1, got 0"):
        StreamedPCA(0)
    with pytest.raises(ValueError, match="method: expected covariance or incremental"):
        StreamedPCA(1, "random")
    for use in (lambda p: p.transform(falling()), lambda p: p.variance_kept):
        with pytest.raises(ValueError, match="call fit first"):
            use(StreamedPCA(1))


@pytest.mark.parametrize("method", METHODS)
def test_a_state_gives_the_same_numbers(method):
    rows = falling()
    ours = StreamedPCA(3, method).fit([rows])
    again = StreamedPCA.from_state(*ours.to_state())
    np.testing.assert_array_equal(again.transform(rows), ours.transform(rows))
    assert (again.variance_kept, again.n_samples_seen_) == (ours.variance_kept, len(rows))


def test_the_angle_of_a_known_turn():
    a, b = np.array([[1.0, 0, 0], [0, 1, 0]]), np.array([[1.0, 0, 0], [0, np.cos(0.3), np.sin(0.3)]])
    assert subspace_angle(a, b) == pytest.approx(0.3)
    assert subspace_angle(a, a[::-1]) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="a, b: expected components of equal width"):
        subspace_angle(a, b[:, :2])

"""Banks searched through bounds: the same neighbours as by every distance, whatever the points; and windows that are views."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from anomaly import compiled
from anomaly.detectors import bounds
from anomaly.detectors.base import Encoded
from anomaly.detectors.local import LocalDetector, shared_rows
from anomaly.detectors.neighbours import RankedBank, nearest_in_bank, ranked_bank

Floats = NDArray[np.float32]


def near_a_plane(rows: int, width: int = 96, seed: int = 0, noise: float = 0.05) -> Floats:
    """Rows near a plane of six directions, far from zero."""
    rng, plane = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(6, width))
    return (20 + 3 * rng.normal(size=(rows, 6)) @ plane + noise * rng.normal(size=(rows, width))).astype(np.float32)


@pytest.fixture(scope="module")
def bank() -> Floats:
    return near_a_plane(1500)


@pytest.fixture(scope="module")
def ranked(bank: Floats) -> RankedBank:
    made = ranked_bank(bank)
    assert made.bounds is not None
    return made


def every_distance(points: Floats, bank: Floats, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The definition, in double precision."""
    apart = np.array([np.sqrt(((p.astype(np.float64) - bank) ** 2).sum(axis=1)) for p in points])
    order = np.lexsort((np.broadcast_to(np.arange(len(bank)), apart.shape), apart))[:, :k]
    return np.take_along_axis(apart, order, axis=1), order


@pytest.mark.parametrize("k", [1, 3])
def test_bounds_leave_every_neighbour(bank: Floats, ranked: RankedBank, k: int) -> None:
    points = near_a_plane(300, seed=1)
    points[100:150] += np.random.default_rng(2).normal(0, 2, (50, 96)).astype(np.float32)
    points[150:170] *= 5
    distances, positions = nearest_in_bank(points, bank, k, ranked=ranked)
    expected, order = every_distance(points, bank, k)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)
    assert (positions == order).all()


def test_a_bound_is_never_above_the_distance(bank: Floats, ranked: RankedBank) -> None:
    assert ranked.bounds is not None
    points = np.concatenate((near_a_plane(20, seed=3), near_a_plane(20, seed=4, noise=3.0)))
    coordinates, squares = ranked.bounds.coordinates(points)
    below = (coordinates @ ranked.bounds.table[:, : len(bank)]).astype(np.float64) + squares[:, None]
    exact = np.array([((p.astype(np.float64) - bank) ** 2).sum(axis=1) for p in points])
    assert (below - exact <= bounds._ROUNDING * (squares[:, None] + ranked.bounds.farthest)).all()
    assert np.median(below / exact) > 0.9  # and they say something


def test_points_far_away_and_infinite_ones_are_left_to_the_whole_product(bank: Floats, ranked: RankedBank) -> None:
    assert ranked.bounds is not None
    points = np.concatenate((near_a_plane(3, seed=5), np.full((1, 96), 1e30, np.float32), near_a_plane(2, noise=1e3)))
    products = np.empty((len(points), ranked.bounds.table.shape[1]), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        left = bounds.nearest_within(
            ranked.bounds, points, bank, products, np.empty((6, 3)), np.empty((6, 3), np.int64)
        )
    assert 3 in left and not set(left) & {0, 1, 2}


def test_equal_rows_come_in_the_order_of_the_bank() -> None:
    bank = near_a_plane(1200)
    bank[900:910] = bank[3]
    made = ranked_bank(bank)
    assert made.bounds is not None
    distances, positions = nearest_in_bank(bank[[3, 905]], bank, 3, ranked=made)
    assert (distances == 0).all() and positions.tolist() == [[3, 900, 901]] * 2


def test_no_bounds_where_they_would_not_pay() -> None:
    noise = np.random.default_rng(6).normal(size=(1500, 96)).astype(np.float32)
    assert ranked_bank(noise).bounds is None  # no plane
    assert ranked_bank(near_a_plane(1500, width=24)).bounds is None
    assert ranked_bank(near_a_plane(200)).bounds is None
    assert ranked_bank(near_a_plane(1500), bounded=False).bounds is None


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ANOMALY_COMPILED", "0")
    for kernel in (bounds.pruning, compiled.ranking):
        kernel.cache_clear()
    yield
    for kernel in (bounds.pruning, compiled.ranking):
        kernel.cache_clear()


@pytest.mark.usefixtures("without_numba")
def test_without_numba_there_are_no_bounds_and_the_same_neighbours(bank: Floats, ranked: RankedBank) -> None:
    assert ranked_bank(bank).bounds is None
    points = near_a_plane(20, seed=7)
    assert (nearest_in_bank(points, bank, 3)[1] == every_distance(points, bank, 3)[1]).all()
    assert ranked.bounds is not None
    with pytest.raises(ValueError, match="numba"):
        bounds.nearest_within(ranked.bounds, points, bank, points, points, points)


@pytest.mark.parametrize("over", ["max", "mean"])
def test_departures_of_views_score_as_those_of_copies(over: str) -> None:
    rows = np.random.default_rng(8).standard_t(2, (200, 5)).astype(np.float32) * 3
    views = sliding_window_view(rows, 16, axis=0).swapaxes(1, 2)
    assert shared_rows(views) is not None and shared_rows(views.copy()) is None
    detector = LocalDetector(over=over).fit([Encoded(views, local=views)])
    scored, copied = (detector.shares(Encoded(w, local=w)) for w in (views, views.copy()))
    assert (scored == copied).all()
    assert (detector.shares(Encoded(views[50:51], local=views[50:51])) == copied[50:51]).all()


def test_a_view_that_is_not_finite_is_refused_by_its_window() -> None:
    rows = np.ones((50, 2), np.float32)
    rows[30, 1] = np.nan
    views = sliding_window_view(rows, 16, axis=0).swapaxes(1, 2)
    detector = LocalDetector().fit([Encoded(views[:5], local=views[:5])])
    with pytest.raises(ValueError, match="in window 15"):
        detector.shares(Encoded(views, local=views))

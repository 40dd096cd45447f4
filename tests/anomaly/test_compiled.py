"""Compiled inner loops give what the same in numpy gives, and nothing needs them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from anomaly import compiled
from anomaly.detectors.base import Encoded
from anomaly.detectors.boundary import IsolationForestDetector, path_lengths
from anomaly.detectors.neighbours import nearest_in_bank


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    compiled.ranking.cache_clear()
    compiled.walking.cache_clear()
    yield
    compiled.ranking.cache_clear()
    compiled.walking.cache_clear()


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_COMPILED", "0")
    compiled.ranking.cache_clear()
    compiled.walking.cache_clear()


@pytest.mark.parametrize(("m", "k"), [(1, 1), (5, 3), (127, 4), (128, 3), (1000, 3), (1300, 40), (5000, 5)])
@pytest.mark.parametrize("leave_out_self", [False, True])
def test_s52_the_nearest_are_the_same_to_rounding(
    m: int, k: int, leave_out_self: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if leave_out_self and m == 1:
        pytest.skip("a bank of one has no other row")
    rng = np.random.default_rng(m)
    bank = rng.normal(size=(m, 7)).astype(np.float32)
    bank[m // 2 :: 9] = bank[0]  # duplicates: ties go to the lowest position
    points = bank if leave_out_self else rng.normal(size=(300, 7)).astype(np.float32)
    assert compiled.ranking() is not None
    far, where = nearest_in_bank(points, bank, k, leave_out_self)
    without(monkeypatch)
    assert compiled.ranking() is None
    plain_far, plain_where = nearest_in_bank(points, bank, k, leave_out_self)
    np.testing.assert_allclose(far, plain_far, rtol=1e-12, atol=1e-12)
    apart = np.pad(np.diff(plain_far, axis=1) > 1e-9, ((0, 0), (1, 1)), constant_values=True)
    unique = apart[:, :-1] & apart[:, 1:]
    unique[:, -1] = False  # its like may be the first that was left out
    assert not unique.any() or (where == plain_where)[unique].all()


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 63, 64, 65, 500])
def test_s54_the_paths_are_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(700, 9)).astype(np.float32)
    forest = IsolationForestDetector(trees=20, sample=100).fit([Encoded(normal[:, None, :1], embedding=normal)])
    points = rng.normal(size=(rows, 9)).astype(np.float32) * 2
    tables = forest.features_, forest.limits_, forest.lengths_
    assert compiled.walking() is not None
    fast = path_lengths(points, *tables)
    without(monkeypatch)
    np.testing.assert_allclose(fast, path_lengths(points, *tables), rtol=1e-13)


def test_without_numba_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    assert compiled.ranking() is None and compiled.walking() is None

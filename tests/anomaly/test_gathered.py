"""What a space is learned from: the sample is the rows with the smallest keys of all, however the pieces came."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly import extraction
from anomaly.extraction import Gathered
from anomaly.scores.sampling import row_noise


@pytest.mark.parametrize("sizes", [[1000], [7] * 140 + [20], [0, 400, 3, 597]])
def test_s8_the_sample_is_the_rows_with_the_smallest_keys(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "_SAMPLE_ROWS", 64)
    rows = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    found, low = Gathered(), 0
    for size in sizes:
        found.merge(Gathered.of(np.arange(low, low + size), rows[low : low + size], seed=5))
        low += size
    arrays = found.to_arrays()
    best = np.sort(np.argsort(-row_noise(np.arange(1000), 5))[:64])
    np.testing.assert_array_equal(arrays["sample.rows"], rows[best])
    again = Gathered.from_arrays(arrays)
    np.testing.assert_array_equal(again.rows, rows[best])
    assert found.moments is not None
    np.testing.assert_allclose(found.moments.to_arrays()["mean"], rows.mean(axis=0), atol=1e-6)

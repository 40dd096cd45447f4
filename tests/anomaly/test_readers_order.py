"""The order of rows and the usual step in time, in bounded memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly.data.reading.order import Column, OrderFindings, RowOrder, StepCounter
from anomaly.data.reading.values import numbers


@given(st.lists(st.integers(-5, 50), min_size=1, max_size=60), st.integers(1, 59))
@settings(max_examples=60, deadline=None)
def test_median_step_is_the_lower_median_of_the_positive_steps(steps: list[int], cut: int) -> None:
    a, b = StepCounter(), StepCounter()
    a.add(np.array(steps[:cut], np.int64))
    b.add(np.array(steps[cut:], np.int64))
    a.merge(b)
    positive = sorted(s for s in steps if s > 0)
    assert a.total() == len(positive)
    assert a.median() == (positive[(len(positive) - 1) // 2] if positive else None)


def test_many_different_steps_are_kept_to_four_digits() -> None:
    steps = np.random.default_rng(3).integers(1, 10**9, 200_000)
    counter = StepCounter()
    for block in np.array_split(steps, 4):
        counter.add(block)
    assert counter.total() == len(steps)
    assert len(counter.counts) < 65_536
    assert counter.median() == pytest.approx(np.median(steps), rel=1e-3)


def columns(values: list[float], texts: list[str | None]) -> dict[str, Column]:
    text = pa.array(texts, pa.string())
    number = pa.array(values)
    return {"a": Column(numbers(number), number), "g": Column(numbers(text), text)}


def reference(us: NDArray[np.int64], assets: list[str], rows: list[tuple[str, str]]) -> OrderFindings:
    """The findings of one batch, row by row."""
    last: dict[str, int] = {}
    backwards, differing, repeated = [], [], 0
    for i, asset in enumerate(assets):
        if asset in last:
            j = last[asset]
            if us[i] < us[j]:
                backwards.append(i)
            elif us[i] == us[j]:
                repeated += 1
                differing += [(i, name) for name, x, y in zip("ag", rows[i], rows[j], strict=True) if x != y]
        last[asset] = i
    return OrderFindings(tuple(backwards), tuple(differing), repeated)


@given(st.integers(0, 10_000), st.integers(1, 39))
@settings(max_examples=60, deadline=None)
def test_findings_equal_a_row_by_row_reference_wherever_the_batch_ends(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    n = 40
    us = np.cumsum(rng.integers(-1, 3, n)) + 100
    assets = [str(a) for a in rng.choice(["A", "B", "C"], n)]
    values = rng.choice([1.0, 2.0, np.nan], n, p=[0.8, 0.1, 0.1]).tolist()
    texts = rng.choice(["x", "y", "5", None], n, p=[0.7, 0.1, 0.1, 0.1]).tolist()
    order = RowOrder()
    found: list[OrderFindings] = []
    for part in (slice(0, cut), slice(cut, n)):
        batch = columns(values[part], texts[part])
        valid = np.ones(len(us[part]), dtype=bool)
        found.append(order.update(us[part], valid, np.array(assets[part], dtype=object), batch))
    wanted = reference(us, assets, [(str(v), str(t)) for v, t in zip(values, texts, strict=True)])
    assert found[0].backwards + tuple(r + cut for r in found[1].backwards) == wanted.backwards
    assert found[0].differing + tuple((r + cut, c) for r, c in found[1].differing) == wanted.differing
    assert found[0].repeated + found[1].repeated == wanted.repeated
    for asset in set(assets):
        own = us[np.array(assets) == asset]
        assert order.spans[asset] == (own.min(), own.max())

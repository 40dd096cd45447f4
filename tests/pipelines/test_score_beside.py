"""Reading ahead and writing beside the scoring: the same rows in the same order, errors where they belong, little in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from anomaly.data.scaling import hold_last
from anomaly.stream import _held
from pipelines import score


@pytest.fixture(params=[1, 2], autouse=True)
def own_cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(score, "cores", lambda: request.param)
    return int(request.param)


def items(count: int, made: list[int], wrong: int | None = None) -> Iterator[Any]:
    for number in range(count):
        if number == wrong:
            raise OSError("cut off")
        made.append(number)
        yield number


def test_chunks_come_in_order_and_one_waits_at_most() -> None:
    made: list[int] = []
    for number in score.read_ahead(items(8, made)):
        time.sleep(0.01)
        assert len(made) <= number + 2
    assert made == list(range(8))


def test_an_error_of_reading_comes_after_the_chunks_before_it() -> None:
    seen = []
    with pytest.raises(OSError, match="cut off"):
        seen += [seen.append(number) for number in score.read_ahead(items(5, [], wrong=3))]
    assert seen == [0, 1, 2]


def test_a_reader_that_is_left_reads_no_further() -> None:
    made: list[int] = []
    ahead = score.read_ahead(items(100, made))
    assert next(ahead) == 0
    ahead.close()
    read = len(made)
    time.sleep(0.02)
    assert read <= 3 and len(made) == read


def test_calls_beside_are_made_in_order_and_all_of_them(own_cores: int) -> None:
    done, threads = [], set()

    def call(number: int) -> None:
        time.sleep(0.002)
        done.append(number)
        threads.add(threading.current_thread())

    with score.beside() as follow:
        for number in range(9):
            follow(call, number)
            assert number - len(done) <= 1
    assert done == list(range(9))
    assert (threading.current_thread() in threads) == (own_cores == 1)


def test_an_error_beside_ends_the_work() -> None:
    def call(number: int) -> None:
        if number == 2:
            raise ValueError("disk full")

    reached = 0
    with pytest.raises(ValueError, match="disk full"), score.beside() as follow:
        for number in range(9):
            follow(call, number)
            reached = number
    assert reached <= 3
    with pytest.raises(ValueError, match="disk full"), score.beside() as follow:
        follow(call, 2)  # the last one too


def test_tags_that_miss_nothing_are_held_as_the_others_are() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 5)).astype(np.float32)
    values[rng.random((400, 5)) < np.array([0, 0.3, 0, 0.9, 0])] = np.nan
    values[50:60, 2] = np.nan
    starts = rng.random(400) < 0.02
    state = mine = None
    for low, high in [(0, 7), (7, 55), (55, 56), (56, 200), (200, 200), (200, 400)]:
        expected = hold_last(values[low:high], starts[low:high], state)
        found = _held(values[low:high], starts[low:high], mine)
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(expected[:2], found[:2], strict=True))
        state, mine = expected[2], found[2]
        assert np.array_equal(state.values, mine.values, equal_nan=True) and (state.age == mine.age).all()

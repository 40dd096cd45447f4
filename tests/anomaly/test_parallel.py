"""Workers: order, errors, bounds, and one thread of linear algebra each."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from anomaly.parallel import at_once, cores, in_order, one_blas_thread


def _blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    def slow_at_first(n: int) -> int:
        time.sleep(0.02 if n == 0 else 0)
        return n * n

    assert list(in_order(slow_at_first, range(20), workers)) == [n * n for n in range(20)]
    assert at_once(slow_at_first, range(3)) == [0, 1, 4]


def test_two_workers_work_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=10)
    assert sorted(in_order(lambda _: meeting.wait(), range(4), workers=2)) == [0, 0, 1, 1]


def test_items_are_taken_no_further_ahead_than_said() -> None:
    taken = list[int]()

    def items():
        for n in range(50):
            taken.append(n)
            yield n

    results = in_order(lambda n: n, items(), workers=2, ahead=1)
    for given in range(10):
        assert next(results) == given
        assert len(taken) <= given + 3
    results.close()
    assert len(taken) <= 12


def test_an_error_is_raised_at_its_place_and_what_was_begun_is_waited_for() -> None:
    done = list[int]()

    def work(n: int) -> int:
        if n == 3:
            raise ValueError("n: expected less than 3, got 3")
        time.sleep(0.005)
        done.append(n)
        return n

    given = list[int]()
    with pytest.raises(ValueError, match="got 3"):
        for result in in_order(work, range(100), workers=2):
            given.append(result)
    assert given == [0, 1, 2]
    before = len(done)
    time.sleep(0.05)
    assert len(done) == before < 10
    with pytest.raises(ValueError, match="got 3"):
        at_once(work, [0, 3])


def test_workers_inside_workers_do_not_wait_for_each_other() -> None:
    def outer(n: int) -> list[int]:
        return [*in_order(lambda m: m + n, range(3), workers=2), *at_once(lambda m: m, [n, n])]

    assert list(in_order(outer, range(8), workers=2)) == [[n, n + 1, n + 2, n, n] for n in range(8)]


def test_linear_algebra_has_one_thread_per_worker_and_its_own_number_afterwards() -> None:
    before = _blas_threads()
    inside = list(in_order(lambda _: _blas_threads(), range(3), workers=2))
    assert inside == [{1}] * 3
    assert _blas_threads() == before
    with one_blas_thread(), one_blas_thread():
        assert _blas_threads() == {1}
    assert _blas_threads() == before


def test_limits_that_overlap_end_with_the_last() -> None:
    before = _blas_threads()
    first, second = one_blas_thread(), one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _blas_threads() == {1}
    second.__exit__(None, None, None)
    assert _blas_threads() == before


def test_products_are_the_same_for_any_number_of_workers() -> None:
    rows = np.random.default_rng(0).normal(size=(8, 300, 65)).astype(np.float32)
    table = np.random.default_rng(1).normal(size=(65, 4000)).astype(np.float32)
    one, two = (list(in_order(lambda part: part @ table, rows, n)) for n in (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_cores_are_those_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 1 <= cores() <= (os.cpu_count() or 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores() == 1

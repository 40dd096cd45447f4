"""F9: of several promotions at once exactly one wins, each loser is told, and the audit has one line for each win."""

from __future__ import annotations

import multiprocessing
import sqlite3
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from anomaly.errors import ModelRefused
from registry.promotion_table import Champion, Entry, PromotionTable
from registry.state import State

ROUNDS, PROCESSES = 20, 4


def _table(folder: str) -> PromotionTable:
    return PromotionTable(State(Path(folder), f"sqlite:///{folder}/mlflow.db"))


def _compete(folder: str, number: int, start: Barrier, said: Queue[tuple[int, int, str]]) -> None:
    """One process: in each round, decide against the champion all of them saw, and try to change it."""
    table = _table(folder)
    for turn in range(ROUNDS):
        seen = table.champion("press")
        start.wait(60)  # all have read
        version = 100 * (turn + 1) + number
        line = Entry("2026-01-01T00:00:00+00:00", f"p{number}", "promoted", "press", None, version, "", "d")
        try:
            table.change(seen, Champion("press", version, "d", seen.version if seen else None), line)
            said.put((turn, version, "won"))
        except ModelRefused as error:
            said.put((turn, version, error.faults[0].code))
        start.wait(60)  # all have tried


def test_f9_exactly_one_of_several_promotions_wins_in_each_round(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, said = context.Barrier(PROCESSES), context.Queue()
    jobs = [context.Process(target=_compete, args=(str(tmp_path), i, start, said)) for i in range(PROCESSES)]
    for job in jobs:
        job.start()
    results = [said.get(timeout=60) for _ in range(ROUNDS * PROCESSES)]
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0] * PROCESSES
    winners = {}
    for turn in range(ROUNDS):
        own = [(version, verdict) for t, version, verdict in results if t == turn]
        assert sorted(v for _, v in own) == ["E4102"] * (PROCESSES - 1) + ["won"], turn
        winners[turn] = next(version for version, verdict in own if verdict == "won")
    last = _table(str(tmp_path)).champion("press")
    assert last is not None and (last.version, last.revision) == (winners[ROUNDS - 1], ROUNDS)
    assert [e.to_version for e in _table(str(tmp_path)).history("press")] == [winners[t] for t in range(ROUNDS)]


def test_a_comparison_left_out_would_let_several_win(tmp_path: Path) -> None:
    """The race above can fail: two changes decided against the same row both pass where only the name is looked at."""
    table = _table(str(tmp_path))
    line = Entry("2026-01-01T00:00:00+00:00", "p", "promoted", "press", None, 1, "", "d")
    first = table.change(None, Champion("press", 1, "d"), line)
    table.change(first, Champion("press", 2, "d", 1), line)
    with sqlite3.connect(table.path) as plain:
        assert plain.execute("UPDATE champions SET champion = 3 WHERE name = 'press'").rowcount == 1
        plain.rollback()
    with pytest.raises(ModelRefused, match="E4102"):
        table.change(first, Champion("press", 3, "d", 1), line)

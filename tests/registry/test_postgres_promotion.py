"""Tracking and promotion in a PostgreSQL server: the race of many processes, the way back, what it refuses."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from postgres import Server, server_of

from anomaly.errors import ModelRefused, Unavailable, UsageError
from registry import promotion_table
from registry.promotion_table import Champion, Entry, PromotionTable
from registry.state import State

pytestmark = pytest.mark.postgres

ROUNDS, PROCESSES = 200, 8
DRIVER = "postgresql+psycopg"


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Server:
    """The server of this test process."""
    return server_of(request.config)


@pytest.fixture
def name(server: Server) -> Iterator[str]:
    """An empty database of it."""
    with server.lent() as lent:
        yield lent


@pytest.fixture
def url(server: Server, name: str) -> str:
    """Its URL, as MLFLOW_TRACKING_URI has it."""
    return server.url(name, DRIVER)


def table_at(url: str) -> PromotionTable:
    return PromotionTable(State(Path("unused"), url))


def entry(version: int, action: str = "promoted", **changes: Any) -> Entry:
    given = {"at": "2026-01-01T00:00:00+00:00", "who": "ann", "action": action, "name": "press", "from_version": None,
             "to_version": version, "why": "", "digest": "d"}  # fmt: skip
    return Entry(**(given | changes))


# -- the race


class _Kept:
    """A connection that is closed only when its process ends: with a new one for each step, 200 rounds take a minute."""

    def __init__(self, connection: Any) -> None:
        self.cursor, self.commit, self.rollback = connection.cursor, connection.commit, connection.rollback

    def close(self) -> None:
        self.rollback()


def _compete(url: str, number: int, start: Barrier, said: Queue[tuple[int, int, str]]) -> None:
    """One process: in each round, decide against the champion all of them saw, and try to change it."""
    kept = _Kept(promotion_table._postgres(url))
    promotion_table._postgres = lambda _: kept
    table = table_at(url)
    for turn in range(ROUNDS):
        seen = table.champion("press")
        start.wait(120)  # all have read
        version = 100 * (turn + 1) + number
        wanted = Champion(
            "press", version, f"d{version}", seen.version if seen else None, seen.digest if seen else None
        )
        try:
            table.change(seen, wanted, entry(version, who=f"p{number}"))
            said.put((turn, version, "won"))
        except ModelRefused as error:
            said.put((turn, version, error.faults[0].code))
        start.wait(120)  # all have tried


def test_f9_of_eight_promotions_at_once_exactly_one_wins_in_each_of_200_rounds(
    url: str, server: Server, name: str
) -> None:
    context = multiprocessing.get_context("spawn")
    start, said = context.Barrier(PROCESSES), context.Queue()
    jobs = [context.Process(target=_compete, args=(url, i, start, said)) for i in range(PROCESSES)]
    for job in jobs:
        job.start()
    results = [said.get(timeout=120) for _ in range(ROUNDS * PROCESSES)]
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0] * PROCESSES
    winners = {}
    for turn in range(ROUNDS):
        own = [(version, verdict) for t, version, verdict in results if t == turn]
        assert sorted(v for _, v in own) == ["E4102"] * (PROCESSES - 1) + ["won"], turn
        winners[turn] = next(version for version, verdict in own if verdict == "won")
    assert len({version % 100 for version in winners.values()}) > 1, "always the same process won: nothing was shown"
    table = table_at(url)
    last = table.champion("press")
    assert last is not None and (last.version, last.revision) == (winners[ROUNDS - 1], ROUNDS)
    assert [e.to_version for e in table.history("press")] == [winners[t] for t in range(ROUNDS)]
    assert last.previous == winners[ROUNDS - 2]
    back = Champion("press", last.previous, last.previous_digest or "", last.version, last.digest)
    after = table.change(last, back, entry(last.previous, "rolled back", from_version=last.version, why="worse"))
    assert table.champion("press") == after and (after.version, after.previous) == (winners[ROUNDS - 2], last.version)
    assert table.history("press")[-1].action == "rolled back"
    assert server.cut(name) <= 1, "connections are not left behind"


# -- the table


def test_every_change_counts_and_old_rows_do_not(url: str) -> None:
    table = table_at(url)
    assert table.champion("press") is None and table.history("press") == ()
    first = table.change(None, Champion("press", 1, "d"), entry(1, evidence={"a": [1.5, None, "é"]}))
    second = table.change(first, Champion("press", 2, "e", 1, "d"), entry(2))
    for stale in (None, first):
        with pytest.raises(ModelRefused, match="E4102"):
            table.change(stale, Champion("press", 5, "f"), entry(5))
    table.note(entry(3, "refused", why="worse"))
    assert table.champion("press") == second and second.revision == 2
    assert [(e.action, e.to_version) for e in table.history("press")] == [
        ("promoted", 1),
        ("promoted", 2),
        ("refused", 3),
    ]
    assert table.history("press")[0].evidence == {"a": [1.5, None, "é"]}


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE champions; -- % %s ? :x", "漢字 🙂 \u202e", "", "a" * 5000, "$1 \\ \r\n\t"]
)
def test_hostile_text_is_data(url: str, text: str) -> None:
    table = table_at(url)
    made = table.change(None, Champion(text, 1, text), entry(1, name=text, why=text, who=text, evidence={text: text}))
    (line,) = table.history(text)
    assert table.champion(text) == made and (line.why, line.who, line.evidence) == (text, text, {text: text})


def test_a_zero_byte_is_refused_and_nothing_is_written(url: str) -> None:
    table = table_at(url)
    table.note(entry(1, "registered", name="boiler"))
    for call in (
        lambda: table.change(None, Champion("press", 1, "d"), entry(1, why="a\x00b")),
        lambda: table.note(entry(1, "refused", who="\x00")),
        lambda: table.champion("\x00"),
    ):
        with pytest.raises(UsageError, match="E2001"):
            call()
    assert table.champion("press") is None and table.history("press") == ()


def test_a_line_of_the_audit_that_cannot_be_written_undoes_the_change(url: str) -> None:
    table = table_at(url)
    with pytest.raises(ValueError, match="action: expected one of"):
        table.change(None, Champion("press", 1, "d"), entry(1, "stolen"))
    assert table.champion("press") is None and table.history("press") == ()


def test_a_connection_cut_in_a_promotion_leaves_neither_row_nor_line(
    url: str, server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_at(url)
    first = table.change(None, Champion("press", 1, "d"), entry(1))

    def killpoint(point: str) -> None:
        if point == "promotion.before_commit":
            server.cut(name)

    monkeypatch.setattr(promotion_table, "killpoint", killpoint)
    with pytest.raises(Unavailable, match="E5003"):
        table.change(first, Champion("press", 2, "e", 1, "d"), entry(2))
    monkeypatch.undo()
    assert table.champion("press") == first and len(table.history("press")) == 1
    assert server.cut(name) <= 1
    assert table.change(first, Champion("press", 2, "e", 1, "d"), entry(2)).revision == 2


def test_a_server_that_refuses_is_told_without_the_password(server: Server) -> None:
    for where in (f"{DRIVER}://anomaly:canary-7@/gone?host={server.folder}", f"{DRIVER}://a:canary-7@/x?host=/none"):
        with pytest.raises(Unavailable, match="E5003") as refused:
            table_at(where).champion("press")
        assert "canary-7" not in str(refused.value)

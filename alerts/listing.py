"""The query of a page of the alert list: filters, and a cursor instead of an offset: page 2 000 costs what page 1 does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from alerts import tables
from alerts.states import CLOSED, KINDS, STATES
from alerts.texts import checked_text
from anomaly.errors import Fault, UsageError

LARGEST_PAGE = 500
#: Alerts that are searched for a text before a page is given; the next page goes on from there.
MOST_SEARCHED = 200_000
_CURSOR = re.compile(r"(-?\d{1,18})\.(\d{1,10})", re.ASCII)
_LONGEST_TEXT = 200


@dataclass(frozen=True)
class Filters:
    """Which alerts to list; an empty field keeps all.

    ``since_us, until_us``: alerts that start in ``[since, until)``, UTC microseconds. ``text`` is looked for in asset, cause and
    top tags, whatever its case. ``parent``: the alerts of one flood; else ``top`` hides what belongs to a
    flood, which stands for them. Raises UsageError E2001 for a state, kind or priority that does not exist, or a text too long.
    """

    states: tuple[str, ...] = ()
    asset: str | None = None
    priorities: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    assignee: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    text: str = ""
    parent: int | None = None
    top: bool = False
    model: str | None = None

    def __post_init__(self) -> None:
        known: Mapping[str, tuple[tuple[object, ...], tuple[object, ...]]] = {
            "states": (self.states, tuple(STATES)),
            "kinds": (self.kinds, KINDS),
            "priorities": (self.priorities, (1, 2, 3)),
        }
        for name, (given, allowed) in known.items():
            for value in given:
                if value not in allowed:
                    raise UsageError(Fault("E2001", f"{name}: any of {', '.join(map(str, allowed))}", value))
        for name, text in (
            ("text", self.text),
            ("asset", self.asset),
            ("assignee", self.assignee),
            ("model", self.model),
        ):
            checked_text(name, text or "", _LONGEST_TEXT, required=False)

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """What the table's rows must fulfil, apart from the states."""
        own = tables.alerts.c
        # With states asked for, the index of states is walked: the others are hidden behind expressions from the planner,
        # which without statistics would choose the index of priorities and read a third of the table.
        rank = own.priority + 0 if self.states else own.priority
        kind, assignee = (own.kind + "", own.assignee + "") if self.states else (own.kind, own.assignee)
        equal = ((own.asset, self.asset), (assignee, self.assignee), (own.parent_id, self.parent),
                 (own.model, self.model))  # fmt: skip
        found: list[sa.ColumnElement[bool]] = [column == wanted for column, wanted in equal if wanted is not None]
        if self.priorities:
            found.append(rank.in_(self.priorities))
        if self.kinds:
            found.append(kind.in_(self.kinds))
        if self.since_us is not None:
            found.append(own.start_us >= self.since_us)
        if self.until_us is not None:
            found.append(own.start_us < self.until_us)
        if self.top and self.parent is None:
            # An expression, so that the index of parents is not walked: nearly every alert has none.
            found.append(sa.func.coalesce(own.parent_id, 0) == 0)
        if self.text:
            found.append(own.search.contains(self.text.casefold(), autoescape=True))
        return found


@dataclass(frozen=True)
class Cursor:
    """Where a page ended: the start and number of its last alert.

    >>> Cursor.read(Cursor(1_700_000_000_000_000, 7).text()) == Cursor(1_700_000_000_000_000, 7)
    True
    """

    start_us: int
    id: int

    def text(self) -> str:
        """As it stands in an address."""
        return f"{self.start_us}.{self.id}"

    @staticmethod
    def read(text: str) -> Cursor:
        """The cursor that ``text`` gave; raises UsageError E2001 where it is not one of ours."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise UsageError(Fault("E2001", "a cursor from an earlier page", text))
        return Cursor(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class PageQueries:
    """The statements that give one page, newest first: one per state asked for, so that each can walk an index.

    ``size`` rows at most from each; a caller takes the first ``size`` of them all.
    """

    filters: Filters
    size: int
    after: Cursor | None = None
    columns: tuple[sa.ColumnElement[Any], ...] = field(
        default=tuple(column for column in tables.alerts.c if column.name not in ("reasons", "search", "excerpt"))
    )

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST_PAGE:
            raise UsageError(Fault("E2001", f"a page of 1 to {LARGEST_PAGE} alerts", self.size))

    def statements(self) -> list[sa.Select[Any]]:
        """One more row than the page holds, to know whether another page follows."""
        own = tables.alerts.c
        base = sa.select(*self.columns).where(*self.filters.conditions())
        if self.after is not None:
            base = base.where(sa.tuple_(own.start_us, own.id) < sa.tuple_(self.after.start_us, self.after.id))
        base = base.order_by(own.start_us.desc(), own.id.desc()).limit(self.size + 1)
        return [base.where(own.state == state) for state in dict.fromkeys(self.filters.states)] or [base]

    def rests(self, connection: sa.Connection) -> Cursor | None:
        """The alert at which a search for a text rests; None where all that is asked for can be searched at once: no text,
        open alerts alone, or an end that is nearer."""
        if not self.filters.text or (self.filters.states and CLOSED not in self.filters.states):
            return None
        if (connection.execute(_MOST_THERE).scalar() or 0) <= MOST_SEARCHED:
            return None  # two looks instead of a walk
        row = connection.execute(self._floor()).first()
        return None if row is None else Cursor(row.start_us, row.id)

    def _floor(self) -> sa.Select[Any]:
        own = tables.alerts.c
        walked = sa.select(own.start_us, own.id).order_by(own.start_us.desc(), own.id.desc())
        if self.filters.asset is not None:
            walked = walked.where(own.asset == self.filters.asset)
        if self.after is not None:
            walked = walked.where(sa.tuple_(own.start_us, own.id) < sa.tuple_(self.after.start_us, self.after.id))
        return walked.offset(MOST_SEARCHED).limit(1)

    def down_to(self, floor: Cursor) -> list[sa.Select[Any]]:
        """The statements, but for no alert before ``floor``."""
        own = tables.alerts.c
        above = sa.tuple_(own.start_us, own.id) >= sa.tuple_(floor.start_us, floor.id)
        return [query.where(above) for query in self.statements()]

    def read(self, connection: sa.Connection) -> tuple[list[sa.Row[Any]], str | None]:
        """The rows of the page by one statement, and the cursor of the next page (None: the last). ``columns`` must have
        ``start_us`` and ``id``. A statement is made once and kept: what differs from page to page are its values."""
        values: dict[str, int] = {}
        if self.after is not None:
            values = {"after_us": self.after.start_us, "after_id": self.after.id}
        floor = self.rests(connection)
        if floor is not None:
            values |= {"floor_us": floor.start_us, "floor_id": floor.id}
        query = _whole_page(self.filters, self.size, self.columns, self.after is not None, floor is not None)
        found = list(connection.execute(query, values))
        last = found[self.size - 1] if len(found) > self.size else floor
        return found[: self.size], None if last is None else Cursor(last.start_us, last.id).text()


#: As many alerts as there can be: numbers are given once.
_MOST_THERE = sa.select(
    sa.select(sa.func.max(tables.alerts.c.id)).scalar_subquery()
    - sa.select(sa.func.min(tables.alerts.c.id)).scalar_subquery()
    + 1
)


@lru_cache(maxsize=256)
def _whole_page(
    filters: Filters, size: int, columns: tuple[sa.ColumnElement[Any], ...], later: bool, floored: bool
) -> sa.Select[Any] | sa.CompoundSelect[Any]:
    """``PageQueries.statements`` as one, with the limits of the page as parameters."""
    own, here = tables.alerts.c, sa.tuple_(tables.alerts.c.start_us, tables.alerts.c.id)
    base = sa.select(*columns).where(*filters.conditions())
    if later:
        base = base.where(here < _moment("after"))
    if floored:
        base = base.where(here >= _moment("floor"))
    base = base.order_by(own.start_us.desc(), own.id.desc()).limit(size + 1)
    each = [base.where(own.state == state) for state in dict.fromkeys(filters.states)] or [base]
    if len(each) == 1:
        return each[0]
    joined = sa.union_all(*(sa.select(query.subquery()) for query in each))
    return joined.order_by(sa.desc("start_us"), sa.desc("id")).limit(size + 1)


def _moment(name: str) -> sa.Tuple:
    return sa.tuple_(sa.bindparam(f"{name}_us", type_=sa.BigInteger), sa.bindparam(f"{name}_id", type_=sa.BigInteger))

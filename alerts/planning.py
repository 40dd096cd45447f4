"""What a plant says beforehand: planned maintenance, and the weight and budget of its assets. Times are int UTC microseconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import sqlalchemy as sa

from alerts import tables
from alerts.database import Database
from alerts.figures import BUDGET
from alerts.grouping import Planned
from alerts.states import SYSTEM
from alerts.texts import checked_text
from alerts.workflow import LONGEST_NAME, Clock, clock_us
from anomaly.errors import Fault, UsageError, shown

_COLUMNS = tuple(tables.calendar.c[name] for name in ("id", "asset", "start_us", "end_us", "reason", "who"))
_YEAR = 366 * 86_400_000_000


@dataclass(frozen=True)
class AssetSettings:
    """``weight`` in the priority of its alerts; ``budget`` in alerts per day."""

    weight: float = 1.0
    budget: float = BUDGET


class Planning:
    """The calendar and the settings of assets in the alert database; raises Unavailable as ``AlertStore`` does."""

    def __init__(self, database: Database, clock: Clock = clock_us) -> None:
        self.database, self._clock = database, clock

    def plan(self, asset: str, start_us: int, end_us: int, reason: str, who: str) -> Planned:
        """Announce work in ``[start_us, end_us)`` on an asset, "" for all. UsageError E2001 without a reason, or for a time
        that is no interval or longer than a year."""
        if not start_us < end_us <= start_us + _YEAR:
            raise UsageError(
                Fault("E2001", "planned work with a start before its end, a year at most", f"{start_us} to {end_us}")
            )
        checked_text("an asset", asset, 1000, required=False)
        checked_text("a reason", reason, 4000)
        checked_text("the name of who plans it", who, LONGEST_NAME)
        entry = {"asset": asset, "start_us": start_us, "end_us": end_us, "reason": reason, "who": who}
        with self.database.writing() as connection:
            query = sa.insert(tables.calendar).values(**entry, created_at=self._clock()).returning(tables.calendar.c.id)
            made = Planned(connection.execute(query).scalar_one(), asset, start_us, end_us, reason, who)
            self._log(connection, made.id, "plan", who, f"{asset or 'all assets'}: {reason}")
            return made

    def cancel(self, id: int, *, by: str = SYSTEM) -> None:
        """Take planned work back; its row stays. UsageError E2001 where there is none."""
        with self.database.writing() as connection:
            self._change(connection, id, "cancel_plan", by, cancelled_at=self._clock())

    def end(self, id: int, *, by: str) -> None:
        """Work that has begun ends now and keeps what was; work that is to come is taken back. UsageError E2001 where it is
        over or there is none."""
        own = tables.calendar.c
        with self.database.writing() as connection:
            now = self._clock()
            row = connection.execute(sa.select(own.start_us, own.end_us).where(own.id == id)).first()
            if row is not None and row.end_us <= now:
                raise UsageError(Fault("E2001", "planned work that is not over yet", id))
            if row is None or row.start_us >= now:
                self._change(connection, id, "cancel_plan", by, cancelled_at=now)
            else:
                self._change(connection, id, "end_plan", by, end_us=now)

    def _change(self, connection: sa.Connection, id: int, action: str, by: str, **changed: int) -> None:
        own = tables.calendar.c
        query = sa.update(tables.calendar).where(own.id == id, own.cancelled_at.is_(None)).values(**changed)
        if connection.execute(query).rowcount != 1:
            raise UsageError(Fault("E2001", "the number of planned work", id))
        self._log(connection, id, action, by, "")

    def _log(self, connection: sa.Connection, id: int, action: str, by: str, comment: str) -> None:
        """A line of the audit, beside those of users."""
        entry = {"at": self._clock(), "name": f"planned work {id}", "address": "", "action": action, "actor": shown(by)}
        connection.execute(sa.insert(tables.user_events).values(**entry, comment=comment))

    def calendar(self, start_us: int, end_us: int) -> list[Planned]:
        """Planned work that overlaps ``[start_us, end_us)``, oldest first, for ``grouping.planned_work``."""
        own = tables.calendar.c
        query = sa.select(*_COLUMNS).where(own.start_us < end_us, own.end_us > start_us, own.cancelled_at.is_(None))
        with self.database.reading() as connection:
            if connection is None:
                return []
            return [Planned(**row._mapping) for row in connection.execute(query.order_by(own.start_us, own.id))]

    def set_asset(self, asset: str, *, weight: float = 1.0, budget: float = BUDGET) -> None:
        """Say how much an asset weighs (above 0, at most 100) and how many alerts a day it may have. Alerts that come from now
        on are weighed so."""
        if not 0 < weight <= 100 or not 0 <= budget < math.inf:
            raise UsageError(Fault("E2001", "a weight above 0 to 100 and a budget of 0 or more", f"{weight}, {budget}"))
        checked_text("an asset", asset, 1000)
        own = tables.assets.c
        with self.database.writing() as connection:
            connection.execute(sa.delete(tables.assets).where(own.asset == asset))
            connection.execute(sa.insert(tables.assets).values(asset=asset, weight=weight, budget=budget))

    def assets(self) -> dict[str, AssetSettings]:
        """What was said of assets; one that is not here has the defaults."""
        with self.database.reading() as connection:
            if connection is None:
                return {}
            rows = connection.execute(sa.select(tables.assets)).all()
        return {
            row.asset: AssetSettings(row.weight, row.budget) for row in sorted(rows, key=lambda row: str(row.asset))
        }

    def last_answered(self) -> dict[str, int]:
        """Until when each asset was answered, for ``figures.silent``."""
        own = tables.coverage.c
        with self.database.reading() as connection:
            if connection is None:
                return {}
            rows = connection.execute(sa.select(own.asset, sa.func.max(own.end_us)).group_by(own.asset))
            return {asset: int(end) for asset, end in rows}

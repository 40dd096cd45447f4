"""Stretches in which an asset's rows cannot be scored, with hysteresis, and the alert that each becomes (RELIABILITY C1, H3).

Half of the last rows unscorable begins an outage, a tenth ends it: a row here and there makes none, and a long one with
a few good rows inside is one. How the rows were cut into files and chunks makes no difference.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alerts.database import Database
from alerts.findings import Finding, adopt, record_findings, return_findings
from alerts.workflow import Clock, clock_us
from anomaly.model import OUTCOMES, UNSCORABLE, ScoredRows

#: Shares of the last rows at which an outage begins and ends.
ENTER, LEAVE = 0.5, 0.1
#: The rows of an asset that are looked back on, whatever the model: so all ways of scoring tell the same.
ROWS = 30
#: One sensor is the cause where it is named in so many of the unscorable rows.
_MOSTLY = 0.9
_MISSING = "missing: "
_OF_ASSET = ("no_model", "model_refused")


@dataclass(frozen=True)
class Outage:
    """``[start_us, end_us]``: the first and last unscorable row so far, UTC microseconds; ``over``: rows are scored again.

    ``cause``: the sensor that was missing, why there was no model, or "" for several reasons at once.
    """

    asset: str
    cause: str
    start_us: int
    end_us: int
    detail: str
    over: bool = False


@dataclass
class _Asset:
    """What of one asset's rows still counts: of the last ones their times and reasons ("" for a scored row)."""

    time: list[int] = field(default_factory=list)
    reason: list[str] = field(default_factory=list)
    now: dict[str, Any] | None = None  # the outage that goes on, as plain values
    ended: int | None = None  # when the one before it ended


class Outages:
    """Follows scored rows of all assets; ``fresh`` holds what is to be told, oldest first, and is plain data to be saved.

    The rows of one asset must come in the order of time.
    """

    def __init__(self) -> None:
        self._assets: dict[str, _Asset] = {}
        self.fresh: list[Outage] = []

    def update(self, rows: ScoredRows) -> None:
        """Follow the next scored rows."""
        self._each(rows.time, rows.asset, np.where(rows.outcome == UNSCORABLE, rows.reason, ""))

    def unscored(self, time: NDArray[np.int64], asset: NDArray[np.object_], reason: str) -> None:
        """Follow rows ``(n,)`` that no model can score."""
        self._each(time, asset, np.full(len(time), reason, dtype=object))

    def _each(self, time: NDArray[np.int64], asset: NDArray[np.object_], reason: NDArray[np.object_]) -> None:
        for name in dict.fromkeys(asset):
            mine = asset == name
            self.follow(str(name), time[mine], reason[mine])

    def follow(self, asset: str, time: NDArray[np.int64], reason: NDArray[np.object_]) -> None:
        """Follow one asset's next rows: ``time (n,)``, and ``reason (n,)`` why it has no score, "" where it has one."""
        own = self._assets.setdefault(asset, _Asset())
        if own.now is None and not any(own.reason) and not (reason != "").any():
            time, reason = time[-ROWS:], reason[-ROWS:]  # nothing is wrong: no more of them can matter
        known = len(own.time)
        rows = _Rows(
            np.concatenate((np.array(own.time, np.int64), time)),
            np.concatenate((np.array(own.reason, dtype=object), reason)),
        )
        marks = rows.marks(known)
        for i in np.flatnonzero(np.diff(marks, prepend=0)).tolist():
            self._turn(own, asset, int(marks[i]), known + i, rows)
        if own.now is not None:
            own.now["end_us"] = rows.last_bad(len(rows.time), own.now["end_us"])
            self.fresh.append(Outage(asset, **own.now))
        own.time = rows.time[1 - ROWS :].tolist()
        own.reason = [str(r) for r in rows.reason[1 - ROWS :]]

    def _turn(self, own: _Asset, asset: str, mark: int, at: int, rows: _Rows) -> None:
        """At row ``at`` an outage may begin or end."""
        if own.now is None and mark > 0:
            why = rows.why(at, own.ended)
            if len(why[0]):
                own.now = {"cause": cause_of(why[1].tolist()), "start_us": int(why[0][0]), "end_us": int(why[0][-1]),
                           "detail": _detail(why[1].tolist())}  # fmt: skip
        elif own.now is not None and mark < 0:
            own.ended = own.now["end_us"] = rows.last_bad(at + 1, own.now["end_us"])
            self.fresh.append(Outage(asset, **own.now, over=True))
            own.now = None

    def to_state(self) -> dict[str, Any]:
        """JSON-ready values: what goes on and what was not told yet."""
        return {"assets": {a: asdict(own) for a, own in self._assets.items()}, "fresh": [asdict(o) for o in self.fresh]}

    @classmethod
    def from_state(cls, settings: dict[str, Any]) -> Outages:
        """Outages that go on where ``to_state`` was called."""
        made = cls()
        made._assets = {str(a): _Asset(**own) for a, own in settings["assets"].items()}
        made.fresh = [Outage(**o) for o in settings["fresh"]]
        return made


@dataclass(frozen=True)
class _Rows:
    """The last rows of an asset and the new ones: ``time (n,)`` and ``reason (n,)``."""

    time: NDArray[np.int64]
    reason: NDArray[np.object_]

    def marks(self, known: int) -> NDArray[np.int64]:
        """From row ``known`` on: 1 where enough rows are unscorable to begin an outage, -1 to end one, 0 between."""
        count = np.concatenate(([0], np.cumsum(self.reason != "")))
        ends = np.arange(known, len(self.time)) + 1
        bad = count[ends] - count[np.maximum(ends - ROWS, 0)]
        return np.where(bad >= ENTER * ROWS, 1, np.where(bad <= LEAVE * ROWS, -1, 0))

    def why(self, at: int, after_us: int | None) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
        """Times and reasons of the unscorable rows that count at row ``at``, later than ``after_us``."""
        held = slice(max(at + 1 - ROWS, 0), at + 1)
        time, reason = self.time[held], self.reason[held]
        bad = (reason != "") & (time > (np.iinfo(np.int64).min if after_us is None else after_us))
        return time[bad], reason[bad]

    def last_bad(self, end: int, least: int) -> int:
        """The time of the last unscorable row before row ``end``, or ``least`` where that is later."""
        bad = np.flatnonzero(self.reason[:end] != "")
        return max(int(self.time[bad[-1]]), least) if len(bad) else least


def cause_of(reasons: Sequence[str]) -> str:
    """The one thing that most of the reasons name: a sensor, or why there is no model; "" where they name several.

    >>> cause_of(["missing: P"] * 9 + ["gap"]), cause_of(["missing: P, Q"] * 9), cause_of(["model_refused: E4004"])
    ('P', '', 'model_refused')
    """
    named = Counter[str]()
    for reason in reasons:
        word = reason.partition(":")[0]
        if reason.startswith(_MISSING):
            named.update(reason.removeprefix(_MISSING).split(", "))
        elif word in _OF_ASSET:
            named[word] += 1
    most = [name for name, n in named.items() if n >= _MOSTLY * len(reasons)]
    return most[0] if len(most) == 1 and " " not in most[0] else ""


def _detail(reasons: Sequence[str]) -> str:
    word, _ = Counter(reasons).most_common(1)[0]
    return f"{len(reasons)} of {ROWS} rows cannot be scored: {word}"


def outages_in(scores: Path) -> list[Outage]:
    """The outages in a score file, or in a folder of them, as they would have been told while it was written.

    The rows of one asset must come in the order of time, as scoring writes them.
    """
    own = Outages()
    for path in [scores] if scores.is_file() else sorted(scores.rglob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["time", "asset", "outcome", "reason"]):
                bad = pc.equal(batch["outcome"], str(OUTCOMES[UNSCORABLE]))
                reason = pc.if_else(bad, batch["reason"], "").to_numpy(zero_copy_only=False)
                time = batch["time"].cast("int64").to_numpy(zero_copy_only=False)
                coded = batch["asset"].dictionary_encode()
                code = coded.indices.to_numpy(zero_copy_only=False)
                for k, asset in enumerate(coded.dictionary.to_pylist()):
                    own.follow(asset, time[code == k], reason[code == k])
    return _last(own.fresh)


def record_outages(database: Database, outages: Iterable[Outage], clock: Clock = clock_us) -> list[int]:
    """Write outages as ``unscorable`` alerts, one per asset and cause; those that are over return. Again is no change.

    The alert on the sensor that is missing goes under it: one cause, one line in the list. Gives the alerts' numbers.
    Raises Unavailable.
    """
    numbers = list[int]()
    for outage in _last(outages):
        told = json.dumps({"rule": "unscorable", "detail": outage.detail})
        finding = Finding("unscorable", outage.asset, outage.cause, outage.start_us, outage.end_us, 1, told)
        own = record_findings(database, [finding], clock)
        adopt(database, [finding], own, 0)
        if outage.over:
            return_findings(database, own, outage.end_us, "its rows are scored again", clock)
        numbers += own
    return numbers


def _last(outages: Iterable[Outage]) -> list[Outage]:
    """Each outage once, as it was told last."""
    found = {(o.asset, o.cause, o.start_us): o for o in outages}
    return list(found.values())

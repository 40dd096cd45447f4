"""One trial of the detection benchmark: a training log, a later test log, and the rows that a threshold may be set on.

Every method gets the same two passes. *Full*: learn from the normal rows of the whole training log, score the test log.
*Held*: learn from what came before the last fifth of the training log's normal rows, score that fifth; the threshold is
set on those scores and carried over to the full pass. No label of the test log is seen by either.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.data.contract import EVENT, NORMAL
from anomaly.errors import Fault, InputRefused
from anomaly.files import sha256
from anomaly.intervals import from_flags
from benchmarks.encoder_cases import Case

HELD_SHARE = 0.2
MAX_GAP = 3.5  # in periods: a longer step in time starts a new segment
PLAIN = "as it is"
_NOT_TAGS = ("time", "label")


@dataclass(frozen=True)
class Trial:
    """A case, perhaps damaged on purpose (``variant``). ``judged (n,)`` marks the test rows whose label counts."""

    case: Case
    train: pd.DataFrame
    test: pd.DataFrame
    judged: NDArray[np.bool_]
    variant: str = PLAIN

    @property
    def tags(self) -> list[str]:
        """The sensor columns."""
        return [name for name in self.train.columns if name not in _NOT_TAGS]

    @property
    def period_us(self) -> int:
        """Median step in time of the training log."""
        return max(int(np.median(np.diff(times_us(self.train)))), 1)

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Event rows ``(n,)`` of the test log that are judged."""
        return (self.test["label"].to_numpy() == EVENT) & self.judged

    @property
    def held_from(self) -> int:
        """First row of the training log that belongs to the last fifth of its normal rows."""
        normal = np.flatnonzero(self.train["label"].to_numpy() == NORMAL)
        return int(normal[len(normal) - max(round(len(normal) * HELD_SHARE), 1)])

    def passes(self) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
        """What is learned from and what is scored: ``full`` and ``held``."""
        at = self.held_from
        return {"full": (self.train, self.test), "held": (self.train.iloc[:at], self.train.iloc[at:])}

    def held_normal(self) -> NDArray[np.bool_]:
        """Normal rows among those that the held pass scores."""
        return self.train["label"].to_numpy()[self.held_from :] == NORMAL


def read_trial(case: Case) -> Trial:
    """The logs of ``case`` as they are; raises InputRefused E3302 where the training log has no normal rows to spare."""
    train, test = (pd.read_parquet(case.folder / f"{part}.parquet") for part in ("train", "test"))
    known = np.isin(test["label"].to_numpy(), (NORMAL, EVENT))
    path = case.folder / "eval.parquet"
    judged = known & pd.read_parquet(path)["judged"].to_numpy(bool) if path.is_file() else known
    normal = int((train["label"] == NORMAL).sum())
    if normal < 2:
        raise InputRefused(Fault("E3302", "a training log with normal rows", f"{normal}", file=str(case.folder)))
    return Trial(case, train, test, judged)


def data_digest(case: Case) -> str:
    """What the files of ``case`` hold, as a short digest."""
    found = hashlib.sha256()
    for name in ("train.parquet", "test.parquet", "eval.parquet"):
        path = case.folder / name
        found.update(f"{name} {sha256(path) if path.is_file() else ''};".encode())
    return found.hexdigest()[:16]


def times_us(frame: pd.DataFrame) -> NDArray[np.int64]:
    """The times ``(n,)`` of a log in microseconds."""
    return pd.DatetimeIndex(frame["time"]).as_unit("us").asi8


def segment_starts(frame: pd.DataFrame, period_us: int) -> NDArray[np.bool_]:
    """Rows ``(n,)`` that begin a segment: the first, and each after a step longer than 3.5 periods, or backwards."""
    steps = np.diff(times_us(frame))
    return np.concatenate(([True], (steps > MAX_GAP * period_us) | (steps < 0)))[: len(frame)]


def event_rows(trial: Trial) -> NDArray[Any]:
    """Row intervals ``(k, 2)`` of the judged events of the test log."""
    return from_flags(trial.positive)

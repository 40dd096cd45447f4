"""Drift of scored rows against what the model learned, at every scoring: gathered in bounded memory, told, kept as JSON."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.contract import Columns
from anomaly.data.sensor_statistics import mixed
from anomaly.drift import Drift, alert_rate_drift, input_drift, multivariate_drift, score_drift
from anomaly.files import atomic_path
from anomaly.model import UNSCORABLE, WARM_UP, AnomalyModel, ScoredRows

#: Rows that are compared at most.
MOST_ROWS = 10_000
_DAY_US = 86_400_000_000
_NAMED = 5


@dataclass(frozen=True)
class _Kept(Columns):
    """Rows of the sample, all ``(n, …)``: sampling key, time in µs, asset code, prepared tags, score (NaN in warm-up)."""

    key: NDArray[np.uint64]
    time: NDArray[np.int64]
    asset: NDArray[np.int32]
    prepared: NDArray[np.float32]
    score: NDArray[np.float32]


@dataclass
class DriftSample:
    """A uniform sample of the rows in operation: those that could be scored.

    A row's place in it is drawn from its own asset and time, so how a log is cut and in what order its parts come makes no
    difference, and a row that comes twice is in it once at most.
    """

    tags: int
    size: int = MOST_ROWS
    operating: int = 0  # rows in operation that were offered
    span: tuple[int, int] | None = None  # first and last of their times, UTC microseconds
    assets: list[str] = field(default_factory=list)
    _kept: _Kept = field(init=False)

    def __post_init__(self) -> None:
        none, nothing = np.empty(0, np.float32), np.empty((0, self.tags), np.float32)
        self._kept = _Kept(none.astype(np.uint64), none.astype(np.int64), none.astype(np.int32), nothing, none)

    def add(self, rows: ScoredRows) -> None:
        """Offer the next scored rows; those that are unscorable take no part."""
        rows = rows.take(rows.outcome != UNSCORABLE)
        if not len(rows.time):
            return
        self.operating += len(rows.time)
        first, last = int(rows.time.min()), int(rows.time.max())
        self.span = (first, last) if self.span is None else (min(first, self.span[0]), max(last, self.span[1]))
        score = np.where(rows.reason == WARM_UP, np.float32(np.nan), rows.score).astype(np.float32)
        new = _Kept(
            *_drawn(rows.time, self._codes(rows.asset), self.assets), rows.prepared[:, : self.tags], score
        )  # fmt: skip
        if len(self._kept.key) == self.size:
            new = new.take(new.key < self._kept.key.max())
        kept = _Kept.join([self._kept, new])
        if len(kept.key) > self.size:
            kept = kept.take(np.argpartition(kept.key, self.size)[: self.size])
        self._kept = kept

    def rows(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Prepared rows ``(n, C)`` and scores ``(n,)``, NaN in warm-up, by asset and time."""
        kept = self._kept.take(np.lexsort((self._kept.time, self._kept.asset)))
        return kept.prepared, kept.score

    def _codes(self, asset: NDArray[np.object_]) -> NDArray[np.int32]:
        names = list(dict.fromkeys(asset))
        self.assets += [str(a) for a in names if a not in self.assets]
        codes = np.empty(len(asset), np.int32)
        for name in names:
            codes[asset == name] = self.assets.index(name)
        return codes

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready values and arrays."""
        plain = {
            "tags": self.tags,
            "size": self.size,
            "operating": self.operating,
            "span": self.span,
            "assets": self.assets,
        }
        return plain, dict(vars(self._kept))

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> DriftSample:
        """The sample from what ``to_state`` gave."""
        span = settings["span"]
        made = cls(int(settings["tags"]), int(settings["size"]), int(settings["operating"]),
                   None if span is None else (int(span[0]), int(span[1])), list(settings["assets"]))  # fmt: skip
        made._kept = _Kept(**arrays)
        return made


def _drawn(
    time: NDArray[np.int64], codes: NDArray[np.int32], names: list[str]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int32]]:
    """Key, time and code of rows; the keys spread evenly, so that those below a limit are a fair sample."""
    seeds = np.array([zlib.crc32(name.encode()) for name in names], np.uint64) << np.uint64(32)
    return mixed(time.astype(np.uint64) + seeds[codes]), time, codes


def drifts(model: AnomalyModel, sample: DriftSample, alerts: int) -> list[Drift]:
    """All drifts of a sample of scored rows against ``model``: a finding per sensor, level, relations, score, alert rate.

    ``alerts``: episodes among the rows that the sample was drawn from. An operating day is a day's worth of rows in
    operation, whatever their number of assets, as the budget is per asset and day.
    """
    prepared, score = sample.rows()
    found = input_drift(model.reference, prepared, model.contract.tags)
    found += multivariate_drift(model.reference, prepared)
    found.append(score_drift(score, calibrated_on=None if model.calibrator is None else model.calibrator.n_ or None))
    days = sample.operating * model.contract.period_us / _DAY_US
    return [*found, alert_rate_drift(alerts, days, model.settings.threshold.budget)]


def notices(found: list[Drift]) -> tuple[str, ...]:
    """What is said of the drifts that are sure and large; of many sensors the farthest are named and the others counted."""
    sure = [d for d in found if d.verdict == "drift"]
    sensors = sorted((d for d in sure if d.kind == "input"), key=lambda d: -d.size)
    said = [f"drift of {d.kind}: {d.words}" for d in [*sensors[:_NAMED], *(d for d in sure if d.kind != "input")]]
    if len(sensors) > _NAMED:
        said.insert(_NAMED, f"drift of input: {len(sensors) - _NAMED} more sensors")
    return tuple(said)


def drift_path(out: Path) -> Path:
    """Where the drift of a score file stands.

    >>> drift_path(Path("scores.parquet")).name
    'scores.drift.json'
    """
    return out.with_suffix(".drift.json")


def report(model: AnomalyModel, sample: DriftSample, alerts: int, path: Path) -> list[Drift]:
    """Compare, write ``path`` whole or not at all, and give what was found."""
    found, span = drifts(model, sample, alerts), sample.span
    prepared, _ = sample.rows()
    content = {"model": model.digest, "rows_in_operation": sample.operating, "rows_compared": len(prepared),
               "first_us": span[0] if span else None, "last_us": span[1] if span else None, "alerts": alerts,
               "notices": notices(found), "drifts": [d.to_dict() for d in found]}  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    return found

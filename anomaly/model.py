"""The fitted model: contract, scaler, encoder, detector, calibration and threshold, and the stream that scores with it.

A score for row t comes from the window that ends at t and from nothing later. One log row gives one scored row, however
the log is cut into chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.config import Settings
from anomaly.data.audit import RowAudit
from anomaly.data.contract import ONE_ASSET, Columns, LogChunk, LogContract
from anomaly.data.labels import segments
from anomaly.data.scaling import HoldState, RowPreparer, hold_last
from anomaly.data.vocabulary import UNKNOWN_WORD, Vocabulary
from anomaly.data.windows import ending_windows
from anomaly.detectors import detector_class
from anomaly.detectors.base import Detector, Encoded
from anomaly.encoders import encoder_class
from anomaly.encoders.base import Encoder
from anomaly.errors import Fault, InputRefused
from anomaly.scores.calibration import TailCalibrator
from anomaly.scores.explain import top_tags
from anomaly.scores.thresholds import Threshold

NORMAL_ROW, ANOMALOUS, UNSCORABLE = 0, 1, 2
OUTCOMES = np.array(["normal", "anomalous", "unscorable"], dtype=object)
WARM_UP, GAP = "warm_up", "gap"

#: Windows pushed through the encoder at once; bounds the memory of scoring.
_BATCH = 4096
_NAMED_TAGS = 3


@dataclass(frozen=True)
class ScoredRows(Columns):
    """One scored row per log row, in the order they came.

    ``time (n,)`` int64 UTC microseconds; ``asset (n,)`` str; ``score (n,)`` float32, NaN where unscorable;
    ``outcome (n,)`` int8 index into OUTCOMES; ``reason (n,)`` str; ``shares (n, C)`` float32 adding up to the raw
    score of the row, zero where unscorable; ``prepared (n, C)`` float32, the row's tags as the encoder saw them.
    """

    time: NDArray[np.int64]
    asset: NDArray[np.object_]
    score: NDArray[np.float32]
    outcome: NDArray[np.int8]
    reason: NDArray[np.object_]
    shares: NDArray[np.float32]
    prepared: NDArray[np.float32]


@dataclass
class AnomalyModel:
    """Everything that turns log rows into calibrated scores; made by ``anomaly.fitting.fit_model``."""

    contract: LogContract
    settings: Settings
    preparer: RowPreparer
    encoder: Encoder
    detector: Detector
    calibrator: TailCalibrator
    threshold: Threshold
    max_gap_us: int
    vocabulary: Vocabulary
    reference: NDArray[np.float32]  # (m, C) a bounded sample of prepared normal training rows
    audits: dict[str, RowAudit] = field(default_factory=dict)
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)  # first and last time of what it learned from
    quality: dict[str, Any] = field(default_factory=dict)
    canary: pd.DataFrame = field(default_factory=pd.DataFrame)
    digest: str | None = None

    @property
    def lookback(self) -> int:
        """Rows of one window."""
        return self.settings.window.lookback

    def prepare(self, held: NDArray[np.float32], codes: NDArray[np.int32]) -> NDArray[np.float32]:
        """Held rows ``(n, C)`` and category codes ``(n, K)`` as the encoder takes them, ``(n, C + K)``."""
        return prepared_rows(self.preparer, held, codes)

    def encode(self, windows: NDArray[np.float32]) -> Encoded:
        """What the detector needs of prepared windows ``(B, T, C + K)``."""
        tags = windows[..., : len(self.contract.tags)]
        if self.detector.needs == "embedding":
            return Encoded(tags, embedding=self.encoder.embed(windows))
        return Encoded(tags, residual=tags - self.encoder.reconstruct(windows))

    def raw_scores(self, windows: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Uncalibrated scores ``(B,)`` and their per-tag shares ``(B, C)`` of prepared windows ``(B, T, C + K)``."""
        shares = self.detector.shares(self.encode(windows))
        return np.asarray(shares.sum(axis=1)), shares.astype(np.float32)

    def stream(self) -> StreamScorer:
        """A scorer with empty state: nothing seen yet."""
        return StreamScorer(self)

    def score_frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Score a whole frame in memory: the contract's time, asset, tag and category columns → one row per input row.

        Columns out: time, asset, anomaly_score, threshold, outcome, reason, top_tags (list of (tag, share)).
        Raises InputRefused E3101 where a column is missing.
        """
        chunk = chunk_from_frame(frame, self.contract)
        return scored_frame(self.stream().score(chunk), self)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """The model as JSON-ready values and arrays; ``from_parts`` undoes it."""
        parts: dict[str, Any] = {
            "contract": self.contract.to_dict(),
            "settings": self.settings.to_dict(),
            "threshold": self.threshold.to_dict(),
            "max_gap_us": self.max_gap_us,
            "audits": {name: audit.to_dict() for name, audit in self.audits.items()},
            "seen": {asset: list(span) for asset, span in self.seen.items()},
            "quality": self.quality,
            "vocabulary": [list(words) for words in self.vocabulary.words],
            "encoder_name": self.encoder.name,
            "detector_name": self.detector.name,
        }
        arrays: dict[str, NDArray[Any]] = {"reference/rows": self.reference}
        for name in ("preparer", "encoder", "detector", "calibrator"):
            parts[name], own = getattr(self, name).to_state()
            arrays |= {f"{name}/{key}": value for key, value in own.items()}
        return parts, arrays

    @classmethod
    def from_parts(cls, parts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> AnomalyModel:
        """The model from what ``to_parts`` gave; no code is taken from the parts, names are looked up in our lists."""

        def own(name: str) -> dict[str, NDArray[Any]]:
            return {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(f"{name}/")}

        encoder, detector = encoder_class(parts["encoder_name"]), detector_class(parts["detector_name"])
        return cls(
            contract=LogContract.from_dict(parts["contract"]),
            settings=Settings.from_dict(parts["settings"]),
            preparer=RowPreparer.from_state(parts["preparer"], own("preparer")),
            encoder=encoder.from_state(parts["encoder"], own("encoder")),
            detector=detector.from_state(parts["detector"], own("detector")),
            calibrator=TailCalibrator.from_state(parts["calibrator"], own("calibrator")),
            threshold=Threshold.from_dict(parts["threshold"]),
            max_gap_us=int(parts["max_gap_us"]),
            vocabulary=Vocabulary(tuple(tuple(words) for words in parts.get("vocabulary", []))),
            reference=arrays["reference/rows"],
            audits={name: RowAudit.from_dict(a) for name, a in parts["audits"].items()},
            seen={asset: (int(first), int(last)) for asset, (first, last) in parts["seen"].items()},
            quality=parts["quality"],
        )


def prepared_rows(preparer: RowPreparer, held: NDArray[np.float32], codes: NDArray[np.int32]) -> NDArray[np.float32]:
    """Scaled tags with the category codes beside them, ``(n, C + K)`` float32: codes are exact up to 2^24."""
    scaled = preparer.transform(held)
    return np.column_stack((scaled, codes.astype(np.float32))) if codes.shape[1] else scaled


@dataclass
class _AssetState:
    """What one asset's next row needs from the rows before it."""

    hold: HoldState | None = None
    last_time: int | None = None
    since_start: int = -1
    tail: NDArray[np.float32] | None = None
    tail_absent: NDArray[np.bool_] | None = None
    last: ScoredRows | None = None


class StreamScorer:
    """Scores log rows as they come, chunk by chunk, carrying each asset's window across chunks."""

    def __init__(self, model: AnomalyModel) -> None:
        self.model = model
        self._states: dict[str, _AssetState] = {}

    def score(self, chunk: LogChunk) -> ScoredRows:
        """Score the rows of a checked log; assets may be interleaved, each in time order."""
        done: list[tuple[NDArray[np.int64], ScoredRows]] = []
        for asset in pd.unique(chunk.asset):
            index = np.flatnonzero(chunk.asset == asset)
            codes = self.model.vocabulary.codes(chunk.categories[index])
            done.append((index, self._score_asset(str(asset), chunk.time[index], chunk.values[index], codes)))
        if not done:
            return _no_rows(len(self.model.contract.tags))
        order = np.argsort(np.concatenate([index for index, _ in done]), kind="stable")
        return ScoredRows.join([rows for _, rows in done]).take(order)

    def _score_asset(
        self, asset: str, time: NDArray[np.int64], values: NDArray[np.float32], codes: NDArray[np.int32]
    ) -> ScoredRows:
        """Exact duplicates of a time get the answer of their first row; the rest goes through the window."""
        state = self._states.setdefault(asset, _AssetState())
        previous = np.concatenate(([state.last_time if state.last_time is not None else time[0] - 1], time[:-1]))
        fresh = time != previous
        earlier = state.last
        parts = [earlier] if earlier is not None else []
        if fresh.any():
            starts = segments(time[fresh], self.model.max_gap_us, previous=state.last_time)
            held, age, state.hold = hold_last(values[fresh], starts, state.hold)
            parts.append(self.score_held(asset, time[fresh], held, age, starts, codes[fresh]))
        rows = ScoredRows.join(parts)
        at = np.cumsum(fresh) - 1 + (1 if earlier is not None else 0)
        state.last = rows.take(slice(len(rows.time) - 1, None))
        return rows.take(at)

    def score_held(
        self,
        asset: str,
        time: NDArray[np.int64],
        held: NDArray[np.float32],
        age: NDArray[np.uint8],
        starts: NDArray[np.bool_],
        codes: NDArray[np.int32],
    ) -> ScoredRows:
        """Score rows whose missing values were carried forward already, as a window store keeps them; ``codes (n, K)``
        are those of the model's vocabulary."""
        model, state = self.model, self._states.setdefault(asset, _AssetState())
        prepared, absent = model.prepare(held, codes), model.preparer.absent(age)
        first_ever = state.last_time is None
        since = _rows_since_start(starts, state.since_start)
        raw, shares = self._raw(prepared, since, state.tail)
        absent_row = np.asarray(absent.any(axis=1))
        unseen = self._mostly_absent(absent_row, since, state)
        score = model.calibrator.transform(raw).astype(np.float32)
        outcome, reason = self._outcomes(score, absent, unseen, since, first_ever)
        score[outcome == UNSCORABLE] = np.nan
        shares[outcome == UNSCORABLE] = 0
        self._remember(state, time, prepared, since)
        named = np.full(len(time), asset, dtype=object)
        return ScoredRows(time, named, score, outcome, reason, shares, prepared[:, : held.shape[1]])

    def _raw(
        self, prepared: NDArray[np.float32], since: NDArray[np.int64], tail: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Raw scores and shares of the window that ends at each row; few windows exist at a time."""
        history = prepared[:0] if tail is None else tail
        rows, before = np.concatenate((history, prepared)), len(history)
        parts = []
        for at in range(0, len(prepared), _BATCH):
            own = slice(before + at, before + at + _BATCH)
            earlier = rows[max(own.start - self.model.lookback + 1, 0) : own.start]
            windows = ending_windows(rows[own], since[at : at + _BATCH], self.model.lookback, earlier)
            parts.append(self.model.raw_scores(windows))
        return np.concatenate([raw for raw, _ in parts]), np.concatenate([shares for _, shares in parts])

    def _outcomes(
        self,
        score: NDArray[np.float32],
        absent: NDArray[np.bool_],
        unseen: NDArray[np.bool_],
        since: NDArray[np.int64],
        first_ever: bool,
    ) -> tuple[NDArray[np.int8], NDArray[np.object_]]:
        """Three outcomes and why. A row with an absent value, or the first after a gap, is never called normal."""
        outcome = np.where(score >= np.float32(self.model.threshold.value), ANOMALOUS, NORMAL_ROW)
        reason = np.full(len(score), "", dtype=object)
        reason[since < self.model.lookback - 1] = WARM_UP
        gap = since == 0
        if first_ever and len(gap):
            gap[0] = False
        reason[gap] = GAP
        reason[unseen] = "missing: most of the window"
        for i in np.flatnonzero(absent.any(axis=1)):
            reason[i] = "missing: " + ", ".join(np.array(self.model.contract.tags)[absent[i]][:_NAMED_TAGS])
        outcome[gap | unseen | absent.any(axis=1)] = UNSCORABLE
        return outcome.astype(np.int8), reason

    def _mostly_absent(
        self, absent_row: NDArray[np.bool_], since: NDArray[np.int64], state: _AssetState
    ) -> NDArray[np.bool_]:
        """Rows whose window holds more rows with absent values than without."""
        before = state.tail_absent if state.tail_absent is not None else np.empty(0, dtype=bool)
        flags = np.concatenate((before, absent_row))
        total = np.concatenate(([0], np.cumsum(flags)))
        end = np.arange(len(before), len(flags)) + 1
        length = np.minimum(since + 1, self.model.lookback)
        keep = max(self.model.lookback - 1, 0)
        state.tail_absent = flags[len(flags) - min(keep, len(flags)) :]
        return (total[end] - total[np.maximum(end - length, 0)]) * 2 > length

    def _remember(
        self,
        state: _AssetState,
        time: NDArray[np.int64],
        prepared: NDArray[np.float32],
        since: NDArray[np.int64],
    ) -> None:
        keep = self.model.lookback - 1
        rows = prepared if state.tail is None else np.concatenate((state.tail, prepared))
        state.tail = rows[max(len(rows) - keep, 0) :].copy()
        state.last_time, state.since_start = int(time[-1]), int(since[-1])


def _rows_since_start(starts: NDArray[np.bool_], carried: int) -> NDArray[np.int64]:
    """Rows since the segment's first row, ``carried`` being that of the row before the first."""
    position = np.arange(len(starts), dtype=np.int64)
    last_start = np.maximum.accumulate(np.where(starts, position, -1))
    return np.where(last_start >= 0, position - last_start, position + carried + 1)


def _no_rows(tags: int) -> ScoredRows:
    none, nothing = np.empty(0, dtype=object), np.empty((0, tags), np.float32)
    return ScoredRows(
        np.empty(0, np.int64), none, np.empty(0, np.float32), np.empty(0, np.int8), none, nothing, nothing
    )


def scored_frame(rows: ScoredRows, model: AnomalyModel) -> pd.DataFrame:
    """``SCORES.parquet`` as a frame: time, asset, anomaly_score, threshold, outcome, reason, top_tags."""
    return pd.DataFrame(
        {
            "time": pd.to_datetime(rows.time, unit="us", utc=True),
            "asset": rows.asset,
            "anomaly_score": rows.score,
            "threshold": np.float32(model.threshold.value),
            "outcome": OUTCOMES[rows.outcome],
            "reason": rows.reason,
            "top_tags": named_shares(rows, model.contract.tags),
        }
    )


def named_shares(rows: ScoredRows, tags: tuple[str, ...]) -> list[list[tuple[str, float]]]:
    """The largest shares of every row by name; an empty list where the row was unscorable."""
    named = top_tags(rows.shares, tags, k=_NAMED_TAGS)
    for i in np.flatnonzero(rows.outcome == UNSCORABLE):
        named[i] = []
    return named


def chunk_from_frame(frame: pd.DataFrame, contract: LogContract) -> LogChunk:
    """A frame that was built in memory as one LogChunk; refuses a missing column (E3101)."""
    missing = [c for c in (contract.time, *contract.tags, *contract.categories) if c not in frame.columns]
    if missing:
        raise InputRefused([Fault("E3101", "the column", "no such column", column=c) for c in missing])
    n = len(frame)
    time = pd.to_datetime(frame[contract.time], utc=True).astype("datetime64[us, UTC]").astype("int64").to_numpy()
    named = contract.asset is not None and contract.asset in frame.columns
    asset = frame[contract.asset].astype(str).to_numpy(dtype=object) if named else np.full(n, ONE_ASSET, dtype=object)
    values = frame[list(contract.tags)].to_numpy(dtype=np.float32, na_value=np.nan)
    words = frame[list(contract.categories)].astype(object)
    text = words.where(words.notna(), UNKNOWN_WORD).astype(str).to_numpy(dtype=object).reshape(n, -1)
    row, label = np.arange(n, dtype=np.int64), np.zeros(n, np.int8)
    return LogChunk(row, np.asarray(time, np.int64), asset, values, text, label, np.zeros(values.shape, dtype=bool))

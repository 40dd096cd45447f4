"""The stream: log rows in, scored rows out, one for one, however the log is cut into chunks.

A score for row t comes from the window that ends at t and from nothing later. What the next row needs of the rows before
it is carried per asset: the last rows, the held values, the smoothed score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.data.contract import Columns, LogChunk
from anomaly.data.labels import segments
from anomaly.data.scaling import HoldState, hold_last
from anomaly.data.windows import ending_windows
from anomaly.intervals import from_flags
from anomaly.parallel import in_order
from anomaly.scores.past_events import Alike
from anomaly.scores.smoothing import CausalSmoother

if TYPE_CHECKING:
    from anomaly.model import AnomalyModel

NORMAL_ROW, ANOMALOUS, UNSCORABLE = 0, 1, 2
OUTCOMES = np.array(["normal", "anomalous", "unscorable"], dtype=object)
#: ``settling``: a full window, but the log has fewer rows before it than the score looks back on.
WARM_UP, GAP, SETTLING = "warm_up", "gap", "settling"

#: Windows that a worker pushes through the encoder at once; bounds the memory of scoring.
_BATCH = 2048
#: Windows of evidence are embedded so many at a time, padded: what one gives must not depend on how many there are.
_EVIDENCE_BATCH = 16
_NAMED_TAGS = 3
#: Columns of the last row that are arrays of numbers.
_LAST = ("time", "score", "outcome", "shares", "prepared", "alone")


@dataclass(frozen=True)
class ScoredRows(Columns):
    """One scored row per log row, in the order they came.

    ``time (n,)`` int64 UTC microseconds; ``asset (n,)`` str; ``score (n,)`` float32, NaN where unscorable;
    ``outcome (n,)`` int8 index into OUTCOMES; ``reason (n,)`` str; ``shares (n, C)`` float32 adding up to the raw
    score of the row, zero where unscorable; ``prepared (n, C)`` float32, the row's tags as the encoder saw them;
    ``alone (n, D)`` float32 the tail score of each detector by itself, NaN where unscorable; ``evidence (n,)`` an
    ``Evidence`` at the highest row of each run of anomalous rows, None elsewhere.
    """

    time: NDArray[np.int64]
    asset: NDArray[np.object_]
    score: NDArray[np.float32]
    outcome: NDArray[np.int8]
    reason: NDArray[np.object_]
    shares: NDArray[np.float32]
    prepared: NDArray[np.float32]
    alone: NDArray[np.float32]
    evidence: NDArray[np.object_]


@dataclass(frozen=True)
class Evidence:
    """What an alert shows of its peak row: the held values ``(C,)`` as logged, what of the past it looks like, and the
    prepared ``window (T, C + K)`` that ends at it."""

    values: NDArray[np.float32]
    alike: tuple[Alike, ...] = ()
    window: NDArray[np.float32] | None = None


@dataclass
class _AssetState:
    """What one asset's next row needs from the rows before it."""

    hold: HoldState | None = None
    last_time: int | None = None
    since_start: int = -1
    unbroken: bool = True  # no gap so far: what came before its first row is not known
    tail: NDArray[np.float32] | None = None
    tail_absent: NDArray[np.bool_] | None = None
    smoother: CausalSmoother | None = None
    last: ScoredRows | None = None

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready values and arrays."""
        plain: dict[str, Any] = {
            "last_time": self.last_time,
            "since_start": self.since_start,
            "unbroken": self.unbroken,
        }
        plain["smoothed"] = None if self.smoother is None else self.smoother.last
        held: dict[str, NDArray[Any] | None] = {"tail": self.tail, "tail_absent": self.tail_absent}
        if self.hold is not None:
            held |= {"hold_values": self.hold.values, "hold_age": self.hold.age}
        arrays = {name: array for name, array in held.items() if array is not None}
        if self.last is not None:
            arrays |= {f"last_{name}": getattr(self.last, name) for name in _LAST}
            plain["last"] = {"asset": self.last.asset[0], "reason": self.last.reason[0]}
            evidence: Evidence | None = self.last.evidence[0]
            if evidence is not None:
                plain["last"]["alike"] = [vars(a) for a in evidence.alike]
                arrays["evidence"] = evidence.values
                if evidence.window is not None:
                    arrays["evidence_window"] = evidence.window
        return plain, arrays

    @classmethod
    def from_state(cls, plain: dict[str, Any], arrays: dict[str, NDArray[Any]], half_life: float) -> _AssetState:
        """The state from what ``to_state`` gave."""
        # A state of an earlier release does not say whether there was a gap.
        unbroken = bool(plain.get("unbroken", True))
        made = cls(last_time=plain["last_time"], since_start=int(plain["since_start"]), unbroken=unbroken)
        made.tail, made.tail_absent = arrays.get("tail"), arrays.get("tail_absent")
        if "hold_values" in arrays:
            made.hold = HoldState(arrays["hold_values"], arrays["hold_age"])
        if plain["smoothed"] is not None:
            made.smoother = CausalSmoother(half_life)
            made.smoother.last = float(plain["smoothed"])
        if "last" in plain:
            own = plain["last"]
            text = {name: np.array([own[name]], dtype=object) for name in ("asset", "reason")}
            evidence = np.full(1, None, dtype=object)
            if "evidence" in arrays:
                window = arrays.get("evidence_window")
                evidence[0] = Evidence(arrays["evidence"], tuple(Alike(**a) for a in own["alike"]), window)
            made.last = ScoredRows(**text, **{name: arrays[f"last_{name}"] for name in _LAST}, evidence=evidence)
        return made


class StreamScorer:
    """Scores log rows as they come, chunk by chunk, carrying each asset's window across chunks.

    ``calibrated=False`` gives the fused scores before the last calibration, which learns from them.
    """

    def __init__(self, model: AnomalyModel, calibrated: bool = True) -> None:
        self.model = model
        self._calibrated = calibrated
        self._calibrator = model.calibrator if calibrated else None
        self._states: dict[str, _AssetState] = {}

    def score(self, chunk: LogChunk) -> ScoredRows:
        """Score the rows of a checked log; assets may be interleaved, each in time order."""
        done: list[tuple[NDArray[np.int64], ScoredRows]] = []
        assets = pd.unique(chunk.asset)
        if len(assets) == 1:  # nothing to pick and to put back in order
            codes = self.model.vocabulary.codes(chunk.categories)
            return self._score_asset(str(assets[0]), chunk.time, chunk.values, codes)
        for asset in assets:
            index = np.flatnonzero(chunk.asset == asset)
            codes = self.model.vocabulary.codes(chunk.categories[index])
            done.append((index, self._score_asset(str(asset), chunk.time[index], chunk.values[index], codes)))
        if not done:
            return _no_rows(len(self.model.contract.tags), len(self.model.ensemble.names))
        order = np.argsort(np.concatenate([index for index, _ in done]), kind="stable")
        return ScoredRows.join([rows for _, rows in done]).take(order)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What the next rows need of the rows before, as JSON-ready values and arrays; ``from_state`` goes on from there."""
        plain, arrays = list[dict[str, Any]](), dict[str, NDArray[Any]]()
        for number, (asset, state) in enumerate(self._states.items()):
            own, held = state.to_state()
            plain.append({"asset": asset, **own})
            arrays |= {f"{number}/{name}": array for name, array in held.items()}
        return {"calibrated": self._calibrated, "assets": plain}, arrays

    @classmethod
    def from_state(cls, model: AnomalyModel, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> StreamScorer:
        """A scorer of ``model`` that goes on where ``to_state`` was called: the same scores as without the break.

        Raises ValueError where the state is not of a model with as many tags.
        """
        made = cls(model, bool(settings["calibrated"]))
        for number, own in enumerate(settings["assets"]):
            held = {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(f"{number}/")}
            state = _AssetState.from_state(own, held, model.settings.detection.half_life)
            tags = len(model.contract.tags)
            if state.last is not None and state.last.shares.shape[1] != tags:
                found = state.last.shares.shape[1]
                raise ValueError(f"arrays: expected the state of a model of {tags} tags, got one of {found}")
            made._states[str(own["asset"])] = state
        return made

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
            own = slice(None) if fresh.all() else fresh
            starts = segments(time[own], self.model.max_gap_us, previous=state.last_time)
            held, age, state.hold = _held(values[own], starts, state.hold)
            parts.append(self.score_held(asset, time[own], held, age, starts, codes[own]))
        if fresh.all():
            state.last = parts[-1].take(np.array([len(time) - 1]))  # a copy: the chunk may go
            return parts[-1]
        rows = ScoredRows.join(parts)
        at = np.cumsum(fresh) - 1 + (1 if earlier is not None else 0)
        state.last = rows.take(np.array([len(rows.time) - 1]))
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
        first_ever, absent = state.last_time is None, model.preparer.absent(age)
        since = _rows_since_start(starts, state.since_start)
        prepared = model.prepare(held, codes, lambda: since, state.tail)
        history = prepared[:0] if state.tail is None else state.tail
        fused, shares, alone = self._raw(prepared, since, history)
        absent_row = np.asarray(absent.any(axis=1))
        unseen = self._mostly_absent(absent_row, since, state)
        half_life = model.settings.detection.half_life
        if half_life:
            state.smoother = state.smoother or CausalSmoother(half_life)
            fused = state.smoother.update(fused, since == 0)
        score = (fused if self._calibrator is None else self._calibrator.transform(fused)).astype(np.float32)
        settling = self._settling(state, since, first_ever)
        outcome, reason = self._outcomes(score, absent, unseen, since, first_ever, settling)
        score[outcome == UNSCORABLE] = np.nan
        shares[outcome == UNSCORABLE], alone[outcome == UNSCORABLE] = 0, np.nan
        rows = np.concatenate((history, prepared))[:, : model.channels]
        evidence = self._evidence(rows, since, score, outcome, held)
        self._remember(state, time, prepared, since)
        named = np.full(len(time), asset, dtype=object)
        return ScoredRows(time, named, score, outcome, reason, shares, prepared[:, : held.shape[1]], alone, evidence)

    def _raw(
        self, prepared: NDArray[np.float32], since: NDArray[np.int64], history: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """Fused scores, shares and each detector's own score of the window that ends at each row; few windows exist at a
        time."""
        rows, before = np.concatenate((history, prepared)), len(history)

        def part(at: int) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
            own = slice(before + at, before + at + _BATCH)
            earlier = rows[max(own.start - self.model.lookback + 1, 0) : own.start]
            windows = ending_windows(rows[own], since[at : at + _BATCH], self.model.lookback, earlier)
            return self.model.window_scores(windows)

        self.model.engine()  # made once, before threads ask for it
        parts = in_order(part, range(0, len(prepared), _BATCH))
        fused, shares, alone = (np.concatenate(column) for column in zip(*parts, strict=True))
        return fused, shares, alone

    def _evidence(
        self,
        rows: NDArray[np.float32],
        since: NDArray[np.int64],
        score: NDArray[np.float32],
        outcome: NDArray[np.int8],
        held: NDArray[np.float32],
    ) -> NDArray[np.object_]:
        """Evidence at the highest row of each run of anomalous rows; ``rows`` are the prepared ones, with history."""
        found = np.full(len(score), None, dtype=object)
        peaks = [int(low + np.argmax(score[low:high])) for low, high in from_flags(outcome == ANOMALOUS).tolist()]
        before = len(rows) - len(score)
        windows = [self._window(rows, before + i, int(since[i])) for i in peaks]
        alike = self._alike(windows) if len(self.model.past) else [()] * len(peaks)
        for number, i in enumerate(peaks):
            found[i] = Evidence(held[i].copy(), alike[number], windows[number])
        return found

    def _window(self, rows: NDArray[np.float32], at: int, since: int) -> NDArray[np.float32]:
        """The window that ends at row ``at`` of ``rows``, filled up with its segment's first row."""
        lookback = self.model.lookback
        first = at - min(since, lookback - 1)
        own = rows[max(first, 0) : at + 1]
        return np.concatenate((np.repeat(own[:1], lookback - len(own), axis=0), own))

    def _alike(self, windows: list[NDArray[np.float32]]) -> list[tuple[Alike, ...]]:
        found = []
        for at in range(0, len(windows), _EVIDENCE_BATCH):
            some = np.stack(windows[at : at + _EVIDENCE_BATCH])
            padded = np.concatenate((some, np.repeat(some[:1], _EVIDENCE_BATCH - len(some), axis=0)))
            embedded = self.model.encoder.embed(padded)[: len(some)]
            found += [tuple(self.model.past.nearest(one)) for one in embedded]
        return found

    def _outcomes(
        self,
        score: NDArray[np.float32],
        absent: NDArray[np.bool_],
        unseen: NDArray[np.bool_],
        since: NDArray[np.int64],
        first_ever: bool,
        settling: NDArray[np.bool_],
    ) -> tuple[NDArray[np.int8], NDArray[np.object_]]:
        """Three outcomes and why. A row with an absent value, or the first after a gap, is never called normal."""
        outcome = np.where(score >= np.float32(self.model.threshold.value), ANOMALOUS, NORMAL_ROW)
        reason = np.where(settling, SETTLING, "").astype(object)
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

    def _settling(self, state: _AssetState, since: NDArray[np.int64], first_ever: bool) -> NDArray[np.bool_]:
        """Rows before the log's first gap that have fewer rows before them than their score may depend on."""
        began = since == 0
        if first_ever and len(began):
            began[0] = False
        whole = ~np.logical_or.accumulate(began) if state.unbroken else np.zeros(len(since), dtype=bool)
        state.unbroken = state.unbroken and not began.any()
        return whole & (since < self.model.history)

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
        keep = max(self.model.lookback - 1, self.model.ensemble.trail)
        rows = prepared if state.tail is None else np.concatenate((state.tail, prepared))
        state.tail = rows[max(len(rows) - keep, 0) :].copy()
        state.last_time, state.since_start = int(time[-1]), int(since[-1])


def _held(
    values: NDArray[np.float32], starts: NDArray[np.bool_], state: HoldState | None
) -> tuple[NDArray[np.float32], NDArray[np.uint8], HoldState]:
    """As ``hold_last``; only tags that miss a value take its steps, the others are held as they are."""
    missing = np.isnan(values).any(axis=0)
    if missing.all() or not len(values):
        return hold_last(values, starts, state)
    held, age = values.copy(), np.zeros(values.shape, np.uint8)
    if missing.any():
        own = None if state is None else HoldState(state.values[missing], state.age[missing])
        held[:, missing], age[:, missing], _ = hold_last(values[:, missing], starts, own)
    return held, age, HoldState(held[-1].copy(), age[-1].copy())


def _rows_since_start(starts: NDArray[np.bool_], carried: int) -> NDArray[np.int64]:
    """Rows since the segment's first row, ``carried`` being that of the row before the first."""
    position = np.arange(len(starts), dtype=np.int64)
    last_start = np.maximum.accumulate(np.where(starts, position, -1))
    return np.where(last_start >= 0, position - last_start, position + carried + 1)


def _no_rows(tags: int, detectors: int) -> ScoredRows:
    none, nothing = np.empty(0, dtype=object), np.empty((0, tags), np.float32)
    alone = np.empty((0, detectors), np.float32)
    return ScoredRows(
        np.empty(0, np.int64), none, np.empty(0, np.float32), np.empty(0, np.int8), none, nothing, nothing, alone, none
    )

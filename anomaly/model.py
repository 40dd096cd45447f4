"""The fitted model: contract, scaler, encoder, detectors, calibration and threshold.

How rows stream through it is in ``anomaly.stream``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.config import Settings
from anomaly.data.audit import RowAudit
from anomaly.data.contract import ONE_ASSET, LogChunk, LogContract
from anomaly.data.departures import departures
from anomaly.data.scaling import RowPreparer
from anomaly.data.vocabulary import UNKNOWN_WORD, Vocabulary
from anomaly.detectors.base import Encoded
from anomaly.encoders import encoder_class
from anomaly.encoders.base import Encoder
from anomaly.encoders.inference import Engine, inference_engine
from anomaly.ensemble import Ensemble
from anomaly.errors import Fault, InputRefused
from anomaly.scores.calibration import TailCalibrator
from anomaly.scores.explain import top_tags
from anomaly.scores.past_events import PastWindows
from anomaly.scores.thresholds import Threshold
from anomaly.stream import ANOMALOUS, OUTCOMES, SETTLING, UNSCORABLE, WARM_UP, ScoredRows, StreamScorer

__all__ = ["ANOMALOUS", "OUTCOMES", "SETTLING", "UNSCORABLE", "WARM_UP", "AnomalyModel", "ScoredRows", "StreamScorer"]

_NAMED_TAGS = 3


@dataclass
class AnomalyModel:
    """Everything that turns log rows into calibrated scores; made by ``anomaly.fitting.fit_model``."""

    contract: LogContract
    settings: Settings
    preparer: RowPreparer
    encoder: Encoder
    ensemble: Ensemble
    calibrator: TailCalibrator | None  # of the fused score; None where it is one detector's own tail score
    threshold: Threshold
    max_gap_us: int
    vocabulary: Vocabulary
    reference: NDArray[np.float32]  # (m, C) a bounded sample of prepared normal training rows
    past: PastWindows = field(default_factory=PastWindows.none)
    audits: dict[str, RowAudit] = field(default_factory=dict)
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)  # first and last time of what it learned from
    quality: dict[str, Any] = field(default_factory=dict)
    canary: pd.DataFrame = field(default_factory=pd.DataFrame)
    digest: str | None = None
    engine_kind: str = "graph"  # how windows pass the encoder; see ``anomaly.encoders.inference``
    _engines: dict[tuple[str, bool, bool], Engine] = field(default_factory=dict, repr=False, compare=False)

    @property
    def lookback(self) -> int:
        """Rows of one window."""
        return self.settings.window.lookback

    @property
    def history(self) -> int:
        """Rows before a row that its score may depend on."""
        return self.lookback - 1 + self.ensemble.trail

    @property
    def channels(self) -> int:
        """Columns of a prepared row that the encoder takes: tags and categories."""
        return len(self.contract.tags) + len(self.contract.categories)

    def prepare(
        self,
        held: NDArray[np.float32],
        codes: NDArray[np.int32],
        since_start: Callable[[], NDArray[np.int64]],
        before: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Held rows ``(n, C)`` and category codes ``(n, K)`` as ``encode`` takes them: ``(n, C + K)``, with the departures
        beside them, ``(n, C + K + C)``, where a detector asks for those. What ``since_start`` gives, asked for only then, and
        prepared rows ``before`` as in ``data.departures``."""
        rows = prepared_rows(self.preparer, held, codes)
        tags, trail = len(self.contract.tags), self.ensemble.trail
        if not trail:
            return rows
        levels = None if before is None else before[:, :tags]
        return np.column_stack((rows, departures(rows[:, :tags], since_start(), trail, levels)))

    def encode(self, windows: NDArray[np.float32], embedding: bool = False) -> Encoded:
        """What the detectors need of windows of rows as ``prepare`` makes them, and the ``embedding`` where it is asked
        for."""
        tags = len(self.contract.tags)
        values, rest = windows[..., :tags], windows[..., tags:]
        inner = windows if windows.shape[-1] == self.channels else windows[..., : self.channels]
        passed = self.engine(embedding)(inner)

        def again(other: NDArray[np.float32], index: NDArray[np.int64]) -> Encoded:
            return self.encode(np.concatenate((other, rest[index]), axis=-1) if rest.shape[-1] else other)

        return Encoded(
            values,
            passed.embedding,
            None if passed.reconstruction is None else values - passed.reconstruction,
            again,
            None if inner is windows else windows[..., self.channels :],
        )

    def engine(self, embedding: bool = False) -> Engine:
        """What windows pass through: the outputs that the detectors need, and the embedding where it is asked for."""
        needs = self.ensemble.needs
        wanted = (embedding or "embedding" in needs, "residual" in needs)
        made = self._engines.get((self.engine_kind, *wanted))
        if made is None or made.encoder is not self.encoder:
            made = self._engines[self.engine_kind, *wanted] = inference_engine(self.encoder, *wanted, self.engine_kind)
        return made

    def window_scores(
        self, windows: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """Of windows of prepared rows: fused scores ``(B,)`` before smoothing and the last calibration, their
        per-tag shares ``(B, C)``, and the score of each detector by itself ``(B, D)``."""
        block = self.encode(windows)
        alone, shares = self.ensemble.scores_and_shares(block)
        return self.ensemble.fused(alone), shares.astype(np.float32), alone.astype(np.float32)

    def normal_ranges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What each tag is between in 98 of 100 normal training rows, in its own units, ``(C,)`` each."""
        if not len(self.reference):
            nothing = np.full(len(self.contract.tags), np.nan)
            return nothing, nothing
        low, high = np.quantile(self.reference, [0.01, 0.99], axis=0)
        return self.preparer.inverse(low), self.preparer.inverse(high)

    def stream(self, calibrated: bool = True) -> StreamScorer:
        """A scorer with empty state: nothing seen yet."""
        return StreamScorer(self, calibrated)

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
        }
        arrays: dict[str, NDArray[Any]] = {"reference/rows": self.reference}
        for name in ("preparer", "encoder", "ensemble", "calibrator", "past"):
            held = getattr(self, name)
            parts[name], own = (None, {}) if held is None else held.to_state()
            arrays |= {f"{name}/{key}": value for key, value in own.items()}
        return parts, arrays

    @classmethod
    def from_parts(cls, parts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> AnomalyModel:
        """The model from what ``to_parts`` gave; no code is taken from the parts, names are looked up in our lists."""

        def own(name: str) -> dict[str, NDArray[Any]]:
            return {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(f"{name}/")}

        encoder, calibrator = encoder_class(parts["encoder_name"]), parts["calibrator"]
        return cls(
            contract=LogContract.from_dict(parts["contract"]),
            settings=Settings.from_dict(parts["settings"]),
            preparer=RowPreparer.from_state(parts["preparer"], own("preparer")),
            encoder=encoder.from_state(parts["encoder"], own("encoder")),
            ensemble=Ensemble.from_state(parts["ensemble"], own("ensemble")),
            calibrator=None if calibrator is None else TailCalibrator.from_state(calibrator, own("calibrator")),
            past=PastWindows.from_state(parts["past"], own("past")),
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
    """The largest shares of every row by name; an empty list where the row has none (unscorable, or not told apart)."""
    named = top_tags(rows.shares, tags, k=_NAMED_TAGS)
    for i in np.flatnonzero(~has_shares(rows)):
        named[i] = []
    return named


def has_shares(rows: ScoredRows) -> NDArray[np.bool_]:
    """Which rows say what their score came from, ``(n,)``."""
    return np.asarray((rows.outcome != UNSCORABLE) & (rows.shares.sum(axis=1) > 0))


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

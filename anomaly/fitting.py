"""Fit a model on a window store: scaler, encoder, detector, calibration, threshold; each on its own rows.

Fitted parts see normal rows of the train part only; calibration and threshold see the validation part only; the test
part is not read here. Every part's rows are recorded in an audit (METHODS S56, S57, S61).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.config import DetectionSettings, EncoderSettings, Settings, TrainingSettings
from anomaly.data.audit import RowAudit
from anomaly.data.contract import EVENT, LEAD, NORMAL
from anomaly.data.reservoir import Reservoir
from anomaly.data.scaling import RowPreparer
from anomaly.data.splits import PARTS
from anomaly.data.store import RowBlock, WindowBlock, WindowStore
from anomaly.data.vocabulary import Vocabulary
from anomaly.detectors import build_detector
from anomaly.encoders import build_encoder
from anomaly.encoders.base import Encoder, TrainingBatch, TrainingData, TrainingHistory, WindowShape
from anomaly.ensemble import Ensemble
from anomaly.errors import Fault, InputRefused, TooFewWindows, UsageError
from anomaly.few_labels import fine_tune_model, past_windows
from anomaly.labelled_head import judged_head, with_head
from anomaly.model import UNSCORABLE, AnomalyModel, ScoredRows, StreamScorer, prepared_rows
from anomaly.scores.calibration import TailCalibrator
from anomaly.scores.thresholds import Threshold, choose_threshold, fixed_threshold

#: Told the stage ("scaler", "encoder", …), what is done and what there is to do.
Progress = Callable[[str, int, int], None]

Item = TypeVar("Item")

_CANARY_ROWS = 64
_REFERENCE_ROWS = 5000
_LONGER = "shorten --lookback, leave out a tag that is mostly missing (--drop), or give a longer log"


@dataclass(frozen=True)
class PartScores:
    """What a part of the log scored, row by row, without the rows themselves.

    ``time (n,)`` int64 microseconds; ``asset (n,)`` str; ``score (n,)`` float32, NaN where unscorable;
    ``outcome (n,)`` int8 of model.OUTCOMES; ``kind (n,)`` int8 of data.contract; ``alone (n, D)`` float32 what each
    detector says by itself.
    """

    part: str
    time: NDArray[np.int64]
    asset: NDArray[np.object_]
    score: NDArray[np.float32]
    outcome: NDArray[np.int8]
    kind: NDArray[np.int8]
    alone: NDArray[np.float32]

    @classmethod
    def collect(cls, part: str, blocks: Iterable[tuple[ScoredRows, NDArray[np.int8]]]) -> PartScores:
        """Keep the row-wise answers of many scored blocks and let the rest go."""
        kept = [(r.time, r.asset, r.score, r.outcome, kind, r.alone) for r, kind in blocks]
        if not kept:
            none, codes = np.empty(0, np.int64), np.empty(0, np.int8)
            scores = np.empty((0, 0), np.float32)
            return cls(part, none, none.astype(object), scores.ravel(), codes, codes, scores)
        return cls(part, *(np.concatenate(column) for column in zip(*kept, strict=True)))


@dataclass(frozen=True)
class Fitted:
    """A fitted model with what it was judged on while fitting."""

    model: AnomalyModel
    history: TrainingHistory
    validation: PartScores
    notices: tuple[str, ...] = ()


def silent(stage: str, done: int, total: int) -> None:
    """A progress that shows nothing."""


def fit_model(store: WindowStore, settings: Settings, workdir: Path, progress: Progress = silent) -> Fitted:
    """Fit everything on ``store``.

    Raises InputRefused: E3302 when no normal window is left in the train or validation part, E3304 when training met
    a non-finite number.
    """
    preparer, vocabulary = _fit_preparer(store, settings.encoder, progress)
    windows = PreparedWindows(store, preparer, vocabulary, settings.training)
    audit = _window_audit(store, windows)
    encoder = build_encoder(settings.encoder)
    history = encoder.fit(
        windows.data(),
        training=settings.training,
        workdir=workdir,
        progress=lambda epoch, losses: progress("encoder", epoch + 1, settings.training.epochs),
    )
    model = AnomalyModel(
        contract=store.contract,
        settings=settings,
        preparer=preparer,
        encoder=encoder,
        ensemble=_ensemble(settings.detection, encoder, windows, settings.training.seed),
        calibrator=None,
        threshold=fixed_threshold(0.0),
        max_gap_us=store.max_gap_us,
        vocabulary=vocabulary,
        reference=_reference(store, preparer, settings.training.seed),
        audits={"scaler": preparer.audit_, "encoder": audit},
    )
    _fit_detectors(model, windows, progress)
    notices = _fine_tuned(model, store, windows, settings, progress)
    if settings.detection.labelled and "head" not in model.ensemble.names:
        notices += _with_labelled_head(model, store, windows, progress)
    model.past = past_windows(store, model, windows.prepare, settings.training.seed)
    blocks = stream_part(store, model, "validation", progress)
    validation = PartScores.collect("validation", ((rows, block.kind) for block, rows in blocks))
    model.threshold = _pick_threshold(store, settings, validation)
    model.canary, model.seen = _canary(store), _seen(store)
    return Fitted(model, history, _with_outcomes(validation, model.threshold), notices)


def _ensemble(settings: DetectionSettings, encoder: Encoder, windows: PreparedWindows, seed: int) -> Ensemble:
    """The detectors that the settings name, or those that fit the encoder, and the operating modes they are scaled by."""
    names = [name for wanted in settings.detectors for name in (fitting(encoder) if wanted == "auto" else (wanted,))]
    unused = [name for name in settings.options if name not in names]
    if unused:
        hint = f"the detectors are {', '.join(names)}"
        raise UsageError(Fault("E2002", "detection.options of a detector in use", unused[0], hint))
    detectors = [build_detector(name, **settings.options.get(name, {})) for name in dict.fromkeys(names)]
    for detector in detectors:
        if detector.needs == "residual" and not encoder.can_reconstruct:
            hint = "choose the detector knn, or an encoder that reconstructs (dense_ae)"
            raise UsageError(Fault("E2002", "a detector that scores embeddings", detector.name, hint))
    space = None
    if settings.modes:
        from anomaly.embeddings.space import Space

        embedded = Repeated(lambda: (encoder.embed(batch.windows) for batch in windows.training(0)))
        try:
            wanted = None if settings.modes < 0 else settings.modes
            space = Space.fit(embedded, clusters=wanted, reduce=settings.reduce, seed=seed)
        except ValueError as error:
            raise UsageError(Fault("E2002", "detection.modes and reduce that the log supports", error)) from error
    try:
        return Ensemble(detectors, settings.fusion, settings.weights, space)
    except ValueError as error:
        raise UsageError(Fault("E2002", "detection.weights that fit the detectors", error)) from error


def fitting(encoder: Encoder) -> tuple[str, ...]:
    """Names of the detectors that are taken where none is named."""
    embedded = ("knn", "window_knn", "subspace", "local")
    return ("reconstruction", *embedded) if encoder.can_reconstruct else embedded


class Repeated(Generic[Item]):
    """An iterable that begins anew each time it is read."""

    def __init__(self, make: Callable[[], Iterator[Item]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Item]:
        return self._make()


def _fit_detectors(model: AnomalyModel, windows: PreparedWindows, progress: Progress) -> None:
    """Detectors on normal training windows, their calibration on the held-back normal windows of validation.

    Raises InputRefused E3302 where a detector gets fewer of them than it needs.
    """
    progress("detectors", 0, 1)
    trail = model.ensemble.trail
    try:
        model.ensemble.fit(Repeated(lambda: (model.encode(batch.windows) for batch in windows.training(0, trail))))
        progress("detectors", 1, 1)
        _calibrate(model, windows, progress)
    except TooFewWindows as error:
        expected = f"normal windows enough for {', '.join(model.ensemble.names)}"
        raise InputRefused(Fault("E3302", expected, str(error).removeprefix("blocks: "), _LONGER)) from error


def _calibrate(model: AnomalyModel, windows: PreparedWindows, progress: Progress) -> None:
    """Each detector's calibration, and that of the fused score, on the held-back normal windows of validation."""
    progress("calibration", 0, 1)
    trail = model.ensemble.trail
    fused = model.ensemble.calibrate(model.encode(block.values) for block in windows.blocks("validation", trail))
    model.calibrator = None
    if model.settings.detection.half_life:
        blocks = stream_part(windows.store, model, "validation", calibrated=False)
        # Rows as they will be scored: whole windows of normal operation, smoothed as the stream smooths them.
        fused = np.concatenate([r.score[(b.kind == NORMAL) & (r.reason == "")] for b, r in blocks]).astype(np.float64)
    if len(model.ensemble.detectors) > 1 or model.settings.detection.half_life:
        model.calibrator = TailCalibrator().fit(fused)
    progress("calibration", 1, 1)


def refit(store: WindowStore, model: AnomalyModel, progress: Progress = silent) -> bool:
    """Detectors learn anew from the normal windows of the whole log, the newest as well; says whether they did.

    For a model that has been judged: its figures are those of before. Scaler, encoder, calibration and threshold stay. A
    model whose detector learned from events keeps it.
    """
    if not model.settings.detection.refit or "head" in model.ensemble.names:
        return False
    progress("refit", 0, 1)
    windows = PreparedWindows(store, model.preparer, model.vocabulary, model.settings.training)
    audit, trail = RowAudit(), model.ensemble.trail
    for block in windows.blocks(None):
        _add_rows(audit, block, store.lookback)
    model.ensemble.fit(Repeated(lambda: (model.encode(block.values) for block in windows.blocks(None, trail))))
    model.audits["detectors, once judged"], model.seen = audit, _seen(store, PARTS)
    progress("refit", 1, 1)
    return True


def _fine_tuned(
    model: AnomalyModel, store: WindowStore, windows: PreparedWindows, settings: Settings, progress: Progress
) -> tuple[str, ...]:
    """Put the fine-tuned encoder and its head into the model where they are used; says why, or why not."""
    if not (settings.fine_tuning.enabled or settings.fine_tuning.verdicts):
        return ()
    tuned = fine_tune_model(model, store, windows.prepare, settings.fine_tuning, settings.training.seed)
    encoder, head, reason = tuned
    if head is not None:
        model.encoder, model.ensemble = encoder, Ensemble([head])
        _fit_detectors(model, windows, progress)
    return (reason,)


def _with_labelled_head(
    model: AnomalyModel, store: WindowStore, windows: PreparedWindows, progress: Progress
) -> tuple[str, ...]:
    """Put a head that learned from the log's events beside the detectors where it ranks later events better."""
    before, calibrator, seed = model.ensemble, model.calibrator, model.settings.training.seed
    found, reason = with_head(model, store, windows.prepare, seed)
    if found is not None:
        model.ensemble = found
        _calibrate(model, windows, progress)
        kept, reason = judged_head(model, before, store, windows.prepare, seed)
        if not kept:
            model.ensemble, model.calibrator = before, calibrator
    return (reason,) if reason else ()


def _fit_preparer(store: WindowStore, settings: EncoderSettings, progress: Progress) -> tuple[RowPreparer, Vocabulary]:
    """Scales and words of the normal training rows."""
    words: list[set[str]] = [set() for _ in store.contract.categories]
    preparer = RowPreparer(compress=settings.far == "log", robust=settings.scaling == "robust")
    total, done = sum(store.n_rows(a) for a in store.assets), 0
    for block in store.row_blocks("train"):
        normal = block.kind == NORMAL
        preparer.partial_fit(block.values, block.age, normal, block.asset, block.start)
        for k, seen in enumerate(words):
            seen.update(block.vocabulary[k][code] for code in np.unique(block.categories[normal, k]))
        done += len(block.time)
        progress("scaler", done, total)
    if not preparer.audit_.rows:
        raise InputRefused(
            Fault(
                "E3302",
                "normal rows in the train part",
                "none",
                "check the label column, or give a longer log",
            )
        )
    preparer.finish()
    return preparer, Vocabulary.of([sorted(seen) for seen in words])


class PreparedWindows:
    """Normal, fully measured, scaled windows of the train and validation parts."""

    def __init__(
        self, store: WindowStore, preparer: RowPreparer, vocabulary: Vocabulary, training: TrainingSettings
    ) -> None:
        self.store, self.preparer, self.vocabulary, self._training = store, preparer, vocabulary, training
        self.n_windows = 0

    def data(self) -> TrainingData:
        """What an encoder learns from; ``n_windows`` must have been counted."""
        shape = WindowShape(self.store.lookback, len(self.store.contract.tags), self.vocabulary.sizes)
        return TrainingData(shape, self.training, self.validation, self.n_windows, self.store.digest)

    def prepare(
        self, held: NDArray[np.float32], age: NDArray[np.uint8], codes: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Rows as the encoder takes them, and which have no absent value."""
        own = self.vocabulary.recoded(codes, self.store.vocabulary)
        usable = ~self.preparer.absent(age).any(axis=1)
        return prepared_rows(self.preparer, held, own), np.asarray(usable)

    def training(self, epoch: int, trail: int = 0) -> Iterator[TrainingBatch]:
        """One epoch of mixed batches; the order depends on the seed and on ``epoch``. ``trail`` as ``WindowStore`` has it."""
        size, seed = self._training.batch_size, self._training.seed
        for batch in self.store.shuffled_batches(
            size, part="train", seed=seed, epoch=epoch, prepare=self.prepare, trail=trail
        ):
            yield TrainingBatch(batch.values, batch.asset, batch.starts)

    def validation(self, epoch: int) -> Iterator[TrainingBatch]:
        """The normal windows of the validation part, in order."""
        for block in self.blocks("validation"):
            yield TrainingBatch(block.values, np.full(len(block), block.asset, dtype=object), block.starts)

    def blocks(self, part: str | None, trail: int = 0) -> Iterator[WindowBlock]:
        """The normal windows of a part, or of all, prepared, in order; ``trail`` as ``WindowStore`` has it."""
        return self.store.window_blocks(part, normal_only=True, prepare=self.prepare, trail=trail)


def _window_audit(store: WindowStore, windows: PreparedWindows) -> RowAudit:
    """The rows inside the windows that the encoder learns from, and how many windows; refuses when there are none."""
    audit = RowAudit()
    for block in windows.blocks("train"):
        windows.n_windows += len(block)
        _add_rows(audit, block, store.lookback)
    for part, found in (("train", audit.rows), ("validation", next(windows.validation(0), None) is not None)):
        if not found:
            raise InputRefused(
                Fault(
                    "E3302",
                    f"a complete normal window of {store.lookback} rows in the {part} part",
                    "none",
                    _LONGER,
                )
            )
    return audit


def _add_rows(audit: RowAudit, block: WindowBlock, lookback: int) -> None:
    """Note the rows inside the windows of ``block``."""
    if not len(block):
        return
    starts, first = block.starts, int(block.starts[0])
    seen = np.zeros(int(starts[-1]) - first + lookback + 1, dtype=np.int64)
    np.add.at(seen, starts - first, 1)
    np.add.at(seen, starts - first + lookback, -1)
    audit.add(block.asset, first, np.cumsum(seen)[:-1] > 0)


def stream_part(
    store: WindowStore, model: AnomalyModel, part: str, progress: Progress = silent, calibrated: bool = True
) -> Iterator[tuple[RowBlock, ScoredRows]]:
    """Score the rows of a part, block by block, as the stream would: the rows just before it serve as history."""
    scorer, history, total, done = model.stream(calibrated), model.history, store.n_part_rows(part), 0
    asset = None
    for block in store.row_blocks(part):
        if block.asset != asset and block.start and history:
            before = store.rows(block.asset, max(0, block.start - history), block.start)
            _score_block(scorer, before)
        asset = block.asset
        yield block, _score_block(scorer, block)
        done += len(block.time)
        progress(part, done, total)


def _score_block(scorer: StreamScorer, block: RowBlock) -> ScoredRows:
    codes = scorer.model.vocabulary.recoded(block.categories, block.vocabulary)
    return scorer.score_held(block.asset, block.time, block.values, block.age, block.starts, codes)


def positive_rows(kind: NDArray[np.int8], lead_us: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows are positive, and which are judged at all.

    With a lead the rows before an event are the positives and the event rows are left out (METHODS S58); without one
    the event rows are. Rows of unknown label are never judged.
    """
    positive = kind == (LEAD if lead_us else EVENT)
    return positive, positive | (kind == NORMAL)


def _pick_threshold(store: WindowStore, settings: Settings, validation: PartScores) -> Threshold:
    positive, judged = positive_rows(validation.kind, store.lead_us)
    use = judged & np.isfinite(validation.score)
    return choose_threshold(
        settings.threshold,
        scores=validation.score[use].astype(np.float64),
        positive=positive[use],
        time=validation.time[use],
        asset=validation.asset[use],
        period_us=store.period_us,
        merge_gap_us=round(settings.episodes.merge_gap * store.period_us),
        part="validation",
        seed=settings.training.seed,
    )


def _with_outcomes(part: PartScores, threshold: Threshold) -> PartScores:
    """The part judged anew by the threshold that was picked on it."""
    outcome = np.where(part.outcome == UNSCORABLE, UNSCORABLE, part.score >= np.float32(threshold.value))
    return replace(part, outcome=outcome.astype(np.int8))


def _reference(store: WindowStore, preparer: RowPreparer, seed: int) -> NDArray[np.float32]:
    """A uniform sample of at most 5000 prepared normal training rows."""
    sample = Reservoir(_REFERENCE_ROWS, seed)
    for block in store.row_blocks("train"):
        use = (block.kind == NORMAL) & ~preparer.absent(block.age).any(axis=1)
        sample.add(preparer.transform(block.values[use]))
    return sample.columns[0] if sample.columns else np.empty((0, len(store.contract.tags)), np.float32)


def _seen(store: WindowStore, parts: tuple[str, ...] = ("train", "validation")) -> dict[str, tuple[int, int]]:
    """First and last time, per asset, of the rows of ``parts``, which a fit or a threshold looked at."""
    spans = {}
    for asset in store.assets:
        ends = [store.part_rows(asset, part) for part in parts]
        rows = [i for first, stop in ends if stop > first for i in (first, stop - 1)]
        if rows:
            times = [int(store.rows(asset, i, i + 1).time[0]) for i in rows]
            spans[asset] = (min(times), max(times))
    return spans


def _canary(store: WindowStore) -> pd.DataFrame:
    """A few rows as they were logged, kept with the model so that a loaded copy can prove itself."""
    asset = store.assets[0]
    block = store.rows(asset, 0, min(_CANARY_ROWS, store.n_rows(asset)))
    frame = pd.DataFrame(block.values, columns=list(store.contract.tags))
    frame.insert(0, store.contract.time, pd.to_datetime(block.time, unit="us", utc=True))
    if store.contract.asset:
        frame.insert(1, store.contract.asset, asset)
    words = block.as_chunk().categories
    return frame.assign(**{name: words[:, k] for k, name in enumerate(store.contract.categories)})

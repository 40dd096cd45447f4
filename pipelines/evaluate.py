"""Judge a model on rows that neither its fit nor its threshold saw: figures with intervals, baselines beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alerts.episodes import Episode
from anomaly.baselines import energy_scores, knn_scores, pca_scores
from anomaly.config import parse_duration
from anomaly.data.contract import NORMAL, UNKNOWN
from anomaly.data.labels import event_intervals, lead_kinds, segment_intervals
from anomaly.data.quality import Finding
from anomaly.data.readers import PlantLog
from anomaly.data.store import WindowStore
from anomaly.errors import Fault, InputRefused
from anomaly.fitting import Fitted, PartScores, Progress, silent, stream_part
from anomaly.intervals import Intervals, as_intervals
from anomaly.metrics import Evaluation, ScoredPart
from anomaly.metrics import evaluate as figures_of
from anomaly.model import OUTCOMES, UNSCORABLE, AnomalyModel, ScoredRows
from pipelines.home import reports
from pipelines.ingest import Ingested, log_files
from pipelines.report import Report, write_report
from pipelines.report_data import calibration_rows, events_inside, log_report, training_report
from pipelines.score import Trackers, open_for, scored_chunks

PerAsset = dict[str, Intervals]

#: Reasons for missing scores that a note names.
_REASONS = 4


@dataclass(frozen=True)
class Judged:
    """An evaluation, the report that shows it, and the episodes it counted."""

    evaluation: Evaluation
    report: Report
    episodes: list[Episode]

    def metrics(self) -> dict[str, float]:
        """The finite figures under flat names, with their intervals and the baselines, as a tracker wants them."""
        flat: dict[str, float | None] = {}
        for name, figure in self.evaluation.figures.items():
            flat |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
        for baseline, own in self.evaluation.baselines.items():
            flat |= {f"baseline_{baseline}.{name}": figure.value for name, figure in own.items()}
        return {k: float(v) for k, v in flat.items() if v is not None and np.isfinite(v)}


@dataclass(frozen=True)
class Evaluated:
    """A model judged on a log of its own."""

    evaluation: dict[str, Any]
    report: Path
    notices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {"evaluation": self.evaluation, "report": str(self.report), "notices": list(self.notices)}


class Judge:
    """Follows scored rows and keeps what the figures need: row-wise answers, episodes, baseline scores."""

    def __init__(self, model: AnomalyModel) -> None:
        self._model, self._trackers = model, Trackers(model)
        self._baselines: dict[str, list[NDArray[np.float64]]] = {"row PCA": [], "5-NN": [], "energy": []}
        self._unscored: Counter[str] = Counter()

    def follow(
        self, blocks: Iterable[tuple[ScoredRows, NDArray[np.int8]]]
    ) -> Iterator[tuple[ScoredRows, NDArray[np.int8]]]:
        """Pass blocks of scored rows and their kinds on, remembering what they say."""
        reference = self._model.reference
        for rows, kind in blocks:
            self._trackers.update(rows)
            self._unscored.update(rows.reason[(rows.outcome == UNSCORABLE) & (kind != UNKNOWN)].tolist())
            self._baselines["row PCA"].append(pca_scores(reference, rows.prepared))
            self._baselines["5-NN"].append(knn_scores(reference, rows.prepared))
            self._baselines["energy"].append(energy_scores(rows.prepared))
            yield rows, kind

    def judge(
        self, scored: PartScores, events: PerAsset, notes: Sequence[str] = ()
    ) -> tuple[Evaluation, list[Episode]]:
        """All figures of the rows that were followed."""
        model = self._model
        part = scored_part(scored, events, model)
        episodes = self._trackers.finish()
        spans: dict[str, list[tuple[int, int]]] = {str(a): [] for a in dict.fromkeys(scored.asset)}
        for e in episodes:
            spans[e.asset].append((e.start_us, e.end_us + 1))
        evaluation = figures_of(
            part,
            model.threshold.value,
            episodes={asset: as_intervals(own) for asset, own in spans.items()},
            baseline_scores={name: np.concatenate([np.empty(0), *own]) for name, own in self._baselines.items()},
            detector_scores=alone_scores(scored, model),
            merge_gap_us=round(model.settings.episodes.merge_gap * model.contract.period_us),
            notes=[*notes, *self._why_unscored(), *_calibration_note(scored, model)],
            seed=model.settings.training.seed,
        )
        return evaluation, episodes

    def _why_unscored(self) -> list[str]:
        """A note with the commonest reasons why rows have no score."""
        found = [f"{reason} ({n})" for reason, n in self._unscored.most_common(_REASONS)]
        return [f"why rows could not be scored: {'; '.join(found)}"] if found else []


def alone_scores(scored: PartScores, model: AnomalyModel) -> dict[str, NDArray[np.float32]]:
    """What each detector says by itself, by its name; nothing where the model has only one."""
    names = model.ensemble.names
    return {name: scored.alone[:, d] for d, name in enumerate(names)} if len(names) > 1 and len(scored.alone) else {}


def scored_part(scored: PartScores, events: PerAsset, model: AnomalyModel) -> ScoredPart:
    """Row-wise answers with what judging them takes."""
    return ScoredPart(
        asset=scored.asset,
        time=scored.time,
        score=scored.score,
        outcome=OUTCOMES[scored.outcome],
        kind=scored.kind,
        events=events,
        period_us=model.contract.period_us,
        lead_us=parse_duration(model.settings.window.lead),
        max_gap_us=model.max_gap_us,
        part=scored.part,
    )


def _calibration_note(scored: PartScores, model: AnomalyModel) -> list[str]:
    """Nominal against observed alert rate of normal rows, at one in a hundred or the rarest rate that can be told."""
    rows = calibration_rows(scored, model)
    if not rows:
        return []
    row = max((r for r in rows if r.nominal >= 0.0099), key=lambda r: -r.nominal, default=rows[-1])
    rates = (
        f"{row.nominal:.3g} of normal rows should reach a score of {-np.log10(row.nominal):.1f}, {row.observed:.3g} did"
    )
    return [f"calibration: {rates} (95 % interval {row.low:.3g} to {row.high:.3g}): {row.verdict}"]


def evaluate_store(
    store: WindowStore, fitted: Fitted, prepared: Ingested, findings: list[Finding], progress: Progress = silent
) -> Judged:
    """Judge a fitted model on the test part of the store it was fitted on."""
    judge = Judge(fitted.model)
    blocks = ((rows, block.kind) for block, rows in stream_part(store, fitted.model, "test", progress))
    scored = PartScores.collect("test", judge.follow(blocks))
    events = {asset: events_inside(store, asset, "test") for asset in store.assets}
    evaluation, episodes = judge.judge(scored, events)
    report = training_report(store, fitted, prepared, findings, scored, evaluation, episodes, events)
    return Judged(evaluation, report, episodes)


def evaluate_log(
    model: AnomalyModel, name: str, paths: Sequence[Path], report: Path | None, progress: Progress = silent
) -> Evaluated:
    """Judge a model on labelled logs; rows in the time that its fit or threshold saw are not judged.

    Raises InputRefused: E3105 without a label, E3302 when the model saw every row.
    """
    log = open_for(model, log_files(paths), progress)
    if model.contract.label is None or not log.label_counts.get(NORMAL):
        raise InputRefused(Fault("E3105", "a labelled log", "no label column, or no normal row", "train with --label"))
    target = report or reports() / f"evaluation-{log.fingerprint[:12]}.html"
    return judge_log(model, name, log, _log_rows(log, model, progress), target)


def judge_log(
    model: AnomalyModel,
    name: str,
    log: PlantLog,
    blocks: Iterable[tuple[ScoredRows, NDArray[np.int8]]],
    target: Path,
) -> Evaluated:
    """Judge a model on scored rows of ``log`` and their labels, and write the report to ``target``.

    Raises InputRefused: E3105 without a normal row among them, E3302 when the model saw every one.
    """
    judge = Judge(model)
    scored = PartScores.collect("evaluation log", judge.follow(blocks))
    if not (scored.kind == NORMAL).any():
        raise InputRefused(Fault("E3105", "a labelled log", "no normal row of this model", "train with --label"))
    scored, notes = _without_seen(scored, model)
    scored, events = _with_leads(scored, model)
    evaluation, episodes = judge.judge(scored, events, notes)
    write_report(target, log_report(model, name, log, scored, evaluation, episodes, events))
    return Evaluated(evaluation.to_dict(), target, log.notices)


def _log_rows(log: PlantLog, model: AnomalyModel, progress: Progress) -> Iterator[tuple[ScoredRows, NDArray[np.int8]]]:
    done = 0
    for chunk, rows in scored_chunks(log, model):
        yield rows, chunk.label
        done += len(chunk)
        progress("score", done, log.rows)


def _without_seen(scored: PartScores, model: AnomalyModel) -> tuple[PartScores, list[str]]:
    """Rows in the time that the model learned from, or took its threshold from, become unknown, and a note says so."""
    seen = np.zeros(len(scored.time), dtype=bool)
    for asset, (first, last) in model.seen.items():
        seen |= (scored.asset == asset) & (scored.time >= first) & (scored.time <= last)
    if seen.all():
        hint = "judge the model on a later log"
        raise InputRefused(
            Fault("E3302", "rows that the model has not seen", "every row lies in its training time", hint)
        )
    note = f"{int(seen.sum())} rows lie in the time the model learned from: they are scored but not judged"
    kind = np.where(seen, UNKNOWN, scored.kind).astype(np.int8)
    return replace(scored, kind=kind), [note] if seen.any() else []


def _with_leads(scored: PartScores, model: AnomalyModel) -> tuple[PartScores, PerAsset]:
    """Row kinds with the model's lead before each event, and the events, per asset."""
    kind, events = scored.kind.copy(), {}
    for asset in dict.fromkeys(scored.asset):
        mine = np.flatnonzero(scored.asset == asset)
        time, label = scored.time[mine], scored.kind[mine]
        pieces = segment_intervals(time, model.max_gap_us)
        kind[mine] = lead_kinds(time, label, pieces, parse_duration(model.settings.window.lead))
        events[str(asset)] = event_intervals(time, label, pieces)
    return replace(scored, kind=kind), events

"""Gather what a report shows from what a job has at hand; no figure is computed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from alerts.episodes import Episode
from anomaly.data.contract import NORMAL
from anomaly.data.quality import Finding
from anomaly.data.readers import PlantLog
from anomaly.data.splits import PARTS
from anomaly.data.store import WindowStore
from anomaly.fitting import Fitted, PartScores, positive_rows
from anomaly.intervals import Intervals, as_intervals
from anomaly.metrics import Evaluation
from anomaly.model import AnomalyModel
from anomaly.scores.calibration_check import CalibrationRow, check_calibration, row_blocks
from anomaly.scores.what_if import WhatIfRow, what_if
from pipelines.ingest import Ingested
from pipelines.recipe_choices import choices
from pipelines.report import AssetSeries, PartRow, RankedRows, Report, when

_TOP_ALERTS = 12
_MOST_FINDINGS = 60


def training_report(
    store: WindowStore,
    fitted: Fitted,
    prepared: Ingested,
    findings: list[Finding],
    scored: PartScores,
    evaluation: Evaluation,
    episodes: list[Episode],
    events: dict[str, Intervals],
) -> Report:
    """The report of a training run, but for its learning curve."""
    model, history = fitted.model, fitted.history
    return Report(
        title=f"Model {model.settings.name}",
        model=model.settings.name,
        evaluation=evaluation,
        fingerprint=prepared.fingerprint,
        settings=model.settings.to_dict(),
        contract=model.contract.to_dict(),
        notices=(*prepared.notices, *fitted.notices),
        split=[part_row(store, part) for part in PARTS],
        grades=[asdict(g) for g in prepared.grades],
        findings=_finding_rows(findings),
        audit={name: f"{audit.rows} rows of {len(audit.assets)} assets" for name, audit in model.audits.items()},
        facts={**model.encoder.facts(), **model.ensemble.facts()},
        choices=choices(store, fitted),
        history={
            "loss": history.loss,
            "val_loss": history.val_loss,
            "best_epoch": history.best_epoch + 1 if history.loss else None,
            "parts": history.parts,
        },
        threshold=model.threshold.to_dict(),
        threshold_rows=_ranked(fitted.validation, store.lead_us),
        test_rows=_ranked(scored, store.lead_us),
        calibration=calibration_rows(scored, model),
        what_if=what_if_rows(
            fitted.validation, {a: events_inside(store, a, "validation") for a in store.assets}, model, store.lead_us
        ),
        what_if_part="validation",
        series=_series(scored, events, episodes),
        top_alerts=_top(episodes),
    )


def log_report(
    model: AnomalyModel,
    name: str,
    log: PlantLog,
    scored: PartScores,
    evaluation: Evaluation,
    episodes: list[Episode],
    events: dict[str, Intervals],
) -> Report:
    """The report of a model judged on a log of its own."""
    lead_us = evaluation.lead_us
    return Report(
        title=f"Model {name} on {', '.join(f.path.name for f in log.files)}",
        model=name,
        evaluation=evaluation,
        fingerprint=log.fingerprint,
        settings=model.settings.to_dict(),
        contract=model.contract.to_dict(),
        notices=log.notices,
        threshold=model.threshold.to_dict(),
        test_rows=_ranked(scored, lead_us),
        calibration=calibration_rows(scored, model),
        what_if=what_if_rows(scored, events, model, lead_us),
        what_if_part=scored.part,
        series=_series(scored, events, episodes),
        top_alerts=_top(episodes),
    )


def calibration_rows(scored: PartScores, model: AnomalyModel) -> list[CalibrationRow]:
    """What normal rows of a part that calibration did not see make of the score; nothing where there are none."""
    use = (scored.kind == NORMAL) & np.isfinite(scored.score)
    if not use.any():
        return []
    score = scored.score[use].astype(np.float64)
    blocks = row_blocks(scored.asset[use], model.lookback)
    return check_calibration(score, blocks, calibrated_on=model.ensemble.calibrators[0].n_ or None)


def what_if_rows(
    scored: PartScores, events: dict[str, Intervals], model: AnomalyModel, lead_us: int
) -> list[WhatIfRow]:
    """What other thresholds would give on a part; nothing where it holds no scored normal row."""
    normal = scored.kind == NORMAL
    if not (normal & np.isfinite(scored.score)).any():
        return []
    return what_if(
        scored.score.astype(np.float64),
        time=scored.time,
        asset=scored.asset,
        events=events,
        chosen=float(np.float32(model.threshold.value)),
        period_us=model.contract.period_us,
        merge_gap_us=round(model.settings.episodes.merge_gap * model.contract.period_us),
        lead_us=lead_us,
        normal=normal,
    )


def part_row(store: WindowStore, part: str) -> PartRow:
    """Rows, events, first and last time of a part over all assets, and the rows purged before it."""
    rows = events = purged = 0
    times: list[int] = []
    for asset in store.assets:
        first, stop = store.part_rows(asset, part)
        before = [store.part_rows(asset, p)[1] for p in PARTS[: PARTS.index(part)]]
        if stop > first:
            rows += stop - first
            purged += first - max(before, default=0)
            events += len(events_inside(store, asset, part))
            times += [int(store.rows(asset, i, i + 1).time[0]) for i in (first, stop - 1)]
    return PartRow(part, rows, events, min(times, default=None), max(times, default=None), purged)


def events_inside(store: WindowStore, asset: str, part: str) -> Intervals:
    """The events of ``asset`` that begin in a part; a split never cuts one."""
    events, (first, stop) = store.events(asset), store.part_rows(asset, part)
    if stop <= first:
        return events[:0]
    low, high = (store.rows(asset, i, i + 1).time[0] for i in (first, stop - 1))
    return events[(events[:, 0] >= low) & (events[:, 0] <= high)]


def _ranked(scored: PartScores, lead_us: int) -> RankedRows:
    positive, judged = positive_rows(scored.kind, lead_us)
    return RankedRows(scored.part, scored.score[judged], positive[judged])


def _series(scored: PartScores, events: dict[str, Intervals], episodes: Sequence[Episode]) -> list[AssetSeries]:
    made = []
    for asset in dict.fromkeys(scored.asset):
        mine = scored.asset == asset
        alerts = as_intervals([(e.start_us, e.end_us + 1) for e in episodes if e.asset == asset])
        none = np.empty((0, 2), np.int64)
        made.append(AssetSeries(str(asset), scored.time[mine], scored.score[mine], events.get(asset, none), alerts))
    return made


def _top(episodes: Sequence[Episode]) -> list[tuple[str, tuple[tuple[str, float], ...]]]:
    """The highest episodes with their tags' shares, labelled by when they began."""
    highest = sorted(episodes, key=lambda e: -e.peak_score)[:_TOP_ALERTS]
    return [(when(e.start_us), e.top_tags) for e in sorted(highest, key=lambda e: e.start_us)]


def _finding_rows(findings: Sequence[Finding]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {
            "rule": f.kind,
            "asset": f.asset,
            "tag": f.tag,
            "from": when(f.start_us),
            "to": when(f.end_us),
            "detail": f.detail,
        }
        for f in findings[:_MOST_FINDINGS]
    ]
    if len(findings) > _MOST_FINDINGS:
        rows.append({"rule": f"… and {len(findings) - _MOST_FINDINGS} more"})
    return rows

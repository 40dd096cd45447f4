"""What a longer log would bring: the same fit on the newest eighth, quarter and half of the training rows (METHODS S35, S45).

Every fit has its own scales, encoder, calibration and threshold, and is judged on the same later rows.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from anomaly.config import Settings
from anomaly.data.store import WindowStore
from anomaly.errors import InputRefused
from anomaly.fitting import PartScores, Progress, fit_model, silent, stream_part
from anomaly.metrics import Figure, evaluate
from pipelines.evaluate import scored_part
from pipelines.report import LearningPoint
from pipelines.report_data import events_inside

#: Shares of the training rows that are learned from besides all of them.
SHARES = (0.125, 0.25, 0.5)


def learning_curve(
    store: WindowStore, settings: Settings, workdir: Path, whole: Figure, seconds: float, progress: Progress = silent
) -> list[LearningPoint]:
    """Average precision on the test part by how many rows were learned from; ``whole`` and ``seconds`` are those of
    the fit on all of them. A share too small for a fit is left out, with its reason in ``note``."""
    # A smaller fit is compared as it is: labels of events would come to it with fewer events as well.
    settings = replace(settings, fine_tuning=replace(settings.fine_tuning, enabled=False, verdicts=None))
    points = []
    for number, share in enumerate(SHARES):
        progress("learning curve", number, len(SHARES))
        points.append(_point(store.with_training_share(share), settings, workdir / f"share-{share}"))
    progress("learning curve", len(SHARES), len(SHARES))
    return [*points, LearningPoint(store.n_part_rows("train"), seconds, whole)]


def _point(store: WindowStore, settings: Settings, workdir: Path) -> LearningPoint:
    started = time.perf_counter()
    rows = store.n_part_rows("train")
    try:
        fitted = fit_model(store, settings, workdir)
    except InputRefused as error:
        return LearningPoint(
            rows, time.perf_counter() - started, None, f"not enough for a fit: {error.faults[0].line()}"
        )
    seconds = time.perf_counter() - started
    scored = PartScores.collect(
        "test", ((found, block.kind) for block, found in stream_part(store, fitted.model, "test"))
    )
    events = {asset: events_inside(store, asset, "test") for asset in store.assets}
    judged = evaluate(
        scored_part(scored, events, fitted.model), fitted.model.threshold.value, seed=settings.training.seed
    )
    return LearningPoint(rows, seconds, judged.figures["average_precision"])

"""From a log's few labels, and verdicts on its alerts, to a fine-tuned model, if it ranks validation better (METHODS S33)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.config import FineTuningSettings
from anomaly.data.contract import EVENT, LEAD, NORMAL
from anomaly.data.reading.verdicts import read_verdicts
from anomaly.data.reservoir import Reservoir
from anomaly.data.store import Preparation, WindowStore
from anomaly.detectors.supervised import HeadDetector
from anomaly.encoders.base import Encoder
from anomaly.errors import Fault, UsageError
from anomaly.metrics import average_precision
from anomaly.model import AnomalyModel
from anomaly.scores.past_events import PastWindows

if TYPE_CHECKING:
    from anomaly.encoders.fine_tuning import LabelledWindows

#: Labelled windows that are kept of a part, of either kind.
_MOST = 6000
_BATCH = 4096
#: What an alert is compared with: it travels with the model.
_PAST_EVENTS, _PAST_NORMAL = 200, 300


def fine_tune_model(
    model: AnomalyModel, store: WindowStore, prepare: Preparation, settings: FineTuningSettings, seed: int
) -> tuple[Encoder, HeadDetector | None, str]:
    """The encoder and head to use instead of the model's own, or its encoder and None; and why, in words.

    Raises UsageError E2002 for an encoder without weights, E2001 for verdicts that cannot be read.
    """
    from anomaly.encoders.fine_tuning import fine_tune
    from anomaly.encoders.neural import NeuralEncoder

    if not isinstance(model.encoder, NeuralEncoder):
        hint = "choose another encoder, or leave fine-tuning out"
        raise UsageError(Fault("E2002", "an encoder with weights to fine-tune", model.encoder.name, hint))
    verdicts = None if settings.verdicts is None else read_verdicts(Path(settings.verdicts))
    trail, names = model.ensemble.trail, ("train", "validation")
    parts = {part: labelled_windows(store, prepare, part, verdicts, seed, trail) for part in names}
    later = parts["validation"].windows
    parts = {part: replace(own, windows=own.windows[..., : model.channels]) for part, own in parts.items()}
    scores = [
        model.ensemble.fused(model.ensemble.alone(model.encode(later[i : i + _BATCH])))
        for i in range(0, len(later), _BATCH)
    ]
    baseline = np.concatenate(scores) if scores else np.empty(0)
    tuned = fine_tune(
        model.encoder, parts["train"], parts["validation"], baseline, settings, average_precision, seed=seed
    )
    head = HeadDetector(tuned.head.weight, tuned.head.bias, seed) if tuned.used and tuned.head else None
    return (tuned.encoder if head else model.encoder), head, f"fine-tuning: {tuned.reason}"


def past_windows(store: WindowStore, model: AnomalyModel, prepare: Preparation, seed: int) -> PastWindows:
    """A few windows of each event, and a uniform sample of normal ones, of the train and validation parts, embedded: what
    an alert is compared with. At most 200 events, the first complete window that ends in each."""
    normal = Reservoir(_PAST_NORMAL, seed)
    found: list[tuple[NDArray[np.float32], int, str]] = []
    for part in ("train", "validation"):
        before: tuple[str, int] = ("", -1)  # asset and number of the event that was met last
        for block in store.window_blocks(part, prepare=prepare):
            ends = block.starts + store.lookback - 1
            rows = store.rows(block.asset, int(ends[0]), int(ends[-1]) + 1)
            kind, time = rows.kind[ends - ends[0]], rows.time[ends - ends[0]]
            asset = np.full(len(time), block.asset, dtype=object)
            quiet = block.kind == NORMAL
            normal.add(block.values[quiet], time[quiet], asset[quiet])
            starts = store.events(block.asset)[:, 0]
            number = np.searchsorted(starts, time, side="right") - 1
            for i in np.flatnonzero(kind == EVENT):
                if (block.asset, int(number[i])) != before and len(found) < _PAST_EVENTS:
                    before = (block.asset, int(number[i]))
                    found.append((block.values[i], int(time[i]), block.asset))
    kept = list(normal.columns) if normal.columns else []
    if found:
        own = (np.stack([w for w, _, _ in found]), np.array([t for _, t, _ in found]))
        events = [*own, np.array([a for _, _, a in found], dtype=object)]
        kept = [np.concatenate(pair) for pair in zip(kept, events, strict=True)] if kept else events
    if not kept:
        return PastWindows.none()
    windows, time, asset = kept
    embedded = np.concatenate([model.encoder.embed(windows[i : i + _BATCH]) for i in range(0, len(windows), _BATCH)])
    event = np.arange(len(windows)) >= len(windows) - len(found)
    return PastWindows(embedded, time.astype(np.int64), asset, event)


def labelled_windows(
    store: WindowStore, prepare: Preparation, part: str, verdicts: pd.DataFrame | None, seed: int, trail: int = 0
) -> LabelledWindows:
    """Windows of a part whose last row is labelled: at most so many of either kind, in time order.

    A window is positive where its last row is (METHODS S58). A block is an event of an asset with what follows it.
    """
    from anomaly.encoders.fine_tuning import LabelledWindows, verdict_labels

    kept = {kind: Reservoir(_MOST, seed) for kind in (False, True)}
    blocks = 0
    before: tuple[str, bool] = ("", False)
    for block in store.window_blocks(part, prepare=prepare, trail=trail):
        ends = block.starts + store.lookback - 1
        rows = store.rows(block.asset, int(ends[0]), int(ends[-1]) + 1)
        kind, time = rows.kind[ends - ends[0]], rows.time[ends - ends[0]]
        positive = kind == (LEAD if store.lead_us else EVENT)
        judged = positive | (kind == NORMAL)
        if verdicts is not None:
            said = verdict_labels(time, np.full(len(time), block.asset, dtype=object), verdicts)
            positive = np.where(said == EVENT, True, np.where(said == NORMAL, False, positive))
            judged |= (said == EVENT) | (said == NORMAL)
        earlier = np.concatenate(([before[1] if before[0] == block.asset else False], positive[:-1]))
        number = blocks + np.cumsum(positive & ~earlier)
        if before[0] != block.asset:
            number += 1
        blocks, before = int(number[-1]), (block.asset, bool(positive[-1]))
        for flag, sample in kept.items():
            own = judged & (positive == flag)
            sample.add(block.values[own], time[own], number[own])
    found = [(sample.columns, flag) for flag, sample in kept.items() if sample.columns]
    if not found:
        none = np.empty((0, store.lookback, 1), np.float32)
        return LabelledWindows(none, np.empty(0, bool), np.empty(0, np.int64))
    windows, time, number = (np.concatenate([columns[i] for columns, _ in found]) for i in range(3))
    positive = np.concatenate([np.full(len(columns[0]), flag) for columns, flag in found])
    order = np.argsort(time, kind="stable")
    return LabelledWindows(windows[order], positive[order], _in_time_order(number[order]))


def _in_time_order(number: NDArray[np.int64]) -> NDArray[np.int64]:
    """Block numbers renamed by when each block is first met.

    >>> _in_time_order(np.array([7, 7, 3, 7, 9])).tolist()
    [0, 0, 1, 0, 2]
    """
    names, first, own = np.unique(number, return_index=True, return_inverse=True)
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(first)] = np.arange(len(names))
    return rank[own]

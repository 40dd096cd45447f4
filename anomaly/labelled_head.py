"""Whether the log's own events rank later ones better: a labelled head beside the other detectors, if they say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anomaly.data.store import Preparation, WindowStore
from anomaly.detectors.labelled import LabelledDetector
from anomaly.ensemble import Ensemble
from anomaly.few_labels import labelled_windows
from anomaly.metrics import average_precision
from anomaly.model import AnomalyModel
from anomaly.scores.fusion import RAISED

if TYPE_CHECKING:
    from anomaly.encoders.fine_tuning import LabelledWindows

#: Weights learned from fewer events were worse than none; from so many on, the head has as much say as it ever gets.
LEAST_EVENTS, SURE_EVENTS = 8, 20
_MOST_SAY = 0.5
_BATCH = 4096


def head_weight(events: int, detectors: int) -> float:
    """The head's share of a score that it raises beside ``detectors`` others: one voice among equals at 8 events, half at 20.

    It counts only where it raises the score of the others: a head cannot see a new kind of failure (DETECTION §2.6).

    >>> [round(head_weight(events, 4), 2) for events in (8, 14, 20, 99)]
    [0.2, 0.35, 0.5, 0.5]
    """
    equal = 1 / (detectors + 1)
    trust = min(max((events - LEAST_EVENTS) / (SURE_EVENTS - LEAST_EVENTS), 0.0), 1.0)
    return equal + trust * (_MOST_SAY - equal)


def with_head(model: AnomalyModel, store: WindowStore, prepare: Preparation, seed: int) -> tuple[Ensemble | None, str]:
    """The model's detectors with a head beside them that learned from the events of the train part, not yet calibrated;
    None where there are too few, or none later to judge it by. And why not, in words: "" where the log has no events.

    The fused score must be a plain mean: whoever stated weights, or another rule, meant them.
    """
    train = labelled_windows(store, prepare, "train", None, seed)
    events, judged = train.n_events, labelled_windows(store, prepare, "validation", None, seed).n_events
    if not events or model.ensemble.rule != "mean":
        return None, ""
    if events < LEAST_EVENTS or not judged or train.positive.all():
        return None, (
            f"labelled head: not tried, {events} events to learn from and {judged} later ones to be judged by; "
            f"{LEAST_EVENTS} and 1 are needed"
        )
    tags = len(model.contract.tags)  # categories stand behind them
    head = LabelledDetector.learned(train.windows[..., :tags], train.positive)
    own = head_weight(events, len(model.ensemble.detectors))
    rest = (1 - own) / len(model.ensemble.detectors)
    weights = (*[rest] * len(model.ensemble.detectors), own)
    return Ensemble((*model.ensemble.detectors, head), RAISED, weights, model.ensemble.space), ""


def judged_head(
    model: AnomalyModel, before: Ensemble, store: WindowStore, prepare: Preparation, seed: int
) -> tuple[bool, str]:
    """Whether ``model``, whose calibrated ensemble holds the head, ranks the events of validation better than ``before``;
    and by how much, in words."""
    from anomaly.encoders.fine_tuning import paired_gain

    later = labelled_windows(store, prepare, "validation", None, seed, before.trail)
    found, baseline = _fused(model, model.ensemble, later), _fused(model, before, later)
    gain, low, high = paired_gain(found, baseline, later, average_precision, seed)
    kept = bool(gain > 0)
    own = model.ensemble.weights[-1]
    said = f"{later.n_events} later events ranked better by {gain:.3f} ({low:.3f} to {high:.3f}) in average precision"
    return kept, f"labelled head with {own:.0%} of the say: {said}: " + ("used" if kept else "not used, no gain")


def _fused(model: AnomalyModel, ensemble: Ensemble, labelled: LabelledWindows) -> NDArray[np.float64]:
    """The fused scores of ``ensemble``, ``(n,)``."""
    windows = labelled.windows
    blocks = (model.encode(windows[i : i + _BATCH]) for i in range(0, len(windows), _BATCH))
    return np.concatenate([ensemble.fused(ensemble.alone(block)) for block in blocks])

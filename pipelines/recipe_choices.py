"""What the default recipe settled for one log: each choice with its reason and the setting that overrides it.

Everything is read off the fitted model and its window store: normal training rows, never a test row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from anomaly.config import Settings
from anomaly.data.store import WindowStore
from anomaly.detectors.labelled import LabelledDetector
from anomaly.fitting import Fitted
from anomaly.model import AnomalyModel
from pipelines.terminal import span

#: How the notice of a labelled head begins.
_HEAD = "labelled head"
_NAMED = 4
_SET = "as it was set"


@dataclass(frozen=True)
class Choice:
    """``what`` was settled, what was ``chosen``, the ``reason``, and the ``setting`` that overrides it."""

    what: str
    chosen: str
    reason: str
    setting: str


def choices(store: WindowStore, fitted: Fitted) -> list[Choice]:
    """The choices in the order in which a row meets them."""
    model = fitted.model
    return [
        *_time(store, model.settings),
        *_tags(model),
        _window(store, model.settings),
        *_detectors(store, fitted),
    ]


def _time(store: WindowStore, settings: Settings) -> Iterator[Choice]:
    stated = settings.log.period is not None
    step = store.period_us
    yield Choice("time step", span(step), _SET if stated else "the usual step of the log", "log.period")
    reason = f"windows and the recent past never cross a gap of more than {settings.window.max_gap:g} steps"
    yield Choice("segments", f"a new one after {span(store.max_gap_us)}", reason, "window.max_gap")


def _tags(model: AnomalyModel) -> Iterator[Choice]:
    """Scale, far values, standstill and silences of the tags, from the kept sample of normal training rows ``(n, C)``."""
    tags, rows, settings = model.contract.tags, model.reference, model.settings.encoder
    if settings.scaling == "robust":
        chosen = "median; the larger of the quartiles' distance and half the deviation"
        reason = "standstill or a few rough hours among the normal rows widen a deviation, not the quartiles"
    else:
        chosen, reason = "mean and deviation", _SET
    yield Choice("scale of a tag", chosen, reason, "encoder.scaling")
    if settings.far == "log":
        far = float((np.abs(rows) > 4).mean()) if rows.size else 0.0
        reason = f"a broken sensor is seen and does not drown the rest; {far:.2%} of normal values lie beyond"
        yield Choice("far values", "as they are to 4 deviations, logarithmic beyond", reason, "encoder.far")
    else:
        yield Choice("far values", "as they are", _SET, "encoder.far")
    still = [tag for tag, moved in zip(tags, np.ptp(rows, axis=0) > 0, strict=True) if not moved] if len(rows) else []
    if still:
        chosen = f"{_names(still)} kept in their own unit" if len(still) > 1 else f"{still[0]} kept in its own unit"
        reason = f"stood still in {len(rows)} normal training rows; any movement is news"
        yield Choice("tags that stand still", chosen, reason, "log.drop")
    hold = model.preparer.hold_
    if hold.any():
        chosen = f"last value held for at most {hold.max()} rows ({tags[int(hold.argmax())]})"
        reason = (
            "19 of 20 silences in the training rows are no longer, each tag by itself; longer ones count as missing"
        )
        yield Choice("missing values", chosen, reason, "log.drop")


def _window(store: WindowStore, settings: Settings) -> Choice:
    rows = settings.window.lookback
    usual = rows == type(settings.window)().lookback
    reason = (
        "fixed: the autocorrelation of the tags did not tell a better length (docs/experiments.md)" if usual else _SET
    )
    return Choice("window", f"{rows} rows ({span((rows - 1) * store.period_us)})", reason, "window.lookback")


def _detectors(store: WindowStore, fitted: Fitted) -> Iterator[Choice]:
    model = fitted.model
    settings, ensemble = model.settings.detection, model.ensemble
    chosen = ", ".join(ensemble.names)
    reason = f"those that fit the encoder {model.settings.encoder.name}" if "auto" in settings.detectors else _SET
    yield Choice("detectors", chosen, reason, "detection.detectors")
    if len(ensemble.names) > 1:
        weights = ensemble.weights or [1 / len(ensemble.names)] * len(ensemble.names)
        shares = ", ".join(
            f"{name} {weight / sum(weights):.2f}" for name, weight in zip(ensemble.names, weights, strict=True)
        )
        yield Choice("weights", shares, _why_weights(model), "detection.weights")
    if ensemble.trail:
        chosen = f"{ensemble.trail} rows before ({span(ensemble.trail * store.period_us)})"
        reason = "levels drift; departures from the recent past stay comparable, and one detector sees them beside the levels"
        yield Choice("recent past", chosen, reason, "detection.options")
    for said in fitted.notices:
        if said.startswith(_HEAD):
            chosen = "joined the detectors" if LabelledDetector.name in ensemble.names else "left out"
            yield Choice(_HEAD, chosen, said.removeprefix(_HEAD).lstrip(": "), "detection.labelled")


def _why_weights(model: AnomalyModel) -> str:
    settings = model.settings.detection
    if settings.fusion != "mean":
        return f"{_SET} (fusion {settings.fusion})"
    if LabelledDetector.name in model.ensemble.names:
        return (
            "equal but the labelled head's, which grows with the events it learned from, and it may only raise a score"
        )
    return "equal: of three rules that choose them from normal rows none gained (docs/experiments.md)"


def _names(names: Sequence[str]) -> str:
    """
    >>> _names(["a", "b"]), _names(list("abcdef"))
    ('a, b', 'a, b, c, d and 2 more')
    """
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")

"""Cases damaged on purpose: how far does each method fall? (benchmarks/detection.py --robustness)

Each damage takes a trial and gives one of the same rows and labels. What is drawn by lot is drawn from the case's name, so
every method meets the same damage.
"""

from __future__ import annotations

import hashlib
import inspect
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.data.contract import EVENT, NORMAL
from benchmarks.detection_cases import PLAIN, Trial

_BLOCK = 32
_UNIT, _DRIFT, _DRIFTING, _STUCK_FROM = 1000.0, 2.0, 3, 0.25


def contaminated(trial: Trial, share: float) -> Trial:
    """``share`` of the normal training rows now hold event rows of the test log, labelled normal.

    Stretches of up to 32 rows, at places drawn by lot, hold consecutive event rows: the kind of event that is to be found
    later was there all along and nobody wrote it down.
    """
    rng, train = _rng(trial), trial.train.copy()
    events = trial.test.loc[(trial.test["label"] == EVENT).to_numpy(), trial.tags].to_numpy()
    normal = np.flatnonzero(train["label"].to_numpy() == NORMAL)
    wanted = min(round(share * len(normal)), len(normal))
    if not wanted or not len(events):
        return trial
    size = min(_BLOCK, wanted)
    places = rng.permutation(len(normal) // size)[: -(-wanted // size)]
    chosen = np.concatenate([np.arange(place * size, (place + 1) * size) for place in np.sort(places)])[:wanted]
    first = int(rng.integers(len(events)))
    values = train[trial.tags].to_numpy(copy=True)
    values[normal[chosen]] = events[(first + np.arange(len(chosen))) % len(events)]
    return replace(trial, train=_with(train, trial.tags, values))


def missing(trial: Trial, share: float) -> Trial:
    """``share`` of all values of both logs are missing, at places drawn by lot."""
    rng = _rng(trial)

    def less(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[trial.tags].to_numpy(np.float32, copy=True)
        values[rng.random(values.shape) < share] = np.nan
        return _with(frame, trial.tags, values)

    return replace(trial, train=less(trial.train), test=less(trial.test))


def stuck(trial: Trial) -> Trial:
    """One moving sensor keeps its value from the first quarter of the test log on."""
    values, tag = trial.test[trial.tags].to_numpy(copy=True), _moving(trial, 1)[0]
    at = int(len(values) * _STUCK_FROM)
    values[at:, tag] = values[at, tag]
    return replace(trial, test=_with(trial.test, trial.tags, values))


def unit_change(trial: Trial) -> Trial:
    """One moving sensor reads a thousand times as much in the whole test log."""
    values, tag = trial.test[trial.tags].to_numpy(np.float64, copy=True), _moving(trial, 1)[0]
    values[:, tag] *= _UNIT
    return replace(trial, test=_with(trial.test, trial.tags, values))


def drift(trial: Trial) -> Trial:
    """A third of the moving sensors, at least one, climb by two training standard deviations over the test log."""
    values = trial.test[trial.tags].to_numpy(np.float64, copy=True)
    moving = _moving(trial, None)
    own = moving[: max(len(moving) // _DRIFTING, 1)]
    spread = np.nanstd(trial.train[trial.tags].to_numpy(np.float64)[:, own], axis=0)
    values[:, own] += _DRIFT * spread * np.linspace(0, 1, len(values))[:, None]
    return replace(trial, test=_with(trial.test, trial.tags, values))


DAMAGES: dict[str, Callable[[Trial], Trial]] = {
    "1 % contamination": partial(contaminated, share=0.01),
    "3 % contamination": partial(contaminated, share=0.03),
    "5 % contamination": partial(contaminated, share=0.05),
    "10 % missing": partial(missing, share=0.10),
    "stuck sensor": stuck,
    "unit change": unit_change,
    "slow drift": drift,
}


def damaged(trial: Trial, variant: str) -> Trial:
    """``trial`` under the damage named ``variant``, or as it is."""
    return trial if variant == PLAIN else replace(DAMAGES[variant](trial), variant=variant)


def damage_version(variant: str) -> str:
    """A digest that changes where the damage would: of this file, and nothing for a case as it is."""
    if variant == PLAIN:
        return ""
    return hashlib.sha256(inspect.getsource(inspect.getmodule(_rng)).encode()).hexdigest()[:12]  # type: ignore[arg-type]


def _rng(trial: Trial) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(trial.case.name.encode()))


def _moving(trial: Trial, most: int | None) -> NDArray[np.int64]:
    """Columns of sensors that moved in the training log, drawn by lot; column 0 where none did."""
    spread = np.nanstd(trial.train[trial.tags].to_numpy(np.float64), axis=0)
    moving = np.flatnonzero(spread > 0)
    return _rng(trial).permutation(moving if len(moving) else np.zeros(1, np.int64))[:most]


def _with(frame: pd.DataFrame, tags: list[str], values: NDArray[np.floating]) -> pd.DataFrame:
    """The log with other sensor values, 32 bits wide as those of the panel."""
    changed = pd.DataFrame(values.astype(np.float32), columns=tags, index=frame.index)
    return pd.concat([frame[["time"]], changed, frame[["label"]]], axis=1)

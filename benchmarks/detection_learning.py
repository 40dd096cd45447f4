"""Shorter training logs: what would each method have known earlier? (benchmarks/detection.py --learning-curve)

Each variant keeps the newest part of the training log, from where the wanted share of its normal rows begins. The test log
and the way to set the threshold stay as they are.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from anomaly.data.contract import NORMAL
from benchmarks.detection_cases import PLAIN, Trial
from benchmarks.detection_robustness import DAMAGES, damage_version, damaged


def newest(trial: Trial, share: float) -> Trial:
    """The training log from where the newest ``share`` of its normal rows begins; at least one normal row stays."""
    normal = np.flatnonzero(trial.train["label"].to_numpy() == NORMAL)
    first = int(normal[len(normal) - max(round(len(normal) * share), 1)])
    return replace(trial, train=trial.train.iloc[first:].reset_index(drop=True))


SHORTER: dict[str, Callable[[Trial], Trial]] = {
    "newest half": partial(newest, share=0.5),
    "newest quarter": partial(newest, share=0.25),
    "newest eighth": partial(newest, share=0.125),
}


def changed(trial: Trial, variant: str) -> Trial:
    """``trial`` as ``variant`` has it: as it is, damaged, or with a shorter training log. Raises KeyError for another."""
    if variant == PLAIN or variant in DAMAGES:
        return damaged(trial, variant)
    return replace(SHORTER[variant](trial), variant=variant)


def variant_version(variant: str) -> str:
    """A digest that changes where ``changed`` would give another trial."""
    if variant in SHORTER:
        return hashlib.sha256(inspect.getsource(newest).encode()).hexdigest()[:12]
    return damage_version(variant)

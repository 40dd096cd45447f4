"""The published catch22 set through the package pycatch22, where it is installed (Lubba et al. 2019)."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache

import numpy as np
from numpy.typing import NDArray

_PACKAGE = "pycatch22"


def installed() -> bool:
    """Whether the optional package is there."""
    return importlib.util.find_spec(_PACKAGE) is not None


@cache
def names() -> tuple[str, ...]:
    """The features' names, in the order of the package."""
    found = importlib.import_module(_PACKAGE).catch22_all([0.0, 1.0, 0.0, 2.0, 0.0, 1.0])
    return tuple(found["names"])


def catch22_features(windows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Windows ``(B, T, C)`` → ``(B, C, 22)`` in the order of ``names()``; what cannot be told of a series is 0.

    The package takes one series at a time, so this is a Python loop over windows and tags: some twenty-five times slower
    per window than all other groups together.
    """
    series = windows.transpose(0, 2, 1).reshape(-1, windows.shape[1]).astype(np.float64)
    compute = importlib.import_module(_PACKAGE).catch22_all
    values = np.array([compute(one)["values"] for one in series.tolist()], dtype=np.float64)
    limit = float(np.finfo(np.float32).max)
    finite = np.clip(np.nan_to_num(values, nan=0.0, posinf=limit, neginf=-limit), -limit, limit)
    return finite.reshape(windows.shape[0], windows.shape[2], len(names())).astype(np.float32)

"""A look-alike of the public sheet-break log of a paper mill, for tests of ``benchmarks/papermill.py``.

Same columns (``time, y, x1…x61``) and traits: 2-minute rows over a month, a break on one row in about 145, rows missing
after each break, ``x28`` a grade in numeric codes, ``x61`` a flag, levels that move from day to day, and a weak
precursor. Because neighbouring rows are alike and days are not, a random split of rows flatters a detector here.

Run as a program to write one: ``python -m benchmarks.papermill_lookalike lookalike.csv``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.data.synthetic import autoregressive, spaced
from anomaly.files import atomic_path

PERIOD_MINUTES = 2
SENSORS = 61
GRADE, FLAG = 28, 61  # the numbers of the two columns that are no measurements

_BREAK_SHARE = 124 / 18_000
_GRADE_CODES = np.array([82, 96, 118, 139])
_APART = 30  # rows between breaks, at least
_MODES = 4  # kinds of break, each with its own sensors
_JOINING = 8  # sensors that a kind of break moves
_PRECURSOR_ROWS = 4


def lookalike(rows: int = 18_000, seed: int = 123) -> pd.DataFrame:
    """The log: ``time`` (as the plant's clock shows it, without a zone), ``y`` (1 on a break's row), ``x1…x61``.

    >>> frame = lookalike(2000)
    >>> frame.shape, int(frame["y"].sum())
    ((2000, 63), 14)
    """
    rng = np.random.default_rng(seed)
    breaks = spaced(rng, round(rows * _BREAK_SHARE), 2 * _APART, rows - 1, _APART)
    at = _places(rows, breaks, rng)
    grade = _campaigns(rows, len(_GRADE_CODES), rng)
    x = _operation(at, grade, rng)
    _add_breaks(x, breaks, rng)
    frame = pd.DataFrame(np.round(x, 6), columns=[f"x{i}" for i in range(1, SENSORS + 1)])
    frame[f"x{GRADE}"] = _GRADE_CODES[grade]
    frame[f"x{FLAG}"] = (_campaigns(rows, 8, rng) == 0).astype(int)
    frame.insert(0, "time", pd.Timestamp("1999-05-01") + pd.to_timedelta(at * PERIOD_MINUTES, unit="min"))
    frame.insert(1, "y", np.isin(np.arange(rows), breaks).astype(int))
    return frame


def write_lookalike(path: Path, rows: int = 18_000, seed: int = 123, *, us_time: bool = False) -> pd.DataFrame:
    """Write ``lookalike(rows, seed)`` as CSV, whole or not at all; returns it.

    Times are ISO 8601; with ``us_time`` as the public file prints them: month/day/year hour:minute, ``5/1/99 0:00``
    (readable with ``%m/%d/%y %H:%M``).
    """
    frame = lookalike(rows, seed)
    shown = us_times(frame["time"]) if us_time else frame["time"].dt.strftime("%Y-%m-%d %H:%M:%S")
    with atomic_path(path) as temporary:
        frame.assign(time=shown).to_csv(temporary, index=False, lineterminator="\n")
    return frame


def us_times(time: pd.Series) -> pd.Series:
    """Times as month/day/year hour:minute without leading zeros, years by two digits.

    >>> us_times(pd.Series(pd.to_datetime(["1999-05-01 00:04"])))[0]
    '5/1/99 0:04'
    """
    part = time.dt
    date = part.month.astype(str) + "/" + part.day.astype(str) + "/" + part.strftime("%y")
    return date + " " + part.hour.astype(str) + part.strftime(":%M")


def _places(rows: int, breaks: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Each logged row's place in time, in periods ``(rows,)``: 15 to 45 rows are missing after a break."""
    step = np.ones(rows, dtype=np.int64)
    step[0] = 0
    step[breaks + 1] += rng.integers(15, 46, len(breaks))
    return np.cumsum(step)


def _campaigns(rows: int, kinds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A kind (0 to kinds - 1) of each row ``(rows,)``, in campaigns of 100 to 400 rows, never the same twice running."""
    count = rows // 100 + 1
    kind = np.cumsum(rng.integers(1, kinds, count)) % kinds
    return np.repeat(kind, rng.integers(100, 400, count))[:rows]


def _operation(at: NDArray[np.int64], grade: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Normal operation ``(rows, 61)``: factors, noise, grades, and levels that wander from day to day."""
    full = int(at[-1]) + 1
    loadings = rng.normal(0, 0.35, (6, SENSORS))
    factors = autoregressive(rng.standard_normal((full, 6)), 0.98)
    noise = autoregressive(rng.standard_normal((full, SENSORS)), 0.3)
    day = np.arange(full) * PERIOD_MINUTES // (24 * 60)
    levels = 0.5 * autoregressive(rng.standard_normal((int(day[-1]) + 1, SENSORS)), 0.7)
    shift = rng.normal(0, 0.4, (len(_GRADE_CODES), SENSORS))
    return np.asarray((factors @ loadings + 0.5 * noise + levels[day])[at] + shift[grade])


def _add_breaks(x: NDArray[np.float64], breaks: NDArray[np.int64], rng: np.random.Generator) -> None:
    """A weak ramp over the rows before each break and a jump on its row, in the sensors of its kind; in place."""
    moved = np.stack([rng.permutation(SENSORS)[:_JOINING] for _ in range(_MODES)])
    direction = rng.choice([-1.0, 1.0], moved.shape)
    ramp = np.linspace(0.4, 1.0, _PRECURSOR_ROWS)[:, None]
    for row, kind in zip(breaks, rng.integers(0, _MODES, len(breaks)), strict=True):
        size = rng.uniform(0.2, 1.6) * direction[kind]
        x[row - _PRECURSOR_ROWS : row, moved[kind]] += ramp * size
        x[row, moved[kind]] += 2.5 * direction[kind]


if __name__ == "__main__":
    write_lookalike(Path(sys.argv[1]))

"""A seeded plant: a log with the troubles of real ones, and the truth about them. For the demo, the tests and the docs.

What is in it: correlated tags (area and site factors, autoregressive noise), two grades that move the set points, a
daily cycle, slow drift, one-row events after a precursor of a few rows in 3 to 5 tags (a share of the events comes
without one), precursor-like disturbances that lead to nothing, missing rows after each event, frozen sensors, and
missing values. Everything before an event's precursor is as it would have been without the event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.signal import lfilter

from anomaly.errors import Fault, UsageError
from anomaly.files import atomic_path


class _Sensor(NamedTuple):
    name: str
    area: int
    level: float
    spread: float


# The last four take part in no failure mode, so that a plant of 20 tags has every mode.
_SENSORS = (
    _Sensor("feed_flow", 0, 120.0, 4.0),  # m3/h
    _Sensor("feed_pressure", 0, 6.2, 0.15),  # bar
    _Sensor("feed_temperature", 0, 42.0, 0.8),  # °C
    _Sensor("feed_tank_level", 0, 61.0, 3.0),  # %
    _Sensor("feed_pump_speed", 0, 1480.0, 12.0),  # 1/min
    _Sensor("feed_pump_current", 0, 38.0, 1.1),  # A
    _Sensor("drive_speed", 1, 940.0, 6.0),  # m/min
    _Sensor("drive_current", 1, 210.0, 5.0),
    _Sensor("drive_torque", 1, 64.0, 1.8),  # %
    _Sensor("drive_vibration", 1, 2.4, 0.18),  # mm/s
    _Sensor("bearing_temperature", 1, 58.0, 1.2),
    _Sensor("oil_pressure", 1, 3.1, 0.06),
    _Sensor("steam_flow", 2, 14.5, 0.5),  # t/h
    _Sensor("steam_pressure", 2, 8.9, 0.12),
    _Sensor("steam_temperature", 2, 181.0, 1.5),
    _Sensor("dryer_temperature", 2, 112.0, 1.6),
    _Sensor("cooling_flow", 3, 85.0, 2.5),
    _Sensor("cooling_temperature_out", 3, 27.0, 0.7),
    _Sensor("vacuum_pressure", 3, -42.0, 1.1),  # kPa
    _Sensor("fan_vibration", 3, 1.7, 0.12),
    _Sensor("cooling_temperature_in", 3, 18.5, 0.6),
    _Sensor("vacuum_pump_current", 3, 55.0, 1.3),
    _Sensor("condensate_flow", 2, 12.8, 0.5),
    _Sensor("condensate_level", 2, 47.0, 2.2),
)

#: Failure modes: which tags move, and which way.
MODES: dict[str, dict[str, int]] = {
    "feed_starved": {"feed_flow": -1, "feed_pressure": -1, "feed_pump_current": -1, "feed_tank_level": -1},
    "bearing_wear": {"drive_vibration": 1, "bearing_temperature": 1, "drive_current": 1, "drive_torque": 1,
                     "oil_pressure": -1},
    "steam_upset": {"steam_pressure": -1, "steam_flow": 1, "dryer_temperature": -1},
    "cooling_loss": {"cooling_flow": -1, "cooling_temperature_out": 1, "vacuum_pressure": 1, "fan_vibration": 1},
    "drive_slip": {"drive_speed": -1, "drive_torque": 1, "drive_vibration": 1},
}  # fmt: skip

#: OPC classic qualities of good, uncertain and bad.
OPC_CLASSIC = (192, 64, 0)

_QUIET = 20  # rows at each end of the log and beside each event without another happening


@dataclass(frozen=True)
class SyntheticPlant:
    """Settings of the plant; equal settings give an equal log.

    ``rows`` counts logged rows, ``period_s`` is in seconds, shares are shares of rows (``event_share``), of events
    (``silent_share``: no precursor; ``disturbance_share``: harmless disturbances per event) or of cells
    (``missing_share``). ``strength`` scales what events and disturbances do to the values, ``drift`` how far the
    drifting tags wander over the log, in spreads.
    """

    seed: int = 7
    rows: int = 25_000
    period_s: int = 120
    start: str = "2026-01-05T00:00:00Z"
    tags: int = 24
    event_share: float = 0.005
    silent_share: float = 0.25
    disturbance_share: float = 0.2
    missing_share: float = 0.003
    frozen: int = 6
    strength: float = 1.0
    drift: float = 1.0

    def __post_init__(self) -> None:
        if self.tags < 20:
            raise ValueError(f"tags: expected at least 20, got {self.tags}")
        if not 0 <= self.event_share <= 0.01:
            raise ValueError(f"event_share: expected 0 to 0.01 (events are rare), got {self.event_share}")
        if self.rows < 1000:
            raise ValueError(f"rows: expected at least 1000, got {self.rows}")


@dataclass(frozen=True)
class SyntheticLog:
    """A generated log and the truth about it. Row numbers are positions in ``frame``.

    ``frame``: time (UTC), grade, the tags, label (1 on the one row of an event). ``events``: row, time, mode, tags,
    has_precursor, precursor_rows, downtime_rows (missing after it). ``disturbances``: row (first), rows, tags.
    ``frozen``: tag, row (first), rows. ``missing``: missing values of each tag. ``drifting``: the drifting tags.
    """

    frame: pd.DataFrame
    events: pd.DataFrame
    disturbances: pd.DataFrame
    frozen: pd.DataFrame
    missing: dict[str, int]
    drifting: tuple[str, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        """The sensor columns."""
        return tuple(c for c in self.frame.columns if c not in ("time", "grade", "label"))


def generate(plant: SyntheticPlant = SyntheticPlant()) -> SyntheticLog:
    """The log of ``plant``.

    >>> log = generate(SyntheticPlant(rows=2000))
    >>> len(log.frame), int(log.frame["label"].sum()), log.frame["grade"].unique().tolist()
    (2000, 10, ['A', 'B'])
    """
    # One stream of random numbers a part: changing one setting leaves the other parts as they were.
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(plant.seed).spawn(6)]
    sensors = _sensors(plant.tags)
    tags = [s.name for s in sensors]
    events, at = _events(plant, streams[0])
    time = pd.to_datetime(plant.start, utc=True).as_unit("us") + pd.to_timedelta(at * plant.period_s, unit="s")
    events.insert(1, "time", time[events["row"].to_numpy()])
    grade = _grades(plant, streams[1])
    scaled, drifts = _normal(plant, sensors, at, grade, streams[2])
    disturbances = _disturbances(plant, tags, events, streams[3])
    _add_precursors(scaled, tags, events, plant.strength, streams[4])
    _add_disturbances(scaled, tags, disturbances, plant.strength)
    values = _in_units(scaled, sensors)
    frozen = _freeze(values, tags, plant, streams[5])
    _drop_values(values, plant, streams[5])
    frame = pd.DataFrame(values, columns=tags)
    frame.insert(0, "time", time)
    frame.insert(1, "grade", np.array(["A", "B"], dtype=object)[grade])
    frame["label"] = np.isin(np.arange(plant.rows), events["row"]).astype(np.int8)
    missing = {t: int(n) for t, n in zip(tags, np.isnan(values).sum(axis=0), strict=True)}
    return SyntheticLog(frame, events, disturbances, frozen, missing, tuple(np.array(tags)[drifts].tolist()))


def write_synthetic(plant: SyntheticPlant, path: Path) -> SyntheticLog:
    """Generate the log and write it to ``path``, whole or not at all: ``.csv`` or ``.parquet``.

    Raises UsageError (E2001) on another suffix, Unavailable (E5002) where the disk is full or read-only.
    """
    _check_suffix(path)
    log = generate(plant)
    _write(log.frame, path)
    return log


def write_long_form(
    frame: pd.DataFrame,
    path: Path,
    *,
    asset: str = "plant",
    qualities: Sequence[object] = OPC_CLASSIC,
    poor_share: float = 0.002,
    seed: int = 7,
) -> pd.DataFrame:
    """Write ``frame`` (a ``time`` column and numbers) as one line a value: asset, tag, time, value, quality.

    ``qualities`` are the codes of good, uncertain and bad; half of ``poor_share`` of the values is uncertain, half bad.
    A missing value has no line, text columns are left out, a label becomes a tag of that name with good quality.
    Returns what was written, in time order. Suffix and errors as in ``write_synthetic``.
    """
    _check_suffix(path)
    numeric = frame.drop(columns="time").select_dtypes("number")
    long = numeric.assign(time=frame["time"]).melt("time", var_name="tag").dropna(subset="value")
    long = long.sort_values(["time", "tag"], kind="stable", ignore_index=True)
    kinds = np.zeros(len(long), dtype=np.int64)
    sensor = np.flatnonzero(long["tag"] != "label")
    poor = np.random.default_rng(seed).choice(sensor, 2 * round(poor_share * len(sensor) / 2), replace=False)
    kinds[poor[0::2]], kinds[poor[1::2]] = 1, 2
    written = pd.DataFrame({"asset": asset, "tag": long["tag"], "time": long["time"], "value": long["value"]})
    written["quality"] = pd.Series(list(qualities)).to_numpy()[kinds]
    _write(written, path)
    return written


def autoregressive(shocks: NDArray[np.float64], memory: float) -> NDArray[np.float64]:
    """AR(1) series along axis 0 with unit variance, from unit-variance ``shocks`` and ``memory`` in [0, 1).

    ``x[0] = e[0]``, ``x[t] = memory x[t-1] + sqrt(1 - memory²) e[t]``.

    >>> autoregressive(np.array([1.0, 0.0, 0.0]), 0.5).tolist()
    [1.0, 0.5, 0.25]
    """
    scaled = shocks * np.sqrt(1 - memory**2)
    scaled[0] = shocks[0]
    return np.asarray(lfilter([1.0], [1.0, -memory], scaled, axis=0))


def spaced(rng: np.random.Generator, count: int, first: int, last: int, apart: int) -> NDArray[np.int64]:
    """``count`` sorted random rows in ``[first, last)``, at least ``apart`` from each other (ValueError if no room)."""
    room = last - first - apart * max(count - 1, 0)
    if room < 1:
        raise ValueError(f"count: expected room for {count} rows {apart} apart in {first}..{last}, got too few rows")
    return first + np.sort(rng.integers(0, room, count)) + apart * np.arange(count)


def _sensors(count: int) -> list[_Sensor]:
    """The first ``count`` sensors; beyond the table it repeats as a second, third… line of the plant."""
    lines = [
        s if not line else s._replace(name=f"{s.name}_{line + 1}")
        for line in range(-(-count // len(_SENSORS)))
        for s in _SENSORS
    ]
    return lines[:count]


def _events(plant: SyntheticPlant, rng: np.random.Generator) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """The events, and each logged row's place in time, in periods: 30 to 120 minutes are missing after an event."""
    count = round(plant.event_share * plant.rows)
    rows = spaced(rng, count, _QUIET, plant.rows - 1, 2 * _QUIET)
    modes = rng.permutation(np.resize(np.array(list(MODES), dtype=object), count))
    precursor = rng.integers(2, 7, count)
    precursor[rng.permutation(count)[: round(plant.silent_share * count)]] = 0
    down = -(-rng.integers(30 * 60, 120 * 60, count, endpoint=True) // plant.period_s)
    step = np.ones(plant.rows, dtype=np.int64)
    step[0] = 0
    step[rows + 1] += down
    involved = pd.Series([tuple(MODES[m]) for m in modes], dtype=object)
    table = {"row": rows, "mode": modes, "tags": involved, "has_precursor": precursor > 0, "precursor_rows": precursor}
    return pd.DataFrame({**table, "downtime_rows": down}), np.cumsum(step)


def _grades(plant: SyntheticPlant, rng: np.random.Generator) -> NDArray[np.int64]:
    """The grade (0 or 1) of each row ``(n,)``, in campaigns of at most a twentieth of the log (100 rows at least)."""
    longest = max(plant.rows // 20, 100)
    lengths = rng.integers(longest // 3, longest, 2 + 3 * plant.rows // longest)
    return np.repeat(np.arange(len(lengths)) % 2, lengths)[: plant.rows]


def _normal(
    plant: SyntheticPlant,
    sensors: list[_Sensor],
    at: NDArray[np.int64],
    grade: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Normal operation in spreads around the set points ``(n, C)``, and which tags drift."""
    full, tags = int(at[-1]) + 1, len(sensors)
    area = np.array([s.area for s in sensors])
    factors = autoregressive(rng.standard_normal((full, 5)), 0.97)
    noise = autoregressive(rng.standard_normal((full, tags)), 0.5)
    sign = rng.choice([-1.0, 1.0], (2, tags))
    x = 0.6 * sign[0] * factors[:, area] + 0.35 * sign[1] * factors[:, [4]] + 0.5 * noise
    clock = np.arange(full)[:, None]
    day = 2 * np.pi * clock * plant.period_s / 86_400
    slow = np.array(["temperature" in s.name or "level" in s.name for s in sensors])
    x += 0.5 * slow * np.sin(day + rng.uniform(0, 2 * np.pi, tags))
    drifts = np.sort(rng.permutation(tags)[: tags // 3])
    x[:, drifts] += plant.drift * rng.choice([-1.0, 1.0], len(drifts)) * clock / full
    shift = rng.uniform(0.8, 2.0, tags) * rng.choice([-1, 0, 1], tags, p=[0.3, 0.4, 0.3])
    # A new grade's set points are reached over some rows, and only after the change.
    reached = lfilter([0.4], [1.0, -0.6], np.concatenate(([grade[0]], np.diff(grade))).cumsum())
    return x[at] + np.asarray(reached)[:, None] * shift, drifts


def _disturbances(
    plant: SyntheticPlant, tags: list[str], events: pd.DataFrame, rng: np.random.Generator
) -> pd.DataFrame:
    """Harmless disturbances: away from events, of precursor length, in 2 or 3 tags picked at random."""
    wanted = round(plant.disturbance_share * len(events))
    free = np.ones(plant.rows, dtype=bool)
    free[:_QUIET] = free[-_QUIET:] = False
    for row in events["row"]:
        free[max(row - _QUIET, 0) : row + _QUIET] = False
    places = np.flatnonzero(free)
    # one place in each of equally long pieces of the quiet time keeps disturbances apart
    rows = np.array(
        [rng.choice(p[: len(p) // 2 + 1]) for p in np.array_split(places, max(wanted, 1))][:wanted], dtype=np.int64
    )
    involved = [tuple(rng.choice(tags, rng.integers(2, 4), replace=False).tolist()) for _ in rows]
    lasts = rng.integers(2, 7, len(rows))
    size = rng.uniform(2.0, 4.0, len(rows)) * rng.choice([-1, 1], len(rows))
    return pd.DataFrame({"row": rows, "rows": lasts, "tags": pd.Series(involved, dtype=object), "size": size})


def _add_precursors(
    x: NDArray[np.float64], tags: list[str], events: pd.DataFrame, strength: float, rng: np.random.Generator
) -> None:
    """Ramps before events that have a precursor, and a jump on the row of every event; in place."""
    for row, mode, rows in zip(events["row"], events["mode"], events["precursor_rows"], strict=True):
        columns = [tags.index(t) for t in MODES[mode]]
        size = strength * rng.uniform(3.2, 5.2, len(columns)) * np.array(list(MODES[mode].values()))
        ramp = np.linspace(0.45, 1.0, rows)[:, None]
        x[row - rows : row, columns] += ramp * size
        x[row, columns] += 1.8 * size


def _add_disturbances(x: NDArray[np.float64], tags: list[str], table: pd.DataFrame, strength: float) -> None:
    for row, rows, names, size in zip(table["row"], table["rows"], table["tags"], table["size"], strict=True):
        x[row : row + rows, [tags.index(t) for t in names]] += strength * size


def _in_units(x: NDArray[np.float64], sensors: list[_Sensor]) -> NDArray[np.float64]:
    """Values in the sensors' units, rounded to about a hundredth of their spread."""
    values = np.empty_like(x)
    for i, sensor in enumerate(sensors):
        decimals = 2 - int(np.floor(np.log10(sensor.spread)))
        values[:, i] = np.round(sensor.level + sensor.spread * x[:, i], decimals)
    return values


def _freeze(
    values: NDArray[np.float64], tags: list[str], plant: SyntheticPlant, rng: np.random.Generator
) -> pd.DataFrame:
    """Hold a sensor's value over a stretch of rows, in place; returns where."""
    rows = rng.integers(60, 240, plant.frozen)
    starts = np.sort(rng.integers(0, plant.rows - 240, plant.frozen))
    columns = rng.permutation(len(tags))[np.arange(plant.frozen) % len(tags)]
    for start, last, column in zip(starts, rows, columns, strict=True):
        values[start : start + last, column] = values[start, column]
    return pd.DataFrame({"tag": np.array(tags, dtype=object)[columns], "row": starts, "rows": rows})


def _drop_values(values: NDArray[np.float64], plant: SyntheticPlant, rng: np.random.Generator) -> None:
    """Scattered missing values, and a burst in one to three tags every 5000 rows; in place."""
    values[rng.random(values.shape) < plant.missing_share] = np.nan
    for _ in range(plant.rows // 5000 if plant.missing_share else 0):
        start, rows = rng.integers(0, plant.rows - 20), rng.integers(5, 20)
        columns = rng.permutation(values.shape[1])[: rng.integers(1, 4)]
        values[start : start + rows, columns] = np.nan


def _check_suffix(path: Path) -> None:
    if Path(path).suffix not in (".csv", ".parquet"):
        raise UsageError(Fault("E2001", "a file name ending in .csv or .parquet", Path(path).name))


def _write(frame: pd.DataFrame, path: Path) -> None:
    with atomic_path(Path(path)) as temporary:
        if Path(path).suffix == ".csv":
            frame.to_csv(temporary, index=False, date_format="%Y-%m-%dT%H:%M:%SZ", lineterminator="\n")
        else:
            frame.to_parquet(temporary, engine="pyarrow", index=False, write_page_checksum=True)

"""Times of a log as UTC microseconds: ISO 8601, declared forms, epoch numbers, Parquet time stamps.

How a column is read is settled once for the whole log (``TimeReading``); reading then never looks at more than one
batch, so that the first row cannot flip the meaning of the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anomaly.data.reading.values import NUMBER, is_text, plain
from anomaly.errors import Fault, UsageError

#: Column names taken as the time when none is declared, in this order.
TIME_NAMES = ("time", "timestamp", "datetime", "date", "ts", "t_stamp")

#: 1970-01-01 to 2101-01-01 in microseconds: outside, the unit is probably wrong.
EARLIEST, LATEST = 0, 4_133_980_800_000_000

_EPOCH = {"epoch_s": 1e6, "epoch_ms": 1e3, "epoch_us": 1.0, "epoch_ns": 1e-3}
_ISO = re.compile(
    r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?:[T ](\d{1,2})(?::(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?)?)?"
    r"\s*(Z|[+-]\d{2}(?::?\d{2})?)?",
    re.ASCII,
)
_NUMERIC_DATE = r"^(?P<a>[0-9]{1,2})[/.](?P<b>[0-9]{1,2})[/.](?P<y>[0-9]{4})(?P<rest>[T ].*)?$"
_BLOCK_US = 15 * 60 * 10**6  # no zone changes its offset inside a quarter of an hour


@dataclass(frozen=True)
class TimeReading:
    """How a time column is read: ``form`` is iso, day_first, month_first, epoch_s|ms|us|ns or a strptime form.

    ``zone`` is the IANA zone of times that carry none.
    """

    form: str = "iso"
    zone: str = "UTC"


@dataclass(frozen=True)
class Times:
    """Times ``(n,)``: ``us`` int64 UTC microseconds (0 where unread), ``zoned`` 1 with offset, 0 without, -1 unread.

    ``problems`` holds (row index in the batch, fault code, what was expected) of unreadable times.
    """

    us: NDArray[np.int64]
    zoned: NDArray[np.int8]
    problems: tuple[tuple[int, str, str], ...] = ()


def zone_of(name: str) -> tzinfo:
    """The IANA zone ``name``; raises UsageError if there is none."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise UsageError(Fault("E2001", "an IANA time zone such as Europe/Berlin", name)) from error


def looks_like_time(array: pa.Array) -> bool:
    """Whether a column's first cells are all times that need no declaration: time stamps, or text of a known form."""
    array = plain(array)
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        return True
    if not is_text(array.type):
        return False
    cells = [c.strip() for c in array.slice(0, 200).to_pylist() if c and c.strip()]
    return bool(cells) and all(_ISO.fullmatch(c) or re.match(_NUMERIC_DATE, c) for c in cells)


def is_numeric_date(array: pa.Array) -> bool:
    """Whether the first readable cell is a date like 01/02/2026, whose order of day and month must be settled."""
    array = plain(array)
    if not is_text(array.type):
        return False
    first = next((c.strip() for c in array.slice(0, 200).to_pylist() if c and c.strip()), "")
    return re.match(_NUMERIC_DATE, first) is not None


def day_month_order(columns: Iterable[pa.Array]) -> str | None:
    """The order that all dates like 13/02/2026 of the batches share, if one of them settles it: else None.

    >>> day_month_order([pa.array(["01/02/2026", "13/02/2026"])])
    'day_first'
    """
    largest = [0, 0]
    for column in columns:
        found = pc.extract_regex(pc.utf8_trim_whitespace(plain(column)), _NUMERIC_DATE)
        for i, part in enumerate("ab"):
            top = pc.max(pc.cast(pc.struct_field(found.drop_null(), part), pa.int64())).as_py()
            largest[i] = max(largest[i], top or 0)
    if largest[0] > 12 >= largest[1]:
        return "day_first"
    return "month_first" if largest[1] > 12 >= largest[0] else None


def read_times(array: pa.Array, reading: TimeReading) -> Times:
    """A time column ``(n,)`` as Times.

    Problems carry E3204 (unreadable), E3203 (local time that exists twice or never), E3207 (outside 1970 to 2100).

    >>> read_times(pa.array(["2026-01-01T01:00:00+01:00"]), TimeReading()).us.tolist()
    [1767225600000000]
    """
    if pa.types.is_dictionary(array.type) and not array.null_count and len(array):
        distinct = read_times(array.dictionary, reading)
        if not distinct.problems:
            at = array.indices.to_numpy()
            return Times(distinct.us[at], distinct.zoned[at])
    array = plain(array)
    local, zoned, problems = _parse(array, reading)
    us, zone_problems = _to_utc(local, zoned, reading.zone)
    inside = (us >= EARLIEST) & (us < LATEST)
    outside = np.flatnonzero((zoned >= 0) & ~inside)
    problems += zone_problems + [(int(i), "E3207", "a time from 1970 to 2100") for i in outside]
    for i, _, _ in problems:
        us[i], zoned[i] = 0, -1
    return Times(us, zoned, tuple(sorted(problems)))


_Parsed = tuple[NDArray[np.int64], NDArray[np.int8], list[tuple[int, str, str]]]


def _parse(array: pa.Array, reading: TimeReading) -> _Parsed:
    kind = array.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _stamps(array)
    if reading.form in _EPOCH:
        return _epochs(array, reading.form)
    if not is_text(kind):
        return _unread(len(array), "a time stamp, or a number declared with --time-format epoch_s, _ms, _us or _ns")
    return _text_times(array, reading.form)


def _text_times(array: pa.Array, form: str) -> _Parsed:
    cells = pc.fill_null(pc.utf8_trim_whitespace(array), "")
    if form in ("day_first", "month_first"):
        return _iso(_iso_order(cells, form), f"a date with the {form.replace('_', ' ')}")
    if form == "iso":
        return _iso(cells, "an ISO 8601 time")
    return _by_cell(cells, lambda cell: _strptime(cell, form), f"a time like {form}")


def _unread(n: int, expected: str) -> _Parsed:
    return np.zeros(n, np.int64), np.full(n, -1, np.int8), [(i, "E3204", expected) for i in range(min(n, 1))]


def _stamps(array: pa.Array) -> _Parsed:
    zoned = getattr(array.type, "tz", None) is not None
    valid = pc.is_valid(array).to_numpy(zero_copy_only=False)
    stamps = pc.cast(array, pa.timestamp("us", "UTC" if zoned else None), safe=False)
    us = pc.fill_null(pc.cast(stamps, pa.int64()), 0).to_numpy(zero_copy_only=False).copy()
    problems = [(int(i), "E3204", "a time") for i in np.flatnonzero(~valid)]
    return us, np.where(valid, int(zoned), -1).astype(np.int8), problems


def _epochs(array: pa.Array, form: str) -> _Parsed:
    factor, expected = _EPOCH[form], f"a number ({form})"
    try:
        whole = pc.cast(array, pa.int64()) if factor <= 1 or not pa.types.is_floating(array.type) else None
    except pa.ArrowInvalid:
        whole = None
    if whole is not None:
        filled = pc.fill_null(whole, 0).to_numpy(zero_copy_only=False)
        # a unit too large for the number would overflow: clip first, the range check then refuses it
        limit = np.int64(2**62 / max(factor, 1.0))
        clipped = np.clip(filled, -limit, limit)
        us = clipped * np.int64(factor) if factor >= 1 else clipped // 1000
        valid = pc.is_valid(whole).to_numpy(zero_copy_only=False)
    else:
        numbers = [_number(c) for c in array.to_pylist()]
        valid = np.array([v is not None and np.isfinite(v) for v in numbers], dtype=bool)
        scaled = np.array([v if ok and v is not None else 0.0 for v, ok in zip(numbers, valid, strict=True)]) * factor
        us = np.clip(np.rint(scaled), -(2.0**62), 2.0**62).astype(np.int64)
    problems = [(int(i), "E3204", expected) for i in np.flatnonzero(~valid)]
    return us.astype(np.int64), np.where(valid, 1, -1).astype(np.int8), problems


def _number(cell: object) -> float | None:
    text = str(cell).strip()
    return float(text) if re.match(NUMBER, text) else None  # float() alone would take 1_000 and full-width digits


def _iso(cells: pa.Array, expected: str) -> _Parsed:
    """ISO cells: first as one uniform column, then, if that fails, cell by cell."""
    for kind, zoned in ((pa.timestamp("us"), 0), (pa.timestamp("us", "UTC"), 1)):
        try:
            us = pc.cast(pc.cast(cells, kind), pa.int64()).to_numpy(zero_copy_only=False).copy()
        except pa.ArrowInvalid:
            continue
        return us, np.full(len(us), zoned, np.int8), []
    return _by_cell(cells, _iso_cell, expected)


def _iso_order(cells: pa.Array, form: str) -> pa.Array:
    """Dates like 3/2/2026 10:00 in ISO order; other cells become unreadable."""
    padded = pc.replace_substring_regex(cells, r"^([0-9])([/.])", r"0\1\2")
    padded = pc.replace_substring_regex(padded, r"^([0-9]{2})[/.]([0-9])([/.])", r"\1/0\2\3")
    order = r"\3-\2-\1\4" if form == "day_first" else r"\3-\1-\2\4"
    moved = pc.replace_substring_regex(padded, r"^([0-9]{2})[/.]([0-9]{2})[/.]([0-9]{4})(.*)$", order)
    return pc.if_else(pc.match_substring_regex(cells, _NUMERIC_DATE), moved, "")


def _by_cell(cells: pa.Array, read: Callable[[str], tuple[int, int]], expected: str) -> _Parsed:
    us, zoned = np.zeros(len(cells), np.int64), np.full(len(cells), -1, np.int8)
    problems: list[tuple[int, str, str]] = []
    for i, cell in enumerate(cells.to_pylist()):
        try:
            us[i], zoned[i] = read(cell)
        except (ValueError, OverflowError):
            problems.append((i, "E3204", expected))
    return us, zoned, problems


def _iso_cell(cell: str) -> tuple[int, int]:
    match = _ISO.fullmatch(cell)
    if not match:
        raise ValueError(cell)
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    whole = [int(part or 0) for part in (year, month, day, hour, minute, second)]
    moment = datetime(*whole, microsecond=int((fraction or "0")[:6].ljust(6, "0")), tzinfo=UTC)  # type: ignore[misc,arg-type]
    us = _microseconds(moment)
    if offset in (None, "Z"):
        return us, int(offset == "Z")
    hours, minutes = int(offset[1:3]), int(offset[3:].lstrip(":") or 0)
    if hours > 14 or minutes > 59:
        raise ValueError(cell)
    shift = (hours * 60 + minutes) * 60 * 10**6
    return us - shift if offset[0] == "+" else us + shift, 1


def _strptime(cell: str, form: str) -> tuple[int, int]:
    moment = datetime.strptime(cell, form)  # noqa: DTZ007 - the zone is settled for the whole column later
    if moment.tzinfo is not None:
        return _microseconds(moment), 1
    return _microseconds(moment.replace(tzinfo=UTC)), 0


def _microseconds(moment: datetime) -> int:
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86400 + delta.seconds) * 10**6 + delta.microseconds


def _to_utc(
    local: NDArray[np.int64], zoned: NDArray[np.int8], zone: str
) -> tuple[NDArray[np.int64], list[tuple[int, str, str]]]:
    """Zoneless local times moved to UTC; a local time that exists twice or never is a problem E3203."""
    naive = np.flatnonzero((zoned == 0) & (local >= EARLIEST) & (local < LATEST))
    if zone == "UTC" or not len(naive):
        return local, []
    where = zone_of(zone)
    blocks, which = np.unique(local[naive] // _BLOCK_US, return_inverse=True)
    offsets = np.array([_offsets(int(b) * _BLOCK_US, where) for b in blocks], dtype=np.int64)[which]
    us = local.copy()
    us[naive] -= offsets[:, 0]
    problems = [
        (int(naive[i]), "E3203", f"a time that exists once in {zone}")
        for i in np.flatnonzero(offsets[:, 0] != offsets[:, 1])
    ]
    return us, problems


def _offsets(local_us: int, zone: tzinfo) -> tuple[int, int]:
    """Offsets from UTC in microseconds of a local time, read as its first and as its second occurrence."""
    moment = datetime.fromtimestamp(local_us // 10**6, UTC).replace(tzinfo=zone)
    first, second = moment.utcoffset(), moment.replace(fold=1).utcoffset()
    assert first is not None and second is not None  # noqa: S101 - an IANA zone always knows its offset
    return round(first.total_seconds() * 1e6), round(second.total_seconds() * 1e6)

"""Which column holds the time, and how it is written: settled once for all files of a log."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from anomaly.config import LogSettings
from anomaly.data.contract import LogContract
from anomaly.data.reading.roles import near
from anomaly.data.reading.sources import RawBatch, Source
from anomaly.data.reading.times import (
    TIME_NAMES,
    TimeReading,
    day_month_order,
    is_numeric_date,
    looks_like_time,
    zone_of,
)
from anomaly.data.reading.values import is_text, plain
from anomaly.errors import Fault, InputRefused


def find(sources: list[Source], settings: LogSettings, contract: LogContract | None) -> tuple[str, list[str]]:
    """The time column's name and what to print about it.

    Declared, the contract's, one named like a time, or the first whose first cells all are times. Raises InputRefused
    E3101 for each file that lacks it.
    """
    name = settings.time or (contract.time if contract else None)
    notices = []
    if name is None:
        name = _told(sources[0])
        if name is None:
            hint = "name it with --time; epoch numbers also need --time-format"
            raise InputRefused(Fault("E3101", "a time column", "none that can be told", hint, sources[0].name))
        notices.append(f"time column {name} (inferred)")
    faults = [
        Fault("E3101", "the time column", "no such column", near(name, s.columns), s.name, name)
        for s in sources
        if name not in s.columns
    ]
    if faults:
        raise InputRefused(faults)
    return name, notices


def settle(
    sources: list[Source], name: str, settings: LogSettings, contract: LogContract | None
) -> tuple[TimeReading, list[str]]:
    """How column ``name`` is read in all files, and what to print about it.

    Raises InputRefused E3202 where dates like 01/02/2026 leave the order of day and month open, UsageError for an
    unknown zone.
    """
    zone = settings.timezone or (contract.timezone if contract else "UTC")
    zone_of(zone)
    if settings.time_format is not None:
        return TimeReading(settings.time_format, zone), []
    if not any(is_numeric_date(b.columns[name]) for b in map(_first, sources) if b is not None):
        return TimeReading("iso", zone), []
    order = day_month_order(_column(sources, name))
    if order is None:
        batch = sources[0].first_batch()
        found = plain(batch.columns[name])[0].as_py() if batch else ""
        hint = "declare the form, such as --time-format %d/%m/%Y or %m/%d/%Y (with %H:%M:%S)"
        raise InputRefused(
            Fault("E3202", "dates whose order of day and month can be told", found, hint, sources[0].name, name, 1)
        )
    return TimeReading(order, zone), [f"dates are written with the {order.replace('_', ' ')} (inferred)"]


def _told(source: Source) -> str | None:
    folded = {name.casefold(): name for name in source.columns}
    for name in TIME_NAMES:
        if name in folded:
            return folded[name]
    batch = _first(source)
    if batch is None:
        return None
    told = [name for name, column in batch.columns.items() if looks_like_time(column)]
    indices = [name for name in told if name.startswith("__index_level_")]  # pandas' row index comes last
    return next(iter(indices + told), None)


def _first(source: Source) -> RawBatch | None:
    """The first rows, None where there are none or where they cannot be read; the check pass reports that."""
    try:
        return source.first_batch()
    except InputRefused:
        return None


def _column(sources: list[Source], name: str) -> Iterator[pa.Array]:
    for source in sources:
        for batch in source.batches({name}):
            if is_text(plain(batch.columns[name]).type):
                yield batch.columns[name]

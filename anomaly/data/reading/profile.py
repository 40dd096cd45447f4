"""One streaming pass over a log file that notes everything a later decision or refusal needs, in bounded memory.

Which column is a tag is known only after the last row of the last file. So every column's oddities are noted here
(the first ten rows of each kind), and only those of columns that turn out to matter become faults.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anomaly.data.reading.order import Column, OrderFindings, RowOrder
from anomaly.data.reading.sources import NotPlainError, RawBatch, Source
from anomaly.data.reading.spool import Spool, SpoolFile
from anomaly.data.reading.times import TimeReading, read_times
from anomaly.data.reading.values import LARGEST, cell, is_number, is_text, numbers, plain, texts
from anomaly.errors import Fault, InputRefused

#: Of each kind of fault in a column the first ten rows are named.
SHOWN = 10
_MOST_DISTINCT = 50

Rows = list[tuple[int, object]]


@dataclass
class ColumnProfile:
    """What one column of one file holds. ``kind`` is number or text (both may be tags), time or other.

    The row lists hold (1-based data row, cell), at most ten each: ``open_rows`` cells with a line end inside,
    ``differing`` rows that repeat a time with another cell, ``not_binary`` and ``not_code`` cells a label may not hold.
    ``distinct`` is None beyond 50 texts.
    """

    name: str
    kind: str
    values: int = 0
    text: int = 0
    boolean: int = 0
    bad: int = 0
    distinct: set[str] | None = field(default_factory=set)
    text_rows: Rows = field(default_factory=list)
    boolean_rows: Rows = field(default_factory=list)
    infinite_rows: Rows = field(default_factory=list)
    huge_rows: Rows = field(default_factory=list)
    empty_rows: Rows = field(default_factory=list)
    not_binary: Rows = field(default_factory=list)
    not_code: Rows = field(default_factory=list)
    open_rows: Rows = field(default_factory=list)
    differing: list[int] = field(default_factory=list)
    zeros: int = 0
    transient: bool = False

    def update(self, column: Column, place: Callable[[int], int]) -> None:
        """Take the next batch; ``place`` turns a row index of the batch into the file's data row."""
        found, raw = column.numbers, column.raw
        present = ~np.isnan(found.values)
        self.values += int(present.sum())
        self.boolean += int(found.boolean.sum())
        self.bad += int(found.bad.sum())
        if found.text.any():
            self.text += int(found.text.sum())
            self._distinct(raw, found.text)
            # a line end inside a cell is a quote that was never closed: it has swallowed rows
            note(self.open_rows, found.text & _mask(pc.match_substring_regex(raw, "[\\r\\n]")), raw, place)
        sizes = np.abs(found.values)
        huge = sizes > LARGEST  # NaN compares false
        kinds = (
            (found.text, self.text_rows),
            (found.boolean, self.boolean_rows),
            (huge & np.isinf(sizes), self.infinite_rows),
            (huge & np.isfinite(sizes), self.huge_rows),
        )
        for mask, rows in kinds:
            note(rows, mask, raw, place)

    def update_label(self, column: Column, place: Callable[[int], int]) -> None:
        """Note what a label column's cells could be: 0/1, or fault codes (0, k, 100 + k for a transient k)."""
        values = column.numbers.values
        present = ~np.isnan(values)
        steady = (values == np.rint(values)) & (values >= 0) & (values <= 99)
        transient = (values == np.rint(values)) & (values > 100) & (values < 200)
        self.zeros += int((values == 0).sum())
        self.transient |= bool(transient.any())
        wrong = column.numbers.text
        note(self.not_binary, wrong | (present & (values != 0) & (values != 1)), column.raw, place)
        note(self.not_code, wrong | (present & ~steady & ~transient), column.raw, place)

    @property
    def shows_cells(self) -> bool:
        """Whether cells were noted that a refusal may show as they are written."""
        rows = (self.text_rows, self.boolean_rows, self.infinite_rows, self.huge_rows, self.not_binary, self.not_code)
        return any(map(len, rows))

    def _distinct(self, raw: pa.Array, text: NDArray[np.bool_]) -> None:
        if self.distinct is not None:
            self.distinct |= set(texts(raw.filter(pa.array(text)).unique()))
            if len(self.distinct) > _MOST_DISTINCT:
                self.distinct = None


@dataclass
class FileProfile:
    """What one file holds; ``order`` has the assets' spans in time and the steps, ``zoned`` the times' kind seen."""

    source: Source
    asset: str
    rows: int = 0
    repeated: int = 0
    zoned: bool | None = None
    columns: dict[str, ColumnProfile] = field(default_factory=dict)
    order: RowOrder = field(default_factory=RowOrder)
    time_faults: list[Fault] = field(default_factory=list)
    spool: Spool | None = None
    _counts: dict[str, int] = field(default_factory=dict)

    @property
    def first_us(self) -> int:
        """The file's earliest time."""
        return min((first for first, _ in self.order.spans.values()), default=0)

    @property
    def last_us(self) -> int:
        """The file's latest time."""
        return max((last for _, last in self.order.spans.values()), default=0)


@dataclass(frozen=True)
class Reading:
    """How files are passed over: the time column and its reading, the asset and label columns, columns to ignore.

    ``texts`` are columns whose cells count as they are written.
    """

    time: str | None
    times: TimeReading
    asset: str | None = None
    label: str | None = None
    ignored: Collection[str] = ()
    texts: Collection[str] = ()


def profile_file(source: Source, reading: Reading, asset: str, file: SpoolFile | None = None) -> FileProfile:
    """Pass over ``source`` once. ``asset`` names the file's asset where ``reading`` has no asset column.

    Columns of a text file that begin as plain numbers are parsed as such; where one turns out otherwise, or a cell of it
    has to be shown, the file is passed over again with that column as text. With ``file`` the checked rows are kept.
    """
    return source.as_typed(_plain_columns(source, reading), lambda: _profiled(source, reading, asset, file))


def _profiled(source: Source, reading: Reading, asset: str, file: SpoolFile | None) -> FileProfile:
    profile = FileProfile(source, asset)
    profile.spool = None if file is None or reading.time is None else Spool(file)
    for name, (_, kind) in source.columns.items():
        if name != reading.time and name not in reading.ignored:
            profile.columns[name] = ColumnProfile(name, _kind(kind))
    for batch in source.batches():
        _take(profile, batch, reading)
    for name in source.types:
        if name in profile.columns and profile.columns[name].shows_cells:
            raise NotPlainError(name)
    if not profile.rows and not source.faults:
        source.faults.append(Fault("E3003", "at least one row", "0 rows", "", source.name))
    source.spool = profile.spool
    if source.spool is not None:
        source.spool.close()
    return profile


def _plain_columns(source: Source, reading: Reading) -> dict[str, pa.DataType]:
    """The columns of a text file whose first cells are all plain numbers or missing."""
    try:
        batch = source.first_batch() if source.parses_text else None
    except InputRefused:  # the pass itself says what is wrong
        batch = None
    found = {}
    for name, raw in batch.columns.items() if batch is not None else ():
        if name not in (reading.time, reading.asset, *reading.texts, *reading.ignored):
            cells = numbers(raw, decimal=source.decimal)
            sizes = np.abs(cells.values)
            if not (cells.text | cells.boolean | cells.bad | (sizes > LARGEST)).any():
                found[name] = pa.float64()
    return found


def note(rows: Rows, mask: NDArray[np.bool_], raw: pa.Array, place: Callable[[int], int]) -> None:
    """Add the first rows of ``mask`` to ``rows``, with their cells, up to ten in all."""
    if len(rows) < SHOWN and mask.any():
        for i in np.flatnonzero(mask)[: SHOWN - len(rows)]:
            rows.append((place(int(i)), cell(raw, int(i))))


def _mask(array: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), dtype=bool)


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if is_number(kind):
        return "number"
    if is_text(kind):
        return "text"
    return "time" if pa.types.is_temporal(kind) else "other"


def _take(profile: FileProfile, batch: RawBatch, reading: Reading) -> None:
    source = profile.source

    def place(row: int) -> int:
        return source.data_row(batch.first + row)

    columns = _columns(profile, batch)
    for name in source.types:
        # the parser takes "-nan" and the like for a number
        if name in columns and pc.any(pc.is_nan(batch.columns[name])).as_py():
            raise NotPlainError(name)
    for name, column in columns.items():
        noted = profile.columns[name]
        noted.update(column, place)
        if name == reading.label:
            noted.update_label(column, place)
    assets = _assets(profile, batch, reading, place)
    if reading.time is not None and reading.time in batch.columns:
        us, valid = _times(profile, batch.columns[reading.time], reading, place)
        compared = {n: c for n, c in columns.items() if n != reading.asset}
        _note_order(profile, profile.order.update(us, valid, assets, compared), us, reading.time, place)
        if profile.spool is not None:
            kept = {n: batch.columns[n] for n in columns}
            profile.spool.add({reading.time: pa.array(us).cast(pa.timestamp("us", "UTC")), **kept})
    profile.rows += batch.rows


def _columns(profile: FileProfile, batch: RawBatch) -> dict[str, Column]:
    source = profile.source
    return {
        name: Column(numbers(raw, decimal=source.decimal, nan_is_bad=source.nan_is_bad), plain(raw))
        for name, raw in batch.columns.items()
        if name in profile.columns and profile.columns[name].kind in ("number", "text")
    }


def _assets(
    profile: FileProfile, batch: RawBatch, reading: Reading, place: Callable[[int], int]
) -> NDArray[np.object_] | str:
    if reading.asset not in batch.columns or profile.columns[reading.asset].kind == "other":
        return profile.asset  # no such column, or one that cannot name anything: both are refused later
    raw = plain(batch.columns[reading.asset])
    names = texts(raw)
    note(profile.columns[reading.asset].empty_rows, names == "", raw, place)
    return names


def _times(
    profile: FileProfile, raw: pa.Array, reading: Reading, place: Callable[[int], int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The batch's times and where they could be read; unreadable ones and a change of kind become faults."""
    times = read_times(raw, reading.times)
    for row, code, expected in times.problems:
        hint = "name its form with --time-format" if code == "E3204" else ""
        _time_fault(profile, code, expected, cell(plain(raw), row), hint, reading.time, place(row))
    for row in _changes(times.zoned, profile.zoned):
        expected = "times with a zone, as in the rows before" if profile.zoned else "times without a zone, as before"
        _time_fault(profile, "E3201", expected, cell(plain(raw), row), "", reading.time, place(row))
    read = times.zoned[times.zoned >= 0]
    if profile.zoned is None and len(read):
        profile.zoned = bool(read[0])
    return times.us, times.zoned >= 0


def _changes(zoned: NDArray[np.int8], known: bool | None) -> list[int]:
    """The first row whose kind of time differs from the first kind seen."""
    read = zoned[zoned >= 0]
    if not len(read):
        return []
    kind = int(read[0]) if known is None else int(known)
    return np.flatnonzero(zoned == 1 - kind)[:1].tolist()


def _time_fault(
    profile: FileProfile, code: str, expected: str, found: object, hint: str, column: str | None, row: int
) -> None:
    most = 1 if code == "E3201" else SHOWN
    profile._counts[code] = profile._counts.get(code, 0) + 1
    if profile._counts[code] <= most:
        profile.time_faults.append(Fault(code, expected, found, hint, profile.source.name, column, row))


def _note_order(
    profile: FileProfile, found: OrderFindings, us: NDArray[np.int64], column: str, place: Callable[[int], int]
) -> None:
    for row in found.backwards:
        _time_fault(profile, "E3205", "a time not before the row above", shown_time(int(us[row])),
                    "sort the log by time", column, place(row))  # fmt: skip
    for row, name in found.differing:
        noted = profile.columns[name].differing
        if len(noted) < SHOWN:
            noted.append(place(row))
    profile.repeated += found.repeated


def shown_time(us: int) -> str:
    """UTC microseconds as text.

    >>> shown_time(0)
    '1970-01-01 00:00:00Z'
    """
    moment = np.datetime64(us, "us").astype("datetime64[us]" if us % 10**6 else "datetime64[s]")
    return str(moment).replace("T", " ") + "Z"

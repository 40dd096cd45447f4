"""Logs in long form (asset, tag, time, value, quality), turned into wide form out of core.

Each file is checked and normalised batch by batch into scratch Parquet; DuckDB, held to a memory limit, then sorts,
looks for contradictions and writes one wide Parquet file, which is read like any other log. Scratch lives in a
temporary folder that goes away with the log that uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly.config import LogSettings, parse_duration
from anomaly.data.reading import quality_codes
from anomaly.data.reading.profile import SHOWN, shown_time
from anomaly.data.reading.roles import near
from anomaly.data.reading.sources import ParquetSource, RawBatch, Source
from anomaly.data.reading.times import TimeReading, read_times
from anomaly.data.reading.values import LARGEST, cell, is_text, numbers, plain, texts
from anomaly.errors import Fault, InputRefused

TAG_NAMES = ("tag", "tagname", "tag_name", "point", "sensor", "name")
VALUE_NAMES = ("value", "val")
QUALITY_NAMES = ("quality", "status", "opcquality")
#: Name of the asset column of a wide scratch file whose log has none; no real column can be called so.
NO_ASSET = "\x00asset"
_SCHEMA = pa.schema(
    [("asset", pa.string()), ("tag", pa.string()), ("time", pa.int64()), ("value", pa.float64()),
     ("text", pa.string()), ("file", pa.int32()), ("row", pa.int64())]
)  # fmt: skip


@dataclass(frozen=True)
class LongColumns:
    """The columns of a log in long form."""

    tag: str
    value: str
    quality: str | None = None
    asset: str | None = None
    label: str | None = None


@dataclass
class LongFile:
    """What the pass over one long file found; times in microseconds."""

    rows: int = 0
    first_us: int = 0
    last_us: int = 0
    zoned: bool | None = None


@dataclass
class Widened:
    """A long log in wide form: the scratch source, each original file's facts, exact duplicates dropped."""

    source: Source
    files: list[LongFile]
    duplicates: int
    notices: list[str] = field(default_factory=list)


def recognised(source: Source, settings: LogSettings, asset: str | None, label: str | None) -> LongColumns | None:
    """The columns of ``source`` if it is in long form: declared, or told by their names; else None.

    Told means: a text column named like a tag's name, one named like a value, and no other column of numbers.
    """
    if settings.form == "wide":
        return None
    tag = settings.tag or _named(source, TAG_NAMES)
    value = settings.value or _named(source, VALUE_NAMES)
    quality = settings.quality or _named(source, QUALITY_NAMES)
    asset = asset or _named(source, ("asset",))
    if settings.form == "long":
        _require(source, {"tag": tag, "value": value})
    if tag is None or value is None or tag not in source.columns or value not in source.columns:
        return None
    known = LongColumns(tag, value, quality, asset, label if label in source.columns else None)
    told = settings.form == "long" or _looks_long(source, known, settings)
    return known if told else None


def _named(source: Source, names: tuple[str, ...]) -> str | None:
    folded = {c.casefold(): c for c in source.columns}
    return next((folded[n] for n in names if n in folded), None)


#: Flags that name a column of a long log, where they differ from the column's part.
_FLAGS = {"tag": "--tag-column", "value": "--value-column", "quality": "--quality-column"}


def _require(source: Source, wanted: dict[str, str | None]) -> None:
    faults = []
    for part, name in wanted.items():
        if name is None or name not in source.columns:
            hint = (near(name, source.columns) if name else "") or f"name it with {_FLAGS.get(part, '--' + part)}"
            faults.append(Fault("E3101", f"the {part} column of a long log", name or "none", hint, source.name, name))
    if faults:
        raise InputRefused(faults)


def _looks_long(source: Source, known: LongColumns, settings: LogSettings) -> bool:
    batch = source.first_batch()
    if batch is None or not is_text(plain(batch.columns[known.tag]).type):
        return False
    if not numbers(batch.columns[known.tag]).text.any():
        return False
    own = {known.tag, known.value, known.quality, known.asset, known.label, settings.time, *settings.drop}
    others = [plain(a) for name, a in batch.columns.items() if name not in own]
    return not any(np.isfinite(numbers(a, decimal=source.decimal).values).any() for a in others)


class _Normaliser:
    """Checks the files of a long log and writes them as scratch Parquet of one schema."""

    def __init__(self, columns: LongColumns, time: str, reading: TimeReading, settings: LogSettings) -> None:
        self.columns, self.time, self.reading = columns, time, reading
        self.texts = frozenset(settings.categories)
        self.faults: list[Fault] = []
        self._counts: dict[tuple[str, str], int] = {}

    def write(self, source: Source, number: int, asset: str, target: Path, code: quality_codes.Reader) -> LongFile:
        """Normalise file ``number``; its faults join ``self.faults``."""
        facts = LongFile()
        with pq.ParquetWriter(target, _SCHEMA) as writer:
            for batch in source.batches():
                writer.write_table(self._table(source, batch, number, asset, facts, code))
                facts.rows += batch.rows
        if not facts.rows and not source.faults:
            source.faults.append(Fault("E3003", "at least one row", "0 rows", "", source.name))
        return facts

    def _table(
        self, source: Source, batch: RawBatch, number: int, asset: str, facts: LongFile, code: quality_codes.Reader
    ) -> pa.Table:
        tag = texts(batch.columns[self.columns.tag])
        self._refuse(source, batch, self.columns.tag, tag == "", "E3104", "the name of a tag")
        us, read = self._times(source, batch, facts)
        named = self.columns.asset
        assets = texts(batch.columns[named]) if named else np.full(batch.rows, asset, dtype=object)
        if named:
            self._refuse(source, batch, named, assets == "", "E3113", "the asset's name")
        as_text = np.isin(tag, list(self.texts)) if self.texts else np.zeros(batch.rows, dtype=bool)
        value, empty = self._values(source, batch, as_text, code)
        written = texts(batch.columns[self.columns.value])
        keep = pa.array(read & (tag != ""))
        table = pa.table({
            "asset": pa.array(assets, pa.string()), "tag": pa.array(tag, pa.string()), "time": us,
            "value": pa.array(value, mask=empty), "text": pa.array(written, pa.string(), mask=~as_text),
            "file": pa.array(np.full(batch.rows, number, np.int32)),
            "row": np.arange(batch.first, batch.first + batch.rows) + 1,
        }).select(_SCHEMA.names)  # fmt: skip
        label = self.columns.label
        if label:
            table = pa.concat_tables([table, self._labels(table, source, batch, label)])
            keep = pa.concat_arrays([keep, keep])
        return table.filter(keep).cast(_SCHEMA)

    def _values(
        self, source: Source, batch: RawBatch, as_text: NDArray[np.bool_], code: quality_codes.Reader
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Values, NaN where of bad quality, and where there is none at all."""
        column = self.columns.value
        found = numbers(batch.columns[column], decimal=source.decimal)
        size = np.abs(found.values)
        self._refuse(source, batch, column, found.text & ~as_text, "E3107", "a number")
        self._refuse(source, batch, column, np.isinf(size) & ~as_text, "E3110", "a finite number")
        too_large = (size > LARGEST) & np.isfinite(size) & ~as_text
        self._refuse(source, batch, column, too_large, "E3111", "a number of size below 1e30")
        bad = found.bad
        if self.columns.quality and self.columns.quality in batch.columns:
            quality = code.read(batch.columns[self.columns.quality])
            self._refuse(source, batch, self.columns.quality, quality == quality_codes.UNREAD, "E3106", code.expected)
            bad = bad | (quality == quality_codes.BAD)
        return np.where(bad, np.nan, found.values), np.isnan(found.values) & ~bad

    def _labels(self, table: pa.Table, source: Source, batch: RawBatch, name: str) -> pa.Table:
        """The label column as one more tag; whether it holds 0 and 1 is checked in the wide form."""
        found = numbers(batch.columns[name], decimal=source.decimal)
        self._refuse(source, batch, name, found.text, "E3112", "0 or 1")
        tag = pa.array([name] * len(table), pa.string())
        value = pa.array(found.values, from_pandas=True)
        return table.set_column(1, "tag", tag).set_column(3, "value", value)

    def _times(self, source: Source, batch: RawBatch, facts: LongFile) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        raw = plain(batch.columns[self.time])
        times = read_times(raw, self.reading)
        for row, code, expected in times.problems:
            self._fault(source, code, expected, cell(raw, row), self.time, source.data_row(batch.first + row))
        read = times.zoned >= 0
        if read.any():
            first, last = int(times.us[read].min()), int(times.us[read].max())
            facts.first_us = min(first, facts.first_us) if facts.zoned is not None else first
            facts.last_us = max(last, facts.last_us)
            kind = bool(times.zoned[read][0]) if facts.zoned is None else facts.zoned
            for row in np.flatnonzero(times.zoned == int(not kind))[:1]:
                place = source.data_row(batch.first + int(row))
                self._fault(source, "E3201", "times of one kind", cell(raw, int(row)), self.time, place)
            facts.zoned = kind
        return times.us, read

    def _refuse(
        self, source: Source, batch: RawBatch, column: str, wrong: NDArray[np.bool_], code: str, expected: str
    ) -> None:
        for row in np.flatnonzero(wrong)[:SHOWN]:
            found = cell(batch.columns[column], int(row))
            self._fault(source, code, expected, found, column, source.data_row(batch.first + int(row)))

    def _fault(self, source: Source, code: str, expected: str, found: object, column: str, row: int) -> None:
        key = (source.name, code)
        self._counts[key] = self._counts.get(key, 0) + 1
        if self._counts[key] <= SHOWN:
            shown = "an empty cell" if found in (None, "") else found
            self.faults.append(Fault(code, expected, shown, "", source.name, column, row))


class _WideScratch(ParquetSource):
    """The wide scratch file: its columns are numbered, its tags' names are kept here."""

    def name_columns(self, time: str, asset: str | None, tags: list[str]) -> None:
        """Columns in file order: time, asset, then ``tags``."""
        with self._file() as file:
            self._raw, types = file.schema_arrow.names, file.schema_arrow.types
        asset_type = types.pop(1)
        self._named([(time, types[0]), *zip(tags, types[1:], strict=True)])
        self.columns = {n: (p + (p > 0), kind) for n, (p, kind) in self.columns.items()}
        self.columns[asset or NO_ASSET] = (1, asset_type)


def widen(
    sources: list[Source],
    assets: list[str],
    columns: LongColumns,
    time: str,
    reading: TimeReading,
    settings: LogSettings,
    scratch: Path,
    needed: tuple[str, ...] = (),
) -> Widened:
    """The long logs ``sources`` as one wide scratch file in ``scratch``.

    ``assets`` names each file's asset where there is no asset column; ``needed`` are tags that a model expects, which
    become empty columns where the log has no sample of them. Raises InputRefused with every fault of the rows.
    With ``settings.period`` each time bin takes its last value and is named by its end, so nothing looks ahead.
    """
    code = quality_codes.Reader.told(sources, columns.quality)
    normaliser = _Normaliser(columns, time, reading, settings)
    parts = [scratch / f"long-{i}.parquet" for i in range(len(sources))]
    files = [normaliser.write(source, i, assets[i], parts[i], code) for i, source in enumerate(sources)]
    faults = [f for s in sources for f in s.faults] + normaliser.faults
    with _database(scratch, parts) as database:
        faults += _contradictions(database, sources, columns)
        if faults:
            raise InputRefused(faults)
        return _pivot(database, sources, files, columns, time, settings, scratch, needed)


def _database(scratch: Path, parts: list[Path]) -> duckdb.DuckDBPyConnection:
    database = duckdb.connect(config={"memory_limit": "500MB", "threads": 2, "temp_directory": str(scratch / "spill")})
    database.execute("SET preserve_insertion_order = false")
    database.read_parquet([str(p) for p in parts]).create_view("long")
    return database


def _contradictions(
    database: duckdb.DuckDBPyConnection, sources: list[Source], columns: LongColumns
) -> Iterator[Fault]:
    """E3206: the same asset, tag and time with different values; a label column may differ from tag to tag."""
    found = database.execute(
        "SELECT tag, time, max(file), max_by(row, (file, row)), count(DISTINCT coalesce(text, value::VARCHAR, '')) AS n"
        " FROM long WHERE tag <> ? GROUP BY asset, tag, time HAVING n > 1 ORDER BY 3, 4 LIMIT 100",
        [columns.label or ""],
    ).fetchall()
    for tag, time, file, row, _ in found:
        source = sources[file]
        expected = f"one value of {tag} at {shown_time(time)}"
        yield Fault(
            "E3206", expected, "another value", "keep one", source.name, columns.value, source.data_row(row - 1)
        )


def _pivot(
    database: duckdb.DuckDBPyConnection,
    sources: list[Source],
    files: list[LongFile],
    columns: LongColumns,
    time: str,
    settings: LogSettings,
    scratch: Path,
    needed: tuple[str, ...],
) -> Widened:
    tags = [t for (t,) in database.execute("SELECT DISTINCT tag FROM long ORDER BY tag").fetchall()]
    silent = [t for t in needed if t not in tags]
    period = parse_duration(settings.period) if settings.period else None
    target = scratch / "wide.parquet"
    database.execute(_pivot_query(tags, silent, period, settings.categories, columns.label, target), tags)
    distinct = "SELECT count(*) FROM (SELECT DISTINCT asset, tag, time FROM long WHERE tag <> ?)"
    label = [columns.label or ""]
    kept = database.execute(distinct, label).fetchone()
    rows = database.execute("SELECT count(*) FROM long WHERE tag <> ?", label).fetchone()
    wide = _WideScratch(target, ", ".join(s.name for s in sources), nan_is_bad=True)
    wide.state = (target.stat().st_size, target.stat().st_mtime_ns)
    wide.name_columns(time, columns.asset, tags + silent)
    notices = [f"no sample of tag {t} in this log" for t in silent]
    if period:
        notices.append(f"long form binned to {settings.period}: the last value of each bin, at the bin's end")
    assert kept is not None and rows is not None  # noqa: S101 - a count always gives one row
    return Widened(wide, files, rows[0] - kept[0], notices)


def _pivot_query(
    tags: list[str], silent: list[str], period: int | None, categories: tuple[str, ...], label: str | None, target: Path
) -> str:
    """One aggregate per tag, its name as a parameter; bins are named by their end."""
    when = f"((time + {period - 1}) // {period}) * {period}" if period else "time"

    def cell(number: int, tag: str) -> str:
        column = "text" if tag in categories else "value"
        pick = "max(value)" if tag == label else f"max_by({column}, time)" if period else f"any_value({column})"
        return f"{pick} FILTER (WHERE tag = ${number + 1}) AS t{number}"

    cells = [cell(i, t) for i, t in enumerate(tags)]
    cells += [f"NULL::{'VARCHAR' if t in categories else 'DOUBLE'} AS t{len(tags) + i}" for i, t in enumerate(silent)]
    path = str(target).replace("'", "''")
    select = f"SELECT {when} AS time, asset, {', '.join(cells)} FROM long GROUP BY 1, 2 ORDER BY asset, time"  # noqa: S608
    return f"COPY ({select}) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 65536)"

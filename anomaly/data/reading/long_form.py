"""Logs in long form (asset, tag, time, value, quality), turned into wide form out of core.

Each file is checked and normalised batch by batch into scratch Parquet; DuckDB, held to a memory limit, then sorts,
looks for contradictions and writes one wide Parquet file, which is read like any other log. Scratch lives in a
temporary folder that goes away with the log that uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly.config import LogSettings, parse_duration
from anomaly.data.reading import long_pivot, quality_codes
from anomaly.data.reading.profile import SHOWN, shown_time
from anomaly.data.reading.roles import near
from anomaly.data.reading.sources import NotPlainError, ParquetSource, RawBatch, Source
from anomaly.data.reading.times import TimeReading, read_times
from anomaly.data.reading.values import LARGEST, cell, is_text, numbers, plain, texts
from anomaly.errors import Fault, InputRefused

TAG_NAMES = ("tag", "tagname", "tag_name", "point", "sensor", "name")
VALUE_NAMES = ("value", "val")
QUALITY_NAMES = ("quality", "status", "opcquality")
#: Name of the asset column of a wide scratch file whose log has none; no real column can be called so.
NO_ASSET = "\x00asset"


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


def _coded(array: pa.Array, known: dict[str, int]) -> NDArray[np.int32]:
    """A column of names ``(n,)`` as codes into ``known``, which grows; -1 where empty. Each name is read once a batch."""
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    names = texts(array.dictionary)
    codes = np.array([known.setdefault(str(n), len(known)) if n else -1 for n in names] + [-1], np.int32)
    at = array.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
    return np.asarray(codes[at])


class _Normaliser:
    """Checks the files of a long log and writes them as scratch Parquet of one schema."""

    def __init__(self, columns: LongColumns, time: str, reading: TimeReading, settings: LogSettings) -> None:
        self.columns, self.time, self.reading = columns, time, reading
        self.texts = frozenset(settings.categories)
        self.faults: list[Fault] = []
        self.tags: dict[str, int] = {}
        self.assets: dict[str, int] = {}
        self.ordered = True
        self._last = 0
        self._counts: dict[tuple[str, str], int] = {}

    def write(self, source: Source, number: int, asset: str, target: Path, code: quality_codes.Reader) -> LongFile:
        """Normalise file ``number``; its faults join ``self.faults``."""
        before = len(self.faults), dict(self._counts), self.ordered, self._last

        def work() -> LongFile:
            del self.faults[before[0] :]
            self._counts, (self.ordered, self._last) = dict(before[1]), before[2:]
            facts = self._written(source, number, asset, target, code)
            if source.types and len(self.faults) > before[0]:  # the cells are shown as they are written
                raise NotPlainError
            return facts

        return source.as_typed(self._types(source), work)

    def _types(self, source: Source) -> dict[str, pa.DataType]:
        """What the parser of a text file makes of its columns: coded names, and plain numbers where no tag is kept as text."""
        batch = source.first_batch() if source.parses_text else None
        if batch is None:
            return {}
        coded = pa.dictionary(pa.int32(), pa.string())
        names = (self.columns.tag, self.columns.asset, self.columns.quality)
        types = {n: coded for n in names if n in source.columns}
        if len(batch.columns[self.time].unique()) < batch.rows / 2:
            types[self.time] = coded
        cells = numbers(batch.columns[self.columns.value], decimal=source.decimal)
        if not self.texts and not (cells.text | cells.boolean | cells.bad).any():
            types[self.columns.value] = pa.float64()
        return types

    def _written(self, source: Source, number: int, asset: str, target: Path, code: quality_codes.Reader) -> LongFile:
        facts = LongFile()
        with pq.ParquetWriter(
            target, long_pivot.SCHEMA, compression="none", use_dictionary=False, write_statistics=False
        ) as writer:
            for batch in source.batches():
                writer.write_table(self._in_order(self._table(source, batch, number, asset, facts, code)))
                facts.rows += batch.rows
        if not facts.rows and not source.faults:
            source.faults.append(Fault("E3003", "at least one row", "0 rows", "", source.name))
        return facts

    def _table(
        self, source: Source, batch: RawBatch, number: int, asset: str, facts: LongFile, code: quality_codes.Reader
    ) -> pa.Table:
        tag = _coded(batch.columns[self.columns.tag], self.tags)
        self._refuse(source, batch, self.columns.tag, tag < 0, "E3104", "the name of a tag")
        us, read = self._times(source, batch, facts)
        named = self.columns.asset
        if named:
            assets = _coded(batch.columns[named], self.assets)
            self._refuse(source, batch, named, assets < 0, "E3113", "the asset's name")
        else:
            assets = np.full(batch.rows, self.assets.setdefault(asset, len(self.assets)), np.int32)
        as_text = np.isin(tag, [self.tags[t] for t in self.texts if t in self.tags])
        value, empty = self._values(source, batch, as_text, code)
        written: object = pa.nulls(batch.rows, pa.string())
        if as_text.any():
            written = pa.array(texts(batch.columns[self.columns.value]), pa.string(), mask=~as_text)
        keep = read & (tag >= 0) & (assets >= 0)
        table = pa.table({
            "asset": assets, "tag": tag, "time": us, "value": pa.array(value, mask=empty), "text": written,
            "file": np.full(batch.rows, number, np.int32), "row": np.arange(batch.first, batch.first + batch.rows) + 1,
        })  # fmt: skip
        label = self.columns.label
        if label:
            table = pa.concat_tables([table, self._labels(table, source, batch, label)])
            keep = np.concatenate((keep, keep))
        return table.cast(long_pivot.SCHEMA) if keep.all() else table.filter(pa.array(keep)).cast(long_pivot.SCHEMA)

    def _in_order(self, table: pa.Table) -> pa.Table:
        """The samples in order of time; ``ordered`` stays true while those of one asset go on from batch to batch."""
        time = table["time"].to_numpy()
        if not len(time):
            return table
        if (time[1:] < time[:-1]).any():
            sort = np.argsort(time, kind="stable")
            table, time = table.take(pa.array(sort)), time[sort]
        self.ordered = self.ordered and len(self.assets) <= 1 and int(time[0]) >= self._last
        self._last = int(time[-1])
        return table

    def _values(
        self, source: Source, batch: RawBatch, as_text: NDArray[np.bool_], code: quality_codes.Reader
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Values, NaN where of bad quality, and where there is none at all."""
        column = self.columns.value
        found = numbers(batch.columns[column], decimal=source.decimal)
        if column in source.types and pc.any(pc.is_nan(batch.columns[column])).as_py():
            raise NotPlainError(column)  # the parser takes "-nan" and the like for a number
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
        tag = np.full(len(table), self.tags.setdefault(name, len(self.tags)), np.int32)
        value = pa.array(found.values, from_pandas=True)
        return table.set_column(1, "tag", pa.array(tag)).set_column(3, "value", value)

    def _times(self, source: Source, batch: RawBatch, facts: LongFile) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        raw = batch.columns[self.time]
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
    period = parse_duration(settings.period) if settings.period else None
    pivot = long_pivot.Pivot(
        list(normaliser.tags), list(normaliser.assets), frozenset(settings.categories), columns.label, period
    )
    silent = [t for t in needed if t not in normaliser.tags]
    pivot.write(parts, normaliser.ordered, scratch / "wide.parquet", silent)
    faults += [_contradiction(found, pivot, sources, columns) for found in pivot.contradictions]
    if faults:
        raise InputRefused(faults)
    for part in parts:
        part.unlink()
    notices = [f"no sample of tag {t} in this log" for t in silent]
    if period:
        notices.append(f"long form binned to {settings.period}: the last value of each bin, at the bin's end")
    wide = _WideScratch(scratch / "wide.parquet", ", ".join(s.name for s in sources), nan_is_bad=True)
    wide.state = (wide.path.stat().st_size, wide.path.stat().st_mtime_ns)
    wide.name_columns(time, columns.asset, [*(pivot.tags[c] for c in pivot.order), *silent])
    return Widened(wide, files, pivot.duplicates, notices)


def _contradiction(
    found: long_pivot.Contradiction, pivot: long_pivot.Pivot, sources: list[Source], columns: LongColumns
) -> Fault:
    """E3206: the same asset, tag and time with different values; a label column may differ from tag to tag."""
    source = sources[found.file]
    expected = f"one value of {pivot.tags[found.tag]} at {shown_time(found.time_us)}"
    row = source.data_row(found.row - 1)
    return Fault("E3206", expected, "another value", "keep one", source.name, columns.value, row)

"""Log files as batches of named columns: CSV as strings, Parquet as typed columns, nothing converted or dropped yet.

A source knows its file, its columns and which data row a batch starts at. What is wrong with the container itself
(unreadable, empty, cut lines, damaged pages, doubtful column names) is found here.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from anomaly.config import LogSettings
from anomaly.data.reading import csv_form
from anomaly.data.reading.spool import Spool
from anomaly.data.reading.values import MISSING
from anomaly.errors import Fault, InputRefused

BATCH_ROWS = 65_536
_READ_BUFFER = 1 << 20
#: Rows after which a Parquet file is read by a new iterator, which lets go of what the one before had read.
_KEPT_ROWS = 4 * BATCH_ROWS
_BLOCK_BYTES = 4 << 20
_LONGEST_NAME = 200
#: Passes that a file with a few doubtful columns may take before all its columns are read as text.
_MOST_RETRIES = 3
_HDF5 = b"\x89HDF\r\n\x1a\n"


T = TypeVar("T")


class NotPlainError(Exception):
    """A column that was read as numbers holds something else; ``column`` names it where that is known."""

    def __init__(self, column: str | None = None) -> None:
        super().__init__(column)
        self.column = column


@dataclass(frozen=True)
class RawBatch:
    """Consecutive rows: ``first`` is the 0-based position of the first one among the source's batches."""

    first: int
    columns: dict[str, pa.Array]
    rows: int


@dataclass
class Source:
    """One log file. ``columns`` maps each column's clean name to its position and type, in file order.

    ``faults`` collects what is wrong with names and lines; ``notices`` what was inferred about the form. ``types`` are
    columns that a text file's parser turns into numbers or coded texts itself, ``spool`` the rows as they were checked,
    and with ``keep_first`` the first batch is parsed once.
    """

    path: Path
    name: str
    columns: dict[str, tuple[int, pa.DataType]] = field(default_factory=dict)
    decimal: str = "."
    nan_is_bad: bool = False
    notices: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    state: tuple[int, int] = (0, 0)  # size and modification time when opened
    types: dict[str, pa.DataType] = field(default_factory=dict)
    spool: Spool | None = None
    keep_first: bool = False
    parses_text: ClassVar[bool] = False
    _first: RawBatch | None = None

    def open(self, head: bytes, settings: LogSettings) -> None:
        """Find the columns; ``head`` is the file's first megabyte."""
        raise NotImplementedError

    def batches(self, wanted: Collection[str] | None = None) -> Iterator[RawBatch]:
        """The file's rows, batch by batch, with the ``wanted`` columns (all if None)."""
        raise NotImplementedError

    def checked_batches(self, wanted: Collection[str], as_text: Collection[str]) -> Iterator[RawBatch]:
        """The rows of a file that was checked, kept or parsed again; ``as_text`` columns as they are written."""
        if self.spool is None or not self.spool.complete or self.spool.numbers & set(as_text):
            self.types = {n: kind for n, kind in self.types.items() if n not in as_text}
            yield from self.batches(wanted)
            return
        first = 0
        for columns in self.spool.batches(wanted):
            rows = len(next(iter(columns.values())))
            yield RawBatch(first, columns, rows)
            first += rows

    def data_row(self, position: int) -> int:
        """The 1-based data row of the file at ``position`` among the rows that ``batches`` gives."""
        return position + 1

    def first_batch(self) -> RawBatch | None:
        """The first rows, or None if there are none."""
        if self._first is not None:
            return self._first
        first = next(iter(self.batches()), None)
        if self.keep_first:
            self._first = first
        return first

    def as_typed(self, types: dict[str, pa.DataType], work: Callable[[], T]) -> T:
        """What ``work`` gives with ``types`` parsed at once; columns that turn out otherwise are read as text, anew."""
        self.types, self._first = dict(types), None
        while self.types:
            try:
                return work()
            except NotPlainError as error:
                known = error.column in self.types and len(types) - len(self.types) < _MOST_RETRIES
                self.types = {n: t for n, t in self.types.items() if n != error.column} if known else {}
        return work()

    def check_unchanged(self) -> None:
        """Raise InputRefused E3008 if the file's size or modification time is not what it was when opened."""
        if _state(self.path) != self.state:
            hint = "let the writer finish, then run again"
            raise InputRefused(Fault("E3008", "the file as it was checked", "another size or time", hint, self.name))

    def _named(self, names: list[tuple[str, pa.DataType]]) -> None:
        seen: dict[str, list[str]] = defaultdict(list)
        for position, (raw, kind) in enumerate(names):
            name = unicodedata.normalize("NFC", raw).strip()
            self._check_name(name)
            seen[name.casefold()].append(raw)
            if len(seen[name.casefold()]) == 1:
                self.columns[name] = (position, kind)
        for alike in seen.values():
            if len(alike) > 1:
                same = "the same name" if len(set(alike)) == 1 else "names equal but for case, blanks or accents' form"
                found = f"{len(alike)} times: {', '.join(alike)}"
                hint = f"{same}; rename all but one"
                self.faults.append(Fault("E3103", "each column once", found, hint, self.name, alike[0].strip()))

    def _check_name(self, name: str) -> None:
        odd = any(unicodedata.category(c) in ("Cc", "Cs") for c in name)
        if odd or len(name) > _LONGEST_NAME or not name:
            expected = f"a name of 1 to {_LONGEST_NAME} characters, none of them a control character"
            self.faults.append(Fault("E3104", expected, name or "an empty name", "", self.name, name))


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise InputRefused(Fault("E3001", "a readable file", error.strerror or error, "", str(path))) from error
    return status.st_size, status.st_mtime_ns


def open_source(path: Path, settings: LogSettings) -> Source:
    """The file at ``path`` as a Source, told by its first bytes; raises InputRefused E3001 to E3007."""
    name, state = str(path), _state(path)
    try:
        if not path.is_file():
            raise InputRefused(Fault("E3001", "a regular file", "a folder or a device", "", name))
        with path.open("rb") as stream:
            head = stream.read(1 << 20)
    except OSError as error:
        raise InputRefused(Fault("E3001", "a readable file", error.strerror or error, "", name)) from error
    if not head:
        raise InputRefused(Fault("E3002", "a header and rows", "0 bytes", "", name))
    source: Source
    if head[:4] == b"PAR1" or path.suffix.lower() in (".parquet", ".pq"):
        source = ParquetSource(path, name, state=state)
    else:
        _refuse_other_forms(head, name)
        source = CsvSource(path, name, state=state)
    source.open(head, settings)
    return source


def _refuse_other_forms(head: bytes, name: str) -> None:
    hint = ""
    if head[:8] == _HDF5 or head[512:520] == _HDF5:
        found, hint = "an HDF5 store", "this is a window store: only train takes one, as in anomaly train STORE.h5"
    elif head[:4] == b"PK\x03\x04":
        found, hint = "a ZIP or Excel file", "export the sheet as CSV"
    elif head[:2] == b"\x1f\x8b":
        found, hint = "a gzip file", "unpack it first"
    elif head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputRefused(Fault("E3005", "UTF-8 text", "UTF-16 text", "save the file as UTF-8", name))
    elif head[:4096].count(b"\x00") > 8:
        found = "binary content"
    else:
        return
    raise InputRefused(Fault("E3007", "CSV or Parquet", found, hint, name))


class CsvSource(Source):
    """A CSV file: strict UTF-8, every line with as many fields as the header, every cell a string."""

    separator = ","
    parses_text = True

    def open(self, head: bytes, settings: LogSettings) -> None:
        """Find header, separator and decimal mark in the first bytes."""
        form = csv_form.infer(head, settings.separator, settings.decimal, self.name)
        self.separator, self.decimal = form.separator, form.decimal
        self.notices += form.notices
        if not self._ends_with_line_end():
            self.notices.append("the last line has no line end: if the file was cut, its last value may be short")
        self._fields = len(form.header)
        self._skipped: set[int] = set()
        self._named([(raw, pa.string()) for raw in form.header])

    def batches(self, wanted: Collection[str] | None = None) -> Iterator[RawBatch]:
        """The file's rows; lines with another number of fields become faults E3004 and are passed over."""
        places = [f"c{position}" for position in range(self._fields)]
        names = {n: places[p] for n, (p, _) in self.columns.items() if wanted is None or n in wanted}
        first = 0
        try:
            for batch in self._reader(places, list(names.values())):
                yield RawBatch(first, {n: batch.column(i) for i, n in enumerate(names)}, batch.num_rows)
                first += batch.num_rows
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if self.types:  # what is wrong is told from the text
                raise NotPlainError(self._named_in(str(error))) from error
            raise InputRefused(self._damage(error)) from error

    def _named_in(self, message: str) -> str | None:
        found = re.match(r"In CSV column #(\d+): CSV conversion error", message)
        return next((n for n, (p, _) in self.columns.items() if found and p == int(found[1])), None)

    def data_row(self, position: int) -> int:
        """The data row behind ``position``, counting the lines passed over."""
        row = position + 1
        for skipped in sorted(self._skipped):
            if skipped > row:
                break
            row += 1
        return row

    def _reader(self, places: list[str], wanted: list[str]) -> pc.CSVStreamingReader:
        return pc.open_csv(
            self.path,
            read_options=pc.ReadOptions(
                use_threads=False, block_size=_BLOCK_BYTES, column_names=places, skip_rows=1, encoding="utf8"
            ),
            parse_options=pc.ParseOptions(delimiter=self.separator, invalid_row_handler=self._wrong_fields),
            convert_options=pc.ConvertOptions(
                column_types=dict.fromkeys(places, pa.string())
                | {places[self.columns[n][0]]: kind for n, kind in self.types.items()},
                null_values=list(MISSING),
                strings_can_be_null=False,
                include_columns=wanted,
                decimal_point=self.decimal,
            ),
        )

    def _wrong_fields(self, row: pc.InvalidRow) -> str:
        number = row.number - 1
        if number not in self._skipped:
            self._skipped.add(number)
            if len(self._skipped) <= 100:
                found = f"{row.actual_columns} fields: {row.text[:80]}"
                hint = "a cut line, or a separator inside a cell without quotes"
                self.faults.append(Fault("E3004", f"{row.expected_columns} fields", found, hint, self.name, row=number))
        return "skip"

    def _damage(self, error: Exception) -> Fault:
        text = str(error)
        if "UTF8" in text or "UTF-8" in text or isinstance(error, UnicodeDecodeError):
            hint = "save the file as UTF-8"
            return Fault("E3005", "UTF-8 text", "other bytes", hint, self.name, row=self._undecodable())
        hint = "look for a quote that never closes"
        return Fault("E3004", f"lines of {self._fields} fields", text[:120], hint, self.name)

    def _ends_with_line_end(self) -> bool:
        with self.path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) in (b"\n", b"\r")

    def _undecodable(self) -> int | None:
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return number
        return None


class ParquetSource(Source):
    """A Parquet file: typed columns, page checksums verified where the writer left them."""

    def open(self, head: bytes, settings: LogSettings) -> None:
        """Read the schema from the footer."""
        with self._file() as file:
            schema = file.schema_arrow
            self._raw = schema.names
            self._named(list(zip(schema.names, schema.types, strict=True)))
            if not file.metadata.num_rows:
                raise InputRefused(Fault("E3003", "at least one row", "0 rows", "", self.name))

    def batches(self, wanted: Collection[str] | None = None) -> Iterator[RawBatch]:
        """The file's rows; a damaged page raises InputRefused E3006."""
        places = {n: p for n, (p, _) in self.columns.items() if wanted is None or n in wanted}
        first = 0
        with self._file() as file:
            try:
                for batch in _batches(file, [self._raw[p] for p in places.values()]):
                    columns = {n: batch.column(batch.schema.names.index(self._raw[p])) for n, p in places.items()}
                    yield RawBatch(first, columns, batch.num_rows)
                    first += batch.num_rows
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise InputRefused(self._damage(error)) from error

    def _file(self) -> pq.ParquetFile:
        try:
            # With a buffer a column is read as it is decoded; without one, a row group's whole column at once.
            return pq.ParquetFile(self.path, page_checksum_verification=True, buffer_size=_READ_BUFFER)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputRefused(self._damage(error)) from error

    def _damage(self, error: Exception) -> Fault:
        hint = "copy or export the file again"
        return Fault("E3006", "a whole Parquet file", str(error).splitlines()[0], hint, self.name)


def _batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, a few row groups at a time: what was read of a file is kept until its iterator ends."""
    groups, rows = [], 0
    for group in range(file.num_row_groups):
        groups.append(group)
        rows += file.metadata.row_group(group).num_rows
        if rows >= _KEPT_ROWS or group == file.num_row_groups - 1:
            yield from file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns)
            groups, rows = [], 0

"""Samples of a long log, normalised and coded, become one wide Parquet file: one pass in order of time, out of core.

Samples that came in order of time are read as they lie; others are sorted first by DuckDB, held to a memory limit. In
that order all samples of a row lie together, so rows, repeats and contradictions are found block by block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

#: One sample: coded asset and tag, UTC microseconds, value (null where none, NaN where bad), text of categories, origin.
SCHEMA = pa.schema(
    [("asset", pa.int32()), ("tag", pa.int32()), ("time", pa.int64()), ("value", pa.float64()),
     ("text", pa.string()), ("file", pa.int32()), ("row", pa.int64())]
)  # fmt: skip
_BLOCK = 1 << 18
#: Cells of the wide form made at once: a log of very many tags is cut into fewer rows.
_MOST_CELLS = 1 << 22
_MOST_CONTRADICTIONS = 100


@dataclass(frozen=True)
class Contradiction:
    """Two values of ``tag`` (its code) at ``time_us``; ``row`` of ``file`` holds the later one."""

    tag: int
    time_us: int
    file: int
    row: int


@dataclass
class Pivot:
    """How samples become rows, and what was met: ``tags`` and ``assets`` are names by code.

    ``texts`` are the tags kept as text, ``label`` the tag whose largest value counts, ``period`` the bin in microseconds
    or None. After ``write``: ``duplicates`` counts samples that repeat asset, tag and time (those of the label aside),
    ``contradictions`` holds the first hundred in the order of files and rows.
    """

    tags: Sequence[str]
    assets: Sequence[str]
    texts: frozenset[str] = frozenset()
    label: str | None = None
    period: int | None = None
    duplicates: int = 0
    _found: list[NDArray[np.int64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.order = sorted(range(len(self.tags)), key=lambda code: self.tags[code])
        self._place = np.argsort(np.array(self.order, dtype=np.int64))
        self._label = self.tags.index(self.label) if self.label in self.tags else -1

    @property
    def contradictions(self) -> list[Contradiction]:
        """The first hundred contradictions, by file and row."""
        return [Contradiction(*(int(v) for v in one)) for one in _first(self._found)]

    def write(self, parts: Sequence[Path], ordered: bool, target: Path, silent: Sequence[str] = ()) -> None:
        """Write the samples of ``parts`` as wide Parquet: time, asset, tags by name as t0, t1, …, then empty ``silent`` ones."""
        names = [*(self.tags[c] for c in self.order), *silent]
        kinds = [pa.string() if n in self.texts else pa.float64() for n in names]
        columns = [("time", pa.int64()), ("asset", pa.string()), *((f"t{i}", k) for i, k in enumerate(kinds))]
        schema = pa.schema(columns)
        with pq.ParquetWriter(
            target, schema, compression="none", use_dictionary=["asset"], write_statistics=False
        ) as out:
            for block in self._whole_groups(self._blocks(parts, ordered, target.parent)):
                for made in self._rows(block):
                    empty = [pa.nulls(len(made[0]), k) for k in kinds[len(self.order) :]]
                    out.write_table(pa.Table.from_arrays([*made, *empty], schema=schema))

    def _blocks(self, parts: Sequence[Path], ordered: bool, scratch: Path) -> Iterator[pa.Table]:
        if ordered:
            for part in parts:
                with pq.ParquetFile(part) as file:
                    # iter_batches keeps what it has read of all row groups; the writer made these small.
                    for group in range(file.num_row_groups):
                        table = file.read_row_group(group)
                        yield from (table.slice(low, _BLOCK) for low in range(0, len(table), _BLOCK))
            return
        rank = np.argsort(np.argsort(np.array(self.assets, dtype=object))).tolist()
        with connect(scratch) as database:
            database.read_parquet([str(p) for p in parts]).create_view("long")
            query = "SELECT * FROM long ORDER BY list_extract(?::INTEGER[], asset + 1), time"
            for batch in database.sql(query, params=[rank]).to_arrow_reader(_BLOCK):
                yield pa.Table.from_batches([batch])

    def _whole_groups(self, blocks: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The same samples, in blocks that end with the last sample of a row."""
        held: list[pa.Table] = []
        for block in blocks:
            starts = self._starts(block)
            # Samples that go on with the row held before, and the last row, which the next block may go on with.
            joined = pa.concat_tables([*held, block])
            cut = int(starts[-1]) + sum(map(len, held))
            if len(starts) == 1 and held and not self._breaks(held[-1], block):
                held.append(block)
                continue
            if cut:
                yield joined.slice(0, cut)
            held = [joined.slice(cut).combine_chunks()]
        if held:
            yield pa.concat_tables(held)

    def _breaks(self, before: pa.Table, after: pa.Table) -> bool:
        return len(self._starts(pa.concat_tables([before.slice(len(before) - 1), after.slice(0, 1)]))) > 1

    def _times(self, block: pa.Table) -> NDArray[np.int64]:
        time = np.asarray(block["time"].to_numpy(), np.int64)
        return time if self.period is None else -(-time // self.period) * self.period

    def _starts(self, block: pa.Table) -> NDArray[np.int64]:
        """The samples that begin another row: their asset or time is not that of the sample before."""
        time, asset = self._times(block), block["asset"].to_numpy()
        return np.flatnonzero(np.r_[True, (time[1:] != time[:-1]) | (asset[1:] != asset[:-1])])

    def _rows(self, block: pa.Table) -> Iterator[list[pa.Array]]:
        """Wide columns of the rows of ``block``, piece by piece."""
        starts = self._starts(block)
        most = max(_MOST_CELLS // max(len(self.tags), 1), 1)
        bounds = np.r_[starts, len(block)]
        for low in range(0, len(starts), most):
            here = bounds[low : low + most + 1]
            piece = block.slice(int(here[0]), int(here[-1] - here[0])).combine_chunks()
            yield self._piece(piece, here[:-1] - here[0])

    def _piece(self, piece: pa.Table, starts: NDArray[np.int64]) -> list[pa.Array]:
        group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(piece)]))
        width, count = len(self.tags), len(starts)
        cell = self._place[piece["tag"].to_numpy()] * count + group
        chosen: NDArray[np.int64] | slice = slice(None)
        if np.bincount(cell, minlength=1).max() > 1:
            chosen = self._settled(piece, cell)
        cell, value = cell[chosen], piece["value"]
        values, known = np.full(width * count, np.nan), np.zeros(width * count, dtype=bool)
        values[cell] = value.to_numpy()[chosen]
        known[cell] = value.is_valid().to_numpy()[chosen]
        columns = []
        for i, code in enumerate(self.order):
            own = slice(i * count, (i + 1) * count)
            if self.tags[code] in self.texts:
                mine = (cell >= own.start) & (cell < own.stop)
                texts = np.full(count, None, dtype=object)
                texts[cell[mine] - own.start] = np.asarray(piece["text"].to_numpy())[chosen][mine]
                columns.append(pa.array(texts, pa.string()))
            else:
                columns.append(pa.array(values[own], mask=~known[own]))
        asset = np.array(self.assets, dtype=object)[piece["asset"].to_numpy()[starts]]
        return [pa.array(self._times(piece)[starts]), pa.array(asset, pa.string()), *columns]

    def _settled(self, piece: pa.Table, cell: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample of each cell that counts: its last one with a value, the label's largest; repeats are looked at."""
        file, row, time, tag = (piece[n].to_numpy() for n in ("file", "row", "time", "tag"))
        value, there = piece["value"].to_numpy(), piece["value"].is_valid().to_numpy()
        sort = np.lexsort((row, file, time, cell))
        again = (np.diff(cell[sort]) == 0) & (np.diff(time[sort]) == 0) & (tag[sort[1:]] != self._label)
        self.duplicates += int(again.sum())
        if again.any():
            self._note(piece, sort, again, there)
        if self.texts:
            there = there | piece["text"].is_valid().to_numpy()
        size = np.where((tag == self._label) & there, value, 0.0)
        last = np.lexsort((row, file, time, size, there, cell))
        ends = np.flatnonzero(np.r_[np.diff(cell[last]) != 0, True])
        return np.asarray(last[ends])

    def _note(
        self, piece: pa.Table, sort: NDArray[np.int64], again: NDArray[np.bool_], there: NDArray[np.bool_]
    ) -> None:
        """Contradictions among samples that repeat asset, tag and time: the sample that is last in files and rows."""
        value = piece["value"].to_numpy()
        before, now = sort[:-1], sort[1:]
        differs = (there[before] != there[now]) | (
            (value[before] != value[now]) & ~np.isnan(value[before] + value[now])
        )
        differs |= np.isnan(value[before]) != np.isnan(value[now])
        if self.texts:
            text = np.asarray(piece["text"].to_numpy(), dtype=object)
            both = piece["text"].is_valid().to_numpy()[now]
            differs = np.where(both, text[before] != text[now], differs)
        if not (differs & again).any():
            return
        first = np.flatnonzero(np.r_[True, ~again])
        odd = np.logical_or.reduceat(np.r_[False, differs & again], first)
        ends = sort[np.r_[first[1:] - 1, len(sort) - 1]][odd]
        found = np.column_stack([piece[n].to_numpy()[ends].astype(np.int64) for n in ("tag", "time", "file", "row")])
        self._found = [_first([*self._found, found])]


def _first(found: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    every = np.concatenate([np.empty((0, 4), np.int64), *found])
    return every[np.lexsort((every[:, 3], every[:, 2]))[:_MOST_CONTRADICTIONS]]


def connect(scratch: Path) -> duckdb.DuckDBPyConnection:
    """A database that spills into ``scratch`` beyond 128 MB."""
    config = {"memory_limit": "128MB", "threads": 2, "temp_directory": str(scratch / "spill")}
    database = duckdb.connect(config=config)
    database.execute("SET preserve_insertion_order = false")
    return database

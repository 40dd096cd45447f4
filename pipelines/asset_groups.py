"""The rows of a log by asset or class of assets, on disk: one pass over the log, then one group after the other.

Memory holds one chunk of rows at a time, however many assets and rows there are.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly.config import AssetSettings, LogSettings
from anomaly.data.contract import LogChunk, LogContract
from anomaly.data.readers import PlantLog
from anomaly.errors import Fault, UsageError
from anomaly.fitting import Progress, silent

_CHUNK_ROWS = 65536


#: Group → number → offset and size of a piece in its file.
Places = dict[str, dict[int, tuple[int, int]]]


class Spool:
    """Tables in one file, found again by number and group; a context manager that removes the file.

    With the ``places`` of another spool its file is read, and left where it is.
    """

    def __init__(self, path: Path, places: Places | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._own = path, places is None
        self._stream = path.open("w+b" if self._own else "rb")
        self.places: Places = {} if places is None else places
        self.numbers = 0

    def add(self, number: int, group: str, table: pa.Table) -> None:
        """Keep a table as piece ``number`` (ascending from 0) of a group."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        held = sink.getvalue()
        self.places.setdefault(group, {})[number] = (self._stream.seek(0, 2), held.size)
        self._stream.write(held)
        self._stream.flush()
        self.numbers = max(self.numbers, number + 1)

    def pieces(self, group: str) -> Iterator[tuple[int, pa.Table]]:
        """The pieces of one group with their numbers, in order."""
        for number, place in self.places.get(group, {}).items():
            yield number, self._read(place)

    def across(self, number: int) -> list[pa.Table]:
        """Piece ``number`` of every group that has one."""
        return [self._read(own[number]) for own in self.places.values() if number in own]

    def _read(self, place: tuple[int, int]) -> pa.Table:
        self._stream.seek(place[0])
        with pa.ipc.open_stream(self._stream.read(place[1])) as reader:
            return reader.read_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if self._own:
            self.path.unlink(missing_ok=True)


@dataclass
class Group:
    """One asset or class: what its rows hold. ``seen (C,)`` says which tags have a value, ``labels`` counts row kinds."""

    name: str
    assets: dict[str, None] = field(default_factory=dict)
    rows: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    seen: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    def add(self, chunk: LogChunk) -> None:
        """Count the next rows."""
        self.assets |= dict.fromkeys(str(a) for a in dict.fromkeys(chunk.asset))
        self.rows += len(chunk)
        self.labels.update(chunk.label.tolist())
        has = np.asarray(~np.isnan(chunk.values).all(axis=0))
        self.seen = np.logical_or(self.seen, has) if len(self.seen) else has


def class_of(asset: str, classes: dict[str, Any]) -> str | None:
    """The first class one of whose patterns fits the asset's name.

    >>> class_of("P-101", {"fan": ["F-*"], "pump": ["P-1*", "P-2*"]})
    'pump'
    """
    return next((c for c, own in classes.items() if any(fnmatch.fnmatchcase(asset, p) for p in own)), None)


class Grouping:
    """Says of each asset which group it is in; None where it is in no class.

    With a class column, an asset's class is what the column says on its rows. Raises UsageError E2001 where it says two
    things of one asset.
    """

    def __init__(self, settings: AssetSettings, contract: LogContract) -> None:
        self._settings, self._told = settings, dict[str, str]()
        column = settings.class_column if settings.models == "class" else None
        self._column = contract.categories.index(column) if column in contract.categories else None

    def groups(self, chunk: LogChunk) -> dict[str, str | None]:
        """Asset → group, for the assets in ``chunk``."""
        assets = [str(a) for a in dict.fromkeys(chunk.asset)]
        if self._settings.models == "asset":
            return dict(zip(assets, assets, strict=True))
        if self._column is not None:
            for asset in assets:
                self._learn(asset, chunk.categories[chunk.asset == asset, self._column])
        return {a: self._told.get(a) or class_of(a, self._settings.classes) for a in assets}

    def _learn(self, asset: str, words: NDArray[np.object_]) -> None:
        said = {str(w) for w in dict.fromkeys(words) if w} | ({self._told[asset]} if asset in self._told else set())
        if len(said) > 1:
            found = f"{asset}: {', '.join(sorted(said))}"
            raise UsageError(Fault("E2001", "one class for each asset", found, column=self._settings.class_column))
        if said:
            self._told[asset] = said.pop()


def reading(log: LogSettings, assets: AssetSettings) -> LogSettings:
    """How to read the log so that the class column comes with it."""
    if assets.models != "class" or not assets.class_column or assets.class_column in log.categories:
        return log
    return replace(log, categories=(*log.categories, assets.class_column))


def without_class(contract: LogContract, assets: AssetSettings) -> LogContract:
    """The contract of the models: the class column is not learned from, and a log to score may have it or not."""
    column = assets.class_column if assets.models == "class" else None
    if column is None or column not in contract.categories:
        return contract
    kept = tuple(c for c in contract.categories if c != column)
    return replace(contract, categories=kept, left_out=(*contract.left_out, (column, "class of the asset")))


def spool_log(
    log: PlantLog, assets: AssetSettings, spool: Spool, progress: Progress = silent
) -> tuple[dict[str, Group], list[str]]:
    """Put the rows of ``log`` into ``spool`` by group; gives the groups, by name, and the assets without one."""
    grouping, groups, none = Grouping(assets, log.contract), dict[str, Group](), dict[str, None]()
    done = 0
    for number, chunk in enumerate(log.chunks(_CHUNK_ROWS)):
        where = grouping.groups(chunk)
        none |= {a: None for a, g in where.items() if g is None}
        for name in dict.fromkeys(g for g in where.values() if g is not None):
            own = chunk.take(np.isin(chunk.asset, [a for a, g in where.items() if g == name]))
            groups.setdefault(name, Group(name)).add(own)
            spool.add(number, name, to_table(own))
        done += len(chunk)
        progress("sorting by asset", done, log.rows)
    return dict(sorted(groups.items())), list(none)


def to_table(chunk: LogChunk) -> pa.Table:
    """A chunk as columns; ``from_table`` undoes it."""
    columns: dict[str, Any] = {name: getattr(chunk, name) for name in ("row", "time", "label")}
    columns["asset"] = pa.array(chunk.asset, pa.string())
    for name in ("values", "bad"):
        held = getattr(chunk, name)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(held.ravel()), held.shape[1])
    for k in range(chunk.categories.shape[1]):
        columns[f"category {k}"] = pa.array(chunk.categories[:, k], pa.string())
    return pa.table(columns)


def from_table(table: pa.Table, contract: LogContract, wanted: LogContract) -> LogChunk:
    """The chunk of a log read under ``contract`` with the tags and categories of ``wanted`` only."""
    table = table.combine_chunks()
    n = table.num_rows

    def column(name: str) -> NDArray[Any]:
        return np.asarray(table[name].to_numpy())

    def matrix(name: str) -> NDArray[Any]:
        flat = table[name].chunk(0).flatten() if n else pa.array([])
        whole = np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(n, len(contract.tags))
        return whole[:, [contract.tags.index(t) for t in wanted.tags]]

    words = [column(f"category {contract.categories.index(c)}") for c in wanted.categories]
    categories = np.column_stack(words).astype(object) if words else np.empty((n, 0), object)
    return LogChunk(
        row=column("row"), time=column("time"), asset=column("asset").astype(object), values=matrix("values"),
        categories=categories, label=column("label").astype(np.int8), bad=matrix("bad").astype(bool),
    )  # fmt: skip

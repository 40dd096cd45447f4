"""The plain HDF5 form: ``signals (N, T, C)``, ``labels (N,)``, a ``metadata`` group beside them (METHODS S1, S3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from anomaly.data.contract import NORMAL
from anomaly.data.store_blocks import RawBlock
from anomaly.data.store_files import damaged, extend, growing, new_file, open_file
from anomaly.data.store_layout import layout, open_cached
from anomaly.errors import Fault, InputRefused, UsageError

#: Windows copied at once.
_REPACKED = 4096
_COMPRESSED = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
#: A checksum of every chunk would triple the cost of reading; the digest of the file is checked when it is opened.
_PLAIN = {"fletcher32": False}


@contextmanager
def create_signals(
    path: Path, attributes: Mapping[str, Any] | None = None, *, compress: bool = False
) -> Iterator[SignalsWriter]:
    """Give a writer of signals; on a clean exit the finished file takes the place of ``path``, else nothing changes.

    ``attributes`` are kept on the ``metadata`` group: numbers, texts, or lists of them. Sensor noise hardly
    compresses; ``compress=True`` pays for quantised signals only.
    """
    with new_file(path) as file:
        file.create_group("metadata").attrs.update(_texts_as_utf8(attributes or {}))
        yield SignalsWriter(file, compress)
        file.attrs["complete"] = True


class SignalsWriter:
    """Appends blocks of windows; comes from ``create_signals``."""

    def __init__(self, file: h5py.File, compress: bool) -> None:
        self._file, self._options = file, _COMPRESSED if compress else _PLAIN

    def append(
        self,
        signals: NDArray[np.floating],
        labels: NDArray[np.integer] | None = None,
        metadata: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Add windows ``(B, T, C)`` with their ``labels (B,)`` and metadata columns ``(B, …)``.

        Every block has the same columns and shapes as the first; raises ValueError otherwise.
        """
        columns: dict[str, NDArray[Any]] = {"signals": np.asarray(signals, dtype=np.float32)}
        if labels is not None:
            columns["labels"] = np.asarray(labels)
        columns |= {f"metadata/{name}": _bytes(column) for name, column in (metadata or {}).items()}
        if "signals" not in self._file:
            for name, column in columns.items():
                growing(self._file, name, column.dtype, column.shape[1:], **self._options)
        for name, column in columns.items():
            if name not in self._file or len(column) != len(signals):
                raise ValueError(f"{name}: expected {len(signals)} rows of a column in every block, got {len(column)}")
            extend(self._file[name], column)
        if len({len(self._file[name]) for name in _column_names(self._file)}) > 1:
            raise ValueError("labels, metadata: expected the columns of the first block, got fewer")


def write_signals(
    path: Path,
    blocks: Iterable[NDArray[np.floating]],
    labels: NDArray[np.integer] | None = None,
    metadata: Mapping[str, NDArray[Any]] | None = None,
    attributes: Mapping[str, Any] | None = None,
    *,
    compress: bool = False,
) -> None:
    """Write ``blocks`` of windows ``(B, T, C)`` as one file, with labels ``(N,)`` and metadata columns ``(N, …)``.

    Raises ValueError when labels or metadata have another length than all blocks together.
    """
    columns, done = dict(metadata or {}), 0
    with create_signals(path, attributes, compress=compress) as writer:
        for block in blocks:
            here = slice(done, done + len(block))
            own = {name: np.asarray(column)[here] for name, column in columns.items()}
            writer.append(block, None if labels is None else np.asarray(labels)[here], own)
            done += len(block)
        for name, column in (("labels", labels), *columns.items()):
            if column is not None and len(column) != done:
                raise ValueError(f"{name}: expected {done} rows as in the signals, got {len(column)}")


class SignalsStore:
    """A file of the plain form, read lazily: slicing reads only the chunks it touches.

    ``signals`` is a dataset handle ``(N, T, C)``; ``labels (N,)`` and the metadata columns are handles too and may be
    absent. Files of other origin are opened after a look by a child process; links to other places are refused.
    """

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.path, self._file = path, file
        if not isinstance(file.get("signals"), h5py.Dataset) or file["signals"].ndim != 3:
            raise InputRefused(Fault("E3007", "a dataset signals (N, T, C)", "none", file=str(path)))
        self.signals: h5py.Dataset = open_cached(file, "signals")
        self.labels: h5py.Dataset | None = file.get("labels")
        if self.labels is not None and len(self.labels) != len(self.signals):
            found = f"{len(self.labels)} labels for {len(self.signals)} signals"
            raise InputRefused(Fault("E3006", "one label for each signal", found, file=str(path)))

    @classmethod
    def open(cls, path: Path, verify: bool = True) -> SignalsStore:
        """Open for reading; raises InputRefused as ``store_files.open_file``, and E3007 for another form."""
        file = open_file(Path(path), verify)
        try:
            return cls(file, Path(path))
        except InputRefused:
            file.close()
            raise
        except (OSError, RuntimeError, KeyError, TypeError) as error:
            file.close()
            raise damaged(Path(path), error) from error

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> SignalsStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def n_windows(self) -> int:
        """Windows in the file, N."""
        return len(self.signals)

    @property
    def notice(self) -> str:
        """What makes this file slow to read, and the cure; "" where nothing does."""
        return layout(self.signals).notice("signals")

    @property
    def metadata_names(self) -> tuple[str, ...]:
        """Names of the metadata columns, sorted."""
        group = self._file.get("metadata")
        return tuple(sorted(k for k, v in group.items() if isinstance(v, h5py.Dataset))) if group is not None else ()

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the metadata group."""
        return dict(self._file["metadata"].attrs) if "metadata" in self._file else {}

    def metadata(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) of a metadata column; fixed-width texts come back as str objects."""
        column = self._file["metadata"][name][start:stop]
        if column.dtype.kind == "S":
            return np.array([text.decode("utf-8") for text in column.ravel()], dtype=object).reshape(column.shape)
        return column

    def blocks(self, size: int = 4096) -> Iterator[NDArray[np.float32]]:
        """Signals ``(B, T, C)`` float32, at most ``size`` windows at a time; the last block may be smaller."""
        for start in range(0, len(self.signals), size):
            try:
                yield self.signals[start : start + size].astype(np.float32, copy=False)
            except (OSError, RuntimeError) as error:
                raise damaged(self.path, error) from error

    def raw_blocks(self, size: int = 8192, start: int = 0, trail: int = 0) -> Iterator[RawBlock]:
        """All windows from number ``start`` on, at most ``size`` at a time; nothing was held, so NaN is missing, and nothing
        lies before a window, whatever ``trail``.

        With labels, normal windows may be learned from, else all.
        """
        total, (rows, tags) = len(self.signals), self.signals.shape[1:]
        for low in range(start - start % size, total, size):
            first, last = max(low, start), min(low + size, total)
            try:
                values = self.signals[first:last].astype(np.float32, copy=False)
                kind = np.zeros(last - first, np.int8) if self.labels is None else self._kinds(first, last)
            except (OSError, RuntimeError) as error:
                raise damaged(self.path, error) from error
            number = np.arange(first, last)
            none = np.empty(((last - first) * rows, 0), np.int32)
            flat, at = values.reshape(-1, tags), rows * (number - first)
            yield RawBlock(first, first, "", number, kind, kind == NORMAL, flat, None, none, at, rows)

    def learnable(self, low: int, high: int) -> NDArray[np.bool_]:
        """Which of the windows [low, high) may be learned from: normal ones, or all without labels."""
        return self._kinds(low, high) == NORMAL if self.labels is not None else np.ones(high - low, bool)

    def beside(self) -> dict[str, h5py.Dataset]:
        """What lies beside the signals, one row per window: ``labels`` and ``metadata/NAME``."""
        found = {} if self.labels is None else {"labels": self.labels}
        found |= {f"metadata/{name}": self._file["metadata"][name] for name in self.metadata_names}
        return {name: dataset for name, dataset in found.items() if len(dataset) == len(self.signals)}

    def beside_attributes(self) -> dict[str, dict[str, Any]]:
        """Attributes of ``labels``, ``metadata`` and its columns, by name."""
        names = [name for name in ("labels", "metadata", *self.beside()) if name in self._file]
        return {name: dict(self._file[name].attrs) for name in dict.fromkeys(names)}

    def _kinds(self, first: int, last: int) -> NDArray[np.int8]:
        labels = np.asarray(self.labels[first:last])  # type: ignore[index]
        return labels.reshape(len(labels), -1).max(axis=1).astype(np.int8)


def repack_signals(source: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """Copy a file of the plain form into chunks of whole rows, block by block; what was slow about it, or "".

    Signals, labels, metadata columns and attributes are kept. Raises InputRefused as ``SignalsStore.open``, UsageError
    E2003 where ``target`` is the source or a folder; on an error ``target`` is as it was.
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(Fault("E2003", "a new path for the copy", "the file itself", file=str(target)))
    with SignalsStore.open(source) as store, create_signals(target, store.attributes) as writer:
        done, total = 0, store.n_windows
        for block in store.blocks(_REPACKED):
            here = slice(done, done + len(block))
            columns = {name: store.metadata(name, here.start, here.stop) for name in store.metadata_names}
            writer.append(block, None if store.labels is None else store.labels[here], columns)
            done += len(block)
            if progress is not None:
                progress(done, total)
        return store.notice


def _column_names(file: h5py.File) -> list[str]:
    plain = [name for name in ("signals", "labels") if name in file]
    return plain + [f"metadata/{name}" for name in file["metadata"]]


def _bytes(column: NDArray[Any]) -> NDArray[Any]:
    """Texts as fixed-width UTF-8: HDF5 keeps texts of free width outside the datasets, where no checksum covers them."""
    column = np.asarray(column)
    if column.dtype.kind not in "OU":
        return column
    return np.char.encode(column.astype(str), "utf-8")


def _texts_as_utf8(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of texts as HDF5 takes them; everything else as it is."""
    text = h5py.string_dtype("utf-8")
    return {
        name: np.array(value, dtype=text)
        if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
        else value
        for name, value in attributes.items()
    }

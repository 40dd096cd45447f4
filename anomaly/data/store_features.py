"""FEATURES.h5: what became of every window of a store, written once, block by block, and resumable (METHODS S2 to S4).

Layout: ``features (N, d)``, ``reconstruction_error``, ``energy``, ``anomaly_score``, ``outcome (N,)``, ``detector_scores (N,
D)``, ``reduced (N, m)``, ``cluster_id``, ``stability``, ``cosine``, ``novelty (N,)``, as far as they were asked for;
``labels`` and ``metadata/`` as in the store, ``signals`` copied or linked; ``/space`` the fitted reduction and modes.
Attributes: model, store, engine, library, ``complete`` last.

While it is made it is ``.NAME.part/``: every dataset has its full size from the start and no filter, so that all later
writes are plain bytes at known places, and a journal says up to where they are good. It becomes NAME by one rename.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import Fault, InputRefused, Unavailable, UsageError
from anomaly.faults import killpoint
from anomaly.files import atomic_path

FORMAT = "plant-anomaly features"
FORMAT_VERSION = 1
_CHUNK_BYTES, _MOST_CHUNK_ROWS = 1 << 20, 1 << 16
_DATA, _JOURNAL = "data.h5", "journal.npz"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass(frozen=True)
class Column:
    """One dataset ``(N, *shape)`` of ``dtype``."""

    dtype: Any
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


def part_folder(target: Path) -> Path:
    """Where ``target`` is made."""
    return target.parent / f".{target.name}.part"


def is_unfinished(target: Path) -> bool:
    """Whether a run that made ``target`` stopped after its first commit."""
    return (part_folder(target) / _JOURNAL).exists()


@dataclass
class Journal:
    """Up to where a run is good: ``stage`` and ``done`` rows of it, ``identity`` of what is made, arrays of its state."""

    identity: dict[str, Any]
    stage: str
    done: int
    arrays: dict[str, NDArray[Any]]

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        told = json.dumps({"identity": self.identity, "stage": self.stage, "done": self.done}, sort_keys=True)
        with atomic_path(folder / _JOURNAL) as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, told=np.array(told), **self.arrays)
        killpoint("features.after_journal")

    @classmethod
    def load(cls, folder: Path) -> Journal:
        """Read it; raises InputRefused E3006 where it cannot be read."""
        try:
            with np.load(folder / _JOURNAL, allow_pickle=False) as held:
                arrays = {name: held[name] for name in held.files}
            told = json.loads(str(arrays.pop("told")))
            return cls(told["identity"], str(told["stage"]), int(told["done"]), arrays)
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = "start again with --overwrite"
            raise InputRefused(Fault("E3006", "a journal that can be read", error, hint, str(folder))) from error


class FeaturesFile:
    """A features file that is being made: ``columns`` by name, ``n`` windows. Comes from ``making``."""

    def __init__(self, file: h5py.File, folder: Path, n: int) -> None:
        self._file, self.folder, self.n = file, folder, n
        self._open: dict[str, h5py.Dataset] = {}

    def add(self, name: str, column: Column) -> None:
        """A dataset of full size; nothing where it is there already."""
        if name in self._file:
            return
        rows = int(np.clip(_CHUNK_BYTES // max(column.row_bytes, 1), 1, _MOST_CHUNK_ROWS))
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((min(rows, max(self.n, 1)), *(max(length, 1) for length in column.shape)))
        # Places on disk are fixed now, and nothing is written to them before their rows come.
        made.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        made.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        space, kind = (
            h5py.h5s.create_simple((self.n, *column.shape)),
            h5py.h5t.py_create(np.dtype(column.dtype), logical=1),
        )
        with _disk(self.folder):
            h5py.h5d.create(self._file.id, name.encode(), kind, space, made, links)

    def write(self, first: int, columns: Mapping[str, NDArray[Any]]) -> None:
        """Rows from ``first`` on."""
        with _disk(self.folder):
            for name, rows in columns.items():
                if len(rows):
                    self._dataset(name)[first : first + len(rows)] = rows

    def read(self, name: str, low: int, high: int) -> NDArray[Any]:
        """Rows [low, high) as written."""
        rows: NDArray[Any] = self._dataset(name)[low:high]
        return rows

    def width(self, name: str) -> int:
        """Columns of a dataset with two axes."""
        return int(self._dataset(name).shape[1])

    def _dataset(self, name: str) -> h5py.Dataset:
        if name not in self._open:
            self._open[name] = self._file[name]
        return self._open[name]

    def attributes(self, name: str, values: Mapping[str, Any]) -> None:
        """Attributes of a group or dataset ("/" for the file)."""
        with _disk(self.folder):
            (self._file[name] if name in self._file else self._file.create_group(name)).attrs.update(values)

    def keep(self, group: str, settings: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """A small fitted part: JSON settings and arrays."""
        with _disk(self.folder):
            if group in self._file:
                del self._file[group]
            made = self._file.create_group(group)
            made.attrs["settings"] = json.dumps(settings, sort_keys=True)
            for name, array in arrays.items():
                made.create_dataset(name, data=array)

    def link(self, name: str, source: Path, target: str) -> None:
        """``name`` stands for ``target`` of the file ``source``, by a path that holds while both stay where they are."""
        if name not in self._file:
            self._file[name] = h5py.ExternalLink(
                os.path.relpath(source.resolve(), self.folder.parent.resolve()), target
            )

    def commit(self, journal: Journal) -> None:
        """What was written so far is on disk, and the journal says so."""
        with _disk(self.folder):
            self._file.flush()
            handle = os.open(self.folder / _DATA, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        killpoint("features.before_journal")
        journal.save(self.folder)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """A full disk is ours to say; HDF5 wraps the number in its own words."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        if number in _FULL or any(f"errno = {code}" in str(error) for code in _FULL):
            hint = "free space, then run again with --resume; what was committed is kept"
            code = number if number in _FULL else errno.ENOSPC
            raise Unavailable(
                Fault("E5002", "a disk with room", os.strerror(code), hint, str(folder.parent))
            ) from error
        raise


class Making:
    """The file while it is made: on a clean exit it becomes ``target``; else it stays where the journal left it."""

    def __init__(self, target: Path, n: int, identity: dict[str, Any], resume: bool) -> None:
        self.target, self.folder = target, part_folder(target)
        self.journal: Journal | None = None
        if resume and is_unfinished(target):
            self.journal = Journal.load(self.folder)
            _check_identity(self.journal.identity, identity, target)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        with _disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            # The oldest file version: it keeps no mark of an open writer, which a kill would leave standing.
            mode = "r+" if self.journal else "w"
            self._file = h5py.File(self.folder / _DATA, mode, libver="earliest", rdcc_nbytes=0)
        self.file = FeaturesFile(self._file, self.folder, n)

    def __enter__(self) -> Making:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with suppress(OSError, RuntimeError):  # the disk is full: what the journal names is on it
                self._file.close()
            if not (self.folder / _JOURNAL).exists():
                shutil.rmtree(self.folder, ignore_errors=True)
            return
        with _disk(self.folder):
            self._file.attrs["complete"] = True
            self._file.close()
            _sync(self.folder / _DATA)
            killpoint("features.before_rename")
            (self.folder / _DATA).replace(self.target)
            _sync(self.target.parent)
        killpoint("features.after_rename")
        shutil.rmtree(self.folder, ignore_errors=True)


def making(target: Path, n: int, identity: dict[str, Any], *, resume: bool = False, overwrite: bool = False) -> Making:
    """Begin ``target`` or go on with it.

    Raises UsageError E2003 where it exists, or an unfinished run of it does, and neither ``resume`` nor ``overwrite`` was
    said; InputRefused E3402 where the unfinished run was of another store, model or options; Unavailable E5002 without
    room on the disk.
    """
    target = Path(target)
    if target.is_dir():
        raise UsageError(Fault("E2003", "the path of a file", "a folder", file=str(target)))
    hint = "add --overwrite to make it again"
    if target.exists() and not overwrite:
        raise UsageError(Fault("E2003", "an output that does not exist", "a file", hint, str(target)))
    if is_unfinished(target) and not (resume or overwrite):
        hint = "add --resume to go on with it, or --overwrite to start again"
        raise UsageError(Fault("E2003", "an output that was not begun", "an unfinished run", hint, str(target)))
    return Making(target, n, identity, resume and not overwrite)


def check_room(target: Path, needed: int) -> None:
    """Raises Unavailable E5002 before anything is written where the disk has less than ``needed`` bytes left."""
    folder = next(p for p in (target.parent, *target.resolve().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        found, hint = f"{free / 1e9:.1f} GB", "free space or choose another disk; nothing was written"
        raise Unavailable(Fault("E5002", f"{needed / 1e9:.1f} GB of room", found, hint, str(target)))


def is_complete(target: Path, identity: dict[str, Any]) -> bool:
    """Whether ``target`` is a finished features file made of just this."""
    try:
        with h5py.File(target, "r") as file:
            return bool(file.attrs.get("complete", False)) and json.loads(file.attrs["identity"]) == identity
    except (OSError, KeyError, ValueError):
        return False


def _check_identity(found: dict[str, Any], wanted: dict[str, Any], target: Path) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            hint = "add --overwrite to start again"
            expected = f"{name} {found.get(name)}, as the unfinished run has"
            raise InputRefused(Fault("E3402", expected, value, hint, str(target)))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Features:
    """A finished features file, read lazily; ``with Features.open(path) as features``."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self._file, self.path = file, path
        self.n = len(file["features"])

    @classmethod
    def open(cls, path: Path) -> Features:
        """Raises InputRefused E3001, E3006, E3007, and E3401 for a file that was not finished."""
        from anomaly.data.store_files import damaged, open_file

        file = open_file(Path(path))
        try:
            if file.attrs.get("format") != FORMAT:
                raise InputRefused(Fault("E3007", "a features file", "another HDF5 file", "make one", str(path)))
            if not file.attrs.get("complete", False):
                raise InputRefused(Fault("E3401", "a features file that was finished", "no mark", file=str(path)))
            return cls(file, Path(path))
        except InputRefused:
            file.close()
            raise
        except (OSError, RuntimeError, KeyError) as error:
            file.close()
            raise damaged(Path(path), error) from error

    def __enter__(self) -> Features:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def names(self) -> tuple[str, ...]:
        """Datasets at the top, sorted."""
        return tuple(sorted(k for k, v in self._file.items() if isinstance(v, h5py.Dataset)))

    def column(self, name: str) -> h5py.Dataset:
        """A handle to a dataset; slicing reads only what is asked for."""
        return self._file[name]

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the file."""
        return dict(self._file.attrs)

    def kept(self, group: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        """The small fitted part ``group``, None where there is none."""
        if group not in self._file:
            return None
        held = self._file[group]
        return json.loads(held.attrs["settings"]), {name: held[name][()] for name in held}

"""Files appear whole or not at all: temporary name, fsync, rename, fsync of the folder; and digests."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anomaly.errors import Fault, Unavailable
from anomaly.faults import killpoint

#: Our own leftovers after a kill carry this and the number of their process, so that a later run may sweep them.
TEMPORARY = ".anomaly-tmp-"
#: What this process is writing now. A container starts its processes with the same numbers every time, so the number
#: alone does not tell our own work from what a killed run left.
_LIVE = set[str]()
#: A temporary this old is nobody's work, whatever process has its number by now.
_STALE_S = 7 * 86400
#: What a disk says that is full, read-only or not ours.
_DISK = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM})
#: How often a folder is put in place while other processes do the same.
_TRIES = 20


def sha256(path: Path, *, block: int = 1 << 20) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while data := stream.read(block):
            digest.update(data)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, name: str) -> None:
    """Remove temporaries of ``name`` that a killed run of ours left in ``folder``; those being written now stay."""
    for leftover in folder.glob(f".{glob.escape(name)}{TEMPORARY}*"):
        if _being_written(leftover):
            continue
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _being_written(temporary: Path) -> bool:
    """Whether a process that still runs has this one open, as far as its number and its age tell."""
    number = temporary.name.rpartition(TEMPORARY)[2].partition("-")[0]
    if not number.isdecimal():
        return False
    if int(number) == os.getpid():
        return temporary.name in _LIVE
    try:
        os.kill(int(number), 0)
        return time.time() - temporary.stat().st_mtime < _STALE_S
    except PermissionError:
        return True
    except OSError:
        return False


def _named_beside(target: Path) -> Path:
    return target.parent / f".{target.name}{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}"


@contextmanager
def beside(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """A path of this process alone beside ``target``, not there yet or a new ``folder``, which is removed in the end.

    What killed runs left for ``target`` is swept. A full or read-only disk raises ``Unavailable`` (E5002).
    """
    temporary = _named_beside(target)
    _LIVE.add(temporary.name)
    try:
        with _disk_faults(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep(target.parent, target.name)
            if folder:
                temporary.mkdir()
        yield temporary
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        _LIVE.discard(temporary.name)


@contextmanager
def atomic_path(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``target``; on a clean exit it becomes ``target`` in one rename.

    With ``folder=True`` the temporary path is a new, empty folder; an existing target folder is replaced.
    On an exception the temporary is removed and ``target`` is as it was. A full or read-only disk raises
    ``Unavailable`` (E5002).
    """
    target = Path(target)
    with beside(target, folder=folder) as temporary, _disk_faults(target, _DISK):
        yield temporary
        _publish(temporary, target)


def _publish(temporary: Path, target: Path) -> None:
    for file in sorted(temporary.rglob("*")) if temporary.is_dir() else [temporary]:
        if file.is_file():
            _sync(file)
    if temporary.is_dir():
        _sync(temporary)
    killpoint("files.before_rename")
    if temporary.is_dir():
        _replace_folder(temporary, target)
    else:
        temporary.replace(target)
    _sync(target.parent)
    killpoint("files.after_rename")


def _replace_folder(temporary: Path, target: Path) -> None:
    """A folder cannot be renamed over another: move the old one aside first, then remove it.

    Another process may do the same at this moment, so each step is tried again; the last to come stays.
    """
    for _ in range(_TRIES):
        old = _named_beside(target)
        with suppress(FileNotFoundError):
            target.replace(old)
        try:
            temporary.replace(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                with suppress(FileNotFoundError):
                    old.replace(target)
                raise
        else:
            shutil.rmtree(old, ignore_errors=True)
            return
        shutil.rmtree(old, ignore_errors=True)
    raise Unavailable(Fault("E5001", "one writer", "others replace it all the time", "run again", str(target)))


@contextmanager
def _disk_faults(target: Path, numbers: Container[int] | None = None) -> Iterator[None]:
    """Errors of the operating system (those with these ``numbers``, else all) as E5002."""
    try:
        yield
    except OSError as error:
        if numbers is not None and error.errno not in numbers:
            raise
        hint = "free space or choose another folder; nothing was written, running again is safe"
        fault = Fault("E5002", "a writable disk with room", error.strerror or error, hint, str(target))
        raise Unavailable(fault) from error

"""Files appear whole or not at all: temporary name, fsync, rename, fsync of the folder; and digests."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anomaly.errors import Fault, Unavailable
from anomaly.faults import killpoint

#: Our own leftovers after a kill carry this in their names, so that a later run may sweep them.
TEMPORARY = ".anomaly-tmp-"


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
    """Remove temporaries of ``name`` that a killed run of ours left in ``folder``."""
    for leftover in folder.glob(f".{name}{TEMPORARY}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


@contextmanager
def atomic_path(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``target``; on a clean exit it becomes ``target`` in one rename.

    With ``folder=True`` the temporary path is a new, empty folder; an existing target folder is replaced.
    On an exception the temporary is removed and ``target`` is as it was. A full or read-only disk raises
    ``Unavailable`` (E5002).
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent, target.name)
    except OSError as error:
        raise _disk_fault(error, target) from error
    temporary = target.parent / f".{target.name}{TEMPORARY}{uuid.uuid4().hex[:8]}"
    try:
        if folder:
            temporary.mkdir()
        yield temporary
        _publish(temporary, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM):
            raise _disk_fault(error, target) from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _publish(temporary: Path, target: Path) -> None:
    for file in sorted(temporary.rglob("*")) if temporary.is_dir() else [temporary]:
        if file.is_file():
            _sync(file)
    if temporary.is_dir():
        _sync(temporary)
    killpoint("files.before_rename")
    if temporary.is_dir() and target.exists():
        _replace_folder(temporary, target)
    else:
        temporary.replace(target)
    _sync(target.parent)
    killpoint("files.after_rename")


def _replace_folder(temporary: Path, target: Path) -> None:
    """A folder cannot be renamed over another: move the old one aside first, then remove it."""
    old = target.parent / f".{target.name}{TEMPORARY}old-{uuid.uuid4().hex[:8]}"
    target.replace(old)
    temporary.replace(target)
    shutil.rmtree(old)


def _disk_fault(error: OSError, target: Path) -> Unavailable:
    hint = "free space or choose another folder; nothing was written, running again is safe"
    return Unavailable(Fault("E5002", "a writable disk with room", error.strerror or error, hint, str(target)))

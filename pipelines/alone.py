"""One process at a time in a folder of the state: a second watch or a second run of one job is refused."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anomaly.errors import Fault, Unavailable

#: The file that is locked; the lock of a killed process is gone with it.
LOCK = ".lock"


@contextmanager
def alone(place: Path, what: str, cure: str) -> Iterator[None]:
    """Hold the folder ``place`` for this process; the folder and its lock's file are made, the file is removed again.

    Raises Unavailable E5001 (expected ``what``, hint ``cure``) where another process holds it, E5002 where it cannot
    be written.
    """
    try:
        handle = _opened(place / LOCK)
    except OSError as error:
        raise Unavailable(Fault("E5002", "a folder we can write", error.strerror or error, file=str(place))) from error
    if handle is None:
        raise Unavailable(Fault("E5001", what, "another one is running", cure, str(place)))
    try:
        yield
    finally:
        (place / LOCK).unlink(missing_ok=True)  # before the lock goes: whoever waits sees that its file is no more
        os.close(handle)


def _opened(path: Path) -> int | None:
    """The locked file, or nothing where another process holds it. One that was removed meanwhile is no lock."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue  # the folder went with its last holder, between the two lines
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(handle, path):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        os.close(handle)


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False

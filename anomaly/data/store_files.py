"""HDF5 files that appear whole, prove their bytes and are opened with care.

A file of ours starts with a block of 512 bytes (HDF5 calls it the user block) that holds the size and SHA-256 of
everything after it, so that damage is found before HDF5 parses one byte (RELIABILITY §0 facts 2, 3, 5, 6; §2.4).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from anomaly.data import store_probe
from anomaly.data.store_layout import require_filters
from anomaly.errors import Fault, InputRefused, UsageError
from anomaly.faults import killpoint
from anomaly.files import atomic_path, sha256

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_BLOCK = 512
_MAGIC = b"anomaly store, sha256 and size of what follows this block\n"
_CHUNK_BYTES = 256 << 10
_MOST_CHUNK_ROWS = 8192
_HASH_BLOCK = 1 << 20

#: Seconds that a look at a foreign file may take.
PROBE_SECONDS = 30.0


@contextmanager
def new_file(target: Path) -> Iterator[h5py.File]:
    """An empty HDF5 file that is sealed and takes the place of ``target`` on a clean exit, and vanishes on an error.

    Raises UsageError E2003 where a folder is in the way, Unavailable E5002 on a full or read-only disk.
    """
    target = Path(target)
    if target.is_dir():
        raise UsageError(Fault("E2003", "the path of a file", "a folder", file=str(target)))
    with atomic_path(target) as temporary:
        with h5py.File(temporary, "x", userblock_size=_BLOCK) as file:
            yield file
        seal(temporary)
        killpoint("store.before_publish")


def seal(path: Path) -> None:
    """Write size and digest of all that follows into the leading block of ``path``."""
    size, digest = _body(path)
    with path.open("r+b") as stream:
        stream.write((_MAGIC + f"{digest} {size}\n".encode()).ljust(_BLOCK, b"\0"))


def _body(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        stream.seek(_BLOCK)
        while data := stream.read(_HASH_BLOCK):
            digest.update(data)
            size += len(data)
    return size, digest.hexdigest()


def open_file(path: Path, verify: bool = True) -> h5py.File:
    """Open an HDF5 file for reading: one of ours after checking its digest, any other after a child has looked at it.

    ``verify=False`` compares only the size of a file of ours, for a file this process has just written. Raises
    InputRefused: E3001 no such file, E3002 empty, E3006 damaged, E3007 not HDF5, E3403 links or data elsewhere.
    """
    path = Path(path)
    head = _head(path)
    if head.startswith(_MAGIC):
        _check_seal(path, head, verify)
    elif SIGNATURE not in (head[: len(SIGNATURE)], head[_BLOCK : _BLOCK + len(SIGNATURE)]):
        raise InputRefused(Fault("E3007", "an HDF5 file", repr(head[:8]), "give a window store", str(path)))
    elif head[: len(SIGNATURE)] != SIGNATURE and any(head[:_BLOCK]):
        raise damaged(path, "the leading block is not as we write it")
    else:
        probe_foreign(path)
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        raise damaged(path, error) from error
    try:
        store_probe.check_file(file)
        require_filters(file)
    except InputRefused:
        file.close()
        raise
    except store_probe.Refusal as refusal:
        file.close()
        raise _refused(path, refusal.code, refusal.expected, refusal.found) from refusal
    except (OSError, RuntimeError, KeyError) as error:
        file.close()
        raise damaged(path, error) from error
    return file


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            head = stream.read(_BLOCK + len(SIGNATURE))
    except OSError as error:
        raise InputRefused(Fault("E3001", "a readable file", error.strerror or error, file=str(path))) from error
    if not head:
        raise InputRefused(Fault("E3002", "an HDF5 file", "0 bytes", file=str(path)))
    return head


def recorded_digest(path: Path, read: bool = True) -> str:
    """The digest in the leading block of a file of ours; of a foreign file, the digest of its bytes, or "" where they
    are not to be ``read``."""
    head = _head(path)
    if not head.startswith(_MAGIC):
        return sha256(path) if read else ""
    return head[len(_MAGIC) : _BLOCK].split(b" ", 1)[0].decode("ascii")


def _check_seal(path: Path, head: bytes, verify: bool) -> None:
    try:
        recorded, size = head[len(_MAGIC) : _BLOCK].split(b"\n", 1)[0].decode("ascii").split(" ")
        expected = int(size)
    except ValueError as error:
        raise damaged(path, "the leading block cannot be read") from error
    found = path.stat().st_size - _BLOCK
    if found != expected:
        raise damaged(path, f"{found} bytes of data, {expected} were written")
    if verify and _body(path)[1] != recorded:
        raise damaged(path, "its digest differs from the one written with it")


def damaged(path: Path, found: object) -> InputRefused:
    """The refusal of a truncated or altered file."""
    return _refused(path, "E3006", "a whole, undamaged file", found)


def _refused(path: Path, code: str, expected: str, found: object) -> InputRefused:
    hint = "write it again with `anomaly ingest`, or copy it again from where it came"
    return InputRefused(Fault(code, expected, found, hint, str(path)))


def probe_foreign(path: Path, seconds: float | None = None) -> None:
    """Have a child process with limits look at a file of unknown origin; raises InputRefused E3006 or E3403."""
    program = Path(store_probe.__file__)
    # -P keeps the folder of the program, whose file names are ours, off the child's import path.
    command = [sys.executable, "-P", str(program), str(path.resolve())]
    quiet = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    seconds = PROBE_SECONDS if seconds is None else seconds
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, env=quiet, check=False)
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except subprocess.TimeoutExpired as error:
        raise damaged(path, f"reading it took longer than {seconds:g} s") from error
    except ValueError:
        answer = None
    if answer is None:
        raise damaged(path, f"reading it ended with status {done.returncode}")
    if answer:
        raise _refused(path, answer["code"], answer["expected"], answer["found"])


def chunk_rows(row_bytes: int) -> int:
    """Rows of a chunk: a power of two, at most 8192 rows and about 256 KiB, well inside HDF5's cache of 1 MiB.

    >>> chunk_rows(4 * 16), chunk_rows(10**9)
    (4096, 1)
    """
    fitting = max(_CHUNK_BYTES // max(row_bytes, 1), 1)
    return int(min(_MOST_CHUNK_ROWS, 1 << (fitting.bit_length() - 1)))


def growing(group: h5py.Group, name: str, dtype: Any, shape: tuple[int, ...] = (), **options: Any) -> h5py.Dataset:
    """An empty dataset that grows by rows of ``shape``; checksummed, and NaN or -1 where nothing was written."""
    kind = np.dtype(dtype)
    rows = options.pop("rows", None) or chunk_rows(kind.itemsize * int(np.prod(shape, dtype=np.int64)))
    fill = {"f": np.nan, "i": -1}.get(kind.kind)
    options = {"fillvalue": fill, "fletcher32": True, **options}
    # A checksum needs chunks that hold something: no tags or no categories make empty ones.
    chunks = (rows, *(max(length, 1) for length in shape))
    return group.create_dataset(name, (0, *shape), maxshape=(None, *shape), dtype=kind, chunks=chunks, **options)


def extend(dataset: h5py.Dataset, rows: NDArray[Any]) -> None:
    """Append ``rows`` to a growing dataset."""
    before = len(dataset)
    dataset.resize(before + len(rows), axis=0)
    if rows.size:
        dataset[before:] = rows


def put_json(group: h5py.Group, name: str, values: Any) -> None:
    """JSON as checksummed bytes: attributes hold at most 64 KiB, a plant may have more tags than that."""
    text = np.frombuffer(json.dumps(values, sort_keys=True).encode(), dtype=np.uint8)
    extend(growing(group, name, np.uint8), text)


def get_json(group: h5py.Group, name: str) -> Any:
    """The values that ``put_json`` wrote."""
    return json.loads(bytes(group[name][:]))

"""A window store proves its bytes before HDF5 parses one; a foreign HDF5 file is tried first in a child with limits.

Flipped bits in HDF5 data without checksum read back silently wrong, flipped metadata can hang or kill the reader. Our stores
begin with a 512-byte block that holds the SHA-256 of everything after it.
"""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import h5py

from anomaly.errors import Fault, InputRefused

USER_BLOCK = 512
_MAGIC = b"plant-anomaly sealed hdf5 1\n"
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_PROBE_SECONDS = 20
_PROBE_BYTES = 2 << 30
_LARGEST_ROWS = 10**11


def _digest_after_block(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(USER_BLOCK)
        while data := stream.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def seal(path: Path) -> str:
    """Write the digest of a closed file into its user block; returns the digest."""
    digest = _digest_after_block(path)
    with path.open("r+b") as stream:
        stream.write(_MAGIC + digest.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    return digest


def check(path: Path) -> str | None:
    """Verify a file before it is opened: the digest of a sealed one, or None for a foreign one that survived the probe.

    Raises InputRefused: E3001 unreadable, E3002 empty, E3006 damaged, E3007 not HDF5, E3403 links or external data.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(USER_BLOCK + len(_SIGNATURE))
    except OSError as error:
        raise InputRefused(Fault("E3001", "a readable file", error.strerror or error, file=str(path))) from error
    if not head:
        raise InputRefused(Fault("E3002", "a window store", "an empty file", file=str(path)))
    if head.startswith(_MAGIC):
        expected, found = head[len(_MAGIC) : len(_MAGIC) + 64].decode("ascii", "replace"), _digest_after_block(path)
        if found != expected:
            hint = "the file was cut or changed after it was written; ingest the log again"
            raise InputRefused(Fault("E3006", f"sha256 {expected[:16]}…", f"{found[:16]}…", hint, str(path)))
        return found
    if not (head.startswith(_SIGNATURE) or head[USER_BLOCK:] == _SIGNATURE):
        raise InputRefused(Fault("E3007", "an HDF5 file", f"first bytes {head[:8]!r}", file=str(path)))
    _probe_in_child(path)
    return None


def _probe_in_child(path: Path) -> None:
    command = [sys.executable, "-m", "anomaly.data.store_integrity", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        found = f"no answer within {_PROBE_SECONDS} s"
        raise InputRefused(Fault("E3006", "a readable HDF5 file", found, file=str(path))) from None
    if done.returncode == 3:
        raise InputRefused(Fault("E3403", "plain datasets", done.stdout.strip(), file=str(path)))
    if done.returncode:
        last = (done.stdout or done.stderr).strip().splitlines()[-1:] or [f"reader ended with {done.returncode}"]
        raise InputRefused(Fault("E3006", "a readable HDF5 file", last[0], file=str(path)))


def forbidden(file: h5py.File) -> list[str]:
    """What in a file we do not follow: soft and external links, external storage, virtual data, impossible shapes."""
    found: list[str] = []
    todo, seen = [file["/"]], set[int]()
    while todo and len(seen) < 10_000:
        group = todo.pop()
        for name in group:
            link = group.get(name, getlink=True)
            where = f"{group.name.rstrip('/')}/{name}"
            if not isinstance(link, h5py.HardLink):
                found.append(f"{where}: {type(link).__name__}")
                continue
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if isinstance(item, h5py.Group) and address not in seen:
                seen.add(address)
                todo.append(item)
            elif isinstance(item, h5py.Dataset):
                found += [f"{where}: {fault}" for fault in _dataset_faults(item)]
    return found


def _dataset_faults(data: h5py.Dataset) -> list[str]:
    faults = []
    if data.external:
        faults.append("external storage")
    if data.is_virtual:
        faults.append("virtual dataset")
    stored = data.id.get_storage_size()
    if data.size > _LARGEST_ROWS or data.size * data.dtype.itemsize > 1000 * max(stored, 1 << 20):
        faults.append(f"declares {data.shape}, stores {stored} bytes")
    return faults


def _main(path: str) -> int:
    """In the child: look at everything once, within limits."""
    resource.setrlimit(resource.RLIMIT_AS, (_PROBE_BYTES, _PROBE_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_PROBE_SECONDS, _PROBE_SECONDS))
    try:
        with h5py.File(path, "r") as file:
            found = forbidden(file)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        print(str(error).replace("\n", " ")[:200])
        return 4
    if found:
        print("; ".join(found)[:200])
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))

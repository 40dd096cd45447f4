"""Look at an HDF5 file of unknown origin before anyone reads it; run as a program, it does so with limits on itself.

A few flipped bits can make an HDF5 reader hang or crash, and a crafted file can name other files of this machine
(RELIABILITY §0 fact 5, §2.4). So this runs in a process of its own: ``python store_probe.py PATH`` prints one JSON
object, ``{}`` when the file may be opened, else ``code``, ``expected`` and ``found``. It reads names, shapes and
chunk tables and the ends of each dataset; it follows no link and visits no level below the third.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py

_DEEPEST = 3
_MOST_OBJECTS = 200_000
#: A dataset may declare this many bytes beyond 100 times what is stored for it.
_FREE_BYTES, _EXPANSION = 64 << 20, 100
_CHUNK_BYTES = 64 << 20
_ADDRESS_SPACE, _CPU_SECONDS = 4 << 30, 60


class Refusal(Exception):
    """The file must not be opened: ``code`` as in errors.CODES, what was expected, what was found."""

    def __init__(self, code: str, expected: str, found: str) -> None:
        super().__init__(f"{code} {expected}: {found}")
        self.code, self.expected, self.found = code, expected, found


def check_file(file: h5py.File) -> None:
    """Raise Refusal where ``file`` holds a link, external or virtual data, or declares far more than it stores."""
    for name, dataset in _datasets(file, "", 1, [0]):
        check_dataset(name, dataset)


def _datasets(group: h5py.Group, path: str, level: int, seen: list[int]) -> Iterator[tuple[str, h5py.Dataset]]:
    for key in group:
        name = f"{path}/{key}"
        seen[0] += 1
        if seen[0] > _MOST_OBJECTS:
            raise Refusal("E3403", f"at most {_MOST_OBJECTS} objects", "more")
        link = group.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise Refusal("E3403", "datasets stored in the file itself", f"{type(link).__name__} {name}")
        item = group[key]
        if isinstance(item, h5py.Dataset):
            yield name, item
        elif isinstance(item, h5py.Group) and level < _DEEPEST:
            yield from _datasets(item, name, level + 1, seen)


def check_dataset(name: str, dataset: h5py.Dataset) -> None:
    """Raise Refusal where ``dataset`` takes its data from elsewhere or declares far more than it stores."""
    if dataset.external:
        raise Refusal("E3403", "datasets stored in the file itself", f"external storage in {name}")
    if dataset.is_virtual:
        raise Refusal("E3403", "datasets stored in the file itself", f"a virtual dataset {name}")
    declared, stored = dataset.size or 0, dataset.id.get_storage_size()
    declared *= dataset.dtype.itemsize
    if declared > _FREE_BYTES + _EXPANSION * stored:
        raise Refusal("E3403", "as much data as is declared", f"{name} declares {declared} bytes, stores {stored}")
    if dataset.chunks:
        chunk = dataset.dtype.itemsize
        for length in dataset.chunks:
            chunk *= length
        if chunk > _CHUNK_BYTES:
            raise Refusal("E3403", f"chunks of at most {_CHUNK_BYTES} bytes", f"{chunk} bytes in {name}")


def probe(path: Path) -> dict[str, str]:
    """Open and check ``path``; ``{}`` or the refusal as plain values."""
    try:
        with h5py.File(path, "r") as file:
            check_file(file)
            for _, dataset in _datasets(file, "", 1, [0]):
                _touch(dataset)
    except Refusal as refusal:
        return {"code": refusal.code, "expected": refusal.expected, "found": refusal.found}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        return {"code": "E3006", "expected": "a whole, undamaged HDF5 file", "found": str(error)}
    return {}


def _touch(dataset: h5py.Dataset) -> None:
    """Walk the chunk table and read both ends, so that a table that loops is met here and not by the reader."""
    if dataset.chunks and dataset.size:
        dataset.id.get_num_chunks()
    if dataset.shape and dataset.size:
        dataset[:1]
        dataset[-1:]
    elif dataset.shape == ():
        dataset[()]
    dict(dataset.attrs)


def _limit_self() -> None:
    try:
        import resource
    except ImportError:  # not on this system: the parent's time limit remains
        return
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit_self()
    sys.stdout.write(json.dumps(probe(Path(sys.argv[1]))))

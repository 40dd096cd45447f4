"""How a dataset lies on disk, and what that costs: chunks, cache, and a copy in chunks of whole rows (METHODS S1, S2).

h5py's own choice of chunks (``chunks=True``) halves every axis in turn, so a tall dataset gets chunks of very many rows
and few columns. Reading 256 rows then decompresses a whole column of chunks each time, unless all of them fit the cache.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from anomaly.errors import Fault, InputRefused, UsageError

#: The cache that a dataset gets at most; h5py's own is 1 MiB.
MOST_CACHE_BYTES = 512 << 20
_OWN_CACHE_BYTES = 1 << 20
#: A block that reads so many times its own bytes is worth a word.
_SLOW = 4.0

#: How the rows of a store may be compressed.
COMPRESSIONS = ("none", "gzip", "zstd")
_ZSTD = 32015  # its number among the registered filters of HDF5
_INSTALL = "install plant-anomaly with its extra zstd, as in pip install 'plant-anomaly[zstd]'"


@dataclass(frozen=True)
class Layout:
    """Chunks of a dataset and what reading ``rows`` neighbouring rows of it takes.

    ``chunk`` is None for a dataset without chunks. ``touched`` chunks hold the rows, ``bytes_read`` together,
    decompressed; ``bytes_wanted`` are those of the rows themselves.
    """

    chunk: tuple[int, ...] | None
    filters: str
    touched: int
    bytes_read: int
    bytes_wanted: int

    @property
    def amplification(self) -> float:
        """Bytes that are read for each byte that is wanted, when nothing is cached."""
        return self.bytes_read / max(self.bytes_wanted, 1)

    @property
    def cached(self) -> bool:
        """Whether the chunks of one block fit the cache that ``open_cached`` gives."""
        return self.bytes_read <= MOST_CACHE_BYTES

    def notice(self, name: str) -> str:
        """What makes reading slow, and the cure; "" where nothing does."""
        if self.chunk is None or self.amplification < _SLOW:
            return ""
        shape = " × ".join(map(str, self.chunk))
        how = f"a cache of {self.bytes_read / 2**20:.0f} MiB keeps that from being read again and again"
        if not self.cached:
            how = f"they do not fit a cache of {MOST_CACHE_BYTES >> 20} MiB, so each block reads them anew"
        cost = f"one block touches {self.touched} of them, {self.amplification:.0f} times the bytes it wants"
        return (
            f"{name} lies in chunks of {shape}{self.filters}: {cost}; {how}; "
            "repack it once with `anomaly ingest FILE --repack --store NEW`"
        )


def layout(dataset: h5py.Dataset, rows: int = 4096) -> Layout:
    """The layout of ``dataset`` and the cost of reading ``rows`` neighbouring rows."""
    rows = max(min(rows, len(dataset)), 1)
    wanted = rows * math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    if dataset.chunks is None:
        return Layout(None, "", 0, wanted, wanted)
    along = math.ceil(rows / dataset.chunks[0])
    across = math.prod(math.ceil(n / c) for n, c in zip(dataset.shape[1:], dataset.chunks[1:], strict=True))
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    filters = "" if dataset.compression is None else f", {dataset.compression}"
    return Layout(dataset.chunks, filters, along * across, along * across * size, wanted)


def open_cached(file: h5py.File, name: str, rows: int = 4096) -> h5py.Dataset:
    """The dataset ``name`` with a cache that holds the chunks of a block of ``rows``, up to 512 MiB; plain chunks of whole
    rows are read past any cache.

    Raises InputRefused E3403 where a dataset of the file needs a filter that is not installed.
    """
    require_filters(file)
    # Not held in a name: while a dataset is open, HDF5 gives every further opening of it the same cache.
    cost = layout(file[name], rows)
    if cost.chunk is None:
        return file[name]
    if _plain_rows(file[name]):
        return _opened(file, name, 1, 0)  # a cache would only be one copy more
    if cost.bytes_read <= _OWN_CACHE_BYTES:
        return file[name]
    # One row of chunks more than a block touches: the next block begins inside the last chunks of this one.
    bytes_held = min(cost.bytes_read + cost.bytes_read // max(math.ceil(rows / cost.chunk[0]), 1), MOST_CACHE_BYTES)
    slots = 100 * max(cost.touched, 1) + 1  # HDF5 hashes chunks to slots; about a hundred a chunk avoid collisions
    return _opened(file, name, min(slots, 1_000_003), bytes_held)


def _plain_rows(dataset: h5py.Dataset) -> bool:
    """Whether the rows of a dataset with chunks lie on disk as they are: no filter, and no row in more than one chunk."""
    return bool(dataset.chunks[1:] == dataset.shape[1:] and not dataset.id.get_create_plist().get_nfilters())


def _opened(file: h5py.File, name: str, slots: int, bytes_held: int) -> h5py.Dataset:
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(slots, bytes_held, 1.0)
    # Said to be read-only, h5py asks for shape and type once and not at each slice, which costs more than the reading.
    return h5py.Dataset(h5py.h5d.open(file.id, name.encode(), access), readonly=file.mode == "r")


def filters(compress: str) -> dict[str, Any]:
    """What ``create_dataset`` takes to compress its chunks: nothing, gzip-1 or zstd-3, both after a byte shuffle.

    Sensor noise hardly compresses; quantised logs halve. Raises UsageError E2001 for another name, and for zstd where
    the extra ``zstd`` is not installed (METHODS S1).

    >>> filters("none"), filters("gzip")
    ({}, {'compression': 'gzip', 'compression_opts': 1, 'shuffle': True})
    """
    if compress not in COMPRESSIONS:
        raise UsageError(Fault("E2001", f"a compression of {', '.join(COMPRESSIONS)}", compress))
    if compress == "none":
        return {}
    if compress == "gzip":
        return {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    if not _available(_ZSTD):
        raise UsageError(Fault("E2001", "a compression that is installed", compress, f"{_INSTALL}; gzip needs nothing"))
    return {"compression": _ZSTD, "compression_opts": (3,), "shuffle": True}


def require_filters(file: h5py.File) -> None:
    """Raise InputRefused E3403 where a dataset of ``file`` is compressed with a filter that is not installed."""
    missing: dict[int, str] = {}

    def look(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            made = item.id.get_create_plist()
            for number, _, _, told in (made.get_filter(i) for i in range(made.get_nfilters())):
                if number not in missing and not _available(number):
                    missing[number] = f"{told.decode(errors='replace') or number} in {name}"

    file.visititems(look)
    if missing:
        hint = _INSTALL if _ZSTD in missing else "write it again with --compress none"
        found = ", ".join(missing.values())
        raise InputRefused(Fault("E3403", "compression that is installed here", found, hint, file.filename))


def _available(number: int) -> bool:
    """Whether HDF5 has a filter, or finds it among its plugins; they load when first used."""
    return bool(h5py.h5z.filter_avail(number))


def _find_plugins() -> None:
    """Show HDF5 the filters that ``hdf5plugin`` brings, without loading any."""
    package = importlib.util.find_spec("hdf5plugin")
    for place in (package.submodule_search_locations if package else None) or ():
        h5py.h5pl.prepend(str(Path(place) / "plugins").encode())


# Done once, on import: whatever opens a store later can read what was written with the extra.
_find_plugins()

"""How a dataset lies on disk, and what that costs: chunks, cache, and a copy in chunks of whole rows (METHODS S1, S2).

h5py's own choice of chunks (``chunks=True``) halves every axis in turn, so a tall dataset gets chunks of very many rows
and few columns. Reading 256 rows then decompresses a whole column of chunks each time, unless all of them fit the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import h5py

#: The cache that a dataset gets at most; h5py's own is 1 MiB.
MOST_CACHE_BYTES = 512 << 20
_OWN_CACHE_BYTES = 1 << 20
#: A block that reads so many times its own bytes is worth a word.
_SLOW = 4.0


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
    """The dataset ``name`` with a cache that holds the chunks of a block of ``rows``, up to 512 MiB."""
    # Not held in a name: while a dataset is open, HDF5 gives every further opening of it the same cache.
    cost = layout(file[name], rows)
    if cost.chunk is None or cost.bytes_read <= _OWN_CACHE_BYTES:
        return file[name]
    # One row of chunks more than a block touches: the next block begins inside the last chunks of this one.
    bytes_held = min(cost.bytes_read + cost.bytes_read // max(math.ceil(rows / cost.chunk[0]), 1), MOST_CACHE_BYTES)
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    slots = 100 * max(cost.touched, 1) + 1  # HDF5 hashes chunks to slots; about a hundred a chunk avoid collisions
    access.set_chunk_cache(min(slots, 1_000_003), bytes_held, 1.0)
    return h5py.Dataset(h5py.h5d.open(file.id, name.encode(), access))

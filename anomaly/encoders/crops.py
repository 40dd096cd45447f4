"""Two random overlapping crops of each window: the same rows seen in two surroundings (METHODS S37).

Where the crops overlap, their representations are of the same rows and should agree (Yue et al., TS2Vec, 2022). Crop and
compared overlap have one length each for a window shape, so that a compiled graph serves every batch; where they lie is
drawn anew for each window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CropSizes:
    """Lengths in rows: of a window, of each of its two crops, and of the overlap that is compared (the least overlap)."""

    rows: int
    crop: int
    overlap: int

    @classmethod
    def of(cls, rows: int, crop: float, overlap: float) -> CropSizes:
        """Sizes for windows of ``rows``: ``crop`` is a share of the window, ``overlap`` a share of the crop.

        Shares are clamped so that a crop holds 2 rows or more and an overlap 2, or as many as the window has.

        >>> CropSizes.of(64, crop=0.75, overlap=0.5)
        CropSizes(rows=64, crop=48, overlap=24)
        >>> CropSizes.of(4, crop=0.1, overlap=0.1)
        CropSizes(rows=4, crop=2, overlap=2)
        """
        length = _clamped(crop * rows, least=2, most=rows)
        return cls(rows, length, _clamped(overlap * length, least=2, most=length))


def _clamped(length: float, least: int, most: int) -> int:
    return min(max(round(length), least), most)


@dataclass(frozen=True)
class CropPairs:
    """Where the two crops of each window lie. ``starts (B, 2)``: first row of each crop in its window; ``places
    (B, 2, overlap)``: positions in each crop of the rows that are compared."""

    starts: NDArray[np.int64]
    places: NDArray[np.int32]


def crop_pairs(rng: np.random.Generator, windows: int, sizes: CropSizes) -> CropPairs:
    """Draw crops for so many ``windows``: first the rows to compare, then two crops at random around them.

    So both crops hold the compared rows, may reach beyond them on either side, and are drawn alike.
    """
    shared = rng.integers(0, sizes.rows - sizes.overlap + 1, size=(windows, 1))
    earliest = np.maximum(shared + sizes.overlap - sizes.crop, 0)
    latest = np.minimum(shared, sizes.rows - sizes.crop)
    starts = rng.integers(earliest, latest + 1, size=(windows, 2))
    places = (shared - starts)[:, :, None] + np.arange(sizes.overlap)
    return CropPairs(starts, places.astype(np.int32))


def take_crops(windows: NDArray[np.float32], starts: NDArray[np.int64], length: int) -> NDArray[np.float32]:
    """The crops of ``windows (B, T, channels)`` that begin at ``starts (B, 2)``: ``(B, 2, length, channels)``."""
    rows = starts[:, :, None] + np.arange(length)
    return windows[np.arange(len(windows))[:, None, None], rows]

"""Blocks of embeddings ``(B, d)`` as they stream in: checked once, the same way, for everything that reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def checked(block: NDArray[Any], name: str, width: int | None = None, before: int = 0) -> NDArray[np.float32]:
    """``block (B, d)`` as float32; ``before`` rows came earlier, so that an error can count from the stream's start.

    Raises ValueError for another shape than ``(B, width)`` and for NaN or infinity.

    >>> checked(np.zeros((2, 3)), "points").dtype
    dtype('float32')
    """
    rows = np.asarray(block, dtype=np.float32)
    if rows.ndim != 2 or (width is not None and rows.shape[1] != width):
        raise ValueError(f"{name}: expected shape (rows, {width or 'd'}), got {rows.shape}")
    finite = np.isfinite(rows)
    if not finite.all():
        bad = before + int(np.flatnonzero(~finite.all(axis=1))[0])
        raise ValueError(f"{name}: expected finite embeddings, got NaN or infinity in row {bad}; leave such rows out")
    return rows


def streamed(blocks: Iterable[NDArray[Any]], width: int | None = None) -> Iterator[NDArray[np.float32]]:
    """The blocks that hold rows, checked; all as wide as the first (or ``width``). Raises ValueError as ``checked``."""
    seen = 0
    for block in blocks:
        rows = checked(block, "blocks", width, seen)
        width, seen = rows.shape[1], seen + len(rows)
        if len(rows):
            yield rows

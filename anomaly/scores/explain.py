"""Which sensors a score came from: the largest shares of every row, by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def top_shares(shares: NDArray[np.float32], k: int = 3) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``k`` largest of each row's shares ``(n, C)``: their columns and fractions, both ``(n, min(k, C))``.

    Fractions are of the row's total, so they say "41 % of this score is this sensor"; a row of zeros gives zeros.
    """
    k = min(k, shares.shape[1])
    columns = np.argpartition(-shares, k - 1, axis=1)[:, :k]
    picked = np.take_along_axis(shares, columns, axis=1)
    order = np.argsort(-picked, axis=1, kind="stable")
    total = shares.sum(axis=1, keepdims=True)
    fractions = np.take_along_axis(picked, order, axis=1) / np.where(total > 0, total, 1)
    return np.take_along_axis(columns, order, axis=1), fractions.astype(np.float32)


def top_tags(shares: NDArray[np.float32], tags: Sequence[str], k: int = 3) -> list[list[tuple[str, float]]]:
    """``top_shares`` by name.

    >>> top_tags(np.array([[1.0, 3.0, 0.0]]), ["a", "b", "c"], k=2)
    [[('b', 0.75), ('a', 0.25)]]
    """
    columns, fractions = top_shares(shares, k)
    return [
        [(tags[c], f) for c, f in zip(row, parts, strict=True)]
        for row, parts in zip(columns.tolist(), fractions.tolist(), strict=True)
    ]

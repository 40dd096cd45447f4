"""A uniform sample of a stream in one pass: each row draws a key, and the rows with the smallest keys stay."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Reservoir:
    """Keeps at most ``size`` rows of what is added, every row as likely as any other, in the order they came.

    >>> sample = Reservoir(2, seed=0)
    >>> sample.add(np.arange(100.0)); sample.add(np.arange(100.0, 110.0))
    >>> len(sample), len(sample.columns[0]), sample.seen
    (2, 2, 110)
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seen = size, 0
        self.columns: tuple[NDArray[Any], ...] = ()
        self._rng = np.random.default_rng(seed)
        self._keys = np.empty(0)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, *columns: NDArray[Any]) -> None:
        """Offer rows: one array or several of equal length."""
        self.seen += len(columns[0])
        keys = self._rng.random(len(columns[0]))
        if len(self._keys) == self.size:  # only what would stay is copied
            near = np.flatnonzero(keys < self._keys.max(initial=0))
            keys, columns = keys[near], tuple(column[near] for column in columns)
        self._keys = np.concatenate((self._keys, keys))
        kept = self.columns or tuple(column[:0] for column in columns)
        self.columns = tuple(np.concatenate(pair) for pair in zip(kept, columns, strict=True))
        if len(self._keys) > self.size:
            stay = np.sort(np.argpartition(self._keys, self.size)[: self.size])
            self._keys, self.columns = self._keys[stay], tuple(column[stay] for column in self.columns)

"""Draw windows from the small columns of a features file, read in blocks: nothing of the size of the store is held.

Three passes: the limits of the scores (METHODS S18), the weighted draw within every mode (S19, S20), and by counting the
place of each drawn window in its mode.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.data.store import WindowStore
from anomaly.data.store_features import Features
from anomaly.data.store_files import damaged
from anomaly.embeddings.reduction import Moments
from anomaly.errors import Fault, UsageError
from anomaly.fitting import Progress, silent
from anomaly.scores.sampling import Drawn, StratifiedSample
from anomaly.scores.window_scores import Limits, composite

FIGURES = ("stability", "cosine", "novelty", "energy")
_START, _MODE = "metadata/start", "cluster_id"
#: Windows read at once: a chunk of a small column.
_BLOCK = 1 << 16
_PASSES = 3
#: A variance of scaled scores below this is rounding.
_CONSTANT = 1e-20


@dataclass(frozen=True)
class Measured:
    """Windows that may be drawn, in store order, one block of them.

    ``row (n,)`` int64 the number of each one's first row over all assets, ascending; ``mode (n,)`` int32; ``stability``,
    ``cosine``, ``novelty``, ``energy (n,)`` float32.
    """

    row: NDArray[np.int64]
    mode: NDArray[np.int32]
    stability: NDArray[np.float32]
    cosine: NDArray[np.float32]
    novelty: NDArray[np.float32]
    energy: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.row)

    def scores(self) -> NDArray[np.float32]:
        """Stability, novelty and energy, ``(n, 3)``."""
        return np.column_stack((self.stability, self.novelty, self.energy))


def first_rows(store: WindowStore) -> NDArray[np.int64]:
    """How many rows lie before each asset's own, in store order, ``(assets,)``."""
    before = np.cumsum([0, *(store.n_rows(asset) for asset in store.assets)])
    return before[:-1].astype(np.int64)


def apart(rows: NDArray[np.int64], lookback: int, free: int = 0) -> NDArray[np.int64]:
    """Positions of windows of ``lookback`` rows that share no row: each the first that begins at ``free`` or later, where
    ``free`` is then the row after it. ``rows (n,)`` are where windows begin, ascending.

    >>> apart(np.array([0, 1, 2, 3, 9]), 3).tolist(), apart(np.array([0, 1, 2, 3, 9]), 3, free=2).tolist()
    ([0, 3, 4], [2, 4])
    """
    at = int(np.searchsorted(rows, free))
    if (np.diff(rows[at:]) >= lookback).all():
        return np.arange(at, len(rows))
    kept = []
    while at < len(rows):
        kept.append(at)
        at = int(np.searchsorted(rows, rows[at] + lookback))
    return np.array(kept, dtype=np.int64)


class Candidates:
    """The windows of ``part`` of a store (None: all) that may be drawn, read in blocks from its features file.

    Windows without a mode or a finite figure are left out, and without ``overlapping`` those that share a row with the one
    kept before them. Raises InputRefused E3006 where a column cannot be read, UsageError E2001 for features without modes.
    """

    def __init__(
        self,
        store: WindowStore,
        features: Features,
        part: str | None = None,
        *,
        overlapping: bool = False,
        progress: Progress = silent,
        size: int = _BLOCK,
    ) -> None:
        self._features, self._progress, self._size = features, progress, size
        self._lookback = 0 if overlapping else store.lookback
        self._ends = np.array([high for _, high, _ in store.window_spans()], dtype=np.int64)
        spans = [(low, high) for low, high, _ in store.window_spans(part)]
        self._low, self._high = np.array(spans, dtype=np.int64).reshape(-1, 2).T
        self._first = first_rows(store)
        if missing := {_MODE, *FIGURES} - set(features.names()):
            hint = "extract again, without --features-only"
            found = f"none of {', '.join(sorted(missing))}"
            raise UsageError(Fault("E2001", "a features file with modes", found, hint, str(features.path)))

    def blocks(self, number: int = 0) -> Iterator[Measured]:
        """All of them, at most a block at a time; ``number`` counts the passes for the progress."""
        free, n = 0, self._features.n
        for low in range(0, n, self._size):
            high = min(low + self._size, n)
            at = np.arange(low, high)
            owner = np.searchsorted(self._ends, at, side="right")
            inside = (at >= self._low[owner]) & (at < self._high[owner])
            if inside.any():
                block = self._block(low, high, self._first[owner], inside, free)
                if len(block):
                    free = int(block.row[-1]) + self._lookback
                    yield block
            self._progress("measure", number * n + high, _PASSES * n)

    def _block(self, low: int, high: int, first: NDArray[np.int64], inside: NDArray[np.bool_], free: int) -> Measured:
        columns = {name: self._read(name, low, high) for name in (_START, _MODE, *FIGURES)}
        good = inside & (columns[_MODE] >= 0)
        for name in FIGURES:
            good &= np.isfinite(columns[name])
        at, row = np.flatnonzero(good), first + columns[_START]
        if self._lookback:  # rows are counted over all assets, so windows of two assets never share one
            at = at[apart(row[at], self._lookback, free)]
        return Measured(row[at], columns[_MODE][at], *(columns[name][at] for name in FIGURES))

    def _read(self, name: str, low: int, high: int) -> NDArray:
        try:
            rows: NDArray = self._features.column(name)[low:high]
            return rows
        except (OSError, RuntimeError, KeyError) as error:
            raise damaged(self._features.path, error) from error


@dataclass(frozen=True)
class Draw:
    """``drawn`` windows, their numbers those of their first rows over all assets, their columns ``FIGURES``; ``rank (m,)``
    int64 each one's place by weight in its mode; ``modes``, how many windows each mode has; ``warning`` about the weights.
    """

    drawn: Drawn
    rank: NDArray[np.int64]
    modes: dict[int, int]
    warning: str = ""


def draw(
    candidates: Candidates, limits: Limits, weights: Sequence[float], k: int, temperature: float, seed: int
) -> Draw:
    """Draw ``k`` windows of every mode; two passes, in which ``k`` windows of each mode are held (METHODS S19, S20).

    Raises ValueError as ``StratifiedSample`` and ``composite`` do.
    """
    chosen, modes, moments = StratifiedSample(k, temperature, seed), Counter[int](), Moments(2)
    for block in candidates.blocks(1):
        scaled = limits.scale(block.scores())
        figures = (getattr(block, name) for name in FIGURES)
        chosen.add(block.mode, composite(scaled, weights).score, block.row, *figures)
        ids, counts = np.unique(block.mode, return_counts=True)
        modes.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        moments.add(scaled[:, :2])
    drawn = chosen.drawn()
    return Draw(drawn, _ranks(candidates, limits, weights, drawn), dict(sorted(modes.items())), _told(moments, weights))


def _ranks(candidates: Candidates, limits: Limits, weights: Sequence[float], drawn: Drawn) -> NDArray[np.int64]:
    """One more than the windows of its mode that weigh more, for each drawn window, ``(m,)``."""
    place = {mode: np.flatnonzero(drawn.ids == mode) for mode in np.unique(drawn.ids).tolist()}
    order = {mode: at[np.argsort(drawn.weights[at], kind="stable")] for mode, at in place.items()}
    beaten = {mode: np.zeros(len(at) + 1, dtype=np.int64) for mode, at in order.items()}
    for block in candidates.blocks(2):
        weight = composite(limits.scale(block.scores()), weights).score
        for mode in np.unique(block.mode).tolist():
            below = np.searchsorted(drawn.weights[order[mode]], weight[block.mode == mode], side="left")
            beaten[mode] += np.bincount(below, minlength=len(beaten[mode]))
    rank = np.ones(len(drawn), dtype=np.int64)
    for mode, at in order.items():
        rank[at] += beaten[mode][::-1].cumsum()[::-1][1:]
    return rank


def _told(moments: Moments, weights: Sequence[float]) -> str:
    """The warning of ``composite`` about stability and novelty, of all windows at once."""
    if moments.rows < 3:  # two windows always correlate
        return ""
    products = moments.covariance()
    if not (np.diag(products) > _CONSTANT).all():
        return ""
    r = float(np.clip(products[0, 1] / np.sqrt(products[0, 0] * products[1, 1]), -1, 1))
    # It judges rows: four that correlate as all windows do.
    one, other = np.array([1.0, 1.0, -1.0, -1.0]), np.array([1.0, -1.0, 1.0, -1.0])
    return composite(np.column_stack((one, r * one + np.sqrt(1 - r * r) * other, np.zeros(4))), weights).warning

"""Departure from the recent past: a drifting level says nothing, a sudden one does (DETECTION §2.3, §2.4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view
from numpy.typing import NDArray

from anomaly.data.scaling import compressed
from anomaly.detectors.base import Detector, Encoded, shared_out
from anomaly.detectors.reconstruction import recency_weights
from anomaly.errors import TooFewWindows

OVER = ("max", "mean")
#: Departures below this, in deviations of a tag's level, are rounding.
_STILL = 1e-9
#: Where ``compressed`` begins to bend.
_LINEAR = 4.0


def shared_rows(windows: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The rows ``(B + T - 1, C)`` that windows ``(B, T, C)`` are views of, one further on each; None where they are not.

    >>> rows = np.arange(4.0)[:, None]
    >>> windows = sliding_window_view(rows, 2, axis=0).swapaxes(1, 2)
    >>> shared_rows(windows).ravel().tolist(), shared_rows(windows.copy()) is None
    ([0.0, 1.0, 2.0, 3.0], True)
    """
    count, length, width = windows.shape
    if not count or windows.strides[0] != windows.strides[1]:
        return None
    return as_strided(windows, (count + length - 1, width), windows.strides[1:], writeable=False)


class LocalDetector(Detector):
    """Squared departure of a window's rows from the ``trail`` rows before each, recent rows counting most.

    Of the tag that departs farthest (``over="max"``): the other detectors add tags up, and a fault of one sensor drowns in
    such a sum (DETECTION §4). ``over="mean"`` is their mean. Each tag's departures are scaled by their own size in normal
    operation, and count linearly to 4 of it and by their logarithm beyond: one tag that never moved before must not drown
    the rest. A tag that never departed keeps the scale of its level. ``half_life`` as in ``ReconstructionDetector``.
    """

    name: ClassVar[str] = "local"
    summary: ClassVar[str] = "departure from the mean of the rows just before: blind to slow drift (DETECTION §2)"
    needs: ClassVar[str] = "local"

    def __init__(self, trail: int = 128, half_life: float | None = 2.0, over: str = "max") -> None:
        if trail < 1:
            raise ValueError(f"trail: expected at least 1 row, got {trail}")
        if half_life is not None and not half_life > 0:
            raise ValueError(f"half_life: expected rows above 0, or None for the plain mean, got {half_life}")
        if over not in OVER:
            raise ValueError(f"over: expected one of {', '.join(OVER)}, got {over!r}")
        self.trail, self.half_life, self.over = trail, half_life, over
        self.scale_ = np.empty(0, np.float32)

    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """Learn how far each tag departs in normal operation; raises ValueError without a window."""
        count, squares = 0, np.zeros(1)
        for block in blocks:
            last = self._needed(block)[:, -1].astype(np.float64)
            count, squares = count + len(last), squares + (last**2).sum(axis=0)
        if not count:
            raise TooFewWindows("blocks: expected normal windows to learn from, got none")
        size = np.sqrt(squares / count)
        self.scale_ = np.where(size > _STILL, size, 1.0).astype(np.float32)
        return self

    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """Weighted mean squared departure of each window: of its farthest tag, or of all."""
        return np.asarray(self.shares(block).sum(axis=1))

    def shares(self, block: Encoded) -> NDArray[np.float64]:
        """The score, shared out by the weighted squared departures of the tags."""
        windows = block.needed(self.needs)
        rows = shared_rows(windows)
        # Neighbouring windows are views of the same rows: what is done to a row is done once.
        squares = self._squares(self._checked(block, windows if rows is None else rows))
        if rows is not None:
            squares = sliding_window_view(squares, windows.shape[1], axis=0).swapaxes(1, 2)
        own = np.zeros((len(windows), windows.shape[2]))
        for at, weight in enumerate(recency_weights(windows.shape[1], self.half_life) / windows.shape[2]):
            own += weight * squares[:, at]
        return own if self.over == "mean" else shared_out(own.max(axis=1) * own.shape[1], own)

    def _checked(self, block: Encoded, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values if np.isfinite(values).all() else self._needed(block)  # says which window is not

    def _squares(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Squared departures in their scale, shaped as ``values``."""
        scaled = values / self.scale_
        far = np.abs(scaled) > _LINEAR
        if far.any():  # few are, and a logarithm is dear
            scaled[far] = compressed(scaled[far])
        return np.square(scaled, dtype=np.float64)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {"trail": self.trail, "half_life": self.half_life, "over": self.over}, {"scale": self.scale_}

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> LocalDetector:
        made = cls(**settings)
        made.scale_ = arrays["scale"]
        return made

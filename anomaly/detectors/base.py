"""What every detector promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Encoded:
    """Prepared windows ``(B, T, C)`` and what an encoder made of them.

    ``embedding (B, d)``, ``residual (B, T, C)`` (window − reconstruction) and ``local (B, T, C)`` (each row less the mean of
    the rows before it) are None where no detector asked. ``again`` encodes other windows ``(n, T, C)`` in place of the
    windows at ``index (n,)``, for what asks "what if": the categories and departures of those windows stay.
    """

    windows: NDArray[np.float32]
    embedding: NDArray[np.float32] | None = None
    residual: NDArray[np.float32] | None = None
    again: Callable[[NDArray[np.float32], NDArray[np.int64]], Encoded] | None = None
    local: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.windows)

    def needed(self, name: str) -> NDArray[np.float32]:
        """The field ``name``; raises ValueError where nobody asked for it."""
        values: NDArray[np.float32] | None = getattr(self, name)
        if values is None:
            raise ValueError(f"block: expected its {name}, got none")
        return values

    def take(self, index: NDArray[np.int64]) -> Encoded:
        """The windows at positions ``index``."""
        again = self.again
        return Encoded(
            self.windows[index],
            None if self.embedding is None else self.embedding[index],
            None if self.residual is None else self.residual[index],
            None if again is None else lambda windows, chosen: again(windows, index[chosen]),
            None if self.local is None else self.local[index],
        )


class Detector(ABC):
    """Scores blocks after a fit on normal ones.

    Promises, held by ``tests/contracts/test_detectors.py``: ``fit`` returns the detector, scores have one value per row,
    a planted outlier scores above normal rows, shares add up to the score, a state round-trips, input is not altered.
    """

    name: ClassVar[str]
    summary: ClassVar[str]  # one line: what it measures and where it comes from
    needs: ClassVar[str]  # the field of Encoded that it scores: "embedding", "residual", "windows" or "local"
    trail: int = 0  # rows before a row that its departure is taken from, where "local" is needed
    dear: ClassVar[bool] = False  # whether shares cost many times the score; they are then made for high scores only

    @abstractmethod
    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """Learn from streamed normal blocks; ``blocks`` can be read again and again, in another order each time."""

    @abstractmethod
    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """``(n,)``, higher = more anomalous; raises ValueError on a non-finite block."""

    @abstractmethod
    def shares(self, block: Encoded) -> NDArray[np.float64]:
        """``(n, C)``: each sensor's part of the score; rows add up to it."""

    @abstractmethod
    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""

    @classmethod
    @abstractmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Detector:
        """The detector from ``to_state``."""

    def _needed(self, block: Encoded) -> NDArray[np.float32]:
        """What the detector scores, checked."""
        values: NDArray[np.float32] | None = getattr(block, self.needs)
        if values is None:
            raise ValueError(f"block: expected its {self.needs} for the detector {self.name}, got none")
        if not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[0])
            raise ValueError(f"block: expected a finite {self.needs}, got NaN or infinity in window {bad}")
        return values


def shared_out(score: NDArray[np.float64], parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """``score (n,)`` split in proportion to ``parts (n, C)``, none below 0; evenly where no part is above 0.

    >>> shared_out(np.array([4.0, 2.0]), np.array([[1.0, 3.0], [0.0, 0.0]])).tolist()
    [[1.0, 3.0], [1.0, 1.0]]
    """
    whole = parts.sum(axis=1, keepdims=True)
    equal = np.full(parts.shape, 1 / parts.shape[1])
    return score[:, None] * np.divide(parts, whole, out=equal, where=whole > 0)


def occlusion_shares(detector: Detector, block: Encoded) -> NDArray[np.float64]:
    """A score shared out by how far it falls when one tag is set to its normal level (0 in prepared windows), ``(n, C)``.

    For detectors whose score is no sum over sensors. A tag whose normal level would raise the score has no part in it.
    Raises ValueError where the block cannot be encoded again.
    """
    if block.again is None:
        raise ValueError(f"block: expected one that can be encoded again for the shares of {detector.name}")
    score, every = detector.anomaly_score(block), np.arange(len(block))
    fall = np.empty((len(block), block.windows.shape[2]))
    for tag in range(fall.shape[1]):
        windows = block.windows.copy()
        windows[:, :, tag] = 0
        fall[:, tag] = score - detector.anomaly_score(block.again(windows, every))
    return shared_out(score, np.maximum(fall, 0))

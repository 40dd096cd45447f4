"""What every detector promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Encoded:
    """Prepared windows ``(B, T, C)`` and what an encoder made of them.

    ``embedding (B, d)`` and ``residual (B, T, C)`` (window − reconstruction) are None where no detector asked.
    """

    windows: NDArray[np.float32]
    embedding: NDArray[np.float32] | None = None
    residual: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.windows)


class Detector(ABC):
    """Scores blocks after a fit on normal ones.

    Promises, held by ``tests/contracts/test_detectors.py``: ``fit`` returns the detector, scores have one value per row,
    a planted outlier scores above normal rows, shares add up to the score, a state round-trips, input is not altered.
    """

    name: ClassVar[str]
    needs: ClassVar[str]  # the field of Encoded that it scores: "embedding" or "residual"

    @abstractmethod
    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """Learn from streamed normal blocks."""

    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """``(n,)``, higher = more anomalous; raises ValueError on a non-finite block."""
        return np.asarray(self.shares(block).sum(axis=1))

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

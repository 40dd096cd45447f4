"""What every detector promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray


class Detector(ABC):
    """Scores blocks after a fit on normal ones.

    Promises, held by ``tests/contracts/test_detectors.py``: ``fit`` returns the detector, scores have one value per row,
    a planted outlier scores above normal rows, shares add up to the score, a state round-trips, input is not altered.
    """

    name: ClassVar[str]

    @abstractmethod
    def fit(self, blocks: Iterable[NDArray[np.float32]]) -> Self:
        """Learn from streamed normal blocks."""

    @abstractmethod
    def anomaly_score(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """``(n,)``, higher = more anomalous; raises ValueError on a non-finite block."""

    @abstractmethod
    def shares(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """``(n, C)``: each sensor's part of the score; rows add up to it."""

    @abstractmethod
    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""

    @classmethod
    @abstractmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Detector:
        """The detector from ``to_state``."""

"""A linear head on embeddings that learned from labelled events; used only where it earned it (METHODS S33)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.base import Detector, Encoded, shared_out
from anomaly.detectors.distance import KnnDetector


class HeadDetector(Detector):
    """−log of the probability that no event is near, by a head ``embedding @ weight (d,) + bias``.

    The score is shared out by where the window differs from the normal windows that it embeds closest to.
    """

    name: ClassVar[str] = "head"
    summary: ClassVar[str] = "linear head that learned from labelled events; made by --fine-tune (S33)"
    needs: ClassVar[str] = "embedding"

    def __init__(self, weight: NDArray[np.float64], bias: float, seed: int = 7) -> None:
        self.weight, self.bias = np.asarray(weight, dtype=np.float64), float(bias)
        self.bank = KnnDetector(seed=seed)

    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """Remember normal windows, for the shares; the head itself was learned before."""
        self.bank.fit(blocks)
        return self

    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """−log of the probability that no event is near."""
        return np.logaddexp(0, self._needed(block).astype(np.float64) @ self.weight + self.bias)

    def shares(self, block: Encoded) -> NDArray[np.float64]:
        """The score, shared out as the distance to the nearest normal windows is."""
        return shared_out(self.anomaly_score(block), self.bank.shares(block))

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        settings, arrays = self.bank.to_state()
        return {"bank": settings, "bias": self.bias}, arrays | {"weight": self.weight}

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> HeadDetector:
        made = cls(arrays["weight"], settings["bias"])
        made.bank = KnnDetector.from_state(settings["bank"], arrays)
        return made

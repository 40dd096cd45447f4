"""Distance to a memory bank of normal embeddings: a sample or a coreset of them, searched exactly (METHODS S52)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.data.reservoir import Reservoir
from anomaly.detectors.base import Detector, Encoded, shared_out
from anomaly.detectors.coreset import CORESETS
from anomaly.detectors.moments import safe_scale
from anomaly.detectors.neighbours import RankedBank, nearest_in_bank, ranked_bank
from anomaly.errors import TooFewWindows

#: Bytes of the bank's windows at most: they say which sensors differ, and travel with the model.
_MOST_WINDOW_BYTES = 16 << 20
_LEAST_BANK = 64
#: Embeddings that a coreset is chosen from, and bytes of their windows at most, held during the fit only.
_CANDIDATES = 20_000
_MOST_CANDIDATE_BYTES = 256 << 20


class KnnDetector(Detector):
    """Mean distance to the ``k`` nearest embeddings of a bank, each dimension scaled by its normal deviation.

    The bank is a uniform sample of at most ``bank`` normal windows (fewer where windows are large), drawn in one pass.
    ``coreset`` "greedy" or "kmeans" chooses it out of a larger sample, of at most 20 000, so that rare normal states keep
    a place ("greedy": no normal window far from the bank) or dense ones do not crowd it ("kmeans"). A window's score is
    shared out by where it differs from the normal windows that it embeds closest to.
    """

    name: ClassVar[str] = "knn"
    summary: ClassVar[str] = "mean distance to the nearest of a bank of normal embeddings (S52)"
    needs: ClassVar[str] = "embedding"

    def __init__(self, k: int = 3, bank: int = 2500, seed: int = 7, coreset: str = "random") -> None:
        if k < 1 or bank < k:
            raise ValueError(f"k, bank: expected at least 1 neighbour and a bank that holds them, got {k}, {bank}")
        if coreset not in CORESETS:
            raise ValueError(f"coreset: expected one of {', '.join(CORESETS)}, got {coreset!r}")
        self.k, self.bank, self.seed, self.coreset = k, bank, seed, coreset
        self.embeddings_ = np.empty((0, 0), np.float32)
        self.windows_ = np.empty((0, 0, 0), np.float32)
        self.scale_ = np.empty(0, np.float32)
        self._ranked: tuple[NDArray[np.float32], RankedBank] | None = None

    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """Remember normal windows; raises ValueError where there is none."""
        sample, total, squares = Reservoir(self.bank, self.seed), np.zeros(1), np.zeros(1)
        for block in blocks:
            embeddings = self._needed(block)
            exact = embeddings.astype(np.float64)
            total, squares = total + exact.sum(axis=0), squares + (exact**2).sum(axis=0)
            if len(block):
                sample.size = self._sampled(block.windows[0].nbytes)
            sample.add(embeddings, block.windows)
        if not len(sample):
            raise TooFewWindows("blocks: expected normal windows to remember, got none")
        deviation = np.sqrt(np.maximum(squares / sample.seen - (total / sample.seen) ** 2, 0))
        self.scale_ = safe_scale(deviation).astype(np.float32)
        embeddings, self.windows_ = sample.columns
        self.embeddings_ = (embeddings / self.scale_).astype(np.float32)
        if self.coreset != "random":
            size = self._held(self.windows_[0].nbytes)
            chosen = np.sort(CORESETS[self.coreset](self.embeddings_, size, self.seed))
            self.embeddings_, self.windows_ = self.embeddings_[chosen], self.windows_[chosen]
        return self

    def _held(self, window_bytes: int) -> int:
        """Rows of the bank."""
        return min(self.bank, max(_MOST_WINDOW_BYTES // window_bytes, _LEAST_BANK))

    def _sampled(self, window_bytes: int) -> int:
        """Rows to draw: the bank's, or those that it is chosen from."""
        held = self._held(window_bytes)
        if self.coreset == "random":
            return held
        return max(held, min(_CANDIDATES, _MOST_CANDIDATE_BYTES // window_bytes))

    def anomaly_score(self, block: Encoded) -> NDArray[np.float64]:
        """Mean distance to the nearest of the bank."""
        return self._found(block)[0]

    def bank_scores(self) -> NDArray[np.float64]:
        """Scores of the bank's own rows, none of which matches itself ``(m,)``; raises ValueError for a bank of one."""
        return np.asarray(nearest_in_bank(self.embeddings_, self.embeddings_, self.k, True)[0].mean(axis=1))

    def shares(self, block: Encoded) -> NDArray[np.float64]:
        """The mean distance, shared out by the squared differences to the nearest windows."""
        score, near = self._found(block)
        apart = np.zeros((len(block), block.windows.shape[2]))
        for neighbour in near.T:
            gap = block.windows - self.windows_[neighbour]
            apart += np.einsum("btc,btc->bc", gap, gap, dtype=np.float64)
        return shared_out(score, apart)

    def _found(self, block: Encoded) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Scores, and positions of the nearest in the bank ``(n, k)``, all of it where k is larger."""
        points = (self._needed(block) / self.scale_).astype(np.float32)
        if self._ranked is None or self._ranked[0] is not self.embeddings_:
            self._ranked = self.embeddings_, ranked_bank(self.embeddings_)
        distances, near = nearest_in_bank(points, self.embeddings_, self.k, ranked=self._ranked[1])
        return distances.mean(axis=1), near

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        arrays = {"embeddings": self.embeddings_, "windows": self.windows_, "scale": self.scale_}
        settings = {"k": self.k, "bank": self.bank, "seed": self.seed}
        # Only where it was asked for: subclasses do not take it.
        return settings | ({} if self.coreset == "random" else {"coreset": self.coreset}), arrays

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> KnnDetector:
        made = cls(**settings)
        made.embeddings_, made.windows_, made.scale_ = (arrays[n] for n in ("embeddings", "windows", "scale"))
        return made

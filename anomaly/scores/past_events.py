"""What an alert looks like: the past events, and the stretch of normal operation, whose windows embed nearest to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Alike:
    """A stretch of the training log that resembles a row: when it was, where, and how near.

    ``distance`` is in units of the usual distance between a normal window and its nearest of the kept ones: about 1 is
    as near as normal operation is to itself. ``event``: whether it was an event.
    """

    asset: str
    time_us: int
    event: bool
    distance: float

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {"asset": self.asset, "time_us": self.time_us, "event": self.event, "distance": round(self.distance, 3)}


class PastWindows:
    """Embeddings ``(k, d)`` of windows of the training log with ``time (k,)``, ``asset (k,)`` and ``event (k,)``."""

    def __init__(
        self,
        embeddings: NDArray[np.float32],
        time: NDArray[np.int64],
        asset: NDArray[np.object_],
        event: NDArray[np.bool_],
    ) -> None:
        self.time, self.asset, self.event = time, asset, np.asarray(event, dtype=bool)
        normal = embeddings[~self.event] if (~self.event).any() else embeddings
        spread = normal.std(axis=0) if len(normal) else np.ones(embeddings.shape[1])
        largest = spread.max(initial=0) or 1.0
        # A dimension that never moved would turn rounding into distance.
        self.scale = np.where(spread > 1e-6 * largest, spread, largest).astype(np.float32)
        self.embeddings = embeddings
        self._points = (embeddings / self.scale).astype(np.float32)
        self.unit = self._usual_distance()

    def __len__(self) -> int:
        return len(self.time)

    def nearest(self, embedding: NDArray[np.float32], events: int = 3, normal: int = 1) -> list[Alike]:
        """The windows nearest to ``embedding (d,)``: at most so many events, each asset and time once, then normal ones."""
        gap = self._points - (embedding / self.scale).astype(np.float32)
        distance = np.sqrt(np.einsum("kd,kd->k", gap, gap, dtype=np.float64)) / self.unit
        found = []
        for wanted, most in ((True, events), (False, normal)):
            own = np.flatnonzero(self.event == wanted)
            for i in own[np.argsort(distance[own], kind="stable")][:most]:
                found.append(Alike(str(self.asset[i]), int(self.time[i]), wanted, float(distance[i])))
        return found

    def _usual_distance(self) -> float:
        """Median distance of a normal window to its nearest other one; 1 where there are too few to tell."""
        normal = self._points[~self.event].astype(np.float64)
        if len(normal) < 3:
            return 1.0
        squares = (normal**2).sum(axis=1)
        apart = squares[:, None] + squares[None] - 2 * normal @ normal.T
        np.fill_diagonal(apart, np.inf)
        return float(np.median(np.sqrt(np.maximum(apart.min(axis=1), 0)))) or 1.0

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""
        return {"asset": [str(a) for a in self.asset]}, {
            "embeddings": self.embeddings,
            "time": self.time,
            "event": self.event,
        }

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> PastWindows:
        """From ``to_state``."""
        asset = np.array(settings["asset"], dtype=object)
        return cls(arrays["embeddings"], arrays["time"], asset, arrays["event"])

    @classmethod
    def none(cls) -> PastWindows:
        """Nothing to compare with."""
        empty = np.empty(0, dtype=object)
        return cls(np.empty((0, 1), np.float32), np.empty(0, np.int64), empty, np.empty(0, bool))

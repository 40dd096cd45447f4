"""Several detectors as one: each calibrated on held-back normal windows, then fused; per operating mode where asked.

A detector's raw score means nothing beside another's. Its tail probability under normal operation does, so that is
what is fused, and what a sensor's share is a share of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors import detector_class
from anomaly.detectors.base import Detector, Encoded, shared_out
from anomaly.errors import TooFewWindows
from anomaly.scores.calibration import TailCalibrator
from anomaly.scores.fusion import RAISED, checked_weights, contributions, fuse

if TYPE_CHECKING:
    from anomaly.embeddings.space import Space

#: Detectors whose shares are dear share out only rows that some detector calls one in ten, or rarer.
TOLD = 1.0
#: Held-back windows of a mode that its own scale needs; below that the scale of all modes is used.
_LEAST_OF_MODE = 50
#: A mode in which nothing ever moved would turn rounding into alarms.
_WIDEST_RATIO = 1000.0

Floats = NDArray[np.float64]


class Ensemble:
    """Detectors with their calibration and how they are fused.

    ``space``: the operating modes by which raw scores are scaled, or None. Raises ValueError for weights that do not
    fit the detectors.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        rule: str = "mean",
        weights: Sequence[float] = (),
        space: Space | None = None,
    ) -> None:
        if not detectors:
            raise ValueError("detectors: expected at least one, got none")
        if rule in ("weighted", RAISED):
            checked_weights(weights, len(detectors))
        self.detectors, self.rule, self.weights, self.space = tuple(detectors), rule, tuple(weights), space
        self.calibrators = tuple(TailCalibrator() for _ in detectors)
        self.levels_ = np.zeros((1, 2, len(self.detectors)))  # (modes, 2, D): usual score and its span
        self.levels_[:, 1] = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the detectors, in order."""
        return tuple(d.name for d in self.detectors)

    @property
    def needs(self) -> frozenset[str]:
        """Fields of Encoded that scoring reads."""
        own = {d.needs for d in self.detectors}
        return frozenset(own | {"embedding"} if self.space is not None else own)

    @property
    def trail(self) -> int:
        """Rows before a row that its departure is taken from; 0 where no detector asks for it."""
        return max(d.trail for d in self.detectors)

    def facts(self) -> dict[str, Any]:
        """What a reader of a report should know of it: detectors, fusion, and the operating modes where there are any."""
        told: dict[str, Any] = {"detectors": ", ".join(self.names), "fusion": self.rule}
        if self.space is not None:
            told["operating modes"] = self.space.clusters
            if self.space.pca is not None:
                told["variance kept by the reduction"] = round(self.space.pca.variance_kept, 4)
            told |= {
                f"silhouette of {row['clusters']} modes": f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
                for row in self.space.tried
                if row["value"] is not None
            }
        return told

    def fit(self, blocks: Iterable[Encoded]) -> Ensemble:
        """Fit every detector on re-iterable normal blocks."""
        for detector in self.detectors:
            detector.fit(blocks)
        return self

    def calibrate(self, blocks: Iterable[Encoded]) -> Floats:
        """Learn each detector's tail, and each mode's scale, from held-back normal windows; gives their fused scores."""
        found = [(self._measured(block), self._modes(block)) for block in blocks]
        if not found:
            raise TooFewWindows("blocks: expected held-back normal windows, got none")
        raw = np.concatenate([scores for scores, _ in found])
        modes = np.concatenate([own for _, own in found])
        if self.space is not None:
            self.levels_ = mode_levels(raw, modes, self.space.clusters)
        scaled = self._scaled(raw, modes)
        for calibrator, column in zip(self.calibrators, scaled.T, strict=True):
            calibrator.fit(column)
        return fuse(self._tails(scaled), self.rule, self.weights)

    def alone(self, block: Encoded) -> Floats:
        """Tail score of each detector by itself, ``(n, D)``."""
        return self._tails(self._scaled(self._measured(block), self._modes(block)))

    def fused(self, alone: Floats) -> Floats:
        """One score from those of ``alone``, ``(n,)``."""
        return fuse(alone, self.rule, self.weights)

    def scores_and_shares(self, block: Encoded) -> tuple[Floats, Floats]:
        """``alone`` and ``shares`` of a block; a detector whose shares are cheap is asked once for both."""
        cheap = {number: d.shares(block) for number, d in enumerate(self.detectors) if not d.dear}
        columns = [
            cheap[number].sum(axis=1) if number in cheap else d.anomaly_score(block)
            for number, d in enumerate(self.detectors)
        ]
        alone = self._tails(self._scaled(np.column_stack(columns), self._modes(block)))
        return alone, self._shared(block, alone, cheap)

    def shares(self, block: Encoded, alone: Floats) -> Floats:
        """``(n, C)``: each sensor's part of the fused score; rows add up to it.

        A detector whose shares are dear is asked only where some detector reaches 1.0; in other rows its part is shared
        out as the others share theirs, and where there are no others the row has no shares.
        """
        return self._shared(block, alone, {n: d.shares(block) for n, d in enumerate(self.detectors) if not d.dear})

    def _shared(self, block: Encoded, alone: Floats, cheap: dict[int, Floats]) -> Floats:
        parts = contributions(alone, self.rule, self.weights)
        told = np.flatnonzero((alone >= TOLD).any(axis=1))
        total = np.zeros((len(block), block.windows.shape[2]))
        pattern = np.zeros_like(total)
        for number, given in cheap.items():
            own = shared_out(np.ones(len(block)), given)
            total += parts[:, number, None] * own
            pattern += own
        dear = [number for number in range(len(self.detectors)) if number not in cheap]
        if not dear:
            return total
        rest = np.ones(len(block), dtype=bool)
        rest[told] = False
        total[rest] = parts[rest].sum(axis=1, keepdims=True) * pattern[rest] / max(len(cheap), 1)
        for number in dear if len(told) else ():
            total[told] += shared_out(parts[told, number], self.detectors[number].shares(block.take(told)))
        return total

    def _measured(self, block: Encoded) -> Floats:
        return np.column_stack([d.anomaly_score(block) for d in self.detectors])

    def _modes(self, block: Encoded) -> NDArray[np.int64]:
        if self.space is None:
            return np.zeros(len(block), np.int64)
        if block.embedding is None:
            raise ValueError("block: expected its embedding to know the operating mode, got none")
        return self.space.place(block.embedding).ids.astype(np.int64)

    def _scaled(self, raw: Floats, modes: NDArray[np.int64]) -> Floats:
        usual, span = self.levels_[modes, 0], self.levels_[modes, 1]
        return np.asarray((raw - usual) / span)

    def _tails(self, scaled: Floats) -> Floats:
        return np.column_stack([c.transform(column) for c, column in zip(self.calibrators, scaled.T, strict=True)])

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and arrays."""
        settings: dict[str, Any] = {"rule": self.rule, "weights": list(self.weights), "detectors": [], "space": None}
        arrays: dict[str, NDArray[Any]] = {"levels": self.levels_}
        for number, (detector, calibrator) in enumerate(zip(self.detectors, self.calibrators, strict=True)):
            own, held = detector.to_state()
            told, table = calibrator.to_state()
            settings["detectors"].append({"name": detector.name, "state": own, "calibrator": told})
            arrays |= {f"d{number}.{k}": v for k, v in held.items()} | {f"c{number}.{k}": v for k, v in table.items()}
        if self.space is not None:
            settings["space"], held = self.space.to_state()
            arrays |= {f"space.{k}": v for k, v in held.items()}
        return settings, arrays

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Ensemble:
        """The ensemble from ``to_state``; detectors are looked up in our list by name."""

        def own(prefix: str) -> dict[str, NDArray[Any]]:
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        told = settings["detectors"]
        detectors = [detector_class(d["name"]).from_state(d["state"], own(f"d{i}.")) for i, d in enumerate(told)]
        space = None
        if settings["space"] is not None:
            from anomaly.embeddings.space import Space

            space = Space.from_state(settings["space"], own("space."))
        made = cls(detectors, settings["rule"], settings["weights"], space)
        made.calibrators = tuple(TailCalibrator.from_state(d["calibrator"], own(f"c{i}.")) for i, d in enumerate(told))
        made.levels_ = arrays["levels"]
        return made


def mode_levels(raw: Floats, modes: NDArray[np.int64], count: int) -> Floats:
    """Usual score and span of each mode, ``(count, 2, D)``, from raw scores ``(n, D)`` of normal windows.

    Usual is the median, the span reaches from there to the 95 % quantile. A mode with fewer than 50 windows takes the
    levels of all, and no span is less than a thousandth, or more than a thousand times, that of all.
    """
    whole = _levels(raw)
    whole[1] = np.where(whole[1] > 0, whole[1], 1.0)
    levels = np.repeat(whole[None], count, axis=0)
    for mode in range(count):
        own = raw[modes == mode]
        if len(own) >= _LEAST_OF_MODE:
            levels[mode] = _levels(own)
            levels[mode, 1] = np.clip(levels[mode, 1], whole[1] / _WIDEST_RATIO, whole[1] * _WIDEST_RATIO)
    return levels


def _levels(raw: Floats) -> Floats:
    middle, high = np.quantile(raw, [0.5, 0.95], axis=0)
    return np.stack((middle, high - middle))

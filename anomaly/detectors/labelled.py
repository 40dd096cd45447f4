"""What the log's own events teach: a linear head over levels and departures, beside detectors that know none (DETECTION §2.6)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from anomaly.detectors.base import Detector, Encoded, shared_out

#: Rows before a window's last row that its departures are taken from: inside the window, so that nothing depends on more
#: history than the window has.
SPANS = (1, 4, 15)
#: Held so near zero that a handful of events cannot bend hundreds of weights (scikit-learn's C).
STRENGTH = 3e-4
#: One freak row must not decide a weight.
_FARTHEST = 6.0
_STILL = 1e-9

Floats = NDArray[np.float64]


def level_features(windows: NDArray[np.float32]) -> Floats:
    """What a window's last row says of each tag: ``(n, F, C)`` from windows ``(n, T, C)``.

    Its level, its departure from the mean of the 1, 4 and 15 rows before it, and the sizes of all of these. A window
    shorter than a span leaves that span out.

    >>> level_features(np.array([[[1.0], [3.0], [-2.0]]], np.float32))[0, :, 0].tolist()
    [-2.0, -5.0, 2.0, 5.0]
    """
    last, length = windows[:, -1].astype(np.float64), windows.shape[1]
    steps = [last - windows[:, -1 - span : -1].mean(axis=1, dtype=np.float64) for span in SPANS if span < length]
    signed = np.stack([last, *steps], axis=1)
    return np.concatenate((signed, np.abs(signed)), axis=1)


class LabelledDetector(Detector):
    """−log of the probability that no event is near, by a balanced, strongly shrunk logistic regression.

    ``centre``, ``scale`` and ``weight`` are ``(F, C)``, one per feature of a tag. Normal windows alone teach it nothing:
    ``learned`` makes one from labelled windows. A tag's share is what it adds to the log odds.
    """

    name: ClassVar[str] = "labelled"
    summary: ClassVar[str] = "linear head on levels and departures, learned from the log's events; joins by itself"
    needs: ClassVar[str] = "windows"

    def __init__(self, centre: Floats, scale: Floats, weight: Floats, bias: float) -> None:
        self.centre, self.scale, self.weight, self.bias = centre, scale, weight, float(bias)

    @classmethod
    def learned(cls, windows: NDArray[np.float32], positive: NDArray[np.bool_], strength: float = STRENGTH) -> Self:
        """The head of prepared windows ``(n, T, C)``, an event near where ``positive (n,)``; ``strength`` as
        scikit-learn's C.

        Raises ValueError unless there are windows of both kinds.
        """
        from sklearn.linear_model import LogisticRegression

        if not positive.any() or positive.all():
            raise ValueError("positive: expected windows near events and windows away from them, got one kind")
        found = level_features(windows)
        centre, spread = found.mean(axis=0), found.std(axis=0)
        scale = np.where(spread > _STILL, spread, 1.0)  # what never moved gets no weight
        fitted = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
        fitted.fit(_standard(found, centre, scale).reshape(len(found), -1), positive)
        return cls(centre, scale, fitted.coef_[0].reshape(centre.shape), fitted.intercept_[0])

    def fit(self, blocks: Iterable[Encoded]) -> Self:
        """Nothing is learned from normal windows alone."""
        return self

    def anomaly_score(self, block: Encoded) -> Floats:
        """−log of the probability that no event is near."""
        return self._score(self._parts(block))

    def _score(self, parts: Floats) -> Floats:
        return np.asarray(np.logaddexp(0, parts.sum(axis=1) + self.bias))

    def shares(self, block: Encoded) -> Floats:
        """The score, shared out by what each tag adds to the log odds."""
        parts = self._parts(block)
        return shared_out(self._score(parts), np.maximum(parts, 0))

    def _parts(self, block: Encoded) -> Floats:
        """What each tag adds to the log odds, ``(n, C)``."""
        found = _standard(level_features(self._needed(block)), self.centre, self.scale)
        return np.einsum("nfc,fc->nc", found, self.weight)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {"bias": self.bias}, {"centre": self.centre, "scale": self.scale, "weight": self.weight}

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> LabelledDetector:
        return cls(arrays["centre"], arrays["scale"], arrays["weight"], settings["bias"])


def _standard(found: Floats, centre: Floats, scale: Floats) -> Floats:
    """Features as the regression takes them, at most 6 deviations away."""
    return np.clip((found - centre) / scale, -_FARTHEST, _FARTHEST)
